"""Protective noise on the integers: discrete Gaussians and Skellams from a secret stream, for modular sums.

    discrete Gaussian   P(k) ∝ exp(−k² / 2σ²)                 a sum of n of them is nearly one of n·σ²
    Skellam             difference of two Poissons            a sum of n of them is one of n times the variance

Drawn by inversion: 63 random bits are looked up in a table of the magnitude's distribution, one more is the sign. The
table is computed in integers of 240 bits and more, and has 127 bits of precision; where 63 bits do not decide (once in
10¹⁴ draws), 64 more are drawn. So the law differs from the exact one by less than 2⁻¹⁰⁰ in total variation for each
draw, and no float takes part whose rounding could tell neighbours apart.

Sources: Canonne, Kamath and Steinke 2020, The Discrete Gaussian for Differential Privacy,
https://arxiv.org/abs/2004.00010; Agarwal, Kairouz and Liu 2021, The Skellam Mechanism for Differentially Private
Federated Learning, https://arxiv.org/abs/2110.04995
"""

import bisect
import decimal
import functools
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from hansa.core.sampling import Stream

MOST_STD = 2.0**14
"""Tables are made up to this standard deviation: a grid finer than 2⁻¹⁴ of the noise gains nothing."""

_BITS = 240  # of the fixed point in which tables are computed
_KEPT = 140  # probabilities below 2⁻¹⁴⁰ are left out
_WORD = 1 << 64


class Table:
    """A symmetric law on the integers, ready to draw from.

    Args:
      weights: of 0, 1, 2, … (and of their negatives), as integers; they need not add up to anything.
    """

    def __init__(self, weights: Sequence[int]) -> None:
        total = weights[0] + 2 * sum(weights[1:])
        sums, cuts = 0, []
        for place, weight in enumerate(weights[:-1]):
            sums += weight * (2 if place else 1)
            cuts.append((sums << 127) // total)
        self._cuts = cuts
        self._high = np.array([cut >> 64 for cut in cuts], np.uint64)

    def draw(self, stream: Stream, count: int) -> np.ndarray:
        """`count` draws: shape (count,), int64. Every call takes bits that no other call was given."""
        words = stream.words(count)
        upper = words >> np.uint64(1)
        found = np.searchsorted(self._high, upper, side="right")
        if len(self._high):
            # Equal to a cut in its upper 63 bits: the lower 64 decide.
            for place in np.flatnonzero(self._high[np.maximum(found, 1) - 1] == upper).tolist():
                whole = int(upper[place]) * _WORD + stream.word()
                found[place] = bisect.bisect_right(self._cuts, whole)
        sign = (words & np.uint64(1)).astype(np.int64)
        drawn: np.ndarray = found.astype(np.int64) * (1 - 2 * sign)
        return drawn


@functools.lru_cache(maxsize=16)
def discrete_gaussian(variance: float) -> Table:
    """The discrete Gaussian with this parameter σ² (its variance is a little less for σ below 1).

    Args:
      variance: above 0, at most `MOST_STD`².
    """
    return Table(gaussian_weights(variance))


@functools.lru_cache(maxsize=16)
def skellam(variance: float) -> Table:
    """The symmetric Skellam law of this variance: the difference of two Poissons of half of it each."""
    return Table(skellam_weights(variance))


def gaussian_weights(variance: float) -> list[int]:
    """exp(−k² / 2σ²) for k = 0, 1, … as integers, until they are negligible."""
    one = 1 << _BITS
    with decimal.localcontext() as context:
        context.prec = 90
        step = -1 / decimal.Decimal(variance)
        ratio = int((step / 2).exp() * one)  # weight k+1 over weight k
        shrink = int(step.exp() * one)  # the next ratio over this one
    weights, weight = [], one
    while weight >> (_BITS - _KEPT):
        weights.append(weight)
        weight = weight * ratio >> _BITS
        ratio = ratio * shrink >> _BITS
    return weights


def skellam_weights(variance: float) -> list[int]:
    """I_k(variance) for k = 0, 1, … up to a factor, by Miller's backward recurrence, until they are negligible."""
    half = Fraction(variance) / 2
    top = math.ceil(17 * math.sqrt(variance)) + 100  # where the law is below 2⁻²⁰⁰ of its peak
    weights = [0] * (top + 2)
    weights[top] = 1 << 64
    for k in range(top, 0, -1):  # I_{k−1} = I_{k+1} + (2k / x)·I_k
        weights[k - 1] = weights[k + 1] + k * weights[k] * half.denominator // half.numerator
    least = weights[0] >> _KEPT
    return [weight for weight in weights if weight > least]
