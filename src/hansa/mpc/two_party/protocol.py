"""The protocol as a whole, and what it costs."""

from typing import ClassVar

from hansa.core.errors import ConfigError
from hansa.core.runtime import Mesh
from hansa.mpc.protocol import Cost
from hansa.mpc.two_party.conversion import Conversion

_ROUNDS = {
    "input": 0, "open": 1, "bilinear": 2, "both": 2, "negative": 10, "bits": 14, "to_arithmetic": 2,
    "bilinear_shift": 4, "truncate": 2,
}  # fmt: skip
_SCALED = ("bilinear_shift", "truncate")


class TwoParty(Conversion):
    """Additive secret sharing between two parties, with oblivious transfers in place of a helper.

    Args:
      mesh: a link to the other.
      truncation: `exact` (off by at most one unit, always), or `fast` (without a message; off by 2^(64 − f) with
        probability |x| / 2⁶³ for each element, x being the product before it is truncated).
    """

    name: ClassVar[str] = "two_party"
    parties: ClassVar[int] = 2
    corruption: ClassVar[str] = "either of the two parties, which follows the protocol"
    holdings = ((0,), (1,))

    def __init__(self, mesh: Mesh, *, truncation: str = "exact") -> None:
        if truncation not in ("exact", "fast"):
            raise ConfigError(f"truncation='{truncation}': choose 'exact' or 'fast'.")
        super().__init__(mesh)
        self.fast_truncation = truncation == "fast"

    def cost(self, operation: str, elements: int) -> Cost:
        """Of products element by element, of bits in words of 8 bytes, and of truncation by 16 bits."""
        n, half = elements, elements - elements // 2
        rounds, size = _ROUNDS[operation], 0
        if operation == "open":
            size = 8 * n
        if operation.startswith("bilinear"):
            size = _transfers(64 * n) + 344 * n
        if operation == "both":
            size = _transfers(64 * n) + 8 * n
        if operation == "to_arithmetic":
            size = _transfers(half) + 8 * half
        if operation == "negative":
            size = _transfers(64 * half) + 64 * half + sum(_gated(level * n) for level in (8, 4, 2, 1))
        if operation == "bits":
            size = _transfers(64 * half) + -(-64 * half // 8) + 6 * _gated(32 * n)
        if operation in _SCALED and self.fast_truncation:
            rounds -= 2
        elif operation in _SCALED:
            size += _transfers(half) + 2 * half
        return Cost(rounds, size)


def _transfers(count: int) -> int:
    """Bytes of so many choices, which go in words of 64."""
    return 16 * (-(-count // 64) * 64)


def _gated(count: int) -> int:
    """Bytes of choices, and of corrections of two bits each."""
    return _transfers(count) + -(-2 * count // 8)
