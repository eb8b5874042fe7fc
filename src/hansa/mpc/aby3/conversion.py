"""Bits as numbers.

many    b = u ⊕ v = u + v − 2·u·v, where u = b₀ ⊕ b₁ is known to party 0 and v = b₂ to parties 1 and 2
few     s₁ = (v ⊕ b₁) − s₀ − s₂, where v = b₂ ⊕ b₀ is known to party 2, which draws s₀ with party 0 and s₂ with party 1:

    2 → 0       (v ⊕ j) − s₀ − s₂ + wⱼ  for j = 0, 1         wⱼ drawn by parties 1 and 2
    2 → 1       (v ⊕ j) − s₀ − s₂ + w′ⱼ                      w′ⱼ drawn by parties 0 and 2
    1 → 0       w of b₁                                      so that 0 reads the one of b₁, and not the other
    0 → 1       w′ of b₁                                     all at once

Source of the second: Mohassel and Rindal 2018, ABY3 (three-party oblivious transfer),
https://eprint.iacr.org/2018/403
"""

from hansa.mpc.aby3.boolean import FEW, Boolean
from hansa.mpc.protocol import Share
from hansa.mpc.ring.words import Words, chosen, heavy, light, room, widened


class Conversion(Boolean):
    """From bits to numbers."""

    def to_arithmetic(self, bit: Share) -> Share:
        """Two messages one after another, 8 bytes an element each; for few bits one, of 32."""
        a, b = (light(part) for part in bit.parts)
        parts = self._chosen(a, b) if bit.shape.numel() <= FEW else self._added(a, b)
        return Share(tuple([heavy(part) for part in parts]))

    def _added(self, a: Words, b: Words) -> tuple[Words, Words]:
        # What this party holds of u + v, and its summand of u·v, which parties 1 and 2 alone can compute a part of.
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
        product = self._around("product", z)
        return sums[0] - 2 * z, sums[1] - 2 * product

    def _chosen(self, a: Words, b: Words) -> tuple[Words, Words]:
        if self.me == 2:
            v = widened(a ^ b)
            to_first, to_second = room(v, 2), room(v, 2)
            drawn = [prg.draw_like(room(v, 3)) for prg in (self._with_next, self._with_previous)]
            rest = drawn[0][0] + drawn[1][0]
            for offer, masks in ((to_first, drawn[1]), (to_second, drawn[0])):
                offer[0] = v
                offer[1] = 1 - v
                offer -= rest
                offer += masks[1:]
            self._send(self.next, "offers", to_first)
            self._send(self.previous, "offers", to_second)
            return drawn[1][0], drawn[0][0]
        choice = widened(b if self.me == 0 else a)
        prg, sender, other = (
            (self._with_previous, self.previous, self.next)
            if self.me == 0
            else (self._with_next, self.next, self.previous)
        )
        drawn = prg.draw_like(room(choice, 3))
        self._send(other, "choice", chosen(choice, drawn[1], drawn[2]))
        offers = self._recv(sender, "offers", drawn[:2])
        read = chosen(choice, offers[0], offers[1])
        read = read - self._recv(other, "choice", choice)
        return (drawn[0], read) if self.me == 0 else (read, drawn[0])
