"""Cuckoo hashing: every item in one of its three bins, at most one in each, placed by rounds over whole arrays.

A round: every item that waits takes one of its bins, an empty one if it has one; of those that take the same one, one
wins; who was there waits again. At 1.27 bins an item placing fails with probability below 2⁻⁴⁰ from a few thousand
items on; fewer items get more bins.

Source: Pinkas, Schneider and Zohner 2018, Scalable Private Set Intersection Based on OT Extension,
https://eprint.iacr.org/2016/930 (how many bins)
"""

import math

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from hansa.core.errors import DataError

HASHES = 3
_ROUNDS = 2000


def bin_count(items: int) -> int:
    """How many bins."""
    return math.ceil(1.27 * items) if items >= 1 << 12 else math.ceil(1.5 * items) + 64


def bins_of(digests: NDArray[np.uint8], count: int, seed: bytes) -> NDArray[np.int64]:
    """The three bins of each digest: shape (items, 3); two of them may be the same.

    Args:
      digests: of shape (items, 16).
      count: of bins, below 2³².
      seed: 16 bytes.
    """
    words = encrypted(seed, digests)
    low, high = words[:, 0], words[:, 1]
    rest = (low >> np.uint64(42)) | (high >> np.uint64(42)) << np.uint64(22)
    mixed = np.stack([low & np.uint64(2**42 - 1), high & np.uint64(2**42 - 1), rest])
    return (mixed.T % np.uint64(count)).astype(np.int64)


def place(bins: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Which item is in each bin, as 3·item + (which of its bins it is), or −1: shape (count,).

    Raises:
      DataError: it fails, which chance does not explain.
    """
    table = np.full(count, -1, np.int64)
    waiting, turn = np.arange(len(bins)), np.zeros(len(bins), np.int64)
    rng = np.random.default_rng(len(bins))  # where an item lands is shown to nobody
    for _ in range(_ROUNDS):
        if not len(waiting):
            return table
        empty = table[bins[waiting]] < 0
        chosen = np.where(empty.any(axis=1), empty.argmax(axis=1), turn)
        entry, at = HASHES * waiting + chosen, bins[waiting, chosen]
        before = table[at]
        table[at] = entry
        won = table[at] == entry
        evicted = np.unique(before[won & (before >= 0)])
        again = np.concatenate([entry[~won], evicted])
        waiting = again // HASHES
        turn = (again % HASHES + 1 + rng.integers(0, 2, len(again))) % HASHES
    raise DataError(f"{len(waiting)} of {len(bins)} keys found no bin: start again.")


def encrypted(key: bytes, blocks: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """AES of blocks of 16 bytes: shape (blocks, 2)."""
    source = np.ascontiguousarray(blocks)
    out = np.empty(source.nbytes + 16, np.uint8)
    cipher = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
    cipher.update_into(source.data.cast("B") if source.nbytes else b"", out.data)
    return out[:-16].view(np.uint64).reshape(-1, 2)
