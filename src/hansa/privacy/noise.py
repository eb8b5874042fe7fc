"""Protective noise: normal and Laplace deviates from a secret stream, hardened against what floats give away.

    64 uniform bits, twice  ──►  r = √(−2·ln u),  θ = 2π·v  ──►  r·cos θ, r·sin θ      (Box and Muller 1958)
    64 uniform bits, once   ──►  ± ln u, the sign being one bit of them                 (Laplace)
    released: the grid point nearest to value + noise, the grid being σ·2⁻²⁴ or finer, never coarser

The set of floats that `value + noise` can hit depends on the value, which tells neighbours apart however much noise
there is (Mironov 2012). Rounding the sum, computed in float64, to a grid of 2²⁴ cells a standard deviation makes every
cell reachable from some 2²⁸ noises, whatever the value, and is post-processing.

One generator, SHAKE-256, serves every installation. AES in counter mode would be three times as fast at making bits,
but half as fast again at making normals is not worth two paths to test and noise whose bits depend on what is
installed.

Sources: Holohan and Braghin 2021, Secure Random Sampling in Differential Privacy, https://arxiv.org/abs/2107.10138;
Mironov 2012, On Significance of the Least Significant Bits for Differential Privacy,
https://doi.org/10.1145/2382196.2382264
"""

import hashlib
import math
import os
from abc import ABC, abstractmethod
from typing import Protocol

import numpy as np

from hansa.core.sampling import Stream

_PAIRS = 1 << 15  # a block of 512 KiB of random bits
_FIRST = 1 << 9  # pairs in the first block; each has twice as many as the one before, up to _PAIRS


def own_stream() -> Stream:
    """A fresh stream of the operating system's entropy: what a worker's own noise is drawn from."""
    return Stream(os.urandom(32))


class Deviates(ABC):
    """Deviates of one law, from 256 bits of a secret stream; each is given out once.

    Args:
      stream: of the server's secret, or a worker's own; never of the job's seed, which every worker knows.
    """

    most: float
    """No deviate is larger: what lies beyond has a probability below 10⁻¹⁹."""

    def __init__(self, stream: Stream) -> None:
        self._seed = b"".join(stream.word().to_bytes(8, "little") for _ in range(4))
        self._block = 0
        self._left = np.empty(0)

    def draw(self, count: int) -> np.ndarray:
        """The next `count` deviates: shape (count,), float64."""
        out = np.empty(count)
        at = 0
        while at < count:
            if not len(self._left):
                self._left = self._made(self._words())
            taken = self._left[: count - at]
            out[at : at + len(taken)] = taken
            self._left = self._left[len(taken) :]
            at += len(taken)
        return out

    def _words(self) -> np.ndarray:
        pairs = min(_PAIRS, _FIRST << min(self._block, 32))
        raw = hashlib.shake_256(self._seed + self._block.to_bytes(8, "little")).digest(16 * pairs)
        self._block += 1
        return np.frombuffer(raw, "<u8")

    @abstractmethod
    def _made(self, words: np.ndarray) -> np.ndarray:
        """As many deviates as there are words of 64 uniform bits."""


class Normals(Deviates):
    """Standard normal deviates.

    >>> Normals(Stream(b"secret")).draw(3).dtype
    dtype('float64')
    """

    most = 9.5

    def _made(self, words: np.ndarray) -> np.ndarray:
        # All 64 bits count where the uniform is small, which is where the tail comes from; 0 cannot occur.
        upper, lower = np.split(words, 2)
        radius = np.sqrt(-2.0 * np.log((upper.astype(np.float64) + 0.5) * 2.0**-64))
        angle = (lower >> np.uint64(11)).astype(np.float64) * (2.0**-53 * 2 * math.pi)
        return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])


class Laplaces(Deviates):
    """Deviates of density exp(−|x|) / 2: scale 1, standard deviation √2."""

    most = 45.0

    def _made(self, words: np.ndarray) -> np.ndarray:
        size = -np.log(((words >> np.uint64(1)).astype(np.float64) + 0.5) * 2.0**-63)
        made: np.ndarray = np.where(words & np.uint64(1), size, -size)
        return made


class Draws(Protocol):
    """Where noise comes from, in order: `Deviates`, or what was made of them."""

    def draw(self, count: int) -> np.ndarray:
        """The next `count`: shape (count,), float64."""


def add_noise(array: np.ndarray, scale: float, deviates: Draws) -> None:
    """Adds noise of this scale to every coordinate, in place, and rounds to the grid.

    Args:
      array: contiguous floats; their own type rounds once more, after the grid.
      scale: above 0, in the unit of the array: the standard deviation of normal noise.
      deviates: where the noise comes from.
    """
    grid = 2.0 ** (math.floor(math.log2(scale)) - 24)
    flat = array.reshape(-1)
    for at in range(0, len(flat), 2 * _PAIRS):
        block = flat[at : at + 2 * _PAIRS]
        noisy = block.astype(np.float64) + scale * deviates.draw(len(block))
        block[...] = np.rint(noisy / grid) * grid
