"""The `hansa` command: what each option means, and which function does it.

Bodies import what they need when they run, so that `hansa --help` costs Typer alone. Global options (`--format`,
`--verbose`) may stand anywhere on the line. Every failure ends in `terminal.fail`: a sentence, and the exit code of its
class in `core/errors.py`.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from hansa.app import terminal

_GLOBAL_FLAGS = ("--verbose",)
_GLOBAL_VALUES = ("--format",)


def globals_first(args: Sequence[str]) -> list[str]:
    """The same arguments with the global options in front, where the group looks for them.

    >>> globals_first(["list", "--format", "json", "--", "--verbose"])
    ['--format', 'json', 'list', '--', '--verbose']
    """
    front: list[str] = []
    rest: list[str] = []
    waiting = list(args)
    while waiting:
        word = waiting.pop(0)
        if word == "--":
            rest += [word, *waiting]
            break
        if word in _GLOBAL_FLAGS or word.startswith(tuple(f"{option}=" for option in _GLOBAL_VALUES)):
            front.append(word)
        elif word in _GLOBAL_VALUES and waiting:
            front += [word, waiting.pop(0)]
        else:
            rest.append(word)
    return front + rest


class Commands(TyperGroup):
    """The top of the command line: takes global options anywhere, and turns errors into sentences and exit codes."""

    def main(self, args: Sequence[str] | None = None, *rest: Any, **options: Any) -> Any:
        """As Typer's, with the arguments in order."""
        terminal.settings.format, terminal.settings.verbose, terminal.settings.results = "text", False, None
        return super().main(globals_first(sys.argv[1:] if args is None else args), *rest, **options)

    def invoke(self, ctx: Any) -> Any:
        """As Typer's; nothing but its own exits leaves it."""
        try:
            return super().invoke(ctx)
        except (KeyboardInterrupt, MemoryError, RecursionError) as error:
            raise typer.Exit(terminal.fail(error)) from None
        except BrokenPipeError:
            sys.stderr.close()  # whoever read our output has seen enough
            raise typer.Exit(0) from None
        except Exception as error:
            if type(error).__module__.startswith(("typer", "click")):
                raise
            raise typer.Exit(terminal.fail(error)) from None


app = typer.Typer(
    cls=Commands,
    name="hansa",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Every failure says what to do and ends with a documented code: docs/reference/exit-codes.md",
)
job_app = typer.Typer(no_args_is_help=True, help="Look at a job before it runs: show it, check it.")
mpc_app = typer.Typer(
    no_args_is_help=True, help="Programs on secret shares: run them, estimate them, share and reveal."
)
enrol_app = typer.Typer(no_args_is_help=True, help="Who may take part: the federation's authority and its members.")
privacy_app = typer.Typer(no_args_is_help=True, help="What noise a job needs, what it costs, and budgets.")
app.add_typer(job_app, name="job", rich_help_panel="A job")
app.add_typer(privacy_app, name="privacy", rich_help_panel="A job")
app.add_typer(mpc_app, name="mpc", rich_help_panel="Secret shares")
app.add_typer(enrol_app, name="enrol", rich_help_panel="A federation")


def _version(wanted: bool) -> None:
    if wanted:
        from hansa import __version__

        print(__version__)
        raise typer.Exit


@app.callback()
def top(
    ctx: typer.Context,
    format: Annotated[
        str, typer.Option("--format", metavar="text|json", help="Text for people, or JSON lines.")
    ] = "text",
    verbose: Annotated[bool, typer.Option("--verbose", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and end.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Federated learning: one job description, from a simulation on a laptop to a federation of organisations.

    A first run:  hansa new first && hansa simulate first/job.py
    """
    if format not in ("text", "json"):
        raise typer.BadParameter("choose text or json", param_hint="--format")
    terminal.settings.format, terminal.settings.verbose = format, verbose
    if format == "json":  # what a job file prints is no result: it goes to stderr
        results = terminal.settings.results = sys.stdout
        sys.stdout = sys.stderr
        ctx.call_on_close(lambda: setattr(sys, "stdout", results))


# -- options that several commands have

JobFile = Annotated[Path, typer.Argument(metavar="JOB.PY", help="The Python file that defines `job`.")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change a field of the job, as in rounds=50 or algorithm.work.lr=0.1."
    ),
]
Config = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE.TOML", help="Change fields of the job from a TOML file; --set wins."),
]
RuntimeName = Annotated[
    str,
    typer.Option(
        "--runtime", metavar="local|processes|ray", help="One process, one for each core, or a Ray cluster: same bits."
    ),
]
Processes = Annotated[
    int | None, typer.Option("--processes", metavar="N", help="How many processes or Ray workers, if not one a core.")
]
ClusterAddress = Annotated[
    str | None, typer.Option("--address", metavar="HOST:PORT", help="A running Ray cluster; else one is started here.")
]
Server = Annotated[
    str | None,
    typer.Option(
        "--server", metavar="HOST:PORT", envvar="HANSA_SERVER", help="The server. Default: hansa.toml, 127.0.0.1:8443."
    ),
]
IdentityFile = Annotated[
    Path | None,
    typer.Option(
        "--identity", metavar="FILE.PEM", envvar="HANSA_IDENTITY", help="Your identity, made by `hansa enrol`."
    ),
]
Insecure = Annotated[
    bool, typer.Option("--insecure", help="No TLS and no identities: for trying things on this machine alone.")
]
Run = Annotated[str, typer.Argument(metavar="RUN", help="The run's id, or the beginning of it; see `hansa list`.")]
LastRun = Annotated[
    str, typer.Argument(metavar="RUN", help="The run's id, or the beginning of it; the latest if left out.")
]
AuthorityFolder = Annotated[
    Path, typer.Option("--authority", metavar="DIR", help="The authority's folder.", envvar="HANSA_AUTHORITY")
]
Hosts = Annotated[
    list[str] | None,
    typer.Option(
        "--host", metavar="NAME|IP", help="Where peers dial this member (servers and parties only); repeatable."
    ),
]
Days = Annotated[int | None, typer.Option("--days", help="How long it is valid.")]
AskPassphrase = Annotated[
    bool, typer.Option("--passphrase", help="Ask for the passphrase of the authority's key (or set HANSA_PASSPHRASE).")
]


# -- a job


@app.command(rich_help_panel="A job")
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


@app.command(rich_help_panel="A job")
def simulate(
    job: JobFile,
    clients: Annotated[int | None, typer.Option("--clients", metavar="N", help="How many clients to simulate.")] = None,
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


@app.command(rich_help_panel="A job")
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
    clients: Annotated[int | None, typer.Option("--clients", metavar="N", help="How many clients to simulate.")] = None,
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


@app.command(rich_help_panel="A job")
def audit(
    job: JobFile,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the report and its pictures go.")] = Path(
        "audit"
    ),
    clients: Annotated[int | None, typer.Option("--clients", metavar="N", help="How many clients to simulate.")] = None,
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

    Three attacks, each where it applies: a client's example out of its update, who was in the training data, and ε from
    below. The job is run once for each shadow: lower its rounds by --set for a first look.

    Example:  hansa audit job.py --set rounds=5 --out audit/
    """
    from hansa.app.audit import audit as run

    run(
        job, out=out, clients=clients, settings=settings or [], config=config, client=client, examples=examples,
        iterations=iterations, shadows=shadows, birds=canaries, strict=strict,
    )  # fmt: skip


@app.command(rich_help_panel="A job")
def threats(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Of a stage or reducer. Default: all.")] = None,
    vertical: Annotated[bool, typer.Option("--vertical", help="Of algorithms of different columns instead.")] = False,
) -> None:
    """Say who sees what, against whom and under which assumption, as each stage and reducer declares it.

    Without a name it is the table of the documentation, in Markdown.

    Example:  hansa threats SecureSum
    """
    if vertical:
        from hansa.app.vertical_threats import threats as vertical_run

        vertical_run()
        return
    from hansa.app.threats import threats as run

    run(name)


@app.command(rich_help_panel="A job")
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


@job_app.command("show")
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


@job_app.command("check")
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


@app.command(rich_help_panel="A job")
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


@app.command(rich_help_panel="A job")
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


# -- a federation


@app.command(rich_help_panel="A federation")
def server(
    state: Annotated[
        Path, typer.Option("--state", metavar="DIR", help="Everything the server knows; made if missing.")
    ],
    bind: Annotated[str, typer.Option("--bind", metavar="HOST:PORT", help="Where to listen.")] = "127.0.0.1:8443",
    advertise: Annotated[
        str | None,
        typer.Option("--advertise", metavar="HOST:PORT", help="Where others dial, if that differs from --bind."),
    ] = None,
    identity: IdentityFile = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(
            "--allow", metavar="RULE", help="Which jobs: signer:NAME, hash:HEX. Default: any enrolled submitter's."
        ),
    ] = None,
    revoked: Annotated[
        Path | None,
        typer.Option(
            "--revoked", metavar="FILE.PEM", help="The authority's revocation list; read again when it changes."
        ),
    ] = None,
    insecure: Insecure = False,
) -> None:
    """Run the server of a federation; started again with the same command, it goes on where it was.

    Example:  hansa server --state ./state --bind 0.0.0.0:8443 --identity server.pem
    """
    from hansa.app.federation import server as run

    run(state, bind, advertise, identity, allow or [], revoked, insecure)


@app.command(rich_help_panel="A federation")
def worker(
    data: Annotated[
        str | None,
        typer.Option(
            "--data", metavar="SPEC", help="Your data: module.py:function, a .csv, .parquet or .npz file or URL."
        ),
    ] = None,
    helper: Annotated[
        bool, typer.Option("--helper", help="Take part without data, in jobs that name this worker as a helper.")
    ] = False,
    server: Server = None,
    identity: IdentityFile = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(
            "--allow",
            metavar="RULE",
            help="Which jobs may run here: signer:NAME, hash:HEX or ask; repeatable. Default: none.",
        ),
    ] = None,
    state: Annotated[
        Path | None,
        typer.Option(
            "--state", metavar="DIR", help="Memory between rounds, jobs and decisions. Default: ./NAME.state."
        ),
    ] = None,
    device: Annotated[str, typer.Option("--device", metavar="cpu|cuda:N", help="Where models train.")] = "cpu",
    revoked: Annotated[
        Path | None,
        typer.Option(
            "--revoked", metavar="FILE.PEM", help="The authority's revocation list; read again when it changes."
        ),
    ] = None,
    insecure: Insecure = False,
    name: Annotated[str | None, typer.Option("--name", help="Who this worker is; only with --insecure.")] = None,
) -> None:
    """Take part with your own data, which never leaves this machine. Dials out; nothing listens here.

    Example:  hansa worker --server HOST:8443 --identity hospital-a.pem --data patients.csv --allow signer:alice
    """
    from hansa.app.federation import worker as run

    run(server, identity, data, helper, allow or [], state, device, revoked, insecure, name)


@app.command(rich_help_panel="A federation")
def submit(
    job: Annotated[
        Path, typer.Argument(metavar="JOB.PY|BUNDLE", help="The job file, or an archive from `hansa build`.")
    ],
    settings: Settings = None,
    config: Config = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Watch the run to its end; its failure is this command's.")
    ] = False,
    workers: Annotated[
        int, typer.Option("--workers", metavar="N", help="Begin when so many workers have connected.")
    ] = 0,
    server: Server = None,
    identity: IdentityFile = None,
    include: Annotated[
        list[str] | None, typer.Option("--include", metavar="PATH", help="A further file or folder.")
    ] = None,
    check: Annotated[bool, typer.Option("--check/--no-check", help="Load and check the job here first.")] = True,
    insecure: Insecure = False,
) -> None:
    """Pack a job with its local modules, sign it, and hand it to the server. Prints the hash and what is inside.

    Example:  hansa submit job.py --server hansa.example.org:8443 --identity alice.pem --set rounds=20 --wait
    """
    from hansa.app.federation import submit as run

    run(job, settings or [], config, wait, workers, server, identity, include or [], check, insecure)


@app.command(rich_help_panel="A federation")
def watch(run: LastRun = "", server: Server = None, identity: IdentityFile = None, insecure: Insecure = False) -> None:
    """Follow a run: a table of its rounds, live, until it is over.

    Example:  hansa watch 3f2a
    """
    from hansa.app.federation import watch as follow

    follow(run, server, identity, insecure)


@app.command("list", rich_help_panel="A federation")
def list_runs(server: Server = None, identity: IdentityFile = None, insecure: Insecure = False) -> None:
    """List the runs of a server.

    Example:  hansa list --format json
    """
    from hansa.app.federation import list_runs as run

    run(server, identity, insecure)


@app.command(rich_help_panel="A federation")
def members(server: Server = None, identity: IdentityFile = None, insecure: Insecure = False) -> None:
    """List everybody who ever connected to a server, and whether they are there now.

    Example:  hansa members
    """
    from hansa.app.federation import members as run

    run(server, identity, insecure)


@app.command(rich_help_panel="A federation")
def status(run: LastRun = "", server: Server = None, identity: IdentityFile = None, insecure: Insecure = False) -> None:
    """Show one run: its state, its last round, and for whom it waits.

    Example:  hansa status 3f2a
    """
    from hansa.app.federation import status as show

    show(run, server, identity, insecure)


@app.command(rich_help_panel="A federation")
def logs(
    run: LastRun = "",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new lines until the run is over.")] = False,
    server: Server = None,
    identity: IdentityFile = None,
    insecure: Insecure = False,
) -> None:
    """Print a run's log: the server's lines and the workers'.

    Example:  hansa logs 3f2a --follow
    """
    from hansa.app.federation import logs as show

    show(run, follow, server, identity, insecure)


@app.command(rich_help_panel="A federation")
def stop(run: Run, server: Server = None, identity: IdentityFile = None, insecure: Insecure = False) -> None:
    """End a run after its last committed round; `hansa resume` goes on with it.

    Example:  hansa stop 3f2a
    """
    from hansa.app.federation import stop as end

    end(run, server, identity, insecure)


@app.command(rich_help_panel="A federation")
def resume(run: Run, server: Server = None, identity: IdentityFile = None, insecure: Insecure = False) -> None:
    """Go on with a run that was stopped or failed, from its last committed round.

    Example:  hansa resume 3f2a
    """
    from hansa.app.federation import resume as go_on

    go_on(run, server, identity, insecure)


@app.command(rich_help_panel="A federation")
def model(
    run: Run,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Where to write the tensors, as safetensors.")],
    best: Annotated[bool, typer.Option("--best", help="The best model instead of the last committed one.")] = False,
    job: Annotated[
        Path | None,
        typer.Option("--job", metavar="JOB.PY", help="The job, for models with frozen tensors: completes the file."),
    ] = None,
    server: Server = None,
    identity: IdentityFile = None,
    insecure: Insecure = False,
) -> None:
    """Fetch the model of a run.

    Example:  hansa model 3f2a --out model.safetensors
    """
    from hansa.app.federation import model as fetch

    fetch(run, out, best, job, server, identity, insecure)


# -- privacy


StateFolder = Annotated[
    Path, typer.Option("--state", metavar="DIR", help="The state of a server (it may be running) or a simulation.")
]


@privacy_app.command("plan")
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


@privacy_app.command("epsilon")
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


@privacy_app.command("ledger")
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


@privacy_app.command("budget")
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


# -- secret shares

_SCRIPT = {"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False}
Script = Annotated[Path, typer.Argument(metavar="SCRIPT.PY", help="An ordinary script that calls hansa.mpc.connect().")]
ScriptArguments = Annotated[
    list[str] | None, typer.Argument(metavar="...", help="The script's own arguments.", show_default=False)
]
PartiesFile = Annotated[
    Path, typer.Option("--parties", "--to", metavar="FILE.TOML", help="Names and addresses, the same at every party.")
]
ProtocolName = Annotated[
    str, typer.Option("--protocol", metavar="NAME", help="aby3, pond, two_party, or plain for one party.")
]
Truncation = Annotated[
    str, typer.Option("--truncation", metavar="exact|fast", help="Fast: fewer bytes, and a stated risk of wild values.")
]
Sigmoid = Annotated[
    str, typer.Option("--sigmoid", metavar="spline|three", help="Three: cheap, and wrong by up to 0.12.")
]
Security = Annotated[
    str, typer.Option("--security", metavar="semi-honest|malicious", help="Malicious: aby3's arithmetic, checked.")
]
PartyNames = Annotated[
    str, typer.Option("--names", metavar="A,B,C", help="What the parties are called; party-0, party-1, … if not.")
]
Wait = Annotated[float, typer.Option("--wait", metavar="SECONDS", help="How long the others may take to come.")]


@mpc_app.command("local", context_settings=_SCRIPT)
def mpc_local(
    script: Script,
    arguments: ScriptArguments = None,
    names: PartyNames = "",
    parties: Annotated[
        Path | None, typer.Option("--parties", metavar="FILE.TOML", help="Take the names from this file.")
    ] = None,
    protocol: ProtocolName = "aby3",
    truncation: Truncation = "exact",
    sigmoid: Sigmoid = "spline",
    security: Security = "semi-honest",
    reports: Annotated[
        Path | None, typer.Option("--reports", metavar="DIR", help="Write each party's report here as NAME.json.")
    ] = None,
    picture: Annotated[
        Path | None, typer.Option("--picture", metavar="FILE.SVG", help="Draw who gave, computed and learnt what.")
    ] = None,
) -> None:
    """Run all parties of a program on this machine, each a process with an identity for this run alone.

    Example:  hansa mpc local train.py --epochs 5
    """
    from hansa.app.mpc_commands import Choices, local

    choices = Choices(protocol=protocol, truncation=truncation, sigmoid=sigmoid, security=security)
    local(script, arguments or [], [name for name in names.split(",") if name], parties, choices, reports, picture)


@mpc_app.command("party", context_settings=_SCRIPT)
def mpc_party(
    script: Script,
    parties: PartiesFile,
    arguments: ScriptArguments = None,
    me: Annotated[str | None, typer.Option("--me", metavar="NAME", help="Which party this is.")] = None,
    identity: Annotated[
        Path | None, typer.Option("--identity", metavar="FILE.PEM", help="Its identity file. Default: NAME.pem.")
    ] = None,
    protocol: ProtocolName = "aby3",
    truncation: Truncation = "exact",
    sigmoid: Sigmoid = "spline",
    security: Security = "semi-honest",
    wait: Wait = 60.0,
    report: Annotated[
        Path | None, typer.Option("--report", metavar="FILE.JSON", help="Write what was computed and sent here.")
    ] = None,
) -> None:
    """Run one party of a program; every computing party runs the same script.

    Example:  hansa mpc party --me bank --parties parties.toml --identity bank.pem train.py
    """
    from hansa.app.mpc_commands import Choices, party

    choices = Choices(protocol=protocol, truncation=truncation, sigmoid=sigmoid, security=security, wait_s=wait)
    party(script, arguments or [], me, parties, identity, choices, report)


@mpc_app.command("estimate", context_settings={**_SCRIPT, "allow_interspersed_args": True})
def mpc_estimate(
    script: Script,
    latency: Annotated[str, typer.Option("--latency", metavar="40ms", help="That a message takes one way.")],
    bandwidth: Annotated[str, typer.Option("--bandwidth", metavar="100Mbps", help="That a party sends with.")],
    arguments: ScriptArguments = None,
    names: PartyNames = "",
    protocol: ProtocolName = "aby3",
    truncation: Truncation = "exact",
    sigmoid: Sigmoid = "spline",
    security: Security = "semi-honest",
) -> None:
    """Say how long a program would take on a network: all parties run here, and their messages are counted.

    Example:  hansa mpc estimate train.py --latency 40ms --bandwidth 100Mbps
    """
    from hansa.app.mpc_commands import Choices, estimate

    choices = Choices(protocol=protocol, truncation=truncation, sigmoid=sigmoid, security=security)
    estimate(script, arguments or [], [name for name in names.split(",") if name], choices, latency, bandwidth)


@mpc_app.command("share")
def mpc_share(
    data: Annotated[
        Path, typer.Argument(metavar="FILE", help="A table (.csv), arrays (.npz) or a model (.safetensors).")
    ],
    parties: PartiesFile,
    out: Annotated[
        str, typer.Option("--out", metavar="URL", help="A folder or any URL of fsspec; {party} becomes each name.")
    ],
    protocol: ProtocolName = "aby3",
    columns: Annotated[
        str, typer.Option("--columns", metavar="A,B", help="Only these of a table, in this order. Default: all.")
    ] = "",
) -> None:
    """Share a file: one file for each computing party, each alone random. `session.load(URL)` computes on them.

    Example:  hansa mpc share patients.csv --parties parties.toml --out s3://{party}-bucket/patients
    """
    from hansa.app.mpc_files import share

    share(data, parties, out, protocol, [name for name in columns.split(",") if name])


@mpc_app.command("reveal")
def mpc_reveal(
    urls: Annotated[list[str], typer.Argument(metavar="URL...", help="Files of enough parties, or their folder.")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="A .csv or .safetensors file. Default: shown here.")
    ] = None,
) -> None:
    """Put files of shares together again: what they hold becomes known to whoever runs this.

    Example:  hansa mpc reveal bank.safetensors shop.safetensors --out model.safetensors
    """
    from hansa.app.mpc_files import reveal

    reveal(urls, out)


# -- different columns of the same people


@app.command("psi", rich_help_panel="Different columns")
def psi_(
    key: Annotated[
        list[str], typer.Option("--key", metavar="COLUMN", help="Of the key; repeatable: together one key.")
    ],
    data: Annotated[
        Path | None, typer.Option("--data", metavar="FILE.CSV", help="Your table; a coordinator has none.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE.CSV", help="Your shared rows, in the common order.")
    ] = None,
    me: Annotated[str | None, typer.Option("--me", metavar="NAME", help="Your name; its identity is NAME.pem.")] = None,
    parties: Annotated[
        Path, typer.Option("--parties", metavar="FILE.TOML", help="Who takes part, the same file at each.")
    ] = Path("parties.toml"),
    identity: IdentityFile = None,
    normalise: Annotated[
        str, typer.Option("--normalise", metavar="STEPS", help="Of keys: strip,nfkc,casefold,digits,alnum, or none.")
    ] = "strip,nfkc,casefold",
    duplicates: Annotated[
        str, typer.Option("--duplicates", metavar="refuse|first", help="What to do with a key that occurs again.")
    ] = "refuse",
    protocol: Annotated[
        str, typer.Option("--protocol", metavar="NAME", help="How: ecdh, fast, coordinator or many; see the docs.")
    ] = "ecdh",
    coordinator: Annotated[
        str, typer.Option("--coordinator", metavar="NAME", help="The party without a table, if there is one.")
    ] = "",
    learns: Annotated[
        list[str] | None, typer.Option("--learns", metavar="NAME", help="Who learns the result. Default: every owner.")
    ] = None,
    cap: Annotated[int, typer.Option("--cap", metavar="N", help="The most keys that any owner may enter.")] = 1 << 24,
    bucket_keys: Annotated[
        int, typer.Option("--bucket-keys", metavar="N", help="About how many keys are in memory at a time.")
    ] = 1 << 20,
    yes: Annotated[bool, typer.Option("--yes", help="Accept what each party learns without being asked.")] = False,
    audit: Annotated[Path, typer.Option("--audit", metavar="FILE", help="Where runs are recorded.")] = Path(
        "psi-audit.jsonl"
    ),
    runs: Annotated[
        int, typer.Option("--runs", metavar="N", help="How many runs with the same owners a day are allowed.")
    ] = 10,
    workers: Annotated[
        int | None, typer.Option("--workers", metavar="N", help="Processes that compute. Default: one a core.")
    ] = None,
    wait_s: Annotated[float, typer.Option("--wait", metavar="SECONDS", help="For the other parties to come.")] = 300.0,
) -> None:
    """Find out whom several owners share, and write your rows of them in one order; see docs/psi.md.

    Every owner runs it at the same time. A run that was killed goes on when all start it again.

    Example:  hansa psi --me bank --parties parties.toml --data bank.csv --key id --out aligned.csv
    """
    from hansa.app.psi import psi

    psi(
        me=me, parties=parties, identity=identity, data=data, key=key, out=out,
        normalise=[] if normalise == "none" else normalise.split(","), duplicates=duplicates, protocol=protocol,
        coordinator=coordinator, learns=learns, cap=cap, bucket_keys=bucket_keys, yes=yes, audit=audit, runs=runs,
        workers=workers, wait_s=wait_s,
    )  # fmt: skip


# -- enrolment


@enrol_app.command("init")
def enrol_init(
    federation: Annotated[str, typer.Argument(help="The federation's name, as members will see it.")],
    authority: AuthorityFolder = Path("authority"),
    days: Days = None,
    passphrase: AskPassphrase = False,
) -> None:
    """Found a federation: make its authority's key. Keep the folder off the server and off the workers.

    Example:  hansa enrol init "Cardiology study" --authority ./authority --passphrase
    """
    from hansa.app.identity_commands import init

    init(federation, authority, days, passphrase)


Role = Annotated[str, typer.Option("--role", metavar="server|worker|submitter|party", help="What the member may do.")]


@enrol_app.command("issue")
def enrol_issue(
    name: Annotated[str, typer.Argument(help="The member's name, unique in the federation.")],
    role: Role,
    host: Hosts = None,
    authority: AuthorityFolder = Path("authority"),
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE.PEM", help="Move the identity file here.")] = None,
    days: Days = None,
    passphrase: AskPassphrase = False,
) -> None:
    """Make a member's keys here and certify them: simple, but the file has to travel safely.

    Example:  hansa enrol issue hospital-a --role worker --out hospital-a.pem
    """
    from hansa.app.identity_commands import issue

    issue(name, role, host or [], authority, out, days, passphrase)


@enrol_app.command("request")
def enrol_request(
    name: Annotated[str, typer.Argument(help="Your name in the federation.")],
    role: Role,
    folder: Annotated[Path, typer.Option("--folder", metavar="DIR", help="Where to write both files.")] = Path(),
) -> None:
    """Make your own keys, which never leave this machine, and a request for the authority.

    Example:  hansa enrol request hospital-a --role worker
    """
    from hansa.app.identity_commands import request

    request(name, role, folder)


@enrol_app.command("sign")
def enrol_sign(
    file: Annotated[Path, typer.Argument(metavar="REQUEST.PEM", help="What the member sent.")],
    name: Annotated[str, typer.Option("--name", help="Who you agreed it is.")],
    role: Role,
    fingerprint: Annotated[
        str | None, typer.Option("--fingerprint", metavar="HEX", help="What the member told you on another channel.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Sign without comparing fingerprints.")] = False,
    host: Hosts = None,
    authority: AuthorityFolder = Path("authority"),
    days: Days = None,
    passphrase: AskPassphrase = False,
) -> None:
    """Certify the keys of a member that made them itself.

    Example:  hansa enrol sign hospital-a.request.pem --name hospital-a --role worker --fingerprint 3f2a91c0
    """
    from hansa.app.identity_commands import sign

    sign(file, name, role, fingerprint, yes, host or [], authority, days, passphrase)


@enrol_app.command("accept")
def enrol_accept(
    identity: Annotated[Path, typer.Argument(metavar="NAME.PEM", help="Your key file, from `hansa enrol request`.")],
    certificates: Annotated[Path, typer.Argument(metavar="CERTIFICATES.PEM", help="What the authority sent back.")],
) -> None:
    """Complete (or renew) your identity with the certificates that the authority sent.

    Example:  hansa enrol accept hospital-a.pem hospital-a.certificates.pem
    """
    from hansa.app.identity_commands import accept

    accept(identity, certificates)


@enrol_app.command("renew")
def enrol_renew(
    member: Annotated[str, typer.Argument(metavar="NAME|FILE.PEM", help="A member, or its identity file.")],
    host: Hosts = None,
    authority: AuthorityFolder = Path("authority"),
    days: Days = None,
    passphrase: AskPassphrase = False,
) -> None:
    """Give a member's same keys new certificates.

    Example:  hansa enrol renew hospital-a.pem
    """
    from hansa.app.identity_commands import renew

    renew(member, host, authority, days, passphrase)


@enrol_app.command("revoke")
def enrol_revoke(
    member: Annotated[
        str, typer.Argument(metavar="NAME", help="A member, or the serial number of one certificate as 0x….")
    ],
    authority: AuthorityFolder = Path("authority"),
    passphrase: AskPassphrase = False,
) -> None:
    """Shut a member out for good; takes effect where revoked.pem is copied to.

    Example:  hansa enrol revoke hospital-a
    """
    from hansa.app.identity_commands import revoke

    revoke(member, authority, passphrase)


@enrol_app.command("list")
def enrol_list(authority: AuthorityFolder = Path("authority"), passphrase: AskPassphrase = False) -> None:
    """List all members ever enrolled, and until when.

    Example:  hansa enrol list --authority ./authority
    """
    from hansa.app.identity_commands import members

    members(authority, passphrase)


@enrol_app.command("show")
def enrol_show(
    identity: Annotated[Path, typer.Argument(metavar="FILE.PEM", help="An identity file or a request.")],
) -> None:
    """Show whose identity (or request) a file is; never a key.

    Example:  hansa enrol show hospital-a.pem
    """
    from hansa.app.identity_commands import show

    show(identity)


def main(args: Sequence[str] | None = None) -> None:
    """The console script: runs one command and ends the process with its exit code."""
    app(args=args, prog_name="hansa")


if __name__ == "__main__":
    main()
