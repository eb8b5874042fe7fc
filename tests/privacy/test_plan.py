"""Calibration and planning reach their targets, and no more noise than that; the published searches are reproduced."""

import math
from collections import Counter
from pathlib import Path

import pytest

from hansa.core.errors import ConfigError
from hansa.core.ledger import Event
from hansa.privacy import Target, multiplier, plan, plot_noise
from hansa.privacy.accountant import cost
from hansa.privacy.calibrate import least

pytest.importorskip("dp_accounting")
TFF = Target(epsilon=2, delta=1e-5, clients=3383, rounds=100)


@pytest.mark.parametrize(("by", "published"), [("rdp", "1.02229"), ("pld", "0.95924")])
def test_multiplier_equals_the_published_one_to_the_last_digit(by: str, published: str) -> None:
    z = multiplier(2, 1e-5, 0.01, 1000, by=by)
    assert f"{z:.5f}" == published
    event = Event(mechanism="gaussian", noise_multiplier=z, sampling="poisson", rate=0.01)
    assert getattr(cost(Counter({event: 1000}), 1e-5), by) <= 2.0


def test_multiplier_of_one_release_is_the_analytic_one() -> None:
    from hansa.privacy import analytic_gaussian

    assert multiplier(0.7, 1e-6, by="pld") == pytest.approx(analytic_gaussian(0.7, 1e-6), rel=1e-5)
    assert multiplier(0.7, 1e-6, rounds=25, by="pld") == pytest.approx(5 * analytic_gaussian(0.7, 1e-6), rel=1e-5)


def test_fixed_size_cohorts_take_more_noise() -> None:
    assert multiplier(2, 1e-5, 0.01, 10, sampling="fixed", by="rdp") > multiplier(2, 1e-5, 0.01, 10, by="rdp")


@pytest.mark.parametrize(
    "given",
    [{"epsilon": 0.0}, {"delta": 0.0}, {"delta": 1.0}, {"rate": 0.0}, {"rate": 1.5}, {"rounds": 0}, {"by": "x"}],
)
def test_targets_that_are_none_are_refused(given: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(given))):
        multiplier(**{"epsilon": 1.0, "delta": 1e-5, **given})  # type: ignore[arg-type]


def test_search_finds_the_edge_of_a_step_as_well_as_of_a_curve() -> None:
    assert least(lambda z: 10.0 if z < 3.7 else 0.0, 1.0) == pytest.approx(3.7, rel=1e-5)
    assert least(lambda z: z**-3, 1e-4) == pytest.approx(1e-4 ** (-1 / 3), rel=1e-5)
    assert least(lambda z: 1e-2 / z, 1.0) == pytest.approx(1e-2, rel=1e-5)
    with pytest.raises(ConfigError, match="no noise is enough"):
        least(lambda z: 5.0, 1.0)


def test_plan_is_that_of_tensorflow_federated_s_tutorial() -> None:
    found = plan(TFF, noise=0.01)
    assert str(found) == "To get (2, 1e-05)-DP, use 120 clients with noise multiplier 1.2."
    assert found.epsilon <= 2 < TFF.spent(119, 1.19), "and one client less is too few"
    assert found.noise == pytest.approx(0.01)


def test_plan_for_a_given_cohort_is_the_least_noise() -> None:
    found = plan(TFF, cohort=200)
    assert found.epsilon <= 2 < TFF.spent(200, found.noise_multiplier * 0.999)
    assert plan(TFF, cohort=3383).noise_multiplier == pytest.approx(multiplier(2, 1e-5, 1.0, 100, by="rdp"), rel=1e-5)


def test_plans_that_cannot_be_are_refused_with_a_remedy() -> None:
    with pytest.raises(ConfigError, match="allow more noise"):
        plan(Target(epsilon=0.1, delta=1e-5, clients=30, rounds=100), noise=0.01)
    for given in ({}, {"noise": 0.01, "cohort": 3}):
        with pytest.raises(ConfigError, match="exactly one"):
            plan(TFF, **given)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="from 1 to the 3383"):
        plan(TFF, cohort=4000)
    for name, value in (
        ("epsilon", 0.0),
        ("delta", 2.0),
        ("clients", 0),
        ("rounds", 0),
        ("sampling", "x"),
        ("by", "x"),
    ):
        with pytest.raises(ConfigError, match=name):
            Target(**{"epsilon": 2, "delta": 1e-5, "clients": 10, "rounds": 1, name: value})  # type: ignore[arg-type]


def test_delta_that_one_client_satisfies_is_warned_of() -> None:
    assert not TFF.warning
    assert "Lower delta" in Target(epsilon=2, delta=1e-2, clients=100, rounds=1).warning


def test_picture_marks_the_plan_on_the_curve(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    target = Target(epsilon=2, delta=1e-5, clients=100, rounds=2)
    found = plan(target, cohort=20)
    figure = plot_noise(found, tmp_path / "plan.png", points=4)
    assert (tmp_path / "plan.png").stat().st_size > 10_000
    for axes, marked in zip(figure.axes, (found.noise_multiplier, found.noise), strict=True):
        curve, point = axes.get_lines()
        assert point.get_xydata().tolist() == [[20, pytest.approx(marked, rel=2e-3)]]
        assert list(curve.get_xdata()) == sorted(curve.get_xdata()) and curve.get_xdata()[-1] == 100
        assert all(math.isfinite(y) for y in curve.get_ydata())
