"""The protocols by name."""

from collections.abc import Mapping

from hansa.core.errors import ConfigError
from hansa.mpc.aby3 import Aby3
from hansa.mpc.plain import Plain
from hansa.mpc.pond import Pond
from hansa.mpc.protocol import Protocol
from hansa.mpc.two_party import TwoParty

PROTOCOLS: Mapping[str, type[Protocol]] = {"plain": Plain, "aby3": Aby3, "pond": Pond, "two_party": TwoParty}


def protocol_named(name: str) -> type[Protocol]:
    """The protocol; ConfigError if there is none of this name."""
    if name not in PROTOCOLS:
        raise ConfigError(f"protocol='{name}': choose one of {', '.join(PROTOCOLS)}.")
    return PROTOCOLS[name]
