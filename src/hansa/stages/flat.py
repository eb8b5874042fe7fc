"""The float tensors of one part, end to end as one vector: what rotates, masks or codes a contribution as a whole.

Integers beside them (indices of a selection, counters of a model on its way down) stay as they are.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np

from hansa.core.pipeline import Part, Signal, fault
from hansa.core.tensors import Array, Shapes, Tensors
from hansa.stages.adaptive_clip import BELOW


class Flat:
    """One part's float tensors as vectors of one size, in the order of their names.

    `dtype` is the widest of theirs; `work` the one to calculate in, which is float32 or float64.
    """

    def __init__(self, name: str, part: Part) -> None:
        self.name = name
        self.shapes: Shapes = {tensor: at for tensor, at in sorted(part.shapes.items()) if at[1].startswith("float")}
        self.others: Shapes = {tensor: at for tensor, at in part.shapes.items() if tensor not in self.shapes}
        self.sizes = [math.prod(shape) for shape, _ in self.shapes.values()]
        self.size = sum(self.sizes)
        self.dtype = np.result_type(np.float16, *(dtype for _, dtype in self.shapes.values()))
        self.work = np.result_type(np.float32, self.dtype)

    def joined(self, x: Tensors) -> np.ndarray:
        """Stacked contributions as vectors of the working type: shape (K, size)."""
        names = [f"{self.name}/{tensor}" for tensor in self.shapes]
        arrays = [np.asarray(x[name]) for name in names]
        return np.concatenate([array.reshape(len(array), -1) for array in arrays], axis=1, dtype=self.work)

    def vectors(self, x: Tensors) -> np.ndarray:
        """The same to be read only: no copy where the part is one tensor of the working type."""
        first, *others = self.shapes
        array = np.asarray(x[f"{self.name}/{first}"])
        return self.joined(x) if others or array.dtype != self.work else array.reshape(len(array), -1)

    def split(self, vector: np.ndarray) -> dict[str, np.ndarray]:
        """One vector as the part's tensors, under their flat names."""
        pieces = np.split(vector, np.cumsum(self.sizes)[:-1])
        return {
            f"{self.name}/{tensor}": piece.astype(dtype).reshape(shape)
            for piece, (tensor, (shape, dtype)) in zip(pieces, self.shapes.items(), strict=True)
        }

    def coded(self, x: Tensors, arrays: Mapping[str, Array]) -> Tensors:
        """`x` with these arrays, named within the part, in place of the float tensors."""
        new = {f"{self.name}/{name}": array for name, array in arrays.items()}
        return _exchanged(x, [f"{self.name}/{tensor}" for tensor in self.shapes], new)

    def restored(self, x: Tensors, vector: np.ndarray, coded: Collection[str]) -> Tensors:
        """`x` with the float tensors in place of the arrays `coded`: the opposite of `coded`, for one contribution."""
        return _exchanged(x, [f"{self.name}/{name}" for name in coded], self.split(vector))

    def part(self, part: Part, shapes: Shapes, **changes: object) -> Part:
        """What the part is with arrays of these shapes in place of the float tensors."""
        return shaped(part, {**self.others, **shapes}, **changes)


def stacked(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Rows as one array: the row itself where there is one."""
    return rows[0][None] if len(rows) == 1 else np.stack(rows)


def shaped(part: Part, shapes: Shapes, **changes: object) -> Part:
    """The part with other arrays, whose bits for each coordinate are counted."""
    count = sum(math.prod(shape) for shape, _ in shapes.values())
    size = sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in shapes.values())
    return replace(part, shapes=shapes, bits=8 * size / count if count else 0.0, **changes)  # type: ignore[arg-type]


def flats(signal: Signal, stage: str) -> list[Flat]:
    """What a stage codes: upwards the value and the side values, never buffers; downwards every part.

    Raises:
      JobError: the value is integers or bytes already.
    """
    if "value" in signal.parts and signal.parts["value"].domain != "real":
        raise fault(f"{stage} finds the value rounded already: put {stage} before what rounds, or leave one out.")
    names = [name for name in signal.averaged if name not in ("buffers", BELOW)]
    found = [Flat(name, signal.parts[name]) for name in names if signal.parts[name].domain == "real"]
    return [flat for flat in found if flat.size]


def _exchanged(x: Tensors, old: Collection[str], new: Mapping[str, Array]) -> Tensors:
    gone = frozenset(old)
    return Tensors({**{name: x[name] for name in x if name not in gone}, **new})
