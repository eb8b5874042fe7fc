"""Boosted trees over different people with the same columns: bagging, one client after another, or summed histograms.

    TreeBagging      clients boost trees on their own data from the common ensemble; all of them join it, their leaves
                     divided by the number of clients
    … with cohort=1  one client a round, drawn at random: its trees join it whole (cyclic boosting)
    TreeHistograms   a round for each level of each tree: clients send their gradients' histograms, whose sum alone
                     decides the splits: the trees of the pooled data, and a sum that `SecureSum` can hide

Sources: Flower's FedXgbBagging and FedXgbCyclic, https://flower.ai/docs/framework; Jones et al. 2022, A federated
gradient boosted decision trees framework (histograms), https://arxiv.org/abs/2210.02910
"""

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hansa.algorithms.trees.arrays import FEATURE, LEAF, empty, encoded, margins, reached
from hansa.algorithms.trees.columns import Table
from hansa.algorithms.trees.growth import LocalSource, gains_of, grow
from hansa.algorithms.trees.losses import Floats, Gradients, loss_of, predictions
from hansa.algorithms.trees.settings import Boosting
from hansa.core.algorithm import Aggregate, Algorithm, Update
from hansa.core.errors import ConfigError, DataError, TrainingFailed, require
from hansa.core.model import Fit, LocalWork, Metrics, Model
from hansa.core.tensors import Shapes, Tensors

_LEAST_GAIN = 1e-6


@dataclass(frozen=True)
class TreeEnsemble:
    """What a finished job gives: trees of numbers, by the place of their columns.

    Args:
      trees: see `hansa.algorithms.trees.arrays`.
      base: the margin to start from.
      loss: says what a margin means.
    """

    trees: Floats = field(repr=False)
    base: float
    loss: str

    def predict(self, x: Floats) -> Floats:
        """Probabilities of 1 or, with the squared loss, numbers; one for each row of x (rows, columns)."""
        return predictions(self.loss, (self.base + margins(self.trees, np.asarray(x, np.float64)))[:, None])


class _Trees(Model):
    """What both models measure, and give in the end."""

    metrics: Mapping[str, float] = {"loss": math.inf, "accuracy": 1.0}
    boosting: Boosting
    base: float

    def evaluate(self, params: Tensors, data: Any) -> Metrics:
        """Loss of all trees, growing ones among them, and with labels of 0 and 1 accuracy."""
        x, y = rows_of(data)
        return measured(self.boosting.loss, y, self.base + margins(np.asarray(params["trees"]), x))

    def finish(self, params: Tensors) -> TreeEnsemble:
        """The trees that were grown."""
        trees = np.asarray(params["trees"])
        return TreeEnsemble(trees[trees.any(axis=(1, 2))], self.base, self.boosting.loss)


@dataclass(frozen=True)
class TreeModel(_Trees):
    """Boosted trees that each client grows on its own data, for `TreeBagging`.

    Data is a `Dataset` whose column `x` has numbers (NaN where missing), of shape (rows, columns), and `y` the labels.

    Args:
      boosting: `trees` is how many places the ensemble has; loss `logistic` or `squared`. `LocalWork.steps` says how
        many trees a client grows in a round.
      base: the margin to start from: the same at all clients, so nobody's labels.
    """

    boosting: Boosting
    base: float = 0.0

    def __post_init__(self) -> None:
        simple(self.boosting)

    def init(self, seed: int) -> Tensors:
        """Free places."""
        trees = empty(self.boosting.trees, self.boosting.depth)
        return Tensors({"trees": trees, "used": np.zeros(len(trees))})

    def fit(self, params: Tensors, data: Any, work: LocalWork, rng: np.random.Generator) -> Fit:
        """Grows trees into free places that it draws."""
        x, y = rows_of(data)
        trees, used = np.array(params["trees"]), np.array(params["used"])
        margin = self.base + margins(trees, x)
        free = np.flatnonzero(used < 0.5)
        wanted = work.steps or work.epochs or 1
        if len(free) < wanted:
            raise TrainingFailed(f"{len(free)} free places for {wanted} trees: give the model more, Boosting(trees=…).")
        for place, tree in zip(
            rng.choice(free, wanted, replace=False), grown(self.boosting, x, y, margin), strict=False
        ):
            trees[place], used[place] = tree, 1
        return Fit(Tensors({"trees": trees, "used": used}), wanted, measured(self.boosting.loss, y, margin))


@dataclass(frozen=True)
class TreeBagging(Algorithm):
    """The clients' trees, each grown from the common ensemble, join it: Flower's bagging; with `cohort=1` its cyclic.

    Every client draws its places in the ensemble at random; where two clients drew the same, both trees are left out
    and the place stays free, so give `Boosting(trees=…)` ten times as many places as trees are wanted. Splits travel as
    they are: stages that change numbers (clipping, rounding, noise) would change them. For sums that hide a client's
    trees take `TreeHistograms`.

    Args:
      work: `LocalWork(lr=1.0, steps=1)` grows one tree a round at each client.
    """

    work: LocalWork = field(default=LocalWork(lr=1.0, steps=1))

    needs_uniform = True

    def apply(self, state: Tensors, aggregate: Aggregate) -> Tensors:
        """Takes the trees whose place one client drew, their leaves divided by the number of clients."""
        model, mean = state.part("model"), aggregate.mean
        trees, used = np.array(model["trees"]), np.array(model["used"])
        drawn = np.rint(np.asarray(mean["used"]) * aggregate.count)
        for place in np.flatnonzero(drawn == 1):
            trees[place] = np.asarray(mean["trees"])[place] * aggregate.count
            trees[place, :, FEATURE] = np.rint(trees[place, :, FEATURE])
            trees[place, :, LEAF] /= aggregate.count
            used[place] = 1
        return state.updated(Tensors.join(model=Tensors({"trees": trees, "used": used})))


@dataclass(frozen=True)
class HistogramModel(_Trees):
    """What clients send of boosted trees: histograms of gradients, for `TreeHistograms`.

    Data is as `TreeModel` takes it.

    Args:
      boosting: loss `logistic` or `squared`; no `goss`, no `validation`.
      edges: for each column the thresholds it may be split at, ascending, known to all.
      base: the margin to start from.
    """

    boosting: Boosting
    edges: tuple[tuple[float, ...], ...]
    base: float = 0.0

    def __post_init__(self) -> None:
        simple(self.boosting)
        for at, column in enumerate(self.edges):
            ascending = all(a < b for a, b in itertools.pairwise(column))
            require(
                ascending and all(map(math.isfinite, column)), f"edges of column {at} are not finite and ascending."
            )
        require(bool(self.edges) and any(self.edges), "edges=(): give the thresholds of each column.")

    def init(self, seed: int) -> Tensors:
        """An empty histogram: nodes of the deepest level × columns × bins, the last for missing values × (g, h)."""
        return Tensors({name: np.zeros(*shape) for name, shape in self.shapes().items()})

    def shapes(self) -> Shapes:
        """Of the histogram."""
        bins = max(map(len, self.edges)) + 2
        return {"histogram": ((2 ** (self.boosting.depth - 1), len(self.edges), bins, 2), "float64")}

    def fit(self, params: Tensors, data: Any, work: LocalWork, rng: np.random.Generator) -> Fit:
        """Refuses: histograms are made by `TreeHistograms` alone."""
        raise ConfigError(
            "HistogramModel goes with the algorithm TreeHistograms, as in Job(algorithm=TreeHistograms())."
        )


@dataclass(frozen=True)
class TreeHistograms(Algorithm):
    """The trees of the pooled data, by sums of histograms. It needs `HistogramModel`, `UniformMean()`, and a round for
    each level of each tree: `Job(rounds=trees · depth)`.

    Sums may be hidden (`Clip`, `Quantise`, `SecureSum`) or noised (`Gaussian`). A clip bounds a client's whole
    histogram: its norm is at most 1.04 · rows · √columns with the logistic loss, far less where rows spread over bins.

    Args:
      boosting: as in the model.
      edges: as in the model.
      work: is not used.
    """

    work: LocalWork = field(default=LocalWork(lr=1.0, steps=1))
    boosting: Boosting = field(kw_only=True)
    edges: tuple[tuple[float, ...], ...] = field(kw_only=True)

    needs_uniform = True

    @classmethod
    def of(cls, model: HistogramModel) -> "TreeHistograms":
        """The algorithm that goes with a model."""
        return cls(boosting=model.boosting, edges=model.edges)

    def init(self, params: Tensors) -> Tensors:
        """Free places for all trees beside the histogram, and the level that grows next."""
        trees = {"trees": empty(self.boosting.trees, self.boosting.depth), "level": np.zeros(1)}
        return Tensors.join(model=params.updated(trees))

    def train(self, model: Model, down: Tensors, memory: Tensors, data: Any, rng: np.random.Generator) -> Update:
        """The histogram of this client's gradients at the nodes of the level that grows."""
        if not isinstance(model, HistogramModel) or model.boosting != self.boosting or model.edges != self.edges:
            raise ConfigError("TreeHistograms and its model differ: make it by TreeHistograms.of(model).")
        state = down.part("model")
        x, y = rows_of(data)
        if x.shape[1] != len(self.edges):
            raise DataError(f"'x' has {x.shape[1]} columns, and the model edges for {len(self.edges)}.")
        trees, (tree, level) = np.asarray(state["trees"]), self._at(state)
        margin = model.base + margins(trees[:tree], x)
        g, h = loss_of(self.boosting.loss, y).gradients(margin[:, None])
        node = reached(trees[tree], x, level) - (2**level - 1)
        grows = node >= 0  # the others are at a leaf above this level
        histogram = np.zeros(model.shapes()["histogram"][0])
        for column, edges in enumerate(self.edges):
            bins = np.where(np.isnan(x[:, column]), -1, np.searchsorted(edges, x[:, column], side="right"))
            np.add.at(histogram, (node[grows], column, bins[grows]), np.column_stack([g, h])[grows])
        return Update(
            difference=Tensors({"histogram": histogram}), weight=float(len(y)),
            metrics=measured(self.boosting.loss, y, margin),
        )  # fmt: skip

    def apply(self, state: Tensors, aggregate: Aggregate) -> Tensors:
        """Splits the nodes of a level by the summed histogram, and gives their children values."""
        model = state.part("model")
        total = np.asarray(aggregate.mean["histogram"]) * aggregate.count
        trees, (tree, level) = np.array(model["trees"]), self._at(model)
        if tree >= len(trees):
            raise TrainingFailed(
                f"all {len(trees)} trees are grown: set rounds={self.boosting.trees * self.boosting.depth}."
            )
        growing = trees[tree]
        for place in range(2**level):
            node = 2**level - 1 + place
            if node == 0 or growing[(node - 1) // 2, FEATURE]:
                self._split(growing, node, total[place])
        level_after = np.asarray(model["level"]) + 1
        return state.updated(Tensors.join(model=Tensors({"trees": trees, "level": level_after})))

    def _split(self, tree: Floats, node: int, histogram: Floats) -> None:
        """Splits a node by its histogram (columns × bins × 2), if that gains enough."""
        G, H = histogram[0].sum(axis=0)
        best, most = None, max(self.boosting.gamma, _LEAST_GAIN)
        for column, edges in enumerate(self.edges):
            below = histogram[column, : len(edges) + 1].cumsum(axis=0)
            for missing_left in (False, True):
                left = (below + histogram[column, -1] * missing_left).T
                gains = gains_of(left, G, H, 1.0, self.boosting)
                at = int(gains.argmax())
                if gains[at] > most:
                    best, most = (column, at, missing_left, left[:, at]), float(gains[at])
        if node == 0:
            tree[0, LEAF] = self._leaf(G, H)
        if best is None:
            return
        column, at, missing_left, (GL, HL) = best
        threshold = (*self.edges[column], np.finfo(np.float64).max)[at]
        tree[node, :LEAF] = column + 1, threshold, missing_left
        tree[2 * node + 1, LEAF], tree[2 * node + 2, LEAF] = self._leaf(GL, HL), self._leaf(G - GL, H - HL)

    def _leaf(self, G: float, H: float) -> float:
        return float(-self.boosting.learning_rate * G / (H + self.boosting.l2)) if H + self.boosting.l2 > 0 else 0.0

    def _at(self, state: Tensors) -> tuple[int, int]:
        """The tree that grows, and its level."""
        done = int(np.asarray(state["level"])[0])
        return done // self.boosting.depth, done % self.boosting.depth


def grown(boosting: Boosting, x: Floats, y: Floats, margin: Floats) -> Iterator[Floats]:
    """Trees that one client boosts on its own data, as many as are asked for; moves `margin` (rows,) along."""
    loss = loss_of(boosting.loss, y)
    table = Table({str(at): x[:, at] for at in range(x.shape[1])}, boosting)
    while True:
        g, h = loss.gradients(margin[:, None])
        gradients = Gradients.of(np.arange(len(y)), g[:, 0], h[:, 0])
        made, _ = grow([LocalSource("", table)], gradients, len(y), boosting)
        tree = encoded(made, 2 ** (boosting.depth + 1) - 1)
        margin += tree[reached(tree, x), LEAF]
        yield tree


def rows_of(data: Any) -> tuple[Floats, NDArray[np.float64]]:
    """Columns (rows, columns) and labels of a client's data.

    Raises:
      DataError: they are of other shapes.
    """
    x, y = np.asarray(data["x"], np.float64), np.asarray(data["y"], np.float64).reshape(-1)
    if x.ndim != 2 or len(x) != len(y):
        raise DataError(f"'x' has shape {x.shape} and 'y' {len(y)} labels: give rows of numbers, and a label for each.")
    return x, y


def measured(loss: str, y: Floats, margin: Floats) -> Metrics:
    """The sum of the loss over the rows and, of labels 0 and 1, how many are on the right side."""
    rows = len(y)
    mean = loss_of(loss, y).mean(margin[:, None], np.ones(rows, bool))
    right = float(((margin > 0) == (y > 0.5)).sum()) if loss == "logistic" else 0.0
    return {"loss": (mean * rows, float(rows)), "accuracy": (right, float(rows))}


def simple(boosting: Boosting) -> None:
    """Refuses settings that clients' trees do not have."""
    require(boosting.loss in ("logistic", "squared"), f"loss='{boosting.loss}': of clients' trees logistic or squared.")
    require(boosting.goss is None and not boosting.validation, "goss and validation are not for clients' trees.")
