"""Centred clipping: contributions are clipped around where the mean is thought to be, and move it.

    v ← v + 1/n · Σ (xᵢ − v) · min(1, τ / ‖xᵢ − v‖)          so many times, from v = 0

Behind the stage `Centre` zero is the last round's mean, as in the paper; without it, zero itself.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from hansa.core.errors import require
from hansa.core.pipeline import Signal
from hansa.stages.robust import Gathered, Robust, distances_to


@dataclass(frozen=True)
class CentredClipping(Robust):
    """The mean of contributions clipped around a centre, which moves there; put `Centre()` before it for its memory.

    Args:
      radius: τ, in the unit of what is sent: the update's (behind `AdaptiveClip` that of its moving bound).
      iterations: how often; more lets honest ones further off come in.

    Guarantees:
      One round moves the mean by at most radius · iterations from the centre, whatever liars send and however many they
      are; each moves it by at most radius · iterations / n. The paper proves convergence with up to a tenth of liars.

    | use | settings |
    |---|---|
    | the paper's | `Pipeline([UniformMean(), Centre()], CentredClipping(radius=…))`, momentum at the workers |
    | plain norm clipping | `CentredClipping(radius=…)`, which is `NormBound` |

    Source: Karimireddy, He and Jaggi 2021, Learning from History for Byzantine Robust Optimization,
    https://arxiv.org/abs/2012.10333
    """

    radius: float
    iterations: int = field(default=1, kw_only=True)

    def __post_init__(self) -> None:
        require(0 < self.radius < float("inf"), f"radius={self.radius}: it is finite and above 0.")
        require(self.iterations >= 1, f"iterations={self.iterations}: at least 1 is needed.")

    def withstands(self, contributions: int) -> int:
        """A tenth."""
        return contributions // 10

    def faults(self, contributions: int, signal: Signal) -> Iterator[str]:
        """A radius means nothing for integers."""
        if any(signal.parts[name].domain != "real" for name in signal.averaged):
            yield f"radius={self.radius} is in the unit of the update, and Quantise sends integers: leave Quantise out."

    def mean(self, given: Gathered, names: Sequence[str]) -> dict[str, np.ndarray]:
        """The mixture of contributions and zero where the centre ends."""
        return given.mixed(names, self.weights(given.gram(names)))

    def weights(self, products: np.ndarray) -> np.ndarray:
        """How much each contribution counts, from all inner products; the rest is zero's."""
        kept = np.isfinite(np.diag(products))  # what is longer than 10¹⁵⁰ is clipped to a direction nobody can tell
        inner, weights = products[np.ix_(kept, kept)], np.zeros(kept.sum())
        for _ in range(self.iterations):
            distances = distances_to(inner, weights)
            scales = self.radius / np.maximum(distances, self.radius) / len(kept)
            weights = weights * (1 - scales.sum()) + scales
        found = np.zeros(len(kept))
        found[kept] = weights
        return found
