"""Tags: truncated keyed digests, of which two are compared where nobody may compare keys.

n tags of one owner and m of another collide by chance with probability n·m·2^−bits: so many bits are taken that this
stays below 2⁻⁴⁰, and at least 80.
"""

import hashlib
import math
import os
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

STATISTICAL_BITS = 40
LEAST_BITS = 80
Tags = NDArray[np.uint8]
"""Of shape (rows, bytes)."""


def tag_bytes(*sizes: int) -> int:
    """How long the tags of sets of these sizes are; 16 at most."""
    bits = STATISTICAL_BITS + sum(math.log2(max(size, 1)) for size in sizes)
    return min(16, math.ceil(max(LEAST_BITS, bits) / 8))


@dataclass(frozen=True)
class Match:
    """What an owner knows after an intersection.

    Args:
      rows: its own entries that all share, in the order that all share: that of the tags.
      tags: the keyed digests of those entries, ascending; the same at every owner.
    """

    rows: NDArray[np.int64] = field(repr=False)
    tags: Tags = field(repr=False)

    def __len__(self) -> int:
        return len(self.rows)

    def alignment(self, salt: bytes) -> bytes:
        """SHA-256 over the session's salt and the aligned keyed digests: equal where the order is."""
        return hashlib.sha256(b"hansa alignment" + salt + np.ascontiguousarray(self.tags).tobytes()).digest()


def meet(mine: Tags, theirs: Tags) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The places of equal tags in two sets, each without repetition: in `mine` and in `theirs`, by ascending tag."""
    words = np.concatenate([words_of(mine), words_of(theirs)])
    # Eight bytes decide nearly always: they are sorted alone, and runs of more than two are looked at one by one.
    order = np.argsort(words[:, 0])
    head, tail = words[order, 0], words[order, 1]
    same = head[1:] == head[:-1]
    at = np.flatnonzero(same)
    crowded = at[np.flatnonzero(np.diff(at) == 1)] if len(at) else at
    pairs = at[tail[at] == tail[at + 1]]
    first, second = order[pairs], order[pairs + 1]
    if len(crowded):
        inside = np.isin(head[pairs], head[crowded])
        extra = _one_by_one(words, order[np.isin(head, head[crowded])])
        first, second = np.append(first[~inside], extra[:, 0]), np.append(second[~inside], extra[:, 1])
        by_tag = np.lexsort((words[first, 1], words[first, 0]))
        first, second = first[by_tag], second[by_tag]
    low, high = np.minimum(first, second), np.maximum(first, second)
    across = (low < len(mine)) & (high >= len(mine))
    return low[across], high[across] - len(mine)


def repeats(tags: Tags) -> bool:
    """Whether a tag occurs twice."""
    words = words_of(tags)
    order = order_of(words)
    return bool((words[order[1:]] == words[order[:-1]]).all(axis=1).any())


def ascending(tags: Tags) -> NDArray[np.int64]:
    """The order in which tags ascend."""
    return order_of(words_of(tags))


def order_of(words: NDArray[np.uint64]) -> NDArray[np.int64]:
    """The order in which pairs of words ascend; equal ones stay in place. The first words decide nearly always."""
    order: NDArray[np.int64] = np.argsort(words[:, 0])
    head = words[order, 0]
    return np.lexsort((words[:, 1], words[:, 0])) if (head[1:] == head[:-1]).any() else order


def strictly_ascending(tags: Tags) -> bool:
    """Whether each tag is above the one before it."""
    words = words_of(tags)
    (low, low_rest), (high, high_rest) = words[:-1].T, words[1:].T
    return bool(((low < high) | ((low == high) & (low_rest < high_rest))).all())


def shuffled(count: int) -> NDArray[np.int64]:
    """A secret permutation, from the operating system's randomness."""
    order: NDArray[np.int64] = np.argsort(np.frombuffer(os.urandom(8 * count), np.uint64))
    return order


def words_of(tags: Tags) -> NDArray[np.uint64]:
    """Two big-endian words for each tag, so that they compare as its bytes do."""
    whole = np.zeros((len(tags), 16), np.uint8)
    whole[:, : tags.shape[1]] = tags
    return whole.view(">u8").astype(np.uint64)


def _one_by_one(words: NDArray[np.uint64], places: NDArray[np.int64]) -> NDArray[np.int64]:
    seen: dict[tuple[int, int], list[int]] = {}
    for place in places.tolist():
        seen.setdefault((int(words[place, 0]), int(words[place, 1])), []).append(place)
    pairs = [sorted(found) for found in seen.values() if len(found) == 2]
    return np.array(pairs, np.int64).reshape(-1, 2)
