"""Small integers side by side: the bits that a grid has, and no more, on the wire.

    three levels (−1, 0, 1)      five to a byte, as digits of base 3: 1.6 bits each
    any other grid               one plane of bits after another: ⌈log₂ levels⌉ bits each

Packed bytes do not add up as numbers, so that each contribution is unpacked before a reducer that sees it; a reducer
that hides contributions packs by itself, for its own modulus.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hansa.core.errors import UpdateRejected
from hansa.core.pipeline import Part, Setting, Signal, Stage, Step, fault
from hansa.core.tensors import Shapes, Tensors
from hansa.stages.flat import shaped


@dataclass(frozen=True)
class Pack(Stage):
    """Packs what `Quantise` or `MajorityVote` made, up or down. Put it last.

    | levels | bits on the wire |
    |---|---|
    | −1, 0, 1: `Quantise(2)`, `MajorityVote` | 1.6 |
    | `Quantise(b)` | b |

    Guarantees:
      Lossless. A peer's bytes decode to integers of the grid, or its update is rejected.
    """

    def bind(self, signal: Signal, setting: Setting) -> Step:
        """Refuses a signal without small integers."""
        names = [name for name, part in signal.parts.items() if part.domain == "integer"]
        if not names:
            raise fault("Pack finds no integers: put Quantise or MajorityVote before it, or leave Pack out.")
        # A selection's indices travel as int32 beside its values: of that width only one kind can be told apart.
        if any(signal.parts[name].linf > np.iinfo("int16").max and not signal.parts[name].additive for name in names):
            raise fault("Pack behind a selection takes integers of at most 16 bits: lower the bits of Quantise.")
        return _Packed(signal, names)


class _Packed(Step):
    def __init__(self, signal: Signal, names: Sequence[str]) -> None:
        self._grids: dict[str, tuple[tuple[int, ...], str, int]] = {}  # by flat name: shape, dtype, levels
        parts = {}
        for name in names:
            part = signal.parts[name]
            shapes, levels = dict(part.shapes), int(part.linf)
            for tensor, (shape, dtype) in _small(part).items():
                self._grids[f"{name}/{tensor}"] = (shape, dtype, levels)
                shapes[tensor] = ((packed_size(math.prod(shape), levels),), "uint8")
            parts[name] = shaped(part, shapes, domain="bytes", additive=False)
        super().__init__(signal.with_(**parts))

    def encode(
        self, x: Tensors, state: Tensors, memory: Tensors, rngs: Sequence[np.random.Generator]
    ) -> tuple[Tensors, Tensors]:
        packed = {
            name: np.stack([pack(np.asarray(array).reshape(-1), levels) for array in x[name]])
            for name, (_, _, levels) in self._grids.items()
        }
        return x.updated(packed), memory

    def decode_one(self, x: Tensors, state: Tensors) -> Tensors:
        whole = {}
        for name, (shape, dtype, levels) in self._grids.items():
            integers = unpack(np.asarray(x[name]), math.prod(shape), levels, name)
            whole[name] = integers.astype(dtype, copy=False).reshape(shape)
        return x.updated(whole)


def packed_size(count: int, levels: int) -> int:
    """Bytes of `count` integers in −levels … levels."""
    return -(-count // 5) if levels == 1 else _planes(levels) * -(-count // 8)


def pack(integers: np.ndarray, levels: int) -> np.ndarray:
    """A vector of signed integers in −levels … levels as bytes: shape (packed_size,).

    >>> pack(np.array([-1, 0, 1, 1, 0], np.int8), 1).tolist(), pack(np.array([-3, 3], np.int8), 3).tolist()
    ([156], [0, 64, 64])
    """
    if levels == 1:
        digits = np.zeros((-(-len(integers) // 5), 5), np.uint8)
        digits.reshape(-1)[: len(integers)] = integers + 1
        packed = digits[:, 4].copy()
        for place in (3, 2, 1, 0):
            packed *= np.uint8(3)
            packed += digits[:, place]
        return packed
    return pack_bits(integers.astype(np.int64) + levels, _planes(levels))


def unpack(packed: np.ndarray, count: int, levels: int, name: str) -> np.ndarray:
    """The integers that `pack` packed: shape (count,). UpdateRejected, naming the tensor, if they are none."""
    if len(packed) != packed_size(count, levels):
        raise UpdateRejected(f"'{name}' has {len(packed)} bytes, not {packed_size(count, levels)}.")
    if levels == 1:
        if len(packed) and packed.max() >= 3**5:
            raise UpdateRejected(f"'{name}' has a byte above 242, which is no five digits of base 3.")
        digits: np.ndarray = _DIGITS[packed].reshape(-1)
        return digits[:count]
    integers = unpack_bits(packed, count, _planes(levels)).astype(np.int64) - levels
    if len(integers) and integers.max() > levels:
        raise UpdateRejected(f"'{name}' has the integer {integers.max()} on a grid of {levels} levels.")
    return integers


def pack_bits(numbers: np.ndarray, bits: int) -> np.ndarray:
    """A vector of numbers in [0, 2^bits) as `bits` planes of bits, the lowest first: shape (bits·⌈n/8⌉,)."""
    return np.concatenate([np.packbits((numbers >> plane).astype(np.uint8) & 1) for plane in range(bits)])


def unpack_bits(packed: np.ndarray, count: int, bits: int) -> np.ndarray:
    """The numbers of `pack_bits`: shape (count,), uint8 up to 8 bits and uint32 beyond."""
    numbers = np.zeros(count, "uint8" if bits <= 8 else "uint32")
    for plane, packed_plane in enumerate(packed.reshape(bits, -1)):
        numbers |= np.unpackbits(packed_plane, count=count).astype(numbers.dtype, copy=False) << plane
    return numbers


def _planes(levels: int) -> int:
    return (2 * levels).bit_length()


def _small(part: Part) -> Shapes:
    """The tensors on the grid: signed, of the smallest width that holds it."""
    dtype = next(name for name in ("int8", "int16", "int32") if part.linf <= np.iinfo(name).max)
    return {tensor: at for tensor, at in part.shapes.items() if at[1] == dtype}


_DIGITS = np.array([[byte // 3**place % 3 - 1 for place in range(5)] for byte in range(3**5)], np.int8)
