"""A federation: its server, its workers, and whoever submits and follows runs."""

from pathlib import Path
from typing import Annotated

import typer

from hansa.app.access import Access
from hansa.app.commands.options import Config, IdentityFile, Insecure, LastRun, RevocationList, Run, Server, Settings

PANEL = "A federation"
commands = typer.Typer()


@commands.command(rich_help_panel=PANEL)
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
    revoked: RevocationList = None,
    database: Annotated[
        str | None,
        typer.Option(
            "--database",
            metavar="URL",
            envvar="HANSA_DATABASE",
            help="An SQLAlchemy URL, in place of SQLite in --state.",
        ),
    ] = None,
    blobs: Annotated[
        str | None,
        typer.Option("--blobs", metavar="URL", help="An fsspec URL for large checkpoints, in place of --state."),
    ] = None,
    insecure: Insecure = False,
) -> None:
    """Run the server of a federation; started again with the same command, it goes on where it was.

    Example:  hansa server --state ./state --bind 0.0.0.0:8443 --identity server.pem
    """
    from hansa.app.federation import server as run

    run(state, bind, advertise, identity, allow or [], revoked, insecure, database, blobs)


@commands.command(rich_help_panel=PANEL)
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
    revoked: RevocationList = None,
    insecure: Insecure = False,
    name: Annotated[str | None, typer.Option("--name", help="Who this worker is; only with --insecure.")] = None,
) -> None:
    """Take part with your own data, which never leaves this machine. Dials out; nothing listens here.

    Example:  hansa worker --server HOST:8443 --identity hospital-a.pem --data patients.csv --allow signer:alice
    """
    from hansa.app.federation import worker as run

    run(Access.of(server, identity, insecure), data, helper, allow or [], state, device, revoked, name)


@commands.command(rich_help_panel=PANEL)
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
    from hansa.app.runs import submit as run

    run(job, Access.of(server, identity, insecure), settings or [], config, wait, workers, include or [], check)


@commands.command(rich_help_panel=PANEL)
def watch(run: LastRun = "", server: Server = None, identity: IdentityFile = None, insecure: Insecure = False) -> None:
    """Follow a run: a table of its rounds, live, until it is over.

    Example:  hansa watch 3f2a
    """
    from hansa.app.runs import watch as follow

    follow(run, Access.of(server, identity, insecure))


@commands.command("list", rich_help_panel=PANEL)
def list_runs(server: Server = None, identity: IdentityFile = None, insecure: Insecure = False) -> None:
    """List the runs of a server.

    Example:  hansa list --format json
    """
    from hansa.app.runs import list_runs as run

    run(Access.of(server, identity, insecure))


@commands.command(rich_help_panel=PANEL)
def members(server: Server = None, identity: IdentityFile = None, insecure: Insecure = False) -> None:
    """List everybody who ever connected to a server, and whether they are there now.

    Example:  hansa members
    """
    from hansa.app.runs import members as run

    run(Access.of(server, identity, insecure))


@commands.command(rich_help_panel=PANEL)
def status(run: LastRun = "", server: Server = None, identity: IdentityFile = None, insecure: Insecure = False) -> None:
    """Show one run: its state, its last round, and for whom it waits.

    Example:  hansa status 3f2a
    """
    from hansa.app.runs import status as show

    show(run, Access.of(server, identity, insecure))


@commands.command(rich_help_panel=PANEL)
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
    from hansa.app.runs import logs as show

    show(run, follow, Access.of(server, identity, insecure))


@commands.command(rich_help_panel=PANEL)
def stop(run: Run, server: Server = None, identity: IdentityFile = None, insecure: Insecure = False) -> None:
    """End a run after its last committed round; `hansa resume` goes on with it.

    Example:  hansa stop 3f2a
    """
    from hansa.app.runs import stop as end

    end(run, Access.of(server, identity, insecure))


@commands.command(rich_help_panel=PANEL)
def resume(run: Run, server: Server = None, identity: IdentityFile = None, insecure: Insecure = False) -> None:
    """Go on with a run that was stopped or failed, from its last committed round.

    Example:  hansa resume 3f2a
    """
    from hansa.app.runs import resume as go_on

    go_on(run, Access.of(server, identity, insecure))


@commands.command(rich_help_panel=PANEL)
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
    from hansa.app.runs import model as fetch

    fetch(run, out, best, job, Access.of(server, identity, insecure))
