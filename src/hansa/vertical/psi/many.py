"""Any number of owners, nobody else: the leader learns what all share, and nobody what some share.

    others   P₂ … Pₘ: for every key y a share zⱼ(y), so that z₂(y) ⊕ … ⊕ zₘ(y) = 0       from keys of each pair of them
    leader   with each Pⱼ the oblivious function Fⱼ of `fast.py`, at its own keys in their bins
    Pⱼ       a store of  y in each of its three bins ─► Fⱼ(bin, y) ⊕ zⱼ(y)               okvs.py, which hides the keys
    leader   decodes at x and takes Fⱼ off: zⱼ(x) if Pⱼ has x, something random if not; all sum to 0 if all have x
    leader   tells the common keys to those who learn, as digests under a key of all owners

A share alone is random: that Pⱼ has x shows only in the sum of all. Semi-honest, and up to m − 2 owners may pool what
they see: then they learn of the leader's keys whether all the others together have them, never which one. Statistical
and computational security are those of `fast.py`, whose function this is.

Source: Kolesnikov, Matania, Pinkas, Rosulek and Trieu 2017, Practical Multi-Party Private Set Intersection from
Symmetric-Key Techniques (the augmented semi-honest protocol), https://eprint.iacr.org/2017/799
"""

import hashlib
import secrets
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from hansa.core.errors import ProtocolError
from hansa.vertical.psi import okvs
from hansa.vertical.psi.coordinator import shared_key
from hansa.vertical.psi.cuckoo import HASHES, bin_count, bins_of, encrypted, place
from hansa.vertical.psi.fast import Evaluation, bin_seed, code_width, evaluate_own
from hansa.vertical.psi.tags import Match, Tags, ascending, meet, tag_bytes
from hansa.vertical.psi.terms import Entropy, Progress, Session


def intersect(
    session: Session, digests: NDArray[np.uint8], sizes: Mapping[str, int], *, workers: int | None = None,
    progress: Progress | None = None, entropy: Entropy = secrets.token_bytes,
) -> Match | None:  # fmt: skip
    """Runs the protocol on one owner's side. Arguments, result and errors as `ecdh.intersect`; one core is used.

    The leader is the first owner that learns the result.
    """
    key = shared_key(session, entropy)
    leader = session.terms.learns[0]
    if session.mesh.me == leader:
        return _lead(session, digests, sizes, key, progress, entropy)
    _follow(session, leader, digests, sizes, entropy)
    if progress is not None:
        progress(sum(sizes[owner] for owner in session.others))
    if session.mesh.me not in session.terms.learns:
        return None
    raw = b"".join(session.mesh.recv(leader, "psi common"))
    if len(raw) % 16 or len(raw) > 16 * len(digests):
        raise ProtocolError(f"'{leader}' sent {len(raw)} bytes as common keys: it is broken or hostile.")
    tags = _tags(key, digests)
    common = np.frombuffer(raw, np.uint8).reshape(-1, 16)
    rows, _ = meet(tags, common)
    if len(rows) != len(common):
        raise ProtocolError(f"'{leader}' named keys as common that '{session.mesh.me}' has not: it is broken.")
    return Match(rows, tags[rows])


def _lead(
    session: Session, digests: NDArray[np.uint8], sizes: Mapping[str, int], key: bytes, progress: Progress | None,
    entropy: Entropy,
) -> Match:  # fmt: skip
    count = bin_count(len(digests))
    table = place(bins_of(digests, count, bin_seed(session.salt)), count)
    bins = np.flatnonzero(table >= 0)
    items, which = table[bins] // HASHES, table[bins] % HASHES
    stored = _stored(digests[items], which)
    total, size = np.zeros((len(items), 2), np.uint64), _size(session, sizes)
    for peer in session.others:
        width = code_width(HASHES * sizes[peer])
        own = evaluate_own(session, peer, digests, table, size, width, entropy)[bins]
        raw = session.receive(peer, "psi store", okvs.table_size(HASHES * sizes[peer]) * size)
        store = _words(np.frombuffer(raw, np.uint8).reshape(-1, size))
        total ^= okvs.decode(stored, store, HASHES * sizes[peer], _seed(session, peer)) ^ _words(own)
        if progress is not None:
            progress(sizes[peer])
    rows = items[~total.view(np.uint8).reshape(-1, 16)[:, :size].any(axis=1)]
    tags = _tags(key, digests[rows])
    order = ascending(tags)
    for owner in session.terms.learns[1:]:
        session.mesh.send(owner, "psi common", [tags[order].tobytes()])
    return Match(rows[order], tags[order])


def _follow(
    session: Session, leader: str, digests: NDArray[np.uint8], sizes: Mapping[str, int], entropy: Entropy
) -> None:
    shares = _shares_of_zero(session, leader, digests, entropy)
    size, count = _size(session, sizes), bin_count(sizes[leader])
    bins = bins_of(digests, count, bin_seed(session.salt))
    evaluate = Evaluation(session, leader, count, size, code_width(HASHES * len(digests)), entropy)
    keys, values = [], []
    for at in range(HASHES):
        keys.append(_stored(digests, np.full(len(digests), at)))
        values.append(_words(evaluate(digests, bins[:, at], at)) ^ shares)
    store = okvs.encode(np.concatenate(keys), np.concatenate(values), _seed(session, session.mesh.me), entropy)
    session.mesh.send(leader, "psi store", [store.view(np.uint8).reshape(-1, 16)[:, :size].tobytes()])


def _shares_of_zero(session: Session, leader: str, digests: NDArray[np.uint8], entropy: Entropy) -> okvs.Words:
    """This owner's share for each of its keys; all owners' but the leader's sum to zero."""
    names = [owner for owner in session.terms.owners if owner != leader]
    me = names.index(session.mesh.me)
    seeds = []
    for peer in names[me + 1 :]:
        seeds.append(entropy(16))
        session.mesh.send(peer, "psi zero", [seeds[-1]])
    seeds += [session.receive(peer, "psi zero", 16) for peer in names[:me]]
    shares = np.zeros((len(digests), 2), np.uint64)
    for seed in seeds:
        shares ^= encrypted(seed, digests)
    return shares


def _stored(digests: NDArray[np.uint8], which: NDArray[np.int64]) -> NDArray[np.uint8]:
    """The key of a store's entry: a digest, and which of its bins."""
    keys = digests.copy()
    keys[:, 0] ^= which.astype(np.uint8) << 6
    return keys


def _size(session: Session, sizes: Mapping[str, int]) -> int:
    """Of all values, in bytes."""
    return tag_bytes(sizes[session.terms.learns[0]], HASHES * max(sizes.values()))


def _seed(session: Session, owner: str) -> bytes:
    return hashlib.sha256(b"hansa psi store" + session.salt + owner.encode()).digest()[:16]


def _words(tags: Tags) -> okvs.Words:
    whole = np.zeros((len(tags), 16), np.uint8)
    whole[:, : tags.shape[1]] = tags
    return whole.view(np.uint64)


def _tags(key: bytes, digests: NDArray[np.uint8]) -> Tags:
    return encrypted(key, digests).view(np.uint8).reshape(-1, 16)
