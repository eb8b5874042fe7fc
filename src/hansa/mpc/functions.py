"""What is no sum or product, by comparisons, bits and polynomials.

    reciprocal, rsqrt, sqrt, log     the number is scaled into [1/2, 1) by its highest bit; then Newton or a polynomial:
                                     a relative error of the same size everywhere
    exp                              (1 + x/2ⁿ)^(2ⁿ) with a longer fraction inside
    sigmoid, tanh, gelu              cubics between knots, all comparisons in one batch
    maximum, sort                    a tournament; the protocol's own sort, or Batcher's network

Errors, over the ranges given, with 16 bits of fraction: `tests/mpc/test_functions.py` measures them all.
"""

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from hansa.mpc.fixed import Fixed

_FINE = 22  # bits of fraction inside approximations of numbers near 1
_ALL_PAIRS, _FEW_COMPARISONS = 16, 1 << 13  # up to which all numbers are compared with each other at once
_LARGEST = 61  # bits of a number that is truncated
_TOP = 46  # the highest bit that a number to be scaled may have


# -- by bits


def _highest(x: Fixed) -> Fixed:
    """One-hot integers of the highest bit of positive numbers: shape (..., _TOP + 1)."""
    protocol = x.engine.protocol
    seen = protocol.bits(x.share())
    for distance in (1, 2, 4, 8, 16, 32):
        moved = seen.map(lambda part, d=distance: (part >> d) & ((1 << (64 - d)) - 1))  # type: ignore[misc]
        seen = seen ^ moved ^ protocol.both(seen, moved)  # or
    alone = seen ^ seen.map(lambda part: (part >> 1) & ((1 << 63) - 1))
    places = x.engine.placed(torch.arange(_TOP + 1))
    spread = alone.map(lambda part: ((part[..., None] >> places) & 1).to(torch.int8))
    return Fixed(x.engine, protocol.to_arithmetic(spread), 0, 0)


def _weighted(hot: Fixed, weights: list[int], bits: int) -> Fixed:
    """The sum of one-hot bits with integer weights, as a number with so many bits of fraction."""
    factors = hot.engine.placed(torch.tensor(weights, dtype=torch.int64))
    share = hot.share().map(lambda part: (part * factors).sum(-1))
    return Fixed(hot.engine, share, bits, bits)


def _scaled(x: Fixed) -> tuple[Fixed, Fixed]:
    """A positive number scaled into [1/2, 1), with a longer fraction, and its highest bit."""
    hot = _highest(x)
    factor = _weighted(hot, [1 << (_TOP - 1 - k) if k < _TOP else 0 for k in range(_TOP + 1)], _TOP - x.home)
    return (x * factor).rehomed(_FINE), hot


def _signed(x: Fixed, function: Callable[[Fixed], Fixed]) -> Fixed:
    """An odd function from its values at positive numbers."""
    sign = 1 - x.negative() * 2
    return function(x * sign) * sign


def reciprocal(x: Fixed) -> Fixed:
    """The number 1/x for 2^−14 ≤ |x| < 2^15, with a relative error of 2^−15 and one unit; 0 at 0."""
    return _signed(x, positive_reciprocal)


def positive_reciprocal(x: Fixed) -> Fixed:
    """As `reciprocal`, of numbers that are known to be positive: without their signs."""
    f = x.engine.bits
    near, hot = _scaled(x)
    w = 2.9142 - near * 2
    for _ in range(3):
        w = w * (2 - w * near)
    powers = [f + x.home - 1 - k for k in range(_TOP + 1)]
    factor = _weighted(hot, [1 << power if 0 <= power < 61 - _FINE else 0 for power in powers], f)
    return (w * factor).rehomed(f)


_WIDEST = 32  # up to which numbers need no scaling before they are inverted


def reciprocal_of_at_least_one(x: Fixed, largest: int) -> Fixed:
    """The number 1/x for 1 ≤ x ≤ `largest`, as `reciprocal`: of few numbers without a look at their bits.

    Goldschmidt's division: from w ≈ 1/x and e = 1 − x·w on, w becomes w·(1 + e) and e becomes e², both in one message.
    The first w is linear in x, the one whose e is least at its worst.
    """
    if largest > _WIDEST:
        return positive_reciprocal(x)
    fine = x.home + 8
    slope = math.floor((8 << 8) / (largest**2 + 6 * largest + 1)) / (1 << 8)
    worst = max(abs(1 - slope * largest), abs(1 - slope * (largest + 1) ** 2 / 4))
    w = ((largest + 1 - x) * slope).rehomed(fine)
    e = (1 - x * w).rehomed(fine)
    while worst**2 > 2.0**-15:
        both = (w.join([e], torch.stack) * e).rehomed(fine)
        both.share()
        w, e = w + both.map(lambda part: part[0]), both.map(lambda part: part[1])
        worst *= worst
    return (w + w * e).rehomed(x.engine.bits)


def quotient(a: Fixed, b: Fixed) -> Fixed:
    """The number a/b for b > 0 of the same scale and |a/b| < 2^15, with a relative error of 2^−20 and one unit; 0 at 0.

    Both are scaled by the highest bit of b before anything is rounded, so that a large b costs no precision.
    """
    near, hot = _scaled(b)
    factor = _weighted(hot, [1 << (_TOP - 1 - k) if k < _TOP else 0 for k in range(_TOP + 1)], _TOP - b.home)
    w = 2.9142 - near * 2
    for _ in range(3):
        w = w * (2 - w * near)
    return ((a * factor).rehomed(_FINE) * w).rehomed(b.engine.bits)


def signed_quotient(a: Fixed, b: Fixed) -> Fixed:
    """As `quotient`, of any b but 0."""
    sign = 1 - b.negative() * 2
    return quotient(a * sign, b * sign)


def rsqrt(x: Fixed) -> Fixed:
    """The number x^(−1/2) for 2^−14 ≤ x < 2^30, with a relative error of 2^−12 and one unit; 0 at 0."""
    _, y, hot = _rooted(x)
    return _by_halves(y, hot, x, -1)


def sqrt(x: Fixed) -> Fixed:
    """The number x^(1/2), as `rsqrt`, and as exact for a large x as for a small one: it is rounded once, at the end."""
    near, y, hot = _rooted(x)
    return _by_halves((near * y).rehomed(_FINE), hot, x, 1)


def _rooted(x: Fixed) -> tuple[Fixed, Fixed, Fixed]:
    """A number scaled into [1/2, 1), 1 over the root of that, and its highest bit."""
    near, hot = _scaled(x)
    y = 2.223 - near * 1.259
    for _ in range(3):
        y = (y * (3 - near * (y * y).rehomed(_FINE))) * 0.5
    return near, y, hot


def _by_halves(y: Fixed, hot: Fixed, x: Fixed, sign: int) -> Fixed:
    """The number y times the root of what x was scaled by, or over it."""
    f = x.engine.bits
    factor = _weighted(hot, [round(2 ** (f + sign * (k + 1 - x.home) / 2)) for k in range(_TOP + 1)], f)
    return (y * factor).rehomed(f)


def log(x: Fixed) -> Fixed:
    """The natural logarithm for 2^−14 ≤ x < 2^30, with an error of 2^−13; below 0 and at 0 that of half a unit."""
    f = x.engine.bits
    near, hot = _scaled(x)
    # The polynomial of degree 7 through Chebyshev's points of [1/2, 1]; its error is below 1e-6.
    series = np.polynomial.Chebyshev.interpolate(np.log, 7, domain=[0.5, 1.0]).convert(kind=np.polynomial.Polynomial)
    value = Fixed.constant(x.engine, torch.tensor(float(series.coef[-1]))).rehomed(_FINE)
    for coefficient in reversed(series.coef[:-1]):
        value = near * value + float(coefficient)
    exponent = _weighted(hot, [round((k + 1 - x.home) * math.log(2) * (1 << f)) for k in range(_TOP + 1)], f)
    least = -(x.home + 1) * math.log(2) - float(series.coef[0])  # with the polynomial's value where no bit is set
    nothing = 1 - hot.map(lambda part: part.sum(-1))
    return value.rehomed(f) + exponent + nothing * least


def exp(x: Fixed) -> Fixed:
    """The exponential of x ≤ 10: 0 below −16, as `exp_below_zero`; with a relative error of 2^−11, and one unit.

    (1 + t + t²/2)^1024 with t = x/1024; the last square, which may be large, of a shorter fraction.
    """
    far, wide = (x + 16.0).negative(), 26
    t = (x * 2.0**-10).rehomed(wide)
    y = ((t * t).rehomed(wide) * 0.5 + t + 1.0).rehomed(wide + 1)
    for _ in range(8):
        y = (y * y).rehomed(wide)
    y = (y * y).rehomed(22)
    return (y * y).rehomed(x.engine.bits) * (1 - far)


def exp_below_zero(x: Fixed) -> Fixed:
    """The exponential of x ≤ 0, however small: 0 below −16; with a relative error of |x|³/24576, and one unit.

    (1 + t + t²/2)^64 with t = x/64. What it is below −16, wrong as it may be, is multiplied by 0.
    """
    far = (x + 16.0).negative()
    wide = 26
    t = (x * 2.0**-6).rehomed(wide)
    y = ((t * t).rehomed(wide) * 0.5 + t + 1.0).rehomed(wide + 1)
    for _ in range(6):
        y = (y * y).rehomed(wide)
    return y.rehomed(x.engine.bits) * (1 - far)


# -- by knots


def piecewise(x: Fixed, function: Callable[[np.ndarray], np.ndarray], knots: Sequence[float]) -> Fixed:
    """Cubics between knots, constants beyond them.

    Args:
      x: any shape.
      function: to be approximated between the knots; beyond them it tends to 0 and to 1.
      knots: increasing, with all of which x is compared in one batch.

    Each coefficient of x's own piece is a sum of comparisons times public steps, without a message, and the polynomial
    one product. Steps are differences of whole numbers: beyond the knots they cancel exactly, so that powers of a large
    number, wrong as they may be, count for nothing.
    """
    steps, last = _pieces(function, tuple(knots))
    square = x * x
    if not x.engine.protocol.fast_truncation and 3 * (x.home + math.log2(max(map(abs, knots)))) < _LARGEST:
        square = square.rehomed(2 * x.home)  # the ring has room for the cube between the knots: one message, not three
    cube = (square * x).rehomed(x.home)
    spread = x.map(lambda part: part[..., None])
    below = (spread - torch.tensor(knots, dtype=torch.float64)).negative().share()
    steps = x.engine.placed(steps)
    powers = [Fixed(x.engine, below.map(lambda part, c=c: (part * c).sum(-1)), _FINE, _FINE) for c in steps]
    one, first, second, third = (power + float(c) for power, c in zip(powers, last, strict=True))
    result = first * x + second * square + third * cube + one
    return result.rehomed(x.engine.bits)


@functools.cache
def _pieces(function: Callable[[np.ndarray], np.ndarray], knots: tuple[float, ...]) -> tuple[torch.Tensor, np.ndarray]:
    """Steps of the four coefficients at each knot, shape (4, knots), and the coefficients beyond the last."""
    ends = [float(function(np.array(knot))) / 2 for knot in (knots[0], -knots[-1])]
    pieces = [np.array([ends[0], 0.0, 0.0, 0.0])]
    for low, high in itertools.pairwise(knots):
        fitted = np.polynomial.Chebyshev.interpolate(function, 3, domain=[low, high])
        at = np.linspace(low, high, 1000)
        error = function(at) - fitted(at)
        pieces.append(fitted.convert(kind=np.polynomial.Polynomial).coef)
        pieces[-1][0] += (error.max() + error.min()) / 2  # as much above as below
    pieces.append(np.array([1 - ends[1], 0.0, 0.0, 0.0]))
    table = np.round(np.stack(pieces).T * (1 << _FINE))
    return torch.from_numpy(table[:, :-1] - table[:, 1:]).long(), table[:, -1] / (1 << _FINE)


def _logistic(t: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-t)))


def _normal(t: np.ndarray) -> np.ndarray:
    return np.asarray([0.5 * (1 + math.erf(each / math.sqrt(2))) for each in np.ravel(t)]).reshape(np.shape(t))


# Where the largest error of all pieces is least.
_LOGISTIC_KNOTS = (-5.778, -1.561, 1.561, 5.778)
_NORMAL_KNOTS = (-3.019, -0.908, 0.908, 3.019)


def sigmoid(x: Fixed) -> Fixed:
    """The logistic function, in the engine's way: one of `SIGMOIDS`."""
    return SIGMOIDS[x.engine.sigmoid](x)


def _spline(x: Fixed) -> Fixed:
    """Within 2e-3 everywhere."""
    return piecewise(x, _logistic, _LOGISTIC_KNOTS)


def _three(x: Fixed) -> Fixed:
    """0, x + 1/2 and 1: within 0.38 everywhere, at its worst where it reaches 0 and 1; cheap."""
    x.share()  # once, for all three uses
    raised = x + 0.5
    below = raised.join([x - 0.5], torch.stack).negative()
    outside, inside = below.map(lambda part: part[1]), below.map(lambda part: part[0])
    result: Fixed = raised * (outside - inside) + (1 - outside)
    return result


def _five(x: Fixed) -> Fixed:
    """Five straight lines: within 0.02 everywhere."""
    spread = x.map(lambda part: part[..., None])
    below = (spread - torch.tensor([-3.5, -1.5, 1.5, 3.5], dtype=torch.float64)).negative().share()
    table = torch.tensor([[0.01, 0.29, 0.5, 0.71, 0.99], [0, 0.08, 0.22, 0.08, 0]], dtype=torch.float64)
    codes = (table * (1 << _FINE)).round().long()
    steps, last = x.engine.placed(codes[:, :-1] - codes[:, 1:]), codes[:, -1] / (1 << _FINE)
    height, slope = (
        Fixed(x.engine, below.map(lambda part, c=c: (part * c).sum(-1)), _FINE, _FINE) + float(end)
        for c, end in zip(steps, last, strict=True)
    )
    return (slope * x + height).rehomed(x.engine.bits)


def _exact(x: Fixed) -> Fixed:
    """By exponential and reciprocal: within 3e-4 everywhere."""
    negative = x.negative()
    upper = reciprocal_of_at_least_one(exp_below_zero(x * (negative * 2 - 1)) + 1.0, 2)
    return upper + negative * (1 - upper * 2)


def _chebyshev(x: Fixed) -> Fixed:
    """A polynomial, without a comparison: within 7e-3 for |x| ≤ 8, and wrong beyond."""
    t = (x * 0.125).rehomed(_FINE)
    square = (t * t).rehomed(_FINE)
    first, *others = _odd_coefficients()
    value = square * first + others[0]
    for coefficient in others[1:]:
        value = value.rehomed(_FINE) * square + coefficient
    return (value.rehomed(_FINE) * t + 0.5).rehomed(x.engine.bits)


@functools.cache
def _odd_coefficients() -> list[float]:
    """Of x/8, the highest power first, of the polynomial of degree 11 through Chebyshev's points of [-8, 8]."""
    series = np.polynomial.Chebyshev.interpolate(_logistic, 11, domain=[-8, 8])
    return [float(each) for each in np.polynomial.chebyshev.cheb2poly(series.coef)[:0:-2]]


SIGMOIDS: Mapping[str, Callable[[Fixed], Fixed]] = {
    "spline": _spline, "three": _three, "five": _five, "exact": _exact, "chebyshev": _chebyshev,
}  # fmt: skip


def tanh(x: Fixed) -> Fixed:
    """Twice the logistic function of 2x, less 1: within 4e-3."""
    return sigmoid(x * 2) * 2 - 1


def normal_cdf(x: Fixed) -> Fixed:
    """The standard normal distribution function, within 2e-3."""
    return piecewise(x, _normal, _NORMAL_KNOTS)


# -- by comparison


def equal(x: Fixed, y: Fixed) -> Fixed:
    """1 where two numbers are equal in every bit."""
    difference = (x - y).map(lambda part: part)
    difference.share()
    both = difference.join([-difference], lambda parts: torch.stack(parts)).negative()
    return 1 - both.map(lambda part: part.sum(0))


def maximum(x: Fixed, hot: bool = False) -> tuple[Fixed, Fixed | None]:
    """The largest along the last dimension, and, if asked, a one-hot secret of its place: the first, if several are.

    Few numbers are all compared with each other at once; many meet in a tournament, in which each is compared once.
    """
    size = x.shape[-1]
    if 2 < size <= _ALL_PAIRS and math.prod(x.shape) * (size - 1) // 2 <= _FEW_COMPARISONS and x.public is None:
        return _by_pairs(x)
    return _by_tournament(x, hot)


def _by_pairs(x: Fixed) -> tuple[Fixed, Fixed]:
    """The one that no other one beats."""
    protocol, size = x.engine.protocol, x.shape[-1]
    x.share()
    low, high = torch.triu_indices(size, size, 1)
    difference = x.map(lambda part: part[..., low]) - x.map(lambda part: part[..., high])
    beaten = protocol.negative(difference.share())  # 1 where the later one is larger
    stands = protocol.flip(beaten)
    # Row i holds, for every j, the bit that i stands against j: pair (i, j) itself for i < j, its opposite for j < i.
    place = torch.zeros(size, size, dtype=torch.int64)
    place[low, high] = place[high, low] = torch.arange(len(low))
    whole = x.engine.placed(torch.ones(size, size, dtype=torch.int8))
    first, second = whole.triu(1), whole.tril(-1)
    rows = stands.map(lambda part: part[..., place] * first) ^ beaten.map(lambda part: part[..., place] * second)
    itself = x.engine.placed(torch.eye(size, dtype=torch.int8)).expand(*x.shape, size).contiguous()
    rows = rows ^ protocol.constant_bits(itself)
    while (width := rows.shape[-1]) > 1:
        half = width // 2
        both = protocol.both(
            rows.map(lambda part, h=half: part[..., :h].contiguous()),  # type: ignore[misc]
            rows.map(lambda part, h=half: part[..., h : 2 * h].contiguous()),  # type: ignore[misc]
        )
        rest = rows.map(lambda part, h=half: part[..., 2 * h :])  # type: ignore[misc]
        rows = both.zip(rest, lambda a, b: torch.cat((a, b), -1))
    hot = Fixed(x.engine, protocol.to_arithmetic(rows.map(lambda part: part[..., 0])), 0, 0)
    return (hot * x).map(lambda part: part.sum(-1)), hot


def _by_tournament(x: Fixed, hot: bool) -> tuple[Fixed, Fixed | None]:
    places = None
    if hot:
        size = x.shape[-1]
        eye = torch.eye(size, dtype=torch.int64).expand(*x.shape, size)
        places = Fixed.constant(x.engine, eye)
    while (size := x.shape[-1]) > 1:
        half = size // 2
        a, b = x.map(lambda part, h=half: part[..., :h]), x.map(lambda part, h=half: part[..., h : 2 * h])  # type: ignore[misc]
        rest = x.map(lambda part, h=half: part[..., 2 * h :])  # type: ignore[misc]
        difference = a - b
        right = difference.negative()  # 1 where b > a
        winner = a - difference * right
        if places is not None:
            p, q = (
                places.map(lambda part, h=half: part[..., :h, :]),  # type: ignore[misc]
                places.map(lambda part, h=half: part[..., h : 2 * h, :]),  # type: ignore[misc]
            )
            left_over = places.map(lambda part, h=half: part[..., 2 * h :, :])  # type: ignore[misc]
            won = p + (q - p) * right.map(lambda part: part[..., None])
            places = won.join([left_over], lambda parts: torch.cat(parts, -2))
        x = winner.join([rest], lambda parts: torch.cat(parts, -1)) if size % 2 else winner
    return x.map(lambda part: part[..., 0]), None if places is None else places.map(lambda part: part[..., 0, :])


def position(hot: Fixed) -> Fixed:
    """The place of the one in a one-hot secret."""
    result: Fixed = (hot * torch.arange(hot.shape[-1])).map(lambda part: part.sum(-1))
    return result


def sort(x: Fixed, descending: bool = False, carried: Fixed | None = None) -> tuple[Fixed, Fixed]:
    """In order along the last dimension, and what is carried along (the places, if nothing else).

    By the protocol's own way where it has one (`Protocol.sorted`), else by Batcher's odd-even merge sort.
    Source: Batcher 1968, Sorting networks and their applications, https://doi.org/10.1145/1468075.1468121
    """
    size = x.shape[-1]
    places = carried or Fixed.constant(x.engine, torch.arange(size).expand(x.shape))
    if (own := x.engine.protocol.sorted([x.share(), places.share()])) is not None:
        ends = [share.map(lambda part: part.flip(-1)) if descending else share for share in own]
        return Fixed(x.engine, ends[0], x.home, x.home), Fixed(x.engine, ends[1], places.home, places.home)
    for low, high in _network(size):
        a, b = (x.map(lambda part, at=at: part[..., at]) for at in (low, high))  # type: ignore[misc]
        swap = (a - b).negative() if descending else (b - a).negative()
        p, q = (places.map(lambda part, at=at: part[..., at]) for at in (low, high))  # type: ignore[misc]
        moved, carried = (b - a) * swap, (q - p) * swap
        x, places = _placed(x, low, high, moved), _placed(places, low, high, carried)
    return x, places


def _placed(x: Fixed, low: list[int], high: list[int], moved: Fixed) -> Fixed:
    """Adds `moved` at the low places and takes it from the high ones."""
    share, added = x.share(), moved.share()

    def put(part: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
        out = part.clone()
        out[..., low] += delta
        out[..., high] -= delta
        return out

    parts = tuple(put(part, delta) for part, delta in zip(share.parts, added.parts, strict=True))
    return Fixed(x.engine, replace(share, parts=parts), x.home, x.home)


@functools.cache
def _network(size: int) -> list[tuple[list[int], list[int]]]:
    """Layers of comparators that touch each place once."""
    layers = []
    whole = 1 << max(0, (size - 1).bit_length())
    p = 1
    while p < whole:
        k = p
        while k >= 1:
            pairs = [
                (i + j, i + j + k)
                for j in range(k % p, whole - k, 2 * k)
                for i in range(min(k, whole - j - k))
                if (i + j) // (2 * p) == (i + j + k) // (2 * p) and i + j + k < size
            ]
            if pairs:
                layers.append(([a for a, _ in pairs], [b for _, b in pairs]))
            k //= 2
        p *= 2
    return layers
