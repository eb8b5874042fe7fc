"""A party's own data: tables from CSV, Parquet or .npz files, by path or URL, and `load`, which reads `--data`.

    mydata.py:load                      what the function `load` in that file returns
    hospital.data:load                  the same from an importable module
    patients.csv                        a table: targets in column y, target or label, features in all others
    s3://bucket/patients.parquet#target=outcome&features=age,weight
    arrays.npz                          named arrays, each a column

Plain paths to CSV and .npz need nothing but NumPy; URLs need fsspec, and Parquet needs pyarrow. Messages name rows and
columns, never what is written in them.
"""

import csv
import io
import re
from collections.abc import Sequence
from pathlib import PurePath
from typing import IO, Any
from urllib.parse import parse_qs, urlsplit

import numpy as np

from hansa.core.data import Dataset
from hansa.core.errors import DataError, MissingExtra
from hansa.data.code import load_from_code

TARGET_NAMES = ("y", "target", "label")


def from_csv(
    url: str,
    target: str | None = None,
    features: Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
    delimiter: str = ",",
) -> Dataset:
    """A table of numbers in a CSV file.

    Args:
      url: a path, or a URL that fsspec knows (`file://`, `memory://`, `s3://`, `https://`, …).
      target: the column of targets; by default the one named y, target or label.
      features: the columns of features, in the model's order; by default all others, in the file's order.
      classes: where the targets are text, the possible ones: target `classes[i]` becomes i. It must be the same at
        every party, so it is never guessed from one party's rows.
      names: the names of the columns, for a file whose first line is not the names.
      delimiter: what stands between two cells.

    Returns:
      x, float32 of shape (rows, features), and y, int64 if every target is a whole number, else float32.

    Raises:
      DataError: no such file or column, an empty or non-numeric cell (named by row), or a ragged line.
      MissingExtra: a URL, and fsspec is not installed.
    """
    with _open(url) as raw:
        try:
            text = io.TextIOWrapper(raw, encoding="utf-8-sig", newline="")
            lines = [line for line in csv.reader(text, delimiter=delimiter) if line]
        except (UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"'{_shown(url)}' is not a CSV file in UTF-8: {type(error).__name__}.") from None
    header = list(names) if names is not None else [cell.strip() for cell in lines[0]] if lines else []
    body = lines if names is not None else lines[1:]
    if not body:
        raise DataError(f"'{_shown(url)}' has no rows below its column names: give at least one.")
    if len(set(header)) < len(header):
        raise DataError(f"'{_shown(url)}' names a column twice: rename one of {header}.")
    for number, line in enumerate(body, start=1):
        if len(line) != len(header):
            raise DataError(f"row {number} of '{_shown(url)}' has {len(line)} cells for {len(header)} columns.")
    cells = dict(zip(header, zip(*body, strict=True), strict=True))
    return _table({name: np.array(column) for name, column in cells.items()}, url, target, features, classes)


def from_parquet(
    url: str,
    target: str | None = None,
    features: Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
) -> Dataset:
    """A table of numbers in a Parquet file; arguments and result as in `from_csv`. Reads only the columns it needs.

    Raises:
      DataError: no such file or column, a null, or a column that is not numbers.
      MissingExtra: pyarrow is not installed, or, for a URL, fsspec.
    """
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise MissingExtra("hansa.data.from_parquet", "pyarrow", "data") from None
    with _open(url) as raw:
        try:
            file = parquet.ParquetFile(raw)
            target, features = _choose(file.schema_arrow.names, url, target, features)
            table = file.read(columns=[*features, target])
        except (ArrowException, OSError):
            raise DataError(f"'{_shown(url)}' is not a Parquet file, or is damaged.") from None
    for name in table.column_names:
        if table[name].null_count:
            raise DataError(f"column '{name}' of '{_shown(url)}' has {table[name].null_count} empty cells: fill them.")
    columns = {name: table[name].to_numpy() for name in table.column_names}
    return _table(columns, url, target, features, classes)


def from_npz(url: str) -> Dataset:
    """The arrays of an .npz file as columns, with their own types; nothing in it is ever unpickled.

    Raises:
      DataError: no such file, not an .npz file, Python objects in it, or arrays of unequal length.
    """
    with _open(url) as raw:
        try:
            with np.load(io.BytesIO(raw.read()), allow_pickle=False) as arrays:
                columns = {name: arrays[name] for name in arrays.files}
        except Exception:  # a damaged zip fails in many ways
            raise DataError(
                f"'{_shown(url)}' is not an .npz file of plain arrays: write it with numpy.savez."
            ) from None
    return Dataset(**columns)


def load(spec: str) -> Any:
    """What a worker holds, as its `--data` says (see the top of this page for the forms).

    Returns:
      A Dataset, or whatever the named function returns, if it has a length.

    Raises:
      DataError: no such file, column, module or function, or a form that is not known.
    """
    location, _, options = spec.partition("#")
    code = re.fullmatch(r"(?P<module>[^:]+):(?P<function>[A-Za-z_][\w.]*)", location)
    if code and "://" not in spec and (code["module"].endswith(".py") or re.fullmatch(r"[\w.]+", code["module"])):
        return load_from_code(code["module"], code["function"])
    target, features, classes = _options(spec, options)
    path = urlsplit(location).path if "://" in location else location
    suffix = PurePath(path).suffix.lower()
    if suffix == ".csv":
        return from_csv(location, target, features, classes)
    if suffix in (".parquet", ".pq"):
        return from_parquet(location, target, features, classes)
    if suffix == ".npz":
        return from_npz(location)
    raise DataError(
        f"'{_shown(spec)}' is not data that can be loaded: give module.py:function, package.module:function, "
        f"or a path or URL that ends in .csv, .parquet or .npz."
    )


def _options(spec: str, text: str) -> tuple[str | None, list[str] | None, list[str] | None]:
    given = parse_qs(text, keep_blank_values=True)
    unknown = set(given) - {"target", "features", "classes"}
    if unknown or any(len(values) > 1 for values in given.values()):
        raise DataError(f"'{_shown(spec)}': after # come target=, features= and classes=, each once, joined by &.")
    target = given["target"][0] if "target" in given else None
    listed = {name: values[0].split(",") for name, values in given.items()}
    return target, listed.get("features"), listed.get("classes")


def _open(url: str) -> IO[bytes]:
    try:
        if "://" not in url:
            return open(url, "rb")
        try:
            import fsspec
        except ImportError:
            raise MissingExtra(f"reading '{_shown(url)}'", "fsspec", "data") from None
        return fsspec.open(url, "rb").open()  # type: ignore[no-any-return]
    except FileNotFoundError:
        raise DataError(f"there is no file '{_shown(url)}': check the path.") from None
    except (OSError, ValueError, ImportError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise DataError(f"cannot open '{_shown(url)}': {reason}.") from None


def _shown(url: str) -> str:
    """The URL without what may be a secret: user, password, query."""
    if "://" not in url:
        return url
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _choose(
    names: Sequence[str], url: str, target: str | None, features: Sequence[str] | None
) -> tuple[str, Sequence[str]]:
    """The target column and the feature columns, once all are known to be there."""
    if target is None:
        target = next((name for name in TARGET_NAMES if name in names), None)
    if target is None:
        raise DataError(
            f"'{_shown(url)}' has no column named {', '.join(TARGET_NAMES)} among {list(names)}: "
            f"say which holds the targets, target='...' (in --data: {_shown(url)}#target=...)."
        )
    features = [name for name in names if name != target] if features is None else list(features)
    missing = [name for name in [target, *features] if name not in names]
    if missing:
        raise DataError(f"'{_shown(url)}' has no column {missing[0]!r}: its columns are {list(names)}.")
    if not features:
        raise DataError(f"'{_shown(url)}' has no column of features beside the target '{target}': add one.")
    return target, features


def _table(
    columns: dict[str, np.ndarray],
    url: str,
    target: str | None,
    features: Sequence[str] | None,
    classes: Sequence[str] | None,
) -> Dataset:
    target, features = _choose(list(columns), url, target, features)
    x = np.empty((len(columns[target]), len(features)), dtype=np.float32)
    for place, name in enumerate(features):
        x[:, place] = _numbers(columns[name], name, url, "leave it out of features=, or turn it into numbers")
    if classes is not None:
        return Dataset(x=x, y=_codes(columns[target], target, url, classes))
    y = _numbers(columns[target], target, url, "name the possible ones, the same at every party, as classes=")
    return Dataset(x=x, y=y.astype(np.int64 if np.all(y == np.trunc(y)) else np.float32))


def _numbers(column: np.ndarray, name: str, url: str, remedy: str) -> np.ndarray:
    try:
        numbers = column.astype(np.float64)
    except (ValueError, TypeError):
        row = next((row for row, cell in enumerate(column, start=1) if not _is_number(cell)), 1)
        what = "is empty: fill or drop it" if not str(column[row - 1]).strip() else f"is not a number: {remedy}"
        raise DataError(f"row {row} of column '{name}' in '{_shown(url)}' {what}.") from None
    if not np.all(np.isfinite(numbers)):
        row = int(np.flatnonzero(~np.isfinite(numbers))[0]) + 1
        raise DataError(f"row {row} of column '{name}' in '{_shown(url)}' is not a finite number: fill or drop it.")
    return numbers


def _is_number(cell: Any) -> bool:
    try:
        float(cell)
    except (ValueError, TypeError):
        return False
    return True


def _codes(column: np.ndarray, name: str, url: str, classes: Sequence[str]) -> np.ndarray:
    text = np.array([str(cell).strip() for cell in column])
    codes = np.full(len(text), -1, dtype=np.int64)
    for code, label in enumerate(classes):
        codes[text == str(label)] = code
    if (codes < 0).any():
        row = int(np.flatnonzero(codes < 0)[0]) + 1
        raise DataError(f"row {row} of column '{name}' in '{_shown(url)}' is none of classes={list(classes)}.")
    return codes
