"""The entries of one owner: digests and row numbers, in memory or in files, split by digest.

    rows ──► digests ──► bin: first byte of the digest ──► 256 files of (digest, row), appended to as rows come;
                                                           a small table's stay in memory
                         bucket: a run of bins, so many that each party's part of one fits into memory

How many entries fall into a bucket depends on the keys: each bucket is filled up with random digests to a size that
follows from the sizes of the sets alone, so that the other owners learn nothing from it. `order.py` has another way to
cut a set, for results that may not be told bucket by bucket.
"""

import hashlib
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hansa.core.errors import DataError
from hansa.vertical.psi.keys import DIGEST_BYTES, Keys
from hansa.vertical.psi.terms import Entropy

Source: TypeAlias = Mapping[str, Any] | Callable[[], Iterable[Mapping[str, Any]]]
"""A table: columns by name; or a function that reads one from its beginning, as pieces of consecutive rows."""

BINS = 256
Numbers: TypeAlias = Callable[[Mapping[str, Any], int], NDArray[np.int64]]
"""Reads a number for each row of a piece; also told the number of its first row, for errors."""
_HELD = 1 << 18  # rows that are in memory whatever the table: fewer need no files


@dataclass(frozen=True)
class Entries:
    """What one owner enters.

    Args:
      keys: how they were made.
      rows: of the table, duplicates included.
      sizes: distinct keys of each bin.
      fingerprint: SHA-256 over what each bin holds: another table has another.
      folder: where the bins are, if not in memory.
      records: else all bins, one after another, of shape (distinct keys, width).
      width: of a record: its digest, its row, and its number if there is one.
    """

    keys: Keys
    rows: int
    sizes: tuple[int, ...]
    fingerprint: bytes = field(repr=False)
    folder: Path | None = None
    records: NDArray[np.uint8] | None = field(default=None, repr=False)
    width: int = DIGEST_BYTES + 8

    @classmethod
    def of(
        cls, chunks: Iterable[Mapping[str, Any]], keys: Keys, salt: bytes, folder: Path | None = None,
        numbers: Numbers | None = None,
    ) -> "Entries":  # fmt: skip
        """Reads a table in pieces; into memory, or if there is a folder, which exists, and many rows, into that.

        Raises:
          ConfigError, DataError: of `Keys`, and of `numbers`.
        """
        held: list[NDArray[np.uint8]] = []
        rows, width = 0, cls.width if numbers is None else cls.width + 8
        with ExitStack() as open_files:
            files: list[BinaryIO] = []
            for chunk in chunks:
                digests = keys.digests(chunk, salt, rows)
                places = np.arange(rows, rows + len(digests), dtype="<i8")
                fields = [places] if numbers is None else [places, numbers(chunk, rows).astype("<i8")]
                records = np.hstack([digests, *(each.view(np.uint8).reshape(-1, 8) for each in fields)])
                rows += len(digests)
                held.append(records)
                if folder is not None and rows > _HELD:
                    files = files or [open_files.enter_context(open(_bin(folder, at), "wb")) for at in range(BINS)]
                    joined = np.concatenate(held)
                    append(files, joined, joined[:, 0])
                    held.clear()
        if folder is None or rows <= _HELD:
            records = _distinct(keys, np.concatenate([*held, np.empty((0, width), np.uint8)]))
            records = records[np.argsort(records[:, 0], kind="stable")]
            sizes = np.bincount(records[:, 0], minlength=BINS).tolist()
            return cls(keys, rows, tuple(sizes), hashlib.sha256(records.tobytes()).digest(), None, records, width)
        digest, sizes = hashlib.sha256(), []
        for at in range(BINS):
            records = _distinct(keys, np.fromfile(_bin(folder, at), np.uint8).reshape(-1, width))
            records.tofile(_bin(folder, at))
            digest.update(records.tobytes())
            sizes.append(len(records))
        return cls(keys, rows, tuple(sizes), digest.digest(), folder, None, width)

    def __len__(self) -> int:
        """Distinct keys."""
        return sum(self.sizes)

    def bucket(self, number: int, buckets: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """The digests and rows of one bucket of a power of two of them; no digest twice."""
        return parts_of(self.bins(*self.span(number, buckets)))

    @staticmethod
    def span(number: int, buckets: int) -> tuple[int, int]:
        """The first bin of a bucket, and that after its last."""
        each = BINS // buckets
        return number * each, (number + 1) * each

    def bins(self, low: int, high: int) -> NDArray[np.uint8]:
        """The records of some bins."""
        if self.folder is None:
            assert self.records is not None
            return self.records[sum(self.sizes[:low]) : sum(self.sizes[:high])]
        read = [np.fromfile(_bin(self.folder, at), np.uint8).reshape(-1, self.width) for at in range(low, high)]
        return np.concatenate(read)


def pieces_of(table: Source) -> Iterable[Mapping[str, Any]]:
    """A table from its beginning, piece by piece."""
    return table() if callable(table) else [table]


def bucket_count(largest: int, bucket_keys: int) -> int:
    """How many buckets: a power of two, at most one for each bin."""
    return min(BINS, 1 << max(0, math.ceil(math.log2(max(1, largest / bucket_keys)))))


def bucket_size(keys: int, buckets: int) -> int:
    """To how many entries each bucket of a set is filled up; more fall into one with probability below 10⁻¹⁴."""
    mean = keys / buckets
    return keys if buckets == 1 else math.ceil(mean + 8 * math.sqrt(mean)) + 32


def filled(digests: NDArray[np.uint8], size: int, entropy: Entropy) -> NDArray[np.uint8]:
    """The digests, and random ones up to the size.

    Raises:
      DataError: there are more.
    """
    if len(digests) > size:
        raise DataError(f"{len(digests)} keys fall into one bucket of {size}: they were made up to do so.")
    missing = size - len(digests)
    dummies = np.frombuffer(entropy(DIGEST_BYTES * missing), np.uint8).reshape(-1, DIGEST_BYTES)
    return np.concatenate([digests, dummies])


def append(files: Sequence[BinaryIO], records: NDArray[np.uint8], bins: NDArray[np.uint8]) -> None:
    """Each record to the file of its bin."""
    ends = np.cumsum(np.bincount(bins, minlength=BINS))
    for file, part in zip(files, np.split(records[np.argsort(bins, kind="stable")], ends[:-1]), strict=True):
        file.write(part.tobytes())


def parts_of(records: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The digests of records, and what stands last in them: their numbers, or else their rows."""
    digests, numbers = records[:, :DIGEST_BYTES], records[:, -8:]
    return np.ascontiguousarray(digests), np.ascontiguousarray(numbers).view("<i8")[:, 0]


def _distinct(keys: Keys, records: NDArray[np.uint8]) -> NDArray[np.uint8]:
    digests, rows = parts_of(records[:, : Entries.width])
    return records[keys.distinct(digests, rows)]


def _bin(folder: Path, at: int) -> Path:
    return folder / f"keys-{at:03}.bin"


def make_private(folder: Path) -> None:
    """A folder that nobody else may look into."""
    folder.mkdir(parents=True, exist_ok=True)
    os.chmod(folder, 0o700)
