"""The seat of a simulation. It imports no cryptography until a reducer signs: plain sums do without."""

import functools
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hansa.core.errors import IdentityError, MissingExtra, SecretRoundVoid
from hansa.core.pipeline import Seat

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey


@dataclass(frozen=True)
class SimulatedSeat(Seat):
    """A party of a simulation. It shows what a conversation costs and whether it works, and keeps nobody out: every
    party's key is derived from one secret, which all of them hold.

    Args:
      secret: of the run, from the operating system; never a part of the job.
    """

    secret: bytes = field(repr=False)
    _said: dict[str, bytes] = field(default_factory=dict, init=False, repr=False, compare=False)

    def sign(self, message: bytes) -> bytes:
        """An Ed25519 signature of 64 bytes."""
        return _key(self.secret, self.name).sign(in_context(self.context, message))

    def verify(self, name: str, message: bytes, signature: bytes) -> None:
        """IdentityError unless it was made with the key that this run has for that name."""
        key = _public(self.secret, name)
        from cryptography.exceptions import InvalidSignature

        try:
            key.verify(signature, in_context(self.context, message))
        except InvalidSignature:
            raise IdentityError(f"this is no signature of {name!r} for this message in this conversation.") from None

    def once(self, what: str, value: bytes) -> None:
        """As long as this conversation lives: nothing of it outlives its process."""
        if self._said.setdefault(what, value) != value:
            raise said_otherwise()

    def entropy(self, count: int) -> bytes:
        """Of the operating system."""
        return os.urandom(count)


def in_context(context: bytes, message: bytes) -> bytes:
    """The message in its context; the length keeps one from running into the other."""
    return len(context).to_bytes(4, "big") + context + message


def said_otherwise() -> SecretRoundVoid:
    """The refusal of another value under a name that was recorded."""
    return SecretRoundVoid(
        "the server asks for the same attempt at a secret round again, with other parties: nothing more is revealed."
    )


def _key(secret: bytes, name: str) -> "Ed25519PrivateKey":
    try:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF
    except ModuleNotFoundError:
        raise MissingExtra("a sum whose parties sign", "cryptography", "cryptography") from None
    seed = HKDF(SHA256(), 32, salt=None, info=b"hansa simulated seat\0" + name.encode()).derive(secret)
    return Ed25519PrivateKey.from_private_bytes(seed)


@functools.lru_cache(maxsize=1 << 14)
def _public(secret: bytes, name: str) -> "Ed25519PublicKey":
    return _key(secret, name).public_key()
