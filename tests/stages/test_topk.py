"""What top-k sends, what it keeps, and what it makes of a peer's indices."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from hansa.core.algorithm import Algorithm
from hansa.core.errors import UpdateRejected
from hansa.core.model import LocalWork
from hansa.core.pipeline import Bound, Part, Pipeline, Setting, Signal
from hansa.core.sampling import Fixed
from hansa.core.tensors import EMPTY, Tensors
from hansa.stages.mean import UniformMean
from hansa.stages.sum import Sum
from hansa.stages.topk import TopK

WEIGHT = Part(shapes={"weight": ((1,), "float64")}, bits=64)


def bound(stage: TopK, size: int) -> Bound:
    setting = Setting(sampling=Fixed(2), algorithm=Algorithm(LocalWork(lr=1.0, epochs=1)), population=2)
    signal = Signal({"value": Part(shapes={"w": ((size,), "float32")}), "weight": WEIGHT})
    return Pipeline([UniformMean(), stage], Sum()).bind(signal, setting)


def contribution(values: list[float]) -> Tensors:
    return Tensors({"value/w": np.array([values], "float32"), "weight/weight": np.ones((1, 1))})


def test_largest_magnitudes_are_sent_and_the_rest_waits_for_the_next_turn() -> None:
    b = bound(TopK(0.4), 5)
    x, memory = b.encode(contribution([1, -3, 2, 0.5, -2]), b.start(), EMPTY, [np.random.default_rng(0)])
    assert x["value/w:index"].tolist() == [[1, 2]]  # of -2 and 2 the lower index
    assert x["value/w:value"].tolist() == [[-3, 2]]
    assert memory["1/w"].tolist() == [[1, 0, 0, 0.5, -2]]
    x, memory = b.encode(contribution([1, 0, 0, 0, 0]), b.start(), memory, [np.random.default_rng(0)])
    assert (x["value/w:index"].tolist(), x["value/w:value"].tolist()) == ([[0, 4]], [[2, -2]])
    assert memory["1/w"].tolist() == [[0, 0, 0, 0.5, 0]]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-1000, 1000), min_size=1, max_size=30), st.floats(0.01, 1.0))
def test_nothing_is_lost_between_what_is_sent_and_what_is_kept(values: list[int], fraction: float) -> None:
    b = bound(TopK(fraction), len(values))
    memory, sent = EMPTY, np.zeros(len(values))
    for _ in range(3):
        x, memory = b.encode(contribution(values), b.start(), memory, [np.random.default_rng(0)])
        sent += b.decode_one(x.map(lambda a: a[0]), b.start())["value/w"]
    assert (sent + memory["1/w"][0]).tolist() == [3.0 * value for value in values]


def test_memory_is_kept_only_for_error_feedback() -> None:
    b = bound(TopK(0.4, error_feedback=False), 5)
    _, memory = b.encode(contribution([1, 2, 3, 4, 5]), b.start(), EMPTY, [np.random.default_rng(0)])
    assert len(memory) == 0
    assert not TopK(0.4, error_feedback=False).remembers and TopK(0.4).remembers


@pytest.mark.parametrize("index", [-1, 5, 2**31 - 1])
def test_index_outside_the_tensor_rejects_the_update(index: int) -> None:
    b = bound(TopK(0.4), 5)
    message = Tensors({"value/w:index": np.array([0, index], "int32"), "value/w:value": np.ones(2, "float32")})
    with pytest.raises(UpdateRejected, match="index outside its 5 coordinates"):
        b.decode_one(message, b.start())
