"""Shamir's secret sharing of many short secrets at once, over the field of 2³¹ − 1 elements.

    share i of s      f(i),  f of degree t − 1 with f(0) = s and random coefficients;  i = 1 … n
    any t shares      s = Σ λᵢ f(i);  fewer say nothing about s

A secret is cut into limbs of three bytes. Both directions are matrix products: residues split into halves of 16 bits
are exact in float64, so they run on the fast unit.

Source: Shamir 1979, How to share a secret, https://doi.org/10.1145/359168.359176
"""

import functools
from collections.abc import Callable, Sequence

import numpy as np

from hansa.core.errors import ConfigError, ProtocolError

PRIME = (1 << 31) - 1
LIMB_BYTES = 3
_HALF = 16


def limbs(secret: bytes) -> int:
    """Field elements of one secret."""
    return -(-len(secret) // LIMB_BYTES)


def split(secret: bytes, shares: int, threshold: int, entropy: Callable[[int], bytes]) -> np.ndarray:
    """Shares of a secret.

    Args:
      secret: any bytes.
      shares: how many, n < 2³¹ − 1.
      threshold: how many give it back, t ≤ n.
      entropy: random bytes of the operating system.

    Returns:
      Shape (n, limbs), uint32: row i is the share at i + 1.
    """
    if not 1 <= threshold <= shares:
        raise ConfigError(f"threshold={threshold} of {shares} shares: it lies between 1 and their number.")
    padded = secret + bytes(-len(secret) % LIMB_BYTES)
    raw = np.frombuffer(padded, np.uint8).reshape(-1, LIMB_BYTES).astype(np.int64)
    constant = raw[:, 0] | raw[:, 1] << 8 | raw[:, 2] << 16
    coefficients = _uniform((threshold - 1) * len(constant), entropy).reshape(threshold - 1, len(constant))
    return _product(_powers(shares, threshold), np.vstack((constant, coefficients))).astype(np.uint32)


def combine(shares: np.ndarray, places: Sequence[int], length: int) -> bytes:
    """The secret of `length` bytes from as many shares as its threshold.

    Args:
      shares: shape (t, limbs), as `split` gave them.
      places: their rows there, each once.

    Raises:
      ProtocolError: the shares are not those of any secret of this length.
    """
    weights = _weights(tuple(places))
    values = _product(weights[None, :], shares.astype(np.int64) % PRIME)[0]
    if int(values.max(initial=0)) >= 1 << (8 * LIMB_BYTES):
        raise ProtocolError("shares do not fit together: one of them is malformed.")
    raw = np.stack([values >> shift & 255 for shift in (0, 8, 16)], 1).astype(np.uint8).tobytes()
    if any(raw[length:]):
        raise ProtocolError("shares do not fit together: one of them is malformed.")
    return raw[:length]


@functools.lru_cache(maxsize=8)
def _powers(shares: int, threshold: int) -> np.ndarray:
    points, out = np.arange(1, shares + 1, dtype=np.int64), np.empty((shares, threshold), np.int64)
    out[:, 0] = 1
    for k in range(1, threshold):
        out[:, k] = out[:, k - 1] * points % PRIME
    return out


@functools.lru_cache(maxsize=256)
def _weights(places: tuple[int, ...]) -> np.ndarray:
    """Lagrange's coefficients at 0 of the points place + 1."""
    points = np.array(places, np.int64) + 1
    if len(set(places)) != len(places):
        raise ProtocolError("one share was given twice.")
    below = (points[None, :] - points[:, None]) % PRIME
    np.fill_diagonal(below, 1)
    above = np.broadcast_to(points, below.shape).copy()
    np.fill_diagonal(above, 1)
    inverse = np.array([pow(int(each), PRIME - 2, PRIME) for each in _row_products(below)], np.int64)
    weights: np.ndarray = _row_products(above) * inverse % PRIME
    return weights


def _row_products(matrix: np.ndarray) -> np.ndarray:
    while matrix.shape[1] > 1:
        if matrix.shape[1] % 2:
            matrix = np.hstack((matrix, np.ones((len(matrix), 1), np.int64)))
        matrix = matrix[:, ::2] * matrix[:, 1::2] % PRIME
    column: np.ndarray = matrix[:, 0]
    return column


def _product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The product modulo the prime of residues: halves of 16 bits, whose sums of 2²⁰ products are exact in float64."""
    low_a, high_a = (a & 0xFFFF).astype(np.float64), (a >> _HALF).astype(np.float64)
    low_b, high_b = (b & 0xFFFF).astype(np.float64), (b >> _HALF).astype(np.float64)

    def residues(product: np.ndarray) -> np.ndarray:
        reduced: np.ndarray = product.astype(np.int64) % PRIME
        return reduced

    high = residues(high_a @ high_b)
    middle = (residues(low_a @ high_b + high_a @ low_b) + (high << _HALF)) % PRIME
    product: np.ndarray = (residues(low_a @ low_b) + (middle << _HALF)) % PRIME
    return product


def _uniform(count: int, entropy: Callable[[int], bytes]) -> np.ndarray:
    """Field elements by rejection: 31 bits, and again where they are the prime itself."""
    out = np.frombuffer(entropy(4 * count), "<u4").astype(np.int64) & PRIME
    while (bad := np.flatnonzero(out == PRIME)).size:
        out[bad] = np.frombuffer(entropy(4 * len(bad)), "<u4").astype(np.int64) & PRIME
    return out
