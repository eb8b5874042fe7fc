"""Bits as numbers: b = u ⊕ v = u + v − 2·u·v, where u = b₀ ⊕ b₁ is known to party 0 and v = b₂ to parties 1 and 2."""

from hansa.mpc.aby3.boolean import Boolean
from hansa.mpc.protocol import Share
from hansa.mpc.ring.words import heavy, light, widened


class Conversion(Boolean):
    """From bits to numbers."""

    def to_arithmetic(self, bit: Share) -> Share:
        """Two messages one after another, 8 bytes an element each."""
        # What this party holds of u + v, and its summand of u·v, which parties 1 and 2 alone can compute a part of.
        a, b = (light(part) for part in bit.parts)
        if self.me == 0:
            hidden = widened(a ^ b)
            mask = self._with_next.draw_like(hidden)
            hidden -= mask
            self._send(self.previous, "bit", hidden)
            sums, z = (hidden, mask), self._zero(mask)
        elif self.me == 1:
            v = widened(b)
            u = self._with_previous.draw_like(v)
            sums, z = (u, v), self._zero(v)
            z += u * v
        else:
            v = widened(a)
            u = self._recv(self.next, "bit", v)
            sums, z = (v, u), self._zero(v)
            z += u * v
        product = z, self._around("product", z)
        return Share(tuple([heavy(held - 2 * part) for held, part in zip(sums, product, strict=True)]))
