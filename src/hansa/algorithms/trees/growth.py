"""How one tree grows, depth-wise, whoever has the columns: written once for every learner of this project.

    gain   ½ [ G_L² / (H_L + λ) + G_R² / (H_R + λ) − G² / (H + λ) ]
    leaf   − learning_rate · G / (H + λ)

The labels' owner asks each source of columns for the sums of gradients of its candidates, for one child of each pair
alone (its sibling's are the parent's less these), and takes the first of the best. Sums are integers: sources that add
under encryption give the same tree as one that has all columns.

Sources: Chen and Guestrin 2016, XGBoost, https://arxiv.org/abs/1603.02754; Ke et al. 2017, LightGBM,
https://papers.nips.cc/paper/6907
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hansa.algorithms.trees.columns import Choice, Grouping, Table, first_of
from hansa.algorithms.trees.losses import Gradients, Ints
from hansa.algorithms.trees.settings import Boosting
from hansa.algorithms.trees.tree import Bools, Split, Tree

_LEAST_GAIN = 1e-6
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Sums:
    """A node's sums of gradients, of one source.

    Args:
      cuts: (2, cuts): G and H of the left child of each cut.
      texts: for each column of text (2, categories): G and H of each category.
    """

    cuts: Ints
    texts: tuple[Ints, ...] = ()

    def __sub__(self, other: "Sums") -> "Sums":
        return Sums(self.cuts - other.cuts, tuple(a - b for a, b in zip(self.texts, other.texts, strict=True)))


class Source(ABC):
    """Columns of one owner, as the labels' owner sees them.

    The candidates of `Sums` may stand in any order that holds for one tree; a `Winner` names them by their places.
    """

    name: str

    @abstractmethod
    def begin(self, gradients: Gradients) -> None:
        """A tree begins."""

    @abstractmethod
    def ask(self, nodes: Mapping[int, Rows]) -> None:
        """Wants the sums of nodes with these rows, of those that have gradients."""

    @abstractmethod
    def answer(self) -> list[Sums]:
        """What was asked for last."""

    @abstractmethod
    def take(self, winners: Mapping[int, "Winner"]) -> dict[int, Bools]:
        """Splits nodes by one of the candidates each, of equal gain: for each of its rows, whether it goes left."""

    @abstractmethod
    def follow(self, left: Mapping[int, Bools]) -> None:
        """How the rows of nodes went that others split."""

    @abstractmethod
    def end(self) -> Mapping[int, Split]:
        """The tree is grown; gives this owner's splits if they are known here."""


@dataclass(frozen=True)
class Winner:
    """What splits a node: its rows, and all candidates of the best gain, by their places in `Sums`."""

    rows: Rows
    cuts: tuple[int, ...] = ()
    texts: tuple[tuple[int, tuple[int, ...]], ...] = ()


class LocalSource(Source):
    """Columns that are here."""

    def __init__(self, name: str, table: Table) -> None:
        self.name, self._table = name, table
        self._g, self._h = np.zeros(len(table)), np.zeros(len(table))
        self._asked: list[Rows] = []
        self._splits: dict[int, Split] = {}

    def begin(self, gradients: Gradients) -> None:
        """Keeps the gradients: as float64, whose sums of such integers are exact."""
        self._g[:] = self._h[:] = 0
        self._g[gradients.rows], self._h[gradients.rows] = gradients.g, gradients.h
        self._splits = {}

    def ask(self, nodes: Mapping[int, Rows]) -> None:
        """Notes the rows; the work is done in `answer`, while others do theirs."""
        self._asked = list(nodes.values())

    def answer(self) -> list[Sums]:
        """Sums of all nodes asked for."""
        return [self._sums(rows) for rows in self._asked]

    def take(self, winners: Mapping[int, Winner]) -> dict[int, Bools]:
        """Splits by the first of the candidates."""
        left = {}
        for node, winner in winners.items():
            choices: list[Choice] = [self._table.cuts[at] for at in winner.cuts]
            choices += [Grouping(self._table.texts[place], group) for place, group in winner.texts]
            split = self._table.split(first_of(choices), winner.rows)
            self._splits[node] = split
            left[node] = split.goes_left(self._table.columns[split.column][winner.rows])
        return left

    def follow(self, left: Mapping[int, Bools]) -> None:
        """Rows are given with each question."""

    def end(self) -> Mapping[int, Split]:
        """Its splits."""
        return dict(self._splits)

    def _sums(self, rows: Rows) -> Sums:
        table, g, h = self._table, self._g[rows], self._h[rows]
        cuts: list[Ints] = [np.empty((2, 0), np.int64)]
        texts = []
        for place, bins in enumerate(table.bins):
            codes = table.codes[rows, place]
            each = np.stack([np.bincount(codes, x, bins.count) for x in (g, h)]).astype(np.int64)
            if bins.categories is not None:
                texts.append(each)
                continue
            bin, missing_left = table.places[place]
            cuts.append(each.cumsum(axis=1)[:, bin] + each[:, -1:] * missing_left)
        return Sums(np.concatenate(cuts, 1), tuple(texts))


def grow(sources: Sequence[Source], gradients: Gradients, rows: int, settings: Boosting) -> tuple[Tree, Rows]:
    """Grows one tree.

    Args:
      sources: the labels' owner's columns first; ties go to the first source.
      gradients: of the rows to learn from.
      rows: how many there are in all: those without gradients are sent down the tree too.
      settings: of the growth.

    Returns:
      The tree, with the splits that are known here, and the leaf that each row reaches.
    """
    g, h = np.zeros(rows, np.int64), np.zeros(rows, np.int64)
    g[gradients.rows], h[gradients.rows] = gradients.g, gradients.h
    for source in sources:
        source.begin(gradients)
    members: dict[int, Rows] = {0: np.arange(rows)}
    owners: dict[int, str] = {}
    sums: dict[int, list[Sums]] = {}
    frontier = [0]
    for _ in range(settings.depth):
        sums = _level(sources, frontier, members, h, sums)
        best = {node: _best(sums[node], g[members[node]].sum(), h[members[node]].sum(), gradients.unit, settings)
                for node in frontier}  # fmt: skip
        left: dict[int, Bools] = {}
        for at, source in enumerate(sources):
            won = {node: replace(found[1], rows=members[node])
                   for node, found in best.items() if found is not None and found[0] == at}  # fmt: skip
            if won:
                left |= source.take(won)
                owners |= dict.fromkeys(won, source.name)
        frontier = [child for node in left for child in (2 * node + 1, 2 * node + 2)]
        for node, bits in left.items():
            members[2 * node + 1], members[2 * node + 2] = members[node][bits], members[node][~bits]
        for source in sources:
            source.follow({node: bits for node, bits in left.items() if owners[node] != source.name})
        if not left:
            break
    leaf_of, leaves = np.zeros(rows, np.int64), {}
    for node in sorted(set(members) - set(owners)):
        leaf_of[members[node]] = node
        G, H = g[members[node]].sum() * gradients.unit, h[members[node]].sum() * gradients.unit
        leaves[node] = float(-settings.learning_rate * G / (H + settings.l2)) if H else 0.0
    splits = {node: split for source in sources for node, split in source.end().items()}
    return Tree(dict(sorted(splits.items())), dict(sorted(owners.items())), leaves), leaf_of


def _level(
    sources: Sequence[Source], frontier: Sequence[int], members: Mapping[int, Rows], h: Ints,
    parents: Mapping[int, list[Sums]],
) -> dict[int, list[Sums]]:  # fmt: skip
    """The sums of all nodes of a level, of each source: of the smaller of each pair asked, of the other derived."""
    learning = {node: members[node][h[members[node]] > 0] for node in frontier}
    asked = {}
    for node in frontier:
        sibling = node + 1 if node % 2 else node - 1
        if node == 0 or (len(learning[node]), node) < (len(learning[sibling]), sibling):
            asked[node] = learning[node]
    for source in sources:
        source.ask(asked)
    answers = [source.answer() for source in sources]
    sums: dict[int, list[Sums]] = {}
    for at, node in enumerate(asked):
        sums[node] = [answer[at] for answer in answers]
        if node:
            sibling = node + 1 if node % 2 else node - 1
            sums[sibling] = [whole - part for whole, part in zip(parents[(node - 1) // 2], sums[node], strict=True)]
    return sums


def _best(sums: Sequence[Sums], G: int, H: int, unit: float, settings: Boosting) -> tuple[int, Winner] | None:
    """The source with the best split of a node and its candidates of that gain, or None if none gains enough."""
    found, most = None, max(settings.gamma, _LEAST_GAIN)
    for at, each in enumerate(sums):
        gains = gains_of(each.cuts, G, H, unit, settings)
        texts = [_best_grouping(place, text, G, H, unit, settings) for place, text in enumerate(each.texts)]
        top = max([gains.max(initial=-np.inf), *(gain for gain, _ in texts)])
        if top > most:
            cuts = tuple(np.flatnonzero(gains == top).tolist())
            groups = tuple(group for gain, group in texts if gain == top)
            found, most = (at, Winner(np.empty(0, np.int64), cuts, groups)), top
    return found


def _best_grouping(
    place: int, text: Ints, G: int, H: int, unit: float, settings: Boosting
) -> tuple[float, tuple[int, tuple[int, ...]]]:
    """The best two groups of a column's categories, in the order of their mean gradients; equal ones stay together."""
    here = np.flatnonzero(text[1])
    ratio = text[0, here] / text[1, here]
    order = here[np.argsort(ratio, kind="stable")]
    ratio = np.sort(ratio)
    left = text[:, order].cumsum(axis=1)
    gains = gains_of(left, G, H, unit, settings)
    gains[:-1][ratio[1:] == ratio[:-1]] = -np.inf
    if not len(gains):
        return -np.inf, (place, ())
    top = int(gains.argmax())
    return float(gains[top]), (place, tuple(order[: top + 1].tolist()))


def gains_of(left: NDArray[Any], G: float, H: float, unit: float, settings: Boosting) -> NDArray[np.float64]:
    """The gains of splits by the sums of their left children; −inf where a child is empty or too light."""
    l2 = settings.l2
    GL, HL = left[0] * unit, left[1] * unit
    GR, HR = (G - left[0]) * unit, (H - left[1]) * unit
    least = settings.min_child_weight
    valid = (left[1] > 0) & (left[1] < H) & (least <= HL) & (least <= HR)
    with np.errstate(divide="ignore", invalid="ignore"):
        gains = 0.5 * (GL**2 / (HL + l2) + GR**2 / (HR + l2) - (G * unit) ** 2 / (H * unit + l2))
    return np.where(valid, gains, -np.inf)
