"""What survives when a run is killed: the session's salt, what each bucket gave, and notes on what came after.

    state.json            the salt, the terms, the fingerprint of the entries and, where a protocol has one, a secret
    done-017.bin          what bucket 17 gave, written whole or not at all
    note-found.json       how far a later step is, and what it has found

Owners go on together: with the buckets that all of them have done in the same session; else they begin anew. The secret
is that of the session: what an owner draws from it, it draws again when it goes on, and differently in another session.
"""

import hashlib
import io
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hansa.core.errors import ConfigError, CorruptFile, ProtocolError, StateMismatch
from hansa.crypto.private_file import write_atomically
from hansa.vertical.psi.entries import BINS, make_private
from hansa.vertical.psi.tags import Match
from hansa.vertical.psi.terms import Session

_NOTHING = bytes(32)
_RESULTS = (
    "done-*.bin",
    "note-*.json",
    "values-*.bin",
    "tags-*",
    ".done-*",
    ".note-*",
    ".state*",
)  # also of half a write
_ENTRIES = ("keys-*.bin", "order-*.bin")
SHOWN = "shown"


@dataclass
class State:
    """One run's folder, which is made if it is not there; in memory if there is none.

    Args:
      folder: of this run alone.
      secret: of a new session; once one has begun, that of the one that goes on. The owner draws from it.
    """

    folder: Path | None
    secret: bytes = b""

    def __post_init__(self) -> None:
        self._held: dict[int, bytes] = {}
        self._notes: dict[str, Any] = {}
        if self.folder is not None:
            try:
                make_private(self.folder)
            except OSError as error:
                fault = f"{self.folder} cannot be made ({error.strerror}): a run's state needs a folder to write in."
                raise ConfigError(fault) from None

    def check(self, terms: bytes, fingerprint: bytes) -> None:
        """Refuses a folder whose entries were others under the same terms.

        Raises:
          StateMismatch: the table changed since the run that is to be resumed.
        """
        kept = self.kept()
        if kept is not None and kept["terms"] == terms.hex() and kept["entries"] != fingerprint.hex():
            raise StateMismatch(
                f"the table changed since the run in {self.folder} was interrupted: delete that folder to begin anew."
            )

    def begin(self, session: Session, fingerprint: bytes, buckets: int) -> tuple[Session, list[int]]:
        """The session to go on with, and the buckets that are still to be done, the same at every owner.

        Raises:
          StateMismatch: the other owners do not go on with a run that may have shown them its result.
        """
        kept = self.kept()
        same = kept is not None and kept["terms"] == session.terms.digest().hex()
        salt = bytes.fromhex(kept["salt"]) if kept is not None and same else _NOTHING
        done = np.zeros(BINS, np.uint8)
        if same:
            done[[at for at in range(buckets) if self.has(at)]] = 1
        mine = hashlib.sha256(salt + json.dumps(dict(session.sizes), sort_keys=True).encode()).digest()
        claim = (mine if same else _NOTHING) + np.packbits(done).tobytes()
        claims = [claim, *session.exchange("psi resume", claim, session.terms.owners).values()]
        together = len({each[:32] for each in claims}) == 1 and claims[0][:32] != _NOTHING
        if together and kept is not None:
            for each in claims[1:]:
                done &= np.unpackbits(np.frombuffer(each[32:], np.uint8))
            self.secret = bytes.fromhex(kept["secret"])
            return replace(session, salt=salt), [at for at in range(buckets) if not done[at]]
        if kept is not None and self.noted(SHOWN):
            raise StateMismatch(
                f"the run in {self.folder} may have shown its result to '{session.peer}' before it was lost, and "
                f"'{session.peer}' does not go on with it: enter what it cost into your ledger, and delete that "
                "folder to begin anew."
            )
        self.start(session.salt, session.terms.digest(), fingerprint)
        return session, list(range(buckets))

    def resumed(self, terms: bytes) -> bytes:
        """The salt of the interrupted run of these terms, whose secret is taken over; empty if there is none."""
        kept = self.kept()
        if kept is None or kept["terms"] != terms.hex():
            return b""
        self.secret = bytes.fromhex(kept["secret"])
        return bytes.fromhex(kept["salt"])

    def start(self, salt: bytes, terms: bytes, fingerprint: bytes) -> None:
        """Begins anew: what was kept of another run is deleted."""
        self._delete(_RESULTS)
        self._held.clear()
        self._notes.clear()
        if self.folder is not None:
            facts = {"salt": salt, "terms": terms, "entries": fingerprint, "secret": self.secret}
            text = json.dumps({name: value.hex() for name, value in facts.items()})
            write_atomically(self.folder / "state.json", text.encode(), mode=0o600)

    def has(self, bucket: int) -> bool:
        """Whether a bucket is done."""
        return bucket in self._held if self.folder is None else self._path(bucket).exists()

    def write(self, bucket: int, raw: bytes) -> None:
        """Keeps what a bucket gave."""
        if self.folder is None:
            self._held[bucket] = raw
        else:
            write_atomically(self._path(bucket), raw, mode=0o600)

    def read(self, bucket: int, offset: int = 0, count: int = -1) -> bytes:
        """What a bucket gave, or so many bytes of it.

        Raises:
          CorruptFile: its file cannot be read.
        """
        if self.folder is None:
            held = memoryview(self._held[bucket])[offset:]
            return bytes(held if count < 0 else held[:count])
        try:
            with self._path(bucket).open("rb") as file:
                file.seek(offset)
                return file.read(count)
        except OSError as error:
            raise CorruptFile(f"{self._path(bucket)} cannot be read ({error}): delete it, and run again.") from None

    def size(self, bucket: int) -> int:
        """Bytes of what a bucket gave."""
        return len(self._held[bucket]) if self.folder is None else self._path(bucket).stat().st_size

    def keep(self, bucket: int, match: Match) -> None:
        """Keeps the match of a bucket."""
        buffer = io.BytesIO()
        np.savez(buffer, rows=match.rows, tags=match.tags)
        self.write(bucket, buffer.getvalue())

    def match(self, bucket: int) -> Match:
        """The match of a bucket that is done.

        Raises:
          CorruptFile: its file cannot be read.
        """
        try:
            with np.load(io.BytesIO(self.read(bucket)), allow_pickle=False) as kept:
                rows: NDArray[np.int64] = kept["rows"]
                return Match(rows, kept["tags"])
        except (OSError, ValueError, KeyError) as error:
            raise CorruptFile(f"{self.where(bucket)} cannot be read ({error}): delete it, and run again.") from None

    def note(self, name: str, value: Any) -> None:
        """Keeps something small, in place of what was noted under this name."""
        if self.folder is None:
            self._notes[name] = value
        else:
            write_atomically(self.folder / f"note-{name}.json", json.dumps(value).encode(), mode=0o600)

    def noted(self, name: str) -> Any:
        """What was noted; None if nothing was.

        Raises:
          CorruptFile: it cannot be read.
        """
        if self.folder is None or not (path := self.folder / f"note-{name}.json").exists():
            return self._notes.get(name)
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise CorruptFile(f"{path} cannot be read ({error}): delete the folder to begin anew.") from None

    def remove(self) -> None:
        """Deletes all of it, once the result is out."""
        self._held.clear()
        self._notes.clear()
        if self.folder is not None:
            (self.folder / "state.json").unlink(missing_ok=True)  # first: what is left without it is no run
            self._delete((*_RESULTS, *_ENTRIES))
            self.folder.rmdir()

    def kept(self) -> dict[str, str] | None:
        """The facts of the run that was interrupted, in hexadecimal; None if there is none.

        Raises:
          CorruptFile: they cannot be read.
        """
        if self.folder is None or not (self.folder / "state.json").exists():
            return None
        try:
            kept: dict[str, str] = json.loads((self.folder / "state.json").read_text(encoding="utf-8"))
            if not {"salt", "terms", "entries", "secret"} <= kept.keys():
                raise ValueError("a field is missing")
        except ValueError as error:
            fault = f"{self.folder / 'state.json'} cannot be read ({error}): delete the folder to begin anew."
            raise CorruptFile(fault) from None
        return kept

    def where(self, bucket: int) -> str:
        """Where a bucket is, for errors."""
        return "a bucket in memory" if self.folder is None else str(self._path(bucket))

    def _delete(self, patterns: tuple[str, ...]) -> None:
        if self.folder is not None:
            for pattern in patterns:
                for path in self.folder.glob(pattern):
                    path.unlink()

    def _path(self, bucket: int) -> Path:
        assert self.folder is not None
        return self.folder / f"done-{bucket:03}.bin"


def prove(session: Session, count: int, alignment: bytes) -> None:
    """Compares the alignment with every other owner that learns it.

    Raises:
      ProtocolError: another owner's order differs, so the result is worth nothing.
    """
    mine = count.to_bytes(8, "little") + alignment
    told = session.exchange("psi alignment", mine, session.terms.learns)
    wrong = [peer for peer, theirs in told.items() if theirs != mine]
    if wrong:
        raise ProtocolError(f"the row order of {wrong} is another than that of '{session.mesh.me}': start again.")
