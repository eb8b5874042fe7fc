"""Zeroing: a contribution with a coordinate that is far too large counts as zeros.

    encode   x ← 0 if ‖x‖∞ > factor·B + increment          b ← 1 if ‖x‖∞ ≤ B else 0, sent as b − 1/2
    decode   B ← B · exp(−η · (b̄ − γ))

Against the client whose hardware or code is broken, not the one who is clever: clipping (behind it) is for that.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from hansa.core.errors import ConfigError
from hansa.core.pipeline import Decoding, Part, Setting, Signal, Stage, Step, fault
from hansa.core.tensors import Tensors
from hansa.privacy.checks import positive
from hansa.stages.clip import WITHIN


@dataclass(frozen=True)
class Zeroing(Stage):
    """Replaces outlying contributions, value and sides together, by zeros: `[Zeroing(1.0), AdaptiveClip(0.1), …]`.

    Args:
      initial: B, the first round's bound on the largest magnitude of a coordinate; above 0.
      quantile: γ, the share of contributions that lie within B; in [0, 1].
      learning_rate: η of the geometric update; 0 keeps B as it is, and then nothing is sent beside the value.
      factor, increment: a contribution is zeroed beyond factor·B + increment.

    Guarantees:
      NaN and infinity are refused before any stage, so what is left is finite. Without noise behind it the count is
      exact and is itself a release; with it the count is noised and paid for out of the same multiplier. B is public.

    Source: Andrew et al. 2021, Differentially Private Learning with Adaptive Clipping, https://arxiv.org/abs/1905.03871,
    for the quantile; the defaults are those of TensorFlow Federated
    """

    initial: float
    quantile: float = field(default=0.98, kw_only=True)
    learning_rate: float = field(default=math.log(10), kw_only=True)
    factor: float = field(default=2.0, kw_only=True)
    increment: float = field(default=1.0, kw_only=True)
    alone = False

    def __post_init__(self) -> None:
        positive(initial=self.initial)
        if not 0 <= self.quantile <= 1:
            raise ConfigError(f"quantile={self.quantile}: it lies in [0, 1].")
        for name, least in (("learning_rate", 0.0), ("factor", 1.0), ("increment", 0.0)):
            number = getattr(self, name)
            if not (number >= least and math.isfinite(number)):
                raise ConfigError(f"{name}={number}: it is finite and at least {least:g}.")

    def bind(self, signal: Signal, setting: Setting) -> Step:
        """Refuses a signal that is already weighted, clipped or rounded, and updates zeroed by an older bound."""
        if signal.divided or "weight" not in signal.parts:
            raise fault("Zeroing after a mean would look at what is already scaled: put Zeroing first.")
        value = signal.parts["value"]
        if value.domain != "real" or not value.additive or not math.isinf(value.l2) or WITHIN in signal.parts:
            raise fault("Zeroing after a clip, a rounding or another Zeroing finds no outliers: put Zeroing first.")
        if self.learning_rate and setting.sampling.max_staleness:
            raise fault("Zeroing moves its bound, which stale updates do not know: set learning_rate=0.")
        names = [name for name in signal.averaged if name != "buffers"]
        parts = {}
        if self.learning_rate:
            parts[WITHIN] = Part(shapes={"zeroing": ((1,), "float64")}, bits=64, l2=0.5, linf=0.5)
        else:
            most = self.factor * self.initial + self.increment
            parts = {name: replace(signal.parts[name], linf=most) for name in names}
        return _Zeroed(self, signal.with_(**parts), names)


class _Zeroed(Step):
    def __init__(self, stage: Zeroing, out: Signal, names: Sequence[str]) -> None:
        super().__init__(out)
        self._stage, self._names = stage, names

    def start(self) -> Tensors:
        return Tensors({"bound": np.array([self._stage.initial])})

    def encode(
        self, x: Tensors, state: Tensors, memory: Tensors, rngs: Sequence[np.random.Generator]
    ) -> tuple[Tensors, Tensors]:
        bound, changed = float(state["bound"][0]), {}
        tensors = [name for name in x if name.split("/", 1)[0] in self._names]
        largest = np.zeros(len(rngs))
        for name in tensors:
            arrays = np.asarray(x[name]).reshape(len(rngs), -1)
            largest = np.maximum(largest, np.abs(arrays).max(axis=1, initial=0.0))
        out = largest > self._stage.factor * bound + self._stage.increment
        if out.any():
            for name in tensors:
                changed[name] = np.array(x[name])
                changed[name][out] = 0
        if self._stage.learning_rate:
            changed[f"{WITHIN}/zeroing"] = np.where(largest <= bound, 0.5, -0.5)[:, None]
        return x.updated(changed), memory

    def decode_total(self, total: Tensors, state: Tensors, round: Decoding) -> tuple[Tensors, Tensors]:
        if not self._stage.learning_rate:
            return total, state
        share = float(total[f"{WITHIN}/zeroing"][0]) + 0.5
        bound = float(state["bound"][0]) * math.exp(-self._stage.learning_rate * (share - self._stage.quantile))
        return total.without(WITHIN), Tensors({"bound": np.array([bound])})
