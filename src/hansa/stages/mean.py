"""The mean of what the reducer adds up: weighted by examples, or the same for everyone.

    weighted   encode: x ← w·x          decode: total / Σw
    uniform    encode: drops the weight  decode: total / count

The mean stage alone decides weighting. Metrics are sums of numerators and denominators and pass through.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from hansa.core.errors import ConfigError
from hansa.core.pipeline import Decoding, Setting, Signal, Stage, Step, fault
from hansa.core.tensors import Array, Tensors


@dataclass(frozen=True)
class WeightedMean(Stage):
    """Σ w·x / Σ w over the contributions, w being the update's weight (its number of examples).

    Args:
      max_weight: weights above it count as this much; bounds what one client can move.

    Guarantees:
      A round in which every weight is 0 gives zeros, not NaN.

    Source: McMahan et al. 2017, algorithm 1, https://arxiv.org/abs/1602.05629
    """

    max_weight: float = field(default=math.inf, kw_only=True)
    alone = False

    def __post_init__(self) -> None:
        if not self.max_weight > 0:
            raise ConfigError(f"max_weight={self.max_weight}: weights are above 0.")

    def bind(self, signal: Signal, setting: Setting) -> Step:
        """Refuses algorithms that need a uniform mean, and a signal without weights."""
        if setting.algorithm.needs_uniform:
            name = type(setting.algorithm).__name__
            raise fault(f"{name} needs every client to count the same: use UniformMean() instead of WeightedMean().")
        if signal.divided or "weight" not in signal.parts:
            raise fault("WeightedMean finds a mean before it already: keep one mean in the pipeline.")
        if setting.algorithm.discounts:
            name = type(setting.algorithm).__name__
            raise fault(
                f"{name} discounts stale updates over their count: use UniformMean() instead of WeightedMean()."
            )
        weight = signal.parts["weight"]
        most = min(self.max_weight, weight.linf)
        parts = {"weight": replace(weight, l2=most, linf=most)}
        averaged = _averaged(signal)
        for name in averaged:
            part = signal.parts[name]
            parts[name] = replace(part, l2=_times(part.l2, most), linf=_times(part.linf, most))
        return _Weighted(replace(signal.with_(**parts), divided=True), averaged, most)


def _averaged(signal: Signal) -> tuple[str, ...]:
    """The parts that are averaged; JobError if one of them holds integers, which have no mean of their own kind."""
    for part in signal.averaged:
        for name, (_, dtype) in signal.parts[part].shapes.items():
            if not dtype.startswith("float") and signal.parts[part].domain == "real":
                raise fault(f"'{name}' is {dtype}, and only floats can be averaged: make it FROZEN, or a float.")
    return signal.averaged


class _Weighted(Step):
    def __init__(self, out: Signal, averaged: Sequence[str], most: float) -> None:
        super().__init__(out)
        self._averaged, self._most = frozenset(averaged), most

    def encode(
        self, x: Tensors, state: Tensors, memory: Tensors, rngs: Sequence[np.random.Generator]
    ) -> tuple[Tensors, Tensors]:
        weight = np.minimum(np.asarray(x["weight/weight"]), self._most)
        scaled = {name: _scaled(x[name], weight[:, 0]) for name in x if name.split("/", 1)[0] in self._averaged}
        return x.updated({**scaled, "weight/weight": weight}), memory

    def decode_total(self, total: Tensors, state: Tensors, round: Decoding) -> tuple[Tensors, Tensors]:
        weight = float(total["weight/weight"][0])
        return _divided(total, self._averaged, weight), state


@dataclass(frozen=True)
class UniformMean(Stage):
    """Σ x / n: every contribution counts the same, and no weight is sent.

    Guarantees:
      Under differential privacy n is the expected cohort, which is public, not the count, which is not.
    """

    alone = False

    def bind(self, signal: Signal, setting: Setting) -> Step:
        """Takes the weight out of the signal."""
        if signal.divided or "weight" not in signal.parts:
            raise fault("UniformMean finds a mean before it already: keep one mean in the pipeline.")
        return _Uniform(
            replace(signal.without("weight"), divided=True), _averaged(signal), setting.sampling.kind == "poisson"
        )


class _Uniform(Step):
    def __init__(self, out: Signal, averaged: Sequence[str], over_expected: bool) -> None:
        super().__init__(out)
        self._averaged, self._over_expected = frozenset(averaged), over_expected

    def encode(
        self, x: Tensors, state: Tensors, memory: Tensors, rngs: Sequence[np.random.Generator]
    ) -> tuple[Tensors, Tensors]:
        return x.without("weight"), memory

    def decode_total(self, total: Tensors, state: Tensors, round: Decoding) -> tuple[Tensors, Tensors]:
        count = round.expected if self._over_expected else round.count
        return _divided(total, self._averaged, float(count)), state


def _scaled(array: Array, weight: np.ndarray) -> Array:
    shape = (len(weight),) + (1,) * (array.ndim - 1)
    return array * weight.astype(array.dtype).reshape(shape)


def _divided(total: Tensors, averaged: frozenset[str], divisor: float) -> Tensors:
    """The averaged parts over `divisor`, in place; zeros where it is 0."""
    for name in total:
        if name.split("/", 1)[0] in averaged:
            array = total[name]
            if divisor == 0:
                array[...] = 0
            else:
                array /= divisor
    return total


def _times(bound: float, factor: float) -> float:
    return 0.0 if bound == 0 else bound * factor
