"""The sum of contributions none of which is longer than a bound: the server holds clients to what `Clip` promised.

total = Σ xᵢ · min(1, bound / ‖xᵢ‖)          each part by itself
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np

from hansa.core.errors import ConfigError, require
from hansa.core.pipeline import Arrived, Reducer, Seat, Sensitivity, Server, Setting, Signal, fault
from hansa.core.tensors import Tensors, squares
from hansa.privacy.threats import OPEN, Sees
from hansa.stages.sum import Sum


@dataclass(frozen=True)
class NormBound(Reducer):
    """Adds contributions as `Sum` does, each cut to a bound first; what is within it goes through bit for bit.

    Stages such as `Clip` run at workers, and a liar leaves them out. Here the server looks, so that the declared bound
    is a fact: the noise of `Gaussian` is then enough against clients who lie, too.

    Args:
      bound: on the L2 norm of each part, in the unit of the update; None takes what the stages declare for each.
      drop: whether what is longer counts as zeros (zeroing) instead of being scaled down.

    Guarantees:
      Breakdown point 0, but each of n contributions moves the mean by at most bound / n, whatever it is. Metrics pass
      as they are. It adds as messages come: the memory is that of two models, whatever the cohort.

    Source: Sun et al. 2019, Can You Really Backdoor Federated Learning?, https://arxiv.org/abs/1911.07963
    """

    threats: ClassVar[tuple[Sees, ...]] = OPEN

    bound: float | None = None
    drop: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        inside = self.bound is None or 0 < self.bound < math.inf
        require(inside, f"bound={self.bound}: it is finite and above 0, or None for what the stages declare.")

    def bind(self, signal: Signal, setting: Setting) -> "NormBound":
        """The reducer that knows each part's bound; refuses weights and parts without one."""
        faults = []
        if "weight" in signal.parts:
            faults.append("NormBound cannot bound a mean whose weights a liar chooses: put UniformMean() before it.")
        if any(signal.parts[part].modulus is not None for part in signal.averaged):
            faults.append("NormBound cannot measure integers that wrap: leave the clients' noise out, or use Sum().")
        bounds = {}
        for name in signal.averaged:
            part = signal.parts[name]
            bounds[name] = part.l2 if self.bound is None or part.domain != "real" else min(self.bound, part.l2)
            if math.isinf(bounds[name]):
                faults.append(f"NormBound finds no bound on '{name}': put Clip before it, or give one.")
            elif self.bound is not None and part.domain != "real":
                faults.append(
                    f"bound={self.bound} is in the unit of the update, and '{name}' travels as integers: leave it out, "
                    "and what the stages declare holds."
                )
        if faults:
            raise fault(*faults)
        return _Bounded(self.bound, drop=self.drop, bounds=tuple(bounds.items()))

    def server(self, cohort: Sequence[str], seat: Seat | None = None) -> Server:
        """Of the reducer that `bind` gives."""
        raise ConfigError("NormBound knows its bounds once it is bound: use what bind() gives.")


@dataclass(frozen=True)
class _Bounded(NormBound):
    bounds: tuple[tuple[str, float], ...] = field(default=(), kw_only=True)

    def settle(self, signal: Signal, setting: Setting) -> Sensitivity:
        held = {name: replace(signal.parts[name], l2=bound) for name, bound in self.bounds}
        return Sum().settle(signal.with_(**held), setting)

    def server(self, cohort: Sequence[str], seat: Seat | None = None) -> Server:
        adding = Sum().server(cohort, seat)
        next(adding)
        while isinstance(event := (yield None), Arrived):
            adding.send(replace(event, message=self._cut(event.message)))
        try:
            adding.send(event)
        except StopIteration as end:
            total: Tensors = end.value
            return total
        raise AssertionError("a sum ends when its leg is closed")

    def _cut(self, message: Tensors) -> Tensors:
        shorter: dict[str, np.ndarray] = {}
        for part, bound in self.bounds:
            names = [name for name in message.shapes if name.startswith(part + "/")]
            with np.errstate(over="ignore"):
                norm = math.sqrt(sum(squares(block) for name in names for _, block in message.blocks(name)))
            if norm > bound:
                # 2⁻²⁰ is more than float32 loses in one product: rounding must not carry the norm over the bound.
                factor = 0.0 if self.drop else bound / norm * (1 - 2.0**-20)
                shorter.update({name: _scaled(np.asarray(message[name]), factor) for name in names})
        return message.updated(shorter) if shorter else message


def _scaled(array: np.ndarray, factor: float) -> np.ndarray:
    """Integers are cut towards zero, and stay what they are."""
    scaled: np.ndarray = np.multiply(array, factor)
    return (scaled if array.dtype.kind == "f" else np.trunc(scaled)).astype(array.dtype, copy=False)
