"""Krum and Multi-Krum: the contributions that are closest to most others.

score(i) = Σ over the n − f − 2 contributions nearest to i of ‖xᵢ − xⱼ‖²
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from hansa.core.errors import require
from hansa.core.pipeline import Signal
from hansa.stages.robust import Gathered, Robust, squared_distances


@dataclass(frozen=True)
class Krum(Robust):
    """The one contribution with the lowest score; the first in task order if two have it.

    Args:
      f: liars that may be among a round's contributions; at least 1.

    Guarantees:
      With n ≥ 2f + 3 contributions and f liars, the one chosen is as near to n − f − 2 others as an honest one is.
      Breakdown point below 1/2. Between several honest ones it takes one and learns nothing from the others, which
      costs accuracy where clients differ: see `MultiKrum`.

    Source: Blanchard et al. 2017, Machine Learning with Adversaries, https://arxiv.org/abs/1703.02757
    """

    f: int

    def __post_init__(self) -> None:
        require(self.f >= 1, f"f={self.f}: name at least 1 liar; without any, use Sum().")

    @property
    def fewest(self) -> int:
        """As many as the proof needs: 2f + 3."""
        return 2 * self.f + 3

    def withstands(self, contributions: int) -> int:
        """`f`, if there are enough others."""
        return self.f if contributions >= self.fewest else -1

    def mean(self, given: Gathered, names: Sequence[str]) -> dict[str, np.ndarray]:
        """The chosen ones' mean."""
        chosen = self.chosen(squared_distances(given.gram(names)))
        return given.mixed(names, np.bincount(chosen, minlength=len(given)) / len(chosen))

    def chosen(self, squared: np.ndarray) -> np.ndarray:
        """The places of those that count, ascending, from all squared distances."""
        return np.sort(np.argsort(krum_scores(squared, self.f), kind="stable")[: self._count(len(squared))])

    def _count(self, contributions: int) -> int:
        return 1


@dataclass(frozen=True)
class MultiKrum(Krum):
    """The mean of the `m` contributions with the lowest scores.

    Args:
      f: liars that may be among a round's contributions; at least 1.
      m: how many are averaged; n − f − 2, the most that the proof allows, if None.

    Guarantees:
      As `Krum`'s, for each of those chosen.

    Source: Blanchard et al. 2017, section 4, https://arxiv.org/abs/1703.02757
    """

    m: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.m is None or self.m >= 1, f"m={self.m}: at least one contribution has to count.")

    def faults(self, contributions: int, signal: Signal) -> Iterator[str]:
        """It would average more than it can vouch for."""
        most = contributions - self.f - 2
        if self.m is not None and self.m > most:
            yield f"m={self.m} of {contributions} contributions may hold liars: n − f − 2 = {most} at the most."

    def _count(self, contributions: int) -> int:
        return self.m or contributions - self.f - 2


def krum_scores(squared: np.ndarray, f: int) -> np.ndarray:
    """Each contribution's score, from squared distances of shape (n, n); at least one neighbour counts."""
    others = squared + np.diag(np.full(len(squared), np.inf))
    nearest = np.sort(others, axis=1)[:, : max(1, len(squared) - f - 2)]
    scores: np.ndarray = nearest.sum(axis=1)
    return scores
