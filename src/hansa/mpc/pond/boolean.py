"""Bits: and, sign, and all 64 of a number.

A number is opened as c = x + r, where the dealer gave r as a number and as bits. Then x = c − r, and whether bit i
borrows (gᵢ = ¬cᵢ·rᵢ) or passes a borrow on (pᵢ = ¬(cᵢ ⊕ rᵢ)) is linear in the bits of r, since c is known: no message
is needed before the tree

    (g, p) ∘ (g′, p′) = (g ⊕ p·g′, p·p′)

which is that of `aby3`, with three words opened for both of its products.
"""

import functools

import torch

from hansa.mpc.pond.arithmetic import Arithmetic
from hansa.mpc.pond.share import _DEALER
from hansa.mpc.protocol import Share
from hansa.mpc.ring.words import halves, reversed_bits

_LOW = (1 << 63) - 1
_TOP = -(1 << 63)


class Boolean(Arithmetic):
    """Bits."""

    def both(self, x: Share, y: Share) -> Share:
        """One message each way, of both words."""
        return self._ands(x, [y])[0]

    def _ands(self, x: Share, others: list[Share]) -> list[Share]:
        """One word and each of several others, of its shape and dtype, in one message."""
        words = [x.parts[0], *(other.parts[0] for other in others)]
        kind = words[0].dtype
        a, *rest = masks = [self._random(word.shape, kind, boolean=True) for word in words]
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
        c, r = self._masked(x.map(lambda part: part.reshape(-1)), reverse=True)
        g, p = self._borrows(c, r)
        top = (r ^ self.constant_bits(c)).map(lambda part: ((part >> 63) & 1).to(torch.int8))
        # Bit 63 itself borrows from nobody: it is made the identity of the tree.
        g, p = g.map(lambda part: part & _LOW), p.map(lambda part: part & _LOW)
        p = p ^ self.constant_bits(torch.full_like(c, _TOP))
        for dtype in (torch.int32, torch.int16, torch.int8):
            g, p = self._level(halves(g, dtype), halves(p, dtype))
        for width in (4, 2):
            high = functools.partial(torch.bitwise_right_shift, other=width)
            g, p = self._level((g, g.map(high)), (p, p.map(high)))
        g = g.map(lambda part: part >> 1) ^ self.both(p.map(lambda part: part >> 1), g)
        return (g ^ top).map(lambda part: (part & 1).reshape(shape))

    def bits(self, x: Share) -> Share:
        """Seven messages each way: the masked number, and six levels of Kogge and Stone's tree."""
        c, r = self._masked(x, reverse=False)
        g, p = self._borrows(c, r)
        for distance in (1, 2, 4, 8, 16, 32):
            shift = functools.partial(torch.bitwise_left_shift, other=distance)
            borrowed, passed = self._ands(p, [g.map(shift), p.map(shift)])
            g, p = g ^ borrowed, passed
        return r ^ self.constant_bits(c) ^ g.map(lambda part: part << 1)

    def _masked(self, x: Share, reverse: bool) -> tuple[torch.Tensor, Share]:
        """The open number x + r, zeros at the dealer, and the bits of r, both in reversed order of index if asked."""
        order = reversed_bits if reverse else torch.clone
        r = self._random(x.shape)
        bits = Share((self._deal(order(r) if self.me == _DEALER else r, boolean=True),), boolean=True)
        if self.me == _DEALER:
            return torch.zeros_like(r), bits
        mine = x.parts[0] + r
        return order(mine + self._swap("open masked", mine)[0]), bits

    def _borrows(self, c: torch.Tensor, r: Share) -> tuple[Share, Share]:
        """Which bits of c − r borrow, and which pass a borrow on."""
        return r.map(lambda part: part & ~c), r ^ self.constant_bits(~c)

    def _level(self, g: tuple[Share, Share], p: tuple[Share, Share]) -> tuple[Share, Share]:
        """The pairs (low, high) combined."""
        borrowed, passed = self._ands(p[1], [g[0], p[0]])
        return g[1] ^ borrowed, passed
