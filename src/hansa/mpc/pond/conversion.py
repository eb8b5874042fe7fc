"""Bits as numbers: b ⊕ m is opened, where the dealer gave the random bit m as a bit and as a number."""

import torch

from hansa.mpc.pond.boolean import Boolean
from hansa.mpc.pond.share import _DEALER
from hansa.mpc.protocol import Share


class Conversion(Boolean):
    """From bits to numbers."""

    def to_arithmetic(self, bit: Share) -> Share:
        """One message each way of a bit's word, and 8 bytes an element from the dealer."""
        (word,) = bit.parts
        mask = self._random(word.shape, word.dtype, boolean=True)
        number = self._deal((mask & 1).to(torch.int64))
        if self.me == _DEALER:
            return Share((number,))
        mine = word ^ mask
        opened = ((mine ^ self._swap("masked bit", mine)[0]) & 1).to(torch.int64)
        number = number * (1 - 2 * opened)
        return Share((number + opened if self.me == 0 else number,))
