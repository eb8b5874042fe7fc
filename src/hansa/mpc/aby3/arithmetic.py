"""Products of replicated shares, and truncation.

    product     zᵢ = op(xᵢ, yᵢ + yᵢ₊₁) + op(xᵢ₊₁, yᵢ)                three summands of the product, one at each party
    reshare     zᵢ + (random summand of 0), sent around              one message, 8 bytes an element

Truncation by f bits, exact but for one unit, of a z given as three summands (z′ = z + 2⁶² ≥ 0, r uniform):

    2 → 1       z₂ + r − ρ,  R₁,  M₁                                 ρ, R₀ and M₀ are drawn by parties 2 and 0 alone
    0 ↔ 1       z₀ + ρ,  z₁ + (z₂ + r − ρ)                           c = z′ + r, open to 0 and 1, which do not know r
    0 ↔ 1       u₀ − α,  u₁ − β                                      α drawn by 0 and 2, β by 1 and 2

where R₀ + R₁ = (r mod 2⁶³) >> f, M₀ + M₁ = r >> 63, and with k = c >> 63

    z′ >> f  ≈  ((c mod 2⁶³) >> f) − R + (k ⊕ M)·2^(63−f),     uᵢ = −Rᵢ + (1 − 2k)·Mᵢ·2^(63−f)

It never wraps for |z| < 2⁶². The fast kind takes two messages of 8 bytes and no r: it splits z into z₀ + z₁ and z₂ and
truncates each, which is off by 2^(64−f) with probability |z| / 2⁶³ for each element.
"""

import torch

from hansa.mpc.aby3.share import Sharing
from hansa.mpc.protocol import Bilinear, Share

_HALF = 1 << 62
_LOW = (1 << 63) - 1


class Arithmetic(Sharing):
    """Numbers."""

    fast_truncation = False

    def product(self, x: Share, y: Share, op: Bilinear) -> Share:
        """Party i's summand, of the pairs that it holds."""
        return Share((op(x.parts[0], y.parts[0] + y.parts[1]) + op(x.parts[1], y.parts[0]),))

    def settle(self, summands: Share, shift: int = 0) -> Share:
        """One message around; with a shift, three one after another (two with fast truncation)."""
        z = summands.parts[0]
        if shift:
            return self._fast(z, shift) if self.fast_truncation else self._exact(z, shift)
        z = z + self._zero(z.shape)
        return Share((z, self._around("product", z)))

    def _exact(self, z: torch.Tensor, shift: int) -> Share:
        z, shape = z.contiguous(), z.shape
        top = 63 - shift
        if self.me == 2:
            rho, high, most, alpha = (self._with_next.draw(shape) for _ in range(4))
            beta = self._with_previous.draw(shape)
            r = self._own.draw(shape)
            message = torch.stack((z + r - rho, ((r & _LOW) >> shift) - high, ((r >> 63) & 1) - most))
            self._send(self.previous, "truncate", message)
            return Share((beta, alpha))
        if self.me == 1:
            beta = self._with_next.draw(shape)
            masked, high, most = self._recv(self.next, "truncate", (3, *shape))
            mine, other, mask = z + masked, self.previous, beta
        else:
            rho, high, most, alpha = (self._with_previous.draw(shape) for _ in range(4))
            mine, other, mask = z + rho, self.next, alpha
        self._send(other, "open masked", mine)
        c = mine + self._recv(other, "open masked", shape)
        c += _HALF
        sign = c >> 63  # −1 where k = 1
        u = (most * (1 + 2 * sign) << top) - high - mask
        self._send(other, "truncated", u)
        y = u + self._recv(other, "truncated", shape)
        y += (c & _LOW) >> shift
        y -= (1 << (62 - shift)) + (sign << top)
        return Share((mask, y)) if self.me == 0 else Share((y, mask))

    def _fast(self, z: torch.Tensor, shift: int) -> Share:
        z = z + self._zero(z.shape)
        if self.me == 1:
            self._send(self.previous, "truncate", z)
            drawn = self._with_previous.draw(z.shape)
            return Share((drawn, self._recv(self.next, "truncate", z.shape)))
        if self.me == 2:
            third = -((-z) >> shift)
            self._send(self.previous, "truncate", third)
            return Share((third, self._recv(self.next, "truncate", z.shape)))
        drawn = self._with_next.draw(z.shape)
        first = ((self._recv(self.next, "truncate", z.shape) + z) >> shift) - drawn
        self._send(self.previous, "truncate", first)
        return Share((first, drawn))
