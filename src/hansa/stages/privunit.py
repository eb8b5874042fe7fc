"""PrivUnit at each worker: local differential privacy with a pure ε whose error grows with √d, not with d.

    encode   u = ±x/‖x‖,  + with probability (1 + ‖x‖/C) / 2,  so that E u = x/C          (Duchi et al. 2018)
             C·V/m,  V drawn around u as `privacy/unit_vector.py` says                     unbiased, of length C/m

`LocalLaplace` has an error of d·C/ε for the same ε. Every message is as long as every other, so it says nothing of the
length of an update but by chance.

Sources: Bhowmick et al. 2018, https://arxiv.org/abs/1812.00984; Duchi, Jordan and Wainwright 2018, Minimax Optimal
Procedures for Locally Private Estimation, https://arxiv.org/abs/1604.02390
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from hansa.core.ledger import Event
from hansa.core.pipeline import Setting, Signal, Stage, Step
from hansa.core.sampling import Stream
from hansa.core.tensors import Tensors
from hansa.privacy import noise
from hansa.privacy.accountant import PURE
from hansa.privacy.checks import positive
from hansa.privacy.threats import OWN, Sees
from hansa.privacy.unit_vector import Cap, best_cap
from hansa.stages.flat import Flat
from hansa.stages.noise import protectable


@dataclass(frozen=True)
class PrivUnit(Stage):
    """Sends a random direction instead of each contribution: `[Clip(C), UniformMean(), PrivUnit(8.0)]`.

    Args:
      epsilon: of one contribution in one round, all its parts together; above 0. The error is C/m, which for d
        coordinates is at most C·√(d/ε) where ε is 16 or more, and about 2.5·C·√d/ε where it is below 1.

    Guarantees:
      Whoever sees a contribution learns from one round no more than ε allows, with δ = 0; from all rounds, what the
      ledger's ε says, as if every client were in every round. The mean over clients is unbiased. Drawn from the
      worker's operating system; what is sent lies on a grid of 2⁻²⁴ of a coordinate's size, as of all noise here.
    """

    threats: ClassVar[tuple[Sees, ...]] = OWN

    epsilon: float

    def __post_init__(self) -> None:
        positive(epsilon=self.epsilon)

    def bind(self, signal: Signal, setting: Setting) -> Step:
        """Refuses what cannot be protected: unbounded, weighted, rounded or selected contributions, and buffers."""
        return _PrivUnit(self.epsilon, protectable(signal, "PrivUnit"))


class _PrivUnit(Step):
    def __init__(self, epsilon: float, signal: Signal) -> None:
        names = [name for name in signal.averaged if signal.parts[name].l2 > 0 and signal.parts[name].count]
        self._bounds = {name: signal.parts[name].l2 for name in names}
        # Pure ε adds up over parts: each has its share.
        self._caps = {name: best_cap(signal.parts[name].count, epsilon / len(names)) for name in names}
        self._flats = {name: Flat(name, signal.parts[name]) for name in names}
        parts = {}
        for name, cap in self._caps.items():
            length = self._bounds[name] / cap.mean * (1 + 1e-6) + self._grid(name) * math.sqrt(cap.dimension)
            parts[name] = replace(signal.parts[name], l2=length, linf=length)
        said = ", ".join(f"{name}: L2 at most {bound:g}" for name, bound in self._bounds.items())
        self._event = Event(mechanism=PURE, noise_multiplier=1 / epsilon, detail=f"PrivUnit; {said}")
        super().__init__(signal.with_(**parts))

    def _grid(self, name: str) -> float:
        cap = self._caps[name]
        return float(2.0 ** (math.floor(math.log2(self._bounds[name] / cap.mean / math.sqrt(cap.dimension))) - 24))

    def encode(
        self, x: Tensors, state: Tensors, memory: Tensors, rngs: Sequence[np.random.Generator]
    ) -> tuple[Tensors, Tensors]:
        x = x.without("metric")
        for name, cap in self._caps.items():
            vectors = self._flats[name].joined(x).astype(np.float64)
            drawn = [self._drawn(name, cap, vector, noise.own_stream()) for vector in vectors]
            split = [self._flats[name].split(vector) for vector in drawn]
            x = x.updated({tensor: np.stack([each[tensor] for each in split]) for tensor in split[0]})
        return x, memory

    def _drawn(self, name: str, cap: Cap, vector: np.ndarray, stream: Stream) -> np.ndarray:
        norm = math.sqrt(float(vector @ vector))
        unit = vector / norm if norm else np.eye(1, cap.dimension)[0]
        length = min(1.0, norm / self._bounds[name])
        sign = 1.0 if stream.word() < round((1 + length) / 2 * (1 << 64)) else -1.0
        grid = self._grid(name)
        sent: np.ndarray = np.rint(self._bounds[name] / cap.mean / grid * cap.draw(sign * unit, stream)) * grid
        return sent

    def events(self) -> tuple[Event, ...]:
        return (self._event,)
