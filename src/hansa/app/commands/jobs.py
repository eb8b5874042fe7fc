"""A job on this machine: made, run, looked at, attacked."""

from pathlib import Path
from typing import Annotated

import typer

from hansa.app.commands.options import (
    ClusterAddress,
    Config,
    IdentityFile,
    JobFile,
    Processes,
    RuntimeName,
    Settings,
    SimulatedClients,
)
from hansa.core.errors import ConfigError

PANEL = "A job"
commands = typer.Typer()
job = typer.Typer(no_args_is_help=True, help="Look at a job before it runs: show it, check it.")


@commands.command(rich_help_panel=PANEL)
def new(
    name: Annotated[str, typer.Argument(help="The folder to make.")],
    template: Annotated[
        str, typer.Option("--template", metavar="numpy|torch", help="What the model is written in.")
    ] = "numpy",
) -> None:
    """Make a folder with a job that runs at once.

    Example:  hansa new first --template torch && hansa simulate first/job.py
    """
    from hansa.app.scaffold import scaffold

    scaffold(name, template)


@commands.command(rich_help_panel=PANEL)
def simulate(
    job: JobFile,
    clients: SimulatedClients = None,
    settings: Settings = None,
    config: Config = None,
    runtime: RuntimeName = "local",
    processes: Processes = None,
    address: ClusterAddress = None,
    state: Annotated[
        Path | None, typer.Option("--state", metavar="DIR", help="Keep the state here, durable after each round.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last committed round in --state.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write the model here, as safetensors.")
    ] = None,
    best: Annotated[bool, typer.Option("--best", help="Write the best model instead of the last.")] = False,
    checkpoint_every: Annotated[
        int, typer.Option("--checkpoint-every", metavar="N", help="Rounds between checkpoints in --state.")
    ] = 1,
    log: Annotated[
        Path | None, typer.Option("--log", metavar="FILE", help="Log each round to this .csv or .parquet file.")
    ] = None,
    target: Annotated[
        str | None, typer.Option("--target", metavar="METRIC=VALUE", help="End the run once a metric is as good.")
    ] = None,
    stop_after: Annotated[
        str | None,
        typer.Option("--stop-after", metavar="METRIC=N", help="End it after N evaluations that were no better."),
    ] = None,
) -> None:
    """Run a job on this machine, with simulated clients.

    Example:  hansa simulate job.py --clients 100 --set rounds=20 --out model.safetensors
    """
    from hansa.app.simulate import simulate as run

    run(
        job, clients=clients, settings=settings or [], config=config, runtime=runtime, processes=processes,
        address=address, state=state, resume=resume, out=out, best=best, checkpoint_every=checkpoint_every, log=log,
        target=target, stop_after=stop_after,
    )  # fmt: skip


@commands.command(rich_help_panel=PANEL)
def sweep(
    job: JobFile,
    grid: Annotated[
        list[str],
        typer.Option("--grid", metavar="KEY=A,B,…", help="Values of a field of the job; repeatable: all combinations."),
    ],
    metric: Annotated[
        str | None, typer.Option("--metric", metavar="NAME", help="What to compare, as accuracy or workers.loss.")
    ] = None,
    maximise: Annotated[
        bool | None, typer.Option("--maximise/--minimise", help="Whether more of it is better. Default: by its name.")
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", metavar="N", help="Runs of each, from the job's seed up.")] = 1,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where runs, table and picture go.")] = Path(
        "sweep"
    ),
    clients: SimulatedClients = None,
    settings: Settings = None,
    config: Config = None,
    runtime: RuntimeName = "local",
    processes: Processes = None,
    address: ClusterAddress = None,
    checkpoint_every: Annotated[
        int, typer.Option("--checkpoint-every", metavar="N", help="Rounds between checkpoints of a run.")
    ] = 10,
) -> None:
    """Run a job once for each combination of settings, and compare them: a table, a CSV file and a picture.

    Started again with the same command it goes on where it was; with more values or seeds, only what is new is run.

    Example:  hansa sweep job.py --grid algorithm.work.lr=0.05,0.1 --grid cohort=5,10 --seeds 3
    """
    from hansa.app.sweep import sweep as run

    run(
        job, grid=grid, metric=metric, maximise=maximise, seeds=seeds, out=out, clients=clients,
        settings=settings or [], config=config, runtime=runtime, processes=processes, address=address,
        checkpoint_every=checkpoint_every,
    )  # fmt: skip


@commands.command(rich_help_panel=PANEL)
def audit(
    job: JobFile,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the report and its pictures go.")] = Path(
        "audit"
    ),
    clients: SimulatedClients = None,
    settings: Settings = None,
    config: Config = None,
    client: Annotated[
        str | None, typer.Option("--client", metavar="ID", help="Whose examples are read. Default: the first.")
    ] = None,
    examples: Annotated[
        int, typer.Option("--examples", metavar="N", help="How many examples that client holds; few are read best.")
    ] = 1,
    iterations: Annotated[
        int, typer.Option("--iterations", metavar="N", help="Of gradient matching; more read better.")
    ] = 1000,
    shadows: Annotated[
        int, typer.Option("--shadows", metavar="N", help="Runs of the job for membership; more tell better.")
    ] = 16,
    canaries: Annotated[
        int, typer.Option("--canaries", metavar="N", help="For private jobs; more bound ε better.")
    ] = 200,
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail, with exit code 1, if anything leaks; not only if ε is broken.")
    ] = False,
) -> None:
    """Attack a job as its own server and readers could, and report what they learn.

    Four attacks, each where it applies: a client's example out of its update, who was in the training data, ε from
    below, and one client's contribution by lying to a secure sum. The job is run once for each shadow: lower its rounds
    by --set for a first look.

    Example:  hansa audit job.py --set rounds=5 --out audit/
    """
    from hansa.app.audit import audit as run

    run(
        job, out=out, clients=clients, settings=settings or [], config=config, client=client, examples=examples,
        iterations=iterations, shadows=shadows, birds=canaries, strict=strict,
    )  # fmt: skip


@commands.command(rich_help_panel=PANEL)
def threats(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Of a stage or reducer. Default: all.")] = None,
    vertical: Annotated[bool, typer.Option("--vertical", help="Of algorithms of different columns instead.")] = False,
) -> None:
    """Say who sees what, against whom and under which assumption, as each stage and reducer declares it.

    Without a name it is the table of the documentation, in Markdown.

    Example:  hansa threats SecureSum
    """
    if vertical and name is not None:
        raise ConfigError(f"--vertical prints its whole table: leave '{name}' out, or leave out --vertical.")
    if vertical:
        from hansa.app.vertical_threats import threats as vertical_run

        vertical_run()
        return
    from hansa.app.threats import threats as run

    run(name)


@commands.command(rich_help_panel=PANEL)
def build(
    job: JobFile,
    out: Annotated[Path, typer.Option("--out", metavar="FILE.HANSA", help="The archive to write.")],
    identity: IdentityFile = None,
    settings: Settings = None,
    config: Config = None,
    include: Annotated[
        list[str] | None, typer.Option("--include", metavar="PATH", help="A further file or folder.")
    ] = None,
    check: Annotated[bool, typer.Option("--check/--no-check", help="Load and check the job first.")] = True,
) -> None:
    """Pack a job into an archive without submitting it; the same folder gives the same hash anywhere.

    Example:  hansa build job.py --out job.hansa --identity alice.pem
    """
    from hansa.app.jobs import build as run

    run(job, out, identity, settings or [], config, include or [], check)


@commands.command(rich_help_panel=PANEL)
def graph(
    job: JobFile,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE.SVG|FILE.DOT", help="Default: DOT is printed.")
    ] = None,
    settings: Settings = None,
    config: Config = None,
    population: Annotated[int | None, typer.Option("--clients", metavar="N", help="Bind for so many clients.")] = None,
) -> None:
    """Draw what flows between the parties of a job in one round, each in a colour of its own.

    Example:  hansa graph job.py --out flow.svg
    """
    from hansa.app.graph import graph as run

    run(job, out, settings or [], config, population)


@job.command("show")
def job_show(
    job: Annotated[Path, typer.Argument(metavar="JOB.PY|BUNDLE", help="A job file, or an archive.")],
    settings: Settings = None,
    config: Config = None,
    population: Annotated[int | None, typer.Option("--clients", metavar="N", help="Bind for so many clients.")] = None,
    load: Annotated[
        bool, typer.Option("--load", help="For an archive: also run its code to dump the job. Read the files first.")
    ] = False,
) -> None:
    """Show what would run: the job's canonical form, its stages as bound, who sees what, and every file.

    An archive is only read, never run, unless you say --load.

    Example:  hansa job show job.hansa | less
    """
    from hansa.app.jobs import show

    show(job, settings or [], config, population, load)


@job.command("check")
def job_check(
    job: JobFile,
    settings: Settings = None,
    config: Config = None,
    population: Annotated[
        int | None, typer.Option("--clients", metavar="N", help="Hold the cohort against so many.")
    ] = None,
) -> None:
    """List every fault of a job, each with its remedy.

    Example:  hansa job check job.py --clients 12 --set cohort=30
    """
    from hansa.app.jobs import check

    check(job, settings or [], config, population)


@commands.command(rich_help_panel=PANEL)
def predict(
    job: Annotated[Path, typer.Option("--job", metavar="JOB.PY", help="The job whose model it is.")],
    model: Annotated[Path, typer.Option("--model", metavar="FILE", help="Its tensors, from `hansa model` or --out.")],
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="SPEC", help="module.py:function, a .csv, .parquet or .npz file or URL."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE.CSV", help="Where to write; stdout if left out.")
    ] = None,
    serve: Annotated[
        str | None, typer.Option("--serve", metavar="HOST:PORT", help="Answer HTTP requests instead (POST /predict).")
    ] = None,
    settings: Settings = None,
    config: Config = None,
) -> None:
    """Use a trained model: on a file of data, or as an HTTP service.

    Examples:  hansa predict --job job.py --model model.safetensors --data patients.csv --out predictions.csv

               hansa predict --job job.py --model model.safetensors --serve 127.0.0.1:8000
    """
    from hansa.app.predict import predict as run

    run(job, model, data, out, serve, settings or [], config)


@commands.command(rich_help_panel=PANEL)
def demo(
    keep: Annotated[
        Path | None, typer.Option("--keep", metavar="DIR", help="Keep the federation's folder here.")
    ] = None,
    report: Annotated[Path, typer.Option("--report", metavar="FILE", help="The page to write.")] = Path("report.html"),
    seeds: Annotated[int, typer.Option("--seeds", metavar="N", help="How many seeds the comparison is over.")] = 5,
) -> None:
    """A server and three hospitals on this machine: real processes, real data, mutual TLS; about a minute.

    Example:  hansa demo
    """
    from hansa.app.demo import run

    run([*(["--keep", str(keep)] if keep else []), "--report", str(report), "--seeds", str(seeds)])
