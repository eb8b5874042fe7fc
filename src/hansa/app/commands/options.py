"""Options and arguments that several commands have."""

from pathlib import Path
from typing import Annotated

import typer

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
SimulatedClients = Annotated[int | None, typer.Option("--clients", metavar="N", help="How many clients to simulate.")]
ClusterAddress = Annotated[
    str | None, typer.Option("--address", metavar="HOST:PORT", help="A running Ray cluster; else one is started here.")
]
Server = Annotated[
    str | None,
    typer.Option(
        "--server",
        metavar="HOST:PORT",
        envvar="HANSA_SERVER",
        help="The server. Default: as in hansa.toml, else 127.0.0.1:8443.",
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
RevocationList = Annotated[
    Path | None,
    typer.Option("--revoked", metavar="FILE.PEM", help="The authority's revocation list; read again when it changes."),
]
