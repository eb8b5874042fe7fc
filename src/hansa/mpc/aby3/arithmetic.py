"""Products of replicated shares, and truncation.

    product     zᵢ = op(xᵢ, yᵢ + yᵢ₊₁) + op(xᵢ₊₁, yᵢ)                three summands of the product, one at each party
    reshare     zᵢ + (random summand of 0), sent around              one message, 8 bytes an element

Truncation by f bits, exact but for one unit, of a z given as three summands (z′ = z + 2⁶² ≥ 0, r uniform):

    2 → 1       z₂ + r − ρ,  R₁,  M₁                                 ρ, R₀ and M₀ are drawn by parties 2 and 0 alone
    2 → 0       z₂ + r − σ                                           σ is drawn by parties 1 and 2 alone
    0 ↔ 1       z₀ + ρ,  z₁ + σ           all at once: then          c = z′ + r, open to 0 and 1, which do not know r
    0 ↔ 1       u₀ − α,  u₁ − β                                      α drawn by 0 and 2, β by 1 and 2

where R₀ + R₁ = (r mod 2⁶³) >> f, M₀ + M₁ = r >> 63, and with k = c >> 63

    z′ >> f  ≈  ((c mod 2⁶³) >> f) − R + (k ⊕ M)·2^(63−f),     uᵢ = −Rᵢ + (1 − 2k)·Mᵢ·2^(63−f)

It never wraps for |z| < 2⁶². The fast kind takes two messages of 8 bytes and no r: it splits z into z₀ + z₁ and z₂ and
truncates each, which is off by 2^(64−f) with probability |z| / 2⁶³ for each element.
"""

from hansa.mpc.aby3.share import Sharing
from hansa.mpc.protocol import Bilinear, Share
from hansa.mpc.ring.words import Words, heavy, light, room

_HALF = 1 << 62
_LOW = (1 << 63) - 1


class Arithmetic(Sharing):
    """Numbers."""

    def product(self, x: Share, y: Share, op: Bilinear) -> Share:
        """Party i's summand, of the pairs that it holds."""
        z = op(x.parts[0], y.parts[0] + y.parts[1])
        z += op(x.parts[1], y.parts[0])
        return Share((z,))

    def settle(self, summands: Share, shift: int = 0) -> Share:
        """One message around; with a shift, two one after another."""
        z = light(summands.parts[0])
        if shift:
            parts = self._fast(z, shift) if self.fast_truncation else self._exact(z, shift)
        else:
            masked = self._zero(z)
            masked += z
            parts = masked, self._around("product", masked)
        return Share(tuple(heavy(part) for part in parts))

    def _exact(self, z: Words, shift: int) -> tuple[Words, Words]:
        top = 63 - shift
        if self.me == 2:
            drawn = self._with_next.draw_like(room(z, 4))
            masked, alpha = drawn[:3], drawn[3]
            beta, sigma = self._with_previous.draw_like(room(z, 2))
            r = self._own.draw_like(z)
            hidden = z + r
            self._send(self.next, "masked", hidden - sigma)
            masked[0] -= hidden  # what was drawn here is this party's to write on
            masked[1] -= (r & _LOW) >> shift
            r >>= 63
            masked[2] += r
            masked *= -1
            self._send(self.previous, "masked", masked)
            return beta, alpha
        if self.me == 1:
            mask, sigma = self._with_next.draw_like(room(z, 2))
            other = self.previous
            self._send(other, "open masked", z + sigma)
            masked, high, most = self._recv(self.next, "masked", room(z, 3))
        else:
            rho, high, most, mask = self._with_previous.draw_like(room(z, 4))
            other = self.next
            self._send(other, "open masked", z + rho)
            masked = self._recv(self.previous, "masked", z)
        c = z + masked
        c += self._recv(other, "open masked", z)
        c += _HALF
        sign = c >> 63  # −1 where k = 1
        u = sign * 2
        u += 1
        u *= most
        u <<= top
        u -= high
        u -= mask
        self._send(other, "truncated", u)
        y = u + self._recv(other, "truncated", z)
        y += (c & _LOW) >> shift
        sign <<= top
        sign += 1 << (62 - shift)
        y -= sign
        return (mask, y) if self.me == 0 else (y, mask)

    def _fast(self, z: Words, shift: int) -> tuple[Words, Words]:
        masked = self._zero(z)
        masked += z
        z = masked
        if self.me == 1:
            self._send(self.previous, "truncate", z)
            return self._with_previous.draw_like(z), self._recv(self.next, "truncate", z)
        if self.me == 2:
            z *= -1
            z >>= shift
            third = -z
            self._send(self.previous, "truncate", third)
            return third, self._recv(self.next, "truncate", z)
        drawn = self._with_next.draw_like(z)
        first = self._recv(self.next, "truncate", z) + z
        first >>= shift
        first -= drawn
        self._send(self.previous, "truncate", first)
        return first, drawn
