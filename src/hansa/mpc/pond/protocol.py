"""The protocol as a whole, and what it costs."""

from typing import ClassVar

from hansa.core.errors import ConfigError
from hansa.core.runtime import Mesh
from hansa.mpc.pond.conversion import Conversion
from hansa.mpc.protocol import Cost

# operation -> messages one after another, and the bytes for each element that the busiest party sends: a server, or the
# dealer. Numbers for bits that are 8-byte words; `again`: one operand or both were multiplied before.
_COSTS = {
    "input": (1, 8), "open": (1, 16), "bilinear": (1, 16), "both": (1, 16), "negative": (7, 37), "bits": (7, 152),
    "to_arithmetic": (1, 8), "bilinear_shift": (2, 24), "truncate": (1, 16), "bilinear_again": (1, 8),
}  # fmt: skip
_FAST = {"bilinear_shift": (1, 16), "truncate": (0, 0)}


class Pond(Conversion):
    """Additive secret sharing between two servers, to which a third party deals random values.

    Args:
      mesh: links to the others.
      dealer: the name of the party that deals; the last one by name if None. It runs the same program, holds no share,
        and learns nothing but what is opened to it.
      truncation: `exact` (off by at most one unit, always), or `fast` (without a message; off by 2^(64 − f) with
        probability |x| / 2⁶³ for each element, x being the product before it is truncated).
    """

    name: ClassVar[str] = "pond"
    parties: ClassVar[int] = 3
    corruption: ClassVar[str] = "any one of two servers and a dealer, which follows the protocol"
    holdings = ((0,), (1,), ())
    devices = ("cpu", "cuda")

    def __init__(self, mesh: Mesh, dealer: str | None = None, *, truncation: str = "exact") -> None:
        if truncation not in ("exact", "fast"):
            raise ConfigError(f"truncation='{truncation}': choose 'exact' or 'fast'.")
        super().__init__(mesh, dealer)
        self.fast_truncation = truncation == "fast"

    def cost(self, operation: str, elements: int) -> Cost:
        """As declared above."""
        table = {**_COSTS, **_FAST} if self.fast_truncation else _COSTS
        rounds, size = table[operation]
        return Cost(rounds, size * elements)
