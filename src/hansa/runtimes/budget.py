"""Privacy budgets of populations: what all runs about the same people may release together.

    a job is admitted if    what every run has released
                          + what runs that are going on have still to release
                          + what this job will release
                          stays within the population's (ε, δ)

A run's ledger says what it released; its plan, kept from the moment it was admitted, what it has still to. The ledger
belongs to the state folder: releases elsewhere, and of runs without noise from before there was a budget, are not in
it. Attempts that come to nothing after they were charged cost more than was planned, and are counted from then on.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hansa.core.errors import ConfigError, require
from hansa.core.job import Job
from hansa.core.ledger import Entry, Event, Ledger
from hansa.privacy import check_budget

if TYPE_CHECKING:
    from hansa.runtimes.store import SqlStore

EVERYONE = "everyone"
"""The population of a server's runs: all its workers."""


@dataclass(frozen=True)
class Budget:
    """What a population may be charged. `population` is its name.

    Raises:
      ConfigError: ε is not above 0, or δ outside (0, 1).
    """

    epsilon: float
    delta: float
    population: str = EVERYONE

    def __post_init__(self) -> None:
        require(self.epsilon > 0, f"epsilon={self.epsilon}: a budget is above 0.")
        require(0 < self.delta < 1, f"delta={self.delta}: it lies in (0, 1), well below 1 / population.")
        require(bool(self.population), "a population needs a name.")


def admit(store: "SqlStore", run: str, job: Job, people: int, population: str = EVERYONE) -> None:
    """Lets a run begin or go on, and keeps what it plans to release.

    Args:
      store: of the run and of all others about these people.
      run: the run's id.
      job: what it does.
      people: clients that can be asked.
      population: whose budget it is.

    Raises:
      BudgetExceeded: the job would exceed its own budget, or its population's.
      ConfigError: there is a budget, and the job releases its model without noise.
      MissingExtra: there is a budget, and dp-accounting is not installed.
    """
    with store.alone():
        mine, done = store.run(run), len(store.run(run).records())
        charged = Ledger(tuple(mine.charges()))
        check_budget(job, people, charged, done=done)
        budget = store.budget(population)
        if budget is not None:
            if not job.bind(people).events():
                raise ConfigError(
                    f"the population '{population}' has a privacy budget, and this job releases its model without "
                    "noise: add some, as in Gaussian(1.0)."
                )
            others = [whole(store, row) for row in store.plans(population) if row["run"] != run]
            check_budget(job, people, charged, done=done, others=others, epsilon=budget.epsilon, delta=budget.delta)
        store.plan(run, population, job.rounds, job.bind(people).events())


def whole(store: "SqlStore", plan: dict[str, Any]) -> Ledger:
    """The ledger of a run as it will be when a run that is going on has come to its end; empty if it adds no noise."""
    if not plan["events"]:
        return Ledger()
    run = store.run(plan["run"])
    ledger = tuple(run.charges())
    if store.find(plan["run"])["state"] != "running":
        return Ledger(ledger)
    ahead = range(len(run.records()), plan["rounds"])
    events: tuple[Event, ...] = plan["events"]
    return Ledger((*ledger, *(Entry(round, 0, event) for round in ahead for event in events)))
