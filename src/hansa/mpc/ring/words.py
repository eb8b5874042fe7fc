"""Words of the ring: small ones as NumPy's arrays, and words of bits whose halves meet.

An operation on a few hundred words takes torch several times as long as NumPy, and a round has dozens. What is written
with operators alone runs on both.

The trees of carries behind comparisons combine neighbours among the 64 bits of a word, then neighbours of neighbours.
With the bits in reversed order of their index each level is the high half of a word against its low half:
64 → 32 → 16 → 8 → 4 → 2 → 1.
"""

from typing import Any, TypeAlias

import numpy as np
import torch

from hansa.core.checkpoint import Buffer
from hansa.core.errors import ProtocolError
from hansa.core.runtime import Mesh
from hansa.mpc.protocol import Share

Words: TypeAlias = Any
"""An integer tensor, or the array that `light` makes of a small one."""
LIGHT = 1 << 13


def light(part: torch.Tensor) -> Words:
    """A small tensor as an array that shares its memory; a large one, a single number, or a GPU's, as it is."""
    return part.numpy() if part.dim() and part.numel() <= LIGHT and part.is_cpu else part


def heavy(words: Words) -> torch.Tensor:
    """What `light` was given, or what was computed from it."""
    return torch.from_numpy(words) if isinstance(words, np.ndarray) else words


def stacked(*words: Words) -> Words:
    """Along a new first dimension."""
    if isinstance(words[0], np.ndarray):  # which has dimensions, see `light`; np.stack takes three times as long
        return np.concatenate(words).reshape(len(words), *words[0].shape)
    return torch.stack(words)


def room(words: Words, count: int) -> Words:
    """Memory for so many of them, along a new first dimension."""
    shape = (count, *words.shape)
    return np.empty(shape, words.dtype) if isinstance(words, np.ndarray) else words.new_empty(shape)


def narrowed(words: Words) -> Words:
    """As int8."""
    return words.astype(np.int8) if isinstance(words, np.ndarray) else words.to(torch.int8)


def widened(words: Words) -> Words:
    """Bit 0, as int64."""
    return (words & 1).astype(np.int64) if isinstance(words, np.ndarray) else (words & 1).to(torch.int64)


def chosen(bit: Words, zero: Words, one: Words) -> Words:
    """The second where the bit is 1, else the first."""
    return zero + bit * (one - zero)


def light_share(x: Share) -> Share:
    """Part by part."""
    return Share(tuple(light(part) for part in x.parts), x.boolean)


def heavy_share(x: Share) -> Share:
    """Part by part."""
    return Share(tuple(heavy(part) for part in x.parts), x.boolean)


def raw(words: Words) -> memoryview:
    """As a message."""
    array = words if isinstance(words, np.ndarray) else words.contiguous().cpu().numpy()
    view: memoryview = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
    return view


def taken(mesh: Mesh, sender: str, tag: str, *like: Words) -> list[Words]:
    """What a party sends: as many words as these, of their shapes, dtypes and kinds.

    Raises:
      ProtocolError: it sends others; names it.
    """
    buffers = mesh.recv(sender, tag)
    sizes, wanted = [len(each) for each in buffers], [each.nbytes for each in like]
    if sizes != wanted:
        raise ProtocolError(
            f"'{sender}' sent {sizes} bytes as '{tag}' where {wanted} belong: the programs differ, or it is broken."
        )
    return [_words(buffer, each) for buffer, each in zip(buffers, like, strict=True)]


def _words(buffer: Buffer, like: Words) -> Words:
    if isinstance(like, np.ndarray):
        return np.frombuffer(buffer, like.dtype).reshape(like.shape)
    if not len(buffer):
        return torch.empty_like(like)
    made = torch.frombuffer(buffer, dtype=like.dtype).reshape(like.shape)
    return made if like.is_cpu else made.to(like.device)


def halves(x: Share, dtype: torch.dtype) -> tuple[Share, Share]:
    """The low and high halves of every word, as words of a narrower dtype."""
    pairs = zip(*[pieces(part, dtype) for part in x.parts], strict=True)
    low, high = (Share(parts, x.boolean) for parts in pairs)
    return low, high


def pieces(words: Words, dtype: torch.dtype) -> list[Words]:
    """The pieces of every word, of a narrower dtype, in ascending order of what they mean when bits are reversed.

    Of four, the third is the one above the first: halves of halves.
    """
    if isinstance(words, np.ndarray):
        narrow = _NUMPY[dtype]
        columns = np.ascontiguousarray(words).view(narrow).reshape(-1, words.itemsize // dtype.itemsize).T
        found = [np.ascontiguousarray(column) for column in columns]
    else:
        ratio = words.element_size() // dtype.itemsize
        found = [column.contiguous() for column in words.contiguous().view(dtype).view(-1, ratio).unbind(1)]
    return found if len(found) == 2 else [found[at] for at in (0, 2, 1, 3)]


def xored_products(x: Words, y: Words, places: list[int]) -> Words:
    """⊕ᵢ x[i] & y[places[i]]."""
    if isinstance(x, np.ndarray):
        return np.bitwise_xor.reduce(x & y[places])
    total = x[0] & y[places[0]]
    for each, place in zip(x[1:], places[1:], strict=True):
        total ^= each & y[place]
    return total


_NUMPY = {torch.int8: np.int8, torch.int16: np.int16, torch.int32: np.int32}


def reversed_bits(x: Words) -> Words:
    """Bit b₅b₄b₃b₂b₁b₀ moves to b₀b₁b₂b₃b₄b₅: three swaps of pairs of index bits. Bits 0 and 63 stay."""
    for distance, mask in ((31, 0x00000000AAAAAAAA), (14, 0x0000CCCC0000CCCC), (4, 0x00F000F000F000F0)):
        swap = x >> distance
        swap ^= x
        swap &= mask
        x = x ^ swap
        swap <<= distance
        x ^= swap
    return x
