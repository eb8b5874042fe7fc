"""The coordinate-wise median of the contributions."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hansa.stages.robust import Gathered, Robust


@dataclass(frozen=True)
class Median(Robust):
    """The coordinate-wise median of the contributions.

    Messages are kept until the round is over (on disk, where the runtime spools them) and read block by block: the
    memory is that of one block times the cohort, or of the decoded contributions where a stage before it cannot be
    added (`TopK`).

    Guarantees:
      Breakdown point 1/2: fewer than half of the clients, whatever they send, cannot push a coordinate beyond the range
      of the others'.

    Source: Yin et al. 2018, Byzantine-Robust Distributed Learning, https://arxiv.org/abs/1803.01498
    """

    def withstands(self, contributions: int) -> int:
        """Fewer than half."""
        return (contributions - 1) // 2

    def mean(self, given: Gathered, names: Sequence[str]) -> dict[str, np.ndarray]:
        """The middle of each coordinate; between the two middle ones of an even number."""
        return {name: given.columns(name, _median) for name in names}


def _median(block: np.ndarray) -> np.ndarray:
    middle: np.ndarray = np.median(block, axis=0)
    return middle
