"""Tables as CSV files of any size: read in pieces, written in the common order, read again as aligned tables.

    intersection ─► (row, place) by block of rows ─► one pass over the table ─► rows by range of places ─► sorted
                    files, 2²⁰ rows each                                        files, 2¹⁶ places each         written

Nothing here holds more than a block or a range, so memory does not grow with the table. Beside `aligned.csv` lies
`aligned.csv.alignment`, a line of JSON: the alignment, and SHA-256 of the file, so that a table which changed since is
found out.
"""

import csv
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hansa.core.errors import ConfigError, CorruptFile, DataError, HansaError, NotFound, StateMismatch, StorageFull
from hansa.vertical.psi.intersect import Intersection
from hansa.vertical.table import AlignedTable

_PIECE = 1 << 15  # rows
_BLOCK = 1 << 20  # rows whose places are held at a time
_RANGE = 1 << 16  # places that are sorted at a time, at least
_MOST_FILES = 512
_NUMBERS = np.dtype([("row", "<i8"), ("place", "<i8")])


@dataclass(frozen=True)
class CsvTable:
    """A CSV file with a header.

    Args:
      path: of the file, in UTF-8.
      columns: its names.

    Raises:
      NotFound: there is no such file.
      DataError: it has no header, or a name occurs twice.
    """

    path: Path
    columns: tuple[str, ...]

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "CsvTable":
        """Reads the header."""
        path = Path(path)
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                header = next(csv.reader(file), [])
        except FileNotFoundError:
            raise NotFound(f"{path} does not exist: give the path of a CSV file.") from None
        except (UnicodeDecodeError, csv.Error, OSError) as error:
            raise DataError(f"{path} cannot be read as CSV in UTF-8: {error}.") from None
        if not header:
            raise DataError(f"{path} is empty: it needs a header line with the names of its columns.")
        twice = sorted({name for name in header if header.count(name) > 1})
        if twice:
            raise DataError(f"{path} has the columns {twice} twice: rename them.")
        return cls(path, tuple(header))

    def rows(self) -> Iterator[list[str]]:
        """All rows, as text.

        Raises:
          DataError: a row has more or fewer values than the header.
        """
        try:
            with self.path.open(encoding="utf-8-sig", newline="") as file:
                reader = csv.reader(file, strict=True)
                next(reader, None)
                for row in reader:
                    if len(row) != len(self.columns):
                        raise DataError(
                            f"line {reader.line_num} of {self.path} has {len(row)} values, and the header "
                            f"{len(self.columns)} names."
                        )
                    yield row
        except (UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"{self.path} cannot be read as CSV in UTF-8: {error}.") from None

    def keys(self, columns: Sequence[str]) -> Iterator[Mapping[str, list[str]]]:
        """Some columns, in pieces of consecutive rows.

        Raises:
          ConfigError: there is no such column.
        """
        absent = [name for name in columns if name not in self.columns]
        if absent:
            raise ConfigError(f"{self.path} has no columns {absent} for the key: it has {', '.join(self.columns)}.")
        places = [self.columns.index(name) for name in columns]
        piece: list[list[str]] = [[] for _ in places]
        for row in self.rows():
            for into, place in zip(piece, places, strict=True):
                into.append(row[place])
            if len(piece[0]) == _PIECE:
                yield dict(zip(columns, piece, strict=True))
                piece = [[] for _ in places]
        yield dict(zip(columns, piece, strict=True))


def write_aligned(table: CsvTable, found: Intersection, path: Path, *, owner: str, key: Sequence[str]) -> None:
    """Writes the shared rows in the common order, and beside them the alignment.

    Args:
      table: whose rows the intersection speaks of.
      found: the intersection.
      path: of the CSV file; it appears whole or not at all.
      owner: whose columns they are.
      key: the columns of the key, which stay in the file and are left out by `read_aligned`.

    Raises:
      StorageFull: the disk is.
      ConfigError: the path cannot be written.
    """
    with _written(path), tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as made:
        folder = Path(made)
        blocks = _places_by_block(found, folder)
        span = max(_RANGE, -(-len(found) // _MOST_FILES))
        ranges = _rows_by_range(table, blocks, folder, span, -(-len(found) // span))
        digest = _sorted_into(folder / "aligned", table.columns, ranges)
        facts = {"owner": owner, "rows": len(found), "key": [*key], "alignment": found.alignment.hex()}
        (folder / "facts").write_text(json.dumps({**facts, "sha256": digest}) + "\n", encoding="utf-8")
        os.replace(folder / "facts", _facts(path))
        os.replace(folder / "aligned", path)


def write_rows(table: CsvTable, rows: NDArray[np.int64], path: Path) -> None:
    """Writes some rows of a table in their order, whole or not at all.

    Args:
      table: whose rows they are.
      rows: their numbers, ascending.
      path: of the CSV file.

    Raises:
      StorageFull, ConfigError: as `write_aligned`.
    """
    wanted = set(rows.tolist())
    with _written(path), tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as made:
        text = b"".join(_line(row) for at, row in enumerate(table.rows()) if at in wanted)
        (Path(made) / "rows").write_bytes(_line(table.columns) + text)
        os.replace(Path(made) / "rows", path)


def read_aligned(path: str | os.PathLike[str], *, with_key: bool = False) -> AlignedTable:
    """An aligned table from its file: columns of numbers as numbers, empty cells as missing.

    Args:
      path: of the CSV file; a file of the same name and `.alignment` lies beside it.
      with_key: whether the columns of the key come, too, as text.

    Raises:
      NotFound: one of the two files is missing.
      StateMismatch: the table changed since the alignment.
      DataError: the table cannot be read.
      CorruptFile: the file of the alignment cannot be read.
    """
    path = Path(path)
    table = CsvTable.open(path)
    try:
        facts = json.loads(_facts(path).read_text(encoding="utf-8"))
        owner, key, rows = str(facts["owner"]), [str(name) for name in facts["key"]], int(facts["rows"])
        alignment, expected = bytes.fromhex(facts["alignment"]), str(facts["sha256"])
    except FileNotFoundError:
        raise NotFound(f"{_facts(path)} does not exist: it is written with {path} by `hansa psi`.") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorruptFile(f"{_facts(path)} cannot be read ({error}): align again.") from None
    with path.open("rb") as file:
        changed = hashlib.file_digest(file, "sha256").hexdigest() != expected
    if changed:
        raise StateMismatch(f"{path} changed since it was aligned: align again.")
    columns = list(zip(*table.rows(), strict=True)) or [()] * len(table.columns)
    made = {
        name: np.array(values, object) if name in key else typed(values)
        for name, values in zip(table.columns, columns, strict=True)
        if with_key or name not in key
    }
    if any(len(values) != rows for values in made.values()):
        raise StateMismatch(f"{path} has not the {rows} rows that were aligned: align again.")
    return AlignedTable(owner, made, alignment)


@contextmanager
def _written(path: Path) -> Iterator[None]:
    """Faults of the disk while `path` is written, as ours."""
    try:
        yield
    except HansaError:
        raise
    except OSError as error:
        if error.errno == 28:
            raise StorageFull(f"the disk is full while {path} is written: make room, and run again.") from None
        raise ConfigError(f"{path} cannot be written ({error.strerror}): choose another --out.") from None


def _facts(path: Path) -> Path:
    return path.with_name(f"{path.name}.alignment")


def typed(values: Sequence[str]) -> NDArray[np.float64] | NDArray[np.object_]:
    """A column's cells as numbers, if all are; else as text; empty ones as missing."""
    try:
        return np.array([float(value) if value else np.nan for value in values], np.float64)
    except ValueError:
        return np.array([value or None for value in values], object)


def _places_by_block(found: Intersection, folder: Path) -> dict[int, Path]:
    paths: dict[int, Path] = {}
    before = 0
    for rows in found.parts():
        records = np.empty(len(rows), _NUMBERS)
        records["row"], records["place"] = rows, np.arange(before, before + len(rows))
        before += len(rows)
        blocks = rows // _BLOCK
        for block in np.unique(blocks).tolist():
            paths[block] = folder / f"places-{block}"
            with paths[block].open("ab") as file:
                file.write(records[blocks == block].tobytes())
    return paths


def _rows_by_range(table: CsvTable, blocks: Mapping[int, Path], folder: Path, span: int, count: int) -> list[Path]:
    paths = [folder / f"rows-{at}" for at in range(count)]
    places = np.empty(0, np.int64)
    with ExitStack() as open_files:
        files = [open_files.enter_context(open(path, "wb")) for path in paths]
        for number, row in enumerate(table.rows()):
            inside = number % _BLOCK
            if not inside:
                places = np.full(_BLOCK, -1)
                if (path := blocks.get(number // _BLOCK)) is not None:
                    records = np.fromfile(path, _NUMBERS)
                    places[records["row"] % _BLOCK] = records["place"]
            if (place := int(places[inside])) >= 0:
                text = _line(row)
                files[place // span].write(place.to_bytes(8, "little") + len(text).to_bytes(4, "little") + text)
    return paths


def _sorted_into(path: Path, columns: Sequence[str], ranges: Sequence[Path]) -> str:
    """Writes the header and all ranges, each sorted; the file's SHA-256."""
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for part in (_line(columns), *map(_sorted, ranges)):
            digest.update(part)
            file.write(part)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _sorted(path: Path) -> bytes:
    raw, lines, at = path.read_bytes(), {}, 0
    while at < len(raw):
        place, size = int.from_bytes(raw[at : at + 8], "little"), int.from_bytes(raw[at + 8 : at + 12], "little")
        lines[place] = raw[at + 12 : at + 12 + size]
        at += 12 + size
    return b"".join([lines[place] for place in sorted(lines)])


def _line(row: Sequence[str]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(row)
    return text.getvalue().encode()
