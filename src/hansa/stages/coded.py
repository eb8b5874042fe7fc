"""Contributions that are written down each by itself, with a scale of their own: what does not add up.

    encode   a = x + memory,  written a          memory ← a − read(written a), if there is error feedback
    decode   read, one by one, before a reducer that sees each

A `Code` says how one vector is written; `Coded` is the step that all such stages share.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from hansa.core.errors import UpdateRejected
from hansa.core.pipeline import Sensitivity, Setting, Signal, Step
from hansa.core.tensors import Array, Shapes, Tensors
from hansa.stages.flat import Flat
from hansa.stages.sum import rounding_of_sum

TINY = 1e-30  # a norm below which a vector is written as zeros: a float32 cannot be divided by it


class Code(ABC):
    """A way to write vectors of one size as a few arrays.

    `shapes` are theirs; names begin with a colon. `growth` is the most by which what is read is longer than what was
    written (L2); `error` the most by which one coordinate differs from the code's plaintext reference, relative to
    the L2 norm.
    """

    shapes: Shapes
    growth: float
    error: float

    @abstractmethod
    def write(self, vector: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """A finite vector of floats as arrays of exactly these shapes."""

    @abstractmethod
    def read(self, arrays: Mapping[str, Array]) -> np.ndarray:
        """The vector, from arrays of these shapes; UpdateRejected if nobody could have written them."""


class Coded(Step):
    """Writes the float tensors of each part by a code of its own.

    Args:
      signal, setting: as they are bound.
      flats: the parts to write.
      code: the code for a part's vectors.
      error_feedback: whether what is lost is kept in the worker's memory and added to its next contribution.
    """

    def __init__(
        self,
        signal: Signal,
        setting: Setting,
        flats: Sequence[Flat],
        code: Callable[[Flat], Code],
        error_feedback: bool = False,
    ) -> None:
        self._codes = [(flat, code(flat)) for flat in flats]
        self._error_feedback = error_feedback
        # What the reducer adds are floats again, which the bytes of the signal do not tell it.
        self._rounding = {flat.name: rounding_of_sum(signal.parts[flat.name], setting) for flat in flats}
        parts = {}
        for flat, how in self._codes:
            part = signal.parts[flat.name]
            l2 = float("inf") if error_feedback else part.l2 * how.growth
            parts[flat.name] = flat.part(part, how.shapes, domain="bytes", additive=False, l2=l2, linf=l2)
        super().__init__(signal.with_(**parts))
        self.error = {flat.name: how.error * signal.parts[flat.name].l2 for flat, how in self._codes if how.error}

    def settle(self, sensitivity: Sensitivity) -> Sensitivity:
        return {name: norm * self._rounding.get(name, 1.0) for name, norm in sensitivity.items()}

    def encode(
        self, x: Tensors, state: Tensors, memory: Tensors, rngs: Sequence[np.random.Generator]
    ) -> tuple[Tensors, Tensors]:
        kept = {}
        for flat, code in self._codes:
            vectors = flat.joined(x)
            if self._error_feedback and flat.name in memory:
                vectors += np.asarray(memory[flat.name])
            written = [code.write(vector, rng) for vector, rng in zip(vectors, rngs, strict=True)]
            x = flat.coded(x, {name: np.stack([arrays[name] for arrays in written]) for name in code.shapes})
            if self._error_feedback:
                kept[flat.name] = vectors - np.stack([code.read(arrays) for arrays in written])
        return x, Tensors(kept)

    def decode_one(self, x: Tensors, state: Tensors) -> Tensors:
        for flat, code in self._codes:
            arrays = {name: np.asarray(x[f"{flat.name}/{name}"]) for name in code.shapes}
            for name, array in arrays.items():
                if array.shape != code.shapes[name][0]:
                    raise UpdateRejected(f"'{flat.name}/{name}' has {array.size} bytes, not {code.shapes[name][0][0]}.")
            x = flat.restored(x, code.read(arrays), list(code.shapes))
        return x
