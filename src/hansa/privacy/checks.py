"""Checks of what users give, told in one way."""

import math

from hansa.core.errors import require


def positive(otherwise: str = "", **numbers: float) -> None:
    """ConfigError that names the first of these numbers which is not finite and above 0.

    Args:
      otherwise: what else there is, for the end of the message.
      numbers: name to number.
    """
    for name, number in numbers.items():
        require(number > 0 and math.isfinite(number), f"{name}={number}: it is finite and above 0{otherwise}.")
