"""`Job`: one description of a whole training, the same object for every runtime.

A job is frozen and printable. `check()` lists every fault with its remedy before any data is touched. Its `fingerprint`
is the SHA-256 of its archive (if it was submitted as one) and of the canonical form of the fields that change the
mathematics; what changes only speed, logging or when to stop is not in it.
"""

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np

from hansa.core.algorithm import Algorithm
from hansa.core.data import Dataset
from hansa.core.errors import ConfigError, JobError, require
from hansa.core.model import Metrics, Model, Role
from hansa.core.pipeline import Bound, Part, Pipeline, Setting, Signal
from hansa.core.sampling import Fixed, Sampling
from hansa.core.tensors import Shapes, Tensors

SPEED = {"speed": True}  # metadata of fields that change speed, logging or when to stop, never the mathematics


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """When and where the model is measured.

    Args:
      data: the server's own test data, or a callable that loads it; measured by `Model.evaluate`.
      central: a callable (model, params) -> metrics, for anything else the server can measure.
      workers: how many clients evaluate on their own data, as a round through the same reducer; 0 for none,
        None for as many as are sampled for training.
      each: whether the record names every evaluating client's own metrics, or those of a uniform sample of so many;
        only where the reducer sees each anyway.
      every: rounds between evaluations; the last round always has one.
      best: metric by which the best model is kept; None keeps the last alone.
      maximise: whether more of it is better.
    """

    data: Dataset | Callable[[], Any] | None = None
    central: Callable[[Model, Tensors], Metrics | Mapping[str, float]] | None = None
    workers: int | None = 0
    each: bool | int = False
    every: int = 1
    best: str | None = None
    maximise: bool = False

    def __post_init__(self) -> None:
        require(self.every >= 1, f"every={self.every}: rounds between evaluations are at least 1.")
        require((self.workers or 0) >= 0, f"workers={self.workers}: 0 for no evaluation on workers, or how many.")


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything that decides what is learnt and who may see what.

    Args:
      model: what learns.
      algorithm: what a round does to it.
      pipeline: what happens to updates on their way up; ends in a reducer.
      down: stages for what the server sends (no reducer).
      cohort: clients a round; shorthand for `sampling=Fixed(cohort)` with no deadline: an absent worker is waited for.
      sampling: who is asked, with quorum, deadline and staleness.
      rounds: how many.
      evaluation: when and where the model is measured.
      query: a callable (data) -> metrics, for a question to the workers through the same reducer.
      answers: names of the query's metrics, each with the largest value one example can have.
      max_examples: examples that one client can count for at most; bounds weights and metrics before any data.
      attempts: tries at one round before the run fails.
      epsilon, delta: the privacy budget; a job that would exceed it is refused before it starts.
      seed: of initial parameters, sampling without privacy claims, and training; never of noise or keys.
      name: for people.

    Raises:
      ConfigError: fields that contradict each other at sight. What needs the whole job is found by `check()`.
    """

    model: Model
    algorithm: Algorithm
    pipeline: Pipeline
    down: Pipeline = field(default_factory=Pipeline)
    cohort: int | None = None
    sampling: Sampling | None = None
    rounds: int = field(default=1, metadata=SPEED)
    evaluation: Evaluation = field(default_factory=Evaluation)
    query: Callable[[Any], Metrics] | None = None
    answers: Mapping[str, float] = field(default_factory=dict)
    max_examples: float = math.inf
    attempts: int = field(default=10, metadata=SPEED)
    epsilon: float | None = None
    delta: float | None = None
    seed: int = 0
    name: str = field(default="job", metadata=SPEED)

    def __post_init__(self) -> None:
        both = f"cohort={self.cohort} and sampling={self.sampling}: give one of them."
        require(self.cohort is None or self.sampling in (None, Fixed(self.cohort)), both)
        none = "who takes part in a round? Give cohort=n, or sampling=Fixed(...) or Poisson(...)."
        require(self.cohort is not None or self.sampling is not None, none)
        if self.sampling is None:
            object.__setattr__(self, "sampling", Fixed(self.cohort or 0))
        require(self.rounds >= 0, f"rounds={self.rounds}: it may not be negative.")
        require(self.attempts >= 1, f"attempts={self.attempts}: at least one try is needed.")
        require(self.max_examples > 0, f"max_examples={self.max_examples}: it is above 0.")
        object.__setattr__(self, "_bound", {})

    @property
    def who(self) -> Sampling:
        """The sampling, however it was given."""
        assert self.sampling is not None
        return self.sampling

    @functools.cached_property
    def remembers(self) -> bool:
        """Whether workers keep anything between tasks: the algorithm's, a stage's, or private tensors."""
        kept = self.algorithm.keeps_memory or any(stage.remembers for stage in self.pipeline.stages)
        return kept or Role.PRIVATE in self.model.roles().values()

    # -- binding

    @functools.cached_property
    def signal(self) -> Signal:
        """What one update is before the pipeline: a part for values, buffers, weight, metrics and each side value."""
        sides = self.algorithm.sides(_zeros(self._shapes(Role.TRAINABLE, Role.BUFFER)))
        parts = {
            "value": Part(shapes=self._shapes(Role.TRAINABLE)),
            "buffers": Part(shapes=self._shapes(Role.BUFFER)),
            "weight": Part(shapes={"weight": ((1,), "float64")}, bits=64, l2=self.max_examples, linf=self.max_examples),
            "metric": self._metric_part(self.model.metrics),
            **{name: Part(shapes=side.shapes) for name, side in sides.items()},
        }
        return Signal({name: part for name, part in parts.items() if part.shapes})

    def _metric_part(self, names: Mapping[str, float]) -> Part:
        bound = self.max_examples * max([1.0, *names.values()])
        shapes = dict.fromkeys(names, ((2,), "float64"))
        return Part(shapes=shapes, bits=64, l2=bound * math.sqrt(2 * max(1, len(names))), linf=bound)

    def bind(self, population: int, kind: str = "train") -> Bound:
        """The pipeline of one kind of round, bound; JobError if it contradicts itself.

        Rounds of kind `evaluate` and `query` carry metrics alone, through the same reducer. Kind `down` is what the
        server sends.
        """
        cache: dict[tuple[int, str], Bound] = self.__dict__["_bound"]
        if (population, kind) not in cache:
            sees = self.pipeline.reducer.sees if self.pipeline.reducer is not None else "each"
            setting = Setting(sampling=self.who, algorithm=self.algorithm, population=population, sees=sees, kind=kind)
            if kind == "train":
                cache[population, kind] = self.pipeline.bind(self.signal, setting)
            elif kind == "down":
                cache[population, kind] = self.down.bind(self._down_signal(), setting)
            else:
                names = self.model.metrics if kind == "evaluate" else self.answers
                signal = Signal({"metric": self._metric_part(names)})
                cache[population, kind] = Pipeline((), self.pipeline.reducer).bind(signal, setting)
        return cache[population, kind]

    def _down_signal(self) -> Signal:
        down = self.algorithm.send(self.algorithm.init(_zeros(self._shapes(Role.TRAINABLE, Role.BUFFER))))
        return Signal({part: Part(shapes=down.part(part).shapes) for part in down.parts})

    def _shapes(self, *roles: Role) -> Shapes:
        given = self.model.roles()
        return {name: at for name, at in self.model.shapes().items() if given.get(name, Role.TRAINABLE) in roles}

    # -- checking

    def check(self, population: int | None = None) -> None:
        """Raises one JobError that lists every fault of this job, each with its remedy.

        Args:
          population: number of clients, if it is known; the cohort is held against it.
        """
        faults = list(self._faults(population))
        if faults:
            raise JobError(faults)

    def _faults(self, population: int | None) -> Iterator[str]:
        if population is not None:
            yield from self.who.faults(population)
        size = population or max(1, math.ceil(self.who.expected(1 << 20)))
        if self.pipeline.reducer is None:
            yield "the pipeline has no reducer: end it with one, as in Pipeline([WeightedMean()], Sum())."
        for stage in self.down.stages:
            if stage.remembers or not stage.alone:
                yield f"{type(stage).__name__} cannot be undone by one worker on its own: leave it out of `down`."
        if self.algorithm.work.dp is not None and not self.model.clips_records:
            name = type(self.model).__name__
            yield f"dp={self.algorithm.work.dp} but {name} cannot clip single records: use TorchModel, or leave it out."
        if self.query is not None and not self.answers:
            yield "query without answers: name its metrics and their bounds, as in answers={'age': 120}."
        if self.down.reducer is not None:
            yield "the pipeline downwards has a reducer, but nothing is added up on the way down: leave it out."
        if self.algorithm.keeps_memory and self.who.max_staleness:
            name = type(self.algorithm).__name__
            yield f"{name} keeps memory at the worker, which stale updates corrupt: set max_staleness=0."
        evaluation = self.evaluation
        if evaluation.best and not (evaluation.data or evaluation.central or evaluation.workers != 0):
            yield f"best='{evaluation.best}' but nothing is evaluated: give Evaluation data, central or workers."
        elif evaluation.best and evaluation.central is None and evaluation.best not in self.model.metrics:
            yield f"best='{evaluation.best}' is no metric of the model: choose from {sorted(self.model.metrics)}."
        unknown = sorted(set(self.model.roles()) - set(self.model.shapes()))
        if unknown:
            yield f"roles for {unknown}, which the model does not have: it has {sorted(self.model.shapes())[:8]}."
        if not self.signal.parts.get("value"):
            yield "the model has no trainable tensor: give at least one the role TRAINABLE."
        if (self.epsilon is None) != (self.delta is None):
            yield f"epsilon={self.epsilon}, delta={self.delta}: a privacy budget needs both."
        bound = None
        for kind in ("down", "train"):
            try:
                bound = self.bind(size, kind)
            except JobError as error:
                bound = None
                yield from error.faults
        if bound is None:
            return
        if not bound.signal.divided:
            yield "the pipeline has no mean, so the model would move by a sum: add UniformMean() or WeightedMean()."
        if (bound.events() or self.algorithm.work.dp) and evaluation.workers != 0:
            yield "evaluation on workers releases exact metrics of a private job: set workers=0, evaluate centrally."
        if bound.events() and self.query is not None:
            yield "a query releases exact answers of a private job's clients: ask it in a job of its own."
        if bound.events() and self.signal.parts.get("buffers"):
            yield "buffers (batch norm's statistics) are released without noise: make them FROZEN, or use group norm."
        if evaluation.each and (evaluation.workers == 0 or getattr(self.pipeline.reducer, "sees", "") != "each"):
            yield "each=True needs evaluation on workers and a reducer that sees each: use Sum(), or leave it out."
        least = self.who.quorum or math.floor(self.who.expected(population or 0))
        if evaluation.workers and evaluation.workers < least and getattr(self.pipeline.reducer, "sees", "") == "total":
            yield f"workers={evaluation.workers} hide each other less than a round's {least} do: ask as many, or None."
        if self.epsilon is not None and not bound.events():
            yield f"epsilon={self.epsilon} but no stage adds noise: add Gaussian(1.0), or leave the budget out."

    # -- identity

    def fingerprint(self, bundle: str = "") -> str:
        """SHA-256 of the archive's hash (empty where the job was not submitted as one) and the canonical form."""
        text = json.dumps({"bundle": bundle, "job": canonical(self)}, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def _zeros(shapes: Shapes) -> Tensors:
    return Tensors({name: np.zeros(*shape) for name, shape in shapes.items()})


def canonical(thing: Any, speed: bool = False) -> Any:
    """A job, or anything inside one, as JSON: types and callables by `module:qualname`, arrays by their hash.

    Args:
      thing: what a job may hold.
      speed: whether fields that change only speed are in it, too.

    Raises:
      ConfigError: it holds what has no such form.
    """
    form = functools.partial(canonical, speed=speed)
    if thing is None or isinstance(thing, bool | int | str):
        return thing
    if isinstance(thing, float):
        return {"$float": thing.hex()}
    if isinstance(thing, np.generic):
        return form(thing.item())
    if isinstance(thing, Tensors):
        return {"$tensors": {name: form(np.asarray(thing[name])) for name in thing}}
    if isinstance(thing, Dataset):
        return {"$dataset": {name: form(column) for name, column in thing.columns.items()}}
    if isinstance(thing, np.ndarray):
        raw = thing.tobytes() if thing.dtype.kind != "O" else repr(thing.tolist()).encode()
        return {"$array": hashlib.sha256(raw).hexdigest(), "shape": list(thing.shape), "dtype": str(thing.dtype)}
    if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        kept = [f.name for f in dataclasses.fields(thing) if f.init and (speed or not f.metadata.get("speed"))]
        kept = [name for name in kept if not (isinstance(thing, Job) and name == "cohort")]  # `sampling` says it
        return {"$type": _name(type(thing)), "fields": {name: form(getattr(thing, name)) for name in kept}}
    if isinstance(thing, functools.partial):
        return {"$partial": form(thing.func), "args": form(thing.args), "keywords": form(thing.keywords)}
    if isinstance(thing, Mapping):
        items = sorted(thing.items(), key=lambda item: str(item[0]))
        return {"$mapping": [[form(key), form(value)] for key, value in items]}
    if isinstance(thing, tuple | list | set | frozenset):
        ordered = sorted(thing, key=str) if isinstance(thing, set | frozenset) else thing
        return {"$sequence": [form(item) for item in ordered]}
    if callable(thing):
        return {"$name": _name(thing)}
    kind = type(thing).__name__
    raise ConfigError(f"a job cannot hold a {kind}: use numbers, strings, frozen dataclasses and named functions.")


def _name(thing: Any) -> str:
    # Python's spawned children call the parent's main module __mp_main__.
    module = "__main__" if thing.__module__ == "__mp_main__" else thing.__module__
    owner = getattr(thing, "__self__", None)
    if not hasattr(thing, "__qualname__") or not (owner is None or isinstance(owner, type | ModuleType)):
        return f"{module}:{type(owner or thing).__qualname__}.<instance>"  # its own state cannot be named
    return f"{module}:{thing.__qualname__}"
