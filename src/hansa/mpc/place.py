"""Where a program runs: what `hansa mpc local` and `hansa mpc party` tell the `connect()` of an ordinary script.

It travels in one environment variable, HANSA_MPC, so that scripts in processes of their own find it too. It names files
and holds no secret. What `hansa mpc local` founds for one run tells its parties from real ones, which never debug.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from cryptography.hazmat.primitives.serialization import load_pem_private_key

from hansa.core.errors import ConfigError, HansaError
from hansa.crypto.certificate import federation_of
from hansa.crypto.identity import Identity
from hansa.crypto.private_file import read_private

VARIABLE = "HANSA_MPC"
HERE = "hansa mpc local"
"""The federation of a run whose parties are all here; its authority is the folder `authority` beside the identities."""


def all_here(identity: str | os.PathLike[str]) -> bool:
    """Whether an identity is of a run of `hansa mpc local`: whoever runs it holds the key of its authority.

    Who has that key can be every party, so that none of them has a secret from another.
    """
    try:
        own = Identity.load(identity).authority
        pem = read_private(Path(identity).parent / "authority" / "authority.key.pem")
        return federation_of(own) == HERE and load_pem_private_key(pem, None).public_key() == own.public_key()
    except (HansaError, OSError, ValueError, TypeError):
        return False


@dataclass(frozen=True, kw_only=True)
class Place:
    """What a command decided for the script that it runs.

    Args:
      script: the file whose content all parties must share.
      arguments: of the script, which all parties must share, too.
      me: this party's name where it is alone; else it is that of its identity.
      parties: the file of parties; None: one party alone.
      identity: this party's identity file.
      protocol: see `Session`.
      options: of `Session`.
      wait_s: for the others to come.
      report: where the session's report goes as JSON when it ends; None: nowhere.
    """

    script: str
    arguments: Sequence[str] = ()
    me: str = "party-0"
    parties: str | None = None
    identity: str | None = None
    protocol: str = "aby3"
    options: Mapping[str, Any] = field(default_factory=dict)
    wait_s: float = 60.0
    report: str | None = None

    def tell(self) -> None:
        """Says it to the script that this process is about to run."""
        os.environ[VARIABLE] = json.dumps(asdict(self))

    @classmethod
    def current(cls) -> Self:
        """What was said.

        Raises:
          ConfigError: nothing was: the script was started without a command of ours.
        """
        said = os.environ.get(VARIABLE)
        if said is None:
            raise ConfigError(
                "connect() without arguments is for scripts that `hansa mpc local SCRIPT` or `hansa mpc party` runs: "
                'start it so, or write connect("parties.toml", identity="NAME.pem").'
            )
        try:
            return cls(**json.loads(said))
        except (ValueError, TypeError) as error:
            raise ConfigError(f"the environment's {VARIABLE} is not what `hansa mpc` writes: {error}.") from None
