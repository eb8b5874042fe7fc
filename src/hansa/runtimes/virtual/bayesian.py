"""Scheduling by Bayesian optimisation: a Gaussian process learns what plans cost, and the most promising one is tried.

A plan's cost is its time and its unfairness, each beside that of random plans (T and F):

    seconds / T  +  β · variance of how often each device was picked / F

The process (Matérn 5/2) models by how much observed costs differ from the expected ones, over three features of a plan:
its slowest and its mean expected time, and its unfairness. The next plan is the candidate of greatest expected
improvement.

Source: Zhou, Liu, Yu, Dong, Jin, Zhang, Dou: Efficient Device Scheduling with Multi-Job Federated Learning, 2022,
algorithm 1 (BODS), https://arxiv.org/abs/2112.05928. Ours differs in that the process is over features of plans, not
over sets, and begins from the fleet's expected times.
"""

import math
from dataclasses import dataclass

import numpy as np

from hansa.core.errors import ConfigError
from hansa.runtimes.virtual.schedulers import Scheduler, View


@dataclass(frozen=True)
class Bayesian(Scheduler):
    """Short rounds that still let every device take part.

    Args:
      fairness: β ≥ 0, the price of unfairness against time; 0 thinks of time alone.
      candidates: plans among which one is chosen.
      window: rounds that are remembered.
    """

    fairness: float = 0.5
    candidates: int = 100
    window: int = 64

    def __post_init__(self) -> None:
        if not (self.fairness >= 0 and math.isfinite(self.fairness)):
            raise ConfigError(f"fairness={self.fairness}: a finite price, at least 0.")
        for name in ("candidates", "window"):
            if getattr(self, name) < 2:
                raise ConfigError(f"{name}={getattr(self, name)}: at least 2.")

    def pick(self, view: View, rng: np.random.Generator) -> np.ndarray:
        """The candidate of greatest expected improvement."""
        if len(view.free) <= view.wanted:
            return view.free
        plans = self._plans(view, rng)
        spreads = np.array([view.fairness(plan) for plan in plans])
        scale_s = float(np.mean([view.seconds[plan].max() for plan in plans[: self.candidates // 2]]))
        scale_f = max(float(np.mean(spreads[: self.candidates // 2])), 1e-12)
        features = np.array([_features(view, plan) for plan in plans]) / scale_s
        features = np.column_stack([features, self.fairness * spreads / scale_f])
        prior = features[:, 0] + features[:, 2]
        seen = [trial for trial in view.trials if trial.seconds > 0][-self.window :]
        if len(seen) < 2:
            return plans[int(np.argmin(prior))]
        known = np.array([_features(view, trial.plan) for trial in seen]) / scale_s
        known = np.column_stack([known, [self.fairness * trial.fairness / scale_f for trial in seen]])
        cost = np.array([trial.seconds for trial in seen]) / scale_s + known[:, 2]
        mean, deviation = _posterior(known, cost - known[:, 0] - known[:, 2], features)
        # Fairness drifts as rounds pass, so that an old round's cost is no longer to be had: the incumbent is the
        # candidate of least expected cost, and improvement is counted below it.
        mean = mean + prior
        return plans[int(np.argmax(_improvement(float(mean.min()), mean, deviation)))]

    def _plans(self, view: View, rng: np.random.Generator) -> list[np.ndarray]:
        """Random plans; then the fastest and the least picked devices, in all proportions, with some exchanged."""
        half, wanted = self.candidates // 2, view.wanted
        plans = [rng.choice(view.free, wanted, replace=False) for _ in range(half)]
        fast = view.free[np.argsort(view.seconds[view.free], kind="stable")]
        rare = view.free[np.lexsort((view.seconds[view.free], view.counts[view.free]))]
        while len(plans) < self.candidates:
            quick = fast[: int(rng.integers(wanted + 1))]
            rest = rare[~np.isin(rare, quick)][: wanted - len(quick)]
            plan = np.concatenate([quick, rest])
            others = view.free[~np.isin(view.free, plan)]
            swaps = min(int(rng.integers(wanted // 2 + 1)), len(others))
            plan[rng.choice(wanted, swaps, replace=False)] = rng.choice(others, swaps, replace=False)
            plans.append(plan)
        return plans


def _features(view: View, plan: np.ndarray) -> tuple[float, float]:
    seconds = view.seconds[plan]
    return float(seconds.max()), float(seconds.mean())


def _posterior(x: np.ndarray, y: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation at `at` of a Gaussian process of zero mean that was seen as `y`, with noise, at `x`.

    Rasmussen, Williams: Gaussian Processes for Machine Learning, 2006, algorithm 2.1
    """
    length = np.maximum(np.concatenate([x, at]).std(axis=0), 1e-9)
    variance = float(np.mean(y**2)) + 1e-9
    noise = 0.1 * variance
    factor = np.linalg.cholesky(variance * _matern(x / length, x / length) + noise * np.eye(len(x)))
    cross = variance * _matern(x / length, at / length)
    weights = np.linalg.solve(factor.T, np.linalg.solve(factor, y))
    back = np.linalg.solve(factor, cross)
    return cross.T @ weights, np.sqrt(np.maximum(variance - (back**2).sum(axis=0), 1e-12))


def _matern(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Matérn 5/2 of unit length and variance."""
    distance = math.sqrt(5) * np.sqrt(np.maximum(((a[:, None] - b[None]) ** 2).sum(axis=2), 0.0))
    kernel: np.ndarray = (1 + distance + distance**2 / 3) * np.exp(-distance)
    return kernel


def _improvement(best: float, mean: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """Expected improvement below `best`: (best − μ)Φ(z) + σφ(z), z = (best − μ)/σ."""
    z = (best - mean) / deviation
    cdf = np.array([0.5 * (1 + math.erf(value / math.sqrt(2))) for value in z])
    gain: np.ndarray = (best - mean) * cdf + deviation * np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    return gain
