"""The ids of very many clients as arrays: an id becomes a string when it is asked for, never before.

    TextIds      b"annbobeve", offsets 0 3 6 9      any text, sorted by code point
    PaddedIds    [7, 12, 900], width 3              whole numbers: '007', '012', '900'

Both are sorted and unique, so that bisection finds an id and no table is kept beside the arrays.
"""

from abc import abstractmethod
from bisect import bisect_left
from collections.abc import Sequence
from typing import overload

import numpy as np

from hansa.core.errors import NotFound


class SortedIds(Sequence[str]):
    """Sorted unique ids; a subclass says how many there are and what the id at a place is."""

    @abstractmethod
    def at(self, place: int) -> str:
        """The id at a place from 0 to len - 1."""

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self.at(place) for place in range(len(self))[index]]
        return self.at(index if 0 <= index < len(self) else range(len(self))[index])

    def __contains__(self, client: object) -> bool:
        return isinstance(client, str) and place_of(self, client) is not None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} from {self[0]!r} to {self[-1]!r})"


class TextIds(SortedIds):
    """Ids in UTF-8, one after the other.

    Args:
      text: uint8, all ids joined.
      offsets: ids + 1 bounds into `text`.

    >>> ids = TextIds(np.frombuffer(b"annbobeve", np.uint8), np.array([0, 3, 6, 9]))
    >>> list(ids), "bob" in ids, ids[-1]
    (['ann', 'bob', 'eve'], True, 'eve')
    """

    def __init__(self, text: np.ndarray, offsets: np.ndarray) -> None:
        # Items of a memoryview cost a fifth of an array's, and a draw reads thousands of them.
        self._text, self._offsets, self._count = text.data, offsets.data, len(offsets) - 1

    def __len__(self) -> int:
        return self._count

    def at(self, place: int) -> str:
        return str(self._text[self._offsets[place] : self._offsets[place + 1]], "utf-8")


class PaddedIds(SortedIds):
    """Whole numbers from 0 upwards, zero-padded to equal length, so that their sorted order is numeric.

    >>> list(PaddedIds(np.array([7, 12, 900])))
    ['007', '012', '900']
    """

    def __init__(self, values: np.ndarray) -> None:
        self._values = values
        self._width = len(str(int(values[-1])))

    def __len__(self) -> int:
        return len(self._values)

    def at(self, place: int) -> str:
        return f"{int(self._values[place]):0{self._width}d}"


class IdsAt(SortedIds):
    """Some of other ids, by their places in rising order."""

    def __init__(self, ids: Sequence[str], places: np.ndarray) -> None:
        self._ids, self._places = ids, places

    def __len__(self) -> int:
        return len(self._places)

    def at(self, place: int) -> str:
        return self._ids[int(self._places[place])]


def place_of(ids: Sequence[str], client: str) -> int | None:
    """The place of `client` among sorted ids by bisection; None if it is not one of them."""
    place = bisect_left(ids, client)
    return place if place < len(ids) and ids[place] == client else None


def known_place(ids: Sequence[str], client: str) -> int:
    """The place of `client` among sorted ids; NotFound if it is not one of them."""
    place = place_of(ids, client)
    if place is None:
        first = f" (the first is '{ids[0]}')" if len(ids) else ""
        raise NotFound(f"no client '{client}' among {len(ids)}{first}.")
    return place
