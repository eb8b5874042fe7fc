"""Bits: and, sign, and the adder behind both.

The sign of x = x₀ + x₁ + x₂ is that of a + b, where a = x₀ + x₁ is known to party 0 and b = x₂ to parties 1 and 2. So
party 0 shares a alone. Carries are found by a tree over (generate, propagate) pairs of bits,

    (g, p) ∘ (g′, p′) = (g ⊕ p·g′, p·p′)

that halves the words at each level, 64 → 32 → 16 → 8 → 4 → 2 → 1, for which the bits lie in reversed order of their
index: then each level is the high half of a word against its low half.

The first level, and the second where words are few, is part of the first and: for pieces aⱼ and bⱼ of the words,

    g = ⊕ᵢ aᵢ·bᵢ·Π (aⱼ ⊕ bⱼ) over j > i,     p = Π (aⱼ ⊕ bⱼ)

are sums of products of some a's, which party 0 shares, and of some b's, which both others know.
"""

import torch

from hansa.mpc.aby3.arithmetic import Arithmetic
from hansa.mpc.protocol import Share
from hansa.mpc.ring.words import (
    LIGHT,
    Words,
    halves,
    heavy_share,
    light_share,
    narrowed,
    pieces,
    reversed_bits,
    room,
    stacked,
    taken,
    xored_products,
)  # fmt: skip

_LOW = (1 << 63) - 1
_TOP = -(1 << 63)
FEW = LIGHT
"""Numbers, up to which a message less is worth 10 to 16 bytes more for each."""


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
        """Seven messages one after another, 32 bytes an element in all from party 0; for few numbers six, of 42."""
        shape = x.shape
        flat = light_share(x.map(lambda part: part.reshape(-1)))
        levels = [torch.int32, torch.int16, torch.int8]
        if shape.numel() <= FEW:
            del levels[0]
        g, p, top = self._first_level(flat, levels[0])
        for dtype in levels[1:]:
            g, p = self._level(halves(g, dtype), halves(p, dtype))
        for width in (4, 2):
            g, p = self._level((g, _down(g, width)), (p, _down(p, width)))
        g = _down(g, 1) ^ self._and(_down(p, 1), g)
        return heavy_share((g ^ top).map(lambda part: (part & 1).reshape(shape)))

    def _first_level(self, x: Share, dtype: torch.dtype) -> tuple[Share, Share, Share]:
        """Generates and propagates of all pieces of a word of this dtype, and bit 63 of a ^ b, in two messages."""
        first, second = x.parts
        if self.me == 0:
            # Bit 63 itself carries nowhere: it is made the identity of the tree.
            a = reversed_bits(first + second)
            sign = narrowed(a >> 63)
            known = _products(pieces(a | _TOP, dtype))[1:]
            masks = [self._with_next.draw_like(each) for each in (known, sign)]
            known ^= masks[0]
            sign ^= masks[1]
            self._send(self.previous, "summand", known, sign)
            top = sign, masks[1]
            z = self._zero_bits(known[:2])
        else:
            b = reversed_bits(second if self.me == 1 else first)
            sign = narrowed(b >> 63)
            products = _products(pieces(b & _LOW, dtype))
            like = products[1:], sign
            if self.me == 1:
                known, mask = (self._with_previous.draw_like(each) for each in like)
                top = mask, sign
            else:
                known, hidden = taken(self.mesh, self.next, "summand", *like)
                top = sign, hidden
            z = self._zero_bits(products[:2])
            full = len(products) - 1
            z[0] ^= xored_products(known, products, [_generating(at, full) for at in range(1, full + 1)])
            z[1] ^= xored_products(known, products, [full ^ at for at in range(1, full + 1)])
            if self.me == 1:
                z[1] ^= products[full]
        both = Share((z, self._around("and", z)), boolean=True)
        return both.map(lambda part: part[0]), both.map(lambda part: part[1]), Share(top, boolean=True)

    def bits(self, x: Share) -> Share:
        """Eight messages one after another: party 0's share, an and, and six levels of Kogge and Stone's adder."""
        g, ways = self._half_added(light_share(x))
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

    def _half_added(self, x: Share) -> tuple[Share, Share]:
        """Boolean shares of a & b and a ^ b, for a = x₀ + x₁ and b = x₂."""
        first, second = x.parts
        if self.me == 0:
            mask = self._with_next.draw_like(first)
            hidden = (first + second) ^ mask
            self._send(self.previous, "summand", hidden)
            ways, z = (hidden, mask), self._zero_bits(mask)
        elif self.me == 1:
            a, b = self._with_previous.draw_like(first), second
            ways, z = (a, b), self._zero_bits(a)
            z ^= a & b
        else:
            a, b = self._recv(self.next, "summand", first), first
            ways, z = (b, a), self._zero_bits(b)
            z ^= a & b
        return Share((z, self._around("and", z)), boolean=True), Share(ways, boolean=True)


def _products(factors: list[Words]) -> Words:
    """The and of every subset of words, by its number as a set of bits, along a new first dimension."""
    table = room(factors[0], 1 << len(factors))
    table[0] = -1
    for at in range(1, len(table)):
        table[at] = table[at & (at - 1)] & factors[(at & -at).bit_length() - 1]
    return table


def _generating(chosen: int, full: int) -> int:
    """Of which b's the product goes with that of the chosen a's: the lowest one's, and those above it not chosen."""
    lowest = chosen & -chosen
    return lowest | (full & -(lowest << 1) & ~chosen)


def _down(x: Share, width: int) -> Share:
    return x.map(lambda part: part >> width)
