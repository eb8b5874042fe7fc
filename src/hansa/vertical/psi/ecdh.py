"""Two owners, no helper: both raise both sets to their own secret power, and compare what is under both.

    1  A ── a·H(x), shuffled ──►  B ── b·H(y), shuffled ──►         H: into a group of prime order (crypto/curve.py)
    2  A: tags T(a·b·H(y))            B: tags T(b·a·H(x))
    3  A ── SHA-256(its tags) ──►     B ── SHA-256(its tags) ──►    nobody chooses its tags after seeing the other's
    4  A ── tags of y, in B's order ──►   B ── tags of x, in A's order ──►
    5  both: the tags that are in both sets; sorted, they are the common order

With one learner, steps 3 and 4 are one message, from the other owner to it.

Security. Semi-honest: under decisional Diffie–Hellman in the random-oracle model an owner sees random points for what
is not shared. What is cheap against a hostile owner is there: points off the curve are refused, there is no small
subgroup, tags are committed to before any is shown, and no value is counted twice. What is not there: a proof that the
other used one exponent throughout or entered only its own keys. A hostile owner can make the result smaller or wrong,
and can ask about keys that it made up, as many as the cap allows; it cannot ask about more.

Source: Meadows 1986, A More Efficient Cryptographic Matchmaking Protocol, https://doi.org/10.1109/SP.1986.10022;
Huberman, Franklin and Hogg 1999, https://doi.org/10.1145/336992.337012
"""

import hashlib
import secrets
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from hansa.core.errors import ProtocolError
from hansa.crypto import curve
from hansa.runtimes.mesh.messages import named
from hansa.vertical.psi.tags import Match, Tags, meet, repeats, shuffled, tag_bytes
from hansa.vertical.psi.terms import Entropy, Progress, Session
from hansa.vertical.psi.work import Mapper, mapper

_CHUNK = 2048  # points of a message: the other multiplies while the next are made


def intersect(
    session: Session, digests: NDArray[np.uint8], sizes: Mapping[str, int], *, workers: int | None = None,
    progress: Progress | None = None, entropy: Entropy = secrets.token_bytes,
) -> Match | None:  # fmt: skip
    """Runs the protocol on one owner's side; the other does the same.

    Args:
      session: agreed, of two owners.
      digests: of shape (rows, 16), no two alike.
      sizes: how many each owner enters.
      workers: processes that multiply; None: one for each core.
      progress: told of keys that are done.
      entropy: gives secret random bytes.

    Returns:
      The match; None for an owner that does not learn it.

    Raises:
      ProtocolError: the other owner sent what no owner of ours sends.
    """
    terms, mesh = session.terms, session.mesh
    theirs = sizes[session.peer]
    size = tag_bytes(len(digests), theirs)
    order = shuffled(len(digests))
    with mapper(workers, len(digests) + theirs) as apply:
        ours = tags_of_other(session, digests[order], theirs, size, apply, new_scalar(entropy), progress)
    if repeats(ours):
        raise ProtocolError(f"'{session.peer}' entered a key twice: it is broken or hostile.")
    if len(terms.learns) == 2:
        commitment = hashlib.sha256(b"psi tags" + session.salt + ours.tobytes()).digest()
        promised = session.exchange("psi promise", commitment, terms.owners)[session.peer]
    if session.peer in terms.learns:
        mesh.send(session.peer, "psi tags", [ours.tobytes()])
    if mesh.me not in terms.learns:
        return None
    raw = session.receive(session.peer, "psi tags", len(digests) * size)
    if len(terms.learns) == 2 and hashlib.sha256(b"psi tags" + session.salt + raw).digest() != promised:
        raise ProtocolError(f"'{session.peer}' sent other tags than it promised: it is broken or hostile.")
    back = np.frombuffer(raw, np.uint8).reshape(-1, size)
    if repeats(back):
        raise ProtocolError(f"'{session.peer}' sent a tag twice: it is broken or hostile.")
    found, _ = meet(back, ours)
    return Match(order[found], back[found])


def tags_of_other(
    session: Session, digests: NDArray[np.uint8], theirs: int, size: int, apply: Mapper, secret: bytes,
    progress: Progress | None,
) -> Tags:  # fmt: skip
    """Sends this owner's points, and gives the tags of the other's under both secrets, in the other's order."""
    rows, domain = digests.tobytes(), session.salt
    pieces = ((rows[16 * at : 16 * (at + _CHUNK)], 16, domain, secret) for at in range(0, len(digests), _CHUNK))
    sent = apply(curve.hash_and_multiply, pieces)
    got = apply(
        curve.multiply_and_hash, ((points, secret, domain, size) for points in _received(session, sent, theirs))
    )
    tags = bytearray()
    with named(session.peer):
        for piece in got:
            tags += piece
            if progress is not None:
                progress(len(piece) // size)
    return np.frombuffer(tags, np.uint8).reshape(-1, size)


def _received(session: Session, sent: Iterator[bytes], theirs: int) -> Iterator[bytes]:
    """The other's points, piece for piece; sends a piece of our own before each."""
    for at in range(0, theirs, _CHUNK):
        if (own := next(sent, None)) is not None:
            session.mesh.send(session.peer, "psi points", [own])
        count = min(_CHUNK, theirs - at)
        yield session.receive(session.peer, "psi points", count * curve.POINT_BYTES)
    for own in sent:
        session.mesh.send(session.peer, "psi points", [own])


def new_scalar(entropy: Entropy) -> bytes:
    """A secret scalar."""
    while True:
        try:
            return curve.scalar(entropy(32))
        except ValueError:
            continue
