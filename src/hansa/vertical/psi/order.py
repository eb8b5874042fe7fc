"""A set in an order that only its owner knows, in memory or in files, cut into buckets that are equally large.

    entries ──► bin: first byte of AES_K(digest) ──► 256 files; inside one, ascending by AES_K(digest)
                bucket k of m: the places from k·n/m on

The order is pseudorandom under K, so a place in it says nothing about a key, and neither does how many keys a bucket
has, which follows from the sizes of the set alone. The same K gives the same order again: a run that goes on sends what
it sent, and nothing new. Another run has another K, or places could be compared between runs.
"""

import itertools
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hansa.vertical.psi.cuckoo import encrypted
from hansa.vertical.psi.entries import BINS, Entries, append
from hansa.vertical.psi.keys import DIGEST_BYTES
from hansa.vertical.psi.tags import order_of

_EMPTY = np.empty((0, DIGEST_BYTES), np.uint8)


@dataclass(frozen=True)
class SecretOrder:
    """Entries, and others of no row, in an order under a key.

    Args:
      key: 16 secret bytes.
      sizes: of the bins.
      width: of a record.
      folder: where the bins are, if not in memory.
      records: else all of them, in order.
    """

    key: bytes = field(repr=False)
    sizes: tuple[int, ...]
    width: int
    folder: Path | None = None
    records: NDArray[np.uint8] | None = field(default=None, repr=False)

    @classmethod
    def of(cls, entries: Entries, key: bytes, more: NDArray[np.uint8] = _EMPTY) -> "SecretOrder":
        """Orders entries, in memory or in the folder where they are, and with them some more digests."""
        others = np.zeros((len(more), entries.width), np.uint8)
        others[:, :DIGEST_BYTES] = more
        if entries.folder is None:
            records = _ordered(key, np.concatenate([entries.bins(0, BINS), others]))
            return cls(key, (len(records),), entries.width, None, records)
        counts = np.zeros(BINS, np.int64)
        with ExitStack() as open_files:
            files = [open_files.enter_context(open(_bin(entries.folder, at), "wb")) for at in range(BINS)]
            for records in itertools.chain([others], (entries.bins(at, at + 1) for at in range(BINS))):
                bins = encrypted(key, records[:, :DIGEST_BYTES]).view(np.uint8).reshape(-1, DIGEST_BYTES)[:, 0]
                append(files, records, bins)
                counts += np.bincount(bins, minlength=BINS)
        return cls(key, tuple(counts.tolist()), entries.width, entries.folder)

    def __len__(self) -> int:
        return sum(self.sizes)

    def bucket(self, number: int, buckets: int) -> NDArray[np.uint8]:
        """The records of one bucket, in order."""
        low, high = bounds(len(self), number, buckets)
        if self.records is not None:
            return self.records[low:high]
        found, start = [np.empty((0, self.width), np.uint8)], 0
        for at, size in enumerate(self.sizes):
            if start < high and start + size > low:
                found.append(self._read(at)[max(0, low - start) : high - start])
            start += size
        return np.concatenate(found)

    def _read(self, at: int) -> NDArray[np.uint8]:
        assert self.folder is not None
        return _ordered(self.key, np.fromfile(_bin(self.folder, at), np.uint8).reshape(-1, self.width))


def bounds(size: int, number: int, buckets: int) -> tuple[int, int]:
    """The first place of a bucket, and that after its last."""
    return size * number // buckets, size * (number + 1) // buckets


def _ordered(key: bytes, records: NDArray[np.uint8]) -> NDArray[np.uint8]:
    ordered: NDArray[np.uint8] = records[order_of(encrypted(key, records[:, :DIGEST_BYTES]))]
    return ordered


def _bin(folder: Path, at: int) -> Path:
    return folder / f"order-{at:03}.bin"
