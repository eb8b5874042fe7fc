"""Bits as numbers: b = u ⊕ v = u + v − 2·u·v, where u = b₀ ⊕ b₁ is known to party 0 and v = b₂ to parties 1 and 2."""

from hansa.mpc.aby3.boolean import Boolean
from hansa.mpc.protocol import Share
from hansa.mpc.ring.words import heavy, light, widened


class Conversion(Boolean):
    """From bits to numbers."""

    def to_arithmetic(self, bit: Share) -> Share:
        """Two messages one after another, 8 bytes an element each."""
        a, b = (widened(light(part)) for part in bit.parts)
        none = a ^ a
        if self.me == 0:
            mask = self._with_next.draw_like(a)
            hidden = (a ^ b) - mask
            self._send(self.previous, "bit", hidden)
            u, v = (hidden, mask), (none, none)
        elif self.me == 1:
            u, v = (self._with_previous.draw_like(a), none), (none, b)
        else:
            u, v = (none, self._recv(self.next, "bit", a)), (a, none)
        z = u[0] * (v[0] + v[1]) + u[1] * v[0] + self._zero(a)
        product = z, self._around("product", z)
        return Share(tuple(heavy(u[at] + v[at] - 2 * product[at]) for at in (0, 1)))
