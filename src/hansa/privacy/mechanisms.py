"""Rényi divergences of mechanisms that dp-accounting does not know: sums of discrete noises, and sampling around any.

D_α of two neighbouring releases, for a shift of L2 norm Δ₂ and L1 norm Δ₁ in integer units, d coordinates, n shares of
variance s² each, V = n·s²:

    discrete Gaussians   min{ α·Δ₂²/2V + τd,  α/2·(Δ₂²/V + 2τ·Δ₁/√V + τ²d),  α/2·(Δ₂/√V + τ√d)² },
                         τ = 10·Σ_{k=1}^{n−1} exp(−2π²s²·k/(k+1))
    Skellams             α·Δ₂²/2V + min{ ((2α−1)·Δ₂² + 6Δ₁)/4V²,  3Δ₁/2V }           α = 2, 3, …

Both are proved upper bounds; tests hold them against the divergence computed from the laws themselves.

Sources: Kairouz, Liu and Steinke 2021, The Distributed Discrete Gaussian Mechanism, proposition 14,
https://arxiv.org/abs/2102.06387; Agarwal, Kairouz and Liu 2021, The Skellam Mechanism, theorem 3.5,
https://arxiv.org/abs/2110.04995; Wang, Balle and Kasiviswanathan 2019, theorem 9, https://arxiv.org/abs/1808.00087
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from hansa.core.errors import ConfigError

DISCRETE_GAUSSIAN = "discrete gaussian sum"
SKELLAM = "skellam sum"


@dataclass(frozen=True, kw_only=True)
class Lattice:
    """One part of a distributed release, in units of its grid.

    Args:
      l2: the longest contribution, after rounding.
      dimension: coordinates.
      variance: of one share of the noise.
    """

    l2: float
    dimension: int
    variance: float

    @property
    def l1(self) -> float:
        """Of integers of that L2 norm: at most √d times it, and at most its square."""
        return min(math.sqrt(self.dimension) * self.l2, self.l2**2)


@dataclass(frozen=True, kw_only=True)
class Shares:
    """What the ledger keeps of noise that many clients add.

    Args:
      shares: the fewest that are in a sum and count.
      parts: each on its own grid.
      hidden: whether the server sees nothing but the sum.
    """

    shares: int
    parts: tuple[Lattice, ...]
    hidden: bool

    def to_text(self) -> str:
        """For an event's `detail`."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_text(text: str) -> "Shares":
        """What `to_text` wrote; ConfigError if it is anything else, which has no ε."""
        try:
            given = json.loads(text)
            parts = tuple(Lattice(**part) for part in given["parts"])
            found = Shares(shares=int(given["shares"]), parts=parts, hidden=given["hidden"] is True)
            sound = all(part.l2 >= 0 and part.dimension > 0 and part.variance > 0 for part in found.parts)
        except (ValueError, TypeError, LookupError):
            sound = False
        if not sound or found.shares < 1 or not found.parts:
            raise ConfigError("the ledger holds distributed noise whose shares cannot be read: it has no ε.")
        return found

    @property
    def multiplier(self) -> float:
        """Standard deviation of all shares over the L2 norm of one contribution, parts taken together."""
        return math.sqrt(1 / sum(part.l2**2 / (self.shares * part.variance) for part in self.parts))


def divergences(mechanism: str, shares: Shares, orders: Sequence[float], *, doubled: bool = False) -> np.ndarray:
    """D_α of one release at these orders; they add up over parts.

    Args:
      mechanism: `DISCRETE_GAUSSIAN` or `SKELLAM`.
      shares: which noise on which grid.
      orders: whole numbers from 2 on.
      doubled: whether one contribution is replaced by another, which moves the sum twice as far, not by zeros.
    """
    alphas = np.asarray(orders, np.float64)
    total = np.zeros(len(alphas))
    for part in shares.parts:
        l2, l1 = (2 if doubled else 1) * part.l2, (2 if doubled else 1) * part.l1
        if mechanism == DISCRETE_GAUSSIAN:
            total += _discrete_gaussian(alphas, l2, l1, part, shares.shares)
        else:
            variance = shares.shares * part.variance
            tail = np.minimum(
                ((2 * alphas - 1) * l2**2 + 6 * l1) / (4 * variance**2), np.full(len(alphas), 3 * l1 / (2 * variance))
            )
            total += alphas * l2**2 / (2 * variance) + tail
    return total


def _discrete_gaussian(alphas: np.ndarray, l2: float, l1: float, part: Lattice, shares: int) -> np.ndarray:
    if part.variance < 0.25:
        return np.full(len(alphas), math.inf)  # the theorem asks for σ ≥ 1/2
    tau = 10 * sum(math.exp(-2 * math.pi**2 * part.variance * k / (k + 1)) for k in range(1, shares))
    root, d = math.sqrt(shares * part.variance), part.dimension
    bounds = (
        alphas * l2**2 / (2 * root**2) + tau * d,
        alphas / 2 * (l2**2 / root**2 + 2 * tau * l1 / root + tau**2 * d),
        alphas / 2 * (l2 / root + tau * math.sqrt(d)) ** 2,
    )
    least: np.ndarray = np.minimum.reduce(bounds)
    return least


def without_replacement(
    released: np.ndarray, rate: float, orders: Sequence[float], pure: float = math.inf
) -> np.ndarray:
    """D_α of any mechanism on a cohort of fixed size, drawn without replacement, one client replaced by another.

    Args:
      released: D_j of the mechanism itself for j = 2, 3, …, up to the largest order at least.
      rate: cohort / population.
      orders: whole numbers from 2 on.
      pure: the mechanism's pure ε, if it has one.
    """
    top = int(max(orders))
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, top + 1)))])
    grown = math.expm1(pure) if pure < 700 else math.inf  # e^ε(∞) − 1
    second = released[0]
    found = []
    for order in map(int, orders):
        j = np.arange(2, order + 1)
        terms = j * math.log(rate) + logs[order] - logs[j] - logs[order - j] + (j - 1) * released[: order - 1]
        terms += np.log(np.minimum(2.0, np.full(len(j), grown) ** j))
        if second < 700:
            first = 2 * math.log(rate) + logs[order] - logs[2] - logs[order - 2]
            terms[0] = min(terms[0], first + math.log(4 * math.expm1(second)) if second > 0 else -math.inf)
        whole = np.logaddexp.reduce(np.concatenate([[0.0], terms])) / (order - 1)
        found.append(min(float(whole), float(released[order - 2])))
    return np.array(found)
