"""Discrete noise has the law it is named after, and its Rényi divergences stay below the bounds that are accounted."""

import math

import numpy as np
import pytest

from hansa.core.errors import ConfigError
from hansa.core.sampling import Stream
from hansa.privacy.discrete import Table, discrete_gaussian, gaussian_weights, skellam, skellam_weights
from hansa.privacy.mechanisms import (
    DISCRETE_GAUSSIAN,
    SKELLAM,
    Lattice,
    Shares,
    divergences,
    without_replacement,
)


def law(weights: list[int]) -> np.ndarray:
    """Probabilities of −m, …, m."""
    total = weights[0] + 2 * sum(weights[1:])
    half = np.array([weight / total for weight in weights])
    return np.concatenate([half[:0:-1], half])


@pytest.mark.parametrize("variance", [0.25, 1.0, 9.3, 400.0])
def test_tables_are_the_laws_they_are_named_after(variance: float) -> None:
    from scipy import stats

    found = law(gaussian_weights(variance))
    k = np.arange(len(found)) - len(found) // 2
    direct = np.exp(-(k**2) / (2 * variance))
    np.testing.assert_allclose(found, direct / direct.sum(), rtol=1e-11)
    found = law(skellam_weights(variance))
    k = np.arange(len(found)) - len(found) // 2
    np.testing.assert_allclose(found, stats.skellam(variance / 2, variance / 2).pmf(k), rtol=1e-8, atol=1e-14)
    assert found @ k**2 == pytest.approx(variance, rel=1e-12)


@pytest.mark.parametrize("make", [discrete_gaussian, skellam])
@pytest.mark.parametrize("variance", [0.5, 30.0, 1e6])
def test_draws_follow_the_table(make, variance: float) -> None:  # type: ignore[no-untyped-def]
    from scipy import stats

    weights = gaussian_weights(variance) if make is discrete_gaussian else skellam_weights(variance)
    drawn, expected = make(variance).draw(Stream(b"draws"), 200_000), law(weights)
    middle = len(expected) // 2
    edges = np.unique(np.round(np.linspace(-3, 3, 25) * math.sqrt(variance))).astype(int)
    observed = np.histogram(drawn, np.concatenate([[-(10**9)], edges, [10**9]]))[0]
    below = np.array([expected[: middle + edge].sum() for edge in edges])
    shares = np.diff(np.concatenate([[0.0], below, [1.0]]))
    kept = shares > 1e-4
    assert stats.chisquare(observed[kept], shares[kept] * observed[kept].sum() / shares[kept].sum()).pvalue > 1e-4


def test_words_that_tie_with_a_cut_are_decided_by_more_bits() -> None:
    # Three equal weights cut [0, 2¹²⁷) at a third: 63 bits of which are not enough.
    table, third = Table([1, 1]), (1 << 127) // 3

    class Fixed(Stream):
        def words(self, count: int) -> np.ndarray:
            return np.full(count, (third >> 64) << 1 | 1, np.uint64)

        def word(self) -> int:
            return self.lower

    stream = Fixed(b"")
    for lower, magnitude in (((third & ((1 << 64) - 1)) - 1, 0), (third & ((1 << 64) - 1), 1)):
        stream.lower = lower
        assert np.abs(table.draw(stream, 3)).tolist() == [magnitude] * 3


def test_no_draw_is_made_of_bits_that_another_was_made_of() -> None:
    stream = Stream(b"one")
    table = skellam(1000.0)
    assert not np.array_equal(table.draw(stream, 1000), table.draw(stream, 1000))


# ── divergences, computed from the laws themselves


REACH = np.arange(-150, 151)


def log_law(mechanism: str, variance: float) -> np.ndarray:
    """Logarithms of one share's probabilities on REACH, by their definitions, without the tables."""
    from scipy.special import gammaln, logsumexp

    if mechanism == DISCRETE_GAUSSIAN:
        logs = -(REACH**2) / (2 * variance)
    else:  # I_k(x) = Σ_m (x/2)^(k+2m) / (m!·(m+k)!)
        m, k = np.arange(200)[:, None], np.abs(REACH)[None, :]
        logs = logsumexp((k + 2 * m) * math.log(variance / 2) - gammaln(m + 1) - gammaln(m + k + 1), axis=0)
    found: np.ndarray = logs - logsumexp(logs)
    return found


def convolved(one: np.ndarray, shares: int) -> np.ndarray:
    from scipy.special import logsumexp

    total, size = one, len(REACH)
    middle = size // 2
    for _ in range(shares - 1):
        padded = np.concatenate([np.full(size, -np.inf), total, np.full(size, -np.inf)])
        windows = np.lib.stride_tricks.sliding_window_view(padded, size)[size - middle : 2 * size - middle]
        total = logsumexp(windows + one[::-1], axis=1)
    return total


def renyi(logs: np.ndarray, shift: int, alpha: float) -> float:
    """D_α of a law and itself shifted."""
    from scipy.special import logsumexp

    ahead, behind = logs[shift:], logs[: len(logs) - shift]
    return float(logsumexp(alpha * behind + (1 - alpha) * ahead) / (alpha - 1))


@pytest.mark.parametrize("mechanism", [DISCRETE_GAUSSIAN, SKELLAM])
@pytest.mark.parametrize(("variance", "count"), [(0.3, 2), (0.5, 5), (1.0, 10), (4.0, 3), (9.0, 8)])
@pytest.mark.parametrize("shift", [1, 2, 5])
def test_accounted_divergence_bounds_the_exact_one_and_is_close(
    mechanism: str, variance: float, count: int, shift: int
) -> None:
    total = convolved(log_law(mechanism, variance), count)
    shares = Shares(shares=count, parts=(Lattice(l2=shift, dimension=1, variance=variance),), hidden=True)
    orders = [2.0, 3.0, 5.0, 8.0]
    bounds = divergences(mechanism, shares, orders)
    exact = [renyi(total, shift, alpha) for alpha in orders]
    assert all(bound >= found * (1 - 1e-9) for bound, found in zip(bounds, exact, strict=True))
    if variance >= 9:
        assert all(bound <= found * 1.2 for bound, found in zip(bounds, exact, strict=True)), "and is no waste"


def test_coordinates_and_parts_add_up() -> None:
    one = Lattice(l2=3.0, dimension=1, variance=16.0)
    for mechanism in (DISCRETE_GAUSSIAN, SKELLAM):
        single = divergences(mechanism, Shares(shares=4, parts=(one,), hidden=True), [2.0, 4.0])
        double = divergences(mechanism, Shares(shares=4, parts=(one, one), hidden=True), [2.0, 4.0])
        np.testing.assert_allclose(double, 2 * single)
    assert Shares(shares=4, parts=(one, one), hidden=True).multiplier == pytest.approx(8 / (3 * math.sqrt(2)))


def test_shares_too_small_for_the_theorem_have_no_bound() -> None:
    shares = Shares(shares=100, parts=(Lattice(l2=1.0, dimension=1, variance=0.2),), hidden=True)
    assert np.isinf(divergences(DISCRETE_GAUSSIAN, shares, [2.0])).all()


def test_amplification_without_replacement_is_the_library_s_where_that_is_general() -> None:
    import dp_accounting as dp
    from dp_accounting import rdp

    orders = [2.0, 3.0, 8.0, 32.0]
    for z, rate in ((1.0, 0.01), (0.7, 0.05), (4.0, 0.1)):
        accountant = rdp.RdpAccountant(orders, dp.NeighboringRelation.REPLACE_ONE)
        accountant.compose(dp.SampledWithoutReplacementDpEvent(10_000, round(rate * 10_000), dp.GaussianDpEvent(z)))
        found = without_replacement(np.arange(2, 33) / (2 * z * z), rate, orders)
        assert all(found >= accountant.rdp * (1 - 1e-9)), "the library knows more of Gaussians than this bound assumes"
        assert found[0] == pytest.approx(accountant.rdp[0], rel=1e-6)
    assert np.allclose(without_replacement(np.arange(2, 33) / 2, 1.0, orders), np.array(orders) / 2)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"shares": 0, "parts": []}', '{"shares": 3, "parts": [{"l2": 1}]}'])
def test_unreadable_shares_have_no_epsilon(text: str) -> None:
    with pytest.raises(ConfigError, match="no ε"):
        Shares.from_text(text)
