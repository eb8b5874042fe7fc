"""Bits as numbers: b = u ⊕ v = u + v − 2·u·v, where u = b₀ ⊕ b₁ is known to party 0 and v = b₂ to parties 1 and 2."""

import torch

from hansa.mpc.aby3.boolean import Boolean
from hansa.mpc.protocol import Share


class Conversion(Boolean):
    """From bits to numbers."""

    def to_arithmetic(self, bit: Share) -> Share:
        """Two messages one after another, 8 bytes an element each."""
        none = torch.zeros(bit.shape, dtype=torch.int64)
        a, b = ((part & 1).to(torch.int64) for part in bit.parts)
        if self.me == 0:
            mask = self._with_next.draw(bit.shape)
            hidden = (a ^ b) - mask
            self._send(self.previous, "bit", hidden)
            u, v = Share((hidden, mask)), Share((none, none))
        elif self.me == 1:
            u, v = Share((self._with_previous.draw(bit.shape), none)), Share((none, b))
        else:
            u, v = Share((none, self._recv(self.next, "bit", bit.shape))), Share((a, none))
        return u + v - self.bilinear(u, v, torch.mul).times(2)
