"""What happens between a worker's update and the server's mean: stages, one reducer, and their binding.

    worker   encode   clip → mean → noise → quantise   ──►  Reducer  ──►  server
    server   decode   divide ← add noise ← dequantise  ◄──  total

`Pipeline.bind` runs before any data, in two passes. Forward: each stage reads the `Signal` (shapes, domain, bounds of
every part) and says what it makes of it. Backward: the sensitivity of the decoded total is carried from the reducer to
the stage that adds noise, through every later stage, since quantisation widens it. Nobody types the clip norm twice.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

import numpy as np

from hansa.core.algorithm import Algorithm
from hansa.core.errors import ConfigError, JobError
from hansa.core.ledger import Event
from hansa.core.sampling import Sampling, Stream
from hansa.core.tensors import EMPTY, Shapes, Tensors, mismatch


@dataclass(frozen=True, kw_only=True)
class Part:
    """What is known, before data, of one part of one contribution.

    Args:
      shapes: names (without the part's prefix), shapes and dtypes.
      domain: `real`, `integer` or `bytes` (of which a message may have fewer than its shape says).
      additive: False if contributions cannot be added before they are decoded one by one.
      modulus: of integers that wrap; None if they do not.
      bits: per coordinate on the wire.
      l2, linf: bounds on the norms of one contribution; inf where nothing is promised.
    """

    shapes: Shapes
    domain: str = "real"
    additive: bool = True
    modulus: int | None = None
    bits: float = 32.0
    l2: float = math.inf
    linf: float = math.inf

    @property
    def count(self) -> int:
        """Coordinates."""
        return sum(math.prod(shape) for shape, _ in self.shapes.values())


@dataclass(frozen=True)
class Signal:
    """All parts of one contribution, by name: `value`, `buffers`, `weight`, `metric`, and side values.

    `divided` is true behind the mean stage, which scaled the parts and says what their total is divided by.
    """

    parts: Mapping[str, Part]
    divided: bool = False

    def with_(self, **parts: Part) -> "Signal":
        """This signal with parts added or replaced."""
        return Signal({**self.parts, **parts}, self.divided)

    def without(self, *names: str) -> "Signal":
        """This signal with parts left out."""
        return Signal({name: part for name, part in self.parts.items() if name not in names}, self.divided)

    @property
    def shapes(self) -> Shapes:
        """Flat names to shapes, as a message has them."""
        return {
            f"{part}/{name}": shape for part in sorted(self.parts) for name, shape in self.parts[part].shapes.items()
        }

    @property
    def averaged(self) -> tuple[str, ...]:
        """The parts that a mean is taken of: all but the weight and the metrics."""
        return tuple(name for name in self.parts if name not in ("weight", "metric"))


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What stages and reducers may ask about the job they are bound in."""

    sampling: Sampling
    algorithm: Algorithm
    population: int
    sees: str = "each"  # the reducer's word
    kind: str = "train"  # of the rounds: those that carry metrics alone may ask everybody

    @property
    def cohort(self) -> float:
        """The expected number of contributions."""
        return self.sampling.expected(self.population)

    @property
    def most(self) -> int:
        """The number of contributions that no round exceeds."""
        if self.sampling.kind == "poisson" or self.kind in ("evaluate", "query"):
            return self.population
        return min(self.population, math.ceil(self.cohort * (1 + self.sampling.over_select)))


@dataclass(frozen=True)
class Decoding:
    """What a stage may know when it decodes: contributions counted and expected, and the server's protective streams.

    Those of `secret` are new in every attempt at every round; those of `run` are the same throughout a run, for noise
    that is correlated over rounds.
    """

    count: int
    expected: float
    secret: Callable[[str], Stream]
    run: Callable[[str], Stream] = Stream


Sensitivity = Mapping[str, float]  # part -> L2 norm by which one client can change the total


class Step(ABC):
    """A bound stage. `out` is the signal after it; every array that `encode` sees has a leading client axis.

    The defaults are those of a stage that changes nothing: override what the stage does.
    """

    error: Mapping[str, float] = MappingProxyType({})
    """Part -> the most by which one coordinate of one contribution, encoded and decoded, differs from the stage's
    plaintext reference, beside float rounding; 0 where not named."""

    def __init__(self, out: Signal) -> None:
        self.out = out

    def settle(self, sensitivity: Sensitivity) -> Sensitivity:
        """Second pass: from the sensitivity of what `decode_total` is given to that of what it returns."""
        return sensitivity

    def start(self) -> Tensors:
        """Public state before the first round, sent to workers with each task."""
        return EMPTY

    def encode(
        self, x: Tensors, state: Tensors, memory: Tensors, rngs: Sequence[np.random.Generator]
    ) -> tuple[Tensors, Tensors]:
        """K contributions, stacked, as they go on; and the worker's memory after them.

        Args:
          x: flat parts, each array of shape (K, ...).
          state: this stage's public state.
          memory: arrays of shape (K, ...), empty at first.
          rngs: one generator for each contribution, from the job's seed.
        """
        return x, memory

    def decode_one(self, x: Tensors, state: Tensors) -> Tensors:
        """One contribution before the reducer adds it; only asked of stages from the first non-additive one on."""
        return x

    def decode_total(self, total: Tensors, state: Tensors, round: Decoding) -> tuple[Tensors, Tensors]:
        """The total as it was before this stage encoded, and the next public state. May reuse the total's memory."""
        return total, state

    def events(self) -> tuple[Event, ...]:
        """What one round releases, for the ledger."""
        return ()


class Stage(ABC):
    """A step of the pipeline as the user writes it: a frozen dataclass that is bound to a signal.

    Law: a whole pipeline equals its stages' plaintext reference within their declared error.
    """

    remembers: ClassVar[bool] = False
    """True if it keeps memory at the worker, which stale updates would corrupt."""
    alone: ClassVar[bool] = True
    """True if `decode_one` can undo it for a single contribution."""

    @abstractmethod
    def bind(self, signal: Signal, setting: Setting) -> Step:
        """The step for this signal; JobError with remedies if it has no meaning here."""


# -- the reducer's conversation


@dataclass(frozen=True)
class Arrived:
    """A client's message of one leg, in task order. `discount` is 1 but for stale updates."""

    client: str
    leg: int
    message: Tensors
    discount: float = 1.0


@dataclass(frozen=True)
class Closed:
    """A leg is over; `survivors` answered it, in task order."""

    leg: int
    survivors: tuple[str, ...]


Server = Generator[Mapping[str, Tensors] | str | None, Arrived | Closed, Tensors]
Worker = Generator[Tensors, Tensors, None]


@dataclass(frozen=True)
class Seat:
    """A party's place in one conversation: how it proves who it is, and what it never does twice.

    This one is of a runtime without identities, which carries plain sums alone; others override all methods.

    Args:
      name: the party's id.
      context: bytes that no other conversation shares: run, kind, round and attempt.
    """

    name: str
    context: bytes

    def sign(self, message: bytes) -> bytes:
        """A signature, with what others need to verify it, that holds for this message in this context alone."""
        raise ConfigError("this runtime knows no identities, which this reducer needs: use Sum(), or another runtime.")

    def verify(self, name: str, message: bytes, signature: bytes) -> None:
        """IdentityError unless the party of this name signed this message in this context."""
        self.sign(message)

    def once(self, what: str, value: bytes) -> None:
        """Records durably; SecretRoundVoid if another value was recorded under this name in this context before."""
        self.sign(value)

    def entropy(self, count: int) -> bytes:
        """Bytes from the operating system; never from the job's seed."""
        return self.sign(b"")


class Reducer(ABC):
    """The only place where contributions meet: a sans-IO generator for each role.

    The server's is sent one event at a time, never blocks, and returns the undecoded total. It answers an `Arrived`
    with None, or with the reason why that message is rejected and its sender out; and a `Closed` that is not the last
    with the messages of the next leg, or raises SecretRoundVoid. The worker's yields one message a leg and is sent what
    the server answers. Memory does not grow with the cohort. Drop-outs at any leg are part of the contract.
    """

    legs: ClassVar[int] = 1
    counted: ClassVar[int] = 0
    """The leg whose answers are in the total; before the last leg if there are more. Who drops out after it is counted
    all the same, and keeps the memory of its last whole task."""
    helpers: Sequence[str] = ()
    """Parties without data that take part in every conversation, by name; they are never sampled."""
    sees: ClassVar[str] = "each"
    """`each` if the server sees single contributions, `total` if only their sum."""

    def bind(self, signal: Signal, setting: Setting) -> "Reducer | None":
        """The reducer of this signal, where it must know it; None for itself. JobError if it cannot be reduced."""
        return None

    def settle(self, signal: Signal, setting: Setting) -> Sensitivity:
        """The L2 norm by which one client can change each part of the total; more than its own where adding rounds."""
        return {name: part.l2 for name, part in signal.parts.items()}

    def wire(self, signal: Signal, setting: Setting) -> Signal:
        """What a message of the counted leg has."""
        return signal

    def worker(self, message: Tensors, seat: Seat) -> Worker:
        """The worker's side; one leg that just sends, unless overridden."""
        yield message

    def helper(self, seat: Seat) -> Worker:
        """A helper's side."""
        raise ConfigError(f"'{seat.name}' was asked to help {type(self).__name__}, which needs no helper.")

    @abstractmethod
    def server(self, cohort: Sequence[str], seat: Seat) -> Server:
        """The server's side for this cohort, helpers apart; the total owns its arrays."""


# -- the whole


@dataclass(frozen=True)
class Pipeline:
    """Stages, applied left to right by workers and undone right to left by the server, around one reducer.

    A pipeline downwards (server to workers) has stages alone.
    """

    stages: Sequence[Stage] = ()
    reducer: Reducer | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", tuple(self.stages))

    def bind(self, signal: Signal, setting: Setting) -> "Bound":
        """Both passes; JobError that lists every fault found."""
        faults: list[str] = []
        steps: list[Step] = []
        signals = [signal]
        for stage in self.stages:
            try:
                step = stage.bind(signal, setting)
                steps.append(step)
                signals.append(signal := step.out)
            except JobError as error:
                faults += error.faults
            if stage.remembers and setting.sampling.max_staleness:
                name = type(stage).__name__
                faults.append(f"{name} keeps memory at the worker, which stale updates corrupt: set max_staleness=0.")
        faults += self._order_faults(steps, setting)
        reducer = self.reducer
        if reducer is not None:
            try:
                reducer = reducer.bind(signal, setting) or reducer
            except JobError as error:
                faults += error.faults
        if faults:
            raise JobError(faults)
        sensitivity: Sensitivity = {} if reducer is None else reducer.settle(signal, setting)
        for step in reversed(steps):
            sensitivity = step.settle(sensitivity)
        wire = signal if reducer is None else reducer.wire(signal, setting)
        return Bound(tuple(steps), reducer, wire, signals[_first_alone(steps)].shapes)

    def _order_faults(self, steps: Sequence[Step], setting: Setting) -> Iterator[str]:
        first, kind, algorithm = _first_alone(steps), type(self.reducer).__name__, type(setting.algorithm).__name__
        hidden = self.reducer is not None and self.reducer.sees == "total"
        if first < len(steps) and self.reducer is not None:
            name = type(self.stages[first]).__name__
            if hidden:
                yield f"{name} cannot be added up, and {kind} sees only the total: leave {name} out, or use Sum()."
            for later in self.stages[first + 1 :]:
                if not later.alone:
                    yield f"{type(later).__name__} after {name} cannot be undone for one contribution: put {name} last."
        if setting.algorithm.discounts and hidden:
            yield f"{algorithm} discounts stale updates one by one, but {kind} sees only their total: use Sum()."


@dataclass(frozen=True)
class Bound:
    """A pipeline bound to a signal: what both ends run. `signal` is what a message on the wire has."""

    steps: tuple[Step, ...]
    reducer: Reducer | None
    signal: Signal
    summed: Shapes
    """Names, shapes and dtypes of what the reducer adds up: the signal before the first non-additive stage."""

    def start(self) -> Tensors:
        """Public state of all stages before the first round, under `0/`, `1/`, ..."""
        return Tensors.join(**{str(i): step.start() for i, step in enumerate(self.steps)})

    def encode(
        self, x: Tensors, state: Tensors, memory: Tensors, rngs: Sequence[np.random.Generator]
    ) -> tuple[Tensors, Tensors]:
        """All stages, left to right, on stacked contributions; and the memories after them."""
        memories: dict[str, Tensors] = {}
        for i, step in enumerate(self.steps):
            x, memories[str(i)] = step.encode(x, state.part(str(i)), memory.part(str(i)), rngs)
        return x, Tensors.join(**memories)

    def admit(self, message: Tensors, client: str) -> None:
        """TensorMismatch unless a message has exactly the names, shapes and dtypes that were bound; bytes may be
        fewer than bound.
        """
        bound, given = self.signal.shapes, dict(message.shapes)
        for name in given.keys() & bound.keys():
            (shape, dtype), most = given[name], bound[name][0]
            loose = self.signal.parts[name.split("/", 1)[0]].domain == "bytes" and dtype == bound[name][1]
            if loose and len(shape) == 1 == len(most) and shape[0] <= most[0]:
                given[name] = bound[name]
        mismatch(bound, given, f"the message of '{client}'", dtypes=True)

    def decode_one(self, message: Tensors, state: Tensors) -> Tensors:
        """Undoes the stages from the first non-additive one on, for one contribution."""
        for i in range(len(self.steps) - 1, _first_alone(self.steps) - 1, -1):
            message = self.steps[i].decode_one(message, state.part(str(i)))
        return message

    def decode_total(self, total: Tensors, state: Tensors, round: Decoding) -> tuple[Tensors, Tensors]:
        """Undoes the stages before it for the total, right to left; and the next public state."""
        states = {str(i): state.part(str(i)) for i in range(len(self.steps))}
        for i in range(_first_alone(self.steps) - 1, -1, -1):
            total, states[str(i)] = self.steps[i].decode_total(total, states[str(i)], round)
        return total, Tensors.join(**states)

    def events(self) -> tuple[Event, ...]:
        """What one round of this pipeline releases."""
        return tuple(event for step in self.steps for event in step.events())

    def bits(self) -> float:
        """Declared size of one message without its header."""
        return sum(part.bits * part.count for part in self.signal.parts.values())


def _first_alone(steps: Sequence[Step]) -> int:
    for i, step in enumerate(steps):
        if not all(part.additive for part in step.out.parts.values()):
            return i
    return len(steps)


def fault(*faults: str) -> JobError:
    """A JobError for `bind` to raise."""
    return JobError(faults)
