"""Bits as numbers: b = b₀ ⊕ b₁ = b₀ + b₁ − 2·b₀·b₁."""

import numpy as np
import torch

from hansa.mpc.protocol import Share
from hansa.mpc.two_party.boolean import Boolean


class Conversion(Boolean):
    """From bits to numbers."""

    def to_arithmetic(self, bit: Share) -> Share:
        """Two messages one after another."""
        bits = (bit.parts[0] & 1).to(torch.uint8)
        crossed = self._bit_products(bits.numpy().reshape(-1), np.dtype(np.uint64))
        number = bits.to(torch.int64) - 2 * torch.from_numpy(crossed.view(np.int64)).reshape(bit.shape)
        return Share((number,))
