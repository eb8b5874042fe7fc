"""Populations on disk: a million clients, of which memory holds two arrays and what is being trained on.

    people/                         what `pack` writes         ann │ bob     │ eve
      index.json                    names of the columns       x0 x1 │ x2 x3 x4 │ x5      rows of a client lie together
      ids.npy  id_offsets.npy       the ids in UTF-8, joined   0     2          5    6    offsets.npy
      offsets.npy                   clients + 1 row numbers
      column-0.npy …                rows grouped by client

    people.parquet, people.arrow    with a column that says whose each row is

All of it is memory-mapped. Where the rows of a client do not lie together, as in a table in order of time, opening one
reads every row group that holds some of them: `pack` such a table once.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, fields
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from hansa.core.data import Clients, Dataset
from hansa.core.errors import DataError
from hansa.data.ids import PaddedIds, TextIds, known_place
from hansa.data.population import NumberedIds
from hansa.data.tables import NpyTable, Table, mapped, open_table

FORMAT = {"format": "hansa.population", "version": 1}


class Layout(NamedTuple):
    """Who owns which rows: client k those at order[offsets[k]:offsets[k + 1]]; no `order` if they lie in that order."""

    table: Table
    ids: Sequence[str]
    offsets: np.ndarray
    order: np.ndarray | None
    names: tuple[str, ...]


@dataclass(frozen=True)
class Population(Clients):
    """Clients whose data lies in one folder or file, memory-mapped; a client is read when it is opened.

    A frozen dataclass of simple values, so that worker processes map the files themselves instead of being sent data.

    Args:
      path: a folder that `pack` wrote, or a file that ends in .arrow, .feather or .parquet.
      id: the column that says whose a row is; of a file only. Whole numbers become zero-padded names.
      columns: those to read; by default all but `id`.
      features, target: for a table of numbers: the columns that become x, float32 of shape (rows, features), and the
        one that becomes y. Then `columns` are those to read beside them, by default none.
      stamp: size and time of the files as they must be; by default as they are now.

    Raises:
      DataError: no such path or column, a damaged file, an empty cell, or files that changed since they were opened.
      NotFound: an unknown client.
      MissingExtra: an Arrow or Parquet file, and pyarrow is not installed.

    Opened columns of fixed-width numbers are read-only views where the rows of the client lie together and the file is
    .npy or uncompressed Arrow; otherwise they are copies.
    """

    path: str
    _: KW_ONLY
    id: str | None = None
    columns: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    target: str | None = None
    stamp: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", os.path.abspath(os.fspath(self.path)))
        object.__setattr__(self, "columns", tuple(self.columns))
        object.__setattr__(self, "features", tuple(self.features))
        if not os.path.exists(self.path):
            raise DataError(f"there is no '{self.path}': check the path (a population is read from local files).")
        stamp = hashlib.sha256(
            repr((self._signs, [os.path.basename(file) for file in self._files])).encode()
        ).hexdigest()[:32]
        if self.stamp and stamp != self.stamp:
            raise self._changed()
        object.__setattr__(self, "stamp", stamp)
        self._layout  # noqa: B018  faults show when it is made, not when the first client is opened

    @property
    def ids(self) -> Sequence[str]:
        return self._layout.ids

    def open(self, client: str) -> Dataset:
        """The rows of one client."""
        if signs(self._files) != self._signs:
            raise self._changed()
        table, ids, offsets, order, names = self._layout
        place = known_place(ids, client)
        start, stop = int(offsets[place]), int(offsets[place + 1])
        found = table.read(start, stop, names) if order is None else table.take(order[start:stop], names)
        return Dataset(**self._named(found))

    def sizes(self) -> np.ndarray:
        """How many examples each client has, in the order of `ids`; no data is read."""
        return np.diff(self._layout.offsets)

    def __repr__(self) -> str:
        return f"Population({len(self)} clients, {len(self._layout.table)} examples in '{self.path}')"

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}  # never what is mapped

    @cached_property
    def _layout(self) -> Layout:
        if os.path.isdir(self.path):
            if self.id is not None:
                raise DataError(f"id='{self.id}', but '{self.path}' is a folder, which knows its ids: leave id out.")
            table, ids, offsets = _open_folder(self.path)
            return Layout(table, ids, offsets, None, self._wanted(table))
        table = open_table(self.path)
        if self.id is None or self.id not in table.names:
            raise DataError(f"id={self.id!r}: name the column of '{self.path}' that says whose a row is, "
                            f"one of {list(table.names)}.")  # fmt: skip
        return Layout(table, *_index(table, self.id), self._wanted(table))

    def _wanted(self, table: Table) -> tuple[str, ...]:
        special = [*self.features, *([self.target] if self.target else [])]
        every = () if special else tuple(name for name in table.names if name != self.id)
        names = tuple(dict.fromkeys([*special, *(self.columns or every)]))
        missing = [name for name in names if name not in table.names]
        if missing:
            raise DataError(f"'{self.path}' has no column {missing[0]!r}: its columns are {list(table.names)}.")
        if not names:
            raise DataError(f"'{self.path}' has no column beside its ids: add the examples' columns.")
        return names

    def _named(self, found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        columns = {name: found[name] for name in found if name in self.columns or not (self.features or self.target)}
        if self.features:
            rows = len(found[self.features[0]])
            columns["x"] = np.empty((rows, len(self.features)), np.float32)
            for place, name in enumerate(self.features):
                columns["x"][:, place] = found[name]
        if self.target:
            columns["y"] = found[self.target]
        return columns

    @cached_property
    def _files(self) -> list[str]:
        if not os.path.isdir(self.path):
            return [self.path]
        return [os.path.join(self.path, name) for name in sorted(os.listdir(self.path))]

    @cached_property
    def _signs(self) -> list[tuple[int, int]]:
        return signs(self._files)

    def _changed(self) -> DataError:
        return DataError(f"'{self.path}' changed on disk since it was opened: put it back, or open it anew.")


def signs(files: list[str]) -> list[tuple[int, int]]:
    """Size and time of each file. What replaces one within a tick of the clock, at its size, is not seen."""
    found = []
    for file in files:
        try:
            status = os.stat(file)
            found.append((status.st_size, status.st_mtime_ns))
        except OSError:
            found.append((-1, 0))
    return found


def _open_folder(path: str) -> tuple[Table, Sequence[str], np.ndarray]:
    damaged = DataError(f"'{path}' is not a folder that hansa.data.pack wrote, or is damaged: write it anew.")
    try:
        with open(os.path.join(path, "index.json"), encoding="utf-8") as file:
            index = json.load(file)
        version, files, clients = index["version"], dict(index["columns"]), int(index["clients"])
    except (OSError, ValueError, KeyError, TypeError):
        raise damaged from None
    if index.get("format") != FORMAT["format"] or version != FORMAT["version"]:
        raise DataError(f"'{path}' is a population of version {version}, this Hansa reads {FORMAT['version']}.")
    if not all(isinstance(file, str) and os.path.basename(file) == file for file in files.values()):
        raise damaged
    table, offsets = NpyTable(path, files), mapped(os.path.join(path, "offsets.npy"))
    rising = offsets.shape == (clients + 1,) and offsets.dtype == np.int64 and bool(np.all(offsets[1:] >= offsets[:-1]))
    if not rising or offsets[0] != 0 or offsets[-1] != len(table):
        raise damaged
    if index["ids"] == "numbered":
        return table, NumberedIds(clients), offsets
    text, bounds = mapped(os.path.join(path, "ids.npy")), mapped(os.path.join(path, "id_offsets.npy"))
    if bounds.shape != (clients + 1,) or text.dtype != np.uint8 or bounds[0] != 0 or bounds[-1] != len(text):
        raise damaged
    return table, TextIds(text, bounds), offsets


def _index(table: Table, column: str) -> tuple[Sequence[str], np.ndarray, np.ndarray | None]:
    """Ids, offsets and order of the rows, from runs of equal ids: memory in the runs, which are few in sorted files."""
    import pyarrow as pa

    found = _read_index(table, column)
    pa.default_memory_pool().release_unused()  # else Arrow keeps what it decoded, several times what is held
    return found


def _read_index(table: Table, column: str) -> tuple[Sequence[str], np.ndarray, np.ndarray | None]:
    import pyarrow as pa
    import pyarrow.compute as pc

    runs, lengths = [], []
    for chunk in table.chunks(column):
        if chunk.null_count:
            raise DataError(f"column '{column}' of '{table.path}' has empty cells: every row needs an owner.")
        if pa.types.is_dictionary(chunk.type):
            chunk = chunk.dictionary_decode()
        if not (
            pa.types.is_integer(chunk.type) or pa.types.is_string(chunk.type) or pa.types.is_large_string(chunk.type)
        ):
            raise DataError(f"column '{column}' of '{table.path}' holds {chunk.type}, not ids: give text or numbers.")
        if len(chunk):
            encoded = pc.run_end_encode(chunk)
            runs.append(encoded.values)
            lengths.append(np.diff(encoded.run_ends.to_numpy(), prepend=0))
    length = np.concatenate(lengths)
    if pa.types.is_integer(runs[0].type) and all(pc.min(run).as_py() >= 0 for run in runs):
        ids, code = _distinct_numbers(np.concatenate([run.to_numpy() for run in runs]))
    else:
        ids, code = _distinct_text(pa.concat_arrays([run.cast(pa.large_string()) for run in runs]))
    del runs
    sizes = np.bincount(code, weights=length, minlength=len(ids)).astype(np.int64)  # exact below 2^53 rows
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    if np.all(code[1:] >= code[:-1]):
        return ids, offsets, None
    # Stable: the rows of a client stay in the order of the file.
    whole = np.int32 if len(table) < 2**31 else np.int64
    by_client = np.argsort(code, kind="stable")
    starts, length = (np.cumsum(length) - length)[by_client], length[by_client]
    order = np.repeat((starts - (np.cumsum(length) - length)).astype(whole), length)
    order += np.arange(len(order), dtype=whole)
    return ids, offsets, order


def _distinct_numbers(runs: np.ndarray) -> tuple[Sequence[str], np.ndarray]:
    if np.all(runs[1:] >= runs[:-1]):
        fresh = np.concatenate([[True], runs[1:] != runs[:-1]])
        values, code = runs[fresh], np.cumsum(fresh, dtype=np.int32) - np.int32(1)
    else:
        values, code = np.unique(runs, return_inverse=True)
    plain = values[0] == 0 and values[-1] == len(values) - 1
    return NumberedIds(len(values)) if plain else PaddedIds(values), code


def _distinct_text(runs: Any) -> tuple[Sequence[str], np.ndarray]:
    """Arrow orders text by its bytes in UTF-8, which is the order of code points, as Python's."""
    import pyarrow as pa
    import pyarrow.compute as pc

    after, before = runs.slice(1), runs.slice(0, len(runs) - 1)
    if pc.all(pc.greater_equal(after, before), min_count=0).as_py():  # in order: nothing to look up
        fresh = np.concatenate([[True], pc.not_equal(after, before).to_numpy(zero_copy_only=False)])
        return _text_ids(runs.filter(pa.array(fresh))), np.cumsum(fresh, dtype=np.int32) - np.int32(1)
    encoded = runs.dictionary_encode()
    order = pc.sort_indices(encoded.dictionary).to_numpy()
    place = np.empty(len(order), np.int32)
    place[order] = np.arange(len(order), dtype=np.int32)
    return _text_ids(encoded.dictionary.take(order)), place[encoded.indices.to_numpy()]


def _text_ids(found: Any) -> TextIds:
    """The ids in an Arrow array of large strings, which stay where they are."""
    _, offsets, text = found.buffers()
    bounds = np.frombuffer(offsets, np.int64)[found.offset : found.offset + len(found) + 1]
    letters = np.frombuffer(text, np.uint8) if text is not None else np.zeros(0, np.uint8)
    return TextIds(letters, bounds)


def check_sorted(ids: Sequence[str]) -> None:
    """DataError unless the ids are sorted and unique."""
    for before, after in pairwise(ids):
        if before >= after:
            raise DataError(f"id '{after}' comes after '{before}': ids must be sorted and unique.")
