"""Traces of devices: CSV, JSON and Parquet files, and records, as rows of a `Fleet` or of `Windows`."""

import csv
import json
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
      NotFound, MissingExtra: as `table`.
      ConfigError: as `table`, or a cell is no number where one belongs.
    """
    rows = table(source, "one for each device")
    return [{name: _cell(name, cell, at) for name, cell in row.items()} for at, row in enumerate(rows)]


def table(source: str | os.PathLike[str] | Iterable[Mapping[str, Any]], expected: str) -> list[dict[str, Any]]:
    """Rows without their empty cells.

    Args:
      source: a file, or records.
      expected: what a row is, for the error.

    Raises:
      NotFound: there is no such file.
      ConfigError: it is neither CSV, JSON nor Parquet, cannot be read as what it says it is, or has no rows.
      MissingExtra: Parquet needs pyarrow.
    """
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        if not path.is_file():
            raise NotFound(f"no trace at '{source}': give a CSV, JSON or Parquet file, or a list of records.")
        if path.suffix not in _READERS:
            raise ConfigError(f"'{path.name}': a trace is a file that ends in {' or '.join(_READERS)}.")
        rows = _READERS[path.suffix](path)
    else:
        rows = [dict(row) for row in source]
    if not rows:
        raise ConfigError(f"the trace has no rows: {expected} is needed.")
    return [{name: cell for name, cell in row.items() if not _empty(cell)} for row in rows]


def _csv(path: Path) -> list[dict[str, Any]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file, strict=True))
    except (ValueError, csv.Error) as error:
        raise ConfigError(f"'{path.name}' is no CSV file: {error}.") from None


def _json(path: Path) -> list[dict[str, Any]]:
    try:
        rows = json.loads(path.read_bytes())
    except ValueError as error:  # a UnicodeDecodeError is one, too
        raise ConfigError(f"'{path.name}' is no JSON file: {error}.") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ConfigError(f"'{path.name}': a trace in JSON is a list of objects, one for each row.")
    return rows


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


_READERS = {".csv": _csv, ".json": _json, ".parquet": _parquet}


def _empty(cell: Any) -> bool:
    return cell is None or cell == "" or (isinstance(cell, float) and math.isnan(cell))


def _cell(name: str, cell: Any, row: int) -> Any:
    if name not in BOUNDS:
        return cell
    try:
        return float(cell)
    except (TypeError, ValueError):
        raise ConfigError(f"row {row} of the trace: {name}={cell!r} is no number.") from None
