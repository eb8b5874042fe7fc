"""The aligned table: one owner's columns of the people whom all owners share, in the one row order that all agreed on.

It comes out of private set intersection and goes into every algorithm of this room. Row i is the same person at each
owner; nobody's columns or keys travel with it. What proves the order is the alignment: SHA-256 over the aligned keyed
digests, equal at all owners, and never of raw keys.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hansa.core.errors import ConfigError, DataError, require
from hansa.core.runtime import Mesh

Column: TypeAlias = NDArray[Any]
"""One value for each row: float64 numbers (NaN where missing), or text (None where missing) as an object array."""


@dataclass(frozen=True)
class AlignedTable:
    """One owner's columns in the common row order.

    Args:
      owner: the party whose columns these are.
      columns: named arrays of one length; numbers become float64, everything else text.
      alignment: 32 bytes, the same at every owner of the same alignment; `bytes(32)` for tables of one process.

    Raises:
      DataError: columns differ in length.
    """

    owner: str
    columns: Mapping[str, Column] = field(repr=False)
    alignment: bytes = field(default=bytes(32), repr=False)

    def __post_init__(self) -> None:
        require(len(self.alignment) == 32, f"alignment has {len(self.alignment)} bytes: it is a SHA-256 digest of 32.")
        made = {name: _column(name, values) for name, values in self.columns.items()}
        lengths = {name: len(values) for name, values in made.items()}
        if len(set(lengths.values())) > 1:
            raise DataError(f"the columns of '{self.owner}' differ in length: {lengths}.")
        object.__setattr__(self, "columns", made)

    def __len__(self) -> int:
        """Rows."""
        return len(next(iter(self.columns.values()), ()))

    @property
    def names(self) -> tuple[str, ...]:
        """Of the columns, in order."""
        return tuple(self.columns)

    def __getitem__(self, name: str) -> Column:
        """One column.

        Raises:
          DataError: there is none of this name.
        """
        if name not in self.columns:
            raise DataError(f"'{self.owner}' has no column '{name}': it has {', '.join(self.names)}.")
        return self.columns[name]

    def is_number(self, name: str) -> bool:
        """Whether a column holds numbers, not text."""
        return self[name].dtype == np.float64

    def matrix(self, names: Sequence[str] | None = None) -> NDArray[np.float64]:
        """Columns of numbers side by side, of shape (rows, columns).

        Raises:
          DataError: one of them is text, or missing.
        """
        wanted = self.names if names is None else names
        text = [name for name in wanted if not self.is_number(name)]
        if text:
            raise DataError(
                f"the columns {text} of '{self.owner}' are text: encode them first (hansa.vertical.encode)."
            )
        if not wanted:
            return np.empty((len(self), 0))
        return np.column_stack([self[name] for name in wanted])

    def with_columns(self, columns: Mapping[str, Column]) -> "AlignedTable":
        """The same rows with these columns added or replaced."""
        return AlignedTable(self.owner, {**self.columns, **columns}, self.alignment)

    def only(self, names: Sequence[str]) -> "AlignedTable":
        """These columns alone."""
        return AlignedTable(self.owner, {name: self[name] for name in names}, self.alignment)

    def rows(self, index: NDArray[Any]) -> "AlignedTable":
        """The rows of an index or a mask that all owners share; they are an alignment of their own."""
        taken = np.arange(len(self))[index]
        return AlignedTable(self.owner, {name: each[taken] for name, each in self.columns.items()}, self._then(taken))

    def split(self, fraction: float = 0.8, seed: int = 0) -> tuple["AlignedTable", "AlignedTable"]:
        """Two tables of disjoint rows, the same rows at every owner that gives the same numbers.

        Args:
          fraction: of the rows that come first.
          seed: of the public permutation.
        """
        require(0 < fraction < 1, f"fraction={fraction}: give a share between 0 and 1.")
        order = np.random.default_rng(seed).permutation(len(self))
        cut = round(fraction * len(self))
        return self.rows(np.sort(order[:cut])), self.rows(np.sort(order[cut:]))

    def agree(self, mesh: Mesh) -> None:
        """Refuses to go on unless all parties' tables are of the same alignment.

        Raises:
          ConfigError: another party's is not; names it.
        """
        mine = self.alignment + len(self).to_bytes(8, "little")
        for peer, theirs in mesh.exchange("alignment", mine).items():
            if theirs != mine:
                raise ConfigError(
                    f"the table of '{peer}' is of another alignment than that of '{mesh.me}' ({len(self)} rows, "
                    f"{self.alignment.hex()[:12]}…): align again, and take the same rows everywhere."
                )

    def _then(self, taken: NDArray[Any]) -> bytes:
        """The alignment of some of its rows."""
        return hashlib.sha256(self.alignment + np.ascontiguousarray(taken, "<i8").tobytes()).digest()


def _column(name: str, values: Any) -> Column:
    array = np.asarray(values)
    require(array.ndim == 1, f"column '{name}' has shape {array.shape}: give one value for each row.")
    if array.dtype.kind in "biuf":
        return array.astype(np.float64)
    if array.dtype.kind == "O" and all(isinstance(each, int | float | np.number) or each is None for each in array):
        return np.array([np.nan if each is None else each for each in array], np.float64)
    return np.array([None if each is None else str(each) for each in array.tolist()], object)
