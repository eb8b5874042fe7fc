"""Tags: long enough, and met exactly, also where their first bytes agree."""

import math

import numpy as np
from hypothesis import given, strategies as st

from hansa.vertical.psi.tags import Tags, ascending, meet, repeats, shuffled, tag_bytes

SIZES = st.integers(10, 16)


def test_tags_keep_false_matches_below_two_to_the_minus_forty() -> None:
    for a, b in [(1, 1), (1 << 16, 1 << 16), (1 << 20, 1 << 20), (10**7, 10**7), (10**4, 10**7)]:
        bits = 8 * tag_bytes(a, b)
        assert bits >= 80 and a * b * 2.0**-bits <= 2.0**-40
    assert tag_bytes(1 << 30, 1 << 30) * 8 - 60 >= 40 and tag_bytes(1 << 20, 1 << 20) == 10


def as_tags(values: list[bytes], size: int) -> Tags:
    return np.frombuffer(b"".join(each.rjust(size, b"\0") for each in values), np.uint8).reshape(-1, size)


# Few values of few bytes, at the front or at the end: many tags share their first eight bytes.
VALUES = st.lists(st.binary(min_size=10, max_size=10) | st.integers(0, 20).map(lambda n: bytes([n % 2] * 8 + [n, 0])),
                  unique=True, max_size=30)  # fmt: skip


@given(VALUES, VALUES)
def test_meeting_finds_what_sets_share_by_ascending_tag(a: list[bytes], b: list[bytes]) -> None:
    mine, theirs = meet(as_tags(a, 10), as_tags(b, 10))
    assert [a[at] for at in mine] == [b[at] for at in theirs] == sorted(set(a) & set(b))


@given(st.lists(st.integers(0, 50).map(lambda n: bytes(9) + bytes([n])), max_size=12))
def test_repeats_and_order(values: list[bytes]) -> None:
    tags = as_tags(values, 10)
    assert repeats(tags) == (len(set(values)) < len(values))
    assert [values[at] for at in ascending(tags)] == sorted(values)


def test_a_shuffle_is_a_permutation_and_not_the_same_twice() -> None:
    first, second = shuffled(500), shuffled(500)
    assert sorted(first.tolist()) == list(range(500)) and (first != second).any()
    places = np.array([int(np.flatnonzero(shuffled(8) == 0)[0]) for _ in range(2000)])
    counts = np.bincount(places, minlength=8)
    assert abs(counts - 250).max() < 6 * math.sqrt(250)
