"""`hansa enrol`: the commands around `hansa.app.enrol`. Shows names, dates and fingerprints; never a key."""

import getpass
import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from hansa.app.enrol import (
    AUTHORITY_DAYS,
    MEMBER_DAYS,
    Authority,
    accept as accept_certificates,
    request as make_request,
    request_fingerprint,
)
from hansa.app.folder import check_folder
from hansa.app.terminal import emit, hint, moment, say, settings, table
from hansa.core.errors import ConfigError, IdentityError
from hansa.crypto.identity import Identity

SOON_DAYS = 30


def init(federation: str, folder: Path, days: int | None, ask: bool) -> None:
    """Founds a federation."""
    secret = _passphrase(ask, twice=True)
    authority = Authority.create(folder, federation, passphrase=secret, days=AUTHORITY_DAYS if days is None else days)
    emit("authority", federation=federation, folder=str(folder), encrypted=secret is not None)
    say(f"federation '{authority.federation}': its authority is in {folder}")
    say("keep this folder off the server and off the workers: whoever has its key can admit anybody")
    if secret is None:
        hint("the key is not encrypted; `--passphrase` would do that")


def issue(
    name: str, role: str, hosts: Sequence[str], folder: Path, out: Path | None, days: int | None, ask: bool
) -> None:
    """Makes and certifies a member's keys."""
    if out is not None and out.exists():
        raise ConfigError(f"--out {out} exists already: move it away, it may hold keys in use.")
    check_folder(out, "--out")
    path = _open(folder, ask).issue(name, role, hosts=hosts, days=MEMBER_DAYS if days is None else days)
    if out is not None:
        content = Identity.load(path)
        content.save(out)
        path.unlink()
        path = out
    _identity("issued", Identity.load(path), path)
    say("hand it over on a safe way" + ("" if out is not None else ", then delete it here"))


def request(name: str, role: str, folder: Path) -> None:
    """Makes one's own keys and a request."""
    if not folder.is_dir():
        raise ConfigError(f"--folder {folder} is no folder: make it first.")
    keys, wanted = make_request(name, role, folder)
    fingerprint = request_fingerprint(wanted.read_bytes())
    emit("requested", name=name, role=role, keys=str(keys), request=str(wanted), fingerprint=fingerprint)
    say(f"keys         {keys} (stay here)")
    say(f"request      {wanted} (send it to the authority)")
    say(f"fingerprint  {fingerprint} (tell them on another channel)")


def sign(
    file: Path, name: str, role: str, fingerprint: str | None, yes: bool, hosts: Sequence[str], folder: Path,
    days: int | None, ask: bool,
) -> None:  # fmt: skip
    """Certifies a request, once its fingerprint was compared."""
    content = _read(file)
    actual = request_fingerprint(content)
    if fingerprint is not None:
        told = fingerprint.replace(":", "").replace(" ", "").lower()
        if len(told) < 8 or not actual.startswith(told):
            raise IdentityError(
                f"the request has the fingerprint {actual}, and the member told you {fingerprint} (8 digits or more "
                "are compared): do not sign it, and ask the member again"
            )
    elif not yes:
        if not sys.stdin.isatty() or settings.json:
            raise ConfigError("compare fingerprints before signing: give --fingerprint HEX, or --yes to sign without.")
        print(f"fingerprint of the request: {actual}", file=sys.stderr)
        if input("Did the member tell you the same on another channel? [y/N] ").strip().lower() not in ("y", "yes"):
            raise IdentityError("not signed: the fingerprint was not confirmed; ask the member to read it to you")
    path = _open(folder, ask).sign(
        content, name=name, role=role, hosts=hosts, days=MEMBER_DAYS if days is None else days
    )
    emit("signed", name=name, role=role, fingerprint=actual, path=str(path))
    say(f"'{name}' is enrolled as {role}: send {path} back (it is not secret); then `hansa enrol accept`")


def accept(identity: Path, certificates: Path) -> None:
    """Completes one's own identity."""
    _identity("accepted", accept_certificates(identity, _read(certificates)), identity)


def renew(member: str, hosts: Sequence[str] | None, folder: Path, days: int | None, ask: bool) -> None:
    """Gives new certificates to the same keys."""
    which: str | Path = Path(member) if member.endswith(".pem") or os.sep in member else member
    path = _open(folder, ask).renew(which, hosts=hosts or None, days=MEMBER_DAYS if days is None else days)
    if path.name.endswith(".certificates.pem"):
        emit("renewed", path=str(path))
        say(f"renewed: send {path} to the member, for `hansa enrol accept`")
    else:
        _identity("renewed", Identity.load(path), path)


def revoke(member: str, folder: Path, ask: bool) -> None:
    """Shuts a member out."""
    try:
        which: str | int = int(member, 16) if member.startswith("0x") else member
    except ValueError:
        raise ConfigError(f"'{member}' is no serial number: write it as 0x and hexadecimal digits.") from None
    path = _open(folder, ask).revoke(which)
    emit("revoked", member=member, list=str(path))
    say(f"'{member}' is revoked: copy {path} to the server and the workers (--revoked); it takes effect there")


def members(folder: Path, ask: bool) -> None:
    """Lists the register."""
    now = datetime.now(UTC)
    rows = [
        {
            "name": member.name, "role": member.role, "status": member.status(now), "until": member.until,
            "hosts": list(member.hosts), "fingerprint": member.fingerprint, "serials": list(member.serials),
            "since": member.since, "revoked": member.revoked,
        }
        for member in _open(folder, ask).members()
    ]  # fmt: skip
    if settings.json:
        table("member", rows, [], "")
        return
    short = [{**row, "until": moment(row["until"])[:10], "fingerprint": str(row["fingerprint"])[:16]} for row in rows]
    table(
        "member",
        short,
        ["name", "role", "status", "until", "fingerprint", "hosts"],
        "nobody is enrolled yet: see `hansa enrol issue --help`",
    )


def show(path: Path) -> None:
    """Whose identity, or request, a file is."""
    content = _read(path)
    if b"BEGIN CERTIFICATE REQUEST" in content:
        fingerprint = request_fingerprint(content)
        emit("request", path=str(path), fingerprint=fingerprint)
        say(f"request with the fingerprint {fingerprint}")
        return
    _identity("identity", Identity.parse(content, source=str(path)), path)


def _identity(event: str, identity: Identity, path: Path) -> None:
    """Says whose an identity is."""
    ends = identity.expires
    emit(
        event, name=identity.name, role=identity.role, federation=identity.peer.federation, path=str(path),
        fingerprint=identity.fingerprint, expires=ends.isoformat(),
    )  # fmt: skip
    say(f"identity     {path}")
    say(f"member       {identity.name}, {identity.role} of '{identity.peer.federation}'")
    say(f"fingerprint  {identity.fingerprint}")
    left = (ends - datetime.now(UTC)).days
    say(f"valid until  {ends:%Y-%m-%d}" + (f" ({left} days left: renew it)" if left < SOON_DAYS else ""))


def _open(folder: Path, ask: bool) -> Authority:
    if not (folder / "authority.key.pem").exists():
        raise IdentityError(f"{folder} holds no authority: give --authority DIR, or found one with `hansa enrol init`")
    return Authority.load(folder, passphrase=_passphrase(ask))


def _passphrase(ask: bool, twice: bool = False) -> bytes | None:
    """The passphrase of the authority's key: asked for, from the environment, or none."""
    if not ask:
        return os.environ["HANSA_PASSPHRASE"].encode() if os.environ.get("HANSA_PASSPHRASE") else None
    if not sys.stdin.isatty():
        raise ConfigError("--passphrase asks a person, and there is no terminal: set HANSA_PASSPHRASE instead.")
    given = getpass.getpass("Passphrase of the authority's key: ")
    if twice and getpass.getpass("The same again: ") != given:
        raise ConfigError("the two passphrases differ: try again.")
    if not given:
        raise ConfigError("an empty passphrase protects nothing: leave --passphrase out, or give one.")
    return given.encode()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}): check the path.") from None
