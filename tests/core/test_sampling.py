"""Who is asked: uniform, reproducible, distinct, and cheap."""

import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, strategies as st
from scipy.stats import chisquare

from hansa.core.errors import ConfigError
from hansa.core.sampling import Fixed, Poisson, Stream

NAMES = [f"{n:02}" for n in range(20)]


def draws(sampling, rounds: int, seed: int, busy=frozenset()) -> list[list[str]]:
    return [sampling.draw(NAMES, Stream("sample", seed, n), busy) for n in range(rounds)]


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("sampling", [Fixed(5), Fixed(1), Fixed(13), Poisson(probability=0.3)])
def test_every_client_is_drawn_equally_often(sampling, seed: int) -> None:
    counts = Counter(name for names in draws(sampling, 4000, seed) for name in names)
    assert chisquare([counts[name] for name in NAMES]).pvalue > 0.01


@pytest.mark.parametrize("seed", [1, 2])
def test_every_pair_is_drawn_equally_often(seed: int) -> None:
    population = NAMES[:6]
    counts = Counter(tuple(Fixed(2).draw(population, Stream(seed, n))) for n in range(6000))
    assert len(counts) == 15
    assert chisquare(list(counts.values())).pvalue > 0.01


@pytest.mark.parametrize("seed", [1, 2])
def test_busy_clients_are_left_out_and_all_others_have_the_same_chance(seed: int) -> None:
    busy = {"00", "07", "19", "gone away"}
    found = draws(Fixed(8), 3000, seed, busy)
    assert all(len(names) == 4 and not busy & set(names) for names in found)  # 8 places, 4 of them taken
    counts = Counter(name for names in found for name in names)
    assert chisquare([counts[name] for name in NAMES if name not in busy]).pvalue > 0.01


@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 1000), st.floats(0, 2), st.sets(st.integers(0, 29)))
def test_a_cohort_is_distinct_sorted_and_of_its_size(
    size: int, clients: int, seed: int, more: float, busy: set[int]
) -> None:
    population = [f"{n:02}" for n in range(size)]
    taken = {f"{n:02}" for n in busy}
    names = Fixed(clients, over_select=more).draw(population, Stream(seed), taken)
    assert names == sorted(set(names))
    assert set(names) <= set(population) - taken
    wanted = max(0, int(np.ceil(clients * (1 + more))) - len(taken))
    assert len(names) == min(wanted, len(set(population) - taken))


@pytest.mark.parametrize("sampling", [Fixed(7), Poisson(probability=0.4)])
def test_the_same_seed_draws_the_same_cohorts_and_another_seed_others(sampling) -> None:
    assert draws(sampling, 20, seed=1) == draws(sampling, 20, seed=1) != draws(sampling, 20, seed=2)


def test_the_draw_is_fixed_for_ever() -> None:
    # A golden: jobs of an older version of Hansa must draw the same cohorts.
    assert Fixed(3).draw(NAMES, Stream("sample", 0, "train", 0, 0)) == ["01", "02", "14"]


def test_poisson_draws_as_many_as_its_probability_says() -> None:
    sizes = [len(names) for names in draws(Poisson(probability=0.3), 4000, seed=4)]
    assert np.mean(sizes) == pytest.approx(6, abs=0.15)
    assert np.var(sizes) == pytest.approx(4.2, abs=0.4)
    assert draws(Poisson(probability=1.0), 1, seed=1) == [NAMES]


def test_a_thousand_of_a_million_take_milliseconds() -> None:
    population, best = [f"{n:07}" for n in range(1_000_000)], 1.0
    for n in range(5):
        began = time.perf_counter()
        assert len(Fixed(1000).draw(population, Stream(n))) == 1000
        best = min(best, time.perf_counter() - began)
    assert best < 0.02
    began = time.perf_counter()
    assert 800 < len(Poisson(probability=0.001).draw(population, Stream(1))) < 1200
    assert time.perf_counter() - began < 1.0


def test_streams_of_different_labels_never_meet() -> None:
    assert Stream("ab", "c").word() != Stream("a", "bc").word()
    assert Stream(1, 2).word() == Stream(1, 2).word()


@pytest.mark.parametrize(("asked", "sampling", "enough"), [
    (5, Fixed(5), 5), (3, Fixed(5), 3), (7, Fixed(5, over_select=0.4), 5), (7, Fixed(5, quorum=3), 5),
    (7, Fixed(7, quorum=3, max_staleness=1), 3), (9, Poisson(probability=0.1), 9),
])  # fmt: skip
def test_a_round_closes_at_once_with_as_many_as_were_wanted(asked: int, sampling, enough: int) -> None:
    assert sampling.enough(asked) == enough


def test_only_chance_gives_amplification() -> None:
    assert Fixed(3).random_membership
    assert Fixed(3).rate(12) == 0.25
    assert not any(
        sampling.random_membership
        for sampling in (Fixed(3, deadline_s=1), Fixed(3, over_select=0.1), Fixed(3, quorum=2, max_staleness=1))
    )


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Fixed(0), r"cohort=0: at least one client"),
        (lambda: Fixed(3, quorum=0), r"quorum=0: at least one answer"),
        (lambda: Fixed(3, over_select=-1), r"over_select=-1: a fraction .*as in 0\.3"),
        (lambda: Fixed(3, deadline_s=0), r"deadline_s=0: a number of seconds above 0, or None to wait"),
        (lambda: Fixed(3, max_staleness=-1), r"max_staleness=-1: 0 for synchronous"),
        (lambda: Fixed(3, max_staleness=1), r"max_staleness without quorum: say how many .*quorum=10"),
        (lambda: Poisson(probability=0), r"probability=0: it lies in \(0, 1\]"),
        (lambda: Poisson(probability=0.1, over_select=0.1), r"Poisson sampling takes neither.*use Fixed"),
    ],
)
def test_bad_values_are_refused_with_a_remedy(build, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build()


def test_impossible_samplings_are_faults_of_the_population() -> None:
    assert list(Fixed(30).faults(12)) == ["cohort=30 > 12 clients: lower cohort or add clients."]
    assert list(Fixed(3, quorum=5).faults(12)) == ["quorum=5 > cohort=3: lower quorum, or it can never be reached."]
    assert list(Fixed(12, quorum=3).faults(12)) == []
