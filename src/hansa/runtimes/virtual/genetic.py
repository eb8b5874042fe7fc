"""Scheduling by a genetic algorithm: plans compete, the better ones are crossed and mutated, the best is taken.

A plan's cost is its time and its unfairness, each beside that of random plans (T and F):

    longest expected task / T  +  β · variance of how often each device was picked / F

Nothing is learnt from rounds that are over: it searches what is expected of the fleet, anew for each round.

Source: the genetic baseline of Zhou, Liu, Yu, Dong, Jin, Zhang, Dou: Efficient Device Scheduling with Multi-Job
Federated Learning, 2022, section 5, https://arxiv.org/abs/2112.05928; operators as in Holland: Adaptation in Natural
and Artificial Systems, 1975
"""

import math
from dataclasses import dataclass

import numpy as np

from hansa.core.errors import ConfigError
from hansa.runtimes.virtual.schedulers import Scheduler, View

CANDIDATES = 50


@dataclass(frozen=True)
class Genetic(Scheduler):
    """The fittest plan after some generations; the best one of each generation lives on.

    Args:
      fairness: β ≥ 0, the price of unfairness against time; 0 thinks of time alone.
      plans: in each generation.
      generations: bred from the first, which is random.
      mutation: the probability with which a device's place in a child is left to chance.

    Of a large fleet it sees CANDIDATES devices for each one wanted, drawn at random.
    """

    fairness: float = 0.5
    plans: int = 40
    generations: int = 30
    mutation: float = 0.1

    def __post_init__(self) -> None:
        if not (self.fairness >= 0 and math.isfinite(self.fairness)):
            raise ConfigError(f"fairness={self.fairness}: a finite price, at least 0.")
        for name, least in (("plans", 2), ("generations", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name}={getattr(self, name)}: at least {least}.")
        if not 0 <= self.mutation <= 1:
            raise ConfigError(f"mutation={self.mutation}: a probability.")

    def pick(self, view: View, rng: np.random.Generator) -> np.ndarray:
        """The plan of least cost in the last generation."""
        if len(view.free) <= view.wanted:
            return view.free
        seen = rng.choice(view.free, min(len(view.free), CANDIDATES * view.wanted), replace=False)
        seconds, more = view.seconds[seen], 2.0 * view.counts[seen] + 1  # what a device adds to Σ count²
        fixed = float(np.square(view.counts, dtype=float).sum())
        mean = (float(view.counts.sum()) + view.wanted) / len(view.counts)
        plans = _best(rng.random((self.plans, len(seen))), view.wanted)  # rows: whether each device is in the plan

        def parts(plans: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return np.where(plans, seconds, 0.0).max(1), (fixed + plans @ more) / len(view.counts) - mean**2

        scale_s, scale_f = (max(float(part.mean()), 1e-12) for part in parts(plans))
        for _ in range(self.generations + 1):
            times, spreads = parts(plans)
            cost = times / scale_s + self.fairness * spreads / scale_f
            fittest = plans[cost.argmin()]
            plans = np.vstack([fittest, self._children(plans, cost, view.wanted, rng)])
        picked: np.ndarray = seen[fittest]
        return picked

    def _children(self, plans: np.ndarray, cost: np.ndarray, wanted: int, rng: np.random.Generator) -> np.ndarray:
        """Each of two parents, the better of two drawn: what both have, some of what one has, and some mutation."""
        drawn = rng.integers(len(plans), size=(2, 2, len(plans) - 1))
        one, other = np.where(cost[drawn[:, 0]] <= cost[drawn[:, 1]], drawn[:, 0], drawn[:, 1])
        keys = plans[one] + plans[other] + rng.random((len(one), plans.shape[1]))  # the larger, the rather it is in
        chance = rng.random(keys.shape) < self.mutation
        return _best(np.where(chance, rng.uniform(0, 3, keys.shape), keys), wanted)


def _best(keys: np.ndarray, wanted: int) -> np.ndarray:
    """Whether each key is among the `wanted` largest of its row."""
    found = np.zeros(keys.shape, bool)
    np.put_along_axis(found, np.argpartition(keys, -wanted, axis=1)[:, -wanted:], True, axis=1)
    return found
