"""ID3 over different people: a decision tree out of counts alone, which is the tree of the pooled data.

    a round    clients: how many rows of each class have each value of each column, at each open node    counts
               server:  their sum decides: the column of the largest information gain splits the node

Only counts leave a client, and the server needs their sum alone: `SecureSum` may hide them, `Gaussian` noise them.

Sources: Quinlan 1986, Induction of Decision Trees, https://doi.org/10.1007/BF00116251; by count queries in IBM's
federated learning library, https://github.com/IBM/federated-learning-lib
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hansa.algorithms.trees.losses import Floats
from hansa.core.algorithm import Aggregate, Algorithm, Update
from hansa.core.errors import ConfigError, DataError, TrainingFailed, require
from hansa.core.model import Fit, LocalWork, Metrics, Model
from hansa.core.tensors import Shapes, Tensors

_METRICS: Mapping[str, float] = {"loss": 1.0, "accuracy": 1.0}
# A node: its column + 1 (0 at a leaf), its first child, its parent + 1, whether it is open, rows of each class.
_COLUMN, _CHILD, _PARENT, _OPEN, _CLASSES = range(5)


@dataclass(frozen=True)
class DecisionTree:
    """A tree that asks for one column's value at each node.

    Args:
      nodes: shape (nodes, 4 + classes), the root first; children lie side by side, one for each value.
      values: how many each column has.
    """

    nodes: Floats = field(repr=False)
    values: tuple[int, ...]

    @property
    def whole(self) -> bool:
        """Whether nothing is left to be split; False if the job had too few rounds."""
        return not self.nodes[:, _OPEN].any()

    def predict(self, x: NDArray[Any]) -> NDArray[np.int64]:
        """The class of each row of x (rows, columns), whole numbers below `values`; of equal counts the first class."""
        found: NDArray[np.int64] = self.nodes[_reached(self.nodes, _codes(x, self.values)), _CLASSES:].argmax(axis=1)
        return found

    def text(self, names: Sequence[str] | None = None) -> str:
        """The tree in words, a line for each node; columns by name, or by number."""
        lines: list[str] = []

        def tell(node: int, indent: str, lead: str) -> None:
            column = int(self.nodes[node, _COLUMN]) - 1
            counts = ", ".join(f"{count:g}" for count in self.nodes[node, _CLASSES:])
            if column < 0:
                lines.append(f"{indent}{lead}class {int(self.nodes[node, _CLASSES:].argmax())}  ({counts})")
                return
            name = names[column] if names else f"column {column}"
            lines.append(f"{indent}{lead}{name}?  ({counts})")
            for value in range(self.values[column]):
                tell(int(self.nodes[node, _CHILD]) + value, indent + "  ", f"{value}: ")

        tell(0, "", "")
        return "\n".join(lines)


@dataclass(frozen=True)
class Id3Model(Model):
    """What clients count for `Id3`.

    Data is a `Dataset` whose column `x` has whole numbers, of shape (rows, columns), and `y` the classes 0 … K − 1.

    Args:
      values: how many values each column has: 0 … values − 1, known to all. A missing value needs one of its own.
      classes: K.
      depth: the most questions to a row; None: one for each column.
      nodes: the most that the tree may have.
      width: how many nodes are counted in a round; a level of more takes several.
    """

    values: tuple[int, ...]
    classes: int = 2
    depth: int | None = None
    nodes: int = 512
    width: int = 16

    metrics = _METRICS

    def __post_init__(self) -> None:
        require(len(self.values) > 0 and min(self.values) >= 1, f"values={self.values}: of each column, at least 1.")
        require(self.classes >= 2, f"classes={self.classes}: at least 2 are needed.")
        require(self.depth is None or self.depth >= 1, f"depth={self.depth}: at least 1, or None.")
        for name in ("nodes", "width"):
            require(getattr(self, name) >= 1, f"{name}={getattr(self, name)}: at least 1 is needed.")

    def init(self, seed: int) -> Tensors:
        """Empty counts: open nodes × columns × values × classes."""
        return Tensors({name: np.zeros(*shape) for name, shape in self.shapes().items()})

    def shapes(self) -> Shapes:
        """Of the counts."""
        return {"counts": ((self.width, len(self.values), max(self.values), self.classes), "float64")}

    def fit(self, params: Tensors, data: Any, work: LocalWork, rng: np.random.Generator) -> Fit:
        """Refuses: counts are made by `Id3` alone."""
        raise ConfigError("Id3Model goes with the algorithm Id3, as in Job(algorithm=Id3.of(model)).")

    def evaluate(self, params: Tensors, data: Any) -> Metrics:
        """The share of rows that the tree so far gets wrong, and right."""
        x, y = self.rows(data)
        right = float((DecisionTree(np.asarray(params["tree"]), self.values).predict(x) == y).sum())
        return {"loss": (len(y) - right, float(len(y))), "accuracy": (right, float(len(y)))}

    def finish(self, params: Tensors) -> DecisionTree:
        """The tree."""
        tree = np.asarray(params["tree"])
        return DecisionTree(tree[: _size(tree)], self.values)

    def rows(self, data: Any) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The values and classes of a client's data.

        Raises:
          DataError: they are of other shapes, no whole numbers, or not among those declared.
        """
        x, y = _codes(data["x"], self.values), np.asarray(data["y"]).reshape(-1)
        if len(x) != len(y) or (y != np.rint(y)).any() or not ((y >= 0) & (y < self.classes)).all():
            raise DataError(f"'y' has to be a class of 0 to {self.classes - 1} for each of the {len(x)} rows of 'x'.")
        return x, y.astype(np.int64)

    def started(self) -> Floats:
        """A tree whose root is open."""
        tree = np.zeros((self.nodes, _CLASSES + self.classes))
        tree[0, _OPEN] = 1
        return tree

    def counted(self, tree: Floats, x: NDArray[np.int64], y: NDArray[np.int64]) -> Floats:
        """Counts of rows at the open nodes: (width, columns, values, classes)."""
        counts = np.zeros(self.shapes()["counts"][0])
        place = np.full(len(tree), -1)
        asked = self._open(tree)
        place[asked] = np.arange(len(asked))
        here = place[_reached(tree, x)]
        at = here >= 0
        for column in range(len(self.values)):
            np.add.at(counts[:, column], (here[at], x[at, column], y[at]), 1)
        return counts

    def split(self, tree: Floats, counts: Floats) -> Floats:
        """The tree after the open nodes were split by the counts of all clients.

        Raises:
          TrainingFailed: it needs more nodes.
        """
        tree = tree.copy()
        for node, found in zip(self._open(tree), counts, strict=False):
            tree[node, _OPEN] = 0
            if node == 0:
                tree[0, _CLASSES:] = found[0].sum(axis=0)
            free = self._free(tree, node)
            if not free or not _mixed(tree[node, _CLASSES:]):
                continue
            gains = [_gain(found[column, : self.values[column]]) for column in free]
            best = int(np.argmax(np.round(gains, 9)))  # equal up to rounding: the first column
            self._grow(tree, node, free[best], found)
        return tree

    def _grow(self, tree: Floats, node: int, column: int, counts: Floats) -> None:
        first, count = _size(tree), self.values[column]
        if first + count > len(tree):
            raise TrainingFailed(
                f"the tree needs more than {len(tree)} nodes: give Id3Model(nodes=…) more, or a depth."
            )
        tree[node, [_COLUMN, _CHILD]] = column + 1, first
        for child, classes in enumerate(counts[column, :count], start=first):
            tree[child, _PARENT] = node + 1
            tree[child, _CLASSES:] = classes if classes.any() else tree[node, _CLASSES:]
            tree[child, _OPEN] = bool(self._free(tree, child)) and _mixed(classes)

    def _free(self, tree: Floats, node: int) -> list[int]:
        """The columns that no node above asks for; none at the depth where the tree ends."""
        above: list[int] = []
        while node:
            node = int(tree[node, _PARENT]) - 1
            above.append(int(tree[node, _COLUMN]) - 1)
        if self.depth is not None and len(above) >= self.depth:
            return []
        return [column for column in range(len(self.values)) if column not in above]

    def _open(self, tree: Floats) -> list[int]:
        return [int(node) for node in np.flatnonzero(tree[:, _OPEN])[: self.width]]


@dataclass(frozen=True)
class Id3(Algorithm):
    """The decision tree of the pooled data, by sums of counts. It needs `Id3Model` and `UniformMean()`.

    A round splits up to `width` nodes: `Job(rounds=…)` as many as the tree has levels, and one more for each `width`
    nodes of a level beyond the first; `history.model.whole` says whether that was enough. Further rounds change
    nothing. Sums may be hidden (`Clip`, `Quantise`, `SecureSum`): as long as their error is below one half, the tree is
    the same. A client's counts have a norm of at most rows · √columns, far less where its rows differ.

    Args:
      work: is not used.
      model: the job's.
    """

    work: LocalWork = field(default=LocalWork(lr=1.0, steps=1))
    model: Id3Model = field(kw_only=True)

    needs_uniform = True

    @classmethod
    def of(cls, model: Id3Model) -> "Id3":
        """The algorithm that goes with a model."""
        return cls(model=model)

    def init(self, params: Tensors) -> Tensors:
        """A tree of one open node, beside the counts."""
        return Tensors.join(model=params.updated({"tree": self.model.started()}))

    def train(self, model: Model, down: Tensors, memory: Tensors, data: Any, rng: np.random.Generator) -> Update:
        """This client's counts at the open nodes."""
        if model != self.model:
            raise ConfigError("Id3 and its model differ: make it by Id3.of(model).")
        state = down.part("model")
        x, y = self.model.rows(data)
        counts = self.model.counted(np.asarray(state["tree"]), x, y)
        metrics = self.model.evaluate(state, data)
        return Update(difference=Tensors({"counts": counts}), weight=float(len(y)), metrics=metrics)

    def apply(self, state: Tensors, aggregate: Aggregate) -> Tensors:
        """Splits the open nodes by the summed counts, which are whole numbers."""
        counts = np.maximum(np.rint(np.asarray(aggregate.mean["counts"]) * aggregate.count), 0)
        tree = self.model.split(np.asarray(state.part("model")["tree"]), counts)
        return state.updated(Tensors.join(model=Tensors({"tree": tree})))


def id3(x: NDArray[Any], y: NDArray[Any], model: Id3Model) -> DecisionTree:
    """The tree where one party has all rows: what `Id3` gives for the same rows at many."""
    rows, classes = model.rows({"x": x, "y": y})
    tree = model.started()
    while tree[:, _OPEN].any():
        tree = model.split(tree, model.counted(tree, rows, classes))
    return DecisionTree(tree[: _size(tree)], model.values)


def _mixed(classes: Floats) -> bool:
    return int((classes > 0).sum()) > 1


def _gain(counts: Floats) -> float:
    """Information gain in bits of a split into (values, classes)."""
    parts = [float(each.sum() / counts.sum()) * _entropy(each) for each in counts if each.any()]
    return _entropy(counts.sum(axis=0)) - sum(parts)


def _entropy(classes: Floats) -> float:
    total = classes.sum()
    return -sum(float(count / total) * math.log2(count / total) for count in classes if count)


def _reached(tree: Floats, x: NDArray[np.int64]) -> NDArray[np.int64]:
    """The node where each row ends."""
    node, rows = np.zeros(len(x), np.int64), np.arange(len(x))
    while True:
        column = tree[node, _COLUMN].astype(np.int64) - 1
        inner = column >= 0
        if not inner.any():
            return node
        below = tree[node, _CHILD].astype(np.int64) + x[rows, np.maximum(column, 0)]
        node = np.where(inner, below, node)


def _size(tree: Floats) -> int:
    """How many nodes there are: the root, and all that have a parent."""
    return 1 + int((tree[:, _PARENT] > 0).sum())


def _codes(x: Any, values: Sequence[int]) -> NDArray[np.int64]:
    given = np.asarray(x)
    if given.ndim != 2 or given.shape[1] != len(values) or given.dtype.kind not in "biuf":
        raise DataError(f"'x' has shape {given.shape}: give rows of {len(values)} whole numbers, one for each column.")
    for column, count in enumerate(values):
        wrong = ~(
            (given[:, column] >= 0) & (given[:, column] < count) & (given[:, column] == np.rint(given[:, column]))
        )
        if wrong.any():
            raise DataError(
                f"column {column} of 'x' has values other than 0 to {count - 1}, as in row {wrong.argmax()}."
            )
    return given.astype(np.int64)
