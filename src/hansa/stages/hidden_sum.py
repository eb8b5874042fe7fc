"""What sums have in common of which the server sees the total alone: secure, homomorphic, and by computing parties.

    bind         ► how large a total can be, which must be known before a contribution can be hidden in it
    server       ═ for each leg:  take(message) … take(message)   close(survivors) ► what each is told next
    afterwards   ► total()

A message that breaks the protocol puts its sender out, and nobody else.
"""

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

import numpy as np

from hansa.core.errors import ConfigError, HansaError, ProtocolError
from hansa.core.pipeline import Arrived, Closed, Reducer, Seat, Server, Setting, Signal
from hansa.core.tensors import Tensors

NOTHING = Tensors({"none": np.zeros(0, np.uint8)})


class Aggregator(ABC):
    """The server's half of one conversation: what it has been told so far."""

    @abstractmethod
    def take(self, leg: int, client: str, message: Tensors) -> None:
        """A client's message of this leg; HansaError if it must not count."""

    @abstractmethod
    def close(self, leg: int, survivors: Sequence[str]) -> Mapping[str, Tensors]:
        """What each survivor is told next, nothing after the last leg; SecretRoundVoid if the round cannot go on."""

    @abstractmethod
    def total(self) -> Tensors:
        """The sum of what was counted; SecretRoundVoid if it cannot be had."""


class HiddenSum(Reducer):
    """A reducer that adds integers it does not see, once it is bound to a signal."""

    sees: ClassVar[str] = "total"

    def faults(self, signal: Signal, setting: Setting) -> Iterator[str]:
        """What no such sum can add, and cohorts too small to hide in."""
        name = type(self).__name__
        for part in signal.averaged:
            if signal.parts[part].domain != "integer":
                yield (
                    f"{name} adds integers, and '{part}' is real: put Clip(...) and Quantise(bits=16) before it"
                    + ("; buffers: make them FROZEN, or use group norm." if part == "buffers" else ".")
                )
        if setting.cohort < 3:
            yield f"{name} over {setting.cohort:g} clients hides nobody: ask at least 3 a round."
        if setting.sampling.max_staleness:
            yield f"{name} needs rounds that begin together: set max_staleness=0."

    @abstractmethod
    def bind(self, signal: Signal, setting: Setting) -> Reducer:
        """The reducer that has an aggregator; JobError with all `faults`."""

    def aggregator(self, cohort: Sequence[str], seat: Seat) -> Aggregator:
        """The server's half for this cohort; the bound reducer's."""
        raise ConfigError(f"{type(self).__name__} must be bound to a signal before it adds: use it in a pipeline.")

    def server(self, cohort: Sequence[str], seat: Seat) -> Server:
        """Carries messages to the aggregator, and its answers back."""
        return _served(self.aggregator(cohort, seat), self.legs)


def _served(aggregator: Aggregator, legs: int) -> Server:
    answers: Mapping[str, Tensors] | str | None = None
    for leg in range(legs):
        while isinstance(event := (yield answers), Arrived):
            try:
                aggregator.take(leg, event.client, event.message)
                answers = None
            except HansaError as error:
                answers = str(error)
        assert isinstance(event, Closed)
        answers = aggregator.close(leg, event.survivors)
    return aggregator.total()


def fewest_clients(setting: Setting) -> int:
    """How many clients hide each other in every round of a job, at least: 3, or more where its sampling promises it."""
    who, expected = setting.sampling, setting.cohort
    if who.quorum is not None:
        return max(3, who.quorum)
    if who.kind == "poisson":  # fewer come with a probability below 10⁻²⁰: Chernoff's bound is exp(−t² / 2m)
        return max(3, math.ceil(expected - 10 * math.sqrt(expected)))
    return max(3, math.floor(expected)) if who.kind == "fixed" else 3


# -- what messages hold


def as_array(raw: bytes) -> np.ndarray:
    """Bytes as they travel: uint8."""
    return np.frombuffer(raw, np.uint8)


def array_of(message: Tensors, name: str, dimensions: int) -> np.ndarray:
    """An array of a message; ProtocolError if it is missing or has another number of dimensions."""
    if name not in message or np.ndim(message[name]) != dimensions:
        raise ProtocolError(f"a message of the secure sum lacks '{name}', or it is misshapen.")
    return np.asarray(message[name])


def bytes_of(message: Tensors, name: str) -> bytes:
    """The bytes that `as_array` made an array of."""
    array = array_of(message, name, 1)
    if array.dtype != np.uint8:
        raise ProtocolError(f"'{name}' of a secure sum is no bytes.")
    return array.tobytes()


def as_names(names: Sequence[str]) -> np.ndarray:
    """Names of parties as they travel: uint8."""
    return as_array(json.dumps(list(names)).encode())


def names_of(message: Tensors) -> tuple[str, ...]:
    """Those that `as_names` made an array of, under `names`."""
    try:
        names = json.loads(bytes_of(message, "names"))
    except (ValueError, RecursionError):
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ProtocolError("a message of a secure sum names nobody.")
    return tuple(names)


def bytes_by_place(message: Tensors, prefix: str) -> dict[int, bytes]:
    """All that lies under a prefix, where names are the places of clients in a roster."""
    part = message.part(prefix)
    if not all(name.isdecimal() for name in part):
        raise ProtocolError(f"'{prefix}' of a secure sum names no places.")
    return {int(name): bytes_of(part, name) for name in part}
