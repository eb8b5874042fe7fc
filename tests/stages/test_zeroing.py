"""Zeroing: an outlier changes nothing, the bound finds its quantile, and the count is paid for under noise."""

import math

import numpy as np
import pytest

from hansa.core.algorithm import Algorithm
from hansa.core.errors import ConfigError, JobError
from hansa.core.model import LocalWork
from hansa.core.pipeline import Bound, Decoding, Part, Pipeline, Setting, Signal, Stage
from hansa.core.sampling import Fixed, Stream
from hansa.core.tensors import EMPTY, Tensors, stack
from hansa.stages.adaptive_clip import AdaptiveClip
from hansa.stages.clip import Clip
from hansa.stages.distributed_noise import DistributedGaussian
from hansa.stages.mean import UniformMean
from hansa.stages.noise import Gaussian
from hansa.stages.quantise import Quantise
from hansa.stages.sum import Sum
from hansa.stages.zeroing import Zeroing

N, D = 50, 30


def bound(*stages: Stage) -> Bound:
    parts = {
        "value": Part(shapes={"w": ((D,), "float64")}),
        "weight": Part(shapes={"weight": ((1,), "float64")}, bits=64),
    }
    setting = Setting(sampling=Fixed(N), algorithm=Algorithm(LocalWork(lr=1.0, epochs=1)), population=N)
    return Pipeline(stages, Sum()).bind(Signal(parts), setting)


def round_of(b: Bound, xs: np.ndarray, state: Tensors) -> tuple[np.ndarray, Tensors]:
    clients = [
        Tensors.join(value=Tensors({"w": x}), weight=Tensors({"weight": np.ones(1)})) for x in xs
    ]  # fmt: skip
    rngs = [np.random.default_rng(i) for i in range(len(xs))]
    coded, _ = b.encode(stack(clients), state, EMPTY, rngs)
    total = coded.map(lambda a: np.asarray(a).sum(axis=0))
    decoding = Decoding(len(xs), float(N), lambda label: Stream(b"secret", label, int(state["0/bound"][0] * 1e6)))
    total, state = b.decode_total(total, state, decoding)
    return np.asarray(total["value/w"]), state


def test_a_client_a_million_times_too_large_changes_nothing() -> None:
    rng = np.random.default_rng(0)
    xs = rng.standard_normal((N, D))
    for stages in ([Zeroing(5.0)], [Zeroing(5.0), Clip(3.0)], [Zeroing(5.0, learning_rate=0.0), Clip(3.0)]):
        b = bound(*stages, UniformMean())
        broken = xs.copy()
        broken[7] *= 1e6
        silent = xs.copy()
        silent[7] = 0
        assert np.array_equal(round_of(b, broken, b.start())[0], round_of(b, silent, b.start())[0])


def test_bound_finds_its_quantile() -> None:
    b, rng = (
        bound(Zeroing(0.01, quantile=0.9, learning_rate=0.5, increment=100.0), UniformMean()),
        np.random.default_rng(1),
    )
    state, shares = b.start(), []
    for _ in range(80):
        xs = rng.standard_normal((N, D))
        _, state = round_of(b, xs, state)
        shares.append(float((np.abs(xs).max(axis=1) <= state["0/bound"][0]).mean()))
    assert np.mean(shares[40:]) == pytest.approx(0.9, abs=0.03)


def test_fixed_bound_is_declared_and_lets_the_value_be_quantised() -> None:
    b = bound(Zeroing(1.0, learning_rate=0.0), UniformMean(), Quantise(16))
    assert b.steps[0].out.parts["value"].linf == 3.0
    assert set(b.signal.parts) == {"value"}


def test_counts_are_paid_for_out_of_the_same_multiplier() -> None:
    for noise in (Gaussian(1.0, count_noise=4.0), DistributedGaussian(1.0, bits=20, count_noise=4.0)):
        b = bound(Zeroing(1.0), AdaptiveClip(1.0), UniformMean(), noise)
        assert set(b.signal.parts) == {"value", "within", "below"}
        assert b.events()[0].noise_multiplier == pytest.approx(1.0)
    with pytest.raises(JobError, match="raise it above"):
        bound(Zeroing(1.0), AdaptiveClip(1.0), UniformMean(), Gaussian(1.0, count_noise=0.6))


def test_clip_behind_it_leaves_its_count_alone() -> None:
    b = bound(Zeroing(10.0), Clip(0.01), UniformMean())
    _, state = round_of(b, np.full((N, D), 0.1), b.start())
    assert state["0/bound"][0] == pytest.approx(10.0 * math.exp(-math.log(10) * (1.0 - 0.98)))


@pytest.mark.parametrize("stages", [[UniformMean(), Zeroing(1.0)], [Clip(1.0), Zeroing(1.0), UniformMean()],
                                    [Zeroing(1.0), Zeroing(2.0), UniformMean()]])  # fmt: skip
def test_what_has_no_outliers_is_refused(stages: list[Stage]) -> None:
    with pytest.raises(JobError, match="put Zeroing first"):
        bound(*stages)


@pytest.mark.parametrize("given", [{"initial": 0.0}, {"quantile": 1.5}, {"factor": 0.5}, {"increment": -1.0},
                                   {"learning_rate": math.nan}])  # fmt: skip
def test_bad_settings_are_refused(given: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(given))):
        Zeroing(**{"initial": 1.0, **given})
