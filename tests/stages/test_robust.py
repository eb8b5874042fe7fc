"""Liars, fewer than half, do not carry the median away; discounted integers are still added right."""

import numpy as np
import pytest

from hansa.core.pipeline import Arrived, Closed, Reducer
from hansa.core.tensors import Tensors
from hansa.stages.robust import Median
from hansa.stages.sum import Sum


def total(reducer: Reducer, rows: np.ndarray, discounts: list[float] | None = None) -> np.ndarray:
    server = reducer.server([])
    next(server)
    for i, row in enumerate(rows):
        server.send(Arrived(str(i), 0, Tensors({"value/w": row}), (discounts or [1.0] * len(rows))[i]))
    with pytest.raises(StopIteration) as end:
        server.send(Closed(0, ()))
    return np.asarray(end.value.value["value/w"])


@pytest.mark.parametrize("liars", [0, 1, 4])
@pytest.mark.parametrize("lie", [1e30, -1e30])
def test_median_stays_within_the_range_of_the_honest(liars: int, lie: float) -> None:
    honest = np.random.default_rng(0).standard_normal((9 - liars, 40))
    rows = np.concatenate([honest, np.full((liars, 40), lie)])
    median = total(Median(), rows) / 9
    assert np.all(median >= honest.min(axis=0) - 1e-12) and np.all(median <= honest.max(axis=0) + 1e-12)


def test_median_of_an_even_number_of_integers_lies_between_them() -> None:
    assert (total(Median(), np.array([[1], [2], [4], [9]], np.int8)) / 4).tolist() == [3.0]


def test_sum_of_small_integers_does_not_wrap() -> None:
    summed = total(Sum(), np.full((1000, 3), 127, np.int8))
    assert summed.dtype == np.int64 and summed.tolist() == [127_000] * 3


def test_sum_discounts_integers_without_rounding_them_to_nothing() -> None:
    assert total(Sum(), np.array([[10], [3], [4]], np.int8), [1.0, 0.5, 1.0]).tolist() == [15.5]
