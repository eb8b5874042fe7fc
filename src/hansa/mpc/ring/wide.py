"""Numbers modulo 2¹⁴⁴ as six words of 24 bits, for protocols that need room above the 64 bits of a secret.

    x = Σ 2^(24·i)·xᵢ,  0 ≤ xᵢ < 2²⁴              each xᵢ an int64 tensor of x's shape

A product of two words has 48 bits, so that a sum of 2¹⁵ of them fits int64: any bilinear operation of that depth works
on words as on numbers.
"""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch

from hansa.core.checkpoint import Buffer
from hansa.core.errors import ProtocolError
from hansa.mpc.protocol import Bilinear, Ring
from hansa.mpc.ring.random import Prg

WORDS, _BITS = 6, 24
_MASK = (1 << _BITS) - 1
MODULUS = 1 << (WORDS * _BITS)
PACKED_BYTES = 18
"""Of one number in a message."""
Wide: TypeAlias = tuple[torch.Tensor, ...]


def split(value: Ring) -> Wide:
    """A signed number of 64 bits."""
    return tuple((value >> min(_BITS * at, 63)) & _MASK for at in range(WORDS))


def joined(x: Wide) -> tuple[Ring, bool]:
    """The low 64 bits, signed, and whether they are all there is of every number."""
    low = x[0] | (x[1] << _BITS) | (x[2] << 2 * _BITS)
    whole = all(torch.equal(mine, wanted) for mine, wanted in zip(x, split(low), strict=True))
    return low, whole


def carried(x: Sequence[torch.Tensor]) -> Wide:
    """Words of any sign and size up to 62 bits, brought back to 24 bits each."""
    out, carry = [], torch.zeros((), dtype=torch.int64)
    for word in x:
        whole = word + carry
        out.append(whole & _MASK)
        carry = whole >> _BITS
    return tuple(out)


def added(x: Wide, y: Wide) -> Wide:
    """The sum."""
    return carried([a + b for a, b in zip(x, y, strict=True)])


def subtracted(x: Wide, y: Wide) -> Wide:
    """The difference."""
    return carried([a - b for a, b in zip(x, y, strict=True)])


def multiplied(x: Wide, y: Wide, op: Bilinear) -> Wide:
    """A product of any kind, in which at most 2¹⁵ numbers are summed."""
    out: list[torch.Tensor] = [torch.zeros((), dtype=torch.int64)] * (WORDS + 1)
    for i in range(WORDS):
        for j in range(WORDS - i):
            product = op(x[i], y[j])
            out[i + j] = out[i + j] + (product & _MASK)
            out[i + j + 1] = out[i + j + 1] + (product >> _BITS)
    return carried(out[:WORDS])


def shifted(x: Wide, bits: int) -> Wide:
    """The number over 2^bits, rounded down."""
    skip, bits = divmod(bits, _BITS)
    zero = torch.zeros_like(x[0])
    moved = [*x[skip:], *[zero] * (skip + 1)]
    return tuple((moved[at] >> bits) | ((moved[at + 1] << (_BITS - bits)) & _MASK) for at in range(WORDS))


def drawn(prg: Prg, shape: torch.Size, bits: int = WORDS * _BITS) -> Wide:
    """Uniform below 2^bits."""
    words = prg.draw((WORDS, *shape), torch.int32)
    return tuple(words[at].to(torch.int64) & ((1 << min(_BITS, max(0, bits - _BITS * at))) - 1) for at in range(WORDS))


def packed(x: Wide) -> bytes:
    """As a message: three bytes a word."""
    words = np.stack([each.contiguous().numpy() for each in x]).astype("<u4")
    return words.reshape(-1).view(np.uint8).reshape(-1, 4)[:, :3].tobytes()


def unpacked(raw: Buffer, shape: torch.Size) -> Wide:
    """From a message; ProtocolError if it is one of other numbers."""
    count = shape.numel()
    if len(raw) != count * PACKED_BYTES:
        raise ProtocolError(f"a message of {len(raw)} bytes where {count} numbers were expected.")
    words = np.zeros((WORDS * count, 4), np.uint8)
    words[:, :3] = np.frombuffer(raw, np.uint8).reshape(-1, 3)
    whole = torch.from_numpy(words.reshape(-1).view("<u4").astype(np.int64)).reshape(WORDS, *shape)
    return tuple(whole)


def weighted(x: Wide, low: torch.Tensor, high: torch.Tensor) -> int:
    """Σ xₖ·(lowₖ + 2²⁴·highₖ) modulo 2¹⁴⁴, of weights in two words."""
    total, size = 0, 1 << 14
    for at, word in enumerate(x):
        flat = word.reshape(-1)
        for offset, weights in ((0, low), (1, high)):
            pieces = zip(flat.split(size), weights.split(size), strict=True)
            total += sum(int(torch.dot(a, b)) for a, b in pieces) << _BITS * (at + offset)
    return total % MODULUS
