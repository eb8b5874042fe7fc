"""The protocol as a whole, and what it costs."""

from collections.abc import Sequence
from typing import ClassVar

from hansa.core.errors import ConfigError
from hansa.core.runtime import Mesh
from hansa.mpc.aby3.boolean import FEW
from hansa.mpc.aby3.sorting import Sorting
from hansa.mpc.protocol import Cost

# operation -> messages one after another, and the bytes for each element that the busiest party sends
_COSTS = {
    "input": (1, 8), "open": (1, 8), "bilinear": (1, 8), "both": (1, 8), "negative": (7, 32), "bits": (8, 112),
    "to_arithmetic": (2, 16), "bilinear_shift": (2, 32), "truncate": (2, 32), "shuffle": (3, 16), "below": (8, 57),
}  # fmt: skip
_FEW = {"negative": (6, 42), "to_arithmetic": (1, 32)}
_FAST = {"bilinear_shift": (2, 8), "truncate": (2, 8)}


class Aby3(Sorting):
    """Replicated secret sharing among three parties.

    Args:
      mesh: links to the others.
      computing: the three that compute; all of the mesh if None.
      truncation: `exact` (off by at most one unit, always), or `fast` (a quarter of the bytes; off by 2^(64 − f) with
        probability |x| / 2⁶³ for each element, x being the product before it is truncated).
    """

    name: ClassVar[str] = "aby3"
    parties: ClassVar[int] = 3
    corruption: ClassVar[str] = "any one of the three parties, which follows the protocol"
    holdings = ((0, 1), (1, 2), (2, 0))
    devices = ("cpu", "cuda")

    def __init__(self, mesh: Mesh, computing: Sequence[str] | None = None, *, truncation: str = "exact") -> None:
        if truncation not in ("exact", "fast"):
            raise ConfigError(f"truncation='{truncation}': choose 'exact' or 'fast'.")
        super().__init__(mesh, computing)
        self.fast_truncation = truncation == "fast"

    def cost(self, operation: str, elements: int) -> Cost:
        """As declared above."""
        table = {**_COSTS, **(_FAST if self.fast_truncation else {}), **(_FEW if elements <= FEW else {})}
        rounds, size = table[operation]
        return Cost(rounds, size * elements)
