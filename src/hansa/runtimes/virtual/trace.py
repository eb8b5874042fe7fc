"""Traces of devices: CSV and Parquet files, and records, as rows of a `Fleet`."""

import csv
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hansa.core.errors import ConfigError, MissingExtra, NotFound
from hansa.runtimes.virtual.device import BOUNDS


def read(source: str | os.PathLike[str] | Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows without their empty cells, numbers as floats.

    Raises:
      NotFound: there is no such file.
      ConfigError: it is neither CSV nor Parquet, has no rows, or a cell is no number where one belongs.
      MissingExtra: Parquet needs pyarrow.
    """
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        if not path.is_file():
            raise NotFound(f"no trace at '{source}': give a CSV or Parquet file, or a list of records.")
        if path.suffix not in _READERS:
            raise ConfigError(f"'{path.name}': a trace is a file that ends in {' or '.join(_READERS)}.")
        rows = _READERS[path.suffix](path)
    else:
        rows = [dict(row) for row in source]
    if not rows:
        raise ConfigError("the trace has no rows: one for each device is needed.")
    return [
        {name: _cell(name, cell, at) for name, cell in row.items() if not _empty(cell)} for at, row in enumerate(rows)
    ]


def _csv(path: Path) -> list[dict[str, Any]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _parquet(path: Path) -> list[dict[str, Any]]:
    try:
        import pyarrow.parquet as parquet
    except ModuleNotFoundError:
        raise MissingExtra("a trace in Parquet", "pyarrow", "data") from None
    try:
        rows: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
    except (OSError, ValueError) as error:
        raise ConfigError(f"'{path.name}' is no Parquet file: {error}.") from None
    return rows


_READERS = {".csv": _csv, ".parquet": _parquet}


def _empty(cell: Any) -> bool:
    return cell is None or cell == "" or (isinstance(cell, float) and math.isnan(cell))


def _cell(name: str, cell: Any, row: int) -> Any:
    if name not in BOUNDS:
        return cell
    try:
        return float(cell)
    except (TypeError, ValueError):
        raise ConfigError(f"row {row} of the trace: {name}={cell!r} is no number.") from None
