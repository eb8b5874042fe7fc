"""The file that says who the parties are: `parties.toml`, the same at each of them.

[[party]]
name = "bank"                     # as in its certificate
address = "10.0.0.1:7000"         # where it listens for the others
roles = ["input", "computing"]    # what it does; all three if left out

[[party]]
name = "shop"
address = "10.0.0.2:7000"
"""

import hashlib
import json
import os
import socket
import tomllib
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from hansa.core.errors import ConfigError, IdentityError, NotFound, require
from hansa.crypto.certificate import check_name

ROLES = ("input", "computing", "result")


@dataclass(frozen=True)
class Party:
    """One party.

    Args:
      name: as in its certificate.
      address: host:port where it listens for the others.
      roles: any of `input` (gives data), `computing` (holds shares) and `result` (learns what is revealed to it).
    """

    name: str
    address: str
    roles: tuple[str, ...] = ROLES

    def __post_init__(self) -> None:
        try:
            check_name(self.name)
        except IdentityError as error:
            raise ConfigError(str(error)) from None
        host, _, port = self.address.rpartition(":")
        fault = f"address='{self.address}' of party '{self.name}': write HOST:PORT, as in 10.0.0.1:7000."
        require(bool(host) and port.isascii() and port.isdigit() and 0 < int(port) < 65536, fault)
        unknown = sorted(set(self.roles) - set(ROLES))
        require(not unknown, f"roles={unknown} of party '{self.name}' do not exist: choose from {', '.join(ROLES)}.")

    @property
    def endpoint(self) -> tuple[str, int]:
        """Host and port."""
        host, _, port = self.address.rpartition(":")
        return host.strip("[]"), int(port)


@dataclass(frozen=True)
class Parties:
    """All parties of a computation, in the file's order, which all share."""

    members: tuple[Party, ...]

    def __post_init__(self) -> None:
        for what, several in (("name", "names"), ("address", "addresses")):
            given = [getattr(party, what) for party in self.members]
            twice = sorted({each for each in given if given.count(each) > 1})
            require(not twice, f"the {several} {twice} occur twice among the parties: each party has its own.")

    @classmethod
    def here(cls, names: Sequence[str]) -> Self:
        """Parties on this machine, each on a port that is free now."""
        ports = free_ports(len(names))
        return cls(tuple(Party(name, f"127.0.0.1:{port}") for name, port in zip(names, ports, strict=True)))

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Self:
        """Reads a file of parties.

        Raises:
          NotFound: there is no such file.
          ConfigError: it cannot be read, is no TOML, or an entry is wrong; says which.
        """
        try:
            content = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise NotFound(f"{path} does not exist: write the parties' names and addresses into it.") from None
        except OSError as error:
            raise ConfigError(
                f"{path} cannot be read: {error.strerror}. It is the file of the parties' names."
            ) from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} cannot be read as TOML: {error}.") from None
        entries = content.get("party")
        if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
            raise ConfigError(f"{path} names no party: give each a table [[party]] with its name and address.")
        more = sorted(set(content) - {"party"})
        require(not more, f"{path} has the unknown tables {more}: it holds a table [[party]] for each party, no more.")
        return cls(tuple(_party(entry, path) for entry in entries))

    def __getitem__(self, name: str) -> Party:
        for party in self.members:
            if party.name == name:
                return party
        raise ConfigError(f"party '{name}' is not among {', '.join(self.names)}.")

    @property
    def names(self) -> tuple[str, ...]:
        """In order."""
        return tuple(party.name for party in self.members)

    def with_role(self, role: str) -> tuple[str, ...]:
        """The names of those that have a role, in order."""
        return tuple(party.name for party in self.members if role in party.roles)

    def only(self, names: Sequence[str]) -> "Parties":
        """These parties, in order."""
        return Parties(tuple(party for party in self.members if party.name in names))

    def digest(self) -> bytes:
        """32 bytes that are equal where the files say the same."""
        text = json.dumps([asdict(party) for party in self.members], sort_keys=True)
        return hashlib.sha256(text.encode()).digest()


def _party(entry: dict[str, Any], path: str | os.PathLike[str]) -> Party:
    unknown = sorted(set(entry) - {"name", "address", "roles"})
    require(not unknown, f"{path} has the unknown keys {unknown}: a party has a name, an address and roles.")
    roles = entry.get("roles", list(ROLES))
    well = isinstance(roles, list) and all(isinstance(role, str) for role in roles)
    require(well, f"{path}: roles={roles!r} is no list of names.")
    for key in ("name", "address"):
        require(isinstance(entry.get(key), str), f"{path}: a party lacks its {key}: {entry}.")
    return Party(entry["name"], entry["address"], tuple(roles))


def free_ports(count: int) -> list[int]:
    """So many ports of this machine that nobody listened on a moment ago: for demonstrations and tests."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [int(each.getsockname()[1]) for each in sockets]
