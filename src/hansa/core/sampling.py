"""Who is asked in a round, how many answers suffice, and how long to wait.

A deadline, or asking more than are needed, lets the fastest decide who is in: the round then gives no privacy
amplification, and is accounted with rate 1.
"""

import bisect
import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, field

import numpy as np

from hansa.core.errors import require


@dataclass(frozen=True)
class Sampling(ABC):
    """The part that every way of sampling shares.

    Args:
      quorum: answers that suffice; None means all that were asked. With a deadline: fewer by then and the round is void
        and tried again. With `max_staleness`: the round closes as soon as they are here (buffered, asynchronous).
      over_select: asks this fraction more than needed and takes the first to answer.
      deadline_s: seconds until a round is closed; None waits, and says for whom.
      max_staleness: versions by which an update may be late and still count; 0 is synchronous.
    """

    quorum: int | None = field(default=None, kw_only=True)
    over_select: float = field(default=0.0, kw_only=True)
    deadline_s: float | None = field(default=None, kw_only=True)
    max_staleness: int = field(default=0, kw_only=True)

    kind = ""

    def __post_init__(self) -> None:
        require(self.quorum is None or self.quorum >= 1, f"quorum={self.quorum}: at least one answer is needed.")
        share = f"over_select={self.over_select}: a fraction between 0 and 10, as in 0.3 for 30 % more."
        require(0 <= self.over_select <= 10, share)
        seconds = f"deadline_s={self.deadline_s}: a number of seconds above 0, or None to wait."
        require(self.deadline_s is None or self.deadline_s > 0, seconds)
        versions = f"max_staleness={self.max_staleness}: 0 for synchronous rounds, or more."
        require(self.max_staleness >= 0, versions)
        buffer = "max_staleness without quorum: say how many updates fill the buffer, as in quorum=10."
        require(not self.max_staleness or self.quorum is not None, buffer)

    @abstractmethod
    def expected(self, population: int) -> float:
        """The number of contributions to expect, before over-selection."""

    def at(self, round: int) -> "Sampling":
        """What draws this round; itself, unless clients take turns."""
        return self

    @abstractmethod
    def draw(self, population: Sequence[str], stream: "Stream", busy: Set[str] = frozenset()) -> list[str]:
        """The clients to ask, in the order of the population; `busy` ones still work on an older task."""

    def rate(self, population: int) -> float:
        """A client's probability of being in a round."""
        return min(1.0, self.expected(population) / max(1, population))

    @property
    def random_membership(self) -> bool:
        """True if chance alone, not speed, decides who is in."""
        return self.deadline_s is None and self.over_select == 0 and self.max_staleness == 0

    def enough(self, asked: int) -> int:
        """How many answers close a round at once, `asked` tasks being out; over-selected ones are not waited for."""
        return asked

    def faults(self, population: int) -> Iterator[str]:
        """What makes this sampling impossible for a population of that size."""
        expected = self.expected(population)
        if expected > population:
            yield f"cohort={expected:g} > {population} clients: lower cohort or add clients."
        if self.quorum is not None and self.quorum > max(1, expected):
            yield f"quorum={self.quorum} > cohort={expected:g}: lower quorum, or it can never be reached."


@dataclass(frozen=True)
class Fixed(Sampling):
    """`clients` of the population, drawn uniformly without replacement."""

    clients: int = 1
    kind = "fixed"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.clients >= 1, f"cohort={self.clients}: at least one client must be asked.")

    def expected(self, population: int) -> float:
        """`clients`."""
        return float(self.clients)

    def draw(self, population: Sequence[str], stream: "Stream", busy: Set[str] = frozenset()) -> list[str]:
        """Floyd's algorithm over the clients that are not busy: cost in the cohort, not in the population."""
        places = (bisect.bisect_left(population, name) for name in busy)
        taken = sorted(place for place in places if place < len(population) and population[place] in busy)
        free = len(population) - len(taken)
        wanted = min(free, max(0, math.ceil(self.clients * (1 + self.over_select)) - len(busy)))
        chosen: set[int] = set()
        for top in range(free - wanted, free):
            pick = stream.below(top + 1)
            chosen.add(top if pick in chosen else pick)
        names = []
        for free_index in sorted(chosen):
            index = free_index
            for place in taken:  # the index among all clients: busy ones before it shift it
                index += place <= index
            names.append(population[index])
        return names

    def enough(self, asked: int) -> int:
        """`clients`, or all that could be asked; the quorum where updates are buffered."""
        return min(asked, self.quorum if self.max_staleness and self.quorum else self.clients)


@dataclass(frozen=True)
class Poisson(Sampling):
    """Each client independently with probability `probability`: the sampling that DP accountants prefer."""

    probability: float = 1.0
    kind = "poisson"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.probability <= 1, f"probability={self.probability}: it lies in (0, 1].")
        neither = "Poisson sampling takes neither over_select nor max_staleness: use Fixed."
        require(not self.over_select and not self.max_staleness, neither)

    def expected(self, population: int) -> float:
        """Probability times population."""
        return self.probability * population

    def draw(self, population: Sequence[str], stream: "Stream", busy: Set[str] = frozenset()) -> list[str]:
        """One coin for each client, with 53 bits."""
        coins = stream.words(len(population)) >> np.uint64(11)
        return [population[index] for index in np.flatnonzero(coins < int(self.probability * (1 << 53))).tolist()]


class Stream:
    """Uniform integers from SHAKE-256 of a seed: reproducible from a job's seed, unpredictable from a secret one.

    Source: FIPS 202 (2015), https://doi.org/10.6028/NIST.FIPS.202
    """

    def __init__(self, *labels: str | int | bytes) -> None:
        # Each label is framed by its length, so that no two sequences of labels meet.
        texts = [label if isinstance(label, bytes) else str(label).encode() for label in labels]
        self._seed = b"".join(len(text).to_bytes(8, "little") + text for text in texts)
        self._words: list[int] = []
        self._block = 0

    def words(self, count: int) -> np.ndarray:
        """`count` times 64 uniform bits, in a block of their own."""
        self._block += 1
        raw = hashlib.shake_256(self._seed + (self._block - 1).to_bytes(8, "little")).digest(8 * count)
        return np.frombuffer(raw, "<u8").astype(np.uint64)

    def word(self) -> int:
        """64 uniform bits."""
        if not self._words:
            self._words = self.words(1024).tolist()
        return self._words.pop()

    def below(self, bound: int) -> int:
        """A uniform integer in [0, bound), by rejection."""
        limit = (1 << 64) - (1 << 64) % bound
        while (word := self.word()) >= limit:
            pass
        return word % bound

    def seed(self) -> int:
        """128 bits for a generator of another library."""
        return self.word() << 64 | self.word()
