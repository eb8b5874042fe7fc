"""A differentially private job, from its description to its ledger."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from hansa.adapters.numpy import LogisticModel
from hansa.algorithms.fedavg import FedAvg
from hansa.core.data import Clients, Dataset
from hansa.core.errors import BudgetExceeded, ConfigError, JobError
from hansa.core.job import Evaluation, Job
from hansa.core.ledger import Ledger
from hansa.core.model import LocalWork
from hansa.core.pipeline import Decoding, Pipeline, Stage
from hansa.core.sampling import Fixed, Poisson, Sampling, Stream
from hansa.core.tensors import Tensors
from hansa.privacy import ALONE, SERVER, calibrated, check_budget, epsilon, epsilon_of
from hansa.privacy.sampling import Turns
from hansa.runtimes.local import train
from hansa.stages.adaptive_clip import AdaptiveClip
from hansa.stages.clip import Clip
from hansa.stages.correlated_noise import MatrixNoise
from hansa.stages.distributed_noise import DistributedGaussian
from hansa.stages.laplace import Laplace
from hansa.stages.local_noise import LocalGaussian
from hansa.stages.mean import UniformMean
from hansa.stages.noise import Gaussian
from hansa.stages.quantise import Quantise
from hansa.stages.sum import Sum

pytest.importorskip("dp_accounting")


def clients(count: int = 30) -> Clients:
    rng = np.random.default_rng(0)
    means = rng.standard_normal((3, 8)) * 2

    def one() -> Dataset:
        y = rng.integers(0, 3, 20)
        return Dataset(x=(means[y] + rng.standard_normal((20, 8))).astype("float32"), y=y)

    return Clients.of({f"c{i:02d}": one() for i in range(count)})


def job(*stages: Stage, sampling: Sampling | None = None, rounds: int = 6, **options: object) -> Job:
    return Job(
        model=LogisticModel(8, 3),
        algorithm=FedAvg(LocalWork(lr=0.5, epochs=1, batch_size=10)),
        pipeline=Pipeline(stages or [Clip(1.0), UniformMean(), Gaussian(2.0), Quantise(16)], Sum()),
        sampling=sampling or Poisson(0.5),
        rounds=rounds,
        **options,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("sampling", [Poisson(0.5), Fixed(10), Fixed(30)], ids=["poisson", "fixed", "all"])
@pytest.mark.parametrize("clip", [Clip(1.0), AdaptiveClip(0.5)], ids=["clip", "adaptive"])
def test_private_job_learns_and_its_ledger_costs_what_was_foretold(sampling: Sampling, clip: Stage) -> None:
    private = job(clip, UniformMean(), Gaussian(0.3), Quantise(16), sampling=sampling, rounds=8)
    history = train(private, clients())
    ledger = history.checkpoint.ledger
    assert len(ledger) == 8
    assert epsilon_of(ledger, 1e-3).epsilon == pytest.approx(epsilon(private, population=30, delta=1e-3).epsilon)
    test = clients().open("c00")
    right, seen = private.model.evaluate(history.params, test)["accuracy"]
    assert right / seen > 0.5
    assert all(record.train == {} for record in history.rounds), "metrics are not sent under noise"
    assert all(np.asarray(history.params[name]).dtype == np.float32 for name in history.params)


def test_noise_is_not_a_function_of_the_job() -> None:
    first, second = (train(job(sampling=Fixed(30), rounds=1), clients()).params for _ in range(2))
    assert all(not np.array_equal(first[name], second[name]) for name in first)


def test_budget_is_checked_before_the_start() -> None:
    dear = job(epsilon=0.05, delta=1e-3, rounds=100)
    with pytest.raises(BudgetExceeded, match="the budget allows 0 of them"):
        check_budget(dear, 30)
    cheap = dataclasses.replace(dear, epsilon=1e4)
    found = check_budget(cheap, 30)
    assert found is not None and found.epsilon < 1e4
    assert check_budget(job(), 30) is None


def test_budget_counts_what_is_spent_and_says_how_many_rounds_are_left() -> None:
    whole = job(rounds=10)
    event = whole.bind(30).events()[0]
    six = epsilon(dataclasses.replace(whole, rounds=6), population=30, delta=1e-3).epsilon
    budgeted = dataclasses.replace(whole, epsilon=six + 1e-6, delta=1e-3)
    with pytest.raises(BudgetExceeded, match="the budget allows 6 of them"):
        check_budget(budgeted, 30)
    spent = Ledger()
    for round in range(4):
        spent = spent.add(round, 0, [event])
    with pytest.raises(BudgetExceeded, match="the budget allows 2 of them"):
        check_budget(budgeted, 30, spent, done=4)
    assert check_budget(dataclasses.replace(budgeted, rounds=6), 30, spent, done=4) is not None


def test_job_without_noise_has_no_epsilon() -> None:
    with pytest.raises(ConfigError, match="no stage of this job adds noise"):
        epsilon(job(Clip(1.0), UniformMean()), population=30, delta=1e-3)
    with pytest.raises(ConfigError, match="no meaning without δ"):
        epsilon(job(), population=30)


def test_metrics_of_workers_are_refused_under_noise() -> None:
    with pytest.raises(JobError, match="set workers=0"):
        job(evaluation=Evaluation(workers=3)).check(30)


@pytest.mark.parametrize(
    ("noise", "sampling"),
    [
        (Gaussian, Poisson(0.5)),
        (LocalGaussian, Fixed(10)),
        (lambda z: DistributedGaussian(z, bits=24), Fixed(10)),
        (lambda z: MatrixNoise(z, rounds=4), Turns(5, groups=3)),
        (Laplace, Fixed(30)),
    ],
)
def test_noise_of_any_mechanism_is_calibrated_to_a_target(noise: Callable[[float], Stage], sampling: Sampling) -> None:
    def make(z: float) -> Job:
        return job(Clip(1.0), UniformMean(), noise(z), sampling=sampling, rounds=4)

    found = calibrated(make, epsilon=3.0, population=30, delta=1e-3)
    assert epsilon(found, population=30, delta=1e-3).epsilon == pytest.approx(3.0, rel=5e-3)
    assert epsilon(found, population=30, delta=1e-3).epsilon <= 3.0
    history = train(found, clients())
    assert epsilon_of(history.checkpoint.ledger, 1e-3).epsilon <= 3.0


def test_sums_are_divided_by_the_expected_cohort_under_poisson_sampling_alone() -> None:
    for sampling, divisor in ((Poisson(0.5), 15), (Fixed(10), 7)):
        bound = job(Clip(1.0), UniformMean(), sampling=sampling).bind(30)
        total = Tensors({name: np.ones(*shape) for name, shape in bound.summed.items()})
        decoding = Decoding(7, sampling.expected(30), lambda label: Stream(b"s", label))
        mean = bound.decode_total(total, bound.start(), decoding)[0]
        assert all(np.allclose(np.asarray(mean[name]), 1 / divisor) for name in mean if name.startswith("value/"))


def test_against_the_server_a_plain_sum_leaves_one_share_of_distributed_noise() -> None:
    shared = job(Clip(1.0), UniformMean(), DistributedGaussian(3.0, bits=20), sampling=Fixed(10), rounds=1)
    outside = epsilon(shared, population=30, delta=1e-3)
    server = epsilon(shared, population=30, delta=1e-3, against=SERVER)
    assert server.relation == ALONE and server.epsilon > 3 * outside.epsilon
    assert any("only a client's own share" in note for note in outside.notes)
    assert epsilon(job(rounds=1), population=30, delta=1e-3, against=SERVER).epsilon == float("inf")
