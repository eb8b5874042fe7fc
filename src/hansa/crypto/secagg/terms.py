"""What both sides know before a conversation, and what they sign."""

import functools
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from hansa.core.errors import ProtocolError, SecretRoundVoid
from hansa.crypto.agreement import PUBLIC_BYTES, SEAL_BYTES
from hansa.crypto.masking import KEY_BYTES, add_packed, pack, packed_bytes, unpack, words
from hansa.crypto.secagg.graph import neighbourhoods, neighbours
from hansa.crypto.shamir import limbs

SECRET_BYTES = 32
SHARE_LIMBS = limbs(bytes(KEY_BYTES)) + limbs(bytes(SECRET_BYTES))  # of b, then of s
SEALED_BYTES = SEAL_BYTES + 4 * SHARE_LIMBS
COMMITMENT_BYTES = 32


@dataclass(frozen=True)
class Fields:
    """What a contribution is: runs of residues, each with its own modulus.

    Args:
      counts: residues of each run.
      bits: of each run's modulus.
    """

    counts: tuple[int, ...]
    bits: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """Of a packed contribution."""
        return sum(packed_bytes(count, bits) for count, bits in zip(self.counts, self.bits, strict=True))

    def zeros(self) -> list[np.ndarray]:
        """Runs of zeros, in words that hold their residues."""
        return [np.zeros(count, words(bits)) for count, bits in zip(self.counts, self.bits, strict=True)]

    def pack(self, runs: Sequence[np.ndarray]) -> np.ndarray:
        """All runs, one after another: uint8."""
        packed = [pack(run, bits) for run, bits in zip(runs, self.bits, strict=True)]
        return packed[0] if len(packed) == 1 else np.concatenate(packed)

    def unpack(self, packed: np.ndarray) -> list[np.ndarray]:
        """The opposite; ProtocolError if the length is wrong."""
        pieces = zip(self._cut(packed), self.counts, self.bits, strict=True)
        return [unpack(piece, bits, count) for piece, count, bits in pieces]

    def add_packed(self, totals: Sequence[np.ndarray], packed: np.ndarray) -> None:
        """Adds a packed contribution to runs, in place, modulo their 2^bits alone; ProtocolError as `unpack`."""
        for total, piece, bits in zip(totals, self._cut(packed), self.bits, strict=True):
            add_packed(total, piece, bits)

    def _cut(self, packed: np.ndarray) -> list[np.ndarray]:
        if packed.shape != (self.size_bytes,) or packed.dtype != np.uint8:
            raise ProtocolError(f"a masked vector of {packed.shape} bytes, where {self.size_bytes} were bound.")
        pieces, at = [], 0
        for count, bits in zip(self.counts, self.bits, strict=True):
            size = packed_bytes(count, bits)
            pieces.append(packed[at : at + size])
            at += size
        return pieces


@dataclass(frozen=True)
class Terms:
    """What a conversation is about.

    Args:
      context: bytes that no other conversation has.
      fields: of the contributions.
      threshold: the fraction of a client's holders (its neighbours and itself) that give its secrets back.
      degree: neighbours of each client; None for everybody.
      holders: how many of them give secrets back, where a graph was chosen; else by `threshold`.
      fewest: clients that every honest round has, on the roster and in the sum: a server that names fewer is refused,
        or it could leave nobody but its own beside one.
    """

    context: bytes
    fields: Fields
    threshold: float
    degree: int | None = None
    holders: int | None = None
    fewest: int = 3

    def needed(self, holders: int) -> int:
        """Shares that give a secret back, of so many holders; more than half of them."""
        if self.holders is not None:
            return min(self.holders, holders)
        return max(holders // 2 + 1, math.ceil(self.threshold * holders))


@dataclass(frozen=True)
class Advert:
    """A client's keys in one conversation, as they are signed.

    Args:
      mask, channel: X25519 public keys: one for masks, whose secret is shared; one for sealing shares.
      commitment: SHA-256 of the self-mask's key, so that a wrong share shows.
      signature: over all of them, with the client's certificate; empty in digests.
    """

    mask: bytes
    channel: bytes
    commitment: bytes
    signature: bytes = field(default=b"", repr=False)

    @property
    def content(self) -> bytes:
        """What is signed."""
        return b"secure sum keys\0" + self.mask + self.channel + self.commitment

    @property
    def digest(self) -> bytes:
        """What the roster lists."""
        return hashlib.sha256(self.content).digest()

    def dump(self) -> bytes:
        """As it travels."""
        return self.mask + self.channel + self.commitment + self.signature

    @staticmethod
    def load(raw: bytes) -> "Advert":
        """ProtocolError for what is too short."""
        size = 2 * PUBLIC_BYTES + COMMITMENT_BYTES
        if len(raw) < size:
            raise ProtocolError(f"an advert of {len(raw)} bytes: it has at least {size}.")
        return Advert(
            raw[:PUBLIC_BYTES], raw[PUBLIC_BYTES : 2 * PUBLIC_BYTES], raw[2 * PUBLIC_BYTES : size], raw[size:]
        )


@dataclass(frozen=True)
class Roster:
    """Everybody who advertised, in order, with digests of their keys: the same for all, or nobody agrees in leg 3."""

    names: tuple[str, ...]
    digests: bytes
    degree: int | None
    context: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.digests) != 32 * len(self.names) or len(set(self.names)) != len(self.names):
            raise ProtocolError("the roster's names and digests do not belong together.")

    @functools.cached_property
    def seed(self) -> bytes:
        """What draws the graph: of all keys, which their owners chose."""
        listed = b"\0".join(name.encode() for name in self.names)
        return hashlib.sha256(b"roster\0" + self.context + b"\0" + listed + b"\0" + self.digests).digest()

    def digest_of(self, at: int) -> bytes:
        """Of one client's advert."""
        return self.digests[32 * at : 32 * at + 32]

    def graph(self) -> list[list[int]]:
        """Each client's neighbours."""
        everybody = len(self.names)
        return neighbourhoods(everybody, everybody if self.degree is None else self.degree, self.seed)

    def neighbours(self, at: int) -> list[int]:
        """One client's, without making the others'."""
        everybody = len(self.names)
        return neighbours(at, everybody, everybody if self.degree is None else self.degree, self.seed)

    def agreed(self, masked: Sequence[int]) -> bytes:
        """What is signed in leg 3: the roster, and who masked."""
        bitmap = np.zeros(len(self.names), bool)
        bitmap[list(masked)] = True
        return b"secure sum survivors\0" + self.seed + np.packbits(bitmap).tobytes()


def void(reason: str) -> SecretRoundVoid:
    """The error of a round in which nothing was revealed."""
    return SecretRoundVoid(f"{reason}: nothing of this round was revealed.")
