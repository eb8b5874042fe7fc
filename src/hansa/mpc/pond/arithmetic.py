"""Products from dealt ones, and truncation.

    deal        a, b random; c = op(a, b)
    0 ↔ 1       e = x − a,  d = y − b                 both open to the servers, which do not know a and b
    product     zᵢ = op(e, bᵢ) + op(aᵢ, d) + cᵢ,  and op(e, d) at server 0

of which e and a (or d and b) are those of before where x (or y), or what it is a view of, was multiplied before.

Truncation by f bits, exact but for one unit, of z′ = z + 2⁶² ≥ 0 with r random:

    deal        R = (r mod 2⁶³) >> f,  M = r >> 63
    0 ↔ 1       c = z′ + r                            open to the servers, which do not know r

with k = c >> 63, and as shares without a further message

    z′ >> f  ≈  ((c mod 2⁶³) >> f) − R + (k ⊕ M)·2^(63−f)

It never wraps for |z| < 2⁶². The fast kind takes no message: server 0 shifts its share and server 1 minus its own,
which is off by 2^(64−f) with probability |z| / 2⁶³ for each element (Mohassel and Zhang 2017, SecureML,
https://eprint.iacr.org/2017/396).
"""

from hansa.mpc.pond.share import _DEALER, Masked, Sharing
from hansa.mpc.protocol import Bilinear, Ring, Share
from hansa.mpc.ring.words import heavy, light

_HALF = 1 << 62
_LOW = (1 << 63) - 1


class Arithmetic(Sharing):
    """Numbers."""

    def product(self, x: Share, y: Share, op: Bilinear) -> Share:
        """One message each way, as long as those operands that were not multiplied before; else none."""
        (e, a), (d, b) = self._opened(x, y)
        if self.me == _DEALER:
            return Masked((self._deal(op(a, b)),))
        z = op(e, b + d if self.me == 0 else b) + op(a, d)
        return Masked((z + self._deal(z),))

    def _opened(self, *numbers: Share) -> list[tuple[Ring, Ring]]:
        """What is open of each number, and the share of its mask."""
        held = [each if isinstance(each, Masked) else Masked(each.parts) for each in numbers]
        new: list[Masked] = []
        for root in (each.root() for each in held):
            if not root.kept and all(root is not other for other in new):
                new.append(root)
        masks = [self._random(root.parts[0]) for root in new]
        mine = [root.parts[0] - mask for root, mask in zip(new, masks, strict=True)]
        if self.me != _DEALER and new:
            mine = [u + v for u, v in zip(mine, self._swap("masked", *mine), strict=True)]
        for root, opened, mask in zip(new, mine, masks, strict=True):
            root.kept.append((opened, mask))
        return [each.hidden() for each in held]

    def settle(self, summands: Share, shift: int = 0) -> Share:
        """Nothing without a shift; with one, a message each way (none with fast truncation)."""
        if not shift:
            return summands
        z = light(summands.parts[0])
        if self.fast_truncation:
            return Masked((heavy(-(-z >> shift) if self.me == 1 else z >> shift),))
        r, top = self._random(z), 63 - shift
        high, most = self._deal((r & _LOW) >> shift), self._deal((r >> 63) & 1)
        if self.me == _DEALER:
            return Masked((heavy(high),))
        mine = z + r
        c = mine + self._swap("open masked", mine)[0]
        c += _HALF
        sign = c >> 63  # −1 where k = 1
        y = (most * (1 + 2 * sign) << top) - high
        if self.me == 0:
            y += (c & _LOW) >> shift
            y -= (1 << (62 - shift)) + (sign << top)
        return Masked((heavy(y),))
