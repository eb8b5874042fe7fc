"""The coordinate-wise mean of what is left when the largest and smallest contributions are taken away."""

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from hansa.core.errors import require
from hansa.core.pipeline import Signal
from hansa.stages.robust import Gathered, Robust


@dataclass(frozen=True)
class TrimmedMean(Robust):
    """In each coordinate the mean without the ⌊β·n⌋ largest and the ⌊β·n⌋ smallest of n contributions.

    Args:
      beta: β, the share taken away at each end; in (0, 1/2).

    Guarantees:
      Breakdown point β: ⌊β·n⌋ clients, whatever they send, cannot push a coordinate beyond the range of the others'.

    Source: Yin et al. 2018, Byzantine-Robust Distributed Learning, https://arxiv.org/abs/1803.01498
    """

    beta: float

    def __post_init__(self) -> None:
        require(0 < self.beta < 0.5, f"beta={self.beta}: the share taken away at each end lies in (0, 1/2).")

    def withstands(self, contributions: int) -> int:
        """As many as are taken away at one end."""
        return math.floor(self.beta * contributions + 1e-9)  # 0.29 · 100 is 28.999… in floats

    def faults(self, contributions: int, signal: Signal) -> Iterator[str]:
        """It is a plain mean where nobody is taken away."""
        if self.withstands(contributions) == 0:
            yield (
                f"beta={self.beta} of {contributions} contributions takes nobody away: raise it to at least "
                f"{1 / contributions:.3g}, or raise the cohort (and its quorum)."
            )

    def mean(self, given: Gathered, names: Sequence[str]) -> dict[str, np.ndarray]:
        """The mean of the middle ones."""
        trim = functools.partial(_trimmed, cut=self.withstands(len(given)))
        return {name: given.columns(name, trim) for name in names}


def _trimmed(block: np.ndarray, cut: int) -> np.ndarray:
    ends = (cut, len(block) - 1 - cut)
    middle: np.ndarray = np.partition(block, ends, axis=0)[ends[0] : ends[1] + 1].mean(axis=0, dtype=np.float64)
    return middle
