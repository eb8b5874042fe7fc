"""The adaptive bound reaches its quantile, exactly and under noise."""

import numpy as np
import pytest

from hansa.core.algorithm import Algorithm
from hansa.core.model import LocalWork
from hansa.core.pipeline import Arrived, Closed, Decoding, Part, Pipeline, Setting, Signal, Stage
from hansa.core.sampling import Fixed, Stream
from hansa.core.tensors import EMPTY, Tensors
from hansa.stages.adaptive_clip import AdaptiveClip
from hansa.stages.mean import UniformMean, WeightedMean
from hansa.stages.noise import Gaussian
from hansa.stages.quantise import Quantise
from hansa.stages.sum import Sum

COHORT = 200


def final_share(stages: list[Stage], rounds: int, norms: np.random.Generator) -> float:
    """The share of fresh norms below the mean bound of the last rounds."""
    parts = {
        "value": Part(shapes={"w": ((6,), "float32")}),
        "weight": Part(shapes={"weight": ((1,), "float64")}, bits=64),
    }
    setting = Setting(sampling=Fixed(COHORT), algorithm=Algorithm(LocalWork(lr=1.0, epochs=1)), population=10_000)
    bound = Pipeline(stages, Sum()).bind(Signal(parts), setting)
    state, seen = bound.start(), []
    for round in range(rounds):
        directions = norms.standard_normal((COHORT, 6))
        lengths = norms.lognormal(1.0, 0.7, COHORT)
        values = directions / np.linalg.norm(directions, axis=1, keepdims=True) * lengths[:, None]
        x = Tensors({"value/w": values.astype("float32"), "weight/weight": np.ones((COHORT, 1))})
        messages, _ = bound.encode(x, state, EMPTY, [np.random.default_rng((round, i)) for i in range(COHORT)])
        assert bound.reducer is not None
        server = bound.reducer.server([])
        next(server)
        for i in range(COHORT):
            server.send(Arrived(str(i), 0, messages.map(lambda a, i=i: np.array(a[i]))))
        with pytest.raises(StopIteration) as end:
            server.send(Closed(0, ()))
        decoding = Decoding(COHORT, COHORT, lambda label, round=round: Stream(b"s", label, round))
        _, state = bound.decode_total(end.value.value, state, decoding)
        seen.append(float(state["0/bound"][0]))
    return float((norms.lognormal(1.0, 0.7, 100_000) <= np.exp(np.mean(np.log(seen[-20:])))).mean())


@pytest.mark.parametrize(
    "after",
    [
        [UniformMean()],
        [WeightedMean()],
        [UniformMean(), Quantise(12)],
        [UniformMean(), Gaussian(1.0)],
        [UniformMean(), Gaussian(1.0), Quantise(16)],
    ],
    ids=lambda stages: "-".join(type(stage).__name__ for stage in stages),
)
@pytest.mark.parametrize("initial", [0.1, 30.0])
def test_bound_reaches_its_quantile(after: list[Stage], initial: float) -> None:
    share = final_share([AdaptiveClip(initial), *after], 80, np.random.default_rng(7))
    assert share == pytest.approx(0.5, abs=0.03)


def test_other_quantiles_are_reached_too() -> None:
    share = final_share([AdaptiveClip(1.0, quantile=0.8), UniformMean()], 100, np.random.default_rng(7))
    assert share == pytest.approx(0.8, abs=0.03)
