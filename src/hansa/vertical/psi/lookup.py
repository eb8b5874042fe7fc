"""A small set against a large one: the large one is prepared once, and each look-up costs what the small one does.

    once     server ── k ──► tags T(k·H(y)) of all its keys, sorted, in a file
    first    server ── the file's tags ──► client, which keeps them: they say nothing without the server's help
    always   client ── a·H(x) ──► server ── k·a·H(x) ──► client: takes a off, and looks for T(k·H(x))

Each key that a client asks about takes an answer of the server: the cap, the audit and its limit are what stands
against enumeration, since the prepared set outlives a run. Prepare anew to make all kept tags worthless.

Nothing here is held but a bucket, and what the cap bounds: the tags of the keys asked about. Preparing and asking go on
where they were lost, in one session with the same k, a and order of keys, so that what is sent again is what was sent.
The server keeps a hash of each bucket of points before it answers it, and answers no other points in its place: however
often a session is gone on with, it answers each key that was entered once, and no more of them than the cap.

Security: as `ecdh.py`; k serves in many runs, which is what an oblivious pseudorandom function is for (one-more
Diffie–Hellman in the random-oracle model). Source: Jarecki and Liu 2010, Fast Secure Computation of Set Intersection,
https://doi.org/10.1007/978-3-642-15317-4_26
"""

import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hansa.core.errors import CorruptFile, DataError, NotFound, ProtocolError, StateMismatch, require
from hansa.core.runtime import Mesh
from hansa.crypto import curve
from hansa.crypto.private_file import read_private, write_atomically
from hansa.runtimes.mesh.messages import named
from hansa.vertical.learns import Learns
from hansa.vertical.psi.audit import Audit, recorded
from hansa.vertical.psi.ecdh import new_scalar
from hansa.vertical.psi.entries import Entries, Source, bucket_count, parts_of, pieces_of
from hansa.vertical.psi.intersect import BUCKET_KEYS
from hansa.vertical.psi.keys import DIGEST_BYTES, Keys
from hansa.vertical.psi.meeting import drawn
from hansa.vertical.psi.order import SecretOrder, bounds
from hansa.vertical.psi.pile import Pile
from hansa.vertical.psi.state import State
from hansa.vertical.psi.tags import Tags, meet, repeats, strictly_ascending, tag_bytes, words_of
from hansa.vertical.psi.terms import Accept, Entropy, Session, Terms, ask
from hansa.vertical.psi.work import Mapper, counter, mapper

_CHUNK = 2048
_AHEAD = 4  # messages under way: the server multiplies while the client makes the next
_PIECE = 1 << 16  # tags of a message
QUERIES = 1 << 20
TITLE = "A look-up in a prepared set"


@dataclass(frozen=True)
class Prepared:
    """A large set, ready to answer: a folder with the tags, and a private file with the scalar.

    Args:
      folder: holds `tags.bin`, `prepared.json` and `secret.bin`.
      keys: how many.
      size: of a tag, in bytes.
      identity: 32 bytes, new with each preparation.
      declared: the normalisation and the number of columns of its keys.
      entries: SHA-256 over what was prepared.
    """

    folder: Path
    keys: int
    size: int
    identity: bytes = field(repr=False)
    declared: tuple[tuple[str, ...], int]
    entries: bytes = field(repr=False)

    @classmethod
    def make(
        cls, table: Source, keys: Keys, folder: Path, *,
        bucket_keys: int = BUCKET_KEYS, workers: int | None = None,
        progress: Callable[[int, int], None] | None = None, entropy: Entropy = secrets.token_bytes,
    ) -> "Prepared":  # fmt: skip
        """Prepares a table; about 30 µs a key and core. One that was interrupted is gone on with.

        Args:
          table: columns by name, or a function that reads it in pieces.
          keys: what is compared.
          folder: new, or of an older preparation, which it replaces; but one whose answers were interrupted stays, so
            that its client can go on.
          bucket_keys: about how many keys are in memory.
          workers: processes that multiply; None: one for each core.
          progress: told how many keys are done, and of how many.
          entropy: gives secret random bytes.

        Raises:
          DataError: keys are missing, no text or not unique, or there are none.
          StateMismatch: the table changed since the preparation, or the answers, that were interrupted.
        """
        declared = (tuple(keys.normalise), len(keys.columns))
        terms = hashlib.sha256(json.dumps([declared, bucket_keys]).encode()).digest()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        state = State(folder / "making")
        entries = Entries.of(pieces_of(table), keys, _digest_salt(declared), state.folder)
        if not len(entries):
            raise DataError("a table without keys answers nothing: prepare one with rows.")
        if any(folder.glob("run-*/state.json")) and (folder / "prepared.json").exists():
            state.remove()
            return cls.open(folder)._same(entries)
        state.check(terms, entries.fingerprint)
        identity = state.resumed(terms)
        if not identity:
            identity, state.secret = entropy(32), new_scalar(entropy)
            state.start(identity, terms, entries.fingerprint)
        pile = Pile(state, bucket_count(len(entries), bucket_keys), tag_bytes(len(entries), QUERIES))
        made = cls(folder, len(entries), pile.size, identity, declared, entries.fingerprint)
        _fill(pile, entries, identity, workers, progress)
        made._write(pile)
        state.remove()
        return made

    def _write(self, pile: Pile) -> None:
        """Puts the preparation in the place of an older one."""
        folder, temporary = self.folder, self.folder / "making" / "tags-sorted.bin"
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            for at in range(pile.buckets):
                file.write(pile.read(at, pile.buckets)[0].tobytes())
            file.flush()
            os.fsync(file.fileno())
        (folder / "prepared.json").unlink(missing_ok=True)  # half of a preparation is none
        os.replace(temporary, folder / "tags.bin")
        write_atomically(folder / "secret.bin", pile.state.secret, mode=0o600)
        facts = {"keys": self.keys, "size": self.size, "identity": self.identity.hex(), "declared": self.declared}
        facts["entries"] = self.entries.hex()
        write_atomically(folder / "prepared.json", json.dumps(facts).encode(), mode=0o600)

    def _same(self, entries: Entries) -> "Prepared":
        """Itself, if it is of these entries."""
        if self.entries != entries.fingerprint:
            raise StateMismatch(
                f"the table changed since answers from {self.folder} were interrupted: delete {self.folder / 'run-*'} "
                "to prepare it anew."
            )
        return self

    @classmethod
    def open(cls, folder: Path) -> "Prepared":
        """What `make` made.

        Raises:
          NotFound: nothing was prepared there.
          CorruptFile: it cannot be read.
        """
        try:
            facts = json.loads((folder / "prepared.json").read_text(encoding="utf-8"))
            steps, columns = facts["declared"]
            made = cls(
                folder, int(facts["keys"]), int(facts["size"]), bytes.fromhex(facts["identity"]),
                (tuple(steps), int(columns)), bytes.fromhex(facts["entries"]),
            )  # fmt: skip
            whole = (folder / "tags.bin").stat().st_size == made.keys * made.size
        except FileNotFoundError:
            raise NotFound(f"{folder} holds no prepared set: make one with Prepared.make.") from None
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptFile(f"{folder} cannot be read ({error}): prepare the set again.") from None
        if not whole:
            raise CorruptFile(f"{folder / 'tags.bin'} is cut short: prepare the set again.")
        return made

    def answer(
        self, mesh: Mesh, *, cap: int, accept: Accept = False, audit: Audit | None = None,
        entropy: Entropy = secrets.token_bytes,
    ) -> None:  # fmt: skip
        """Answers one look-up, or goes on with one; the client calls `look_up` with the same cap.

        Args:
          mesh: a link to the client.
          cap: the most keys that it may ask about.
          accept: what each party learns is said first, and has to be accepted.
          audit: where runs are recorded and limited.
          entropy: gives random bytes.

        Raises:
          PolicyError, ConfigError, ProtocolError: as `intersect`; the last also for other keys than before an
            interruption.
        """
        session = _session(mesh, mesh.me, self.declared, cap, self.keys, accept, entropy)
        client = hashlib.sha256(session.peer.encode()).hexdigest()[:16]
        state, asked = State(self.folder / f"run-{client}"), session.sizes[session.peer]
        state.check(session.terms.digest(), self.identity)
        buckets = bucket_count(asked, _CHUNK)
        session, left = state.begin(session, self.identity, buckets)
        with recorded(audit, session) as ended:
            mesh.send(session.peer, "psi set", [self.identity])
            self._send_tags(session)
            secret = read_private(self.folder / "secret.bin")
            for at in left:
                low, high = bounds(asked, at, buckets)
                points = session.receive(session.peer, "psi points", (high - low) * curve.POINT_BYTES)
                _only_once(session, state, at, points)
                with named(session.peer):
                    answers = curve.multiply(points, secret)
                mesh.send(session.peer, "psi answers", [answers])
            session.receive(session.peer, "psi done", 0)
            state.remove()
            ended["answered"] = asked

    def _send_tags(self, session: Session) -> None:
        """Those that the client has not."""
        has = int.from_bytes(session.receive(session.peer, "psi wants", 8), "little")
        if has > self.keys:
            raise ProtocolError(f"'{session.peer}' has {has} tags of {self.keys}: it is broken or hostile.")
        with (self.folder / "tags.bin").open("rb") as file:
            file.seek(has * self.size)
            for at in range(has, self.keys, _PIECE):
                if at - has >= _AHEAD * _PIECE:
                    session.receive(session.peer, "psi more", 0)
                session.mesh.send(session.peer, "psi tags", [file.read(min(_PIECE, self.keys - at) * self.size)])


def look_up(
    mesh: Mesh, table: Source, keys: Keys, *, cap: int, accept: Accept = False, kept: Path | None = None,
    folder: Path | None = None, audit: Audit | None = None, progress: Callable[[int, int], None] | None = None,
    entropy: Entropy = secrets.token_bytes,
) -> NDArray[np.int64]:  # fmt: skip
    """The rows of a small table whose keys a large, prepared set has. The server calls `Prepared.answer`.

    Args:
      mesh: a link to the server.
      table: columns by name, or a function that reads it in pieces.
      keys: what is compared.
      cap: the most keys to ask about, as the server declares it.
      accept: what each party learns is said first, and has to be accepted.
      kept: a folder for the server's tags, so that they travel once for each preparation.
      folder: where entries and answers are kept, so that a killed run goes on; it is this run's alone. Without it and
        `kept`, the server's tags are held in memory.
      audit: where runs are recorded and limited.
      progress: told how many keys are answered, and of how many.
      entropy: gives secret random bytes.

    Returns:
      Row numbers, ascending.

    Raises:
      PolicyError, ConfigError, DataError, ProtocolError, StateMismatch: as `intersect`; no shared key is no error here.
    """
    declared = (tuple(keys.normalise), len(keys.columns))
    (server,) = mesh.peers
    state = State(folder, entropy(32))
    entries = Entries.of(pieces_of(table), keys, _digest_salt(declared), folder)
    session = _session(mesh, server, declared, cap, len(entries), accept, entropy)
    state.check(session.terms.digest(), entries.fingerprint)
    buckets = bucket_count(len(entries), _CHUNK)
    session, left = state.begin(session, entries.fingerprint, buckets)
    with recorded(audit, session) as ended:
        identity, count = session.receive(server, "psi set", 32), session.sizes[server]
        if state.noted("set") not in (None, identity.hex()):
            raise ProtocolError(f"'{server}' goes on with another preparation: delete {folder} to begin anew.")
        state.note("set", identity.hex())
        pile = Pile(state, buckets, tag_bytes(count, QUERIES))
        theirs = _ServerTags(kept or folder, identity, count, pile.size)
        theirs.fetch(session)
        order = SecretOrder.of(entries, drawn(state.secret, "order")(16))
        done = len(entries) - sum(high - low for low, high in (bounds(len(entries), at, buckets) for at in left))
        _ask(session, order, pile, left, identity, counter(progress, done, len(entries)))
        found = np.sort(_found(session, pile, theirs))
        mesh.send(server, "psi done", [b""])
        state.remove()
        ended["shared"] = len(found)
    return found


def learns(client: str, server: str, cap: int) -> Learns:
    """What each party learns of a look-up."""
    return {
        client: [f"how many keys '{server}' has", f"which of its own keys, at most {cap:,}, '{server}' has"],
        server: [f"how many keys '{client}' asks about, at most {cap:,}"],
    }


def _ask(
    session: Session, order: SecretOrder, pile: Pile, left: list[int], identity: bytes,
    progress: Callable[[int], None] | None,
) -> None:  # fmt: skip
    """Has the keys of the buckets that are left answered, and keeps their tags under the server's scalar."""
    secret = new_scalar(drawn(pile.state.secret, "scalar"))
    back = curve.inverse(secret)
    for turn, bucket in enumerate(left):
        for ahead in left[turn + _AHEAD - 1 : turn + _AHEAD] if turn else left[:_AHEAD]:
            digests, _ = parts_of(order.bucket(ahead, pile.buckets))
            points = curve.hash_and_multiply(digests.tobytes(), DIGEST_BYTES, identity, secret)
            session.mesh.send(session.peer, "psi points", [points])
        _, rows = parts_of(order.bucket(bucket, pile.buckets))
        answers = session.receive(session.peer, "psi answers", len(rows) * curve.POINT_BYTES)
        with named(session.peer):
            tags = curve.multiply_and_hash(answers, back, identity, pile.size)
        pile.put(bucket, np.frombuffer(tags, np.uint8).reshape(-1, pile.size), rows)
        if progress is not None:
            progress(len(rows))


def _found(session: Session, pile: Pile, theirs: "_ServerTags") -> NDArray[np.int64]:
    """The rows whose tags the server has, too."""
    mine, rows = pile.read(0, 1)
    if repeats(mine):
        raise ProtocolError(f"'{session.peer}' answered two keys alike: it is broken or hostile.")
    heads, found = words_of(mine)[:, 0], [np.empty(0, np.int64)]
    for tags in theirs.pieces():
        first, last = words_of(tags[[0, -1]])[:, 0]
        low, high = np.searchsorted(heads, first), np.searchsorted(heads, last, "right")
        found.append(rows[low:high][meet(mine[low:high], tags)[0]])
    return np.concatenate(found)


def _only_once(session: Session, state: State, bucket: int, points: bytes) -> None:
    """Notes which points a bucket has before they are answered; ProtocolError if it had others."""
    mark = hashlib.sha256(points).digest()
    if not state.has(bucket):
        state.write(bucket, mark)
    elif state.read(bucket) != mark:
        raise ProtocolError(f"'{session.peer}' asks about other keys than before it was lost: it is broken or hostile.")


def _session(
    mesh: Mesh, server: str, declared: tuple[tuple[str, ...], int], cap: int, entered: int, accept: Accept,
    entropy: Entropy,
) -> Session:  # fmt: skip
    require(len(mesh.peers) == 1, f"a look-up is of two parties, not of {(mesh.me, *mesh.peers)}.")
    require(1 <= cap <= QUERIES, f"cap={cap}: a client asks about 1 to {QUERIES:,} keys.")
    client = mesh.peers[0] if server == mesh.me else mesh.me
    steps, columns = declared
    owners = tuple(sorted((server, client)))
    terms = Terms("lookup", owners, (client,), 1 << 40, steps, columns, detail=f"{server} answers at most {cap}")
    ask(TITLE, learns(client, server, cap), accept)
    session = terms.agree(mesh, entered, entropy)
    asked = session.sizes[client]
    require(asked <= cap, f"'{client}' would ask about {asked:,} keys, above the agreed cap of {cap:,}.")
    return session


class _ServerTags:
    """The server's tags at the client: a file for each preparation, or in memory."""

    def __init__(self, folder: Path | None, identity: bytes, count: int, size: int) -> None:
        self._path = None if folder is None else folder / f"tags-{identity.hex()[:32]}.bin"
        self._count, self._size, self._held = count, size, bytearray()

    def fetch(self, session: Session) -> None:
        """Has the server send what is missing, and keeps it."""
        if self._path is None:
            self._receive(session, 0, self._held.extend)
            self._check(session)
            return
        if self._path.exists() and self._path.stat().st_size == self._count * self._size:
            return self._receive(session, self._count, self._held.extend)
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        whole, self._path = self._path, self._path.with_suffix(".part")
        with open(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600), "r+b") as file:
            has = min(self._path.stat().st_size // self._size, self._count)
            file.truncate(has * self._size)
            file.seek(0, os.SEEK_END)
            self._receive(session, has, file.write)
            file.flush()
            os.fsync(file.fileno())
        self._check(session)
        os.replace(self._path, whole)
        self._path = whole

    def pieces(self) -> Iterator[Tags]:
        """All of them, ascending."""
        if self._path is None:
            yield np.frombuffer(self._held, np.uint8).reshape(-1, self._size)
            return
        with self._path.open("rb") as file:
            while raw := file.read(_PIECE * self._size):
                yield np.frombuffer(raw, np.uint8).reshape(-1, self._size)

    def _receive(self, session: Session, has: int, keep: Callable[[bytes], object]) -> None:
        session.mesh.send(session.peer, "psi wants", [has.to_bytes(8, "little")])
        for at in range(has, self._count, _PIECE):
            keep(session.receive(session.peer, "psi tags", min(_PIECE, self._count - at) * self._size))
            if at + _AHEAD * _PIECE < self._count:
                session.mesh.send(session.peer, "psi more", [b""])

    def _check(self, session: Session) -> None:
        """ProtocolError unless they ascend; what was kept of them is deleted."""
        last = np.empty((0, self._size), np.uint8)
        for tags in self.pieces():
            if not strictly_ascending(np.concatenate([last, tags])):
                if self._path is not None:
                    self._path.unlink()
                raise ProtocolError(f"'{session.peer}' sent tags twice or in no order: it is broken or hostile.")
            last = tags[-1:]


def _fill(
    pile: Pile, entries: Entries, identity: bytes, workers: int | None, progress: Callable[[int, int], None] | None
) -> None:
    """The tags of all keys, bucket by bucket."""
    left = [bucket for bucket in range(pile.buckets) if not pile.state.has(bucket)]
    products = sum(sum(entries.sizes[slice(*entries.span(bucket, pile.buckets))]) for bucket in left)
    told = counter(progress, len(entries) - products, len(entries))
    with mapper(workers, products) as apply:
        for bucket in left:
            digests, rows = entries.bucket(bucket, pile.buckets)
            pile.put(bucket, _tags(apply, digests, identity, pile.state.secret, pile.size, told), rows)


def _tags(
    apply: Mapper, digests: NDArray[np.uint8], identity: bytes, secret: bytes, size: int,
    progress: Callable[[int], None] | None,
) -> Tags:  # fmt: skip
    pieces = (digests[at : at + _CHUNK].tobytes() for at in range(0, len(digests), _CHUNK))
    arguments = ((piece, DIGEST_BYTES, identity, secret, size) for piece in pieces)
    tags = bytearray()
    for made in apply(curve.hash_multiply_and_hash, arguments):
        tags += made
        if progress is not None:
            progress(len(made) // size)
    return np.frombuffer(tags, np.uint8).reshape(-1, size)


def _digest_salt(declared: tuple[tuple[str, ...], int]) -> bytes:
    return hashlib.sha256(b"hansa psi lookup" + json.dumps(declared).encode()).digest()[:16]
