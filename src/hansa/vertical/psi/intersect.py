"""An intersection from tables to row numbers: agree, tell, split into buckets, run the protocol, prove the order.

    tables ─► entries ─► terms agreed ─► salt ─► what is done already ─► buckets, one after another ─► one order, proven

The order of rows is: bucket by bucket, and in each by ascending tag. Tags are keyed digests under secrets of the run,
so the order says nothing about keys, and the alignment is SHA-256 over them.
"""

import hashlib
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hansa.core.errors import ConfigError, DataError, ProtocolError, require
from hansa.core.runtime import Mesh
from hansa.vertical.psi.audit import Audit, recorded
from hansa.vertical.psi.coordinator import serve
from hansa.vertical.psi.entries import Entries, Source, bucket_count, bucket_size, filled, pieces_of
from hansa.vertical.psi.keys import Keys
from hansa.vertical.psi.protocols import Protocol, protocol as protocol_of
from hansa.vertical.psi.state import State, prove
from hansa.vertical.psi.tags import Match
from hansa.vertical.psi.terms import Accept, Entropy, Session, Terms, ask
from hansa.vertical.psi.work import counter
from hansa.vertical.table import AlignedTable

CAP = 1 << 24
BUCKET_KEYS = 1 << 20


@dataclass(frozen=True)
class Intersection:
    """Which rows are shared, in the order that all learners share.

    Args:
      count: of shared keys.
      alignment: 32 bytes, the same at every learner: SHA-256 over the aligned keyed digests.
      buckets: how many parts the order consists of.
    """

    count: int
    alignment: bytes = field(repr=False)
    buckets: int
    _state: State = field(repr=False)

    def __len__(self) -> int:
        return self.count

    def parts(self) -> Iterator[NDArray[np.int64]]:
        """Row numbers of the owner's table, bucket by bucket."""
        for at in range(self.buckets):
            yield self._state.match(at).rows

    @property
    def rows(self) -> NDArray[np.int64]:
        """All of them, of shape (count,)."""
        return np.concatenate(list(self.parts()))

    def forget(self) -> None:
        """Deletes the run's folder, once its result is used."""
        self._state.remove()


def terms_of(
    parties: Sequence[str], keys: Keys, protocol: str, learns: Sequence[str] | None, coordinator: str, cap: int,
    bucket_keys: int,
) -> Terms:  # fmt: skip
    """The terms that a party declares; ConfigError if they contradict themselves."""
    owners = tuple(sorted(name for name in parties if name != coordinator))
    terms = Terms(
        protocol, owners, tuple(sorted(learns)) if learns is not None else owners, cap, tuple(keys.normalise),
        len(keys.columns), helper=coordinator, detail=f"buckets of {bucket_keys} keys",
    )  # fmt: skip
    protocol_of(protocol).check(terms)
    return terms


def intersect(
    mesh: Mesh, table: Source, keys: Keys, *, protocol: str = "ecdh", learns: Sequence[str] | None = None,
    coordinator: str = "", cap: int = CAP, accept: Accept = False, audit: Audit | None = None,
    folder: Path | None = None, bucket_keys: int = BUCKET_KEYS, workers: int | None = None,
    progress: Callable[[int, int], None] | None = None, entropy: Entropy = secrets.token_bytes,
) -> Intersection | None:  # fmt: skip
    """Finds the keys that all owners have. Every owner calls it with its own table and otherwise the same arguments.

    Args:
      mesh: links to the other parties.
      table: this owner's.
      keys: what is compared.
      protocol: `ecdh` (two owners, no helper), `fast` (two owners, by oblivious transfer), `coordinator` (any number,
        with a party that sees keyed digests alone) or `many` (any number, no helper).
      learns: the owners that learn the result; all if left out.
      coordinator: the party without a set, where the protocol has one.
      cap: the most keys that any owner may enter.
      accept: what each party learns is said first, and has to be accepted.
      audit: where runs are recorded and limited.
      folder: where entries and finished buckets are kept, so that memory does not grow with the table and a killed run
        goes on; it is this run's alone.
      bucket_keys: about how many keys each owner enters at a time.
      workers: processes that compute; None: one for each core.
      progress: told how many keys are done, and of how many.
      entropy: gives secret random bytes.

    Returns:
      The intersection; None for an owner that does not learn it.

    Raises:
      PolicyError: not accepted, or the audit's limit is reached.
      ConfigError: the parties' terms differ, or a set is above the cap.
      DataError: keys are missing, no text or not unique, or no key is shared.
      ProtocolError: a party deviates.
      StateMismatch: the table changed since the run that would be resumed.
    """
    terms = terms_of((mesh.me, *mesh.peers), keys, protocol, learns, coordinator, cap, bucket_keys)
    chosen = protocol_of(protocol)
    require(mesh.me in terms.owners, f"'{mesh.me}' is the coordinator and has no table: call `coordinate`.")
    ask(chosen.title, chosen.learns(terms), accept)
    state = State(folder)
    entries = Entries.of(pieces_of(table), keys, terms.digest()[:16], folder)
    state.check(terms.digest(), entries.fingerprint)
    session = terms.agree(mesh, len(entries), entropy)
    buckets = bucket_count(max(session.sizes.values()), bucket_keys)
    session, left = state.begin(session, entries.fingerprint, buckets)
    if terms.helper and mesh.me == terms.owners[0]:
        mesh.send(terms.helper, "psi left", [bytes(left)])
    with recorded(audit, session) as ended:
        found = _Run(chosen, session, entries, buckets, state, workers, progress, entropy).all(left)
        if found is None:
            state.remove()
        else:
            ended |= {"shared": len(found), "alignment": found.alignment.hex()}
    return found


def coordinate(
    mesh: Mesh, keys: Keys, *, protocol: str = "coordinator", learns: Sequence[str] | None = None, cap: int = CAP,
    accept: Accept = False, bucket_keys: int = BUCKET_KEYS, entropy: Entropy = secrets.token_bytes,
) -> None:  # fmt: skip
    """The coordinator's side of an intersection. Arguments as the owners give them to `intersect`.

    Of `keys`, only the normalisation and the number of columns count: no key is seen here.

    Raises:
      PolicyError, ConfigError, ProtocolError: as `intersect`.
    """
    terms = terms_of((mesh.me, *mesh.peers), keys, protocol, learns, mesh.me, cap, bucket_keys)
    chosen = protocol_of(protocol)
    ask(chosen.title, chosen.learns(terms), accept)
    session = terms.agree(mesh, 0, entropy)
    buckets = bucket_count(max(session.sizes.values()), bucket_keys)
    sizes = {owner: bucket_size(size, buckets) for owner, size in session.sizes.items()}
    left = b"".join(mesh.recv(terms.owners[0], "psi left"))
    if len(left) > buckets:
        raise ProtocolError(f"'{terms.owners[0]}' has {len(left)} buckets left of {buckets}: it is broken or hostile.")
    for _ in left:
        serve(session, sizes)


@dataclass(frozen=True)
class _Run:
    """One owner's way through the buckets."""

    protocol: Protocol
    session: Session
    entries: Entries
    buckets: int
    state: State
    workers: int | None
    progress: Callable[[int, int], None] | None
    entropy: Entropy

    def all(self, left: Sequence[int]) -> Intersection | None:
        sizes = {owner: bucket_size(size, self.buckets) for owner, size in self.session.sizes.items()}
        each = sum(sizes.values()) - sizes[self.session.mesh.me]
        told = counter(self.progress, (self.buckets - len(left)) * each, self.buckets * each)
        for at in left:
            digests, rows = self.entries.bucket(at, self.buckets)
            salt = hashlib.sha256(self.session.salt + at.to_bytes(4, "little")).digest()
            found = self.protocol.run(
                replace(self.session, salt=salt), filled(digests, sizes[self.session.mesh.me], self.entropy), sizes,
                workers=self.workers, progress=told, entropy=self.entropy,
            )  # fmt: skip
            if found is None:
                found = Match(np.empty(0, np.int64), np.empty((0, 0), np.uint8))
            if len(found) and found.rows.max() >= len(rows):
                raise ProtocolError("a random filler was met: another owner is broken or hostile.")
            self.state.keep(at, Match(rows[found.rows], found.tags))
        return self._proven() if self.session.mesh.me in self.session.terms.learns else None

    def _proven(self) -> Intersection:
        digest, count = hashlib.sha256(b"hansa alignment" + self.session.salt), 0
        for at in range(self.buckets):
            match = self.state.match(at)
            digest.update(np.ascontiguousarray(match.tags).tobytes())
            count += len(match)
        prove(self.session, count, digest.digest())
        if not count:
            raise DataError(
                f"no key is shared by {', '.join(self.session.terms.owners)}: do the key columns mean the same, and "
                f"are they written alike after {', '.join(self.session.terms.normalise) or 'no normalisation'}?"
            )
        return Intersection(count, digest.digest(), self.buckets, self.state)


def align(
    mesh: Mesh, table: Mapping[str, Any], keys: Keys, *, protocol: str = "ecdh", coordinator: str = "", cap: int = CAP,
    accept: Accept = False, audit: Audit | None = None, folder: Path | None = None, bucket_keys: int = BUCKET_KEYS,
    workers: int | None = None, progress: Callable[[int, int], None] | None = None,
    entropy: Entropy = secrets.token_bytes,
) -> AlignedTable:  # fmt: skip
    """Each owner's columns of the people whom all owners share, in one order. Arguments as `intersect`.

    Every owner calls it with its own table, learns the result, and gets a table of the same alignment.

    Returns:
      The columns without those of the key, which are no features.
    """
    found = intersect(
        mesh, table, keys, protocol=protocol, coordinator=coordinator, cap=cap, accept=accept, audit=audit,
        folder=folder, bucket_keys=bucket_keys, workers=workers, progress=progress, entropy=entropy,
    )  # fmt: skip
    if found is None:
        raise ConfigError("an owner that does not learn the intersection has no aligned table.")
    rows, kept = found.rows, [name for name in table if name not in keys.columns]
    made = AlignedTable(mesh.me, {name: np.asarray(table[name])[rows] for name in kept}, found.alignment)
    found.forget()
    return made
