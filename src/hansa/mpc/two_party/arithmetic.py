"""Products of shares, and truncation.

    product     op(x₀, y₀) + op(x₁, y₁) + op(x₀, y₁) + op(x₁, y₀)         the last two by transfers
    truncate    with z′ = z + 2⁶² = z₀ + z₁ − w·2⁶⁴,  z′ < 2⁶³            so w = m₀ ∨ m₁, mᵢ: the highest bit of zᵢ
                z′ >> f  ≈  (z₀ >> f) + (z₁ >> f) + 1 − w·2^(64−f)            w = m₀ + m₁ − m₀·m₁: one transfer

It is off by at most one unit and never wraps for |z| < 2⁶² (CrypTFlow2, section 4.2, with the sign known). The fast
kind sends nothing: each party truncates its own share (SecureML, theorem 1), which is off by 2^(64−f) with probability
|z| / 2⁶³ for each element.
"""

import numpy as np
import torch

from hansa.mpc.protocol import Bilinear, Ring, Share
from hansa.mpc.two_party.products import Products, Unknown

_HALF = 1 << 62
_WORDS = (np.uint8, np.uint16, np.uint32, np.uint64)


class Arithmetic(Products):
    """Numbers."""

    def product(self, x: Share, y: Share, op: Bilinear) -> Share:
        """Two messages one after another: the shares of the product, which need no more."""
        (a,), (b,) = x.parts, y.parts
        own = op(a, b)
        crossed = self._crossed([(op, a, Unknown.like(b)), (op, Unknown.like(a), b)])
        return Share((own + crossed[0] + crossed[1],))

    def settle(self, summands: Share, shift: int = 0) -> Share:
        """No message; with a shift two one after another (none with fast truncation)."""
        (z,) = summands.parts
        if not shift:
            return summands
        return Share((self._fast(z, shift) if self.fast_truncation else self._exact(z, shift),))

    def _exact(self, z: Ring, shift: int) -> Ring:
        mine = (z + _HALF if self.me == 0 else z).contiguous()
        words = mine.numpy().view(np.uint64).reshape(-1)
        top = (words >> np.uint64(63)).astype(np.uint8)
        dtype = np.dtype(_WORDS[max(0, (shift - 1).bit_length() - 3)])  # w counts modulo 2^shift
        wraps = top - self._bit_products(top, dtype).astype(np.uint64)
        out = (words >> np.uint64(shift)) - (wraps << np.uint64(64 - shift))
        if self.me == 0:
            out -= np.uint64((_HALF >> shift) - 1)  # two shares rounded down are one unit short on average
        return torch.from_numpy(out.view(np.int64)).reshape(z.shape)

    def _fast(self, z: Ring, shift: int) -> Ring:
        return z >> shift if self.me == 0 else -((-z) >> shift)
