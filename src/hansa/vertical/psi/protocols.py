"""The protocols by name: how each is run, for how many owners, and what it shows to whom."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from hansa.core.errors import ConfigError, require
from hansa.vertical.learns import Learns
from hansa.vertical.psi import coordinator, ecdh, fast, many
from hansa.vertical.psi.tags import Match
from hansa.vertical.psi.terms import Terms


@dataclass(frozen=True)
class Protocol:
    """One way to intersect.

    Args:
      title: in words.
      run: one owner's side, of one bucket: session, digests, sizes, and `workers`, `progress` and `entropy` by name.
      most: owners at most; None: any number.
      coordinated: whether a further party without a set takes part.
      extra: what else a party learns, by its role (`owner`, `coordinator`).
    """

    title: str
    run: Callable[..., Match | None]
    most: int | None = 2
    coordinated: bool = False
    extra: Mapping[str, str] | None = None

    def check(self, terms: Terms) -> None:
        """ConfigError unless the parties fit."""
        count, name = len(terms.owners), terms.protocol
        fits = self.most is None or count <= self.most
        require(fits, f"protocol='{name}' is for {self.most} owners, not {count}: choose many or coordinator.")
        fault = f"protocol='{name}' needs a coordinator: name a party that has no set."
        require(not self.coordinated or bool(terms.helper), fault)
        fault = f"protocol='{name}' has no coordinator, and '{terms.helper}' would be one: choose coordinator."
        require(self.coordinated or not terms.helper, fault)

    def learns(self, terms: Terms) -> Learns:
        """What each party learns, in words."""
        said: dict[str, list[str]] = {}
        for owner in terms.owners:
            names = [f"'{name}'" for name in terms.owners if name != owner]
            others, plural = " and ".join(names), len(names) > 1
            enter, have = ("each enter", "all of {} have") if plural else ("enters", "{} has")
            said[owner] = [f"how many keys {others} {enter}, at most {terms.cap:,}"]
            if owner in terms.learns:
                said[owner].append(f"which of its own keys {have.format(others)}, too; of no other key who has it")
            if self.extra and "owner" in self.extra:
                said[owner].append(self.extra["owner"])
        if terms.helper:
            said[terms.helper] = [f"how many keys each owner enters, at most {terms.cap:,}"]
            if self.extra and "coordinator" in self.extra:
                said[terms.helper].append(self.extra["coordinator"])
        return said


_OF_COORDINATOR = {"coordinator": "how many keys each group of owners shares, but not which"}
_OF_MANY = {"owner": "nothing of what some of the owners alone share"}
PROTOCOLS: Mapping[str, Protocol] = {
    "ecdh": Protocol("Private set intersection by Diffie–Hellman", ecdh.intersect),
    "fast": Protocol("Private set intersection by oblivious transfer", fast.intersect),
    "coordinator": Protocol(
        "Private set intersection with a coordinator", coordinator.intersect, None, True, _OF_COORDINATOR
    ),
    "many": Protocol("Private set intersection of many owners", many.intersect, None, False, _OF_MANY),
}


def protocol(name: str) -> Protocol:
    """The protocol of a name; ConfigError if there is none."""
    if name not in PROTOCOLS:
        raise ConfigError(f"protocol='{name}' does not exist: choose from {', '.join(PROTOCOLS)}.")
    return PROTOCOLS[name]
