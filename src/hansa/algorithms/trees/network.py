"""Trees whose learning rates are learnt: each client's own trees, put side by side, under a small network.

    1  each client grows M trees on its own data alone, once       OwnTrees, TreeGathering      M·K trees at everybody
    2  row ─► what each tree says of it, client by client          TreeNetwork                  K·M numbers
    3  a convolution of kernel M and stride M, then one layer      any network, trained by FedAvg

The kernel holds a learning rate for each of a client's trees, the same for all clients; the layer weighs the clients.
No gradients of rows leave a client, and so small a network needs few rounds.

Source: Ma, Qiu, Beutel, Lane: Gradient-less Federated Gradient Boosting Trees with Learnable Learning Rates, 2023,
https://arxiv.org/abs/2304.07537 (FedXGBllr; in Flower, FedXgbNnAvg)
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from hansa.algorithms.trees.arrays import LEAF, empty, margins, reached
from hansa.algorithms.trees.horizontal import grown, measured, rows_of, simple
from hansa.algorithms.trees.losses import Floats
from hansa.algorithms.trees.settings import Boosting
from hansa.core.algorithm import Aggregate, Algorithm, Update
from hansa.core.checkpoint import open_bytes
from hansa.core.data import Dataset
from hansa.core.errors import ConfigError, CorruptFile, NotFound, TrainingFailed, require
from hansa.core.model import Fit, LocalWork, Metrics, Model, Role
from hansa.core.tensors import Shapes, Tensors

_METRICS: Mapping[str, float] = {"loss": math.inf, "accuracy": 1.0}


@dataclass(frozen=True)
class ClientTrees:
    """The trees of all clients, side by side.

    Args:
      trees: shape (clients, trees, nodes, 4); see `hansa.algorithms.trees.arrays`.
    """

    trees: Floats = field(repr=False)

    def __post_init__(self) -> None:
        shape = np.shape(self.trees)
        require(len(shape) == 4 and shape[3] == 4 and 0 not in shape, f"trees has shape {shape}: (K, M, nodes, 4).")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Those of a gathering that ended: of the file that `history.save` or `hansa model` wrote.

        Raises:
          NotFound: there is no such file.
          CorruptFile: it holds no trees.
        """
        try:
            tensors, _ = open_bytes(Path(path).read_bytes())
            return cls(_taken(tensors))
        except FileNotFoundError:
            raise NotFound(f"there is no file '{path}' of trees: gather them first (TreeGathering).") from None
        except (KeyError, IndexError, ConfigError) as error:
            raise CorruptFile(f"{path} holds no clients' trees ({error}): gather them again.") from None

    @property
    def clients(self) -> int:
        """K."""
        return len(self.trees)

    @property
    def each(self) -> int:
        """M, trees of one client."""
        return len(self.trees[0])

    def __len__(self) -> int:
        """All trees: clients times trees of each."""
        return self.clients * self.each

    def outputs(self, x: Floats) -> np.ndarray:
        """What every tree says of every row of x (rows, columns): float32, shape (rows, 1, clients · trees)."""
        x = np.asarray(x, np.float64)
        said = [tree[reached(tree, x), LEAF] for tree in itertools.chain.from_iterable(self.trees)]
        return np.stack(said, axis=1)[:, None].astype(np.float32)


@dataclass(frozen=True)
class OwnTrees(Model):
    """Trees that each client boosts on its own data alone, for `TreeGathering`. Data is as `TreeModel` takes it.

    Args:
      boosting: `trees` is M, how many each client grows; loss `logistic` or `squared`.
      places: for clients' ensembles: four for each client are plenty.
      base: the margin to start from, the same at all clients.
    """

    boosting: Boosting
    places: int
    base: float = 0.0

    metrics = _METRICS

    def __post_init__(self) -> None:
        simple(self.boosting)
        require(self.places >= 1, f"places={self.places}: at least one for each client is needed.")

    def init(self, seed: int) -> Tensors:
        """Free places."""
        trees = np.stack([empty(self.boosting.trees, self.boosting.depth)] * self.places)
        return Tensors({"trees": trees, "used": np.zeros(self.places)})

    def fit(self, params: Tensors, data: Any, work: LocalWork, rng: np.random.Generator) -> Fit:
        """This client's M trees, in a free place that it draws."""
        x, y = rows_of(data)
        margin = np.full(len(y), self.base)
        block = np.stack(list(itertools.islice(grown(self.boosting, x, y, margin), self.boosting.trees)))
        return Fit(placed(params, block, rng), self.boosting.trees, measured(self.boosting.loss, y, margin))

    def evaluate(self, params: Tensors, data: Any) -> Metrics:
        """Loss and accuracy of the mean of all clients' ensembles."""
        x, y = rows_of(data)
        blocks = np.asarray(params["trees"])[np.asarray(params["used"]) > 0.5]
        total = sum((margins(block, x) for block in blocks), np.zeros(len(y)))
        return measured(self.boosting.loss, y, self.base + total / max(1, len(blocks)))

    def finish(self, params: Tensors) -> ClientTrees:
        """The trees that were gathered."""
        return ClientTrees(_taken(params))


@dataclass(frozen=True)
class TreeGathering(Algorithm):
    """Every client's own trees, put side by side at everybody. It needs `OwnTrees` and `UniformMean()`.

    Every client draws a place at random; where two drew the same, both draw again in the next round, without growing
    their trees anew. With four places a client, eight rounds hardly ever leave one out; `history.model.clients`
    says how many are in. Stages that change numbers would change the splits, and the server sees the trees.

    Args:
      work: is not used: `OwnTrees` says how many trees there are.
    """

    work: LocalWork = field(default=LocalWork(lr=1.0, steps=1))

    needs_uniform = True
    keeps_memory = True

    def train(self, model: Model, down: Tensors, memory: Tensors, data: Any, rng: np.random.Generator) -> Update:
        """This client's trees in a place of their own, unless they are in one already."""
        start = down.part("model")
        if "block" not in memory:
            fit = model.fit(start, data, self.work, rng)
            kept, metrics = fit.params, fit.metrics
        else:
            block, place = np.asarray(memory["block"]), int(np.asarray(memory["place"])[0])
            there = np.array_equal(np.asarray(start["trees"])[place], block)
            kept, metrics = start if there else placed(start, block, rng), model.evaluate(start, data)
            if there:
                return Update(difference=kept - start, weight=float(len(data)), metrics=metrics, memory=memory)
        (drawn,) = np.flatnonzero(np.asarray(kept["used"]) - np.asarray(start["used"]) > 0.5)
        own = Tensors({"block": np.asarray(kept["trees"])[drawn], "place": np.array([float(drawn)])})
        return Update(difference=kept - start, weight=float(len(data)), metrics=metrics, memory=own)

    def apply(self, state: Tensors, aggregate: Aggregate) -> Tensors:
        """Takes the trees whose place one client drew."""
        model, mean = state.part("model"), aggregate.mean
        trees, used = np.array(model["trees"]), np.array(model["used"])
        for place in np.flatnonzero(np.rint(np.asarray(mean["used"]) * aggregate.count) == 1):
            trees[place], used[place] = np.asarray(mean["trees"])[place] * aggregate.count, 1
        return state.updated(Tensors.join(model=Tensors({"trees": trees, "used": used})))


@dataclass(frozen=True)
class TreeNetwork(Model):
    """A model of what clients' trees say of a row, in place of its columns; any algorithm trains it.

    >>> def net(): return TreeConvolution(clients=5, trees=20)                          # doctest: +SKIP
    >>> TreeNetwork(gathered, TorchModel(net, loss=F.binary_cross_entropy_with_logits))  # doctest: +SKIP

    Data is as `TreeModel` takes it. The model inside gets `x`, float32 of shape (rows, 1, clients · trees), and `y` as
    float32.

    Args:
      trees: of all clients, the same at everybody.
      network: learns from their outputs.
    """

    trees: ClientTrees
    network: Model

    @property
    def metrics(self) -> Mapping[str, float]:  # type: ignore[override]
        """Those of the network."""
        return self.network.metrics

    @property
    def clips_records(self) -> bool:  # type: ignore[override]
        """As the network."""
        return self.network.clips_records

    def init(self, seed: int) -> Tensors:
        """Of the network."""
        return self.network.init(seed)

    def shapes(self) -> Shapes:
        """Of the network."""
        return self.network.shapes()

    def roles(self) -> Mapping[str, Role]:
        """Of the network."""
        return self.network.roles()

    def fit(self, params: Tensors, data: Any, work: LocalWork, rng: np.random.Generator) -> Fit:
        """Trains the network on what the trees say."""
        return self.network.fit(params, self._said(data), work, rng)

    def fit_cohort(
        self, params: Sequence[Tensors], data: Sequence[Any], work: Sequence[LocalWork],
        rngs: Sequence[np.random.Generator],
    ) -> list[Fit]:  # fmt: skip
        """The same of many clients."""
        return self.network.fit_cohort(params, [self._said(each) for each in data], work, rngs)

    def evaluate(self, params: Tensors, data: Any) -> Metrics:
        """The network's metrics."""
        return self.network.evaluate(params, self._said(data))

    def plan(self) -> str:
        """Of the network."""
        return self.network.plan()

    def planned(self, load: Callable[[], Any], work: LocalWork, plan: str = "") -> Model:
        """This model with the way the network is fitted fixed."""
        return replace(self, network=self.network.planned(lambda: self._said(load()), work, plan))

    def finish(self, params: Tensors) -> tuple[ClientTrees, Any]:
        """The trees, and the network's own object: `network(torch.from_numpy(trees.outputs(x)))` predicts."""
        return self.trees, self.network.finish(params)

    def _said(self, data: Any) -> Dataset:
        x, y = rows_of(data)
        return Dataset(x=self.trees.outputs(x), y=y.astype(np.float32))


def placed(params: Tensors, block: Floats, rng: np.random.Generator) -> Tensors:
    """The ensembles with one more, in a free place drawn by `rng`.

    Raises:
      TrainingFailed: none is free.
    """
    trees, used = np.array(params["trees"]), np.array(params["used"])
    free = np.flatnonzero(used < 0.5)
    if not len(free):
        raise TrainingFailed(f"all {len(used)} places are taken: give the model more, OwnTrees(places=…).")
    place = rng.choice(free)
    trees[place], used[place] = block, 1
    return Tensors({"trees": trees, "used": used})


def _taken(params: Tensors) -> Floats:
    return np.asarray(params["trees"])[np.asarray(params["used"]) > 0.5]
