"""Words of bits whose halves meet: what the carry trees of comparisons are made of.

A tree over the 64 bits of a word combines neighbours, then neighbours of neighbours. With the bits in reversed order of
their index each level is the high half of a word against its low half: 64 → 32 → 16 → 8 → 4 → 2 → 1.
"""

import torch

from hansa.mpc.protocol import Share


def halves(x: Share, dtype: torch.dtype) -> tuple[Share, Share]:
    """The low and high halves of every word, as words of a narrower dtype."""
    pairs = x.map(lambda part: part.contiguous().view(dtype).view(-1, 2))
    return pairs.map(lambda part: part[:, 0].contiguous()), pairs.map(lambda part: part[:, 1].contiguous())


def reversed_bits(x: torch.Tensor) -> torch.Tensor:
    """Bit b₅b₄b₃b₂b₁b₀ moves to b₀b₁b₂b₃b₄b₅: three swaps of pairs of index bits. Bits 0 and 63 stay."""
    for distance, mask in ((31, 0x00000000AAAAAAAA), (14, 0x0000CCCC0000CCCC), (4, 0x00F000F000F000F0)):
        swap = ((x >> distance) ^ x) & mask
        x = x ^ swap ^ (swap << distance)
    return x
