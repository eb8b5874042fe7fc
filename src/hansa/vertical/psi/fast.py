"""Two owners, fast: an oblivious pseudorandom function from extended oblivious transfers, and cuckoo hashing.

    receiver  places its keys into bins, one in each                                      cuckoo.py
    both      one transfer for each bin: receiver T, sender Q = T ⊕ (C & s)               crypto/oblivious_transfer.py
              C: the code word of the bin's key, s: the sender's secret
    sender    F(bin, y) = H(bin, Q ⊕ (code(y) & s)) for its keys, each in its three bins, in a secret order of its own
    receiver  F(bin, x) = H(bin, T), and looks for it among the values of the sender
    receiver  tells which places of the secret order matched; both sort by a digest under a key of the sender's

A code word of another key differs in 128 bits or more, of which the receiver does not know the bits of s: F of a key
that is not its own looks random to it. Three values of a key stand at the same place of three lists, and a place alone
is told: in which of its bins a key lay depends on the receiver's other keys and stays with it.

Security. Against semi-honest owners alone: a receiver that deviates may learn bits of s, and a sender may tell other
values. Statistical: tags collide with probability below 2⁻⁴⁰ over all pairs, and two code words are nearer than 128
with probability below 2⁻⁴⁰ over all that meet in a bin. Computational: 128 bits, as the transfers. The code and H are
made of AES under keys of the session, taken as ideal ciphers. H has to look random on rows of which 128 bits are
unknown, whatever they differ in: a sum of ciphers keeps what is unknown of a row in 128 bits, up to chance, and the
hash that follows is the transfers' own, whose bound falls with the number of values as theirs does.

Sources: Kolesnikov, Kumaresan, Rosulek and Trieu 2016, Efficient Batched Oblivious PRF with Applications to Private Set
Intersection, https://eprint.iacr.org/2016/799; Guo, Katz, Wang and Yu 2020 (the hash), https://eprint.iacr.org/2019/074
"""

import hashlib
import math
import secrets
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from hansa.core.errors import ProtocolError
from hansa.crypto.oblivious_transfer import MatrixReceiver, MatrixSender
from hansa.vertical.psi.cuckoo import HASHES, bin_count, bins_of, encrypted, place
from hansa.vertical.psi.tags import STATISTICAL_BITS, Match, Tags, ascending, meet, shuffled, tag_bytes
from hansa.vertical.psi.terms import Entropy, Progress, Session

_DISTANCE = 128
_PIECE = 1 << 13  # rows that are hashed at a time: they stay in the cache


def intersect(
    session: Session, digests: NDArray[np.uint8], sizes: Mapping[str, int], *, workers: int | None = None,
    progress: Progress | None = None, entropy: Entropy = secrets.token_bytes,
) -> Match | None:  # fmt: skip
    """Runs the protocol on one owner's side. Arguments, result and errors as `ecdh.intersect`; one core is used.

    The receiver is the first owner that learns the result.
    """
    mine, theirs = sizes[session.mesh.me], sizes[session.peer]
    if session.mesh.me == session.terms.learns[0]:
        return _receive(session, digests, theirs, tag_bytes(mine, theirs), progress, entropy)
    return _send(session, digests, theirs, tag_bytes(mine, theirs), progress, entropy)


def code_width(pairs: int) -> int:
    """How many bits a code word has, so that of `pairs` random ones none is nearer than 128, up to 2⁻⁴⁰."""
    width = 2 * _DISTANCE
    while math.log2(pairs) + _log_nearer(width) > -STATISTICAL_BITS:
        width += 64
    return width


def _log_nearer(width: int) -> float:
    return math.log2(sum(math.comb(width, at) for at in range(_DISTANCE))) - width


class Evaluation:
    """The sender's half of the function: its value for any key in any bin.

    Args:
      session: its salt makes the codes of this session.
      peer: who holds the bins.
      bins: how many.
      size: of values, in bytes.
      width: of code words, in bits.
      entropy: gives secret random bytes.
    """

    def __init__(self, session: Session, peer: str, bins: int, size: int, width: int, entropy: Entropy) -> None:
        self._salt, self._size, self._width = session.salt, size, width
        transfers = MatrixSender(session.mesh, peer, width, entropy)
        self._secret, self._rows = transfers.secret, transfers.matrix(bins)

    def __call__(self, digests: NDArray[np.uint8], bins: NDArray[np.int64], which: int) -> Tags:
        """Of keys in bins, which are the `which`-th of each: shape (keys, size)."""
        made = np.empty((len(digests), self._size), np.uint8)
        for at in range(0, len(digests), _PIECE):
            piece = slice(at, at + _PIECE)
            rows = codes(digests[piece], which, self._salt, self._width)
            rows &= self._secret
            rows ^= self._rows[bins[piece]]
            made[piece] = values(rows, bins[piece], self._salt, self._size)
        return made


def evaluate_own(
    session: Session, peer: str, digests: NDArray[np.uint8], table: NDArray[np.int64], size: int, width: int,
    entropy: Entropy,
) -> Tags:  # fmt: skip
    """The receiver's half: the value of each bin at its own key, and at a random word where it is empty.

    Args:
      session: as the sender's.
      peer: the sender.
      digests: of the keys.
      table: which key is in which bin, of `cuckoo.place`.
      size: of values, in bytes.
      width: of code words, in bits.
      entropy: gives secret random bytes.
    """
    words, empty = np.empty((len(table), width // 64), np.uint64), np.flatnonzero(table < 0)
    words[empty] = np.frombuffer(entropy(len(empty) * width // 8), np.uint64).reshape(len(empty), -1)
    for which in range(HASHES):
        bins = np.flatnonzero((table >= 0) & (table % HASHES == which))
        words[bins] = codes(digests[table[bins] // HASHES], which, session.salt, width)
    rows = MatrixReceiver(session.mesh, peer, width, entropy).matrix(words)
    numbers = np.arange(len(rows))
    pieces = [slice(at, at + _PIECE) for at in range(0, len(rows), _PIECE)]
    return np.concatenate([values(rows[piece], numbers[piece], session.salt, size) for piece in pieces])


def codes(digests: NDArray[np.uint8], which: int, salt: bytes, width: int) -> NDArray[np.uint64]:
    """Pseudorandom code words of keys as the `which`-th of their bins: shape (keys, width / 64)."""
    blocks = digests.copy()
    blocks[:, 15] ^= which
    words = [encrypted(_key(salt, b"code %d" % at), blocks) for at in range(-(-width // 128))]
    return np.concatenate(words, axis=1)[:, : width // 64].copy()


def values(rows: NDArray[np.uint64], bins: NDArray[np.int64], salt: bytes, size: int) -> Tags:
    """H of rows and their bins, in whole arrays: shape (rows, size), of 16 bytes at most.

    A row's blocks x₀, x₁, … are first added up to one, z = Σ AESⱼ(xⱼ), each under a key of its own; then
    H = π(π(z) ⊕ bin) ⊕ π(z), the hash of the transfers' pads, with AES under a further key as π.
    """
    mixed = np.zeros((len(rows), 2), np.uint64)
    for at in range(0, rows.shape[1], 2):
        block = np.zeros_like(mixed)
        block[:, : rows.shape[1] - at] = rows[:, at : at + 2]
        mixed ^= encrypted(_key(salt, b"value %d" % at), block.view(np.uint8))
    key = _key(salt, b"value")
    inner = encrypted(key, mixed.view(np.uint8))
    tweaked = inner.copy()
    tweaked[:, 0] ^= bins.astype(np.uint64)
    inner ^= encrypted(key, tweaked.view(np.uint8))
    return inner.view(np.uint8)[:, :size]


def bin_seed(salt: bytes) -> bytes:
    """Of a session's bins."""
    return _key(salt, b"bins")


def _key(salt: bytes, purpose: bytes) -> bytes:
    return hashlib.blake2b(purpose, key=salt, digest_size=16, person=b"hansa psi keys").digest()


def _receive(
    session: Session, digests: NDArray[np.uint8], theirs: int, size: int, progress: Progress | None, entropy: Entropy
) -> Match:
    count = bin_count(len(digests))
    table = place(bins_of(digests, count, bin_seed(session.salt)), count)
    own = evaluate_own(session, session.peer, digests, table, size, code_width(HASHES * theirs), entropy)
    order_key = session.receive(session.peer, "psi order", 16)
    matched, items = np.zeros(theirs, bool), []
    for which in range(HASHES):
        raw = session.receive(session.peer, "psi values", theirs * size)
        bins = np.flatnonzero((table >= 0) & (table % HASHES == which))
        here, there = meet(own[bins], np.frombuffer(raw, np.uint8).reshape(-1, size))
        items.append(table[bins[here]] // HASHES)
        if matched[there].any():
            raise ProtocolError(f"'{session.peer}' entered a key twice: it is broken or hostile.")
        matched[there] = True
        if progress is not None:
            progress(theirs // HASHES if which else theirs - (HASHES - 1) * (theirs // HASHES))
    if session.peer in session.terms.learns:
        session.mesh.send(session.peer, "psi places", [np.packbits(matched).tobytes()])
    return _in_order(np.concatenate(items), digests, order_key)


def _send(
    session: Session, digests: NDArray[np.uint8], theirs: int, size: int, progress: Progress | None, entropy: Entropy
) -> Match | None:
    order, order_key, count = shuffled(len(digests)), entropy(16), bin_count(theirs)
    keys = digests[order]
    bins = bins_of(keys, count, bin_seed(session.salt))
    evaluate = Evaluation(session, session.peer, count, size, code_width(HASHES * len(keys)), entropy)
    session.mesh.send(session.peer, "psi order", [order_key])
    for which in range(HASHES):
        session.mesh.send(session.peer, "psi values", [evaluate(keys, bins[:, which], which).tobytes()])
        if progress is not None:
            progress(theirs // HASHES if which else theirs - (HASHES - 1) * (theirs // HASHES))
    if session.mesh.me not in session.terms.learns:
        return None
    raw = session.receive(session.peer, "psi places", -(-len(keys) // 8))
    matched = np.unpackbits(np.frombuffer(raw, np.uint8), count=len(keys)).astype(bool)
    return _in_order(order[matched], digests, order_key)


def _in_order(rows: NDArray[np.int64], digests: NDArray[np.uint8], key: bytes) -> Match:
    """Shared keys by their digests under a key that both owners have."""
    tags = encrypted(key, digests[rows]).view(np.uint8).reshape(-1, 16)
    order = ascending(tags)
    return Match(rows[order], tags[order])
