"""Noise over rounds: independent once the matrix or tree is undone, made again after a restart, never used twice."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest

from hansa.adapters.numpy import LogisticModel
from hansa.algorithms.fedavg import FedAvg
from hansa.core.algorithm import Algorithm
from hansa.core.data import Clients, Dataset
from hansa.core.errors import BudgetExceeded, ConfigError, JobError
from hansa.core.job import Job
from hansa.core.ledger import Event, Ledger
from hansa.core.model import LocalWork
from hansa.core.pipeline import Bound, Decoding, Part, Pipeline, Setting, Signal, Stage
from hansa.core.sampling import Fixed, Poisson, Sampling, Stream
from hansa.core.tensors import Tensors
from hansa.privacy import SERVER, check_budget, epsilon, epsilon_of
from hansa.privacy.correlated import banded, error, sensitivity, tree_error, tree_sensitivity
from hansa.privacy.sampling import Turns
from hansa.runtimes.local import train
from hansa.stages.adaptive_clip import AdaptiveClip
from hansa.stages.clip import Clip
from hansa.stages.correlated_noise import MatrixNoise, TreeNoise
from hansa.stages.mean import UniformMean
from hansa.stages.quantise import Quantise
from hansa.stages.sum import Sum

D, N, T = 20_000, 10, 12
TURNS = Turns(N, groups=4)


def bound(*stages: Stage, sampling: Sampling = TURNS, d: int = D, clip: float = 1.0) -> Bound:
    parts = {
        "value": Part(shapes={"w": ((d,), "float64")}),
        "weight": Part(shapes={"weight": ((1,), "float64")}, bits=64),
    }
    setting = Setting(sampling=sampling, algorithm=Algorithm(LocalWork(lr=1.0, epochs=1)), population=100)
    return Pipeline([Clip(clip), UniformMean(), *stages], Sum()).bind(Signal(parts), setting)


def decoding(round: int, attempt: int = 0, secret: bytes = b"secret") -> Decoding:
    return Decoding(
        N, float(N), lambda label: Stream(secret, label, round, attempt), lambda label: Stream(secret, "run", label)
    )


def rows(b: Bound, rounds: int, attempts: Callable[[int], int] = lambda round: 0) -> tuple[np.ndarray, Tensors]:
    """The noise of totals of zeros, times N."""
    state, found = b.start(), []
    for round in range(rounds):
        zeros = Tensors({name: np.zeros(*shape) for name, shape in b.summed.items()})
        total, state = b.decode_total(zeros, state, decoding(round, attempts(round)))
        found.append(np.asarray(total["value/w"]) * N)
    return np.stack(found), state


def white(z: np.ndarray) -> None:
    """Rows are independent and standard normal."""
    covariance = z @ z.T / z.shape[1]
    assert np.abs(covariance - np.eye(len(z))).max() < 6 / math.sqrt(z.shape[1])


def test_matrix_noise_is_white_behind_the_matrix() -> None:
    z, clip = 0.5, 2.0
    b = bound(MatrixNoise(z, rounds=T), clip=clip)
    coefficients = np.array(banded(T, 4, 4))
    matrix = sum(np.diag(np.full(T - j, c), -j) for j, c in enumerate(coefficients))
    found, _ = rows(b, T)
    white(matrix @ found / (z * clip * sensitivity(coefficients, T, 4)))
    prefix = np.cumsum(found, axis=0)
    assert math.sqrt((prefix**2).mean()) == pytest.approx(z * clip * error(coefficients, T, 4), rel=0.02)


@pytest.mark.parametrize("size", [1, 4, 5, 12])
def test_tree_noise_has_the_declared_error(size: int) -> None:
    z = 0.5
    found, _ = rows(bound(TreeNoise(z, rounds=T, restart=size)), T)
    prefix = np.cumsum(found, axis=0)
    assert math.sqrt((prefix**2).mean()) == pytest.approx(z * tree_error(T, size, 4), rel=0.03)
    if size == 1:
        white(found / (z * tree_sensitivity(T, 1, 4)[0]))


@pytest.mark.parametrize("stage", [MatrixNoise(1.0, rounds=T), TreeNoise(1.0, rounds=T, restart=8)])
def test_noise_is_made_again_after_a_restart(stage: Stage) -> None:
    whole, _ = rows(bound(stage, d=50), T)
    b, found = bound(stage, d=50), []
    state = b.start()
    for round in range(T):
        zeros = Tensors({"value/w": np.zeros(50)})
        b = bound(stage, d=50) if round in (3, 4, 9) else b
        total, state = b.decode_total(zeros, state, decoding(round))
        found.append(np.asarray(total["value/w"]) * N)
    np.testing.assert_allclose(np.stack(found), whole, rtol=0, atol=1e-6)


@pytest.mark.parametrize("stage", [MatrixNoise(1.0, rounds=T), TreeNoise(1.0, rounds=T)])
def test_no_noise_is_released_around_two_totals(stage: Stage) -> None:
    b = bound(stage, d=50)
    first, _ = rows(b, 5)
    again, _ = rows(b, 5, lambda round: int(round == 3))
    np.testing.assert_allclose(first[:3], again[:3], rtol=0, atol=1e-6)
    assert not np.any(np.isclose(first[3], again[3], atol=1e-9))
    other, _ = rows(bound(stage, d=50), 5)
    np.testing.assert_allclose(first, other, rtol=0, atol=1e-6)


def test_state_that_workers_are_sent_has_no_noise() -> None:
    b = bound(MatrixNoise(1.0, rounds=T))
    _, state = rows(b, 3)
    kept = state.part("2")
    assert set(kept) == {"plan", "round", "words"} and kept.size_bytes < 300
    assert np.count_nonzero(np.asarray(kept["words"])) == 3


def test_a_round_too_many_is_refused() -> None:
    b = bound(MatrixNoise(1.0, rounds=2), d=10)
    with pytest.raises(ConfigError, match="plan for more"):
        rows(b, 3)


def test_adaptive_clip_s_count_is_noised_along() -> None:
    parts = {"value": Part(shapes={"w": ((50,), "float32")}), "weight": Part(shapes={"weight": ((1,), "float64")})}
    setting = Setting(sampling=TURNS, algorithm=Algorithm(LocalWork(lr=1.0, epochs=1)), population=100)
    stages = [AdaptiveClip(1.0), UniformMean(), MatrixNoise(1.0, rounds=T, count_noise=2.0)]
    b = Pipeline(stages, Sum()).bind(Signal(parts), setting)
    assert b.events()[0].noise_multiplier == pytest.approx(1.0)
    zeros = Tensors({name: np.zeros(*shape) for name, shape in b.summed.items()})
    _, state = b.decode_total(zeros, b.start(), decoding(0))
    assert state["0/bound"][0] != 1.0


# ── what it costs


def one(z: float) -> float:
    ledger = Ledger().add(0, 0, [Event(mechanism="gaussian", noise_multiplier=z)])
    return epsilon_of(ledger, 1e-5).epsilon


def test_a_run_costs_one_gaussian_however_many_rounds() -> None:
    event = bound(MatrixNoise(2.0, rounds=T)).events()[0]
    ledger = Ledger()
    for round in range(T):
        ledger = ledger.add(round, 0, [event])
        assert epsilon_of(ledger, 1e-5).epsilon == pytest.approx(one(2.0))
    with pytest.raises(ConfigError, match="planned for rounds=12"):
        epsilon_of(ledger.add(T, 0, [event]), 1e-5)
    two = epsilon_of([ledger, ledger], 1e-5)
    assert two.epsilon == pytest.approx(one(2.0 / math.sqrt(2))), "two runs are two Gaussians"
    assert epsilon_of(ledger, 1e-5, against=SERVER).epsilon == math.inf


def test_a_round_released_again_is_paid_for() -> None:
    event = bound(MatrixNoise(2.0, rounds=T)).events()[0]
    ledger = Ledger().add(0, 0, [event]).add(1, 0, [event]).add(1, 1, [event])
    again = 2.0 * sensitivity(np.array(banded(T, 4, 4)), T, 4)
    expected = one((2.0**-2 + again**-2) ** -0.5)
    assert epsilon_of(ledger, 1e-5).epsilon == pytest.approx(expected)


# ── whole jobs


def clients() -> Clients:
    rng = np.random.default_rng(0)
    means = rng.standard_normal((3, 8)) * 2

    def one() -> Dataset:
        y = rng.integers(0, 3, 20)
        return Dataset(x=(means[y] + rng.standard_normal((20, 8))).astype("float32"), y=y)

    return Clients.of({f"c{i:03d}": one() for i in range(120)})


def job(stage: Stage, **options: object) -> Job:
    return Job(
        model=LogisticModel(8, 3),
        algorithm=FedAvg(LocalWork(lr=0.5, epochs=1, batch_size=10)),
        pipeline=Pipeline([Clip(1.0), UniformMean(), stage, Quantise(16)], Sum()),
        **{"sampling": Turns(10, groups=4), "rounds": T, **options},  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("stage", [MatrixNoise(1.0, rounds=T), TreeNoise(1.0, rounds=T)])
def test_job_without_a_random_sample_learns_and_costs_what_was_foretold(stage: Stage) -> None:
    private = job(stage)
    history = train(private, clients())
    right, seen = private.model.evaluate(history.params, clients().open("c000"))["accuracy"]
    assert right / seen > 0.6
    foretold = epsilon(private, population=120, delta=1e-5)
    assert epsilon_of(history.checkpoint.ledger, 1e-5).epsilon == pytest.approx(foretold.epsilon) == one(1.0)
    assert any("no amplification" in note for note in foretold.notes)


def test_clients_of_a_whole_job_take_turns() -> None:
    asked: dict[str, list[int]] = {}
    opened = clients()

    rounds: list[object] = []

    def counted(name: str) -> object:
        asked.setdefault(name, []).append(len(rounds))
        return opened.open(name)

    counting = Clients.of({name: functools.partial(counted, name) for name in opened})
    train(job(MatrixNoise(1.0, rounds=T)), counting, observe=rounds.append)
    assert len(rounds) == T and sum(map(len, asked.values())) >= 10 * T
    for at in asked.values():
        assert all(later - earlier >= 4 for earlier, later in itertools.pairwise(sorted(set(at))))


def test_budget_of_a_run_that_goes_on_counts_it_once() -> None:
    private = dataclasses.replace(job(MatrixNoise(1.0, rounds=T)), epsilon=one(1.0) + 1e-6, delta=1e-5)
    event = private.bind(120).events()[0]
    spent = Ledger().add(0, 0, [event]).add(1, 0, [event])
    assert check_budget(private, 120, spent, done=2) is not None
    with pytest.raises(BudgetExceeded, match="spent by other runs"):
        check_budget(private, 120, others=[spent])
    with pytest.raises(BudgetExceeded):
        check_budget(private, 120, spent.add(2, 0, [event]), done=2)  # round 2 was opened, and is to be tried again
    with pytest.raises(ConfigError, match="plan it for more"):
        check_budget(dataclasses.replace(private, rounds=T + 1), 120)


@pytest.mark.parametrize(
    ("stage", "sampling", "said"),
    [
        (MatrixNoise(1.0, rounds=T, bands=5), TURNS, "lower bands, or sample by Turns"),
        (MatrixNoise(1.0, rounds=T, bands=2), Fixed(10), "lower bands, or sample by Turns"),
        (MatrixNoise(1.0, rounds=T), Fixed(10, quorum=5, max_staleness=1), "max_staleness=0"),
        (TreeNoise(1.0, rounds=T), Fixed(10, quorum=5, max_staleness=1), "max_staleness=0"),
    ],
)
def test_what_the_noise_is_not_planned_for_is_refused(stage: Stage, sampling: Sampling, said: str) -> None:
    with pytest.raises(JobError, match=said):
        bound(stage, sampling=sampling)


def test_where_anybody_may_be_in_every_round_the_ledger_assumes_it() -> None:
    b = bound(TreeNoise(1.0, rounds=T, restart=4), sampling=Poisson(0.1))
    assert b.events()[0].sampling == "none"
    found, _ = rows(b, T)
    assert math.sqrt((np.cumsum(found, axis=0) ** 2).mean()) == pytest.approx(tree_error(T, 4, 1), rel=0.03)


@pytest.mark.parametrize("given", [{"noise_multiplier": 0.0}, {"rounds": 0}, {"bands": 0}])
def test_bad_settings_are_refused(given: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(given))):
        MatrixNoise(**{"noise_multiplier": 1.0, "rounds": 5, **given})  # type: ignore[arg-type]
    if "bands" not in given:
        with pytest.raises(ConfigError, match=next(iter(given))):
            TreeNoise(**{"noise_multiplier": 1.0, "rounds": 5, **given})  # type: ignore[arg-type]
