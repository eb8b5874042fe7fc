"""A population's budget adds up over jobs, lasts, and is refused to a job before it starts."""

import dataclasses
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from hansa.adapters.numpy import LogisticModel
from hansa.algorithms.fedavg import FedAvg
from hansa.core.data import Clients, Dataset
from hansa.core.errors import BudgetExceeded, ConfigError
from hansa.core.job import Job
from hansa.core.ledger import Ledger
from hansa.core.model import LocalWork
from hansa.core.pipeline import Pipeline
from hansa.core.sampling import Poisson
from hansa.privacy import epsilon, epsilon_of
from hansa.privacy.sampling import Turns
from hansa.runtimes.budget import EVERYONE, Budget
from hansa.runtimes.local import train
from hansa.runtimes.store import SqlStore
from hansa.stages.clip import Clip
from hansa.stages.correlated_noise import MatrixNoise
from hansa.stages.mean import UniformMean
from hansa.stages.noise import Gaussian
from hansa.stages.sum import Sum

pytest.importorskip("dp_accounting")
PEOPLE, DELTA = 40, 1e-3


def clients() -> Clients:
    rng = np.random.default_rng(0)

    def one() -> Dataset:
        return Dataset(x=rng.standard_normal((5, 4)).astype("float32"), y=rng.integers(0, 2, 5))

    return Clients.of({f"c{i:02d}": one() for i in range(PEOPLE)})


def job(*noise: object, rounds: int = 3, **options: object) -> Job:
    return Job(
        model=LogisticModel(4, 2),
        algorithm=FedAvg(LocalWork(lr=0.1, epochs=1)),
        pipeline=Pipeline([Clip(1.0), UniformMean(), *noise], Sum()),  # type: ignore[list-item]
        rounds=rounds,
        **{"sampling": Poisson(1.0), **options},  # type: ignore[arg-type]
    )


PRIVATE = job(Gaussian(2.0))


def cost_of(rounds: int) -> float:
    return epsilon(dataclasses.replace(PRIVATE, rounds=rounds), population=PEOPLE, delta=DELTA).epsilon


def begun(store: SqlStore) -> str:
    run = store.add_run(name="job", bundle="b" * 64, submitter="alice")
    store.set_state(run, "running")
    return run


def finished(store: SqlStore, which: Job = PRIVATE, people: Clients | None = None) -> str:
    run = begun(store)
    train(which, people or clients(), store=store.run(run))
    store.set_state(run, "done")
    return run


def test_budget_adds_up_over_jobs_and_outlives_the_process(tmp_path: Path) -> None:
    store = SqlStore(tmp_path / "state")
    store.set_budget(Budget(cost_of(6) + 1e-6, DELTA))
    finished(store)
    store.close()
    store = SqlStore(tmp_path / "state")
    assert store.budget() == Budget(cost_of(6) + 1e-6, DELTA)
    finished(store)
    ledgers = [Ledger(tuple(store.run(plan["run"]).charges())) for plan in store.plans(EVERYONE)]
    assert epsilon_of(ledgers, DELTA).epsilon == pytest.approx(cost_of(6))
    with pytest.raises(BudgetExceeded, match="is spent by other runs, beyond the population's budget") as refused:
        finished(store)
    assert "the budget allows 0 of them" in str(refused.value)
    assert len(store.run(store.runs()[-1]["id"]).charges()) == 0, "and nothing of it was released"
    store.close()


def test_runs_that_go_on_have_their_rounds_reserved(tmp_path: Path) -> None:
    store = SqlStore(tmp_path / "state")
    store.set_budget(Budget(cost_of(5) + 1e-6, DELTA))
    first = begun(store)
    store.run(first).admit(PRIVATE, PEOPLE)
    second = begun(store)
    with pytest.raises(BudgetExceeded, match="the budget allows 2 of them"):
        store.run(second).admit(PRIVATE, PEOPLE)
    store.run(second).admit(dataclasses.replace(PRIVATE, rounds=2), PEOPLE)
    store.set_state(second, "failed")
    store.set_state(first, "stopped")
    store.run(begun(store)).admit(PRIVATE, PEOPLE)  # neither has released anything, and neither is going on
    store.close()


def test_populations_have_budgets_of_their_own(tmp_path: Path) -> None:
    store = SqlStore(tmp_path / "state")
    store.set_budget(Budget(cost_of(3) + 1e-6, DELTA, "adults"))
    store.run(begun(store)).admit(PRIVATE, PEOPLE, "adults")
    store.run(begun(store)).admit(PRIVATE, PEOPLE, "children")
    store.run(begun(store)).admit(PRIVATE, PEOPLE)
    with pytest.raises(BudgetExceeded):
        store.run(begun(store)).admit(PRIVATE, PEOPLE, "adults")
    assert [plan["population"] for plan in store.plans()] == ["adults", "children", EVERYONE]
    store.set_budget(Budget(cost_of(6) + 1e-6, DELTA, "adults"))
    store.run(begun(store)).admit(PRIVATE, PEOPLE, "adults")
    store.close()


def test_job_without_noise_is_refused_where_there_is_a_budget(tmp_path: Path) -> None:
    store = SqlStore(tmp_path / "state")
    finished(store, job())
    store.set_budget(Budget(10.0, DELTA))
    with pytest.raises(ConfigError, match="releases its model without noise"):
        finished(store, job())
    store.close()


def test_own_budget_counts_too(tmp_path: Path) -> None:
    store = SqlStore(tmp_path / "state")
    with pytest.raises(BudgetExceeded, match="beyond epsilon=0.1"):
        finished(store, dataclasses.replace(PRIVATE, epsilon=0.1, delta=DELTA))
    store.close()


def test_run_that_goes_on_is_not_counted_twice(tmp_path: Path) -> None:
    store = SqlStore(tmp_path / "state")
    store.set_budget(Budget(cost_of(3) + 1e-6, DELTA))
    run = begun(store)
    train(dataclasses.replace(PRIVATE, rounds=2), clients(), store=store.run(run))
    train(PRIVATE, clients(), store=store.run(run))
    assert len(store.run(run).charges()) == 3
    store.close()


def test_correlated_noise_is_one_release_a_run(tmp_path: Path) -> None:
    matrix = job(MatrixNoise(2.0, rounds=3), sampling=Turns(5, groups=2))
    store = SqlStore(tmp_path / "state")
    store.set_budget(Budget(cost_of(2) + 1e-6, DELTA))
    finished(store, matrix)
    finished(store, matrix)
    with pytest.raises(BudgetExceeded):
        finished(store, matrix)
    store.close()


def test_state_of_an_older_version_counts_against_everyone(tmp_path: Path) -> None:
    store = SqlStore(tmp_path / "state")
    run = finished(store)
    store.close()
    with sqlite3.connect(tmp_path / "state" / "hansa.db") as raw:
        raw.execute("DROP TABLE plans")
        raw.execute("DROP TABLE budgets")
        raw.execute("UPDATE schema_version SET version = 1")
    store = SqlStore(tmp_path / "state")
    assert [(plan["run"], plan["population"]) for plan in store.plans()] == [(run, EVERYONE)]
    store.set_budget(Budget(cost_of(3) + 1e-6, DELTA))
    with pytest.raises(BudgetExceeded):
        finished(store)
    store.close()


@pytest.mark.parametrize("given", [{"epsilon": 0.0}, {"epsilon": -1.0}, {"delta": 0.0}, {"delta": 1.0}])
def test_budgets_that_are_none_are_refused(given: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(given))):
        Budget(**{"epsilon": 1.0, "delta": 1e-5, **given})
