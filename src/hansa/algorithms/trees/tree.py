"""A tree, whole or one party's part of it, and the ensemble of them.

Nodes are numbered as in a heap: the children of i are 2i + 1 (left) and 2i + 2. A party's part has its own splits
alone; who splits the other nodes, and the leaves, are with the owner of the labels.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hansa.algorithms.trees.losses import Floats, predictions
from hansa.core.errors import CorruptFile, DataError, StateMismatch

Bools: TypeAlias = NDArray[np.bool_]
Columns: TypeAlias = Mapping[str, NDArray[Any]]
"""Numbers as float64 (NaN where missing), text as objects (None where missing)."""


def read(columns: Mapping[str, Any]) -> Columns:
    """Columns of any arrays or lists in the two forms that trees know."""
    return {name: _column(np.asarray(values)) for name, values in columns.items()}


def _column(values: NDArray[Any]) -> NDArray[Any]:
    if values.dtype.kind in "biuf":
        return values.astype(np.float64)
    if all(each is None or isinstance(each, int | float | np.number) for each in values):
        return np.array([np.nan if each is None else each for each in values], np.float64)
    return np.array([None if each is None or each != each else str(each) for each in values.tolist()], object)


@dataclass(frozen=True)
class Split:
    """A question to one column.

    Args:
      column: its name.
      threshold: numbers below it go left; inf parts those present from those missing. None for a column of text.
      left, right: the categories that go to either side; None among them is a missing value.
      missing_left: where goes what was missing, or is a category that never occurred.
    """

    column: str
    threshold: float | None = None
    left: tuple[str | None, ...] = ()
    right: tuple[str | None, ...] = ()
    missing_left: bool = False

    def goes_left(self, values: NDArray[Any]) -> Bools:
        """The answer for each value of the column.

        Raises:
          DataError: the column is of the other type than in training.
        """
        if (self.threshold is None) != (values.dtype == object):
            raise DataError(f"column '{self.column}' is {values.dtype}: in training it was of the other type.")
        if self.threshold is None:
            side = {**dict.fromkeys(self.left, True), **dict.fromkeys(self.right, False)}
            return np.fromiter((side.get(each, self.missing_left) for each in values), np.bool_, len(values))
        below: Bools = values < self.threshold
        return below | np.isnan(values) if self.missing_left else below


@dataclass(frozen=True)
class Tree:
    """One tree.

    Args:
      splits: by node; those of this party's columns.
      owners: who splits each inner node; at the labels' owner alone.
      leaves: values by node; at the labels' owner alone.
    """

    splits: Mapping[int, Split] = field(default_factory=dict)
    owners: Mapping[int, str] = field(default_factory=dict)
    leaves: Mapping[int, float] = field(default_factory=dict)

    def values(self, rows: int, goes_left: Callable[[int, NDArray[np.int64]], Bools]) -> Floats:
        """The leaf's value of each row.

        Args:
          rows: how many.
          goes_left: asked for a node and rows that reach it.
        """
        out = np.zeros(rows)
        reached: dict[int, NDArray[np.int64]] = {0: np.arange(rows)}
        while reached:
            node, here = reached.popitem()
            if node in self.leaves:
                out[here] = self.leaves[node]
            else:
                left = goes_left(node, here)
                reached[2 * node + 1], reached[2 * node + 2] = here[left], here[~left]
        return out


@dataclass(frozen=True)
class Boosted:
    """Boosted trees: an ensemble that one table answers, or one party's part of it.

    Args:
      loss: as in the settings.
      trees: by round, and in a round by output.
      base: the margin to start from, for each output; empty at parties without the labels.
      party: whose part it is; empty for a whole ensemble.
      owners: the parties that answer, the labels' owner first; empty for a whole one.
      losses: after each round on the rows kept out, or on all of training.
    """

    loss: str
    trees: tuple[tuple[Tree, ...], ...] = field(default=(), repr=False)
    base: tuple[float, ...] = ()
    party: str = ""
    owners: tuple[str, ...] = ()
    losses: tuple[float, ...] = field(default=(), repr=False)

    def __len__(self) -> int:
        """Rounds."""
        return len(self.trees)

    def first(self, rounds: int) -> Self:
        """Of these rounds alone."""
        return replace(self, trees=self.trees[:rounds], losses=self.losses[:rounds])

    def with_round(self, trees: Sequence[Tree]) -> Self:
        """With one more round."""
        return replace(self, trees=(*self.trees, tuple(trees)))

    def predict(self, columns: Mapping[str, Any]) -> Floats:
        """Probabilities, or numbers with the squared loss, of a whole ensemble.

        Raises:
          DataError: this is one party's part, or a column is missing.
        """
        return predictions(self.loss, self.margins(columns))

    def margins(self, columns: Mapping[str, Any]) -> Floats:
        """Sums of leaves, shape (rows, outputs)."""
        columns = read(columns)
        if self.owners[1:]:
            raise DataError(f"this is the part of '{self.party}': predict together with {', '.join(self.owners)}.")
        missing = sorted({split.column for split in self._splits()} - set(columns))
        if missing:
            raise DataError(f"the columns {missing} are missing: the trees split them.")
        rows = len(next(iter(columns.values()), ()))

        def answer(tree: Tree) -> Floats:
            return tree.values(rows, lambda at, here: tree.splits[at].goes_left(columns[tree.splits[at].column][here]))

        return self.sum_of(rows, answer)

    def sum_of(self, rows: int, values: Callable[[Tree], Floats]) -> Floats:
        """Margins out of each tree's values, added in the order of rounds."""
        total = np.tile(np.asarray(self.base), (rows, 1))
        for round in self.trees:
            for output, tree in enumerate(round):
                total[:, output] += values(tree)
        return total

    def _splits(self) -> list[Split]:
        return [split for round in self.trees for tree in round for split in tree.splits.values()]

    # -- as text

    def to_json(self) -> str:
        """Text that `from_json` reads."""
        body = asdict(self)
        for round in body["trees"]:
            for tree in round:
                for split in tree["splits"].values():
                    if split["threshold"] == math.inf:
                        split["threshold"] = "inf"
        return json.dumps(body, allow_nan=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """What `to_json` wrote.

        Raises:
          CorruptFile: it is something else.
        """
        try:
            body = json.loads(text)
            trees = tuple(tuple(_tree(tree) for tree in round) for round in body.pop("trees"))
            lists = {name: tuple(body[name]) for name in ("base", "owners", "losses")}
            return cls(loss=body["loss"], trees=trees, party=body["party"], **lists)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CorruptFile(f"no boosted trees in this file: {error}.") from None


def joined(parts: Sequence[Boosted]) -> Boosted:
    """The whole ensemble out of every party's part, if all agree to open theirs.

    Raises:
      StateMismatch: parts of different trainings, or not all.
    """
    whole = next((part for part in parts if part.base), None)
    if whole is None or {part.party for part in parts} != set(whole.owners):
        raise StateMismatch("the parts do not make an ensemble: give that of each owner, the labels' owner among them.")
    if len({len(part) for part in parts}) > 1:
        raise StateMismatch(f"the parts have {[len(part) for part in parts]} rounds: they are of different trainings.")

    named = [{split.column for split in part._splits()} for part in parts]
    twice = sorted({name for a in range(len(parts)) for name in named[a] & set().union(*named[:a])})
    if twice:
        raise StateMismatch(f"several owners have columns named {twice}: rename them before training.")

    def join(round: int, output: int) -> Tree:
        here = [part.trees[round][output] for part in parts]
        splits = {node: split for tree in here for node, split in tree.splits.items()}
        tree = whole.trees[round][output]
        if splits.keys() != tree.owners.keys():
            raise StateMismatch("the parts have not the same nodes: they are of different trainings.")
        return Tree(dict(sorted(splits.items())), dict.fromkeys(tree.owners, ""), tree.leaves)

    trees = tuple(tuple(join(at, k) for k in range(len(round))) for at, round in enumerate(whole.trees))
    return replace(whole, trees=trees, party="", owners=())


def _tree(body: dict[str, Any]) -> Tree:
    def split(given: dict[str, Any]) -> Split:
        threshold = None if given["threshold"] is None else float(given["threshold"])
        return Split(given["column"], threshold, tuple(given["left"]), tuple(given["right"]), given["missing_left"])

    return Tree(
        {int(node): split(given) for node, given in body["splits"].items()},
        {int(node): str(owner) for node, owner in body["owners"].items()},
        {int(node): float(leaf) for node, leaf in body["leaves"].items()},
    )
