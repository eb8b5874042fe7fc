"""Differences from the last round's mean: what lies around it can be clipped more tightly than what lies around zero.

encode   x ← x − v          decode   total ← total + n·v          v ← total / n, public, zero at first
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from hansa.core.pipeline import Decoding, Sensitivity, Setting, Signal, Stage, Step, fault
from hansa.core.tensors import Tensors


@dataclass(frozen=True)
class Centre(Stage):
    """Takes the last mean from each contribution and gives it back to the total: the memory of centred clipping.

    The last mean is public and travels with each task: going down, a round costs about twice the bytes.

    Guarantees:
      With an additive reducer it changes nothing but rounding. With `CentredClipping` or `NormBound` behind it, what a
      liar sends instead is clipped around the last mean all the same.

    Source: Karimireddy, He and Jaggi 2021, Learning from History for Byzantine Robust Optimization,
    https://arxiv.org/abs/2012.10333
    """

    alone = False

    def bind(self, signal: Signal, setting: Setting) -> Step:
        """Refuses sums that are not divided yet or hold integers, and updates that were centred on an older mean."""
        if not signal.divided or "weight" in signal.parts:
            raise fault("Centre takes the mean of contributions that count the same: put it behind UniformMean().")
        if any(signal.parts[name].domain != "real" for name in signal.averaged):
            raise fault("Centre cannot take a mean from integers: put it before Quantise.")
        if setting.sampling.max_staleness:
            raise fault("Centre moves with each round, which stale updates do not know: set max_staleness=0.")
        parts = {name: replace(signal.parts[name], l2=math.inf, linf=math.inf) for name in signal.averaged}
        return _Centred(signal.with_(**parts), setting.sampling.kind == "poisson")


class _Centred(Step):
    def __init__(self, out: Signal, over_expected: bool) -> None:
        super().__init__(out)
        self._over_expected = over_expected
        self._shapes = {name: at for name, at in out.shapes.items() if name.split("/", 1)[0] in out.averaged}

    def settle(self, sensitivity: Sensitivity) -> Sensitivity:
        # What is public next is taken from this total: noise that is added to it later would come too late.
        return {**sensitivity, **dict.fromkeys(self.out.averaged, math.inf)}

    def start(self) -> Tensors:
        return Tensors({name: np.zeros(shape, dtype) for name, (shape, dtype) in self._shapes.items()})

    def encode(
        self, x: Tensors, state: Tensors, memory: Tensors, rngs: Sequence[np.random.Generator]
    ) -> tuple[Tensors, Tensors]:
        return x.updated({name: x[name] - state[name] for name in self._shapes}), memory

    def decode_total(self, total: Tensors, state: Tensors, round: Decoding) -> tuple[Tensors, Tensors]:
        count = round.expected if self._over_expected else float(round.count)
        if not count:
            return total, state
        whole = {name: np.asarray(total[name] + state[name] * count, at[1]) for name, at in self._shapes.items()}
        return total.updated(whole), Tensors({name: whole[name] / count for name in whole}).map(np.asarray)
