"""What owners agree on before anything of their sets is sent, and what each learns: said in words, and accepted.

1  every field of the terms, as a hash          differs? the error names the field, on every side
2  the number of keys, and 32 random bytes      above the cap? refused on every side
3  the session's salt: SHA-256 over all random bytes, in the parties' order
"""

import hashlib
import json
import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TypeAlias

from hansa.core.errors import ConfigError, PolicyError, require
from hansa.core.runtime import Mesh
from hansa.runtimes.mesh.messages import sized
from hansa.vertical.learns import Learns, statement

Entropy: TypeAlias = Callable[[int], bytes]
Accept: TypeAlias = bool | Callable[[str], bool]
"""True: agreed beforehand, the statement is printed; a function: asked with the statement; False: refused."""
Progress: TypeAlias = Callable[[int], None]
"""Told how many further keys are done."""

_VERSION = 2
_WHAT = {
    "version": "the version of the protocol",
    "protocol": "the protocol",
    "owners": "the owners and their order",
    "helper": "the coordinator",
    "learns": "who learns the result",
    "cap": "the cap on the number of keys",
    "normalise": "the normalisation of keys",
    "columns": "the number of columns in a key",
    "buckets": "the number of buckets",
    "detail": "the settings of the protocol",
}


@dataclass(frozen=True)
class Terms:
    """What all parties declare alike.

    Args:
      protocol: its name.
      owners: who enters a set, in an order that all share.
      learns: who of them learns the result.
      cap: the most keys that an owner may enter.
      normalise: the steps by which keys are made comparable.
      columns: of a key.
      buckets: into how many parts the sets are split, by digest.
      helper: a party without a set.
      detail: settings of this protocol alone.
    """

    protocol: str
    owners: tuple[str, ...]
    learns: tuple[str, ...]
    cap: int
    normalise: tuple[str, ...]
    columns: int = 1
    buckets: int = 1
    helper: str = ""
    detail: str = ""
    version: int = _VERSION

    def __post_init__(self) -> None:
        require(len(self.owners) >= 2, f"owners={self.owners}: an intersection is of two owners or more.")
        strangers = sorted(set(self.learns) - set(self.owners))
        require(not strangers, f"learns={strangers} are no owners of this intersection: {', '.join(self.owners)}.")
        require(len(self.learns) > 0, "learns=(): somebody has to learn the result.")
        require(self.cap >= 1, f"cap={self.cap}: allow at least one key.")
        require(self.buckets >= 1, f"buckets={self.buckets}: at least one.")

    @property
    def parties(self) -> tuple[str, ...]:
        """All that speak: the owners, and the helper if there is one."""
        return (*self.owners, self.helper) if self.helper else self.owners

    def digest(self) -> bytes:
        """32 bytes, equal where the terms are."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).digest()

    def agree(self, mesh: Mesh, keys: int, entropy: Entropy = secrets.token_bytes) -> "Session":
        """Compares the terms of all parties, then their sizes, and draws the session's salt.

        Args:
          mesh: links to the other parties.
          keys: how many this party enters; 0 for a helper.
          entropy: gives random bytes.

        Raises:
          ConfigError: another party's terms differ (names the field), or a set is above the cap or empty.
        """
        others = [name for name in self.parties if name != mesh.me]
        absent = sorted(set(others) - set(mesh.peers))
        require(not absent, f"the parties {absent} are not linked to '{mesh.me}': see the file of parties.")
        fields = {name: _hashed(name, value) for name, value in asdict(self).items()}
        for peer in others:
            mesh.send(peer, "psi terms", [b"".join(fields.values())])
        for peer in others:
            _compare(peer, fields, b"".join(mesh.recv(peer, "psi terms")))
        own = keys.to_bytes(8, "little") + entropy(32)
        for peer in others:
            mesh.send(peer, "psi sizes", [own])
        said = {mesh.me: own, **{peer: sized(mesh, peer, "psi sizes", len(own)) for peer in others}}
        sizes = {owner: int.from_bytes(said[owner][:8], "little") for owner in self.owners}
        for owner, size in sizes.items():
            if size > self.cap:
                raise ConfigError(f"'{owner}' would enter {size:,} keys, above the agreed cap of {self.cap:,}.")
            if not size:
                raise ConfigError(f"'{owner}' has no keys to enter: its table is empty.")
        salt = hashlib.sha256(self.digest() + b"".join(said[party] for party in self.parties)).digest()
        return Session(self, mesh, sizes, salt)


@dataclass(frozen=True)
class Session:
    """Terms that all agreed on, and what they agreed for this one run.

    Args:
      terms: of all parties.
      mesh: this party's links.
      sizes: how many keys each owner enters.
      salt: 32 bytes that all share, and nobody chose.
    """

    terms: Terms
    mesh: Mesh
    sizes: Mapping[str, int]
    salt: bytes

    @property
    def others(self) -> tuple[str, ...]:
        """The other owners, in order."""
        return tuple(owner for owner in self.terms.owners if owner != self.mesh.me)

    @property
    def peer(self) -> str:
        """The other of two owners."""
        (other,) = self.others
        return other

    def exchange(self, tag: str, own: bytes, among: Sequence[str]) -> dict[str, bytes]:
        """Sends bytes to the others of some owners, and gives as many that each of them sent."""
        others = [owner for owner in among if owner != self.mesh.me]
        for peer in others:
            self.mesh.send(peer, tag, [own])
        return {peer: self.receive(peer, tag, len(own)) for peer in others}

    def receive(self, sender: str, tag: str, size: int) -> bytes:
        """So many bytes of one party; ProtocolError if there are more or fewer."""
        return sized(self.mesh, sender, tag, size)


def ask(title: str, learns: Learns, accept: Accept) -> None:
    """Says what each party learns, and goes on only if that is accepted.

    Raises:
      PolicyError: it is not.
    """
    said = statement(title, learns)
    if callable(accept):
        agreed = accept(said)
    else:
        agreed = accept
        print(said, file=sys.stderr, flush=True)
    if not agreed:
        raise PolicyError("what each party learns was not accepted, and nothing was sent: accept=True, or --yes.")


def _hashed(name: str, value: object) -> bytes:
    return hashlib.sha256(f"{name}={json.dumps(value)}".encode()).digest()[:16]


def _compare(peer: str, fields: Mapping[str, bytes], theirs: bytes) -> None:
    if len(theirs) != 16 * len(fields):
        raise ConfigError(f"'{peer}' runs another version of this protocol: install the same one everywhere.")
    parts: Sequence[bytes] = [theirs[at : at + 16] for at in range(0, len(theirs), 16)]
    wrong = [_WHAT[name] for (name, own), part in zip(fields.items(), parts, strict=True) if own != part]
    if wrong:
        raise ConfigError(f"'{peer}' declares otherwise {' and '.join(wrong)}: declare the same at every party.")
