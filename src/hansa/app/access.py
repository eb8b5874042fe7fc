"""How a member reaches its federation's server: where it is, and who we are.

Both come from the options, else from HANSA_SERVER and HANSA_IDENTITY, else from a file `hansa.toml` in the working
folder:

    server = "hansa.example.org:8443"
    identity = "alice.pem"                 relative to this file
"""

import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hansa.app.address import is_loopback, split
from hansa.core.errors import ConfigError, IdentityError, MissingExtra

if TYPE_CHECKING:
    from hansa.crypto.identity import Identity
    from hansa.runtimes.grpc.client import Client

_DEFAULT_SERVER = "127.0.0.1:8443"


@dataclass(frozen=True)
class Access:
    """A server's address, and what its peers prove who they are with.

    Args:
      address: HOST:PORT.
      identity: the file of ours; None if there is none.
      insecure: no TLS and no identities, on this machine alone.
    """

    address: str
    identity: Path | None
    insecure: bool

    @staticmethod
    def of(address: str | None, identity: Path | None, insecure: bool) -> "Access":
        """From the options, which may leave things to `hansa.toml`."""
        given = _from_file() if address is None or identity is None else {}
        address = address or given.get("server") or _DEFAULT_SERVER
        host, _ = split(address, "--server")
        if identity is None and "identity" in given and not insecure:
            identity = Path(given["identity"])
        if insecure and identity is not None:
            raise _both()
        if insecure and not is_loopback(host):
            raise ConfigError(
                f"--insecure with {address}: without identities only this machine is safe; use 127.0.0.1, or enrol."
            )
        return Access(address, identity, insecure)

    def member(self, role: str) -> "Identity | None":
        """Our identity, which should have this role; None if insecure."""
        if self.insecure and self.identity is not None:
            raise _both()
        if self.insecure:
            return None
        if self.identity is None:
            raise ConfigError(
                f"no identity: give --identity FILE.pem, made by `hansa enrol issue NAME --role {role}`; or "
                "--insecure, on this machine alone."
            )
        from hansa.crypto.identity import Identity

        return Identity.load(self.identity)

    def enrolled(self, role: str) -> "Identity | None":
        """Our identity; IdentityError unless it has this role."""
        member = self.member(role)
        if member is not None and member.role != role:
            raise IdentityError(f"'{member.name}' is enrolled as {member.role}: a {role} needs the role {role}.")
        return member

    @contextmanager
    def client(self, member: "Identity | None" = None) -> Iterator["Client"]:
        """A connection to the server, as this member; read from its file if it is not given."""
        member = member or self.member("submitter")
        with network():
            from hansa.runtimes.grpc.client import Client
        with Client(self.address, identity=member, insecure=self.insecure) as client:
            yield client


def _both() -> ConfigError:
    return ConfigError("--insecure and --identity: give one of them (HANSA_IDENTITY counts as well).")


def _from_file() -> dict[str, str]:
    """What `hansa.toml` says, if it is there."""
    path = Path("hansa.toml")
    if not path.is_file():
        return {}
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"hansa.toml cannot be read: {error}.") from None
    unknown = sorted(set(given) - {"server", "identity"})
    if unknown:
        raise ConfigError(f"hansa.toml: its keys are server and identity, not '{unknown[0]}'.")
    if not all(isinstance(value, str) for value in given.values()):
        raise ConfigError('hansa.toml: server and identity are texts, as in server = "127.0.0.1:8443".')
    return given


@contextmanager
def network() -> Iterator[None]:
    """Says what to install where the network's libraries are missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        library = (error.name or "").split(".")[0]
        if library in ("grpc", "google", "sqlalchemy", "cryptography"):
            raise MissingExtra(
                "a federation", {"grpc": "grpcio", "google": "protobuf"}.get(library, library), "deploy"
            ) from None
        raise
