"""Correlated noise: sensitivities hold for every way of taking part, errors are what they are said to be, and least."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from hansa.core.errors import ConfigError
from hansa.core.sampling import Stream
from hansa.privacy.correlated import (
    Run,
    banded,
    error,
    honaker,
    restart,
    sensitivity,
    square_root,
    tree_error,
    tree_sensitivity,
)
from hansa.privacy.sampling import Turns, group_of


def matrix(coefficients: np.ndarray, rounds: int) -> np.ndarray:
    c = np.zeros((rounds, rounds))
    for j, value in enumerate(coefficients):
        c[np.arange(j, rounds), np.arange(rounds - j)] = value
    return c


def patterns(rounds: int, separation: int) -> list[list[int]]:
    """All sets of rounds that are `separation` apart."""
    found = []
    for chosen in itertools.product([False, True], repeat=rounds):
        at = [t for t in range(rounds) if chosen[t]]
        if all(later - earlier >= separation for earlier, later in itertools.pairwise(at)):
            found.append(at)
    return found


def tree(rounds: int, size: int) -> np.ndarray:
    """Every complete node of every tree as a row of zeros and ones."""
    rows = []
    for start in range(0, rounds, size):
        for level in range(size.bit_length()):
            width = 1 << level
            for node in range(start, min(start + size, rounds) - width + 1, width):
                rows.append([node <= t < node + width for t in range(rounds)])
    return np.array(rows, float)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 11), st.integers(1, 12), st.data())
def test_no_way_of_taking_part_exceeds_the_sensitivity(rounds: int, separation: int, data: st.DataObject) -> None:
    bands = data.draw(st.integers(1, min(rounds, separation)))
    c = np.array(banded(rounds, bands, separation))
    columns = matrix(c, rounds)
    exact = max(float(np.linalg.norm(columns[:, at].sum(axis=1))) for at in patterns(rounds, separation))
    assert sensitivity(c, rounds, separation) == pytest.approx(exact)
    size = data.draw(st.integers(1, rounds))
    nodes = tree(rounds, size)
    exact = max(float(np.linalg.norm(nodes[:, at].sum(axis=1))) for at in patterns(rounds, separation))
    assert tree_sensitivity(rounds, size, separation)[0] >= exact * (1 - 1e-12)


@pytest.mark.parametrize(("rounds", "bands", "separation"), [(30, 5, 8), (64, 64, 64), (50, 1, 3), (40, 8, 8)])
def test_error_is_that_of_the_matrices(rounds: int, bands: int, separation: int) -> None:
    c = np.array(banded(rounds, bands, separation))
    prefix = np.tri(rounds) @ np.linalg.inv(matrix(c, rounds))
    direct = math.sqrt((prefix**2).sum() / rounds) * sensitivity(c, rounds, separation)
    assert error(c, rounds, separation) == pytest.approx(direct)


@pytest.mark.parametrize(("rounds", "bands", "separation"), [(64, 64, 64), (100, 10, 10), (200, 7, 20)])
def test_search_ends_where_nothing_near_is_better(rounds: int, bands: int, separation: int) -> None:
    c = np.array(banded(rounds, bands, separation))
    least, rng = error(c, rounds, separation), np.random.default_rng(0)
    assert least <= error(square_root(bands), rounds, separation)
    for _ in range(50):
        near = c + rng.standard_normal(bands) * rng.choice([1e-4, 1e-2, 0.1])
        near[0] = 1.0
        assert error(near, rounds, separation) >= least * (1 - 1e-7)
    assert np.abs(c).max() == c[0] == 1.0


def test_toeplitz_costs_little_against_the_best_of_all_matrices() -> None:
    rounds = 64
    gram = np.tri(rounds).T @ np.tri(rounds)
    v = np.ones(rounds)
    for _ in range(500):  # Denisov et al. 2022, https://arxiv.org/abs/2202.08312, theorem 3.2
        values, vectors = np.linalg.eigh(np.sqrt(v)[:, None] * gram * np.sqrt(v))
        root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
        v = np.diag(root)
    best = root / np.sqrt(np.outer(v, v))
    assert np.diag(best) == pytest.approx(np.ones(rounds), abs=1e-6)
    least = math.sqrt(np.trace(gram @ np.linalg.inv(best)) / rounds)
    found = error(np.array(banded(rounds, rounds, rounds)), rounds, rounds)
    assert least <= found <= 1.04 * least


def test_tree_error_is_that_of_its_best_estimates() -> None:
    for rounds, size in ((8, 8), (11, 4), (13, 13)):
        total = 0.0
        for t in range(1, rounds + 1):
            for start in range(0, t, size):
                covered = min(t, start + size) - start
                total += sum(least_variance(level) for level in range(size.bit_length()) if covered >> level & 1)
        sens = tree_sensitivity(rounds, size, rounds)[0]
        assert tree_error(rounds, size, rounds) == pytest.approx(math.sqrt(total / rounds) * sens)
    assert restart(1000, 1) == 1, "where everybody is in every round, correlation gains nothing"


def least_variance(level: int) -> float:
    """Of the sum of a node's leaves, by least squares over all nodes of its subtree."""
    design = tree(1 << level, 1 << level)
    covariance = np.linalg.inv(design.T @ design)
    return float(covariance.sum())


def test_weights_of_estimates_are_those_of_inverse_variance() -> None:
    for level, (own, children) in enumerate(honaker(6)):
        assert own + children == pytest.approx(1.0)
        assert own == pytest.approx(least_variance(level))


@pytest.mark.parametrize("bands", [0, 6, 11])
def test_bands_over_which_clients_return_are_refused(bands: int) -> None:
    with pytest.raises(ConfigError, match=f"bands={bands}"):
        banded(10, bands, 5)


@pytest.mark.parametrize("text", ["", "[]", '{"rounds": 0, "again": 1.0}', '{"rounds": 3, "again": -1}', '{"x": 1}'])
def test_unreadable_plan_has_no_epsilon(text: str) -> None:
    with pytest.raises(ConfigError, match="no ε"):
        Run.from_text(text)


# ── turns


def test_nobody_is_in_two_rounds_that_are_close_even_while_others_join() -> None:
    everyone = sorted(f"client {i}" for i in range(400))
    sampling, last = Turns(5, groups=7), dict[str, int]()
    for round in range(60):
        population = everyone[: 200 + round]
        drawn = sampling.at(round).draw(population, Stream("turns", round))
        assert len(drawn) == len(set(drawn)) == 5
        for name in drawn:
            assert round - last.get(name, -100) >= 7
            last[name] = round
    assert len(last) > 150, "and within a group chance decides"


def test_groups_do_not_depend_on_who_else_is_there() -> None:
    sizes = np.bincount([group_of(f"client {i}", 10) for i in range(5000)], minlength=10)
    assert sizes.min() > 400 and sizes.max() < 600


def test_turns_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match="groups=0"):
        Turns(5, groups=0)
    with pytest.raises(ConfigError, match="a late update breaks turns"):
        Turns(5, groups=3, max_staleness=1, quorum=2)
    assert any("lower clients or groups" in fault for fault in Turns(5, groups=30).faults(100))
    assert not list(Turns(5, groups=3).faults(100))
