"""A log of rounds as a table, one row each: CSV, which is on disk after every round, or Parquet.

    round  attempt  asked  counted  dropped  late  up_bytes  …  peak_memory_bytes  central.loss  train.loss

When a run is resumed its table is first made to hold just the rounds it has committed: a torn last line and rounds that
were never committed go, and rounds that are missing are filled in from the run's own records.
"""

import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hansa.core.errors import ConfigError, MissingExtra, require
from hansa.core.job import Job
from hansa.core.train import Record
from hansa.runtimes.observe.metric import GROUPS
from hansa.runtimes.observe.observer import Observer
from hansa.runtimes.observe.resident import peak_memory_bytes

Row = dict[str, Any]
PLAIN = ("round", "attempt", "asked", "counted", "dropped", "late", "up_bytes", "down_bytes", "seconds",
         "compute_seconds", "peak_memory_bytes")  # fmt: skip


def row_of(record: Record, memory: int | None = None) -> Row:
    """A record as one flat row; `dropped` is how many were, `round` begins at 1."""
    plain: Row = {name: getattr(record, name) for name in PLAIN if name != "peak_memory_bytes"}
    plain |= {"round": record.round + 1, "dropped": len(record.dropped), "peak_memory_bytes": memory}
    return plain | {f"{group}.{name}": value for group in GROUPS for name, value in getattr(record, group).items()}


def columns_of(rows: Sequence[Row]) -> list[str]:
    """The plain columns, then the metrics by name."""
    return [*PLAIN, *sorted({name for row in rows for name in row} - set(PLAIN))]


class _Log(Observer):
    """What both kinds of table do."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        folder = self.path.absolute().parent
        require(folder.is_dir(), f"log {self.path}: there is no folder {self.path.parent}; make it first.")
        self._rows: list[Row] = []
        self._columns: list[str] = []

    def begin(self, job: Job, run: str, records: Sequence[Record]) -> None:
        """Brings the table to the committed rounds; that of another run is moved aside as `NAME.before.csv`."""
        found = self._read() if self.path.exists() else []
        if found and not records:
            self.path.replace(self.path.with_name(f"{self.path.stem}.before{self.path.suffix}"))
            found = []
        memory = {int(row["round"]): row.get("peak_memory_bytes") for row in found}
        self._rows = [row_of(record, memory.get(record.round + 1)) for record in records]
        self._columns = columns_of(self._rows)
        self._write()

    def _write(self) -> None:
        """The whole table, or the one before."""
        beside = self.path.with_name(f".{self.path.name}.partial")
        try:
            self._write_to(beside)
            beside.replace(self.path)
        except OSError as error:
            beside.unlink(missing_ok=True)
            raise ConfigError(f"log {self.path} cannot be written ({error.strerror}): choose another file.") from None

    def _read(self) -> list[Row]:
        raise NotImplementedError

    def _write_to(self, path: Path) -> None:
        raise NotImplementedError


class CsvLog(_Log):
    """Appends each round to a CSV file, as one whole line.

    Args:
      path: the file. An existing one is continued by a resumed run, and moved aside by a new one.

    Guarantees:
      Killed anywhere, the file holds whole lines but perhaps the last, and a resumed run has each round once.
    """

    def __call__(self, record: Record) -> None:
        """Appends the round; a metric that was never there before costs one rewriting of the file."""
        row = row_of(record, peak_memory_bytes())
        self._rows.append(row)
        if set(row) <= set(self._columns):
            with open(self.path, "ab", buffering=0) as file:
                file.write(self._lines([row]))
            return
        self._columns = columns_of(self._rows)
        self._write()

    def _lines(self, rows: Sequence[Row]) -> bytes:
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows([["" if (v := row.get(name)) is None else v for name in self._columns] for row in rows])
        return text.getvalue().encode()

    def _write_to(self, path: Path) -> None:
        header = ",".join(self._columns).encode() + b"\n"
        path.write_bytes(header + self._lines(self._rows))

    def _read(self) -> list[Row]:
        try:
            lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
            whole = [line for line in lines if line.endswith("\n")]
            rows: list[Mapping[str, str]] = list(csv.DictReader(whole))
            return [{"round": int(row["round"]), "peak_memory_bytes": _whole(row["peak_memory_bytes"])} for row in rows]
        except (OSError, ValueError, KeyError, csv.Error):
            raise ConfigError(f"{self.path} is no log of rounds: choose another file for it.") from None


def _whole(text: str) -> int | None:
    return int(text) if text else None


class ParquetLog(_Log):
    """Writes the rounds to a Parquet file, which is replaced whole every few rounds and at the end.

    Args:
      path: the file. An existing one is continued by a resumed run, and moved aside by a new one.
      every: rounds between writings, ≥ 1; what a kill loses of them is filled in on resuming, but for their memory.

    Raises:
      MissingExtra: pyarrow is not installed.
    """

    def __init__(self, path: str | os.PathLike[str], every: int = 20) -> None:
        super().__init__(path)
        require(every >= 1, f"every={every}: at least 1 round.")
        self.every = every
        _parquet()

    def __call__(self, record: Record) -> None:
        """Keeps the round, and writes all if it is time."""
        self._rows.append(row_of(record, peak_memory_bytes()))
        if len(self._rows) % self.every == 0:
            self._write()

    def end(self, reason: str) -> None:
        """Writes what is left."""
        self._write()

    def _write_to(self, path: Path) -> None:
        arrow, parquet = _parquet()
        names, whole, real = columns_of(self._rows), arrow.int64(), arrow.float64()
        types = {name: real if "." in name or name.endswith("seconds") else whole for name in names}
        data = {name: arrow.array([row.get(name) for row in self._rows], types[name]) for name in names}
        parquet.write_table(arrow.table(data), path)

    def _read(self) -> list[Row]:
        arrow, parquet = _parquet()
        try:
            rows: list[Row] = parquet.read_table(self.path, columns=["round", "peak_memory_bytes"]).to_pylist()
            return rows
        except (OSError, ValueError, arrow.ArrowException):
            raise ConfigError(f"{self.path} is no log of rounds: choose another file for it.") from None


def _parquet() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingExtra("ParquetLog", "pyarrow", "data") from None
    return pyarrow, pyarrow.parquet
