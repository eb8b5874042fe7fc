"""Columns on disk, read by ranges of rows: a folder of .npy files, an Arrow (Feather) file or a Parquet file.

    .npy columns            memory-mapped; a range is a view
    .arrow .feather .ipc    memory-mapped; a range is a view where the file is not compressed
    .parquet .pq            decoded a row group at a time; the last few stay in memory

pyarrow is imported when an Arrow or Parquet file is opened. A file that is cut short while it is mapped can still end
the process (SIGBUS): replace files by renaming, never in place.
"""

import os
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hansa.core.errors import DataError, MissingExtra

ARROW_ENDINGS = (".arrow", ".feather", ".ipc")
PARQUET_ENDINGS = (".parquet", ".pq")
KEPT_PIECES = 4  # decoded row groups that stay in memory


class Table(ABC):
    """Columns of equal length, stored in pieces (batches, row groups) that are read whole.

    Args:
      path: what errors name.
      names: the columns.
      bounds: pieces + 1 row numbers; piece i holds the rows from bounds[i] to bounds[i + 1].
    """

    def __init__(self, path: str, names: Sequence[str], bounds: np.ndarray) -> None:
        self.path, self.names, self.bounds = path, tuple(names), bounds
        if not self.names or self.bounds[-1] == 0:
            raise DataError(f"'{path}' has no rows or no columns: a population needs at least one example.")

    def __len__(self) -> int:
        return int(self.bounds[-1])

    @abstractmethod
    def piece(self, number: int, names: Sequence[str]) -> dict[str, np.ndarray]:
        """The named columns of one piece."""

    def read(self, start: int, stop: int, names: Sequence[str]) -> dict[str, np.ndarray]:
        """The rows from `start` to `stop`: views if they lie in one piece that is mapped, else copies."""
        places = np.searchsorted(self.bounds, [start, max(stop - 1, start)], side="right") - 1
        first, last = np.minimum(places, len(self.bounds) - 2).tolist()  # a client without rows may begin at the end
        parts = []
        for number in range(first, last + 1):
            low, high = self.bounds[number], self.bounds[number + 1]
            inside = slice(max(start, low) - low, min(stop, high) - low)
            parts.append({name: column[inside] for name, column in self.piece(number, names).items()})
        return parts[0] if len(parts) == 1 else _joined(parts)

    def take(self, rows: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
        """The rows of those numbers, which must rise; reads every piece that holds one of them."""
        if len(rows) == 0 or rows[-1] - rows[0] == len(rows) - 1:
            start = int(rows[0]) if len(rows) else 0
            return self.read(start, start + len(rows), names)
        cuts = np.searchsorted(rows, self.bounds)
        parts = []
        for number in np.flatnonzero(np.diff(cuts)):
            inside = rows[cuts[number] : cuts[number + 1]] - self.bounds[number]
            parts.append({name: column[inside] for name, column in self.piece(int(number), names).items()})
        return parts[0] if len(parts) == 1 else _joined(parts)

    def chunks(self, name: str) -> Iterator[Any]:
        """One column as Arrow arrays, in order of the rows."""
        raise NotImplementedError


class NpyTable(Table):
    """Memory-mapped .npy files, one for each column.

    Args:
      path: the folder.
      files: the file of each column.
    """

    def __init__(self, path: str, files: dict[str, str]) -> None:
        self._columns = {name: mapped(os.path.join(path, file)) for name, file in files.items()}
        lengths = {name: len(column) if column.ndim else -1 for name, column in self._columns.items()}
        if len(set(lengths.values())) > 1 or -1 in lengths.values():
            raise DataError(f"the columns of '{path}' differ in length ({lengths}): write it anew.")
        super().__init__(path, tuple(files), np.array([0, *list(lengths.values())[:1]]))

    def piece(self, number: int, names: Sequence[str]) -> dict[str, np.ndarray]:
        return {name: self._columns[name] for name in names}


class ArrowTable(Table):
    """An Arrow IPC file, memory-mapped."""

    def __init__(self, path: str) -> None:
        pyarrow = _pyarrow(path)
        self._file = _readable(path, lambda: pyarrow.ipc.open_file(pyarrow.memory_map(path)))
        count = range(self._file.num_record_batches)
        lengths = _readable(path, lambda: [self._file.get_batch(number).num_rows for number in count])
        super().__init__(path, self._file.schema.names, np.cumsum([0, *lengths]))

    def piece(self, number: int, names: Sequence[str]) -> dict[str, np.ndarray]:
        batch = _readable(self.path, lambda: self._file.get_batch(number))
        return {name: to_numpy(batch.column(name), name, self.path) for name in names}

    def chunks(self, name: str) -> Iterator[Any]:
        for number in range(self._file.num_record_batches):
            yield _readable(self.path, partial(self._file.get_batch, number)).column(name)


class ParquetTable(Table):
    """A Parquet file; the last `KEPT_PIECES` row groups that were decoded stay in memory."""

    def __init__(self, path: str) -> None:
        _pyarrow(path)
        from pyarrow import parquet

        self._file = _readable(path, lambda: parquet.ParquetFile(path, pre_buffer=False))
        groups = range(self._file.num_row_groups)
        lengths = [self._file.metadata.row_group(group).num_rows for group in groups]
        self._kept: OrderedDict[tuple[int, tuple[str, ...]], dict[str, np.ndarray]] = OrderedDict()
        super().__init__(path, self._file.schema_arrow.names, np.cumsum([0, *lengths]))

    def piece(self, number: int, names: Sequence[str]) -> dict[str, np.ndarray]:
        key = (number, tuple(names))
        if key not in self._kept:
            table = _readable(self.path, lambda: self._file.read_row_group(number, columns=list(names)))
            self._kept[key] = {
                name: to_numpy(table.column(name).combine_chunks(), name, self.path) for name in names
            }  # fmt: skip
            while len(self._kept) > KEPT_PIECES:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]

    def chunks(self, name: str) -> Iterator[Any]:
        batches = iter(self._file.iter_batches(batch_size=1 << 16, columns=[name], use_threads=False))
        while (batch := _readable(self.path, lambda: next(batches, None))) is not None:
            yield batch.column(0)


def mapped(path: str) -> np.ndarray:
    """The array of an .npy file, memory-mapped and read-only; nothing in it is ever unpickled."""
    try:
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError, EOFError):
        raise DataError(f"'{path}' is missing, or is not an .npy file of plain numbers: write it anew.") from None


def open_table(path: str) -> Table:
    """The table in an Arrow or Parquet file, told by its ending."""
    ending = Path(path).suffix.lower()
    if ending not in (*ARROW_ENDINGS, *PARQUET_ENDINGS):
        wanted = ", ".join((*ARROW_ENDINGS, *PARQUET_ENDINGS))
        raise DataError(f"'{path}' is neither a folder that hansa.data.pack wrote nor a file that ends in {wanted}.")
    if not os.path.isfile(path):
        raise DataError(f"there is no file '{path}': check the path (a population is read from local files).")
    return ArrowTable(path) if ending in ARROW_ENDINGS else ParquetTable(path)


def to_numpy(array: Any, name: str, path: str) -> np.ndarray:
    """An Arrow array as NumPy, a fixed-size list as a further axis; without a copy where Arrow can."""
    from pyarrow import types

    if array.null_count:
        raise DataError(f"column '{name}' of '{path}' has {array.null_count} empty cells: fill them.")
    shape: list[int] = [len(array)]
    while types.is_fixed_size_list(array.type):
        shape.append(array.type.list_size)
        array = array.flatten()
        if array.null_count:
            raise DataError(f"column '{name}' of '{path}' has empty cells inside its lists: fill them.")
    if types.is_nested(array.type):
        raise DataError(f"column '{name}' of '{path}' holds {array.type}: cast it to numbers or fixed-size lists.")
    values = array.to_numpy(zero_copy_only=False)
    return np.asarray(values.astype(str) if values.dtype == object else values).reshape(shape)


def _joined(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _pyarrow(path: str) -> Any:
    try:
        import pyarrow
        import pyarrow.ipc
    except ImportError:
        raise MissingExtra(f"the population '{path}'", "pyarrow", "data") from None
    return pyarrow


def _readable(path: str, read: Callable[[], Any]) -> Any:
    """What `read` gives, or a DataError if the file is damaged."""
    from pyarrow import ArrowException

    try:
        return read()
    except (ArrowException, OSError):
        raise DataError(f"'{path}' is not a whole Arrow or Parquet file: write it anew.") from None
