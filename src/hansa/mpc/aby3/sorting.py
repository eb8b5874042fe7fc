"""A shuffle that nobody knows, and the sort that it allows: comparisons of shuffled elements are opened.

    shuffle     for each pair i, i+1 of parties, with π from the key that they alone share:
                i ↔ i+1     π(xᵢ + xᵢ₊₁) − yᵢ,  π(xᵢ₊₂) − yᵢ₊₂        yᵢ drawn by i and i+2, yᵢ₊₂ by i+1 and i+2
                yᵢ₊₁ is the sum of both messages; party i+2 neither sends nor receives
    below       of (number, place) pairs as bits: (¬a ∧ b, ¬(a ⊕ b)), then the tree of `Boolean` over both words at once
    sorted      shuffle, then quicksort of all rows and all their parts at once; the comparisons' bits are opened

Why the opened bits say nothing: every party misses one of the three permutations, so the shuffled order is uniform to
it. Elements are compared as (number, place before the shuffle), so that no two are equal: the bits follow from the
ranks of the shuffled elements alone, which are a uniform permutation whatever the numbers are, ties included. A
simulator draws one and runs the same quicksort. How many bits and rounds there are depends on that permutation alone.

Sources: Laur, Willemson and Zhang 2011 (shuffling by resharing), https://doi.org/10.1007/978-3-642-24861-0_18; Chida et
al. 2019 (for three parties), https://eprint.iacr.org/2019/695; Hamada et al. 2012 (sorting by opened comparisons of
shuffled, distinct elements), https://doi.org/10.1007/978-3-642-37682-5_15
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from hansa.mpc.aby3.conversion import Conversion
from hansa.mpc.protocol import Share
from hansa.mpc.ring.random import Prg
from hansa.mpc.ring.words import halves, heavy_share, light_share, reversed_bits, taken

_TOP = -(1 << 63)


class Sorting(Conversion):
    """Orders."""

    sorts_from = 32

    def shuffle(self, columns: Sequence[Share]) -> list[Share]:
        """Each row of the last dimension in a random order of its own, the same in all columns.

        Three messages one after another, of which each party sends two: 16 bytes for each number of each column.

        Args:
          columns: shapes (rows, n), numbers or bits of 64.
        """
        for first in range(3):
            columns = self._permuted(columns, first)
        return list(columns)

    def _permuted(self, columns: Sequence[Share], first: int) -> list[Share]:
        """In an order that the parties `first` and the one after it know."""
        if self.me == (first + 2) % 3:
            draws = self._with_previous.draw_like, self._with_next.draw_like
            return [Share(tuple([draw(each.parts[0]) for draw in draws]), each.boolean) for each in columns]
        leads = self.me == first
        common, other, peer = (
            (self._with_next, self._with_previous, self.next)
            if leads
            else (self._with_previous, self._with_next, self.previous)
        )
        order = permutations(common, columns[0].shape).to(columns[0].parts[0].device)
        masks, sent = [], []
        for each in columns:
            a, b = each.parts
            known = (a ^ b if each.boolean else a + b) if leads else b
            mask = other.draw_like(known)
            moved = torch.gather(known, -1, order)
            masks.append(mask)
            sent.append(moved ^ mask if each.boolean else moved - mask)
        self._send(peer, "shuffle", *sent)
        received = taken(self.mesh, peer, "shuffle", *sent)
        shares = []
        for each, mask, mine, theirs in zip(columns, masks, sent, received, strict=True):
            both = mine ^ theirs if each.boolean else mine + theirs
            shares.append(Share((mask, both) if leads else (both, mask), each.boolean))
        return shares

    def below(self, x: Share, y: Share) -> Share:
        """Boolean share (int8, in bit 0) of x < y, for pairs of words of which the first counts more, as unsigned.

        Eight messages one after another, 57 bytes for each pair.

        Args:
          x: bits in reversed order of their index, shape (2, m).
          y: the same.
        """
        a, b = (light_share(each.map(lambda part: part.reshape(-1))) for each in (x, y))
        p = self._not(a ^ b)
        g = self._and(self._not(a), b)
        for dtype in (torch.int32, torch.int16, torch.int8):
            g, p = self._level(halves(g, dtype), halves(p, dtype))
        for width in (4, 2, 1):
            g, p = self._level((g, g.map(lambda part, w=width: part >> w)), (p, p.map(lambda part, w=width: part >> w)))  # type: ignore[misc]
        count = x.shape[-1]
        first = g.map(lambda part: part[:count]) ^ self._and(
            p.map(lambda part: part[:count]), g.map(lambda part: part[count:])
        )
        return heavy_share(first.map(lambda part: part & 1))

    def sorted(self, columns: Sequence[Share]) -> list[Share]:
        """As `Protocol.sorted`: about 1.4·n·log₂n − 2.8·n comparisons, in O(log n) batches one after another."""
        key = columns[0]
        size = key.shape[-1]
        flat = [each.map(lambda part: part.reshape(-1, size)) for each in columns]
        device = key.parts[0].device
        original = self.constant_bits(
            reversed_bits(torch.arange(size, device=device).expand(flat[0].shape).contiguous())
        )
        numbers = self._xored(self.bits(flat[0]), _TOP).map(reversed_bits)  # signed numbers in unsigned ones' order
        *flat, numbers, original = self.shuffle([*flat, numbers, original])
        words = numbers.zip(original, lambda a, b: torch.stack((a.reshape(-1), b.reshape(-1))))
        opened = 0

        def smaller(left: np.ndarray, right: np.ndarray) -> np.ndarray:
            nonlocal opened
            opened += len(left)
            places = [torch.from_numpy(each).to(device) for each in (left, right)]
            a, b = (words.map(lambda part, at=at: part[:, at]) for at in places)  # type: ignore[misc]
            bits = self.open(self.below(a, b))
            assert bits is not None
            return np.asarray(bits.cpu().numpy() == 1)

        order = torch.from_numpy(quicksort(len(flat[0].parts[0]), size, smaller)).to(device)
        self.orders.append(opened)
        return [each.map(lambda part: part.reshape(-1)[order].reshape(key.shape)) for each in flat]

    def _not(self, x: Share) -> Share:
        return self._xored(x, -1)


def permutations(prg: Prg, shape: Sequence[int]) -> torch.Tensor:
    """A permutation of the last dimension for each row, uniform but for n²/2¹²⁹: by random words of 128 bits."""
    high, low = (prg.draw(torch.Size(shape)).numpy() for _ in range(2))
    return torch.from_numpy(np.lexsort((low, high), axis=-1))


def quicksort(rows: int, size: int, smaller: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
    """The order of each of several rows that lie one after another, of distinct elements in random order.

    Args:
      rows: how many.
      size: of each.
      smaller: whether elements of some places are less than those of others: called once a step, for all rows.
    """
    order, group = np.arange(rows * size), np.repeat(np.arange(rows), size)
    while True:
        starts = np.flatnonzero(np.diff(group, prepend=-1))
        pivot = np.repeat(starts, np.diff(starts, append=len(group)))
        others = np.flatnonzero(pivot != np.arange(len(group)))
        if not len(others):
            return order
        side = np.ones(len(group), np.int64)
        side[others] = np.where(smaller(order[others], order[pivot[others]]), 0, 2)
        group = group * 3 + side
        by = np.argsort(group, kind="stable")
        order, group = order[by], group[by]
        group = np.cumsum(np.diff(group, prepend=group[0]) != 0)
