"""A Flower client as Hansa's model and algorithm: three jobs, each of which calls the object in this process.

    layout    one client says which arrays its parameters are        11 numbers an array
    start     one client gives its parameters, the first model
    train     each client fits; differences are averaged by examples, as everywhere

Server and clients are processes of their own, so each has its own `here`: the client's holds the client object, the
server's the strategy's function and the first parameters. A job file of two lines names the job; see `source`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hansa.app.flower.weights import Weights
from hansa.core.algorithm import Algorithm, Update
from hansa.core.errors import ConfigError
from hansa.core.job import Evaluation, Job
from hansa.core.model import Fit, LocalWork, Metrics, Model
from hansa.core.pipeline import Pipeline
from hansa.core.tensors import Shapes, Tensors
from hansa.stages.mean import UniformMean, WeightedMean
from hansa.stages.sum import Sum

MAX_ARRAYS, MAX_AXES = 1024, 8
_DTYPES = ("float32", "float64", "float16")
_NO_WORK = LocalWork(lr=0.0, epochs=1)  # what to do locally is the client's own affair

Layout = tuple[tuple[tuple[int, ...], str], ...]  # (shape, dtype) of each array


@dataclass
class Here:
    """What this process has."""

    client: Any = None
    eval_fn: Callable[[Weights], Any] | None = None
    first: Tensors | None = None
    fault: BaseException | None = None


here = Here()


def data() -> Sequence[None]:
    """What a worker is told to load; the client has its own data."""
    return [None]


def called(function: Callable[..., Any], *arguments: Any) -> Any:
    """What the client's method returns; what it raises is kept for the thread that started it."""
    try:
        return function(*arguments)
    except BaseException as error:
        here.fault = error
        raise


# ── parameters as tensors ────────────────────────────────────────────────────────────────────────────────────────────


def arrays_of(weights: Weights) -> list[np.ndarray]:
    """The arrays of what a client gives, one if it is flat."""
    return [weights] if isinstance(weights, np.ndarray) else [np.asarray(array) for array in weights]


def tensors_of(weights: Weights) -> Tensors:
    """The same, named by place."""
    return Tensors({f"{place:05}": array for place, array in enumerate(arrays_of(weights))})


def weights_of(tensors: Tensors, flat: bool) -> Weights:
    """What a client is given: arrays that it may write to."""
    arrays = [np.array(tensors[name]) for name in tensors]
    return arrays[0] if flat else arrays


def written(weights: Weights) -> np.ndarray:
    """Which arrays these are, as numbers: a row (axes, dtype, flat, length of each axis …) for each."""
    arrays = arrays_of(weights)
    if not 1 <= len(arrays) <= MAX_ARRAYS:
        raise ConfigError(f"get_parameters gave {len(arrays)} arrays: give 1 to {MAX_ARRAYS}.")
    rows = np.full((MAX_ARRAYS, 3 + MAX_AXES), -1.0)
    for place, array in enumerate(arrays):
        if array.dtype.name not in _DTYPES or array.ndim > MAX_AXES:
            raise ConfigError(
                f"array {place} of get_parameters is {array.dtype}{list(array.shape)}: give floats of at most "
                f"{MAX_AXES} axes."
            )
        rows[place, :3] = array.ndim, _DTYPES.index(array.dtype.name), isinstance(weights, np.ndarray)
        rows[place, 3 : 3 + array.ndim] = array.shape
    return rows


def read(rows: np.ndarray) -> tuple[Layout, bool]:
    """The opposite of `written`."""
    whole = rows.astype(int)
    kept = whole[whole[:, 0] >= 0]
    return tuple((tuple(row[3 : 3 + row[0]].tolist()), _DTYPES[row[1]]) for row in kept), bool(kept[0, 2])


# ── models and algorithms ────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Unknown(Model):
    """Parameters before anybody knows what they are: the numbers of `written`."""

    def init(self, seed: int) -> Tensors:
        """Zeros."""
        return Tensors({"layout": np.zeros((MAX_ARRAYS, 3 + MAX_AXES))})

    def fit(self, params: Tensors, data: Any, work: LocalWork, rng: np.random.Generator) -> Fit:
        """Never called: the algorithms below ask the client."""
        raise NotImplementedError

    def evaluate(self, params: Tensors, data: Any) -> Metrics:
        """Never called."""
        raise NotImplementedError


@dataclass(frozen=True)
class Known(Unknown):
    """Parameters of a known layout; evaluated by the client.

    Args:
      layout: of the arrays.
      flat: whether the client has them as one array and no list.
    """

    layout: Layout = ()
    flat: bool = False
    metrics: Mapping[str, float] = field(default_factory=lambda: {"loss": float("inf"), "accuracy": 1.0}, init=False)

    def init(self, seed: int) -> Tensors:
        """The first parameters where they are known, at the server; zeros elsewhere."""
        zeros = Tensors({name: np.zeros(*shape) for name, shape in self.shapes().items()})
        return here.first if here.first is not None else zeros

    def shapes(self) -> Shapes:
        """Names by place."""
        return {f"{place:05}": shape for place, shape in enumerate(self.layout)}

    def evaluate(self, params: Tensors, data: Any) -> Metrics:
        """The client's loss, and its accuracy if it gives one."""
        loss, examples, *more = called(here.client.evaluate, weights_of(params, self.flat), {})
        found = {"loss": (float(loss) * examples, float(examples))}
        accuracy = (more[0] if more else {}).get("accuracy")
        return {**found, **({} if accuracy is None else {"accuracy": (float(accuracy) * examples, float(examples))})}


@dataclass(frozen=True)
class AskLayout(Algorithm):
    """One client says which arrays its parameters are."""

    def train(self, model: Model, down: Tensors, memory: Tensors, data: Any, rng: np.random.Generator) -> Update:
        """The numbers of `written`."""
        rows = written(called(here.client.get_parameters))
        return Update(difference=Tensors({"layout": rows}), weight=1.0)


@dataclass(frozen=True)
class AskFirst(Algorithm):
    """One client gives its parameters as they are."""

    def train(self, model: Model, down: Tensors, memory: Tensors, data: Any, rng: np.random.Generator) -> Update:
        """All of them: the server has zeros so far."""
        return Update(difference=tensors_of(called(here.client.get_parameters)), weight=1.0)


@dataclass(frozen=True)
class AskFit(Algorithm):
    """Each client fits from what it is sent."""

    def train(self, model: Model, down: Tensors, memory: Tensors, data: Any, rng: np.random.Generator) -> Update:
        """The difference, with the number of examples as weight."""
        assert isinstance(model, Known)
        before = down.part("model")
        fitted, examples, *_ = called(here.client.fit, weights_of(before, model.flat), {})
        after = tensors_of(fitted).zip(before, lambda new, old: np.asarray(new, old.dtype))
        return Update(difference=after - before, weight=float(examples))


def central(model: Model, params: Tensors) -> dict[str, float]:
    """The strategy's eval_fn, at the server."""
    assert isinstance(model, Known)
    assert here.eval_fn is not None
    found = here.eval_fn(weights_of(params, model.flat))
    if found is None:
        return {}
    loss, metrics = found
    return {"loss": float(loss), **{name: float(number) for name, number in metrics.items()}}


# ── jobs ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def asking_layout() -> Job:
    """The first job."""
    return Job(name="layout", model=Unknown(), algorithm=AskLayout(_NO_WORK), pipeline=_plain(), cohort=1)


def asking_first(layout: Layout, flat: bool) -> Job:
    """The second."""
    model = Known(layout=layout, flat=flat)
    return Job(name="start", model=model, algorithm=AskFirst(_NO_WORK), pipeline=_plain(), cohort=1)


def training(layout: Layout, flat: bool, rounds: int, cohort: int, centrally: bool, on_clients: int) -> Job:
    """The third.

    Args:
      layout, flat: of the parameters.
      rounds, cohort: how many, and with how many clients each.
      centrally: whether the server has an eval_fn.
      on_clients: how many clients evaluate after each round.
    """
    return Job(
        name="train",
        model=Known(layout=layout, flat=flat),
        algorithm=AskFit(_NO_WORK),
        pipeline=Pipeline([WeightedMean()], Sum()),
        cohort=cohort,
        rounds=rounds,
        evaluation=Evaluation(central=central if centrally else None, workers=on_clients),
    )


def _plain() -> Pipeline:
    return Pipeline([UniformMean()], Sum())


def source(function: Callable[..., Job], *arguments: Any) -> str:
    """A job file that calls one of the functions above."""
    given = ", ".join(map(repr, arguments))
    return f"from hansa.app.flower import bridge\n\njob = bridge.{function.__name__}({given})\n"
