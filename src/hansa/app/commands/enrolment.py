"""`hansa enrol`: a federation's authority and its members."""

from pathlib import Path
from typing import Annotated

import typer

enrol = typer.Typer(no_args_is_help=True, help="Who may take part: the federation's authority and its members.")
AuthorityFolder = Annotated[
    Path, typer.Option("--authority", metavar="DIR", help="The authority's folder.", envvar="HANSA_AUTHORITY")
]
Hosts = Annotated[
    list[str] | None,
    typer.Option(
        "--host", metavar="NAME|IP", help="Where peers dial this member (servers and parties only); repeatable."
    ),
]
Days = Annotated[
    int | None,
    typer.Option("--days", metavar="N", help="For how many days. Default: 3650 for the authority, 365 for members."),
]
AskPassphrase = Annotated[
    bool, typer.Option("--passphrase", help="Ask for the passphrase of the authority's key (or set HANSA_PASSPHRASE).")
]


@enrol.command("init")
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


@enrol.command("issue")
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


@enrol.command("request")
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


@enrol.command("sign")
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


@enrol.command("accept")
def enrol_accept(
    identity: Annotated[Path, typer.Argument(metavar="NAME.PEM", help="Your key file, from `hansa enrol request`.")],
    certificates: Annotated[Path, typer.Argument(metavar="CERTIFICATES.PEM", help="What the authority sent back.")],
) -> None:
    """Complete (or renew) your identity with the certificates that the authority sent.

    Example:  hansa enrol accept hospital-a.pem hospital-a.certificates.pem
    """
    from hansa.app.identity_commands import accept

    accept(identity, certificates)


@enrol.command("renew")
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


@enrol.command("revoke")
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


@enrol.command("list")
def enrol_list(authority: AuthorityFolder = Path("authority"), passphrase: AskPassphrase = False) -> None:
    """List all members ever enrolled, and until when.

    Example:  hansa enrol list --authority ./authority
    """
    from hansa.app.identity_commands import members

    members(authority, passphrase)


@enrol.command("show")
def enrol_show(
    identity: Annotated[Path, typer.Argument(metavar="FILE.PEM", help="An identity file or a request.")],
) -> None:
    """Show whose identity (or request) a file is; never a key.

    Example:  hansa enrol show hospital-a.pem
    """
    from hansa.app.identity_commands import show

    show(identity)
