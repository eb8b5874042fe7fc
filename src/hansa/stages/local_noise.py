"""Noise of each worker on its own contribution: local differential privacy, which protects from the server too.

    encode   x + σ·N(0, I),  σ = z·2C          Gaussian: (ε, δ)
    encode   x + b·Lap(1)ᵈ,  b = 2·S₁/ε        Laplace: ε alone, S₁ the L1 norm of one contribution, at most √d·C

One contribution may be replaced by any other: it moves by at most twice its bound. The mean over n clients has noise of
σ/√n, √n times that of the server's noise for the same ε. Drawn at the worker from its own operating system, never from
the job's seed, so that two runs of a job differ. The ledger tells it apart from central privacy.

Sources: Duchi, Jordan and Wainwright 2013, https://arxiv.org/abs/1302.3203; Dwork and Roth 2014, theorem A.1,
https://doi.org/10.1561/0400000042; Balle and Wang 2018, https://arxiv.org/abs/1805.06530
"""

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from hansa.core.ledger import Event
from hansa.core.pipeline import Part, Sensitivity, Setting, Signal, Stage, Step
from hansa.core.sampling import Stream
from hansa.core.tensors import Tensors
from hansa.privacy import noise
from hansa.privacy.accountant import LOCAL
from hansa.privacy.calibrate import analytic_gaussian, classic_gaussian
from hansa.privacy.checks import positive
from hansa.privacy.noise import Deviates, Laplaces, Normals, add_noise
from hansa.privacy.threats import OWN, Sees
from hansa.stages.noise import protectable


@dataclass(frozen=True)
class LocalGaussian(Stage):
    """Adds normal noise to each contribution at its worker: `[Clip(C), UniformMean(), LocalGaussian(z)]`.

    Args:
      noise_multiplier: z, standard deviations per unit of 2C, by which one contribution can differ from another; above
        0. With P averaged parts a contribution as a whole has z/√P, which is what the ledger says.

    Guarantees:
      Whoever sees a contribution, as the server does under `Sum`, learns from one round what `LocalGaussian.calibrated`
      was asked for, and from all rounds what the ledger's ε says, as if every client were in every round.
    """

    threats: ClassVar[tuple[Sees, ...]] = OWN

    noise_multiplier: float

    def __post_init__(self) -> None:
        positive(noise_multiplier=self.noise_multiplier)

    @staticmethod
    def calibrated(epsilon: float, delta: float, *, classic: bool = False) -> "LocalGaussian":
        """The noise that gives one contribution (ε, δ).

        Args:
          epsilon, delta: of one round.
          classic: by √(2·ln(1.25/δ))/ε, which needs ε ≤ 1 and is larger than the exact value (Dwork and Roth 2014).
        """
        return LocalGaussian((classic_gaussian if classic else analytic_gaussian)(epsilon, delta))

    def bind(self, signal: Signal, setting: Setting) -> Step:
        """Refuses what noise cannot protect: unbounded, weighted, rounded or selected contributions, and buffers."""
        return _LocalGaussian(self.noise_multiplier, protectable(signal, "LocalGaussian"))


@dataclass(frozen=True)
class LocalLaplace(Stage):
    """Adds Laplace noise to each contribution at its worker, for pure ε: of use for few coordinates.

    Args:
      epsilon: of one contribution in one round, all its parts together; above 0.
    """

    threats: ClassVar[tuple[Sees, ...]] = OWN

    epsilon: float

    def __post_init__(self) -> None:
        positive(epsilon=self.epsilon)

    def bind(self, signal: Signal, setting: Setting) -> Step:
        """Refuses what noise cannot protect: unbounded, weighted, rounded or selected contributions, and buffers."""
        return _LocalLaplace(self.epsilon, protectable(signal, "LocalLaplace"))


class _Local(Step):
    """Noise of one scale for each part, from the worker's own entropy."""

    def __init__(self, signal: Signal, scales: dict[str, float], event: Event) -> None:
        self._scales, self._event = scales, event
        self._before = {name: signal.parts[name].l2 for name in scales}
        most = self._deviates(noise.own_stream()).most
        parts = {}
        for name, scale in scales.items():
            linf = signal.parts[name].linf + most * scale
            parts[name] = replace(signal.parts[name], linf=linf, l2=linf * math.sqrt(signal.parts[name].count))
        super().__init__(signal.with_(**parts))

    @abstractmethod
    def _deviates(self, stream: Stream) -> Deviates:
        """The law of the noise."""

    def settle(self, sensitivity: Sensitivity) -> Sensitivity:
        # Noise is the same whatever a client holds: it moves the total by what it had before, and what rounds behind.
        own = {
            name: norm + max(0.0, sensitivity[name] - self.out.parts[name].l2) for name, norm in self._before.items()
        }
        return {**sensitivity, **own}

    def encode(
        self, x: Tensors, state: Tensors, memory: Tensors, rngs: Sequence[np.random.Generator]
    ) -> tuple[Tensors, Tensors]:
        x = x.without("metric")
        noisy = {name: np.array(x[name]) for name in x if name.split("/", 1)[0] in self._scales}
        for client in range(len(rngs)):
            deviates = self._deviates(noise.own_stream())
            for name, arrays in noisy.items():
                add_noise(arrays[client : client + 1], self._scales[name.split("/", 1)[0]], deviates)
        return x.updated(noisy), memory

    def events(self) -> tuple[Event, ...]:
        return (self._event,)


class _LocalGaussian(_Local):
    def __init__(self, multiplier: float, signal: Signal) -> None:
        bounds = {name: signal.parts[name].l2 for name in signal.averaged if signal.parts[name].l2 > 0}
        whole = multiplier / math.sqrt(max(1, len(bounds)))
        event = Event(mechanism=LOCAL + "gaussian", noise_multiplier=whole, detail=_said(bounds, "L2"))
        super().__init__(signal, {name: multiplier * 2 * bound for name, bound in bounds.items()}, event)

    def _deviates(self, stream: Stream) -> Deviates:
        return Normals(stream)


class _LocalLaplace(_Local):
    def __init__(self, epsilon: float, signal: Signal) -> None:
        bounds = {name: l1(signal.parts[name]) for name in signal.averaged if signal.parts[name].l2 > 0}
        event = Event(mechanism=LOCAL + "laplace", noise_multiplier=1 / epsilon, detail=_said(bounds, "L1"))
        # Pure ε adds up over parts: each has its share.
        super().__init__(signal, {name: 2 * bound * len(bounds) / epsilon for name, bound in bounds.items()}, event)

    def _deviates(self, stream: Stream) -> Deviates:
        return Laplaces(stream)


def l1(part: Part) -> float:
    """A bound on the L1 norm of one contribution's part."""
    return min(math.sqrt(part.count) * part.l2, part.count * part.linf)


def _said(bounds: dict[str, float], norm: str) -> str:
    return ", ".join(f"{name}: {norm} at most {bound:g}" for name, bound in bounds.items())
