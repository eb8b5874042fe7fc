"""`hansa privacy`: noise, its cost, and budgets."""

from pathlib import Path
from typing import Annotated

import typer

from hansa.app.commands.options import Config, JobFile, Settings

privacy = typer.Typer(no_args_is_help=True, help="What noise a job needs, what it costs, and budgets.")
StateFolder = Annotated[
    Path, typer.Option("--state", metavar="DIR", help="The state of a server (it may be running) or a simulation.")
]


@privacy.command("plan")
def privacy_plan(
    epsilon: Annotated[float, typer.Option("--epsilon", help="ε of all rounds together.")],
    delta: Annotated[float, typer.Option("--delta", help="δ, well below 1 / clients.")],
    clients: Annotated[int, typer.Option("--clients", metavar="N", help="How many there are.")],
    rounds: Annotated[int, typer.Option("--rounds", metavar="N", help="How many there will be.")],
    noise: Annotated[
        float | None,
        typer.Option(
            "--noise", help="Noise that the mean may have, over the clip: multiplier / cohort. Default: 0.01."
        ),
    ] = None,
    cohort: Annotated[
        int | None, typer.Option("--cohort", metavar="N", help="Clients a round; asks for the noise instead.")
    ] = None,
    sampling: Annotated[
        str, typer.Option("--sampling", metavar="poisson|fixed", help="How they are drawn.")
    ] = "poisson",
    by: Annotated[str, typer.Option("--by", metavar="rdp|pld", help="The way of accounting; pld is tighter.")] = "rdp",
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE.PNG", help="Draw the noise against the size of the cohort.")
    ] = None,
) -> None:
    """Find the cohort and the noise that a private job needs.

    Example:  hansa privacy plan --epsilon 2 --delta 1e-5 --clients 3383 --rounds 100
    """
    from hansa.app.privacy_commands import plan
    from hansa.privacy import Target

    target = Target(epsilon=epsilon, delta=delta, clients=clients, rounds=rounds, sampling=sampling, by=by)
    plan(target, noise, cohort, plot)


@privacy.command("epsilon")
def privacy_epsilon(
    job: JobFile,
    settings: Settings = None,
    config: Config = None,
    clients: Annotated[
        int | None, typer.Option("--clients", metavar="N", help="How many there are. Default: as the file's `clients`.")
    ] = None,
    delta: Annotated[float | None, typer.Option("--delta", help="δ. Default: the job's own, or 1e-5.")] = None,
) -> None:
    """Say what a job will cost in privacy: against those who see its models, and against the server.

    Example:  hansa privacy epsilon job.py --clients 3383
    """
    from hansa.app.privacy_commands import epsilon

    epsilon(job, settings or [], config, clients, delta)


@privacy.command("ledger")
def privacy_ledger(
    state: StateFolder,
    delta: Annotated[float | None, typer.Option("--delta", help="δ. Default: the budget's, or 1e-5.")] = None,
    population: Annotated[str | None, typer.Option("--population", metavar="NAME", help="Only this one.")] = None,
) -> None:
    """List what the runs in a state folder have released, and what that cost, together and by run.

    Example:  hansa privacy ledger --state ./state
    """
    from hansa.app.privacy_commands import ledger

    ledger(state, delta, population)


@privacy.command("budget")
def privacy_budget(
    state: StateFolder,
    epsilon: Annotated[float, typer.Option("--epsilon", help="ε that all runs together may cost.")],
    delta: Annotated[float, typer.Option("--delta", help="δ, well below 1 / clients.")] = 1e-5,
    population: Annotated[
        str, typer.Option("--population", metavar="NAME", help="Whose budget; `everyone` is all of a server's workers.")
    ] = "everyone",
) -> None:
    """Give a population a budget: jobs that would exceed it, or add no noise, are refused before they start.

    Example:  hansa privacy budget --state ./state --epsilon 8 --delta 1e-6
    """
    from hansa.app.privacy_commands import budget

    budget(state, epsilon, delta, population)
