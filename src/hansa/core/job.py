"""`Job`: one description of a whole training, the same object for every runtime.

A job is frozen and printable. `check()` lists every fault with its remedy before any data is touched. Its `fingerprint`
is the SHA-256 of its archive (if it was submitted as one) and of the canonical form of the fields that change the
mathematics; what changes only speed, logging or when to stop is not in it.
"""

import dataclasses
import functools
import hashlib
import importlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np

from hansa.core.algorithm import Algorithm
from hansa.core.data import Dataset
from hansa.core.errors import ConfigError, HansaError, JobError
from hansa.core.model import Metrics, Model, Role
from hansa.core.pipeline import Bound, Part, Pipeline, Setting, Signal
from hansa.core.sampling import Fixed, Sampling
from hansa.core.tensors import Tensors

SPEED = {"speed": True}  # metadata of fields that change speed, logging or when to stop, never the mathematics


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """When and where the model is measured.

    Args:
      data: the server's own test data, or a callable that loads it; measured by `Model.evaluate`.
      central: a callable (model, params) -> metrics, for anything else the server can measure.
      workers: how many clients evaluate on their own data, as a round through the same reducer; 0 for none,
        None for as many as are sampled for training.
      every: rounds between evaluations; the last round always has one.
      best: metric by which the best model is kept; None keeps the last alone.
      maximise: whether more of it is better.
    """

    data: Dataset | Callable[[], Any] | None = None
    central: Callable[[Model, Tensors], Metrics | Mapping[str, float]] | None = None
    workers: int | None = 0
    every: int = 1
    best: str | None = None
    maximise: bool = False

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ConfigError(f"every={self.every}: rounds between evaluations are at least 1.")
        if self.workers is not None and self.workers < 0:
            raise ConfigError(f"workers={self.workers}: 0 for no evaluation on workers, or how many.")


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
        if self.cohort is not None and self.sampling not in (None, Fixed(self.cohort)):
            raise ConfigError(f"cohort={self.cohort} and sampling={self.sampling}: give one of them.")
        if self.cohort is None and self.sampling is None:
            raise ConfigError("who takes part in a round? Give cohort=n, or sampling=Fixed(...) or Poisson(...).")
        if self.sampling is None:
            object.__setattr__(self, "sampling", Fixed(self.cohort or 0))
        if self.rounds < 0:
            raise ConfigError(f"rounds={self.rounds}: it may not be negative.")
        if self.attempts < 1:
            raise ConfigError(f"attempts={self.attempts}: at least one try is needed.")
        if not self.max_examples > 0:
            raise ConfigError(f"max_examples={self.max_examples}: it is above 0.")
        object.__setattr__(self, "_bound", {})

    @property
    def who(self) -> Sampling:
        """The sampling, however it was given."""
        assert self.sampling is not None
        return self.sampling

    # -- binding

    @functools.cached_property
    def signal(self) -> Signal:
        """What one update is before the pipeline: a part for values, buffers, weight, metrics and each side value."""
        shapes, roles = self.model.shapes(), self.model.roles()

        def named(role: Role) -> dict[str, tuple[tuple[int, ...], str]]:
            return {name: shape for name, shape in shapes.items() if roles.get(name, Role.TRAINABLE) == role}

        params = Tensors({name: np.zeros(*shape) for name, shape in self._sent_shapes().items()})
        parts = {
            "value": Part(shapes=named(Role.TRAINABLE)),
            "buffers": Part(shapes=named(Role.BUFFER)),
            "weight": Part(shapes={"weight": ((1,), "float64")}, bits=64, l2=self.max_examples, linf=self.max_examples),
            "metric": self._metric_part(self.model.metrics),
            **{name: Part(shapes=side.shapes) for name, side in self.algorithm.sides(params).items()},
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
            setting = Setting(sampling=self.who, algorithm=self.algorithm, population=population)
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
        params = Tensors({name: np.zeros(*shape) for name, shape in self._sent_shapes().items()})
        down = self.algorithm.send(self.algorithm.init(params))
        return Signal({part: Part(shapes=down.part(part).shapes) for part in down.parts})

    def _sent_shapes(self) -> dict[str, tuple[tuple[int, ...], str]]:
        roles = self.model.roles()
        sent = (Role.TRAINABLE, Role.BUFFER)
        return {name: shape for name, shape in self.model.shapes().items() if roles.get(name, Role.TRAINABLE) in sent}

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
        if bound.events() and evaluation.workers != 0:
            yield "evaluation on workers releases exact metrics of a private job: set workers=0, evaluate centrally."
        if bound.events() and self.signal.parts.get("buffers"):
            yield "buffers (batch norm's statistics) are released without noise: make them FROZEN, or use group norm."
        if self.epsilon is not None and not bound.events():
            yield f"epsilon={self.epsilon} but no stage adds noise: add Gaussian(1.0), or leave the budget out."

    # -- identity

    def canonical(self) -> Any:
        """This job as JSON: types and callables by `module:qualname`, fields that change only speed left out."""
        return canonical(self)

    def fingerprint(self, bundle: str = "") -> str:
        """SHA-256 of the archive's hash (empty where the job was not submitted as one) and the canonical form."""
        text = json.dumps({"bundle": bundle, "job": self.canonical()}, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def worker_form(self) -> Any:
        """The canonical form less what only the server uses (evaluation): what another process rebuilds the job from.

        Raises:
          JobError: it holds what only lives in this process, as a lambda does.
        """
        form = self.canonical()
        del form["fields"]["evaluation"]
        faults = list(_local(form, "job"))
        if faults:
            raise JobError(faults)
        return form


def canonical(thing: Any) -> Any:
    """The canonical form of a job or of anything inside one; ConfigError for what has none."""
    if thing is None or isinstance(thing, bool | int | str):
        return thing
    if isinstance(thing, float):
        return {"$float": thing.hex()}
    if isinstance(thing, np.generic):
        return canonical(thing.item())
    if isinstance(thing, Tensors):
        return {"$tensors": {name: canonical(np.asarray(thing[name])) for name in thing}}
    if isinstance(thing, Dataset):
        return {"$dataset": {name: canonical(column) for name, column in thing.columns.items()}}
    if isinstance(thing, np.ndarray):
        raw = thing.tobytes() if thing.dtype.kind != "O" else repr(thing.tolist()).encode()
        return {"$array": hashlib.sha256(raw).hexdigest(), "shape": list(thing.shape), "dtype": str(thing.dtype)}
    if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        kept = [f for f in dataclasses.fields(thing) if f.init and not f.metadata.get("speed")]
        given = {f.name: getattr(thing, f.name) for f in kept}
        if isinstance(thing, Job):
            given.pop("cohort")  # `sampling` says it
        return {"$type": _name(type(thing)), "fields": {name: canonical(value) for name, value in given.items()}}
    if isinstance(thing, functools.partial):
        return {"$partial": canonical(thing.func), "args": canonical(thing.args), "keywords": canonical(thing.keywords)}
    if isinstance(thing, Mapping):
        return {
            "$mapping": [
                [canonical(key), canonical(value)] for key, value in sorted(thing.items(), key=lambda kv: str(kv[0]))
            ]
        }
    if isinstance(thing, tuple | list | set | frozenset):
        items = sorted(thing, key=str) if isinstance(thing, set | frozenset) else thing
        return {"$sequence": [canonical(item) for item in items]}
    if callable(thing):
        return {"$name": _name(thing)}
    raise ConfigError(
        f"a job cannot hold a {type(thing).__name__}: use numbers, strings, frozen dataclasses and named functions."
    )


def rebuild(form: Any) -> Any:
    """The opposite of `canonical`, importing types and callables by name; fields left out take their defaults.

    Raises:
      ConfigError: the form holds what only lives in its own process (a lambda, an array), or a name that is not there.
    """
    if not isinstance(form, dict):
        return form
    if "$float" in form:
        return float.fromhex(form["$float"])
    if "$name" in form:
        return named(form["$name"])
    if "$type" in form:
        return named(form["$type"])(**{name: rebuild(value) for name, value in form["fields"].items()})
    if "$sequence" in form:
        return tuple(rebuild(item) for item in form["$sequence"])
    if "$mapping" in form:
        return {rebuild(key): rebuild(value) for key, value in form["$mapping"]}
    if "$partial" in form:
        return functools.partial(rebuild(form["$partial"]), *rebuild(form["args"]), **rebuild(form["keywords"]))
    if "$tensors" in form and not form["$tensors"]:
        return Tensors()
    raise ConfigError(f"{next(_local(form, 'job'), 'this form')}")


def named(name: str) -> Any:
    """The object that `module:qualname` names; ConfigError if it is not there."""
    module, _, path = name.partition(":")
    try:
        return functools.reduce(getattr, path.split("."), importlib.import_module(module))
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"'{name}' cannot be imported here: {error}.") from error


def _name(thing: Any) -> str:
    # Python's spawned children call the parent's main module __mp_main__.
    module = "__main__" if thing.__module__ == "__mp_main__" else thing.__module__
    owner = getattr(thing, "__self__", None)
    if not hasattr(thing, "__qualname__") or not (owner is None or isinstance(owner, type | ModuleType)):
        return f"{module}:{type(owner or thing).__qualname__}.<instance>"  # its own state cannot be named
    return f"{module}:{thing.__qualname__}"


def _local(form: Any, where: str) -> Iterator[str]:
    """Why a canonical form cannot be rebuilt elsewhere."""
    if isinstance(form, Sequence) and not isinstance(form, str):
        for i, item in enumerate(form):
            yield from _local(item, f"{where}[{i}]")
    elif isinstance(form, dict):
        name = form.get("$name") or form.get("$type")
        if isinstance(name, str) and "<" in name:
            yield f"{where} is '{name}', which lives in this process alone: define it at the top of a module."
        if "$array" in form:
            yield f"{where} is an array, which a job cannot carry to another process: give a function that loads it."
        for key, value in form.items():
            if key not in ("$name", "$type"):
                yield from _local(value, where if key.startswith("$") or key == "fields" else f"{where}.{key}")


def override(job: Job, settings: Mapping[str, str]) -> Job:
    """A job with some fields changed from text, as in `{"rounds": "50", "algorithm.work.lr": "0.1"}`.

    Raises:
      ConfigError: a key names no field (the message lists those there are), or a value is no JSON of its type.
    """
    for key, text in settings.items():
        job = _set(job, key.split("."), key, text)
    return job


def _set(thing: Any, path: Sequence[str], key: str, text: str) -> Any:
    fields = {f.name: f for f in dataclasses.fields(thing)} if dataclasses.is_dataclass(thing) else {}
    if path[0] not in fields:
        raise ConfigError(
            f"unknown key '{key}': {type(thing).__name__} has {', '.join(sorted(fields)) or 'no fields'}."
        )
    old = getattr(thing, path[0])
    if len(path) > 1:
        new = _set(old, path[1:], key, text)
    else:
        try:
            new = json.loads(text) if not isinstance(old, str) else text
        except ValueError:
            new = text
        if isinstance(old, float) and isinstance(new, int) and not isinstance(new, bool):
            new = float(new)
        if isinstance(old, tuple) and isinstance(new, list):
            new = tuple(new)
        if old is not None and new is not None and type(new) is not type(old):
            raise ConfigError(f"{key}={text}: a {type(old).__name__} is expected, as in {old!r}.")
    changes = {path[0]: new}
    if isinstance(thing, Job) and path[0] == "cohort":
        changes["sampling"] = None
    elif isinstance(thing, Job) and thing.cohort is not None and path[0] != "sampling":
        changes["sampling"] = None  # `cohort` makes it again
    elif isinstance(thing, Job) and path[0] == "sampling":
        changes["cohort"] = None
    try:
        return dataclasses.replace(thing, **changes)
    except HansaError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{key}={text}: {error}") from error
