"""As many liars as a reducer says it withstands do not carry it away; one more may; and what it needs is refused."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from hansa.core import tensors
from hansa.core.algorithm import Algorithm
from hansa.core.errors import ConfigError, JobError, SecretRoundVoid
from hansa.core.model import LocalWork
from hansa.core.pipeline import Arrived, Bound, Closed, Decoding, Part, Pipeline, Reducer, Setting, Signal, Stage
from hansa.core.sampling import Fixed, Poisson, Sampling, Stream
from hansa.core.tensors import EMPTY, Tensors, stack
from hansa.stages.bulyan import Bulyan
from hansa.stages.centre import Centre
from hansa.stages.centred_clipping import CentredClipping
from hansa.stages.clip import Clip
from hansa.stages.distributed_noise import DistributedGaussian
from hansa.stages.fltrust import FLTrust, Rooted
from hansa.stages.geometric_median import GeometricMedian
from hansa.stages.krum import Krum, MultiKrum
from hansa.stages.mean import UniformMean, WeightedMean
from hansa.stages.median import Median
from hansa.stages.noise import Gaussian
from hansa.stages.norm_bound import NormBound
from hansa.stages.pack import Pack
from hansa.stages.quantise import Quantise
from hansa.stages.robust import Gathered, Robust, squared_distances
from hansa.stages.rotate import Rotate
from hansa.stages.sum import Sum
from hansa.stages.trimmed_mean import TrimmedMean

VOTES: list[Robust] = [
    Median(),
    TrimmedMean(0.3),
    Krum(2),
    MultiKrum(2),
    MultiKrum(2, m=2),
    Bulyan(2),
    GeometricMedian(),
]
every_vote = pytest.mark.parametrize("reducer", VOTES, ids=str)


def total(reducer: Reducer, rows: np.ndarray, discounts: list[float] | None = None) -> np.ndarray:
    server = reducer.server([])
    next(server)
    for i, row in enumerate(rows):
        server.send(Arrived(str(i), 0, Tensors({"value/w": row}), (discounts or [1.0] * len(rows))[i]))
    with pytest.raises(StopIteration) as end:
        server.send(Closed(0, ()))
    return np.asarray(end.value.value["value/w"])


def mean(reducer: Reducer, rows: np.ndarray) -> np.ndarray:
    return total(reducer, rows) / len(rows)


def gathered(rows: np.ndarray) -> Gathered:
    return Gathered([str(i) for i in range(len(rows))], [Tensors({"value/w": row}) for row in rows])


def setting(sampling: Sampling, population: int = 100) -> Setting:
    return Setting(sampling=sampling, algorithm=Algorithm(LocalWork(lr=1.0, epochs=1)), population=population)


SIGNAL = Signal(
    {
        "value": Part(shapes={"w": ((6,), "float32")}),
        "weight": Part(shapes={"weight": ((1,), "float64")}, bits=64),
    }
)


def bound(stages: Sequence[Stage], reducer: Reducer, sampling: Sampling, population: int = 100) -> Bound:
    return Pipeline(stages, reducer).bind(SIGNAL, setting(sampling, population))


# ── liars


@every_vote
@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    places=st.permutations(range(11)),
    size=st.sampled_from([1e2, 1e6, 1e12, 1e30, 1e200]),
    together=st.booleans(),
)
def test_as_many_liars_as_it_withstands_move_the_mean_by_no_more_than_the_honest_differ(
    reducer: Robust, seed: int, places: list[int], size: float, together: bool
) -> None:
    rng = np.random.default_rng(seed)
    liars = places[: reducer.withstands(11)]
    rows = rng.standard_normal((11, 5)) + 3
    honest = np.delete(rows, liars, axis=0)
    rows[liars] = size * (np.ones(5) if together else rng.standard_normal((len(liars), 5)))
    reach = np.linalg.norm(honest - honest.mean(axis=0), axis=1).max()
    moved = np.linalg.norm(mean(reducer, rows) - honest.mean(axis=0))
    assert liars
    assert moved <= 2 * reach * (11 + 2 + math.sqrt(5))  # the loosest of their bounds: the geometric median's


@pytest.mark.parametrize("reducer", [Median(), TrimmedMean(0.3), GeometricMedian()], ids=str)
def test_one_liar_more_carries_it_away(reducer: Robust) -> None:
    rows = np.random.default_rng(0).standard_normal((11, 5))
    liars = reducer.withstands(11) + 1
    rows[:liars] = 1e12
    assert np.abs(mean(reducer, rows)).max() > 1e9


@pytest.mark.parametrize("reducer", [Median(), TrimmedMean(0.4), Bulyan(2)], ids=str)
@pytest.mark.parametrize("lie", [1e30, -1e30])
def test_every_coordinate_stays_within_the_range_of_the_honest(reducer: Robust, lie: float) -> None:
    liars = reducer.withstands(11)
    honest = np.random.default_rng(0).standard_normal((11 - liars, 40))
    found = mean(reducer, np.concatenate([honest, np.full((liars, 40), lie)]))
    assert np.all(found >= honest.min(axis=0) - 1e-12) and np.all(found <= honest.max(axis=0) + 1e-12)


@pytest.mark.parametrize("liars", list(itertools.combinations(range(7), 2)))
def test_krum_and_multi_krum_ignore_exactly_the_liars(liars: tuple[int, int]) -> None:
    rows = np.random.default_rng(1).standard_normal((7, 30))
    rows[list(liars)] += 40.0
    squared = squared_distances(gathered(rows).gram(["value/w"]))
    honest = sorted(set(range(7)) - set(liars))
    chosen = Krum(2).chosen(squared).tolist()
    assert len(chosen) == 1 and chosen[0] in honest
    assert MultiKrum(2).chosen(squared).tolist() == sorted(MultiKrum(2).chosen(squared).tolist())
    assert set(MultiKrum(2).chosen(squared).tolist()) < set(honest) and len(MultiKrum(2).chosen(squared)) == 3
    assert mean(Krum(2), rows).tolist() == pytest.approx(rows[chosen[0]].tolist(), rel=1e-15)


@pytest.mark.parametrize("liars", list(itertools.combinations(range(11), 2))[::5])
def test_bulyan_chooses_exactly_the_honest_where_each_liar_stands_alone(liars: tuple[int, int]) -> None:
    rows = np.random.default_rng(2).standard_normal((11, 30))
    rows[list(liars)] += np.array([[40.0], [-40.0]])
    chosen = Bulyan(2).chosen(squared_distances(gathered(rows).gram(["value/w"])))
    assert set(chosen.tolist()) < set(range(11)) - set(liars) and len(chosen) == 7


def test_bulyan_outvotes_one_wild_coordinate_in_a_vector_that_krum_would_take() -> None:
    rows = np.random.default_rng(3).standard_normal((7, 2000))
    rows[0] = rows[1:].mean(axis=0)  # nearest to all: Krum's choice
    rows[0, 5] += 30.0  # a little of the distance, a lot of one weight
    assert mean(Krum(1), rows)[5] > 20 and abs(mean(Bulyan(1), rows)[5]) < 3


def test_krum_scores_are_those_of_the_paper() -> None:
    rows = np.array([[0.0], [1.0], [2.0], [4.0], [100.0]])
    # n − f − 2 = 2 neighbours: 1 + 4, 1 + 1, 1 + 4, 4 + 9, 96² + 98²
    assert mean(Krum(1), rows).tolist() == [1.0]
    assert mean(MultiKrum(1), rows).tolist() == [0.5]  # the two lowest scores: 1 and, of two equal ones, the first


def test_two_equal_liars_far_apart_from_all_are_not_each_others_witnesses() -> None:
    rows = np.random.default_rng(4).standard_normal((7, 8))
    rows[:2] = 1e200
    assert np.abs(mean(Krum(2), rows)).max() < 10 and np.abs(mean(GeometricMedian(), rows)).max() < 10


# ── formulas


def test_median_of_an_even_number_of_integers_lies_between_them() -> None:
    assert mean(Median(), np.array([[1], [2], [4], [9]], np.int8)).tolist() == [3.0]


def test_trimmed_mean_is_the_mean_of_the_middle() -> None:
    assert mean(TrimmedMean(0.2), np.array([[1.0], [2.0], [4.0], [9.0], [50.0]])).tolist() == [5.0]
    assert TrimmedMean(0.29).withstands(100) == 29


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32), count=st.integers(3, 12))
def test_at_the_geometric_median_the_pulls_of_all_contributions_cancel(seed: int, count: int) -> None:
    rows = np.random.default_rng(seed).standard_normal((count, 30))
    away = rows - mean(GeometricMedian(), rows)
    pulls = away / np.linalg.norm(away, axis=1, keepdims=True)
    assert np.linalg.norm(pulls.sum(axis=0)) < 1e-6


def test_geometric_median_of_most_in_one_point_is_that_point() -> None:
    rows = np.concatenate([np.full((4, 3), 2.0), np.eye(3)])
    assert mean(GeometricMedian(), rows).tolist() == [2.0, 2.0, 2.0]
    assert mean(GeometricMedian(), rows[:1]).tolist() == [2.0, 2.0, 2.0]


@pytest.mark.parametrize("iterations", [1, 2, 7])
def test_centred_clipping_is_the_papers_iteration(iterations: int) -> None:
    rows = np.random.default_rng(5).standard_normal((6, 9)) * np.arange(1, 7)[:, None]
    v = np.zeros(9)
    for _ in range(iterations):
        away = rows - v
        v = v + (away * np.minimum(1, 2.5 / np.linalg.norm(away, axis=1))[:, None]).mean(axis=0)
    np.testing.assert_allclose(mean(CentredClipping(2.5, iterations=iterations), rows), v, rtol=1e-12)


def test_centred_clipping_moves_by_no_more_than_its_radius_whatever_is_sent() -> None:
    rows = np.full((5, 4), 1e30)
    assert np.linalg.norm(mean(CentredClipping(2.0), rows)) <= 2.0 * (1 + 1e-12)
    assert np.linalg.norm(mean(CentredClipping(2.0), np.full((5, 4), 1e200))) <= 2.0


def test_centre_remembers_the_last_mean_and_clipping_is_then_around_it() -> None:
    b, rng = bound([UniformMean(), Centre()], CentredClipping(0.5), Fixed(4)), np.random.default_rng(6)
    state, v = b.start(), np.zeros(6)
    decoding = Decoding(4, 4.0, lambda label: Stream(b"s", label))
    for _ in range(3):
        rows = rng.standard_normal((4, 6)).astype(np.float32) + 5
        messages = [encoded(b, row, state) for row in rows]
        total, state = b.decode_total(reduced(b, messages), state, decoding)
        away = rows - v
        v = v + (away * np.minimum(1, 0.5 / np.linalg.norm(away, axis=1))[:, None]).mean(axis=0)
        np.testing.assert_allclose(total["value/w"], v, rtol=1e-5)
    assert set(state) == {"1/value/w"}


def encoded(b: Bound, row: np.ndarray, state: Tensors) -> Tensors:
    whole = Tensors({"value/w": row, "weight/weight": np.ones(1)})
    return b.encode(stack([whole]), state, EMPTY, [np.random.default_rng(0)])[0].map(lambda a: np.array(a[0]))


def reduced(b: Bound, messages: Sequence[Tensors], names: Sequence[str] = ()) -> Tensors:
    assert b.reducer is not None
    names = tuple(names or (f"c{i}" for i in range(len(messages))))
    server = b.reducer.server(names, None)  # type: ignore[arg-type]
    next(server)
    for name, message in zip(names, messages, strict=True):
        server.send(Arrived(name, 0, message))
    with pytest.raises(StopIteration) as end:
        server.send(Closed(0, names))
    result = end.value.value
    assert isinstance(result, Tensors)
    return result


def test_fltrust_is_the_papers_formula() -> None:
    rows = np.random.default_rng(7).standard_normal((6, 12)).astype(np.float32)
    b = bound([UniformMean()], FLTrust("root"), Rooted("root", 5))
    names = ["a", "b", "root", "x", "y", "z"]
    found = reduced(b, [Tensors({"value/w": row[:6]}) for row in rows], names)["value/w"] / 6
    rows = rows[:, :6].astype(np.float64)
    length = np.linalg.norm(rows, axis=1)
    trust = np.maximum(0, rows @ rows[2] / (length * length[2]))
    trust[2] = 0
    expected = sum(t * length[2] / n * row for t, n, row in zip(trust, length, rows, strict=True)) / trust.sum()
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("size", [1.0, 1e30, 1e200])
def test_fltrust_is_never_longer_than_the_root_nor_against_it(size: float) -> None:
    rng = np.random.default_rng(8)
    root = rng.standard_normal(6)
    lies = size * rng.standard_normal((8, 6))
    b = bound([UniformMean()], FLTrust("0"), Rooted("0", 8))
    names = [str(i) for i in range(9)]
    found = reduced(b, [Tensors({"value/w": row}) for row in [root, *lies]], names)["value/w"] / 9
    assert np.linalg.norm(found) <= np.linalg.norm(root) * (1 + 1e-12) and found @ root >= 0
    still = reduced(b, [Tensors({"value/w": row}) for row in [root, *([-root] * 8)]], names)["value/w"]
    assert not still.any(), "whom nobody trusts moves nothing"


def test_fltrust_without_its_root_makes_the_round_void() -> None:
    b = bound([UniformMean()], FLTrust("root"), Rooted("root", 2, quorum=2))
    server = b.reducer.server(("a", "b"), None)  # type: ignore[union-attr, arg-type]
    next(server)
    for name in "ab":
        server.send(Arrived(name, 0, Tensors({"value/w": np.ones(6)})))
    with pytest.raises(SecretRoundVoid, match="'root' did not answer"):
        server.send(Closed(0, ("a", "b")))


def test_rooted_asks_the_root_in_every_round_and_the_others_alike() -> None:
    people, counts = [f"c{i}" for i in range(9)] + ["root"], dict.fromkeys(["c0", "c4", "c8"], 0)
    for seed in range(600):
        drawn = Rooted("root", 3).draw(people, Stream(seed))
        assert len(drawn) == 4 and "root" in drawn and drawn == sorted(drawn)
        for name in counts:
            counts[name] += name in drawn
    assert all(150 < count < 250 for count in counts.values()), counts
    assert not Rooted("root", 3).random_membership
    with pytest.raises(ConfigError, match="enrol its worker"):
        Rooted("root", 3).draw(people[:-1], Stream(0))


# ── norm bounds


def test_norm_bound_cuts_what_is_too_long_and_leaves_the_rest_bit_for_bit() -> None:
    rows = np.random.default_rng(9).standard_normal((3, 6)).astype(np.float32)
    rows[0] *= 0.1
    reducer = NormBound(1.0).bind(bound([UniformMean()], Sum(), Fixed(3)).signal, setting(Fixed(3)))
    assert total(reducer, rows[:1]).tobytes() == rows[0].tobytes()
    assert 1 - 1e-5 < np.linalg.norm(total(reducer, rows[1:2] * 1e6)) <= 1
    assert not total(NormBound(1.0, drop=True).bind(bound([UniformMean()], Sum(), Fixed(3)).signal, setting(Fixed(3))),
                     rows[1:2] * 1e6).any()  # fmt: skip


@pytest.mark.parametrize("lie", [np.full(6, 127, np.int8), np.full(6, -128, np.int8)])
def test_norm_bound_holds_integers_to_what_clip_and_quantise_declare(lie: np.ndarray) -> None:
    b = bound([Clip(1.0), UniformMean(), Quantise(8)], NormBound(), Fixed(3))
    most = b.signal.parts["value"].l2
    assert np.linalg.norm(lie.astype(float)) > most
    cut = reduced(b, [Tensors({"value/w": lie})])["value/w"]
    assert cut.dtype == np.int64 and most - 6 < np.linalg.norm(cut) <= most


def test_norm_bound_and_median_take_what_is_packed_or_rotated() -> None:
    stages = [Clip(1.0), UniformMean(), Rotate(), Quantise(8), Pack()]
    for reducer in (NormBound(), Median()):
        b = bound(stages, reducer, Fixed(3))
        row = np.array([3.0, 0, 4, 0, 0, 0], np.float32)
        messages = [b.decode_one(encoded(b, row, b.start()), b.start())] * 3
        decoding = Decoding(3, 3.0, lambda label: Stream(b"s", label))
        mean = b.decode_total(reduced(b, messages), b.start(), decoding)[0]["value/w"]
        np.testing.assert_allclose(mean, row / 5, atol=0.03)


def test_noise_behind_a_norm_bound_is_measured_by_what_the_server_enforces() -> None:
    clipped = bound([Clip(1.0), UniformMean(), Gaussian(1.0)], Sum(), Fixed(10))
    held = bound([Clip(1.0), UniformMean(), Gaussian(1.0)], NormBound(), Fixed(10))
    assert held.events() == clipped.events()
    tighter = bound([Clip(1.0), UniformMean(), Gaussian(1.0)], NormBound(0.25), Fixed(10))
    assert "std 0.25" in tighter.events()[0].detail


# ── one part does not hide behind another


def test_parts_of_different_scale_are_reduced_each_by_itself() -> None:
    rng = np.random.default_rng(10)
    value, buffers = rng.standard_normal((7, 4)), rng.standard_normal((7, 4)) * 1e6
    value[0] += 50.0  # far from all, and nothing beside the buffers
    server = Krum(1).server([])
    next(server)
    for i in range(7):
        server.send(Arrived(str(i), 0, Tensors({"value/w": value[i], "buffers/m": buffers[i]})))
    with pytest.raises(StopIteration) as end:
        server.send(Closed(0, ()))
    assert np.abs(end.value.value["value/w"] / 7).max() < 10


def test_distances_are_the_same_in_small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(11).standard_normal((70, 50))
    whole = squared_distances(gathered(rows).gram(["value/w"]))
    monkeypatch.setattr(tensors, "BLOCK", 7)
    np.testing.assert_allclose(squared_distances(gathered(rows).gram(["value/w"])), whole, atol=1e-12)
    np.testing.assert_allclose(whole, ((rows[:, None] - rows[None]) ** 2).sum(axis=2), atol=1e-11)


# ── what is refused

REFUSED: list[tuple[Sequence[Stage], Reducer, Sampling, str]] = [
    ([UniformMean()], Krum(4), Fixed(10), r"Krum\(f=4\) needs at least 11 contributions, and a round may have 10"),
    ([UniformMean()], Krum(4), Fixed(20, quorum=10), "may have 10"),
    ([UniformMean()], MultiKrum(2, m=7), Fixed(10), "n − f − 2 = 6 at the most"),
    ([UniformMean()], Bulyan(2), Fixed(10), "at least 11"),
    ([UniformMean()], TrimmedMean(0.1), Fixed(9), "takes nobody away: raise it to at least 0.111"),
    ([Clip(1.0), UniformMean(), DistributedGaussian(1.0)], Median(), Fixed(10), "integers that wrap"),
    ([Clip(1.0), UniformMean(), DistributedGaussian(1.0)], NormBound(), Fixed(10), "integers that wrap"),
    ([UniformMean()], FLTrust("root"), Fixed(10), r"sampling=Rooted\('root', clients=10\)"),
    ([UniformMean()], FLTrust("root"), Rooted("other", 9), "needs 'root' in every round"),
    ([UniformMean()], NormBound(), Fixed(10), "finds no bound on 'value': put Clip before it"),
    ([Clip(1.0), WeightedMean()], NormBound(1.0), Fixed(10), r"put UniformMean\(\) before it"),
    ([Clip(1.0), UniformMean(), Quantise(8)], NormBound(1.0), Fixed(10), "travels as integers: leave it out"),
    ([Clip(1.0), UniformMean(), Quantise(8)], CentredClipping(1.0), Fixed(10), "leave Quantise out"),
    ([Centre(), UniformMean()], Sum(), Fixed(10), r"put it behind UniformMean\(\)"),
    ([WeightedMean(), Centre()], Sum(), Fixed(10), r"put it behind UniformMean\(\)"),
    ([UniformMean(), Centre()], Sum(), Fixed(10, quorum=5, max_staleness=2), "set max_staleness=0"),
    ([Clip(1.0), UniformMean(), Quantise(8), Centre()], Sum(), Fixed(10), "put it before Quantise"),
    ([Clip(1.0), UniformMean(), Gaussian(1.0), Centre()], Sum(), Fixed(10), "Gaussian cannot protect"),
    *(([WeightedMean()], reducer, Fixed(11), r"put UniformMean\(\) in the pipeline") for reducer in VOTES),
    *(([UniformMean()], reducer, Poisson(0.5), "use cohort=n instead") for reducer in VOTES),
    *(([Clip(1.0), UniformMean(), Gaussian(1.0)], reducer, Fixed(11), "Gaussian cannot protect") for reducer in VOTES),
]


@pytest.mark.parametrize(("stages", "reducer", "sampling", "remedy"), REFUSED)
def test_what_has_no_meaning_is_refused(
    stages: Sequence[Stage], reducer: Reducer, sampling: Sampling, remedy: str
) -> None:
    with pytest.raises(JobError, match=remedy):
        bound(stages, reducer, sampling)


@pytest.mark.parametrize(
    ("build", "remedy"),
    [
        (lambda: TrimmedMean(0.5), "beta=0.5"),
        (lambda: Krum(0), r"use Sum\(\)"),
        (lambda: Bulyan(0), r"use Sum\(\)"),
        (lambda: MultiKrum(1, m=0), "m=0"),
        (lambda: GeometricMedian(smoothing=0), "smoothing=0"),
        (lambda: GeometricMedian(iterations=0), "iterations=0"),
        (lambda: CentredClipping(math.inf), "radius=inf"),
        (lambda: CentredClipping(1.0, iterations=0), "iterations=0"),
        (lambda: NormBound(-1.0), "bound=-1.0"),
        (lambda: Rooted("r", 0), "clients=0"),
        (lambda: Rooted("r", 2, over_select=0.5), "in every round"),
    ],
)
def test_settings_out_of_range_are_refused(build: object, remedy: str) -> None:
    with pytest.raises(ConfigError, match=remedy):
        build()  # type: ignore[operator]


# ── sums


def test_sum_of_small_integers_does_not_wrap() -> None:
    summed = total(Sum(), np.full((1000, 3), 127, np.int8))
    assert summed.dtype == np.int64 and summed.tolist() == [127_000] * 3


def test_sum_discounts_integers_without_rounding_them_to_nothing() -> None:
    assert total(Sum(), np.array([[10], [3], [4]], np.int8), [1.0, 0.5, 1.0]).tolist() == [15.5]
