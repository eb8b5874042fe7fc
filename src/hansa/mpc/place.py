"""Where a program runs: what `hansa mpc local` and `hansa mpc party` tell the `connect()` of an ordinary script.

It travels in one environment variable, HANSA_MPC, so that scripts in processes of their own find it too. It names files
and holds no secret.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from hansa.core.errors import ConfigError

VARIABLE = "HANSA_MPC"


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
