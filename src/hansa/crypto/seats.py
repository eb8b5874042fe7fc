"""A party's place in one conversation of a reducer: proving who it is, knowing the others, saying a thing only once.

    IdentitySeat     a member of a federation: keys under its certificate, a journal on disk
    NamelessSeat     a member of a federation without identities: the journal alone; it signs and believes nothing
    SimulatedSeat    a simulation, whose parties trust each other: keys derived from one secret, which protect nobody

What is signed is bound to the conversation's context (run, kind, round, attempt), so that no signature made in one can
be shown in another.
"""

import hashlib
import os
import re
from collections.abc import Callable, Container
from dataclasses import dataclass, field
from pathlib import Path

from hansa.core.errors import CorruptFile, IdentityError, StorageFull
from hansa.core.pipeline import Seat
from hansa.crypto.identity import Identity, Signature, verify
from hansa.crypto.simulated_seat import SimulatedSeat, in_context, said_otherwise

__all__ = ["IdentitySeat", "Journal", "NamelessSeat", "SimulatedSeat"]

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
            raise said_otherwise()

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
class NamelessSeat(Seat):
    """A party that nobody vouches for: reducers that need signatures are refused here.

    Args:
      journal: what it says once; it outlives the process.
    """

    journal: Journal = field(repr=False)

    def once(self, what: str, value: bytes) -> None:
        """Durable: it holds after a restart, too."""
        self.journal.once(in_context(self.context, what.encode()), value)

    def entropy(self, count: int) -> bytes:
        """Of the operating system."""
        return os.urandom(count)


@dataclass(frozen=True)
class IdentitySeat(NamelessSeat):
    """A member of a federation.

    Args:
      identity: whose keys sign, and whose authority is believed.
      revoked: gives the serial numbers of certificates that are not believed any more, as they are now.
    """

    identity: Identity = field(repr=False)
    revoked: Callable[[], Container[int]] = field(default=frozenset, repr=False)

    def sign(self, message: bytes) -> bytes:
        """The dump of a Hansa signature, with this member's certificate."""
        return self.identity.sign(in_context(self.context, message), purpose=PURPOSE).dump()

    def verify(self, name: str, message: bytes, signature: bytes) -> None:
        """IdentityError unless the authority vouches for the signer, a worker or server of this name."""
        signer = verify(
            Signature.load(signature), in_context(self.context, message), self.identity.authority_pem,
            role=_PARTIES, revoked=self.revoked(), purpose=PURPOSE,
        )  # fmt: skip
        if signer != name:
            raise IdentityError(f"a message of {name!r} bears the signature of {signer!r}: the server mixes them up.")
