"""`hansa mpc`: programs on secret shares."""

from pathlib import Path
from typing import Annotated

import typer

mpc = typer.Typer(no_args_is_help=True, help="Programs on secret shares: run them, estimate them, share and reveal.")
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
    str,
    typer.Option(
        "--sigmoid", metavar="KIND", help="spline, exact, five, three (cheap, wrong by up to 0.38) or chebyshev."
    ),
]
Security = Annotated[
    str, typer.Option("--security", metavar="semi-honest|malicious", help="Malicious: aby3's arithmetic, checked.")
]
Device = Annotated[
    str, typer.Option("--device", metavar="cpu|cuda:N", help="Where shares live: the processor, or a GPU.")
]
PartyNames = Annotated[
    str, typer.Option("--names", metavar="A,B,C", help="What the parties are called; party-0, party-1, … if not.")
]
Wait = Annotated[float, typer.Option("--wait", metavar="SECONDS", help="How long the others may take to come.")]


@mpc.command("local", context_settings=_SCRIPT)
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
    device: Device = "cpu",
    reports: Annotated[
        Path | None, typer.Option("--reports", metavar="DIR", help="Write each party's report here as NAME.json.")
    ] = None,
    picture: Annotated[
        Path | None, typer.Option("--picture", metavar="FILE.SVG", help="Draw who gave, computed and learnt what.")
    ] = None,
    unsafe_debug: Annotated[
        bool, typer.Option("--unsafe-debug", help="Let session.debug open secrets to all. Never at real parties.")
    ] = False,
) -> None:
    """Run all parties of a program on this machine, each a process with an identity for this run alone.

    Example:  hansa mpc local train.py --epochs 5
    """
    from hansa.app.mpc_commands import Choices, local

    choices = Choices(
        protocol=protocol, truncation=truncation, sigmoid=sigmoid, security=security, device=device,
        unsafe_debug=unsafe_debug,
    )  # fmt: skip
    local(script, arguments or [], [name for name in names.split(",") if name], parties, choices, reports, picture)


@mpc.command("party", context_settings=_SCRIPT)
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
    device: Device = "cpu",
    wait: Wait = 60.0,
    report: Annotated[
        Path | None, typer.Option("--report", metavar="FILE.JSON", help="Write what was computed and sent here.")
    ] = None,
    unsafe_debug: Annotated[bool, typer.Option("--unsafe-debug", hidden=True)] = False,  # for `local` to pass on
) -> None:
    """Run one party of a program; every computing party runs the same script.

    Example:  hansa mpc party --me bank --parties parties.toml --identity bank.pem train.py
    """
    from hansa.app.mpc_commands import Choices, party

    choices = Choices(
        protocol=protocol, truncation=truncation, sigmoid=sigmoid, security=security, device=device, wait_s=wait,
        unsafe_debug=unsafe_debug,
    )  # fmt: skip
    party(script, arguments or [], me, parties, identity, choices, report)


@mpc.command("estimate", context_settings={**_SCRIPT, "allow_interspersed_args": True})
def mpc_estimate(
    script: Script,
    latency: Annotated[str, typer.Option("--latency", metavar="40ms", help="How long a message takes one way.")],
    bandwidth: Annotated[str, typer.Option("--bandwidth", metavar="100Mbps", help="How much a party can send.")],
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


@mpc.command("share")
def mpc_share(
    data: Annotated[
        Path, typer.Argument(metavar="FILE", help="A table (.csv), arrays (.npz) or a model (.safetensors).")
    ],
    parties: PartiesFile,
    out: Annotated[
        str, typer.Option("--out", metavar="URL", help="A folder or any URL of fsspec; {party} becomes each name.")
    ],
    protocol: Annotated[
        str, typer.Option("--protocol", metavar="NAME", help="aby3, pond or two_party: that which will compute on it.")
    ] = "aby3",
    columns: Annotated[
        str, typer.Option("--columns", metavar="A,B", help="Only these of a table, in this order. Default: all.")
    ] = "",
) -> None:
    """Share a file: one file for each computing party, each alone random. `session.load(URL)` computes on them.

    Example:  hansa mpc share patients.csv --parties parties.toml --out s3://{party}-bucket/patients
    """
    from hansa.app.mpc_files import share

    share(data, parties, out, protocol, [name for name in columns.split(",") if name])


@mpc.command("reveal")
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
