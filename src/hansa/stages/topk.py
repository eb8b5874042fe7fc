"""The largest coordinates alone; what was left out waits at the worker for its next turn.

    a = x + memory          sent: the k largest |a| of each tensor, as indices and values          memory ← a less what
    was sent

Contributions have different indices, so they are made dense one by one before a reducer that sees each.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from hansa.core.errors import ConfigError, UpdateRejected
from hansa.core.pipeline import Setting, Signal, Stage, Step, fault
from hansa.core.tensors import Shapes, Tensors


@dataclass(frozen=True)
class TopK(Stage):
    """Sends a fraction of every tensor of the value, the largest magnitudes; the lower index where two are equal.

    Put it last, behind the mean: what it makes cannot be added. A `Quantise` may follow it where there is no error
    feedback.

    Args:
      fraction: of each tensor's coordinates, in (0, 1]; at least one of them is sent.
      error_feedback: keeps the rest in the worker's memory and adds it to its next update, without which coordinates
        that are never largest are never learnt. It makes the bound on one contribution infinite (noise refuses it).

    Guarantees:
      With error feedback, what is sent and what is kept add up to the update and what was kept before, exactly.

    Sources: Stich et al. 2018, Sparsified SGD with Memory, https://arxiv.org/abs/1809.07599;
    Aji and Heafield 2017, https://arxiv.org/abs/1704.05021
    """

    fraction: float
    error_feedback: bool = field(default=True, kw_only=True)
    remembers = True

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise ConfigError(f"fraction={self.fraction}: it lies in (0, 1].")
        object.__setattr__(self, "remembers", self.error_feedback)

    def bind(self, signal: Signal, setting: Setting) -> Step:
        """Refuses a value that is already integers or selected, and the way down, where a model would lose weights."""
        if "value" not in signal.parts:
            raise fault("TopK in `down` would set most of the model to zero: leave it out, or use Quantise there.")
        value = signal.parts["value"]
        if not value.additive:
            raise fault("TopK finds a selection already: keep one TopK in the pipeline.")
        if value.domain != "real":
            raise fault("TopK after Quantise would select rounded values: put TopK before Quantise, or leave one out.")
        return _Selected(self, signal)


class _Selected(Step):
    def __init__(self, stage: TopK, signal: Signal) -> None:
        value = signal.parts["value"]
        self._stage, self._shapes = stage, value.shapes
        self._sizes = {name: _size(shape, stage.fraction) for name, (shape, _) in value.shapes.items()}
        shapes: dict[str, tuple[tuple[int, ...], str]] = {}
        for name, (shape, dtype) in value.shapes.items():
            shapes[f"{name}:index"] = ((self._sizes[name],), "int32" if math.prod(shape) < 1 << 31 else "int64")
            shapes[f"{name}:value"] = ((self._sizes[name],), dtype)
        count = sum(math.prod(shape) for shape, _ in shapes.values())
        size = sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in shapes.values())
        if stage.error_feedback:
            value = replace(value, l2=math.inf, linf=math.inf)
        part = replace(value, shapes=shapes, additive=False, bits=8 * size / count if count else 0.0)
        super().__init__(signal.with_(value=part))

    def encode(
        self, x: Tensors, state: Tensors, memory: Tensors, rngs: Sequence[np.random.Generator]
    ) -> tuple[Tensors, Tensors]:
        sent, kept = {}, {}
        wire: Shapes = self.out.parts["value"].shapes
        for name, size in self._sizes.items():
            full = x[f"value/{name}"]
            arrays = np.array(full).reshape(len(full), -1)
            if self._stage.error_feedback and name in memory:
                arrays += np.asarray(memory[name]).reshape(arrays.shape)
            indices = np.stack([_largest(row, size) for row in arrays])
            sent[f"value/{name}:index"] = indices.astype(wire[f"{name}:index"][1])
            sent[f"value/{name}:value"] = np.take_along_axis(arrays, indices, axis=1)
            if self._stage.error_feedback:
                np.put_along_axis(arrays, indices, 0, axis=1)
                kept[name] = arrays.reshape(full.shape)
        dense = [f"value/{name}" for name in self._sizes]
        return Tensors({name: x[name] for name in x if name not in dense}).updated(sent), Tensors(kept)

    def decode_one(self, x: Tensors, state: Tensors) -> Tensors:
        whole = {}
        for name, (shape, dtype) in self._shapes.items():
            out = np.zeros(math.prod(shape), dtype)
            indices = np.asarray(x[f"value/{name}:index"])
            if len(indices) and not (indices.min() >= 0 and indices.max() < len(out)):
                raise UpdateRejected(f"'{name}' has an index outside its {len(out)} coordinates.")
            # A peer may name an index twice: the last one counts, so that a bound per coordinate holds.
            out[indices] = x[f"value/{name}:value"]
            whole[f"value/{name}"] = out.reshape(shape)
        return x.without("value").updated(whole)


def _size(shape: Sequence[int], fraction: float) -> int:
    return min(math.prod(shape), max(1, math.ceil(math.prod(shape) * fraction)))


def _largest(row: np.ndarray, size: int) -> np.ndarray:
    """Indices of the largest magnitudes, ascending; ties go to the lower index, on every machine."""
    if size >= len(row):
        return np.arange(len(row))
    magnitudes = np.abs(row)
    least = np.partition(magnitudes, len(row) - size)[len(row) - size]
    above = np.flatnonzero(magnitudes > least)
    level = np.flatnonzero(magnitudes == least)[: size - len(above)]
    return np.sort(np.concatenate([above, level]))
