"""ε equals the published figures to the last printed digit, and is refused where it would be a guess."""

from collections import Counter

import pytest

from hansa.core.errors import ConfigError
from hansa.core.ledger import Event, Ledger
from hansa.privacy.accountant import ADD_OR_REMOVE, REPLACE, cost, epsilon_of

pytest.importorskip("dp_accounting")


def gaussian(z: float, sampling: str = "poisson", rate: float = 1.0) -> Event:
    return Event(mechanism="gaussian", noise_multiplier=z, sampling=sampling, rate=rate)


@pytest.mark.parametrize(
    ("rate", "z", "steps", "delta", "rdp", "pld"),
    [
        (0.01, 4, 10000, 1e-5, "1.03549", "0.94700"),
        (256 / 60000, 1.1, 14062, 1e-5, "2.59656", "2.38169"),
        (250 / 60000, 1.3, 3600, 1e-5, "0.94220", "0.85303"),
        (5000 / 763430, 1, 5000, 1e-9, "4.18329", "3.89883"),
        (1, 1, 1, 1e-5, "4.72851", "4.37718"),
        (0.02, 0.8, 2500, 1e-5, "11.34847", "10.31541"),
    ],
)
def test_epsilon_equals_the_published_vectors(
    rate: float, z: float, steps: int, delta: float, rdp: str, pld: str
) -> None:
    found = cost(Counter({gaussian(z, rate=rate): steps}), delta)
    assert (f"{found.rdp:.5f}", f"{found.pld:.5f}") == (rdp, pld)
    assert found.epsilon == float(found) == min(found.rdp, found.pld)
    assert f"RDP {rdp}, PLD {pld}" in str(found)


def test_fixed_size_sampling_is_told_apart_and_costs_more() -> None:
    fixed = cost(Counter({gaussian(2.0, "fixed", 0.01): 100}), 1e-5)
    poisson = cost(Counter({gaussian(2.0, "poisson", 0.01): 100}), 1e-5)
    assert (fixed.relation, poisson.relation) == (REPLACE, ADD_OR_REMOVE)
    assert fixed.epsilon > poisson.epsilon
    assert any("without replacement" in note for note in fixed.notes)


def test_fixed_size_sampling_is_the_library_s_own_event_at_twice_the_sensitivity() -> None:
    import dp_accounting as dp
    from dp_accounting import rdp

    orders = [2.0, 3.0, 4.0, 8.0, 16.0, 32.0]
    accountant = rdp.RdpAccountant(orders, dp.NeighboringRelation.REPLACE_ONE)
    accountant.compose(dp.SampledWithoutReplacementDpEvent(1000, 10, dp.GaussianDpEvent(1.0)), 100)
    found = cost(Counter({gaussian(2.0, "fixed", 0.01): 100}), 1e-5)
    assert found.rdp <= accountant.get_epsilon(1e-5) + 1e-9


def test_no_sampling_has_no_amplification() -> None:
    assert (
        cost(Counter({gaussian(4.0, "none"): 10}), 1e-5).epsilon
        > cost(Counter({gaussian(4.0, rate=0.5): 10}), 1e-5).epsilon
    )


def test_mixed_ledger_costs_at_least_what_each_kind_does() -> None:
    both = cost(Counter({gaussian(2.0, "fixed", 0.1): 5, gaussian(2.0, "poisson", 0.1): 5}), 1e-5)
    assert both.relation == REPLACE
    for kind in ("fixed", "poisson"):
        assert both.epsilon > cost(Counter({gaussian(2.0, kind, 0.1): 5}), 1e-5).epsilon


def test_more_rounds_cost_more_and_an_empty_ledger_nothing() -> None:
    ledger, last = Ledger(), 0.0
    assert epsilon_of(ledger, 1e-5).epsilon == 0.0
    for round in range(3):
        ledger = ledger.add(round, 0, [gaussian(1.0, rate=0.1)])
        found = epsilon_of(ledger, 1e-5).epsilon
        assert found > last
        last = found


def test_void_attempts_are_charged() -> None:
    once = Ledger().add(0, 0, [gaussian(1.0, "none")])
    assert epsilon_of(once.add(0, 1, [gaussian(1.0, "none")]), 1e-5).epsilon > epsilon_of(once, 1e-5).epsilon


@pytest.mark.parametrize(
    ("event", "said"),
    [
        (Event(mechanism="skellam", noise_multiplier=1.0), "'skellam'"),
        (Event(mechanism="gaussian", noise_multiplier=1.0, sampling="shuffled", rate=0.1), "'shuffled'"),
        (Event(mechanism="gaussian", noise_multiplier=0.0), "noise_multiplier=0.0"),
        (Event(mechanism="gaussian", noise_multiplier=float("nan")), "noise_multiplier=nan"),
    ],
)
def test_unknown_event_has_no_epsilon(event: Event, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        epsilon_of(Ledger().add(0, 0, [gaussian(1.0), event]), 1e-5)
    assert "no ε" in str(caught.value)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5])
def test_delta_out_of_range_is_refused(delta: float) -> None:
    with pytest.raises(ConfigError, match="lies in"):
        epsilon_of(Ledger(), delta)


def test_delta_too_large_for_the_population_is_explained() -> None:
    assert "Lower delta" in epsilon_of(Ledger().add(0, 0, [gaussian(1.0)]), 5e-2, population=50).notes[0]


def test_against_the_server_its_own_noise_protects_nobody() -> None:
    found = cost(Counter({gaussian(4.0, rate=0.01): 10}), 1e-5, against="server")
    assert found.epsilon == float("inf") and "nothing is protected" in str(found)
    assert any("use DistributedGaussian" in note for note in found.notes)
    with pytest.raises(ConfigError, match="choose 'models' or 'server'"):
        cost(Counter(), 1e-5, against="nobody")


def test_ledgers_of_several_runs_add_up() -> None:
    one = Ledger().add(0, 0, [gaussian(2.0, "none")]).add(1, 0, [gaussian(2.0, "none")])
    assert epsilon_of([one, one], 1e-5).epsilon == epsilon_of(one.add(2, 0, [gaussian(2.0, "none")] * 2), 1e-5).epsilon
    assert epsilon_of([], 1e-5).epsilon == 0.0


def test_laplace_beside_gaussian_is_composed_by_both_ways() -> None:
    laplace = Event(mechanism="laplace", noise_multiplier=2.0)
    both = cost(Counter({laplace: 2, gaussian(2.0, "none"): 2}), 1e-5)
    for alone in ({laplace: 2}, {gaussian(2.0, "none"): 2}):
        assert both.rdp > cost(Counter(alone), 1e-5).rdp and both.pld > cost(Counter(alone), 1e-5).pld
