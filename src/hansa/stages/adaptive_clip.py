"""Clipping to a quantile of the norms, which is found while training.

    encode   x ← x · min(1, C/‖x‖) / C          b ← 1 if ‖x‖ ≤ C else 0, sent as b − 1/2
    decode   x̄ ← C · x̄                          C ← C · exp(−η · (b̄ − γ))

What travels lies in the unit ball, so that every bound behind this stage is known before data and does not move with C.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from hansa.core.errors import ConfigError
from hansa.core.pipeline import Decoding, Part, Setting, Signal, Stage, Step, fault
from hansa.core.tensors import Tensors
from hansa.privacy.checks import positive
from hansa.stages.clip import WITHIN, client_norms

BELOW = "below"
"""The side value: whether a contribution's norm was within the bound, less one half."""

_SAFE = 1 - 2.0**-20  # more than float32 loses in one product: rounding must not carry a norm over 1


@dataclass(frozen=True)
class AdaptiveClip(Stage):
    """Clips the value to a bound that follows a quantile of the cohort's norms. Sides are clipped to it too, each by
    itself.

    Args:
      initial: the first round's bound, in the unit of the update; above 0.
      quantile: γ, the share of contributions that the bound should leave whole; in [0, 1].
      learning_rate: η of the geometric update; above 0.

    Guarantees:
      A contribution decodes to norm at most C. Without `Gaussian` behind it the count is exact and is itself a release;
      with it the count is noised and paid for out of the same multiplier (see `Gaussian`). The bound is public: workers
      are told it with each task.

    Source: Andrew et al. 2021, Differentially Private Learning with Adaptive Clipping, https://arxiv.org/abs/1905.03871
    """

    initial: float
    quantile: float = field(default=0.5, kw_only=True)
    learning_rate: float = field(default=0.2, kw_only=True)
    alone = False

    def __post_init__(self) -> None:
        positive(initial=self.initial, learning_rate=self.learning_rate)
        if not 0 <= self.quantile <= 1:
            raise ConfigError(f"quantile={self.quantile}: it lies in [0, 1].")

    def bind(self, signal: Signal, setting: Setting) -> Step:
        """Refuses a signal that is already weighted, clipped or rounded, and updates clipped to an older bound."""
        if signal.divided or "weight" not in signal.parts:
            raise fault("AdaptiveClip after a mean would clip what is already scaled: put AdaptiveClip first.")
        value = signal.parts["value"]
        if value.domain != "real" or not value.additive:
            raise fault("AdaptiveClip cannot bound what is already rounded or selected: put AdaptiveClip first.")
        if BELOW in signal.parts or not math.isinf(value.l2):
            raise fault("AdaptiveClip after another clip would follow the quantile of clipped norms: keep one of them.")
        if setting.sampling.max_staleness:
            raise fault(
                "AdaptiveClip moves its bound, which stale updates do not know: set max_staleness=0, or use Clip."
            )
        names = [name for name in signal.averaged if name not in ("buffers", WITHIN)]
        parts = {name: replace(signal.parts[name], l2=1.0, linf=1.0) for name in names}
        parts[BELOW] = Part(shapes={"clip": ((1,), "float64")}, bits=64, l2=0.5, linf=0.5)
        return _Adapted(self, signal.with_(**parts), names)


class _Adapted(Step):
    def __init__(self, stage: AdaptiveClip, out: Signal, names: Sequence[str]) -> None:
        super().__init__(out)
        self._stage, self._names = stage, names

    def start(self) -> Tensors:
        return Tensors({"bound": np.array([self._stage.initial])})

    def encode(
        self, x: Tensors, state: Tensors, memory: Tensors, rngs: Sequence[np.random.Generator]
    ) -> tuple[Tensors, Tensors]:
        bound = float(state["bound"][0])
        changed = {}
        for part in self._names:
            tensors = [name for name in x if name.startswith(part + "/")]
            norms = client_norms(x.only(tensors))
            factors = _SAFE / np.maximum(norms, bound)
            for name in tensors:
                shape = (len(factors),) + (1,) * (x[name].ndim - 1)
                changed[name] = x[name] * factors.astype(x[name].dtype).reshape(shape)
            if part == "value":
                changed[f"{BELOW}/clip"] = np.where(norms <= bound, 0.5, -0.5)[:, None]
        return x.updated(changed), memory

    def decode_total(self, total: Tensors, state: Tensors, round: Decoding) -> tuple[Tensors, Tensors]:
        bound = float(state["bound"][0])
        share = float(total[f"{BELOW}/clip"][0]) + 0.5
        for name in total:
            if name.split("/", 1)[0] in self._names:
                array = total[name]
                array *= bound / _SAFE
        bound *= math.exp(-self._stage.learning_rate * (share - self._stage.quantile))
        return total.without(BELOW), Tensors({"bound": np.array([bound])})
