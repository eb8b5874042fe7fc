"""What a session lets one choose, checked before anything starts: by `Session`, and by the commands before it."""

import torch

from hansa.core.errors import ConfigError
from hansa.mpc.aby3.malicious import MaliciousAby3
from hansa.mpc.device import usable
from hansa.mpc.functions import SIGMOIDS
from hansa.mpc.protocols import protocol_named
from hansa.mpc.ring import FRACTION_BITS


def check_options(
    protocol: str, *, fraction_bits: int = FRACTION_BITS, sigmoid: str = "spline", truncation: str = "exact",
    security: str = "semi-honest", device: str | torch.device = "cpu",
) -> torch.device:  # fmt: skip
    """The device that was named, with its number; arguments as those of `Session`.

    Raises:
      ConfigError: one of them is unknown, or does not go with another.
    """
    chosen = protocol_named(protocol)
    if not 8 <= fraction_bits <= 20:
        raise ConfigError(f"fraction_bits={fraction_bits}: choose 8 to 20.")
    if sigmoid not in SIGMOIDS:
        raise ConfigError(f"sigmoid='{sigmoid}': choose one of {', '.join(SIGMOIDS)}.")
    if truncation not in ("exact", "fast"):
        raise ConfigError(f"truncation='{truncation}': choose 'exact' or 'fast'.")
    if security not in ("semi-honest", "malicious"):
        raise ConfigError(f"security='{security}': choose 'semi-honest' or 'malicious'.")
    if security == "semi-honest":
        return usable(device, chosen)
    if protocol != "aby3":
        raise ConfigError(f"security='malicious' is aby3's: '{protocol}' has 'semi-honest' alone.")
    if truncation != "exact":
        raise ConfigError(f"truncation='{truncation}' has no check: security='malicious' takes 'exact'.")
    return usable(device, MaliciousAby3)
