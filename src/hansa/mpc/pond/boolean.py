"""Bits: and, sign, and all 64 of a number.

A number is opened as c = x + r, where the dealer gave r as a number and as bits. Then x = c − r, and whether bit i
borrows (gᵢ = ¬cᵢ·rᵢ) or passes a borrow on (pᵢ = ¬(cᵢ ⊕ rᵢ)) is linear in the bits of r, since c is known: no message
is needed before the tree

    (g, p) ∘ (g′, p′) = (g ⊕ p·g′, p·p′)

which is that of `aby3`, with three words opened for both of its products.
"""

import torch

from hansa.mpc.pond.arithmetic import Arithmetic
from hansa.mpc.pond.share import _DEALER
from hansa.mpc.protocol import Share
from hansa.mpc.ring.words import Words, halves, heavy_share, light_share, narrowed, reversed_bits

_LOW = (1 << 63) - 1
_TOP = -(1 << 63)


class Boolean(Arithmetic):
    """Bits."""

    def both(self, x: Share, y: Share) -> Share:
        """One message each way, of both words."""
        return heavy_share(self._ands(light_share(x), [light_share(y)])[0])

    def _ands(self, x: Share, others: list[Share]) -> list[Share]:
        """One word and each of several others, of its shape and dtype, in one message."""
        words = [x.parts[0], *(other.parts[0] for other in others)]
        a, *rest = masks = [self._random(word, boolean=True) for word in words]
        if self.me == _DEALER:
            return [Share((self._deal(a & b, boolean=True),), boolean=True) for b in rest]
        mine = [word ^ mask for word, mask in zip(words, masks, strict=True)]
        e, *opened = (u ^ v for u, v in zip(mine, self._swap("masked bits", *mine), strict=True))
        out = []
        for b, d in zip(rest, opened, strict=True):
            z = (e & (b ^ d if self.me == 0 else b)) ^ (a & d)
            z ^= self._deal(z, boolean=True)
            out.append(Share((z,), boolean=True))
        return out

    def negative(self, x: Share) -> Share:
        """Seven messages each way, 37 bytes an element."""
        shape = x.shape
        c, r = self._masked(light_share(x.map(lambda part: part.reshape(-1))), reverse=True)
        g, p = self._borrows(c, r)
        top = self._with_constant(r, c).map(lambda part: narrowed((part >> 63) & 1))
        # Bit 63 itself borrows from nobody: it is made the identity of the tree.
        g, p = g.map(lambda part: part & _LOW), p.map(lambda part: part & _LOW)
        p = self._with_constant(p, _TOP)
        for dtype in (torch.int32, torch.int16, torch.int8):
            g, p = self._level(halves(g, dtype), halves(p, dtype))
        for width in (4, 2):
            g, p = self._level((g, _down(g, width)), (p, _down(p, width)))
        g = _down(g, 1) ^ self._ands(_down(p, 1), [g])[0]
        return heavy_share((g ^ top).map(lambda part: (part & 1).reshape(shape)))

    def bits(self, x: Share) -> Share:
        """Seven messages each way: the masked number, and six levels of Kogge and Stone's tree."""
        c, r = self._masked(light_share(x), reverse=False)
        g, p = self._borrows(c, r)
        for distance in (1, 2, 4, 8, 16, 32):
            borrowed, passed = self._ands(p, [_up(g, distance), _up(p, distance)])
            g, p = g ^ borrowed, passed
        return heavy_share(self._with_constant(r, c) ^ _up(g, 1))

    def _masked(self, x: Share, reverse: bool) -> tuple[Words, Share]:
        """The open number x + r, zeros at the dealer, and the bits of r, both in reversed order of index if asked."""
        (part,) = x.parts
        r = self._random(part)
        bits = Share(
            (self._deal(reversed_bits(r) if reverse and self.me == _DEALER else r, boolean=True),), boolean=True
        )
        if self.me == _DEALER:
            return r ^ r, bits
        mine = part + r
        opened = mine + self._swap("open masked", mine)[0]
        return reversed_bits(opened) if reverse else opened, bits

    def _borrows(self, c: Words, r: Share) -> tuple[Share, Share]:
        """Which bits of c − r borrow, and which pass a borrow on."""
        return r.map(lambda part: part & ~c), self._with_constant(r, ~c)

    def _with_constant(self, x: Share, bits: Words | int) -> Share:
        """Public bits added, at server 0."""
        return x.map(lambda part: part ^ bits) if self.me == 0 else x

    def _level(self, g: tuple[Share, Share], p: tuple[Share, Share]) -> tuple[Share, Share]:
        """The pairs (low, high) combined."""
        borrowed, passed = self._ands(p[1], [g[0], p[0]])
        return g[1] ^ borrowed, passed


def _down(x: Share, width: int) -> Share:
    return x.map(lambda part: part >> width)


def _up(x: Share, width: int) -> Share:
    return x.map(lambda part: part << width)
