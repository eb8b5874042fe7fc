"""Bits: and, sign, and the adder behind both.

The sign of x = x₀ + x₁ + x₂ is that of a + b, where a = x₀ + x₁ is known to party 0 and b = x₂ to parties 1 and 2. So
party 0 shares a alone. Carries are found by a tree over (generate, propagate) pairs of bits,

    (g, p) ∘ (g′, p′) = (g ⊕ p·g′, p·p′)

that halves the words at each level, 64 → 32 → 16 → 8 → 4 → 2 → 1, for which the bits lie in reversed order of their
index: then each level is the high half of a word against its low half.
"""

from collections.abc import Callable

import torch

from hansa.mpc.aby3.arithmetic import Arithmetic
from hansa.mpc.protocol import Share
from hansa.mpc.ring.words import Words, halves, heavy_share, light_share, narrowed, reversed_bits, stacked

_LOW = (1 << 63) - 1
_TOP = -(1 << 63)


class Boolean(Arithmetic):
    """Bits."""

    def both(self, x: Share, y: Share) -> Share:
        """One message around, as long as the words."""
        return heavy_share(self._and(light_share(x), light_share(y)))

    def _and(self, x: Share, y: Share) -> Share:
        """Of x with y, or with each of a stack of them."""
        z = x.parts[0] & (y.parts[0] ^ y.parts[1])
        z ^= x.parts[1] & y.parts[0]
        z ^= self._zero_bits(z)
        return Share((z, self._around("and", z)), boolean=True)

    def negative(self, x: Share) -> Share:
        """Eight messages one after another, 35 bytes an element in all from party 0."""
        shape = x.shape
        carries, ways = self._half_added(light_share(x.map(lambda part: part.reshape(-1))), reversed_bits)
        top = ways.map(lambda part: narrowed((part >> 63) & 1))
        # Bit 63 itself carries nowhere: it is made the identity of the tree.
        g = carries.map(lambda part: part & _LOW)
        p = ways.map(lambda part: part & _LOW)
        p = self._xored(p, _TOP)
        for dtype in (torch.int32, torch.int16, torch.int8):
            g, p = self._level(halves(g, dtype), halves(p, dtype))
        for width in (4, 2):
            g, p = self._level((g, _down(g, width)), (p, _down(p, width)))
        g = _down(g, 1) ^ self._and(_down(p, 1), g)
        return heavy_share((g ^ top).map(lambda part: (part & 1).reshape(shape)))

    def bits(self, x: Share) -> Share:
        """Eight messages one after another: party 0's share, an and, and six levels of Kogge and Stone's adder."""
        g, ways = self._half_added(light_share(x), _same)
        p = ways
        for distance in (1, 2, 4, 8, 16, 32):
            moved = Share(tuple(stacked(u, v) << distance for u, v in zip(g.parts, p.parts, strict=True)), True)
            both = self._and(p, moved)
            g, p = g ^ both.map(lambda part: part[0]), both.map(lambda part: part[1])
        return heavy_share(ways ^ g.map(lambda part: part << 1))

    def _xored(self, x: Share, word: int) -> Share:
        """With a public word."""
        if self.me == 1:  # share 0 of a constant is the constant, which parties 0 and 2 hold
            return x
        first, second = x.parts
        return Share((first ^ word, second) if self.me == 0 else (first, second ^ word), boolean=True)

    def _level(self, g: tuple[Share, Share], p: tuple[Share, Share]) -> tuple[Share, Share]:
        """Two ands in one message: the pairs (low, high) combined."""
        low = Share(tuple(stacked(u, v) for u, v in zip(g[0].parts, p[0].parts, strict=True)), boolean=True)
        both = self._and(p[1], low)
        return g[1] ^ both.map(lambda part: part[0]), both.map(lambda part: part[1])

    def _half_added(self, x: Share, order: Callable[[Words], Words]) -> tuple[Share, Share]:
        """Boolean shares of a & b and a ^ b, for a = x₀ + x₁ and b = x₂ with their bits in some order."""
        first, second = x.parts
        if self.me == 0:
            mask = self._with_next.draw_like(first)
            hidden = order(first + second) ^ mask
            self._send(self.previous, "summand", hidden)
            ways, z = (hidden, mask), self._zero_bits(mask)
        elif self.me == 1:
            a, b = self._with_previous.draw_like(first), order(second)
            ways, z = (a, b), self._zero_bits(a)
            z ^= a & b
        else:
            a, b = self._recv(self.next, "summand", first), order(first)
            ways, z = (b, a), self._zero_bits(b)
            z ^= a & b
        return Share((z, self._around("and", z)), boolean=True), Share(ways, boolean=True)


def _down(x: Share, width: int) -> Share:
    return x.map(lambda part: part >> width)


def _same(words: Words) -> Words:
    return words
