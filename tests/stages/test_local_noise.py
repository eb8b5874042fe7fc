"""What a worker's own noise promises: its size, its law, its source, and that it is counted as what it is."""

import math
from collections import Counter

import numpy as np
import pytest

from hansa.core.algorithm import Algorithm
from hansa.core.errors import ConfigError, JobError
from hansa.core.model import LocalWork
from hansa.core.pipeline import Bound, Decoding, Part, Pipeline, Setting, Signal, Stage
from hansa.core.sampling import Fixed, Poisson, Sampling, Stream
from hansa.core.tensors import EMPTY, Tensors, stack
from hansa.privacy import noise
from hansa.privacy.accountant import ALONE, REPLACE, SERVER, cost
from hansa.privacy.calibrate import analytic_gaussian, classic_gaussian
from hansa.stages.clip import Clip
from hansa.stages.local_noise import LocalGaussian, LocalLaplace
from hansa.stages.mean import UniformMean, WeightedMean
from hansa.stages.noise import Gaussian
from hansa.stages.quantise import Quantise
from hansa.stages.sum import Sum

D = 2000
ASKED = Fixed(10)


def bound(*stages: Stage, sampling: Sampling = ASKED, dtype: str = "float64", sides: tuple[str, ...] = ()) -> Bound:
    parts = {
        "value": Part(shapes={"w": ((D,), dtype)}),
        "weight": Part(shapes={"weight": ((1,), "float64")}, bits=64),
        "metric": Part(shapes={"loss": ((2,), "float64")}, bits=64),
        **{side: Part(shapes={"w": ((D,), dtype)}) for side in sides},
    }
    setting = Setting(sampling=sampling, algorithm=Algorithm(LocalWork(lr=1.0, epochs=1)), population=100)
    return Pipeline(stages, Sum()).bind(Signal(parts), setting)


def contribution(dtype: str = "float64", fill: float = 0.0) -> Tensors:
    value, weight = Tensors({"w": np.full(D, fill, dtype)}), Tensors({"weight": np.ones(1)})
    return Tensors.join(value=value, weight=weight, metric=Tensors({"loss": np.zeros(2)}))


def encoded(b: Bound, clients: int = 1, seed: int = 0) -> np.ndarray:
    rngs = [np.random.default_rng(seed) for _ in range(clients)]
    message, _ = b.encode(stack([contribution(str(b.summed["value/w"][1]))] * clients), b.start(), EMPTY, rngs)
    assert set(message.parts) == {"value"}, "metrics and weights are not sent beside it"
    return np.asarray(message["value/w"])


def test_standard_deviation_is_that_of_dwork_and_roth() -> None:
    epsilon, delta, clip = 0.8, 1e-5, 3.0
    b = bound(Clip(clip), UniformMean(), LocalGaussian.calibrated(epsilon, delta, classic=True))
    sigma = 2 * clip * math.sqrt(2 * math.log(1.25 / delta)) / epsilon
    assert encoded(b, 40).std() == pytest.approx(sigma, rel=0.02)


@pytest.mark.parametrize(("epsilon", "delta"), [(0.05, 1e-6), (1.0, 1e-5), (12.0, 1e-9), (1e-3, 0.1)])
def test_analytic_noise_is_the_least_there_is(epsilon: float, delta: float) -> None:
    import dp_accounting as dp

    found = analytic_gaussian(epsilon, delta)
    assert found == pytest.approx(dp.get_sigma_gaussian(epsilon, delta), rel=1e-9)
    assert epsilon > 1 or found < classic_gaussian(epsilon, delta)


def test_classic_formula_is_refused_where_it_does_not_hold() -> None:
    with pytest.raises(ConfigError, match="leave classic=True out"):
        LocalGaussian.calibrated(2.0, 1e-5, classic=True)
    for epsilon, delta in ((0.0, 1e-5), (1.0, 0.0), (1.0, 1.0), (math.nan, 0.1)):
        with pytest.raises(ConfigError, match="ε is above 0"):
            LocalGaussian.calibrated(epsilon, delta)


@pytest.mark.parametrize("stage", [LocalGaussian(1.0), LocalLaplace(50.0)])
def test_noise_is_not_of_the_job_and_each_worker_has_its_own(stage: Stage) -> None:
    b = bound(Clip(1.0), UniformMean(), stage)
    first, second = encoded(b, 3), encoded(b, 3)
    assert not np.any(first == second), "the same seeds, and no coordinate alike"
    assert not np.any(first[0] == first[1]) and abs(np.corrcoef(first)[0, 1]) < 0.1


def test_entropy_of_tests_gives_what_can_be_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise, "own_stream", lambda: Stream(b"a test"))
    b = bound(Clip(1.0), UniformMean(), LocalGaussian(1.0))
    assert np.array_equal(encoded(b), encoded(b))


def test_laplace_has_its_law_and_scale() -> None:
    from scipy import stats

    b = bound(Clip(1.0), UniformMean(), LocalLaplace(50.0))
    scale = 2 * math.sqrt(D) / 50.0
    drawn = encoded(b, 20).reshape(-1)
    assert stats.kstest(drawn / scale, "laplace").pvalue > 1e-3
    assert b.events()[0].noise_multiplier == 1 / 50.0


@pytest.mark.parametrize("sampling", [Fixed(10), Fixed(100), Poisson(0.1)])
def test_ledger_tells_local_privacy_apart_and_amplifies_nothing(sampling: Sampling) -> None:
    epsilon, delta = 3.0, 1e-6
    event = bound(Clip(1.0), UniformMean(), LocalGaussian.calibrated(epsilon, delta), sampling=sampling).events()[0]
    for against in ("models", SERVER):
        once = cost(Counter({event: 1}), delta, against=against)
        assert once.relation == ALONE and once.pld == pytest.approx(epsilon, rel=1e-6)
    assert cost(Counter({event: 4}), delta).pld > epsilon
    pure = bound(Clip(1.0), UniformMean(), LocalLaplace(0.5)).events()[0]
    assert cost(Counter({pure: 1}), 1e-9).epsilon == pytest.approx(0.5, rel=2e-2)
    assert cost(Counter({pure: 1}), 1e-9).epsilon <= 0.5 + 1e-3


def test_beside_central_noise_it_is_one_replaced_client() -> None:
    local = bound(Clip(1.0), UniformMean(), LocalGaussian(5.0)).events()[0]
    central = bound(Clip(1.0), UniformMean(), Gaussian(5.0), sampling=Poisson(0.1)).events()[0]
    both = cost(Counter({local: 1, central: 1}), 1e-5)
    assert both.relation == REPLACE
    assert both.epsilon > cost(Counter({local: 1}), 1e-5).epsilon
    assert any("without amplification" in note for note in both.notes)
    assert cost(Counter({local: 1, central: 1}), 1e-5, against=SERVER).epsilon == math.inf


@pytest.mark.parametrize("rounds", [[], [Quantise(16)]], ids=["floats", "integers"])
def test_the_server_s_noise_around_it_is_measured_by_what_a_client_has_not_by_its_noise(rounds: list[Stage]) -> None:
    """Noise before the aggregation and after it (NbAFL): both ledgers' events, and no more noise than both declare."""
    b = bound(Clip(2.0), UniformMean(), Gaussian(3.0), LocalGaussian(5.0), *rounds)
    local, central = sorted(b.events(), key=lambda event: event.mechanism, reverse=True)
    assert (local.noise_multiplier, central.noise_multiplier, central.sampling) == (5.0, 3.0, "fixed")
    plain = bound(Clip(2.0), UniformMean(), Gaussian(3.0)).steps[2]._stds["value"]  # type: ignore[attr-defined]
    around = b.steps[2]._stds["value"]  # type: ignore[attr-defined]
    grid = 3.0 * math.sqrt(D) * (2.0 + 9.5 * 20.0) / 32767 if rounds else 0.0
    assert plain <= around <= (plain + grid) * 1.01
    whole = [
        b.decode_total(
            Tensors({"value/w": np.zeros(D)}), b.start(), Decoding(10, 10, lambda label, at=at: Stream(at, label))
        )
        for at in range(20)
    ]
    assert np.stack([total["value/w"] for total, _ in whole]).std() == pytest.approx(around / 10, rel=0.03)


def test_parts_share_the_multiplier() -> None:
    event = bound(Clip(1.0), UniformMean(), LocalGaussian(4.0), sides=("control",)).events()[0]
    assert event.noise_multiplier == pytest.approx(4 / math.sqrt(2))


def test_declared_bound_holds_and_lets_it_be_quantised() -> None:
    b = bound(Clip(1.0), UniformMean(), LocalGaussian(1.0), Quantise(16))
    part = b.steps[2].out.parts["value"]
    assert part.linf == 1.0 + 9.5 * 2.0 and part.l2 == part.linf * math.sqrt(D)
    assert encoded(b).dtype == np.int16


@pytest.mark.parametrize("stage", [LocalGaussian(1.0), LocalLaplace(1.0)])
@pytest.mark.parametrize(
    ("before", "said"),
    [([UniformMean()], "put Clip before it"), ([Clip(1.0), WeightedMean()], "weight that would be released exactly")],
)
def test_what_noise_cannot_protect_is_refused(stage: Stage, before: list[Stage], said: str) -> None:
    with pytest.raises(JobError, match=said):
        bound(*before, stage)


@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
def test_no_noise_is_no_protection(value: float) -> None:
    with pytest.raises(ConfigError, match="above 0"):
        LocalGaussian(value)
    with pytest.raises(ConfigError, match="above 0"):
        LocalLaplace(value)
