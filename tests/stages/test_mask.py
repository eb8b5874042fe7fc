"""What a random mask promises: k coordinates, each as likely as any other, one mask for all or one for each."""

import numpy as np
import pytest
from scipy import stats

from hansa.core.algorithm import Algorithm
from hansa.core.model import LocalWork
from hansa.core.pipeline import Bound, Decoding, Part, Pipeline, Setting, Signal
from hansa.core.sampling import Fixed, Stream
from hansa.core.tensors import EMPTY, Tensors
from hansa.stages.mask import RandomMask, chosen
from hansa.stages.mean import UniformMean
from hansa.stages.sum import Sum

WEIGHT = Part(shapes={"weight": ((1,), "float64")}, bits=64)


def bound(stage: RandomMask, size: int = 50) -> Bound:
    setting = Setting(sampling=Fixed(2), algorithm=Algorithm(LocalWork(lr=1.0, epochs=1)), population=2)
    signal = Signal({"value": Part(shapes={"w": ((size,), "float32")}), "weight": WEIGHT})
    return Pipeline([UniformMean(), stage], Sum()).bind(signal, setting)


def sent(b: Bound, values: np.ndarray, state: Tensors, seed: int = 0) -> Tensors:
    x = Tensors({"value/w": values.astype("float32")[None], "weight/weight": np.ones((1, 1))})
    return b.encode(x, state, EMPTY, [np.random.default_rng(seed)])[0].map(lambda a: a[0])


def decoding() -> Decoding:
    return Decoding(1, 1.0, lambda label: Stream(b"s", label))


@pytest.mark.parametrize(("size", "count"), [(1, 1), (7, 7), (10, 3), (1001, 250)])
def test_as_many_different_places_are_drawn_as_asked_for(size: int, count: int) -> None:
    places = chosen(size, count, seed=5)
    assert len(set(places.tolist())) == count and places.min() >= 0 and places.max() < size
    assert (np.diff(places) > 0).all()


def test_every_place_and_every_pair_is_as_likely_as_another() -> None:
    counts, draws = np.zeros((6, 6)), 6000
    for seed in range(draws):
        places = chosen(6, 2, seed)
        counts[places[0], places[1]] += 1
    pairs = counts[np.triu_indices(6, 1)]
    assert stats.chisquare(pairs).pvalue > 1e-3 and pairs.sum() == draws


def test_shared_mask_moves_with_the_round_and_its_mean_over_rounds_is_the_value() -> None:
    b, values = bound(RandomMask(0.25)), np.arange(1.0, 51.0)
    state, seen, rounds = b.start(), np.zeros(50), 600
    masks = set()
    for _ in range(rounds):
        message = sent(b, values, state)
        assert message == sent(b, values, state, seed=9), "every client has the same mask"
        assert message["value/:kept"].shape == (13,)
        total, state = b.decode_total(message, state, decoding())
        masks.add(tuple(np.flatnonzero(total["value/w"])))
        seen += total["value/w"]
    assert len(masks) == rounds
    # A coordinate is in with probability 13/50: its mean has the standard error √((50/13 − 1)/rounds) of itself.
    assert np.abs(seen / rounds / values - 1).max() < 4.5 * np.sqrt((50 / 13 - 1) / rounds)


def test_masks_of_ones_own_differ_and_are_decoded_one_by_one() -> None:
    b, values = bound(RandomMask(0.25, shared=False)), np.arange(1.0, 51.0)
    first, second = sent(b, values, b.start(), 0), sent(b, values, b.start(), 1)
    assert first["value/:mask"] != second["value/:mask"]
    mean = np.mean(
        [b.decode_one(sent(b, values, b.start(), seed), b.start())["value/w"] for seed in range(600)], axis=0
    )
    assert np.abs(mean / values - 1).max() < 4.5 * np.sqrt((50 / 13 - 1) / 600)


def test_values_stay_as_they_are_where_they_are_not_scaled() -> None:
    b, values = bound(RandomMask(0.25, scaled=False)), np.arange(1.0, 51.0)
    total, _ = b.decode_total(sent(b, values, b.start()), b.start(), decoding())
    kept = np.flatnonzero(total["value/w"])
    np.testing.assert_array_equal(total["value/w"][kept], values[kept])
