"""What was released about a population, and by which mechanism.

A ledger is append-only. It holds facts, not costs: what they cost in privacy is computed by `hansa.privacy`, which
gives no ε at all for an event it does not know, never a wrong one.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from hansa.core.errors import CorruptFile


@dataclass(frozen=True, kw_only=True)
class Event:
    """One release.

    Args:
      mechanism: `gaussian`, or any other name that `hansa.privacy` may know.
      noise_multiplier: standard deviation of the noise over the L2 sensitivity of what was released.
      sampling: `poisson` (each client with probability `rate`), `fixed` (`rate` = cohort / population, without
        replacement) or `none`, where membership gives no amplification.
      rate: probability of being in the round, in (0, 1]; 1 for `none`.
      detail: anything a reader of an unknown mechanism would need, as text.
    """

    mechanism: str
    noise_multiplier: float
    sampling: str = "none"
    rate: float = 1.0
    detail: str = ""


EXACT = Event(mechanism="exact total", noise_multiplier=0.0)  # opened without noise: it has no ε


@dataclass(frozen=True)
class Entry:
    """An event and the attempt at a round that released it, or was charged for it."""

    round: int
    attempt: int
    event: Event


@dataclass(frozen=True)
class Ledger:
    """An append-only sequence of entries; adding gives a new ledger.

    >>> ledger = Ledger().add(0, 0, [Event(mechanism="gaussian", noise_multiplier=1.0)])
    >>> len(ledger), ledger.attempts(0), ledger.attempts(1)
    (1, 1, 0)
    """

    entries: tuple[Entry, ...] = ()

    def add(self, round: int, attempt: int, events: Iterable[Event]) -> "Ledger":
        """This ledger with the events of one attempt appended."""
        return Ledger(self.entries + tuple(Entry(round, attempt, event) for event in events))

    def attempts(self, round: int) -> int:
        """How many attempts at this round are charged already: the next attempt has this number."""
        return max((entry.attempt + 1 for entry in self.entries if entry.round == round), default=0)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def to_json(self) -> list[Any]:
        """Lists and dictionaries that `from_json` reads."""
        # Most rounds release the same: each event is written once, so that 10⁴ rounds stay cheap in every checkpoint.
        events = list(dict.fromkeys(entry.event for entry in self.entries))
        place = {event: index for index, event in enumerate(events)}
        return [[vars(event) for event in events], [[e.round, e.attempt, place[e.event]] for e in self.entries]]

    @staticmethod
    def from_json(entries: list[Any]) -> "Ledger":
        """The ledger that `to_json` wrote."""
        try:
            events = [Event(**event) for event in entries[0]]
            return Ledger(tuple(Entry(int(r), int(a), events[place]) for r, a, place in entries[1]))
        except (LookupError, TypeError, ValueError) as error:
            raise CorruptFile(f"the ledger is unreadable: {error!r}.") from None
