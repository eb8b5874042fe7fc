"""Laplace noise of the server: central differential privacy with a pure ε.

    release of part p:   Σ xₚ + Lap(bₚ)ᵈ,   bₚ = z·P·S₁ₚ,   S₁ₚ = √dₚ·S₂ₚ

S₂ is the L2 norm by which one client can change the decoded total of a part, S₁ the L1 norm that follows for its d
coordinates; P is the number of parts, among which ε is shared. Noise grows with √d, so that this is for few coordinates
(statistics, small linear models): elsewhere `Gaussian` is better.

Source: Dwork, McSherry, Nissim and Smith 2006, Calibrating Noise to Sensitivity, https://doi.org/10.1007/11681878_14
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hansa.core.ledger import Event
from hansa.core.pipeline import Decoding, Sensitivity, Setting, Signal, Stage, Step, fault
from hansa.core.tensors import Tensors
from hansa.privacy.checks import positive
from hansa.privacy.noise import Laplaces
from hansa.privacy.threats import CENTRAL, Sees
from hansa.stages.noise import amplified, measured, noised, protectable, unbounded


@dataclass(frozen=True)
class Laplace(Stage):
    """Adds Laplace noise to the decoded total: `[Clip(C), UniformMean(), Laplace(z)]`; one round costs ε = 1/z.

    Args:
      noise_multiplier: z, the noise's scale per unit of L1 sensitivity, all parts together; above 0.

    Guarantees:
      As those of `Gaussian`.
    """

    threats: ClassVar[tuple[Sees, ...]] = CENTRAL

    noise_multiplier: float
    alone = False

    def __post_init__(self) -> None:
        positive("; leave Laplace out for no noise", noise_multiplier=self.noise_multiplier)

    def bind(self, signal: Signal, setting: Setting) -> Step:
        """Refuses what noise cannot protect: unbounded, weighted, rounded or selected contributions, and buffers."""
        return _Laplace(self.noise_multiplier, protectable(signal, "Laplace"), setting)


class _Laplace(Step):
    def __init__(self, multiplier: float, out: Signal, setting: Setting) -> None:
        super().__init__(out)
        self._multiplier, self._setting = multiplier, setting
        self._scales: dict[str, float] = {}
        self._detail = ""

    def settle(self, sensitivity: Sensitivity) -> Sensitivity:
        """Sets every part's noise, now that it is known what one client can change."""
        names = [name for name in self.out.averaged if sensitivity.get(name, math.inf) > 0]
        for name in names:
            if math.isinf(sensitivity.get(name, math.inf)):
                raise fault(unbounded("Laplace", name))
        l1 = {name: sensitivity[name] * math.sqrt(self.out.parts[name].count) for name in names}
        self._scales = {name: self._multiplier * len(names) * l1[name] for name in names}
        self._detail = measured(self._scales, l1)
        return sensitivity

    def encode(
        self, x: Tensors, state: Tensors, memory: Tensors, rngs: Sequence[np.random.Generator]
    ) -> tuple[Tensors, Tensors]:
        return x.without("metric"), memory

    def decode_total(self, total: Tensors, state: Tensors, round: Decoding) -> tuple[Tensors, Tensors]:
        return noised(total, self._scales, Laplaces(round.secret("noise"))), state

    def events(self) -> tuple[Event, ...]:
        kind, rate = amplified(self._setting)
        return (
            Event(
                mechanism="laplace", noise_multiplier=self._multiplier, sampling=kind, rate=rate, detail=self._detail
            ),
        )
