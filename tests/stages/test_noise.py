"""What Gaussian noise promises: its size, its independence, its source, and the sensitivity it is measured by."""

import math
from collections import Counter

import numpy as np
import pytest

from hansa.core.algorithm import Algorithm
from hansa.core.ledger import Event
from hansa.core.model import LocalWork
from hansa.core.pipeline import Arrived, Bound, Closed, Decoding, Part, Pipeline, Setting, Signal, Stage
from hansa.core.sampling import Fixed, Poisson, Sampling, Stream
from hansa.core.tensors import EMPTY, Tensors, stack
from hansa.privacy.accountant import cost
from hansa.privacy.noise import Normals, add_noise
from hansa.stages.adaptive_clip import AdaptiveClip
from hansa.stages.clip import Clip
from hansa.stages.laplace import Laplace
from hansa.stages.mean import UniformMean
from hansa.stages.noise import Gaussian, amplified
from hansa.stages.quantise import Quantise
from hansa.stages.sum import Sum
from hansa.stages.topk import TopK

N = 20
ASKED = Fixed(N)


def bound(
    *stages: Stage,
    shape: tuple[int, ...] = (50,),
    sides: tuple[str, ...] = (),
    sampling: Sampling = ASKED,
    population: int = 100,
) -> Bound:
    parts = {
        "value": Part(shapes={"w": (shape, "float32")}),
        "weight": Part(shapes={"weight": ((1,), "float64")}, bits=64),
        "metric": Part(shapes={"loss": ((2,), "float64")}, bits=64),
        **{side: Part(shapes={"w": (shape, "float32")}) for side in sides},
    }
    setting = Setting(sampling=sampling, algorithm=Algorithm(LocalWork(lr=1.0, epochs=1)), population=population)
    return Pipeline(stages, Sum()).bind(Signal(parts), setting)


def zeros(b: Bound) -> Tensors:
    return Tensors({name: np.zeros(*shape) for name, shape in b.summed.items()})


def released(b: Bound, draw: int, count: int = N) -> Tensors:
    decoding = Decoding(count, float(count), lambda label: Stream(b"secret", label, 0, draw))
    return b.decode_total(zeros(b), b.start(), decoding)[0]


def widening(cohort: int) -> float:
    return 1 + 2.0**-24 * cohort**2


def test_standard_deviation_of_the_mean_is_z_times_c_over_n() -> None:
    b = bound(Clip(2.0), UniformMean(), Gaussian(0.8))
    noise = np.stack([released(b, draw)["value/w"] for draw in range(1000)])
    assert noise.std() == pytest.approx(0.8 * 2.0 / N, rel=0.02)
    assert abs(noise.mean()) < 4 * noise.std() / math.sqrt(noise.size)


def test_coordinates_are_independent() -> None:
    b = bound(Clip(1.0), UniformMean(), Gaussian(1.0))
    noise = np.stack([released(b, draw)["value/w"] for draw in range(1000)]) * N
    covariance = np.cov(noise.T)
    eigenvalues = np.linalg.eigvalsh(covariance)
    assert np.linalg.matrix_rank(covariance) == 50
    # Marchenko and Pastur: with 50 coordinates in 1000 draws all lie in (1 ± √0.05)², less a little at the edges.
    assert eigenvalues.min() > (1 - math.sqrt(0.05)) ** 2 * 0.9 and eigenvalues.max() < (1 + math.sqrt(0.05)) ** 2 * 1.1


def test_noise_follows_the_secret_and_the_attempt_alone() -> None:
    b = bound(Clip(1.0), UniformMean(), Gaussian(1.0))
    assert released(b, 0) == released(b, 0)
    assert not np.any(released(b, 0)["value/w"] == released(b, 1)["value/w"])


def test_metrics_are_not_sent_under_noise() -> None:
    b = bound(Clip(1.0), UniformMean(), Gaussian(1.0))
    assert set(b.signal.parts) == {"value"}


def test_quantisation_widens_the_noise() -> None:
    d, step = 50, 1 / 127
    plain = bound(Clip(1.0), UniformMean(), Gaussian(1.0)).events()[0]
    coarse = bound(Clip(1.0), UniformMean(), Gaussian(1.0), Quantise(8))
    noise = np.stack([released(coarse, draw)["value/w"] for draw in range(400)]) * N
    assert noise.std() == pytest.approx(1 + step * math.sqrt(d), rel=0.02)
    assert coarse.events()[0].noise_multiplier == plain.noise_multiplier == 1.0


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
@pytest.mark.parametrize("shape", [(1,), (50,), (4000,)])
def test_no_rounding_adversary_moves_the_total_by_more_than_the_declared_sensitivity(
    bits: int, shape: tuple[int, ...]
) -> None:
    b = bound(Clip(1.0), UniformMean(), Quantise(bits), shape=shape)
    declared = b.signal.parts["value"].l2 / (2 ** (bits - 1) - 1)

    class Up(np.random.Generator):
        """Rounds everything away from zero: the worst that chance, or a client who knows the seed, can do."""

        def random(self, *size, **kwargs):  # type: ignore[no-untyped-def]
            return np.full(*size, 1 - 2.0**-53)

    worst = 0.0
    d = math.prod(shape)
    for x in (np.full(d, 1 / math.sqrt(d)), np.full(d, 1e-9), np.eye(1, d).reshape(-1), np.linspace(0, 1, d)):
        for attacker in (Up(np.random.PCG64(0)), np.random.default_rng(1)):
            message, _ = b.encode(
                stack([Tensors.join(
                    value=Tensors({"w": x.astype("float32")}), weight=Tensors({"weight": np.ones(1)}),
                    metric=Tensors({"loss": np.zeros(2)}),
                )]), b.start(), EMPTY, [attacker],
            )  # fmt: skip
            with_, without = (decoded_sum(b, [message.map(lambda a: a[0])] * k) for k in (2, 1))
            worst = max(worst, float(np.linalg.norm(with_ - without)))
    assert worst <= declared * (1 + 1e-6)
    assert declared <= max(1.0, math.sqrt(d)) + 1e-6 + math.sqrt(d) / (2 ** (bits - 1) - 1)


def decoded_sum(b: Bound, messages: list[Tensors]) -> np.ndarray:
    assert b.reducer is not None
    server = b.reducer.server(["a", "b"])
    next(server)
    for message in messages:
        server.send(Arrived("a", 0, message))
    with pytest.raises(StopIteration) as end:
        server.send(Closed(0, ()))
    total: Tensors = end.value.value
    return np.asarray(b.steps[-1].decode_total(total, EMPTY, Decoding(1, 1.0, Stream))[0]["value/w"], np.float64)


def test_float_sums_declare_what_their_rounding_shows() -> None:
    b = bound(Clip(1.0), UniformMean(), Gaussian(1.0), sampling=Fixed(1000), population=5000)
    assert b.events()[0].detail == f"value: std {1 + 1e6 / 2**24:g} on sensitivity {1 + 1e6 / 2**24:g}"


def test_more_parts_cost_more_and_the_ledger_says_so() -> None:
    event = bound(Clip(1.0), UniformMean(), Gaussian(1.0), sides=("control",)).events()[0]
    assert event.noise_multiplier == pytest.approx(1 / math.sqrt(2))


def test_selection_without_memory_keeps_the_sensitivity() -> None:
    b = bound(Clip(1.0), UniformMean(), Gaussian(1.0), TopK(0.1, error_feedback=False))
    assert b.events()[0].noise_multiplier == 1.0


def test_indicator_of_adaptive_clip_is_paid_out_of_the_same_multiplier() -> None:
    b = bound(AdaptiveClip(3.0), UniformMean(), Gaussian(1.0, count_noise=2.0))
    event = b.events()[0]
    assert event.noise_multiplier == pytest.approx(1.0)
    share = 2.0 / 0.5
    raised = (1 - share**-2) ** -0.5  # theorem 1 of Andrew et al., whose (2·σ_b) is our share
    noise = np.stack([released(b, draw)["value/w"] for draw in range(400)])
    assert noise.std() == pytest.approx(raised * 3.0 / N, rel=0.02)
    assert set(released(b, 0).parts) == {"value"}


@pytest.mark.parametrize(
    ("sampling", "kind", "rate"),
    [
        (Fixed(20), "fixed", 0.2),
        (Fixed(100), "none", 1.0),
        (Poisson(0.25), "poisson", 0.25),
        (Poisson(1.0), "none", 1.0),
        (Fixed(20, deadline_s=5.0, quorum=10), "none", 1.0),
        (Fixed(20, over_select=0.3), "none", 1.0),
        (Fixed(20, quorum=5, max_staleness=2), "none", 1.0),
        (Poisson(0.25, deadline_s=5.0), "none", 1.0),
        (Poisson(0.25, quorum=10), "none", 1.0),
    ],
)
def test_amplification_is_claimed_only_where_chance_alone_decides(sampling: Sampling, kind: str, rate: float) -> None:
    event = bound(Clip(1.0), UniformMean(), Gaussian(1.0), sampling=sampling).events()[0]
    assert (event.mechanism, event.sampling, event.rate) == ("gaussian", kind, rate)


@pytest.mark.parametrize(("rate", "kind"), [(0.2, "none"), (0.8, "poisson")])
def test_a_sum_that_draws_again_where_too_few_came_is_amplified_only_where_that_never_happens(
    rate: float, kind: str
) -> None:
    setting = Setting(
        sampling=Poisson(rate), algorithm=Algorithm(LocalWork(lr=1.0, epochs=1)), population=100, sees="total"
    )
    assert amplified(setting)[0] == kind


def test_totals_without_any_client_are_noised_too() -> None:
    b = bound(Clip(1.0), UniformMean(), Gaussian(1.0), Quantise(8), sampling=Poisson(0.2))
    decoding = Decoding(0, 20.0, lambda label: Stream(b"secret", label))
    assert np.all(b.decode_total(zeros(b), b.start(), decoding)[0]["value/w"] != 0)


# ── the sampler


def test_deviates_are_normal() -> None:
    from scipy import stats

    drawn = Normals(Stream(b"a", "b")).draw(400_000)
    assert stats.kstest(drawn, "norm").pvalue > 1e-3
    assert abs(stats.kurtosis(drawn)) < 0.05
    assert np.abs(drawn).max() > 4


def test_deviates_do_not_depend_on_how_they_are_asked_for() -> None:
    whole, pieces = Normals(Stream(b"a")), Normals(Stream(b"a"))
    expected = whole.draw(200_000)
    np.testing.assert_array_equal(expected, np.concatenate([pieces.draw(n) for n in (1, 0, 65_536, 7, 134_456)]))


@pytest.mark.parametrize("std", [1e-6, 0.3, 1.0, 7e5])
def test_released_values_lie_on_a_grid_that_does_not_depend_on_the_value(std: float) -> None:
    grid = 2.0 ** (math.floor(math.log2(std)) - 24)
    for value in (0.0, 0.1, -math.pi):
        array = np.full(1000, value * std)
        add_noise(array, std, Normals(Stream(b"g")))
        assert np.all(array / grid == np.rint(array / grid))
        assert Counter(np.sign(array - value * std))[0.0] < 5


# ── Laplace


def test_laplace_noise_has_its_scale_and_costs_one_over_z() -> None:
    from scipy import stats

    z, clip, d = 0.8, 2.0, 50
    b = bound(Clip(clip), UniformMean(), Laplace(z))
    scale = z * clip * math.sqrt(d) * widening(N)
    drawn = np.concatenate([released(b, draw)["value/w"] for draw in range(200)]).astype(np.float64) * N
    assert stats.kstest(drawn / scale, "laplace").pvalue > 1e-3
    event = bound(Clip(clip), UniformMean(), Laplace(z), sampling=Fixed(100)).events()[0]
    assert cost(Counter({event: 1}), 1e-9).epsilon == pytest.approx(1 / z, rel=0.01)
    assert cost(Counter({event: 3}), 1e-9).epsilon <= 3 / z + 1e-3


def test_laplace_is_amplified_by_every_kind_of_sample() -> None:
    for sampling in (Poisson(0.05), Fixed(5)):
        event = bound(Clip(1.0), UniformMean(), Laplace(4.0), sampling=sampling).events()[0]
        bare = Event(mechanism="laplace", noise_multiplier=4.0 if sampling.kind == "poisson" else 2.0)
        assert cost(Counter({event: 50}), 1e-5).epsilon < 0.8 * cost(Counter({bare: 50}), 1e-5).epsilon


def test_parts_share_laplace_s_epsilon() -> None:
    b = bound(Clip(1.0), UniformMean(), Laplace(1.0), sides=("control",))
    noise = np.concatenate([released(b, draw)["control/w"] for draw in range(100)]) * N
    assert np.abs(noise).mean() == pytest.approx(2 * math.sqrt(50), rel=0.05)
    assert b.events()[0].noise_multiplier == 1.0
