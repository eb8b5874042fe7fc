"""Turns: clients in fixed groups that take part one after another, so that nobody is in two rounds that are close."""

import hashlib
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, field, replace

from hansa.core.errors import require
from hansa.core.sampling import Fixed, Stream


@dataclass(frozen=True)
class Turns(Fixed):
    """Round r draws `clients` of group r mod `groups`; a client's group is a hash of its id, whoever else takes part.

    Between two participations of a client there are `groups` rounds at least: the separation that correlated noise
    (`MatrixNoise`, `TreeNoise`) needs, without a random sample that would have to stay secret.

    Args:
      groups: how many; some population / groups clients are in each. One that has fewer than `clients` is asked whole.
      turn: the group that is drawn; set for each round by `at`.

    Raises:
      ConfigError: a value is out of its range, or staleness would let a client be in a later round than its own.
    """

    groups: int = field(default=1, kw_only=True)
    turn: int = field(default=0, kw_only=True)
    kind = "turns"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.groups >= 1, f"groups={self.groups}: at least one group takes turns.")
        require(not self.max_staleness, f"max_staleness={self.max_staleness} with Turns: a late update breaks turns.")

    def at(self, round: int) -> "Turns":
        """What draws of that round's group alone."""
        return replace(self, turn=round % self.groups)

    def draw(self, population: Sequence[str], stream: Stream, busy: Set[str] = frozenset()) -> list[str]:
        """As `Fixed`, of the group whose turn it is."""
        group = [name for name in population if group_of(name, self.groups) == self.turn]
        return super().draw(group, stream, busy & set(group))

    def faults(self, population: int) -> Iterator[str]:
        """Groups that are mostly too small."""
        yield from super().faults(population)
        if self.clients > population / self.groups:
            yield (
                f"clients={self.clients} of each of {self.groups} groups, but {population} clients make groups of "
                f"{population / self.groups:.3g}: lower clients or groups."
            )


def group_of(name: str, groups: int) -> int:
    """The group of a client: the same on every machine."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little") % groups
