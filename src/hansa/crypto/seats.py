"""A party's place in one conversation of a reducer: proving who it is, knowing the others, saying a thing only once.

    IdentitySeat     a member of a federation: keys under its certificate, a record on disk
    SimulatedSeat    a simulation, whose parties are one process: keys derived from one secret, which protect nobody

What is signed is bound to the conversation's context (run, kind, round, attempt), so that no signature made in one can
be shown in another.
"""

import functools
import hashlib
import os
import re
from collections.abc import Callable, Container
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from hansa.core.errors import CorruptFile, IdentityError, SecretRoundVoid, StorageFull
from hansa.core.pipeline import Seat
from hansa.crypto.identity import Identity, Signature, verify

PURPOSE = "conversation"
_PARTIES = ("worker", "server")  # the roles that take part in conversations; helpers are workers without data
_LINE = re.compile(rb"[0-9a-f]{64} [0-9a-f]{64}\n")
_LENGTH = 130  # of such a line


class Journal:
    """What a party has said once, on disk when `once` returns: one line for each name, and each value as its SHA-256.

    All lines are of one length, so that one that a crash tore shows. Nobody was answered on the strength of it, and
    it is dropped.

    Args:
      path: of the file, which one process at a time may use; made when it is first written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._said: dict[bytes, bytes] | None = None

    def once(self, name: bytes, value: bytes) -> None:
        """Records a value under a name.

        Raises:
          SecretRoundVoid: another value was recorded under it before.
          CorruptFile: the file is not as it was written. StorageFull: it cannot be written.
        """
        said = self._said if self._said is not None else self._read()
        self._said = said
        key, digest = (hashlib.sha256(content).hexdigest().encode() for content in (name, value))
        if key not in said:
            self._append(key + b" " + digest + b"\n")
            said[key] = digest
        elif said[key] != digest:
            raise _twice()

    def _read(self) -> dict[bytes, bytes]:
        content = self._path.read_bytes() if self._path.exists() else b""
        whole = content[: len(content) // _LENGTH * _LENGTH]
        lines = [whole[at : at + _LENGTH] for at in range(0, len(whole), _LENGTH)]
        if not all(_LINE.fullmatch(line) for line in lines):
            raise CorruptFile(
                f"{self._path} is not as it was written: without it this worker cannot know what it has revealed. "
                "Restore it, or enrol the worker under a new name."
            )
        if len(whole) < len(content):
            os.truncate(self._path, len(whole))
        return {line[:64]: line[65:129] for line in lines}

    def _append(self, line: bytes) -> None:
        new = not self._path.exists()
        file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            before = os.fstat(file).st_size
            try:
                if os.write(file, line) < len(line):
                    raise OSError(0, "no space left")
                os.fsync(file)
            except OSError as error:
                os.ftruncate(file, before)
                raise StorageFull(f"{self._path} cannot be written ({error.strerror}): free space there.") from None
        finally:
            os.close(file)
        if new and os.name == "posix":  # the name itself must survive a power cut
            folder = os.open(self._path.parent, os.O_RDONLY)
            os.fsync(folder)
            os.close(folder)


@dataclass(frozen=True)
class IdentitySeat(Seat):
    """A member of a federation.

    Args:
      identity: whose keys sign, and whose authority is believed.
      journal: what it says once; it outlives the process.
      revoked: gives the serial numbers of certificates that are not believed any more, as they are now.
    """

    identity: Identity = field(repr=False)
    journal: Journal = field(repr=False)
    revoked: Callable[[], Container[int]] = field(default=frozenset, repr=False)

    def sign(self, message: bytes) -> bytes:
        """The dump of a Hansa signature, with this member's certificate."""
        return self.identity.sign(_bound(self.context, message), purpose=PURPOSE).dump()

    def verify(self, name: str, message: bytes, signature: bytes) -> None:
        """IdentityError unless the authority vouches for the signer, a worker or server of this name."""
        signer = verify(
            Signature.load(signature), _bound(self.context, message), self.identity.authority_pem,
            role=_PARTIES, revoked=self.revoked(), purpose=PURPOSE,
        )  # fmt: skip
        if signer != name:
            raise IdentityError(f"a message of {name!r} bears the signature of {signer!r}: the server mixes them up.")

    def once(self, what: str, value: bytes) -> None:
        """Durable: it holds after a restart, too."""
        self.journal.once(_bound(self.context, what.encode()), value)

    def entropy(self, count: int) -> bytes:
        """Of the operating system."""
        return os.urandom(count)


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
        return _key(self.secret, self.name).sign(_bound(self.context, message))

    def verify(self, name: str, message: bytes, signature: bytes) -> None:
        """IdentityError unless it was made with the key that this run has for that name."""
        try:
            _public(self.secret, name).verify(signature, _bound(self.context, message))
        except InvalidSignature:
            raise IdentityError(f"this is no signature of {name!r} for this message in this conversation.") from None

    def once(self, what: str, value: bytes) -> None:
        """As long as this conversation lives: nothing of it outlives its process."""
        if self._said.setdefault(what, value) != value:
            raise _twice()

    def entropy(self, count: int) -> bytes:
        """Of the operating system."""
        return os.urandom(count)


def _bound(context: bytes, message: bytes) -> bytes:
    """The message in its context; the length keeps one from running into the other."""
    return len(context).to_bytes(4, "big") + context + message


def _twice() -> SecretRoundVoid:
    return SecretRoundVoid(
        "the server asks for the same attempt at a secret round again, with other parties: nothing more is revealed."
    )


def _key(secret: bytes, name: str) -> Ed25519PrivateKey:
    seed = HKDF(SHA256(), 32, salt=None, info=b"hansa simulated seat\0" + name.encode()).derive(secret)
    return Ed25519PrivateKey.from_private_bytes(seed)


@functools.lru_cache(maxsize=1 << 14)
def _public(secret: bytes, name: str) -> Ed25519PublicKey:
    return _key(secret, name).public_key()
