"""The geometric median (RFA): the point whose distances to all contributions add up to the least.

    v ← Σ wᵢ·xᵢ / Σ wᵢ,   wᵢ = 1 / max(ν, ‖xᵢ − v‖)          smoothed Weiszfeld iterations

Each v is a mixture of contributions, so its distances follow from their inner products: one pass over the data, then
any number of iterations among n numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from hansa.core.errors import require
from hansa.stages.robust import Gathered, Robust, distances_to, squared_distances


@dataclass(frozen=True)
class GeometricMedian(Robust):
    """The point whose distances to all contributions add up to the least: robust federated averaging.

    Args:
      smoothing: ν in units of the median distance from the most central contribution; above 0.
      iterations: at the most; it ends earlier when nothing moves.

    Guarantees:
      Breakdown point 1/2: with f liars of n, whatever they send, it lies within 2(n − f) / (n − 2f) · r of any point
      from which all honest ones are within r, smoothing apart. Unlike `Median` it does not depend on the basis.

    Source: Pillutla, Kakade and Harchaoui 2022, Robust Aggregation for Federated Learning,
    https://arxiv.org/abs/1912.13445
    """

    smoothing: float = field(default=1e-6, kw_only=True)
    iterations: int = field(default=1000, kw_only=True)

    def __post_init__(self) -> None:
        require(0 < self.smoothing < 1, f"smoothing={self.smoothing}: it lies in (0, 1), as 1e-6.")
        require(self.iterations >= 1, f"iterations={self.iterations}: at least 1 is needed.")

    def withstands(self, contributions: int) -> int:
        """Fewer than half."""
        return (contributions - 1) // 2

    def mean(self, given: Gathered, names: Sequence[str]) -> dict[str, np.ndarray]:
        """The mixture that Weiszfeld's iterations end in."""
        return given.mixed(names, self.weights(given.gram(names)))

    def weights(self, products: np.ndarray) -> np.ndarray:
        """How much each contribution counts, from all inner products; they add up to 1."""
        distances = np.sqrt(squared_distances(products))
        # Begun in the middle of most, not at the mean, which one liar can put anywhere.
        middle = np.argmin(np.median(distances, axis=0))
        scale = np.median(distances[middle])
        near = distances[middle] <= scale
        found: np.ndarray = near / near.sum()
        if scale == 0:  # most are one point, which is the median
            return found
        kept = np.isfinite(distances[middle])  # beyond 10¹⁵⁰ a liar has no weight left
        inner, weights = products[np.ix_(kept, kept)], found[kept]
        for _ in range(self.iterations):
            pulls = 1 / np.maximum(distances_to(inner, weights), self.smoothing * scale)
            before, weights = weights, pulls / pulls.sum()
            if np.abs(weights - before).max() < 1e-12:
                break
        found[kept] = weights
        return found
