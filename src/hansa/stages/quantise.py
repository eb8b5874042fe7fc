"""Stochastic uniform quantisation to integers on one grid, so that contributions add up exactly.

    L = 2^(bits−1) − 1,  step = bound / L          encode: q = ⌊x/step + u⌋, u uniform in [0, 1)       decode: step · Σ
    q

The scale comes from the bound that an earlier clip declared, before data, and is the same for everyone: sums of
integers are then sums of values. E[step·q] = x, and |step·q − x| < step for every coordinate whatever u was.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from hansa.core.errors import ConfigError
from hansa.core.pipeline import Decoding, Part, Sensitivity, Setting, Signal, Stage, Step, fault
from hansa.core.tensors import BLOCK, Array, Shapes, Tensors
from hansa.stages.flat import stacked
from hansa.stages.sum import likely_most, rounding_of_sum, unit

_SMALL = 127  # levels up to which float32 is calculated in
_LEAST = 1e-30  # a step by which a float32 can be divided
_PIECE = 1 << 16  # floats that stay in the cache


@dataclass(frozen=True)
class Quantise(Stage):
    """Rounds bounded parts at random to integers of `bits` bits, without bias.

    Upwards every part that is averaged and has a declared bound is rounded; `value` must have one. What has none
    (buffers, weight, metrics) travels as it is. In `down`, where one sender adds nothing up, each tensor's own largest
    magnitude is the bound, and travels with it.

    Args:
      bits: of one contribution's coordinate, sign included; 2 to 32. On the wire it takes the smallest of 8, 16 and 32
        bits that holds it; `Pack`, or a reducer that packs, takes no more than these.

    Guarantees:
      Error below one step a coordinate and contribution, with mean 0: bound / (2^(bits−1) − 1). The sum over the
      largest possible cohort fits 64 bits. One client changes a decoded total by at most l2 + step·√d, whatever its
      rounding was, since the randomness is of the job's seed and protects nobody; that is the sensitivity the noise is
      measured by.

    | use | bits |
    |---|---|
    | with noise, no loss to speak of | 16 to 20 |
    | a quarter of the bytes | 8 |

    Source: Alistarh et al. 2017, QSGD, https://arxiv.org/abs/1610.02132, with the shared scale of Konečný et al. 2016,
    https://arxiv.org/abs/1610.05492
    """

    bits: int

    def __post_init__(self) -> None:
        if not (isinstance(self.bits, int) and 2 <= self.bits <= 32):
            raise ConfigError(f"bits={self.bits}: choose a whole number from 2 (sign and one level) to 32.")

    def bind(self, signal: Signal, setting: Setting) -> Step:
        """Refuses a value without a bound, one that is integers already, and a sum that would overflow."""
        if "value" not in signal.parts:
            return _Downwards(signal, self._levels)
        value, faults = signal.parts["value"], []
        if value.domain != "real":
            raise fault("Quantise finds integers already: keep one Quantise in the pipeline.")
        if math.isinf(value.linf):
            faults.append(
                "Quantise finds no bound on the update, so clients would share no grid: put Clip before it; give "
                "WeightedMean max_weight=... too, or leave TopK's error feedback out."
            )
        if setting.most * self._levels >= 1 << 62:
            faults.append(f"the sum of {setting.most} contributions of {self.bits} bits may overflow: lower bits.")
        if faults:
            raise fault(*faults)
        return _Quantised(signal, self._levels, setting)

    @property
    def _levels(self) -> int:
        return (1 << (self.bits - 1)) - 1


class _Quantised(Step):
    def __init__(self, signal: Signal, levels: int, setting: Setting) -> None:
        names = [name for name in signal.averaged if _bounded(signal.parts[name])]
        self._levels = levels
        self._steps = {name: signal.parts[name].linf / levels for name in names}
        self._dtypes = {
            f"{name}/{tensor}": dtype for name in names for tensor, (_, dtype) in _floats(signal.parts[name])
        }
        # The decoded total is rounded to its own type: at most one unit of a vector no longer than the cohort's sum.
        self._rounding = {name: 1 + 2 * unit(signal.parts[name]) * likely_most(setting) for name in names}
        for name in names:
            if not signal.parts[name].additive:  # behind a selection, what the reducer adds are decoded floats
                self._rounding[name] *= rounding_of_sum(signal.parts[name], setting)
        super().__init__(signal.with_(**{name: _integers(signal.parts[name], levels) for name in names}))
        self.error = dict(self._steps)

    def settle(self, sensitivity: Sensitivity) -> Sensitivity:
        widened = {name: sensitivity[name] * step * self._rounding[name] for name, step in self._steps.items()}
        return {**sensitivity, **widened}

    def encode(
        self, x: Tensors, state: Tensors, memory: Tensors, rngs: Sequence[np.random.Generator]
    ) -> tuple[Tensors, Tensors]:
        coded = {}
        for name in self._dtypes:
            step = self._steps[name.split("/", 1)[0]]
            coded[name] = stacked([rounded(x[name][i], step, self._levels, rng) for i, rng in enumerate(rngs)])
        return x.updated(coded), memory

    def decode_one(self, x: Tensors, state: Tensors) -> Tensors:
        return x.updated({name: self._decoded(name, x[name]) for name in self._dtypes})

    def decode_total(self, total: Tensors, state: Tensors, round: Decoding) -> tuple[Tensors, Tensors]:
        return self.decode_one(total, state), state

    def _decoded(self, name: str, array: Array) -> np.ndarray:
        """Block by block, so that no float64 copy of a whole tensor is made."""
        out = np.empty(np.shape(array), self._dtypes[name])
        given, flat, step = np.asarray(array).reshape(-1), out.reshape(-1), self._steps[name.split("/", 1)[0]]
        for at in range(0, len(flat), BLOCK):
            flat[at : at + BLOCK] = given[at : at + BLOCK] * step
        return out


class _Downwards(Step):
    """Each tensor on its own grid; the grids' steps travel in the part `scale`."""

    def __init__(self, signal: Signal, levels: int) -> None:
        self._levels, self._dtypes = levels, {}
        parts: dict[str, Part] = {}
        for name, part in signal.parts.items():
            if part.domain == "real":
                parts[name] = _integers(replace(part, l2=math.inf, linf=math.inf), levels)
                self._dtypes.update({f"{name}/{tensor}": dtype for tensor, (_, dtype) in _floats(part)})
        scales = dict.fromkeys(self._dtypes, ((1,), "float64"))
        super().__init__(signal.with_(**parts, scale=Part(shapes=scales, bits=64, additive=False)))

    def encode(
        self, x: Tensors, state: Tensors, memory: Tensors, rngs: Sequence[np.random.Generator]
    ) -> tuple[Tensors, Tensors]:
        coded: dict[str, np.ndarray] = {}
        for name in self._dtypes:
            arrays = np.asarray(x[name])
            steps = [float(np.max(np.abs(array), initial=0.0)) / self._levels for array in arrays]
            pairs = zip(arrays, steps, rngs, strict=True)
            coded[name] = stacked([rounded(array, step, self._levels, rng) for array, step, rng in pairs])
            coded[f"scale/{name}"] = np.array(steps)[:, None]
        return x.updated(coded), memory

    def decode_one(self, x: Tensors, state: Tensors) -> Tensors:
        whole = {name: (x[name] * x[f"scale/{name}"][0]).astype(dtype) for name, dtype in self._dtypes.items()}
        return x.updated(whole).without("scale")


def _bounded(part: Part) -> bool:
    return part.domain == "real" and math.isfinite(part.linf)


def _floats(part: Part) -> list[tuple[str, tuple[tuple[int, ...], str]]]:
    """The part's real tensors: behind a selection it also has indices, which stay as they are."""
    return [(name, shape) for name, shape in part.shapes.items() if shape[1].startswith("float")]


def _integers(part: Part, levels: int) -> Part:
    dtype = _wire(levels)
    coded = {name: (shape, dtype) for name, (shape, _) in _floats(part)}
    shapes: Shapes = {**part.shapes, **coded}
    size = sum(math.prod(shape) * np.dtype(kind).itemsize for shape, kind in shapes.values())
    count = sum(math.prod(shape) for _, (shape, _) in _floats(part))
    # The quotient x/step is itself rounded, and so is what is added to it: to 2⁻¹⁵ at most where it is a float32.
    slack = 2.0**-50 if levels > _SMALL else 2.0**-15
    l2 = (part.l2 * levels / part.linf if part.linf else 0.0) * (1 + slack) + math.sqrt(count) * (1 + slack)
    return replace(
        part, shapes=shapes, domain="integer", bits=8 * size / part.count if part.count else 0.0,
        l2=min(l2, levels * math.sqrt(count)), linf=float(levels),
    )  # fmt: skip


def _wire(levels: int) -> str:
    return next(name for name in ("int8", "int16", "int32") if levels <= np.iinfo(name).max)


def rounded(array: Array, step: float, levels: int, rng: np.random.Generator) -> np.ndarray:
    """One contribution's tensor on the grid, at random: ⌊x/step + u⌋, cut to −levels … levels; zeros where step is 0.

    Block by block, since what it is calculated in is up to eight times as large: float64, or float32 where that tells
    the levels of a float32 apart by 2⁻¹⁷ of a step, which is all the bias there is.
    """
    flat = np.asarray(array).reshape(-1)
    out = np.zeros(np.shape(array), _wire(levels))
    if not step > 0:
        return out
    small = levels <= _SMALL and flat.dtype == np.float32 and step > _LEAST
    kind, coded = np.float32 if small else np.float64, out.reshape(-1)
    for at in range(0, len(flat), _PIECE):
        block = np.divide(flat[at : at + _PIECE], kind(step), dtype=kind)
        block += rng.random(len(block), dtype=kind)
        np.floor(block, out=block)
        coded[at : at + _PIECE] = np.clip(block, -levels, levels, out=block)
    return out
