"""A table's columns as bins, and the candidates of a split in their one order.

Numbers are cut at quantiles; categories are their own bins; missing values have the last bin of each column. The
candidates of a column of numbers are its cuts, each with the missing values on the right and, where it has any, on the
left. A column of text has no candidates of its own: whoever knows the gradients orders its categories by them (Fisher
1958, On grouping for maximum homogeneity, https://doi.org/10.1080/01621459.1958.10501479).
"""

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from hansa.algorithms.trees.settings import Boosting
from hansa.algorithms.trees.tree import Columns, Split
from hansa.core.errors import DataError

MAX_CATEGORIES = 255


@dataclass(frozen=True)
class Cut:
    """A candidate: bins up to `bin` of column `column` (by place) go left, and what is missing where it says."""

    column: int
    bin: int
    missing_left: bool


@dataclass(frozen=True)
class Grouping:
    """A candidate: these bins of a column of text go left."""

    column: int
    left: tuple[int, ...]


Choice: TypeAlias = Cut | Grouping


@dataclass(frozen=True)
class Bins:
    """One column's bins.

    Args:
      edges: of numbers, ascending: bin b holds edges[b − 1] ≤ x < edges[b].
      categories: of text, sorted, None last if any is missing; None for numbers.
      missing: whether numbers have missing values, which are in the last bin, `count` − 1.
    """

    edges: NDArray[np.float64]
    categories: tuple[str | None, ...] | None
    missing: bool

    @property
    def count(self) -> int:
        """Bins."""
        if self.categories is not None:
            return len(self.categories)
        return len(self.edges) + 1 + self.missing

    def cuts(self, place: int) -> list[Cut]:
        """The candidates of a column of numbers; a column of text has none of its own."""
        if self.categories is not None:
            return []
        last = len(self.edges) + self.missing
        cuts = []
        for bin in range(last):
            cuts.append(Cut(place, bin, False))
            if self.missing and bin < len(self.edges):
                cuts.append(Cut(place, bin, True))
        return cuts


class Table:
    """Columns and their bins, as one learner or one owner holds them.

    Args:
      columns: numbers or text.
      settings: say into how many bins numbers go.

    Raises:
      DataError: no columns, or one of text with too many categories.
    """

    def __init__(self, columns: Columns, settings: Boosting) -> None:
        if not columns:
            raise DataError("there are no columns: give at least one to learn from.")
        self.columns, self.names = columns, tuple(columns)
        self.bins: list[Bins] = []
        codes = []
        for name in self.names:
            bins, code = _binned(name, columns[name], settings.bins)
            self.bins.append(bins)
            codes.append(code)
        self.codes = np.column_stack(codes)
        """The bin of each row and column, uint16."""
        self.cuts = [cut for place, bins in enumerate(self.bins) for cut in bins.cuts(place)]
        self.places = [_places(bins.cuts(place)) for place, bins in enumerate(self.bins)]
        """For each column its cuts' bins, and whether what is missing goes left."""
        self.texts = [place for place, bins in enumerate(self.bins) if bins.categories is not None]

    def __len__(self) -> int:
        """Rows."""
        return len(self.codes)

    def split(self, choice: Choice, rows: NDArray[np.int64]) -> Split:
        """The question that a candidate asks, of a node with these rows.

        What never was missing in training, or is a new category, follows the larger child.
        """
        bins, name = self.bins[choice.column], self.names[choice.column]
        codes = self.codes[rows, choice.column]
        if isinstance(choice, Grouping):
            assert bins.categories is not None
            left = tuple(bins.categories[at] for at in sorted(choice.left))
            here = set(np.unique(codes).tolist()) - set(choice.left)
            right = tuple(bins.categories[at] for at in sorted(here))
            larger = 2 * int(np.isin(codes, choice.left).sum()) >= len(rows)
            return Split(name, None, left, right, larger)
        threshold = float(bins.edges[choice.bin]) if choice.bin < len(bins.edges) else math.inf
        larger = 2 * int((codes <= choice.bin).sum()) >= len(rows)
        return Split(name, threshold, missing_left=choice.missing_left if bins.missing else larger)


def _places(cuts: list[Cut]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    return np.array([cut.bin for cut in cuts], np.int64), np.array([cut.missing_left for cut in cuts], bool)


def first_of(choices: list[Choice]) -> Choice:
    """Of candidates of equal gain, the one that all learners take: the first column's, its lowest cut."""
    return min(
        choices, key=lambda at: (at.column, at.bin, at.missing_left) if isinstance(at, Cut) else (at.column, 0, 0)
    )


def _binned(name: str, values: NDArray[np.float64], limit: int) -> tuple[Bins, NDArray[np.uint16]]:
    if values.dtype == object:
        return _text(name, values)
    if np.isinf(values).any():
        raise DataError(f"column '{name}' has infinite numbers: make them missing, or cap them.")
    missing = np.isnan(values)
    edges = _edges(values[~missing], limit)
    codes = np.searchsorted(edges, values, side="right").astype(np.uint16)
    codes[missing] = len(edges) + 1
    return Bins(edges, None, bool(missing.any())), codes


def _text(name: str, values: NDArray[np.float64]) -> tuple[Bins, NDArray[np.uint16]]:
    known: list[str | None] = sorted({each for each in values if each is not None})
    if any(each is None for each in values):
        known.append(None)
    if len(known) > MAX_CATEGORIES:
        raise DataError(
            f"column '{name}' has {len(known)} categories, and {MAX_CATEGORIES} are the most: group the rare ones, or "
            "leave the column out."
        )
    place = {category: at for at, category in enumerate(known)}
    codes = np.fromiter((place[each] for each in values), np.uint16, len(values))
    return Bins(np.empty(0), tuple(known), False), codes


def _edges(present: NDArray[np.float64], limit: int) -> NDArray[np.float64]:
    """Cuts between all values where they are few, else at quantiles; each has values on both its sides."""
    distinct = np.unique(present)
    if len(distinct) <= limit:
        return distinct[:-1] + (distinct[1:] - distinct[:-1]) / 2
    cuts = np.quantile(present, np.arange(1, limit) / limit, method="midpoint")
    return np.unique(cuts[cuts > distinct[0]])
