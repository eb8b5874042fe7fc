"""Membership and canaries: numbers of closed forms, what an undefended job gives away, and broken noise found out."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import hansa
from hansa.core.errors import ConfigError
from hansa.core.ledger import Event
from hansa.core.pipeline import Decoding, Sensitivity, Setting, Signal, Stage, Step
from hansa.testing.attacks.canaries import audit, bound, luck, one_run_bound
from hansa.testing.attacks.membership import Membership, against_job, confidences, halves, lira

DIGITS = hansa.data.digits()

# ── membership


def test_roc_counts_hits_and_false_alarms() -> None:
    found = Membership(np.array([4.0, 3.0, 2.0, 1.0]), np.array([True, False, True, False]))
    assert found.roc()[0].tolist() == [0, 0, 0.5, 0.5, 1] and found.roc()[1].tolist() == [0, 0.5, 0.5, 1, 1]
    assert found.auc == 0.75 and found.tpr(0.0) == 0.5 and found.tpr(0.5) == 1.0
    tied = Membership(np.zeros(4), np.array([True, False, True, False]))
    assert tied.auc == 0.5 and tied.tpr(0.4) == 0.0, "equal scores are no order"


def test_lira_separates_what_the_likelihood_ratio_can() -> None:
    rng = np.random.default_rng(0)
    inside = halves(40, 300, rng)
    assert (inside.sum(axis=0) == 20).all()
    found = lira(inside, rng.standard_normal((40, 300)) + 3.0 * inside + 5.0 * rng.standard_normal(300))
    # Two unit normals 3 apart: AUC Φ(3/√2) = 0.983, whatever the examples' own levels are; 39 shadows lose a little.
    assert 0.96 < found.auc < 0.99
    assert abs(lira(inside, rng.standard_normal((40, 300))).auc - 0.5) < 0.02


def test_confidences_are_logits_of_the_right_label() -> None:
    model = hansa.LogisticModel(2, 2)
    params = hansa.Tensors({"weight": np.zeros((2, 2), "f"), "bias": np.array([1.5, 0.0], "f")})
    data = hansa.Dataset(x=np.zeros((3, 2)), y=[0, 1, 0])
    np.testing.assert_allclose(confidences(model, params, data), [1.5, -1.5, 1.5], rtol=1e-5)
    assert confidences(model, params, data, [1]).tolist() == pytest.approx([-1.5], rel=1e-5)


def overfitted(stages: Sequence[Stage]) -> hansa.Job:
    return hansa.Job(
        model=hansa.LogisticModel(64, 10),
        algorithm=hansa.FedAvg(hansa.LocalWork(lr=0.5, epochs=5, batch_size=10)),
        pipeline=hansa.Pipeline(stages, hansa.Sum()),
        cohort=4,
        rounds=8,
        seed=1,
    )


def test_lira_finds_members_of_an_undefended_job_and_not_of_a_private_one() -> None:
    some = DIGITS.take(np.random.default_rng(0).permutation(len(DIGITS))[:120])
    clients = hansa.data.partition(some, hansa.data.IID(), clients=4)
    done: list[int] = []
    undefended = against_job(overfitted([hansa.UniformMean()]), clients, models=12, tell=done.append)
    assert undefended.auc > 0.65 and undefended.tpr(0.1) > 0.2 and done == list(range(1, 13))
    private = overfitted([hansa.Clip(0.5), hansa.UniformMean(), hansa.Gaussian(2.0)])
    assert abs(against_job(private, clients, models=12).auc - 0.5) < 0.1


def test_membership_needs_rows_and_shadows() -> None:
    with pytest.raises(ConfigError, match="16 or more"):
        against_job(overfitted([hansa.UniformMean()]), hansa.Clients.of({"a": DIGITS}), models=3)
    with pytest.raises(ConfigError, match="'a' holds a list"):
        against_job(overfitted([hansa.UniformMean()]), hansa.Clients.of({"a": [1, 2]}), models=6)


# ── canaries


@pytest.mark.parametrize(
    ("guesses", "delta", "bound"),
    # All right: (e^ε / (1 + e^ε))^r = 0.05, so ε = ln(0.05^(1/r) / (1 − 0.05^(1/r)))
    [(10, 0.0, np.log(0.05**0.1 / (1 - 0.05**0.1))), (1000, 0.0, np.log(0.05**0.001 / (1 - 0.05**0.001)))],
)
def test_the_bound_of_only_right_guesses_is_in_closed_form(guesses: int, delta: float, bound: float) -> None:
    assert one_run_bound(1000, guesses, guesses, delta, 0.05) == pytest.approx(bound, rel=1e-6)


def test_delta_costs_luck_as_the_papers_sum_says() -> None:
    # m = r = v = 2 at ε = 0: P[2 right] = 1/4; slope max(P[1], (P[1] + P[0])/2) = 1/2; times 2·m·δ = 0.4
    assert luck(2, 2, 2, 0.0, 0.1) == pytest.approx(0.25 + 0.5 * 0.4)
    assert one_run_bound(1000, 100, 100, 1e-3, 0.05) < one_run_bound(1000, 100, 100, 1e-6, 0.05)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 200), st.data())
def test_luck_is_a_probability_that_grows_with_epsilon(guesses: int, data: st.DataObject) -> None:
    right = data.draw(st.integers(0, guesses))
    chances = [luck(200, guesses, right, e, 1e-5) for e in (0.0, 0.5, 2.0, 8.0)]
    assert all(0 <= chance <= 1 for chance in chances) and chances == sorted(chances)


def test_guessing_at_random_bounds_nothing_more_often_than_the_confidence_allows() -> None:
    rng = np.random.default_rng(0)
    wrong = sum(bound(rng.standard_normal(200), rng.random(200) < 0.5, 0.0, 0.95)[0] > 0 for _ in range(400))
    assert wrong <= 0.05 * 400


CLIENTS = hansa.data.partition(DIGITS.take(np.arange(100)), hansa.data.IID(), clients=5)


def private(noise: Stage) -> hansa.Job:
    return hansa.Job(
        model=hansa.MLPModel((64, 16, 10)),
        algorithm=hansa.FedAvg(hansa.LocalWork(lr=0.5, steps=1, batch_size=5)),
        pipeline=hansa.Pipeline([hansa.Clip(1.0), hansa.UniformMean(), noise], hansa.Sum()),
        cohort=5,
        seed=1,
        delta=1e-5,
        epsilon=100.0,
    )


@dataclass(frozen=True)
class Faulty(Stage):
    """Gaussian noise a quarter as strong as what it enters in the ledger."""

    noise_multiplier: float
    alone = False

    def bind(self, signal: Signal, setting: Setting) -> Step:
        said, done = (
            hansa.Gaussian(z).bind(signal, setting) for z in (self.noise_multiplier, self.noise_multiplier / 4)
        )
        return _Faulty(said, done)


class _Faulty(Step):
    def __init__(self, said: Step, done: Step) -> None:
        super().__init__(done.out)
        self._said, self._done = said, done

    def settle(self, sensitivity: Sensitivity) -> Sensitivity:
        self._said.settle(sensitivity)
        return self._done.settle(sensitivity)

    def encode(self, x, state, memory, rngs):  # type: ignore[no-untyped-def]
        return self._done.encode(x, state, memory, rngs)

    def decode_total(self, total, state, round: Decoding):  # type: ignore[no-untyped-def]
        return self._done.decode_total(total, state, round)

    def events(self) -> tuple[Event, ...]:
        return self._said.events()


def test_canaries_stay_below_what_an_honest_job_accounts() -> None:
    honest = audit(private(hansa.Gaussian(1.0)), CLIENTS, canaries=600)
    assert 0.4 < honest.lower < honest.accounted < 5 and not honest.broken, "a bound, and not an empty one"
    assert honest.canaries == 600 and honest.guesses >= honest.right > honest.guesses / 2


def test_canaries_find_noise_that_is_a_quarter_of_what_is_accounted() -> None:
    broken = audit(private(Faulty(4.0)), CLIENTS, canaries=1200)
    assert broken.accounted < 1.0 and broken.broken


def test_canaries_are_clipped_and_drawn_like_everybody() -> None:
    sampled = private(hansa.Gaussian(1.0))
    some = hansa.Job(**{**vars_of(sampled), "cohort": None, "sampling": hansa.Poisson(0.5)})
    found = audit(some, CLIENTS, canaries=200)
    assert found.lower < found.accounted
    assert np.abs(found.scores).max() < 10 * 1.0 / (0.5 * 205), "no canary moves the mean by more than its clip"


def vars_of(job: hansa.Job) -> dict[str, object]:
    return {name: getattr(job, name) for name in job.__dataclass_fields__}


@pytest.mark.parametrize(
    ("noise", "canaries", "remedy"),
    [(hansa.Gaussian(1.0), 5000, "each needs one of its own"), (None, 100, "no stage of this job adds noise")],
)
def test_what_canaries_cannot_refute_is_said(noise: Stage | None, canaries: int, remedy: str) -> None:
    stages = [hansa.Clip(1.0), hansa.UniformMean(), *([] if noise is None else [noise])]
    job = private(hansa.Gaussian(1.0))
    wanted = hansa.Job(**{**vars_of(job), "pipeline": hansa.Pipeline(stages, hansa.Sum()), "epsilon": None})
    with pytest.raises(ConfigError, match=remedy):
        audit(wanted, CLIENTS, canaries=canaries)
