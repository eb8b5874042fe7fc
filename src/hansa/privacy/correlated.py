"""Noise that is correlated over rounds, so that it cancels in the model: banded Toeplitz matrices and binary trees.

A model is a sum of rounds: x₁ + … + x_t. Instead of independent noise on each x_t, whose sum grows like √t, release

    Ĝ = C·X + Z,   and from it   X + C⁻¹·Z          C lower triangular and Toeplitz with b bands, Z independent normals

as one Gaussian mechanism for the whole run. Its sensitivity is that of C·X when one client's contributions, at least
`separation` rounds apart, are replaced by zeros: bands no wider than that never meet, so that

    sens² = Σ_i ‖C·e_{i·separation}‖²  ≤  ⌈T/separation⌉·Σ_j c_j²

The coefficients c minimise the mean squared error of all prefix sums, sens²·Σ_s (1 − s/T)·p_s² with
p(x) = 1/((1−x)c(x)); 1 band is independent noise, and many come close to c(x) = (1−x)^(−1/2), which is where the search
begins. No random sampling is assumed: who takes part may be known.

Sources: Choquette-Choo et al. 2023, (Amplified) Banded Matrix Factorization, https://arxiv.org/abs/2306.08153; McKenna
2024, Scaling up the Banded Matrix Factorization Mechanism, https://arxiv.org/abs/2405.15913; Fichtenberger, Henzinger
and Upadhyay 2023, https://arxiv.org/abs/2202.11205; Kairouz et al. 2021, Practical and Private (Deep) Learning without
Sampling or Shuffling, https://arxiv.org/abs/2103.00039; Honaker 2015, Efficient Use of Differentially Private Binary
Trees
"""

import functools
import json
import math
from dataclasses import asdict, dataclass

import numpy as np

from hansa.core.errors import ConfigError

CORRELATED = "correlated gaussian"

_STEPS = 200  # of the search, at most
_MEMORY = 10  # pairs of differences that it keeps


@dataclass(frozen=True, kw_only=True)
class Run:
    """What the ledger keeps of correlated noise, beside the multiplier of the whole run.

    Args:
      rounds: for which the noise is planned.
      again: multiplier of one round's release by itself, paid for each time a round is released again.
    """

    rounds: int
    again: float

    def to_text(self) -> str:
        """For an event's `detail`."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_text(text: str) -> "Run":
        """What `to_text` wrote; ConfigError if it is anything else, which has no ε."""
        try:
            run = Run(**json.loads(text))
            sound = run.rounds >= 1 and run.again > 0
        except (ValueError, TypeError):
            sound = False
        if not sound:
            raise ConfigError("the ledger holds correlated noise whose plan cannot be read: it has no ε.")
        return run


# -- banded Toeplitz matrices


def square_root(bands: int) -> np.ndarray:
    """The first coefficients of (1−x)^(−1/2), binomial(2j, j) / 4^j: shape (bands,).

    >>> square_root(3).tolist()
    [1.0, 0.5, 0.375]
    """
    j = np.arange(1, bands)
    return np.concatenate([[1.0], np.cumprod((2 * j - 1) / (2 * j))])


@functools.lru_cache(maxsize=8)
def banded(rounds: int, bands: int, separation: int) -> tuple[float, ...]:
    """The coefficients with the least mean squared error of all prefix sums, c₀ = 1.

    Args:
      rounds: T; the search costs some T·bands·100 operations.
      bands: at most `separation` and `rounds`.
      separation: the least number of rounds from one participation of a client to its next.

    Returns:
      Coefficients of which none is larger than the first.
    """
    if not 1 <= bands <= min(separation, rounds):
        raise ConfigError(f"bands={bands}: from 1 to the smaller of separation={separation} and rounds={rounds}.")
    return tuple(float(c) for c in _least(square_root(bands), rounds, separation))


def sensitivity(coefficients: np.ndarray, rounds: int, separation: int) -> float:
    """The L2 norm of C·X for one client's contributions of norm 1, in the worst of all rounds it may be in."""
    return math.sqrt(float(_multiplicity(len(coefficients), rounds, separation) @ np.square(coefficients)))


def error(coefficients: np.ndarray, rounds: int, separation: int) -> float:
    """Root mean square, over all prefix sums of a run, of the noise at multiplier 1 and contributions of norm 1."""
    return math.sqrt(_loss(np.asarray(coefficients, np.float64), rounds, separation)[0])


def _multiplicity(bands: int, rounds: int, separation: int) -> np.ndarray:
    """How often a coefficient occurs in the columns 0, separation, 2·separation, …, the longest ones."""
    starts = np.arange(0, rounds, separation)
    return np.array([np.count_nonzero(starts < rounds - j) for j in range(bands)], np.float64)


def _divided(series: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
    """The power series `series` over that of the coefficients (the first being 1), to the same length."""
    bands, out = len(coefficients), np.concatenate([np.zeros(len(coefficients) - 1), series])
    backwards = coefficients[:0:-1]
    for t in range(bands - 1, len(out)):
        out[t] -= backwards @ out[t - bands + 1 : t]
    return out[bands - 1 :]


def _loss(coefficients: np.ndarray, rounds: int, separation: int) -> tuple[float, np.ndarray]:
    """The mean squared error, and its gradient."""
    often, left = _multiplicity(len(coefficients), rounds, separation), 1 - np.arange(rounds) / rounds
    prefix = _divided(np.ones(rounds), coefficients)
    sens, noise = float(often @ coefficients**2), float(left @ prefix**2)
    # ∂p(x)/∂c_j = −x^j · p(x) / c(x)
    moved, weighed = _divided(prefix, coefficients), 2 * left * prefix
    slopes = np.array([weighed[j:] @ moved[: rounds - j] for j in range(len(coefficients))])
    return sens * noise, 2 * often * coefficients * noise - sens * slopes


def _least(start: np.ndarray, rounds: int, separation: int) -> np.ndarray:
    """Limited-memory BFGS (Nocedal and Wright, algorithm 7.5) over all coefficients but the first."""
    x, (loss, slope) = start, _loss(start, rounds, separation)
    pairs: list[tuple[np.ndarray, np.ndarray]] = []
    for _ in range(_STEPS):
        direction, scales = slope[1:].copy(), []
        for moved, turned in reversed(pairs):
            scales.append((moved @ direction) / (moved @ turned))
            direction -= scales[-1] * turned
        if pairs:
            direction *= (pairs[-1][0] @ pairs[-1][1]) / (pairs[-1][1] @ pairs[-1][1])
        for (moved, turned), scale in zip(pairs, reversed(scales), strict=True):
            direction += (scale - (turned @ direction) / (moved @ turned)) * moved
        length, fall = 1.0 if pairs else 0.1 / (1e-30 + float(np.abs(direction).max(initial=0))), slope[1:] @ direction
        while length > 1e-12:
            ahead = np.concatenate([x[:1], x[1:] - length * direction])
            there, steep = _loss(ahead, rounds, separation) if np.abs(ahead).max() <= 1 else (math.inf, slope)
            if there <= loss - 1e-4 * length * fall:
                break
            length /= 2
        else:
            break
        moved, turned = ahead[1:] - x[1:], steep[1:] - slope[1:]
        settled = loss - there < 1e-10 * loss
        x, loss, slope = ahead, there, steep
        if settled:
            break
        if moved @ turned > 0:
            pairs = [*pairs[1 - _MEMORY :], (moved, turned)]
    return x


# -- binary trees


def tree_sensitivity(rounds: int, restart: int, separation: int) -> tuple[float, float]:
    """The L2 norm of all nodes of the trees for one client's contributions of norm 1, and of those of one round alone.

    A node of 2^l rounds holds at most m_l = ⌈2^l/separation⌉ of the k = ⌈rounds/separation⌉ contributions, and a level
    has the largest sum of squares where as many nodes as can be are full.

    Args:
      rounds: of the run.
      restart: rounds after which a new tree begins.
      separation: the least number of rounds from one participation of a client to its next.
    """
    k = math.ceil(rounds / separation)
    fullest = [min(k, math.ceil((1 << level) / separation)) for level in range(restart.bit_length())]
    squares = sum(k // m * m**2 + (k % m) ** 2 for m in fullest)
    return math.sqrt(squares), math.sqrt(sum(m**2 for m in fullest))


@functools.lru_cache(maxsize=8)
def honaker(levels: int) -> tuple[tuple[float, float], ...]:
    """For each level of a tree, the weights of a node's own noise and of its children's estimates in the best estimate
    of its sum from its own subtree: those of inverse variance.

    >>> honaker(2)
    ((1.0, 0.0), (0.6666666666666666, 0.33333333333333337))
    """
    weights, variance = [(1.0, 0.0)], 1.0
    for _ in range(levels - 1):
        own = 2 * variance / (1 + 2 * variance)
        weights.append((own, 1 - own))
        variance = own
    return tuple(weights)


def tree_error(rounds: int, size: int, separation: int) -> float:
    """Root mean square, over all prefix sums of a run, of the noise at multiplier 1 and contributions of norm 1.

    Args:
      rounds: of the run.
      size: rounds of a tree, after which a new one begins.
      separation: the least number of rounds from one participation of a client to its next.
    """
    variances = np.array([own for own, _ in honaker(size.bit_length())])
    t = np.arange(1, rounds + 1)
    whole, rest = t // size, t % size

    def of(count: np.ndarray) -> np.ndarray:
        bits = (count[:, None] >> np.arange(len(variances))) & 1
        found: np.ndarray = bits @ variances
        return found

    noise = whole * of(np.array([size]))[0] + of(rest)
    return tree_sensitivity(rounds, size, separation)[0] * math.sqrt(float(noise.mean()))


@functools.lru_cache(maxsize=8)
def restart(rounds: int, separation: int) -> int:
    """The size of trees, among the powers of two and the whole run, that has the least error."""
    sizes = [min(rounds, 1 << level) for level in range(rounds.bit_length() + 1)]
    return min(sizes, key=lambda size: tree_error(rounds, size, separation))
