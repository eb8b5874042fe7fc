"""A contribution as integers that are added exactly, and as residues modulo powers of two that can hide under masks.

integers    as they are                            ≤ the declared L∞ bound
numbers     x → round(x / unit), of which −most … most are had; what is beyond saturates
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from hansa.core.pipeline import Signal, fault
from hansa.core.tensors import Array, Tensors
from hansa.crypto import secagg
from hansa.crypto.masking import words

_RANGE = 2.0**30  # of numbers without a declared bound: metrics beyond it saturate
_FINEST = 50  # bits of magnitude of a number on its grid


@dataclass(frozen=True)
class Grid:
    """One tensor of a contribution, on a grid of integers.

    Args:
      name: of the tensor in a message.
      shape, dtype: in the total.
      unit: what 1 is worth; None where the tensor itself is of integers.
      most: the largest magnitude in one contribution.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    unit: float | None
    most: int

    @property
    def count(self) -> int:
        """Coordinates."""
        return math.prod(self.shape)

    def encode(self, array: Array) -> np.ndarray:
        """Int64, shape (count,)."""
        flat = np.asarray(array).reshape(-1)
        if self.unit is not None:
            flat = np.rint(np.clip(flat / self.unit, -float(self.most), float(self.most)))
        return np.clip(flat.astype(np.int64), -self.most, self.most)

    def decode(self, total: np.ndarray) -> np.ndarray:
        """A total of what `encode` gave: integers as int64, numbers in their own type."""
        numbers = total if self.unit is None else total * self.unit
        return numbers.astype(self.dtype, copy=False).reshape(self.shape)


def grids_of(signal: Signal, most: int, widest: float) -> Iterator[Grid]:
    """The grid of each tensor, in the order of parts.

    Args:
      signal: what a contribution is.
      most: the largest integer of a part of numbers; parts of integers have their own bound.
      widest: the bound of numbers that declare none.
    """
    for part_name in sorted(signal.parts):
        part = signal.parts[part_name]
        bound = part.linf if math.isfinite(part.linf) else widest
        for name, (shape, dtype) in part.shapes.items():
            flat = f"{part_name}/{name}"
            if part.domain == "integer":
                yield Grid(flat, tuple(shape), "int64", None, math.floor(part.linf))
            else:
                yield Grid(flat, tuple(shape), dtype, bound / most, most)


@dataclass(frozen=True)
class Layout:
    """Where each tensor lies among the residues: `fields` has one run of them for each grid."""

    grids: tuple[Grid, ...]
    fields: secagg.Fields

    @staticmethod
    def of(signal: Signal, clients: int) -> "Layout":
        """The layout for this signal and at most so many contributions, with moduli as small as hold their sum."""
        headroom = math.ceil(math.log2(max(2, clients)))
        found = tuple(grids_of(signal, 1 << min(_FINEST, 62 - headroom), _RANGE))
        bits = tuple(max(1, math.ceil(math.log2(2 * clients * grid.most + 1))) for grid in found)
        too_wide = [grid.name for grid, wide in zip(found, bits, strict=True) if wide > 64]
        if too_wide:
            raise fault(f"the sum of {clients} contributions of {too_wide} overflows 64 bits: lower Quantise's bits.")
        return Layout(found, secagg.Fields(tuple(grid.count for grid in found), bits))

    def encode(self, message: Tensors) -> list[np.ndarray]:
        """A contribution as residues."""
        pairs = zip(self.grids, self.fields.bits, strict=True)
        return [grid.encode(message[grid.name]).astype(words(bits)) for grid, bits in pairs]

    def decode(self, runs: Sequence[np.ndarray]) -> Tensors:
        """The total of residues as it was before; what is above a modulus means nothing."""
        parts = zip(self.grids, self.fields.bits, runs, strict=True)
        return Tensors({grid.name: grid.decode(_signed(run, bits)) for grid, bits, run in parts})


def _signed(run: np.ndarray, bits: int) -> np.ndarray:
    """Residues modulo 2^bits as the integers nearest to 0."""
    wide = run.astype(np.uint64) << np.uint64(64 - bits)
    signed: np.ndarray = wide.view(np.int64) >> np.int64(64 - bits)
    return signed
