"""A small set against a large one: the large one is prepared once, and each look-up costs what the small one does.

    once     server ── k ──► tags T(k·H(y)) of all its keys, sorted, in a file
    first    server ── the file's tags ──► client, which keeps them: they say nothing without the server's help
    always   client ── a·H(x) ──► server ── k·a·H(x) ──► client: takes a off, and looks for T(k·H(x))

Each key that a client asks about takes an answer of the server: the cap, the audit and its limit are what stands
against enumeration, since the prepared set outlives a run. Prepare anew to make all kept tags worthless.

Security: as `ecdh.py`; k serves in many runs, which is what an oblivious pseudorandom function is for (one-more
Diffie–Hellman in the random-oracle model). Source: Jarecki and Liu 2010, Fast Secure Computation of Set Intersection,
https://doi.org/10.1007/978-3-642-15317-4_26
"""

import hashlib
import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hansa.core.errors import CorruptFile, DataError, NotFound, ProtocolError, require
from hansa.core.runtime import Mesh
from hansa.crypto import curve
from hansa.crypto.private_file import read_private, write_atomically
from hansa.runtimes.mesh.messages import named
from hansa.vertical.learns import Learns
from hansa.vertical.psi.audit import Audit, recorded
from hansa.vertical.psi.ecdh import new_scalar
from hansa.vertical.psi.entries import Entries, Source, pieces_of
from hansa.vertical.psi.keys import DIGEST_BYTES, Keys
from hansa.vertical.psi.tags import Tags, ascending, meet, repeats, tag_bytes
from hansa.vertical.psi.terms import Accept, Entropy, Session, Terms, ask
from hansa.vertical.psi.work import Mapper, mapper

_CHUNK = 2048
_AHEAD = 4  # messages under way: the server multiplies while the client makes the next
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
    """

    folder: Path
    keys: int
    size: int
    identity: bytes = field(repr=False)
    declared: tuple[tuple[str, ...], int]

    @classmethod
    def make(
        cls, table: Source, keys: Keys, folder: Path, *,
        workers: int | None = None, progress: Callable[[int, int], None] | None = None,
        entropy: Entropy = secrets.token_bytes,
    ) -> "Prepared":  # fmt: skip
        """Prepares a table; about 30 µs a key and core.

        Args:
          table: columns by name, or a function that reads it in pieces.
          keys: what is compared.
          folder: new, or of an older preparation, which it replaces.
          workers: processes that multiply; None: one for each core.
          progress: told how many keys are done, and of how many.
          entropy: gives secret random bytes.

        Raises:
          DataError: keys are missing, no text or not unique, or there are none.
        """
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        declared = (tuple(keys.normalise), len(keys.columns))
        digests, _ = Entries.of(pieces_of(table), keys, _digest_salt(declared)).bucket(0, 1)
        if not len(digests):
            raise DataError("a table without keys answers nothing: prepare one with rows.")
        size, identity, secret = tag_bytes(len(digests), QUERIES), entropy(32), new_scalar(entropy)
        with mapper(workers, len(digests)) as apply:
            tags = _tags(apply, digests, identity, secret, size, progress)
        (folder / "prepared.json").unlink(missing_ok=True)  # half of a preparation is none
        write_atomically(folder / "tags.bin", tags[ascending(tags)].tobytes(), mode=0o600)
        write_atomically(folder / "secret.bin", secret, mode=0o600)
        made = cls(folder, len(digests), size, identity, declared)
        facts = {"keys": made.keys, "size": size, "identity": identity.hex(), "declared": declared}
        write_atomically(folder / "prepared.json", json.dumps(facts).encode(), mode=0o600)
        return made

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
                (tuple(steps), int(columns)),
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
        """Answers one look-up; the client calls `look_up` with the same cap.

        Args:
          mesh: a link to the client.
          cap: the most keys that it may ask about.
          accept: what each party learns is said first, and has to be accepted.
          audit: where runs are recorded and limited.
          entropy: gives random bytes.

        Raises:
          PolicyError, ConfigError, ProtocolError: as `intersect`.
        """
        session = _session(mesh, mesh.me, self.declared, cap, self.keys, accept, entropy)
        with recorded(audit, session) as ended:
            mesh.send(session.peer, "psi set", [self.identity])
            if session.receive(session.peer, "psi wants", 1) != b"\0":
                mesh.send(session.peer, "psi tags", [(self.folder / "tags.bin").read_bytes()])
            secret, asked = read_private(self.folder / "secret.bin"), session.sizes[session.peer]
            for at in range(0, asked, _CHUNK):
                points = session.receive(session.peer, "psi points", min(_CHUNK, asked - at) * curve.POINT_BYTES)
                with named(session.peer):
                    answers = curve.multiply(points, secret)
                mesh.send(session.peer, "psi answers", [answers])
            ended["answered"] = asked


def look_up(
    mesh: Mesh, table: Source, keys: Keys, *, cap: int, accept: Accept = False, kept: Path | None = None,
    audit: Audit | None = None, entropy: Entropy = secrets.token_bytes,
) -> NDArray[np.int64]:  # fmt: skip
    """The rows of a small table whose keys a large, prepared set has. The server calls `Prepared.answer`.

    Args:
      mesh: a link to the server.
      table: columns by name, or a function that reads it in pieces.
      keys: what is compared.
      cap: the most keys to ask about, as the server declares it.
      accept: what each party learns is said first, and has to be accepted.
      kept: a folder for the server's tags, so that they travel once for each preparation.
      audit: where runs are recorded and limited.
      entropy: gives secret random bytes.

    Returns:
      Row numbers, ascending.

    Raises:
      PolicyError, ConfigError, DataError, ProtocolError: as `intersect`; no shared key is no error here.
    """
    declared = (tuple(keys.normalise), len(keys.columns))
    digests, rows = Entries.of(pieces_of(table), keys, _digest_salt(declared)).bucket(0, 1)
    (server,) = mesh.peers
    session = _session(mesh, server, declared, cap, len(digests), accept, entropy)
    with recorded(audit, session) as ended:
        identity, count = session.receive(server, "psi set", 32), session.sizes[server]
        size = tag_bytes(count, QUERIES)
        theirs = _server_tags(session, identity, count, size, kept)
        mine = _answered(session, digests, identity, size, new_scalar(entropy))
        if repeats(mine):
            raise ProtocolError(f"'{server}' answered two keys alike: it is broken or hostile.")
        found = np.sort(rows[meet(mine, theirs)[0]])
        ended["shared"] = len(found)
    return found


def learns(client: str, server: str, cap: int) -> Learns:
    """What each party learns of a look-up."""
    return {
        client: [f"how many keys '{server}' has", f"which of its own keys, at most {cap:,}, '{server}' has"],
        server: [f"how many keys '{client}' asks about, at most {cap:,}"],
    }


def _answered(session: Session, digests: NDArray[np.uint8], identity: bytes, size: int, secret: bytes) -> Tags:
    """The tags of the client's keys under the server's scalar, in their order."""
    back, tags = curve.inverse(secret), bytearray()
    pieces = [digests[at : at + _CHUNK].tobytes() for at in range(0, len(digests), _CHUNK)]
    for at, piece in enumerate(pieces):
        for own in pieces[at + _AHEAD - 1 : at + _AHEAD] if at else pieces[:_AHEAD]:
            points = curve.hash_and_multiply(own, DIGEST_BYTES, identity, secret)
            session.mesh.send(session.peer, "psi points", [points])
        points = session.receive(session.peer, "psi answers", len(piece) // DIGEST_BYTES * curve.POINT_BYTES)
        with named(session.peer):
            tags += curve.multiply_and_hash(points, back, identity, size)
    return np.frombuffer(tags, np.uint8).reshape(-1, size)


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


def _server_tags(session: Session, identity: bytes, count: int, size: int, kept: Path | None) -> Tags:
    """The server's tags: those that were kept of the same preparation, or as it sends them."""
    path = None if kept is None else kept / f"tags-{identity.hex()[:32]}.bin"
    known = path is not None and path.exists() and path.stat().st_size == count * size
    session.mesh.send(session.peer, "psi wants", [b"\0" if known else b"\1"])
    if path is not None and known:
        return np.fromfile(path, np.uint8).reshape(-1, size)
    raw = session.receive(session.peer, "psi tags", count * size)
    if path is not None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomically(path, raw, mode=0o600)
    tags = np.frombuffer(raw, np.uint8).reshape(-1, size)
    if repeats(tags):
        raise ProtocolError(f"'{session.peer}' has a key twice: it is broken or hostile.")
    return tags


def _tags(
    apply: Mapper, digests: NDArray[np.uint8], identity: bytes, secret: bytes, size: int,
    progress: Callable[[int, int], None] | None,
) -> Tags:  # fmt: skip
    pieces = (digests[at : at + _CHUNK].tobytes() for at in range(0, len(digests), _CHUNK))
    arguments = ((piece, DIGEST_BYTES, identity, secret, size) for piece in pieces)
    tags = bytearray()
    for made in apply(curve.hash_multiply_and_hash, arguments):
        tags += made
        if progress is not None:
            progress(len(tags) // size, len(digests))
    return np.frombuffer(tags, np.uint8).reshape(-1, size)


def _digest_salt(declared: tuple[tuple[str, ...], int]) -> bytes:
    return hashlib.sha256(b"hansa psi lookup" + json.dumps(declared).encode()).digest()[:16]
