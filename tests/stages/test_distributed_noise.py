"""What noise in shares promises: the declared noise from the fewest shares, modular sums, and an honest ledger."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from hansa.core.algorithm import Algorithm
from hansa.core.errors import ConfigError, JobError
from hansa.core.ledger import Event
from hansa.core.model import LocalWork
from hansa.core.pipeline import Arrived, Bound, Closed, Decoding, Part, Pipeline, Reducer, Setting, Signal, Stage
from hansa.core.sampling import Fixed, Poisson, Sampling, Stream
from hansa.core.tensors import EMPTY, Tensors, stack
from hansa.privacy.accountant import ADD_OR_REMOVE, ALONE, REPLACE, SERVER, cost
from hansa.privacy.mechanisms import Shares
from hansa.stages.adaptive_clip import AdaptiveClip
from hansa.stages.clip import Clip
from hansa.stages.distributed_noise import (
    DistributedGaussian,
    DistributedSkellam,
    conditionally_rounded,
    rounded_norm,
)
from hansa.stages.mean import UniformMean, WeightedMean
from hansa.stages.median import Median
from hansa.stages.rotate import Rotate
from hansa.stages.sum import Sum
from hansa.stages.topk import TopK

N = 20
ASKED = Fixed(N)
BOTH = pytest.mark.parametrize("kind", [DistributedGaussian, DistributedSkellam])


class Hidden(Sum):
    """A sum that hides contributions, as far as binding is concerned."""

    sees = "total"


def bound(
    *stages: Stage, d: int = 500, sampling: Sampling = ASKED, population: int = 100, reducer: Reducer | None = None,
    dtype: str = "float32",
) -> Bound:  # fmt: skip
    reducer = reducer or Sum()
    parts = {
        "value": Part(shapes={"w": ((d,), dtype), "s": ((), dtype)}),
        "weight": Part(shapes={"weight": ((1,), "float64")}, bits=64),
        "metric": Part(shapes={"loss": ((2,), "float64")}, bits=64),
    }
    setting = Setting(
        sampling=sampling, algorithm=Algorithm(LocalWork(lr=1.0, epochs=1)), population=population, sees=reducer.sees
    )
    return Pipeline(stages, reducer).bind(Signal(parts), setting)


def contribution(b: Bound, x: np.ndarray) -> Tensors:
    value = Tensors({"w": x.astype("float32"), "s": np.zeros((), "float32")})
    weight = Tensors({"weight": np.ones(1)})
    whole = Tensors.join(value=value, weight=weight, metric=Tensors({"loss": np.zeros(2)}))
    message, _ = b.encode(stack([whole]), b.start(), EMPTY, [np.random.default_rng(0)])
    message = message.map(lambda a: np.array(a[0]))
    b.admit(message, "a client")
    return message


def mean(b: Bound, messages: list[Tensors]) -> np.ndarray:
    assert b.reducer is not None
    server = b.reducer.server([str(i) for i in range(len(messages))])
    next(server)
    for message in messages:
        server.send(Arrived("a", 0, message))
    with pytest.raises(StopIteration) as end:
        server.send(Closed(0, ()))
    decoding = Decoding(len(messages), float(N), Stream)
    total = b.decode_total(end.value.value, b.start(), decoding)[0]
    assert total.shapes["value/w"][1] == "float32" and total["value/s"].shape == ()
    return np.asarray(total["value/w"], np.float64)


@BOTH
@pytest.mark.parametrize("rotated", ["", "hadamard", "fourier"])
def test_mean_is_the_mean_and_its_noise_what_was_declared(kind: type[DistributedGaussian], rotated: str) -> None:
    rng, z, clip = np.random.default_rng(1), 0.7, 2.0
    b = bound(Clip(clip), UniformMean(), *([Rotate(clip=4, transform=rotated)] if rotated else []), kind(z, bits=16))
    xs = [rng.standard_normal(500) for _ in range(N)]
    expected = np.mean([x * min(1, clip / np.linalg.norm(x)) for x in xs], axis=0)
    errors = np.stack([mean(b, [contribution(b, x) for x in xs]) - expected for _ in range(20)])
    assert errors.std() == pytest.approx(z * clip / N, rel=0.03)
    assert abs(errors.mean()) < 4 * errors.std() / math.sqrt(errors.size)


@BOTH
def test_epsilon_is_the_central_one_s_at_16_bits(kind: type[DistributedGaussian]) -> None:
    central = {z: cost(Counter({Event(mechanism="gaussian", noise_multiplier=z): 1}), 1e-5) for z in (0.5, 1.0, 4.0)}
    for d in (1000, 100_000):
        for z, reference in central.items():
            b = bound(Clip(1.0), UniformMean(), Rotate(clip=4), kind(z, bits=16), d=d, sampling=Fixed(100))
            found = cost(Counter({b.events()[0]: 1}), 1e-5)
            assert found.epsilon == pytest.approx(reference.rdp, rel=0.05)
            grid = b.steps[-1]._grids[0]  # type: ignore[attr-defined]
            noise = math.sqrt(grid.variance * 100) * grid.unit
            assert noise == pytest.approx(z, rel=0.02), "with no more noise than the central mechanism adds"


def test_fewest_shares_bear_the_declared_noise() -> None:
    z = 1.0
    whole = bound(Clip(1.0), UniformMean(), DistributedGaussian(z, bits=16))
    dropped = bound(Clip(1.0), UniformMean(), DistributedGaussian(z, bits=16), sampling=Fixed(N, quorum=5))
    shares = [Shares.from_text(b.events()[0].detail) for b in (whole, dropped)]
    assert [s.shares for s in shares] == [N, 5]
    for s, b in zip(shares, (whole, dropped), strict=True):
        assert s.multiplier == pytest.approx(z) and b.events()[0].noise_multiplier == pytest.approx(z)
    zero = np.zeros(500)
    few = np.stack([mean(dropped, [contribution(dropped, zero) for _ in range(5)]) for _ in range(40)])
    assert few.std() * 5 == pytest.approx(z, rel=0.03)
    colluding = bound(Clip(1.0), UniformMean(), DistributedGaussian(z, bits=16, colluding=0.5))
    assert Shares.from_text(colluding.events()[0].detail).shares == N // 2


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([10, 13, 16, 24, 32]), st.integers(2, 200))
def test_no_contribution_is_longer_after_rounding_than_was_declared(seed: int, bits: int, d: int) -> None:
    try:
        b = bound(Clip(1.0), UniformMean(), DistributedGaussian(1.0, bits=bits), d=d)
    except JobError:
        return
    rng, grid = np.random.default_rng(seed), b.steps[-1]._grids[0]  # type: ignore[attr-defined]
    x = rng.standard_normal(d + 1) * rng.choice([1e-6, 1.0, 1e3])
    x *= min(1.0, grid.l2 / np.linalg.norm(x / grid.unit))
    rounded = conditionally_rounded(x / grid.unit, grid.longest, rng)
    assert np.linalg.norm(rounded) <= grid.longest
    assert np.abs(rounded - x / grid.unit).max() < 1


def test_rounding_has_no_bias_to_speak_of() -> None:
    x = np.random.default_rng(0).standard_normal(400) * 3
    rng, longest = np.random.default_rng(1), rounded_norm(float(np.linalg.norm(x)), 400)
    found = np.mean([conditionally_rounded(x, longest, rng) for _ in range(4000)], axis=0)
    assert np.linalg.norm(found - x) < 0.02 * np.linalg.norm(x)


def test_what_earlier_stages_promised_is_enforced_again() -> None:
    b = bound(Clip(1.0), UniformMean(), DistributedGaussian(1e-3, bits=24))
    step = b.steps[-1]
    x = Tensors({"value/w": np.full((1, 500), 1.0, "float32"), "value/s": np.zeros((1,), "float32")})
    coded, _ = step.encode(x, EMPTY, EMPTY, [np.random.default_rng(0)])
    grid = step._grids[0]  # type: ignore[attr-defined]
    assert np.linalg.norm(np.asarray(coded["value/:noised"], np.float64)) * grid.unit < 1.1


def test_sums_wrap_and_unwrap() -> None:
    b = bound(Clip(1.0), UniformMean(), DistributedGaussian(0.1, bits=12))
    grid, modulus = b.steps[-1]._grids[0], 1 << 12  # type: ignore[attr-defined]
    part = b.signal.parts["value"]
    assert (part.domain, part.modulus, part.linf) == ("integer", modulus, modulus / 2)
    # Messages that are each wrapped, as those of far-out noise would be: the sum modulo 2^bits is what counts.
    flat = np.full(501, modulus // 2 - 1, np.int16)
    messages = [Tensors({"value/:noised": flat}), Tensors({"value/:noised": (flat + 2 - modulus).astype(np.int16)})]
    messages += [Tensors({"value/:noised": np.zeros(501, np.int16)})] * (N - 2)
    assert mean(b, messages) == pytest.approx(np.zeros(500), abs=grid.unit)


@BOTH
def test_noise_is_the_worker_s_own(kind: type[DistributedGaussian]) -> None:
    b = bound(Clip(1.0), UniformMean(), kind(1.0, bits=16))
    first, second = (np.asarray(contribution(b, np.zeros(500))["value/:noised"]) for _ in range(2))
    assert np.mean(first == second) < 0.2, "the same job and seed, and other noise"


@pytest.mark.parametrize(
    ("sampling", "kind", "relation"),
    [
        (Fixed(20), "fixed", REPLACE),
        (Fixed(100), "none", ADD_OR_REMOVE),
        (Fixed(20, deadline_s=5.0, quorum=10), "none", ADD_OR_REMOVE),
        (Poisson(0.2, quorum=10), "none", ADD_OR_REMOVE),
    ],
)
def test_amplification_is_claimed_only_where_noise_does_not_depend_on_who_is_in(
    sampling: Sampling, kind: str, relation: str
) -> None:
    event = bound(Clip(1.0), UniformMean(), DistributedGaussian(3.0, bits=20), sampling=sampling).events()[0]
    assert event.sampling == kind
    found = cost(Counter({event: 10}), 1e-5)
    assert found.relation == relation and math.isfinite(found.rdp) and found.pld == math.inf
    if kind == "fixed":
        alone = Event(mechanism="gaussian", noise_multiplier=1.5)
        assert found.epsilon < cost(Counter({alone: 10}), 1e-5).epsilon, "amplified"


def test_against_the_server_the_sum_must_be_hidden() -> None:
    stages = [Clip(1.0), UniformMean(), DistributedGaussian(2.0, bits=20)]
    hidden, seen = (bound(*stages, reducer=reducer).events()[0] for reducer in (Hidden(), Sum()))
    outside = cost(Counter({hidden: 1}), 1e-5)
    server = cost(Counter({hidden: 1}), 1e-5, against=SERVER)
    assert server.relation == ADD_OR_REMOVE and math.isfinite(server.epsilon)
    assert outside.notes and not server.notes
    bare = cost(Counter({seen: 1}), 1e-5, against=SERVER)
    # One share of 20 has 1/√20 of the noise, and one contribution is replaced by another.
    same = cost(Counter({Event(mechanism="local gaussian", noise_multiplier=2.0 / math.sqrt(20) / 2): 1}), 1e-5)
    assert bare.relation == ALONE and bare.epsilon == pytest.approx(same.rdp, rel=0.02)
    assert any("only a client's own share" in note for note in bare.notes)
    assert any("only a client's own share" in note for note in cost(Counter({seen: 1}), 1e-5).notes)


def test_indicator_of_adaptive_clip_is_noised_too() -> None:
    b = bound(AdaptiveClip(1.0), UniformMean(), DistributedGaussian(1.0, bits=20))
    assert set(b.signal.parts) == {"value", "below"}
    assert b.events()[0].noise_multiplier == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("stages", "sampling", "reducer", "said"),
    [
        ([UniformMean(), DistributedGaussian(1.0)], ASKED, Sum(), "put Clip before it"),
        ([Clip(1.0), WeightedMean(), DistributedGaussian(1.0)], ASKED, Sum(), "weight that would be released"),
        ([Clip(1.0), UniformMean(), DistributedGaussian(1.0, bits=8)], ASKED, Sum(), "raise bits"),
        ([Clip(1.0), UniformMean(), DistributedGaussian(1.0)], Poisson(0.2), Sum(), "give Poisson a quorum"),
        ([Clip(1.0), UniformMean(), DistributedGaussian(1.0, colluding=0.99)], Fixed(2), Sum(), "no share of noise"),
        ([Clip(1.0), UniformMean(), DistributedGaussian(1.0)], ASKED, Median(), "cannot compare integers that wrap"),
        ([Clip(1.0), UniformMean(), DistributedGaussian(1.0), TopK(0.1)], ASKED, Sum(), "TopK"),
        ([Clip(1.0), UniformMean(), TopK(0.1), DistributedGaussian(1.0)], ASKED, Sum(), "rounded or selected"),
        (
            [Clip(1.0), UniformMean(), DistributedGaussian(1.0)],
            Fixed(5, quorum=5, max_staleness=1),
            Sum(),
            "max_staleness=0",
        ),
    ],
)
def test_what_noise_cannot_protect_is_refused(
    stages: list[Stage], sampling: Sampling, reducer: Reducer, said: str
) -> None:
    with pytest.raises(JobError, match=said):
        bound(*stages, sampling=sampling, reducer=reducer)


@pytest.mark.parametrize(
    "given", [{"noise_multiplier": 0.0}, {"noise_multiplier": -1.0}, {"bits": 7}, {"bits": 33}, {"colluding": 1.0},
              {"reach": 0.0}, {"count_noise": 0.0}, {"noise_multiplier": math.nan}],
)  # fmt: skip
def test_bad_settings_are_refused(given: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(given))):
        DistributedGaussian(**{"noise_multiplier": 1.0, **given})  # type: ignore[arg-type]
