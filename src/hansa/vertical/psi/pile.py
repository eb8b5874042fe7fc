"""Tags larger than memory: put in bucket by bucket, read range by range, as they were all sorted at once.

    bucket  ──►  where each first byte begins  (256 numbers)  ·  (tag, number) ascending          one piece of the state
    range k of m: the tags whose first byte is from 256·k/m on, of all buckets, ascending

Tags are keyed digests, so ranges are about equally large, whatever the keys are. What is in a pile stays: a bucket that
comes again, because its sender was lost and sends it anew, changes nothing.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hansa.core.errors import CorruptFile
from hansa.vertical.psi.entries import BINS
from hansa.vertical.psi.state import State
from hansa.vertical.psi.tags import Tags, ascending

_HEAD = 8 * BINS


@dataclass(frozen=True)
class Pile:
    """The tags of one run.

    Args:
      state: keeps them.
      buckets: how many they come in.
      size: of a tag, in bytes.
    """

    state: State
    buckets: int
    size: int
    _starts: dict[int, NDArray[np.int64]] = field(default_factory=dict, init=False, repr=False)

    def put(self, bucket: int, tags: Tags, numbers: NDArray[np.int64]) -> None:
        """Keeps the tags of a bucket, and a number for each, unless it has them."""
        if self.state.has(bucket):
            return
        order = ascending(tags)
        records = np.hstack([tags[order], numbers[order].astype("<i8").view(np.uint8).reshape(-1, 8)])
        starts = np.searchsorted(records[:, 0], np.arange(BINS)).astype("<i8")
        self.state.write(bucket, starts.tobytes() + records.tobytes())

    def read(self, number: int, ranges: int) -> tuple[Tags, NDArray[np.int64]]:
        """The tags of one range, ascending, and their numbers."""
        width = self.size + 8
        found = [np.empty((0, width), np.uint8)]
        for bucket in range(self.buckets):
            low, high = self._span(bucket, number, ranges)
            raw = self.state.read(bucket, _HEAD + low * width, (high - low) * width)
            found.append(np.frombuffer(raw, np.uint8).reshape(-1, width))
        records = np.concatenate(found)
        tags = np.ascontiguousarray(records[:, : self.size])
        order = ascending(tags)
        return tags[order], np.ascontiguousarray(records[order, self.size :]).view("<i8")[:, 0]

    def count(self, number: int, ranges: int) -> int:
        """How many tags a range has."""
        spans = (self._span(bucket, number, ranges) for bucket in range(self.buckets))
        return sum(high - low for low, high in spans)

    def _span(self, bucket: int, number: int, ranges: int) -> tuple[int, int]:
        """Where a range begins and ends in a bucket."""
        if bucket not in self._starts:
            whole, rest = divmod(self.state.size(bucket) - _HEAD, self.size + 8)
            starts = np.frombuffer(self.state.read(bucket, 0, _HEAD) + whole.to_bytes(8, "little", signed=True), "<i8")
            if rest or (np.diff(starts, prepend=0) < 0).any():
                raise CorruptFile(f"{self.state.where(bucket)} cannot be read: delete its folder to begin anew.")
            self._starts[bucket] = starts
        starts, each = self._starts[bucket], BINS // ranges
        return int(starts[number * each]), int(starts[(number + 1) * each])
