"""Liars among the clients: they know everything that the others send, and send what they like.

    job = replace(job, pipeline=Pipeline(stages, Adversary(Krum(2), liars=("c3", "c7"), attack=SignFlip())))

What a liar would have sent and what the others do send is collected first; then the attack forges the liars' messages,
behind every stage (a liar leaves `Clip` out), and the real reducer gets them all in task order. That is the strongest
adversary of the literature, with every honest update before it, and needs no changed worker.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hansa.core.errors import ConfigError
from hansa.core.pipeline import Arrived, Reducer, Seat, Sensitivity, Server, Setting, Signal
from hansa.core.sampling import Stream
from hansa.core.tensors import Tensors


class Attack(ABC):
    """What liars send; subclasses are frozen dataclasses."""

    @abstractmethod
    def forge(self, own: Sequence[Tensors], others: Sequence[Tensors], rng: np.random.Generator) -> list[Tensors]:
        """The liars' messages.

        Args:
          own: what each liar would have sent, were it honest: flat parts.
          others: what the honest send.
          rng: of this round.

        Returns:
          As many as `own`, of its names, shapes and dtypes; see `altered`.
        """


@dataclass(frozen=True)
class Adversary(Reducer):
    """A reducer some of whose clients lie.

    Args:
      inner: the real reducer; it sees each contribution, in one leg.
      liars: their ids; those who are not in a round do nothing in it.
      attack: what they send.
      seed: of the attack's randomness.

    Raises:
      ConfigError: the real reducer hides contributions, so that nobody could forge them knowing the others'.
    """

    inner: Reducer
    liars: Sequence[str]
    attack: Attack
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "liars", tuple(self.liars))
        if self.inner.legs != 1 or self.inner.sees != "each":
            raise ConfigError(
                f"{self.inner} hides what clients send, also from liars: attack a reducer that sees each."
            )

    def bind(self, signal: Signal, setting: Setting) -> "Adversary":
        """The real reducer, bound, behind the same liars."""
        return replace(self, inner=self.inner.bind(signal, setting) or self.inner)

    def settle(self, signal: Signal, setting: Setting) -> Sensitivity:
        """As the real reducer says, who knows of no liars."""
        return self.inner.settle(signal, setting)

    def wire(self, signal: Signal, setting: Setting) -> Signal:
        """As the real reducer's."""
        return self.inner.wire(signal, setting)

    def server(self, cohort: Sequence[str], seat: Seat) -> Server:
        """Forges when all have sent; then the real reducer's conversation."""
        events: list[Arrived] = []
        while isinstance(event := (yield None), Arrived):
            events.append(event)
        real = self.inner.server(cohort, seat)
        next(real)
        for arrived in self._forged(events, seat):
            real.send(arrived)
        try:
            real.send(event)
        except StopIteration as end:
            total: Tensors = end.value
            return total
        raise AssertionError("a reducer of one leg ends when it is closed")

    def _forged(self, events: Sequence[Arrived], seat: Seat) -> list[Arrived]:
        lying = [event.client in self.liars and "value" in event.message.parts for event in events]
        own = [event.message for event, lies in zip(events, lying, strict=True) if lies]
        others = [event.message for event, lies in zip(events, lying, strict=True) if not lies]
        if not own:
            return list(events)
        rng = np.random.default_rng(Stream("attack", self.seed, seat.context).seed())
        forged = iter(self.attack.forge(own, others, rng))
        return [
            replace(event, message=next(forged)) if lies else event for event, lies in zip(events, lying, strict=True)
        ]


def altered(message: Tensors, change: Callable[[str, np.ndarray], np.ndarray]) -> Tensors:
    """A message whose averaged tensors are what `change(name, array)` gives, in float64; metrics stay.

    It comes back in the tensors' own types: integers are rounded, and cut to what they can hold.
    """
    changed = {}
    for name, (_, dtype) in message.shapes.items():
        if name.split("/", 1)[0] not in ("metric", "weight"):
            array = change(name, np.asarray(message[name], np.float64))
            if np.dtype(dtype).kind != "f":
                array = np.clip(np.rint(array), np.iinfo(dtype).min, np.iinfo(dtype).max)
            changed[name] = np.asarray(array, dtype)
    return message.updated(changed)
