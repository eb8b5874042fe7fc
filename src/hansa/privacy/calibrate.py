"""How much noise a target (ε, δ) takes: of one Gaussian release in closed form, of many rounds by searching.

One release of sensitivity 1 with noise σ is (ε, δ)-private exactly if

    δ ≥ Φ(1/2σ − εσ) − e^ε·Φ(−1/2σ − εσ)

Source: Balle and Wang 2018, Improving the Gaussian Mechanism for Differential Privacy, theorem 8,
https://arxiv.org/abs/1805.06530
"""

import math
from collections import Counter
from collections.abc import Callable

from hansa.core.errors import ConfigError
from hansa.core.job import Job
from hansa.core.ledger import Event
from hansa.privacy.accountant import MODELS, WHOLE_ORDERS, cost, delta_of, pld_epsilon, rdp_epsilon, releases
from hansa.privacy.checks import positive

_INTERVAL = 1e-3  # of losses while searching: ten times as coarse as a final ε's, and a bound too


def analytic_gaussian(epsilon: float, delta: float) -> float:
    """The least noise multiplier of one Gaussian release that is (ε, δ)-private: exact, for every ε.

    Raises:
      ConfigError: ε is not above 0, or δ outside (0, 1).
    """
    _target(epsilon, delta)

    def delta_of(sigma: float) -> float:
        upper, lower = 0.5 / sigma - epsilon * sigma, -0.5 / sigma - epsilon * sigma
        return _normal(upper) - math.exp(epsilon + _log_normal(lower))

    low, high = 1e-3, 1.0
    while delta_of(high) > delta:
        high *= 2
    while delta_of(low) <= delta:
        low /= 2
    for _ in range(100):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if delta_of(middle) <= delta else (middle, high)
    return high


def classic_gaussian(epsilon: float, delta: float) -> float:
    """√(2·ln(1.25/δ))/ε, the noise multiplier of Dwork and Roth 2014, theorem A.1: for ε ≤ 1 alone.

    Raises:
      ConfigError: ε is above 1, where the formula gives no privacy of that ε, or not above 0; δ is outside (0, 1).
    """
    _target(epsilon, delta)
    if epsilon > 1:
        raise ConfigError(f"epsilon={epsilon}: the classic formula holds up to 1: leave classic=True out.")
    return math.sqrt(2 * math.log(1.25 / delta)) / epsilon


def multiplier(
    epsilon: float, delta: float, rate: float = 1.0, rounds: int = 1, *, sampling: str | None = None, by: str = "both"
) -> float:
    """The least noise multiplier of `Gaussian` with which so many rounds are (ε, δ)-private, to six digits.

    Args:
      epsilon, delta: of all rounds together.
      rate: a client's probability of being in a round: cohort / population.
      rounds: how many.
      sampling: `poisson` or `fixed`, as the job's; None is poisson below rate 1, and no amplification at 1.
      by: `rdp`, `pld`, or `both`, the better of the two.

    Raises:
      ConfigError: a value is out of its range, or no noise is enough.
      MissingExtra: dp-accounting is not installed.

    >>> round(multiplier(2, 1e-5, 0.01, 1000, by="rdp"), 5)
    1.02229
    """
    _target(epsilon, delta)
    if by not in ("rdp", "pld", "both"):
        raise ConfigError(f"by='{by}': choose 'rdp', 'pld' or 'both'.")
    if not (0 < rate <= 1 and rounds >= 1):
        raise ConfigError(f"rate={rate}, rounds={rounds}: a rate lies in (0, 1], and there is at least one round.")
    return searched(epsilon, delta, rate, rounds, sampling or ("poisson" if rate < 1 else "none"), by)


def calibrated(
    make: Callable[[float], Job], *, epsilon: float, population: int, delta: float | None = None, against: str = MODELS
) -> Job:
    """The job with the least noise, of whatever mechanism, whose rounds cost at most ε together.

    Args:
      make: the job at a given noise multiplier, as `lambda z: dataclasses.replace(job, pipeline=...)`.
      epsilon, delta: of all rounds; δ is the job's own if None.
      population: clients that could be asked.
      against: `models`, those who see the models of all rounds, or `server`.

    Returns:
      The job at a multiplier that is at most a thousandth larger than it need be.

    Raises:
      JobError: the job cannot be bound.
      ConfigError: no noise is enough.
      MissingExtra: dp-accounting is not installed.
    """
    positive(epsilon=epsilon)

    def spent(z: float) -> float:
        job = make(z)
        counts = releases(job, population)
        return cost(counts, delta_of(job, delta), population, against=against, interval=_INTERVAL).epsilon

    return make(least(spent, epsilon, 1e-3))


def searched(
    epsilon: float, delta: float, rate: float, rounds: int, sampling: str, by: str, *, rough: bool = False
) -> float:
    """`multiplier` without its checks; to three digits, and a little too large, if `rough`."""

    def spent(z: float) -> float:
        event = Event(mechanism="gaussian", noise_multiplier=z, sampling=sampling, rate=rate)
        counts, replaced = Counter({event: rounds}), sampling == "fixed"
        loose = rdp_epsilon(counts, replaced, delta, WHOLE_ORDERS if rough and not replaced else None)
        if by == "rdp":
            return loose
        tight = pld_epsilon(counts, replaced, delta, loose, interval=_INTERVAL)
        return tight if by == "pld" else min(loose, tight)

    return least(spent, epsilon, 1e-3 if rough else 1e-6)


def least(spent: Callable[[float], float], epsilon: float, tolerance: float = 1e-6) -> float:
    """The least z with spent(z) ≤ ε, to a relative tolerance; `spent` falls with z.

    Raises:
      ConfigError: even 2²⁰ is not enough.
    """
    low, high = 0.0, 1.0
    while (found := spent(high)) > epsilon:
        low, high = high, high * 2
        if high > 1 << 20:
            raise ConfigError(f"epsilon={epsilon}: no noise is enough; allow more, or fewer rounds.")
    below = math.inf
    while low == 0.0:
        if (tried := spent(high / 2)) > epsilon:
            low, below = high / 2, tried
        else:
            high, found = high / 2, tried
        if high < 1e-3:
            return high
    if math.isinf(below):
        below = spent(low)
    # ε is nearly a power of z over a short way: the secant in logarithms, with the middle wherever it hardly moves.
    for _ in range(60):
        if high / low - 1 <= tolerance:
            break
        share = (math.log(below) - math.log(epsilon)) / (math.log(below) - math.log(found)) if found > 0 else 0.5
        middle = low * (high / low) ** min(max(share, 0.02), 0.98)
        tried = spent(middle)
        if tried > epsilon:
            low, below = middle, tried
        else:
            high, found = middle, tried
    return high


def _target(epsilon: float, delta: float) -> None:
    if not (epsilon > 0 and math.isfinite(epsilon) and 0 < delta < 1):
        raise ConfigError(f"epsilon={epsilon}, delta={delta}: ε is above 0, and δ between 0 and 1.")


def _normal(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2))


def _log_normal(x: float) -> float:
    """The logarithm of Φ(x), beyond where Φ itself is 0 by the first terms of its expansion."""
    if x > -35:
        return math.log(_normal(x))
    return -0.5 * x * x - math.log(-x) - 0.5 * math.log(2 * math.pi) + math.log1p(-1 / x**2 + 3 / x**4)
