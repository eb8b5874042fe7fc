"""Bulyan: Krum chooses contributions, one after another, and each coordinate keeps those around their median.

1   θ = n − 2f contributions, each the Krum of those not chosen yet
2   in each coordinate, the mean of the β = θ − 2f values closest to the median of the θ
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hansa.core.errors import require
from hansa.stages.krum import krum_scores
from hansa.stages.robust import Gathered, Robust, squared_distances


@dataclass(frozen=True)
class Bulyan(Robust):
    """Krum's choice with a vote in each coordinate, against liars who differ from the others in few of them.

    Args:
      f: liars that may be among a round's contributions; at least 1.

    Guarantees:
      Breakdown point below 1/4: with n ≥ 4f + 3 contributions, f of them anything, each coordinate lies among honest
      values.

    Source: El Mhamdi, Guerraoui and Rouault 2018, The Hidden Vulnerability of Distributed Learning in Byzantium,
    https://arxiv.org/abs/1802.07927
    """

    f: int

    def __post_init__(self) -> None:
        require(self.f >= 1, f"f={self.f}: name at least 1 liar; without any, use Sum().")

    @property
    def fewest(self) -> int:
        """As many as the proof needs: 4f + 3."""
        return 4 * self.f + 3

    def withstands(self, contributions: int) -> int:
        """`f`, if there are enough others."""
        return self.f if contributions >= self.fewest else -1

    def mean(self, given: Gathered, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Both steps."""
        chosen = self.chosen(squared_distances(given.gram(names)))
        vote = functools.partial(_around_median, chosen=chosen, kept=len(chosen) - 2 * self.f)
        return {name: given.columns(name, vote) for name in names}

    def chosen(self, squared: np.ndarray) -> np.ndarray:
        """Step 1: the places of the θ chosen, ascending, from all squared distances."""
        left = list(range(len(squared)))
        chosen = []
        for _ in range(len(squared) - 2 * self.f):
            best = int(np.argmin(krum_scores(squared[np.ix_(left, left)], self.f)))
            chosen.append(left.pop(best))
        return np.sort(chosen)


def _around_median(block: np.ndarray, chosen: np.ndarray, kept: int) -> np.ndarray:
    """Step 2."""
    some = block[chosen].astype(np.float64)
    with np.errstate(over="ignore"):
        away = np.abs(some - np.median(some, axis=0))
    nearest = np.argsort(away, axis=0, kind="stable")[:kept]
    voted: np.ndarray = np.take_along_axis(some, nearest, axis=0).mean(axis=0)
    return voted
