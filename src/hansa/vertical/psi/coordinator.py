"""Any number of owners, and a coordinator that sees keyed digests alone.

    owners        a key K from random bytes of each, over their own links, which the coordinator is not on
    owner ──►     AES_K(digest) of its keys, truncated, ascending                  ──► coordinator
    owner ◄──     a bit for each of them: whether all owners have it               ◄── coordinator

Security. Semi-honest, and the coordinator must not collude with an owner: with K it could try keys. It learns which
(unknown) keys each group of owners shares, and so the size of every overlap. Owners learn the common keys alone.
"""

import hashlib
import secrets
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from hansa.core.errors import ProtocolError
from hansa.vertical.psi.cuckoo import encrypted
from hansa.vertical.psi.tags import Match, Tags, ascending, meet, repeats, tag_bytes
from hansa.vertical.psi.terms import Entropy, Progress, Session


def intersect(
    session: Session, digests: NDArray[np.uint8], sizes: Mapping[str, int], *, workers: int | None = None,
    progress: Progress | None = None, entropy: Entropy = secrets.token_bytes,
) -> Match | None:  # fmt: skip
    """Runs the protocol on one owner's side. Arguments, result and errors as `ecdh.intersect`; one core is used."""
    tags = encrypted(shared_key(session, entropy), digests).view(np.uint8).reshape(-1, 16)
    tags = np.ascontiguousarray(tags[:, : _size(sizes)])
    order = ascending(tags)
    session.mesh.send(session.terms.helper, "psi digests", [tags[order].tobytes()])
    if progress is not None:
        progress(sum(sizes[owner] for owner in session.others))
    if session.mesh.me not in session.terms.learns:
        return None
    raw = session.receive(session.terms.helper, "psi common", -(-len(tags) // 8))
    rows = order[np.unpackbits(np.frombuffer(raw, np.uint8), count=len(tags)).astype(bool)]
    return Match(rows, tags[rows])


def serve(session: Session, sizes: Mapping[str, int]) -> None:
    """Runs the protocol on the coordinator's side.

    Raises:
      ProtocolError: an owner sent a digest twice, or the wrong number.
    """
    size, sent = _size(sizes), dict[str, Tags]()
    for owner in session.terms.owners:
        raw = session.receive(owner, "psi digests", sizes[owner] * size)
        sent[owner] = np.frombuffer(raw, np.uint8).reshape(-1, size)
        if repeats(sent[owner]):
            raise ProtocolError(f"'{owner}' entered a key twice: it is broken or hostile.")
    first, *rest = session.terms.owners
    common = sent[first]
    for owner in rest:
        common = common[meet(common, sent[owner])[0]]
    for owner in session.terms.learns:
        bits = np.zeros(sizes[owner], bool)
        bits[meet(sent[owner], common)[0]] = True
        session.mesh.send(owner, "psi common", [np.packbits(bits).tobytes()])


def shared_key(session: Session, entropy: Entropy) -> bytes:
    """16 secret bytes that all owners have, and to which each gave some."""
    own = entropy(32)
    given = {session.mesh.me: own, **session.exchange("psi key", own, session.terms.owners)}
    return hashlib.sha256(session.salt + b"".join(given[owner] for owner in session.terms.owners)).digest()[:16]


def _size(sizes: Mapping[str, int]) -> int:
    """Of tags: chance may not make any two of all owners' equal."""
    return tag_bytes(sum(sizes.values()), sum(sizes.values()))
