"""`hansa privacy`: planning noise, what a job will cost, what runs have cost, and budgets."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hansa.app.folder import check_file, state_in
from hansa.app.jobs import read_settings
from hansa.app.terminal import emit, hint, number, say, settings, table
from hansa.core.errors import ConfigError
from hansa.core.job import Job
from hansa.core.ledger import EXACT, Ledger
from hansa.privacy import MODELS, SERVER, Cost, Target, epsilon as cost_of, epsilon_of, plan as planned, plot_noise
from hansa.runtimes.jobfile import clients_of, job_of, load_module

if TYPE_CHECKING:
    from hansa.runtimes.store import SqlStore

DELTA = 1e-5
EXACTLY = "none: exact"
AGAINST = {MODELS: "those who see the models", SERVER: "the server itself"}


def plan(target: Target, noise: float | None, cohort: int | None, plot: Path | None) -> None:
    """`hansa privacy plan`."""
    if plot is not None and plot.suffix not in (".png", ".svg", ".pdf"):
        raise ConfigError(f"--plot {plot}: end its name with .png, .svg or .pdf.")
    check_file(plot, "--plot")
    found = planned(target, noise=0.01 if noise is None and cohort is None else noise, cohort=cohort)
    if plot is not None:
        plot_noise(found, plot)
    emit(
        "plan", cohort=found.cohort, noise_multiplier=found.noise_multiplier, noise=found.noise, epsilon=found.epsilon,
        delta=target.delta, clients=target.clients, rounds=target.rounds, sampling=target.sampling, by=target.by,
        plot=None if plot is None else str(plot),
    )  # fmt: skip
    say(str(found))
    say(f"costs        ε = {found.epsilon:.5g} for {target.rounds} rounds ({target.by.upper()})")
    say(f"noise        {found.noise:.3g} times the clip, in each coordinate of the mean")
    kind = f"Poisson({found.cohort} / {target.clients})" if target.sampling == "poisson" else f"Fixed({found.cohort})"
    say(f"in the job   sampling=hansa.{kind}, hansa.Gaussian({found.noise_multiplier:.5g})")
    if plot is not None:
        say(f"picture written to {plot}")
    if target.by == "rdp" and target.sampling == "poisson":
        hint("--by pld accounts more tightly, and asks for fewer clients or less noise")
    if target.warning:
        hint(f"warning: {target.warning}")


def epsilon(job: Path, pairs: Sequence[str], config: Path | None, clients: int | None, delta: float | None) -> None:
    """`hansa privacy epsilon`."""
    module = load_module(job)
    loaded = job_of(module, read_settings(pairs, config))
    population = clients if clients is not None else len(clients_of(module))
    loaded.check(population)
    chosen = delta if delta is not None else loaded.delta if loaded.delta is not None else min(DELTA, 0.1 / population)
    say(f"{loaded.rounds} rounds, {population} clients, about {loaded.who.expected(population):g} of them a round")
    for against, who in AGAINST.items():
        found = cost_of(loaded, population=population, delta=chosen, against=against)
        emit(
            "epsilon", against=against, **_numbers(found), relation=found.relation, notes=list(found.notes),
            rounds=loaded.rounds, population=population,
        )  # fmt: skip
        say(f"against {who}: {found}")
        for note in found.notes:
            say(f"  {note}")
        if against == MODELS:
            _over_rounds(loaded, population, chosen)
    if loaded.epsilon is not None:
        say(f"the job's own budget is ε = {loaded.epsilon:g} at δ = {loaded.delta:g}")


def _over_rounds(job: Job, population: int, delta: float) -> None:
    """What the first rounds cost, for people."""
    at = sorted({1, *(math.ceil(job.rounds * share) for share in (0.1, 0.25, 0.5))} - {job.rounds})
    if settings.json or job.rounds < 4:
        return
    costs = [cost_of(job, population=population, delta=delta, rounds=rounds).epsilon for rounds in at]
    say("  after " + ", ".join(f"{rounds} rounds {number(cost)}" for rounds, cost in zip(at, costs, strict=True)))


def ledger(state: Path, delta: float | None, population: str | None) -> None:
    """`hansa privacy ledger`."""
    with state_in(state, "--state", beside=True) as store:
        plans = store.plans(population)
        names = sorted({plan["population"] for plan in plans} | ({population} if population else set()))
        rows = [row for name in names for row in _rows(store, name, plans, delta)]
    columns = ["population", "run", "job", "state", "releases", "epsilon", "delta", "budget"]
    table("ledger", rows, columns, "no run has begun here")
    if any(row["epsilon"] == EXACTLY for row in rows):
        hint("runs without noise release their models exactly: no ε covers them, and they are not in the sums")


def _rows(
    store: "SqlStore", population: str, plans: Sequence[Mapping[str, Any]], delta: float | None
) -> Iterator[dict[str, Any]]:
    """What each run about a population cost, and then all of them together."""
    budget = store.budget(population)
    chosen = delta if delta is not None else budget.delta if budget is not None else DELTA
    together = []
    for plan in plans:
        if plan["population"] != population:
            continue
        run, spent = store.find(plan["run"]), Ledger(tuple(store.run(plan["run"]).charges()))
        if plan["events"]:
            together.append(spent)
        yield {
            "population": population, "run": run["id"], "job": run["name"], "state": run["state"],
            "releases": sum(entry.event != EXACT for entry in spent),
            "epsilon": _spent([spent], chosen) if plan["events"] else EXACTLY, "delta": chosen,
        }  # fmt: skip
    yield {
        "population": population, "run": "together", "job": "", "state": "", "delta": chosen,
        "releases": sum(map(len, together)), "epsilon": _spent(together, chosen),
        "budget": None if budget is None else budget.epsilon,
    }  # fmt: skip


def budget(state: Path, epsilon: float, delta: float, population: str) -> None:
    """`hansa privacy budget`."""
    from hansa.runtimes.budget import Budget

    chosen = Budget(epsilon, delta, population)
    with state_in(state, "--state", beside=True) as store:
        before = store.budget(population)
        store.set_budget(chosen)
    emit("budget", population=population, epsilon=epsilon, delta=delta, before=before and before.epsilon)
    was = "" if before is None else f" (before: ε = {before.epsilon:g} at δ = {before.delta:g})"
    say(f"population '{population}' may be charged ε = {epsilon:g} at δ = {delta:g}{was}")
    say("a job that would exceed it is refused before it starts; runs that have begun go on")


def _spent(ledgers: Sequence[Ledger], delta: float) -> float | str | None:
    """ε of these runs together, or that they have none."""
    try:
        return _finite(epsilon_of(ledgers, delta).epsilon)
    except ConfigError:
        return "none: a release without a known cost"


def _numbers(found: Cost) -> dict[str, Any]:
    """For machines: JSON has no infinity."""
    return {
        "epsilon": _finite(found.epsilon), "rdp": _finite(found.rdp), "pld": _finite(found.pld), "delta": found.delta,
    }  # fmt: skip


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
