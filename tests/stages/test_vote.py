"""The majority vote: one step a coordinate, whatever the magnitudes, and no minority turns it."""

import numpy as np
import pytest

from hansa.core.algorithm import Algorithm
from hansa.core.model import LocalWork
from hansa.core.pipeline import Arrived, Bound, Closed, Decoding, Part, Pipeline, Setting, Signal
from hansa.core.sampling import Fixed, Poisson, Sampling, Stream
from hansa.core.tensors import EMPTY, Tensors
from hansa.stages.mean import UniformMean
from hansa.stages.pack import Pack
from hansa.stages.sign import MajorityVote
from hansa.stages.sum import Sum


def bound(sampling: Sampling) -> Bound:
    setting = Setting(sampling=sampling, algorithm=Algorithm(LocalWork(lr=1.0, epochs=1)), population=10)
    parts = {
        "value": Part(shapes={"w": ((3,), "float32"), "s": ((), "float32")}),
        "weight": Part(shapes={"weight": ((1,), "float64")}, bits=64),
    }
    return Pipeline([UniformMean(), MajorityVote(0.25), Pack()], Sum()).bind(Signal(parts), setting)


def mean(b: Bound, votes: list[list[float]]) -> list[float]:
    assert b.reducer is not None
    server = b.reducer.server(["c"] * len(votes))
    next(server)
    for vote in votes:
        x = Tensors(
            {"value/w": np.array([vote], "float32"), "value/s": np.ones(1, "float32"), "weight/weight": [[1.0]]}
        )
        message, _ = b.encode(x, b.start(), EMPTY, [np.random.default_rng(0)])
        server.send(Arrived("c", 0, b.decode_one(message.map(lambda a: a[0]), b.start())))
    with pytest.raises(StopIteration) as end:
        server.send(Closed(0, ()))
    decoding = Decoding(len(votes), 4.0, lambda label: Stream(b"s", label))
    total = b.decode_total(end.value.value, b.start(), decoding)[0]
    assert total["value/s"] == 0.25
    return [float(v) for v in total["value/w"]]


@pytest.mark.parametrize("sampling", [Fixed(5), Poisson(0.4)])
def test_most_votes_win_and_a_split_moves_nothing(sampling: Sampling) -> None:
    votes = [[1e6, 1.0, 0.0], [-1.0, 2.0, 0.0], [-0.1, 3.0, 0.0], [-5.0, -4.0, 5.0], [1e9, -5.0, -1.0]]
    assert mean(bound(sampling), votes) == [-0.25, 0.25, 0.0]


def test_minority_cannot_turn_what_the_others_agree_on() -> None:
    honest, lying = [[1.0, -1.0, 1.0]] * 3, [[-1e9, 1e9, -1e9]] * 2
    assert mean(bound(Fixed(5)), honest + lying) == [0.25, -0.25, 0.25]
