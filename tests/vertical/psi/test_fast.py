"""The parts of the fast protocol: bins, code words, and a function that each side sees half of."""

import math
import os

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

pytest.importorskip("coincurve")

from tests.vertical.psi.owners import each

from hansa.vertical.psi import cuckoo, fast
from hansa.vertical.psi.terms import Terms

TWO = ("bank", "shop")


@settings(max_examples=30)
@given(st.integers(0, 600) | st.sampled_from([5000]), st.binary(min_size=16, max_size=16))
def test_every_item_lies_in_one_of_its_bins_and_no_bin_holds_two(items: int, seed: bytes) -> None:
    digests = np.frombuffer(os.urandom(16 * items), np.uint8).reshape(-1, 16)
    count = cuckoo.bin_count(items)
    bins = cuckoo.bins_of(digests, count, seed)
    table = cuckoo.place(bins, count)
    placed = table[table >= 0]
    assert sorted((placed // 3).tolist()) == list(range(items))
    where = np.flatnonzero(table >= 0)
    assert (bins[placed // 3, placed % 3] == where).all()


def test_bins_are_even() -> None:
    digests = np.frombuffer(os.urandom(16 * 60_000), np.uint8).reshape(-1, 16)
    for column in cuckoo.bins_of(digests, 100, bytes(16)).T:
        counts = np.bincount(column, minlength=100)
        assert ((counts - 600) ** 2 / 600).sum() < 99 + 6 * math.sqrt(2 * 99)


def test_code_words_are_wide_enough_for_forty_bits() -> None:
    for pairs in (3, 3 << 16, 3 << 20, 3 << 24):
        width = fast.code_width(pairs)
        nearer = sum(math.comb(width, at) for at in range(128))
        assert pairs * nearer * 2**40 <= 2**width and width % 64 == 0
    assert fast.code_width(3 << 20) == 448
    words = fast.codes(np.frombuffer(os.urandom(16 * 500), np.uint8).reshape(-1, 16), 1, bytes(32), 448)
    apart = np.bitwise_count(words[:250] ^ words[250:]).sum(axis=1)
    assert abs(apart.mean() - 224) < 6 * math.sqrt(448 / 4 / 250) and apart.min() > 128


def test_both_halves_agree_at_the_receiver_s_keys_and_nowhere_else() -> None:
    digests = np.frombuffer(os.urandom(16 * 50), np.uint8).reshape(-1, 16)
    count = cuckoo.bin_count(40)
    bins = cuckoo.bins_of(digests, count, bytes(16))
    table = cuckoo.place(bins[:40], count)

    def play(mesh):  # type: ignore[no-untyped-def]
        session = Terms("fast", TWO, TWO, 100, ()).agree(mesh, 50)
        if mesh.me == "bank":
            return fast.evaluate_own(session, "shop", digests[:40], table, 10, 448, os.urandom)
        evaluate = fast.Evaluation(session, "bank", count, 10, 448, os.urandom)
        return [evaluate(digests, bins[:, which], which) for which in range(3)]

    own, theirs = each(TWO, play).values()
    for at in np.flatnonzero(table >= 0):
        item, which = divmod(int(table[at]), 3)
        assert (own[at] == theirs[which][item]).all()
    known = {own[at].tobytes() for at in range(count)}
    others = [row.tobytes() for which in range(3) for row in theirs[which][40:]]
    assert not known & set(others) and len(set(others)) == 30
