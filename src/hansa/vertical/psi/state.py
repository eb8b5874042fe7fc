"""What survives when a run is killed: the session's salt, and the match of each bucket that is done.

    state.json            the salt, the terms and the fingerprint of the entries
    match-017.npz         rows and tags of bucket 17, written whole or not at all

Owners go on together: with the buckets that all of them have done in the same session; else they begin anew.
"""

import hashlib
import io
import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hansa.core.errors import CorruptFile, ProtocolError, StateMismatch
from hansa.crypto.private_file import write_atomically
from hansa.vertical.psi import entries as files
from hansa.vertical.psi.entries import BINS, Entries
from hansa.vertical.psi.tags import Match
from hansa.vertical.psi.terms import Session

_NOTHING = bytes(32)


@dataclass
class State:
    """One run's folder; in memory if there is none.

    Args:
      folder: of this run alone.
    """

    folder: Path | None

    def __post_init__(self) -> None:
        self._matches: dict[int, Match] = {}

    def check(self, entries: Entries) -> None:
        """Refuses a folder whose entries were others.

        Raises:
          StateMismatch: the table changed since the run that is to be resumed.
        """
        kept = self._kept()
        if kept is not None and kept["entries"] != entries.fingerprint.hex():
            raise StateMismatch(
                f"the table changed since the run in {self.folder} was interrupted: delete that folder to begin anew."
            )

    def begin(self, session: Session, entries: Entries, buckets: int) -> tuple[Session, list[int]]:
        """The session to go on with, and the buckets that are still to be done, the same at every owner."""
        kept = self._kept() if len(entries) else None
        same = kept is not None and kept["terms"] == session.terms.digest().hex()
        salt = bytes.fromhex(kept["salt"]) if kept is not None and same else _NOTHING
        done = np.zeros(BINS, np.uint8)
        if same:
            done[[at for at in range(buckets) if self._path(at).exists()]] = 1
        mine = hashlib.sha256(salt + json.dumps(dict(session.sizes), sort_keys=True).encode()).digest()
        claim = (mine if same else _NOTHING) + np.packbits(done).tobytes()
        claims = [claim, *session.exchange("psi resume", claim, session.terms.owners).values()]
        together = len({each[:32] for each in claims}) == 1 and claims[0][:32] != _NOTHING
        if together:
            for each in claims[1:]:
                done &= np.unpackbits(np.frombuffer(each[32:], np.uint8))
            return replace(session, salt=salt), [at for at in range(buckets) if not done[at]]
        self._forget()
        if self.folder is not None:
            facts = {"salt": session.salt.hex(), "terms": session.terms.digest().hex()}
            facts["entries"] = entries.fingerprint.hex()
            write_atomically(self.folder / "state.json", json.dumps(facts).encode(), mode=0o600)
        return session, list(range(buckets))

    def keep(self, bucket: int, match: Match) -> None:
        """Keeps the match of a bucket."""
        if self.folder is None:
            self._matches[bucket] = match
            return
        buffer = io.BytesIO()
        np.savez(buffer, rows=match.rows, tags=match.tags)
        write_atomically(self._path(bucket), buffer.getvalue(), mode=0o600)

    def match(self, bucket: int) -> Match:
        """The match of a bucket that is done.

        Raises:
          CorruptFile: its file cannot be read.
        """
        if self.folder is None:
            return self._matches[bucket]
        try:
            with np.load(self._path(bucket), allow_pickle=False) as kept:
                rows: NDArray[np.int64] = kept["rows"]
                return Match(rows, kept["tags"])
        except (OSError, ValueError, KeyError) as error:
            raise CorruptFile(f"{self._path(bucket)} cannot be read ({error}): delete it, and run again.") from None

    def remove(self) -> None:
        """Deletes all of it, once the result is out."""
        self._forget()
        if self.folder is not None:
            files.remove(self.folder)
            (self.folder / "state.json").unlink(missing_ok=True)
            self.folder.rmdir()

    def _forget(self) -> None:
        self._matches.clear()
        if self.folder is not None:
            for path in self.folder.glob("match-*.npz"):
                path.unlink()

    def _kept(self) -> dict[str, str] | None:
        if self.folder is None or not (self.folder / "state.json").exists():
            return None
        try:
            kept: dict[str, str] = json.loads((self.folder / "state.json").read_text(encoding="utf-8"))
            if not {"salt", "terms", "entries"} <= kept.keys():
                raise ValueError("a field is missing")
        except ValueError as error:
            fault = f"{self.folder / 'state.json'} cannot be read ({error}): delete the folder to begin anew."
            raise CorruptFile(fault) from None
        return kept

    def _path(self, bucket: int) -> Path:
        assert self.folder is not None
        return self.folder / f"match-{bucket:03}.npz"


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
