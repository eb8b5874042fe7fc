"""Whose side a command runs, of those that several parties start together."""

from pathlib import Path

from hansa.core.errors import ConfigError, IdentityError
from hansa.crypto.identity import Identity
from hansa.runtimes.mesh import Parties


def identity_of(me: str | None, identity: Path | None) -> tuple[Path, str]:
    """The identity file of whoever runs this, and the name in it.

    Raises:
      ConfigError: neither a name nor a file was given.
      IdentityError: the file is another's than the name says.
    """
    if me is None and identity is None:
        raise ConfigError("say who this is: --me NAME, with NAME.pem here, or --identity FILE.pem.")
    file = identity or Path(f"{me}.pem")
    name = Identity.load(file).name
    if me is not None and name != me:
        raise IdentityError(f"{file} is the identity of '{name}', not of '{me}': give the file of '{me}'.")
    return file, name


def check_known(name: str, known: Parties, file: Path) -> None:
    """ConfigError unless the file of parties has this name."""
    if name not in known.names:
        raise ConfigError(f"'{name}' is not among the parties of {file} ({', '.join(known.names)}).")
