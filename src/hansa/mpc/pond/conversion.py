"""Bits as numbers: b ⊕ m is opened, where the dealer gave the random bit m as a bit and as a number."""

from hansa.mpc.pond.boolean import Boolean
from hansa.mpc.pond.share import _DEALER, Masked
from hansa.mpc.protocol import Share
from hansa.mpc.ring.words import heavy, light, widened


class Conversion(Boolean):
    """From bits to numbers."""

    def to_arithmetic(self, bit: Share) -> Share:
        """One message each way of a bit's word, and 8 bytes an element from the dealer."""
        word = light(bit.parts[0])
        mask = self._random(word, boolean=True)
        number = self._deal(widened(mask))
        if self.me == _DEALER:
            return Masked((heavy(number),))
        mine = word ^ mask
        opened = widened(mine ^ self._swap("masked bit", mine)[0])
        number = number * (1 - 2 * opened)
        return Masked((heavy(number + opened if self.me == 0 else number),))
