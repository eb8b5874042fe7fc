"""Bits: and, sign, and the adder.

The sign of x = x₀ + x₁ is the xor of both highest bits and the carry of the 63 below: whether b > u, where b = x₁ and
u = 2⁶³ − 1 − x₀, each known to one party. Both are cut into 16 digits of 4 bits (the highest of 3):

    digits      the holder of u offers, for each of 16 digits k, the bits k > u and k = u, masked; the other takes its
                own by four transfers, whose keys together open one of sixteen (Naor and Pinkas 1999)
    tree        (>, =) ∘ (>′, =′) = (> ⊕ = ∧ >′, = ∧ =′), neighbours first: 16 → 8 → 4 → 2 → 1

For half of the elements the parties exchange roles: a + b ≥ 2⁶³ knows no order. Sources: Rathee et al. 2020,
CrypTFlow2, algorithm 1, https://eprint.iacr.org/2020/1002; Naor and Pinkas 1999,
https://doi.org/10.1145/301250.301312
"""

import numpy as np
import torch

from hansa.mpc.protocol import Share
from hansa.mpc.two_party.arithmetic import Arithmetic

_DIGITS, _BITS = 16, 4
_LOW = (1 << 63) - 1
# Which of the sixteen offers, in both halves of a word, belong to bit j = 1 of a digit.
_ONES = np.array([0xAAAAAAAA, 0xCCCCCCCC, 0xF0F0F0F0, 0xFF00FF00], np.uint32)


class Boolean(Arithmetic):
    """Bits."""

    def both(self, x: Share, y: Share) -> Share:
        """Two messages one after another; 16 bytes a bit, and a bit."""
        (a,), (b,) = x.parts, y.parts
        shape, dtype = torch.broadcast_shapes(a.shape, b.shape), a.dtype
        a, b = (part.expand(shape).contiguous() for part in (a, b))
        left, right = (np.unpackbits(part.numpy().reshape(-1).view(np.uint8)) for part in (a, b))
        asked, given = self._gated(left, right[None])
        crossed = torch.from_numpy(np.packbits(asked ^ given)).view(dtype).reshape(shape)
        return Share(((a & b) ^ crossed,), boolean=True)

    def negative(self, x: Share) -> Share:
        """Ten messages one after another."""
        words = x.parts[0].contiguous().numpy().view(np.uint64).reshape(-1)
        carry = self._carry(words & np.uint64(_LOW))
        bit = (carry ^ (words >> np.uint64(63)).astype(np.uint8)).view(np.int8)
        return Share((torch.from_numpy(bit).reshape(x.shape),), boolean=True)

    def bits(self, x: Share) -> Share:
        """Fourteen messages one after another: an and, and the six levels of Sklansky's adder."""
        words = x.parts[0].contiguous().numpy().view(np.uint64).reshape(-1)
        mine = ((words >> np.arange(64, dtype=np.uint64)[:, None]) & np.uint64(1)).astype(np.uint8)
        p, g = mine.copy(), self._private_ands(mine.reshape(-1)).reshape(mine.shape)
        places = np.arange(64)
        for level in range(6):
            high = places[(places >> level) & 1 == 1]
            low = (high >> level << level) - 1
            carried, passed = self._combined(p[high], g[low], p[low])
            g[high] ^= carried
            p[high] = passed
        mine[1:] ^= g[:-1]
        packed = np.packbits(mine.T.copy(), axis=1, bitorder="little").view(np.int64)
        return Share((torch.from_numpy(packed).reshape(x.shape),), boolean=True)

    def _combined(self, gate: np.ndarray, *lows: np.ndarray) -> list[np.ndarray]:
        """Shares of gate ∧ low for each low, all of one shape: a transfer each way for all of them."""
        values = np.stack([low.reshape(-1) for low in lows])
        asked, given = self._gated(gate.reshape(-1), values)
        return list(((gate.reshape(-1) & values) ^ asked ^ given).reshape(len(lows), *gate.shape))

    def _private_ands(self, mine: np.ndarray) -> np.ndarray:
        """Shares of this party's bits ∧ the other's."""
        sent, chosen = self._halves(len(mine))
        out = np.empty_like(mine)
        (out[chosen],), (out[sent],) = self._gated(mine[chosen], mine[None, sent])
        return out

    def _carry(self, mine: np.ndarray) -> np.ndarray:
        """Shares of the bits: this party's number and the other's, both below 2⁶³, are together at least 2⁶³."""
        sent, chosen = self._halves(len(mine))
        choices = _digits(mine[chosen])
        asked = ((choices[:, None] >> np.arange(_BITS, dtype=np.uint8)[:, None]) & 1).reshape(-1)
        requested = self._receiver.request(asked)
        masks, offers = self._offers(_digits(mine[sent] ^ np.uint64(_LOW)))
        pads = [_keys(rows.pads(), offers.shape[1]) for rows in self._sender.accept(offers.size * _BITS)]
        for j, ones in enumerate(_ONES):
            offers ^= (pads[0][:, j] & ~ones) | (pads[1][:, j] & ones)
        self._send("digits", offers)
        opened = np.bitwise_xor.reduce(_keys(requested.pads(), choices.shape[1]), axis=1)
        opened ^= self._recv("digits", opened)
        greater, equal = (np.empty((_DIGITS, len(mine)), np.uint8) for _ in range(2))
        greater[:, sent], equal[:, sent] = masks & 1, masks >> 1
        greater[:, chosen] = (opened >> choices) & 1
        equal[:, chosen] = (opened >> (choices + 16)) & 1
        while len(greater) > 1:
            carried, passed = self._combined(equal[1::2], greater[::2], equal[::2])
            greater, equal = greater[1::2] ^ carried, passed
        carry: np.ndarray = greater[0]
        return carry

    def _offers(self, digits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Two random bits a digit, and what masked by them is offered: k > u in bit k, k = u in bit 16 + k."""
        masks = self._own.draw(digits.shape, torch.uint8).numpy() & 3
        place = np.uint32(1) << digits.astype(np.uint32)
        offers = (np.uint32(0x10000) - 2 * place) | (place << np.uint32(16))
        offers ^= (masks & 1) * np.uint32(0xFFFF) ^ (masks >> 1) * np.uint32(0xFFFF0000)
        return masks, offers


def _digits(words: np.ndarray) -> np.ndarray:
    """The lowest first: shape (16, n), uint8."""
    return ((words >> (_BITS * np.arange(_DIGITS, dtype=np.uint64))[:, None]) & np.uint64(15)).astype(np.uint8)


def _keys(pads: np.ndarray, count: int) -> np.ndarray:
    """A word of each transfer: shape (16, 4, n), uint32."""
    return pads[:, 0].astype(np.uint32).reshape(_DIGITS, _BITS, count)
