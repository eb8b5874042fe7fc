"""Clients in a table of an SQLite file: one row an example, a column that says whose it is, an index that finds it.

    CREATE TABLE examples (user TEXT, age REAL, outcome INTEGER);  CREATE INDEX of_user ON examples (user)
    Database("people.sqlite", "examples", id="user", features=("age",), target="outcome")

Memory holds an id and a size for each client; a client's rows are read when it is opened. Numbers come as int64 and
float64; arrays are BLOBs of numbers in C order, whose type and shape the database does not know: `arrays` says them.
"""

import math
import os
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import KW_ONLY, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hansa.core.data import Clients, Dataset
from hansa.core.errors import DataError
from hansa.data.ids import TextIds, known_place
from hansa.data.mapped import signs


class _Layout(NamedTuple):
    """Who there is, with how many rows, and what is read of them."""

    ids: TextIds
    sizes: np.ndarray
    names: tuple[str, ...]


@dataclass(frozen=True)
class Database(Clients):
    """Clients whose examples are the rows of one table of an SQLite file, which is only read.

    A frozen dataclass of simple values, so that worker processes open the file themselves.

    Args:
      path: the file.
      table: of the examples.
      id: the column that says whose a row is; ids are its text, sorted by code point.
      columns: those to read; by default all but `id`.
      features, target: columns of numbers that become x, float32 of shape (rows, features), and the one that becomes y.
        Then `columns` are those to read beside them, by default none.
      arrays: type and shape of what a BLOB column holds, as in {"x": ("float32", (28, 28))}.
      stamp: size and time of the file as they must be; by default as they are now.

    Raises:
      DataError: no such file, table or column; no index that begins with `id`; an empty cell, text, or a BLOB of
        another size; a file that changed since it was opened.
      NotFound: an unknown client.

    Rows come in the order in which they were put in.
    """

    path: str
    table: str
    _: KW_ONLY
    id: str
    columns: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    target: str | None = None
    arrays: Mapping[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict, hash=False)
    stamp: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", os.path.abspath(os.fspath(self.path)))
        for name in ("columns", "features"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not os.path.isfile(self.path):
            raise DataError(f"there is no file '{self.path}': check the path.")
        object.__setattr__(self, "stamp", self.stamp or self._sign())
        self._unchanged()
        self._layout  # noqa: B018  faults show when it is made, not when the first client is opened

    @property
    def ids(self) -> Sequence[str]:
        return self._layout.ids

    def sizes(self) -> np.ndarray:
        """How many examples each client has, in the order of `ids`; no data is read."""
        return self._layout.sizes

    def open(self, client: str) -> Dataset:
        """The rows of one client."""
        self._unchanged()
        known_place(self.ids, client)
        rows = self._all(
            f"SELECT {', '.join(map(_quoted, self._layout.names))} {self._of_client} ORDER BY rowid", client
        )
        found = {
            name: self._column(name, cells, client)
            for name, cells in zip(self._layout.names, zip(*rows, strict=True), strict=True)
        }
        columns = {name: found[name] for name in found if name in self.columns or not (self.features or self.target)}
        if self.features:
            columns["x"] = np.stack([found[name] for name in self.features], 1, dtype=np.float32, casting="same_kind")
        if self.target:
            columns["y"] = found[self.target]
        return Dataset(**columns)

    def __repr__(self) -> str:
        return f"Database({len(self)} clients, {self.sizes().sum()} examples in '{self.path}')"

    def __getstate__(self) -> dict[str, Any]:
        return {each.name: getattr(self, each.name) for each in fields(self)}  # never what was read

    @property
    def _of_client(self) -> str:
        return f"FROM {_quoted(self.table)} WHERE {_quoted(self.id)} = ?"

    @cached_property
    def _layout(self) -> _Layout:
        there = [name for _, name, *_ in self._all(f"PRAGMA table_info({_quoted(self.table)})")]
        if not there:
            raise DataError(f"'{self.path}' has no table '{self.table}': name the one that holds the examples.")
        special = [*self.features, *([self.target] if self.target else [])]
        every = () if special else tuple(name for name in there if name != self.id)
        names = tuple(dict.fromkeys([*special, *(self.columns or every)]))
        for name in (self.id, *names):
            if name not in there:
                raise DataError(f"table '{self.table}' of '{self.path}' has no column '{name}': it has {there}.")
        if not names:
            raise DataError(f"table '{self.table}' of '{self.path}' has no column beside its ids: add the examples'.")
        way = " ".join(str(row[-1]) for row in self._all(f"EXPLAIN QUERY PLAN SELECT 1 {self._of_client}", ""))
        if "SEARCH" not in way:
            index = f"CREATE INDEX of_client ON {_quoted(self.table)} ({_quoted(self.id)})"
            raise DataError(f"'{self.path}' would be read whole for each client, for want of an index: run {index}.")
        return _Layout(*self._clients(), names)

    def _clients(self) -> tuple[TextIds, np.ndarray]:
        text, ends, sizes = bytearray(), [0], list[int]()
        name = _quoted(self.id)
        asked = f"SELECT CAST({name} AS TEXT), COUNT(*), COUNT({name}) FROM {_quoted(self.table)} GROUP BY 1 ORDER BY 1"
        with closing(self._connect()) as database:
            for client, count, known in database.execute(asked):
                if not known:
                    raise DataError(f"column '{self.id}' of '{self.path}' has {count} empty cells: fill them.")
                text += client.encode()
                ends.append(len(text))
                sizes.append(count)
        if not sizes:
            raise DataError(f"table '{self.table}' of '{self.path}' has no rows: a population needs one example.")
        return TextIds(np.frombuffer(bytes(text), np.uint8), np.array(ends, np.int64)), np.array(sizes, np.int64)

    def _column(self, name: str, cells: Sequence[Any], client: str) -> np.ndarray:
        where = f"column '{name}' of client '{client}' in '{self.path}'"
        if any(cell is None for cell in cells):
            raise DataError(f"{where} has empty cells: fill them.")
        if name not in self.arrays:
            if any(isinstance(cell, str | bytes) for cell in cells):
                raise DataError(f"{where} holds text or BLOBs: give numbers, or say what they are by arrays.")
            return np.array(cells)
        kind, shape = self.arrays[name]
        size = np.dtype(kind).itemsize * math.prod(shape)
        if any(not isinstance(cell, bytes) or len(cell) != size for cell in cells):
            raise DataError(f"{where} must hold BLOBs of {size} bytes, as arrays says ({kind}, {tuple(shape)}).")
        return np.frombuffer(b"".join(cells), kind).reshape(len(cells), *shape)

    # -- the file

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(f"{Path(self.path).as_uri()}?mode=ro", uri=True)

    def _all(self, query: str, *values: str) -> list[tuple[Any, ...]]:
        try:
            with closing(self._connect()) as database:
                return database.execute(query, values).fetchall()
        except sqlite3.DatabaseError as error:
            raise DataError(f"'{self.path}' cannot be read as an SQLite file ({error}): write it anew.") from None

    def _sign(self) -> str:
        (size, time), *_ = signs([self.path])
        return f"{size}-{time}"

    def _unchanged(self) -> None:
        if self._sign() != self.stamp:
            raise DataError(f"'{self.path}' changed on disk since it was opened: put it back, or open it anew.")


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
