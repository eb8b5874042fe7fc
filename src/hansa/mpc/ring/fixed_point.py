"""Real numbers as elements of the ring: x ↦ round(x · 2^f), signed, f fraction bits.

largest magnitude   2^(62 − f)          beyond it a product's truncation could wrap: refused when encoded
error               2^−(f+1)            of encoding; one more unit 2^−f for each truncation
"""

import torch

from hansa.core.errors import DataError
from hansa.mpc.protocol import Ring

FRACTION_BITS = 16
_HEADROOM = 62


def encode(value: torch.Tensor, bits: int = FRACTION_BITS, name: str = "a value") -> Ring:
    """Fixed-point code of floats, integers or booleans.

    Args:
      value: any shape; finite, of magnitude below 2^(62 − bits).
      bits: of the fraction.
      name: for the error.

    Raises:
      DataError: a number is NaN, infinite or too large; names the tensor, the number and the bound.
    """
    if value.is_complex():
        raise DataError(f"{name} holds complex numbers: share its real and imaginary parts.")
    if not value.is_floating_point():
        value = value.to(torch.int64)
        limit = 1 << (_HEADROOM - bits)
        whole = max(int(value.min()), int(value.max()), key=abs) if value.numel() else 0
        if abs(whole) >= limit:
            raise DataError(f"{name} holds {whole}: with {bits} fraction bits it must be below {limit}.")
        return value << bits
    wide = value.to(torch.float64) * float(1 << bits)
    if value.numel() and not bool(torch.isfinite(wide).all()):
        raise DataError(f"{name} holds NaN or infinity: clean it before it is shared.")
    largest = float(wide.abs().max()) if value.numel() else 0.0
    if largest >= 2.0**_HEADROOM:
        raise DataError(
            f"{name} holds the magnitude {largest / (1 << bits):g}: with {bits} fraction bits it must be below "
            f"{2.0 ** (_HEADROOM - bits):g}; scale it down, or use fewer fraction bits."
        )
    return wide.round_().to(torch.int64)


def decode(code: Ring, bits: int = FRACTION_BITS, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The numbers of a code; integers and booleans are rounded to the nearest."""
    if not bits and not dtype.is_floating_point:
        return code.to(dtype)
    wide = code.to(torch.float64) / float(1 << bits)
    if dtype.is_floating_point:
        return wide.to(dtype)
    return wide.round().to(torch.int64).to(dtype)
