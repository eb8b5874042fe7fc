"""A random rotation by the real Fourier transform of any length: random signs, then cosines and sines.

    y = F·diag(s)·x       rows of F:   1/√d      √(2/d)·cos(2πjk/d), −√(2/d)·sin(2πjk/d)      (−1)ʲ/√d, d even
                                       k = 0     k = 1, 2, … below d/2                        k = d/2

F is orthogonal for every d, so that nothing is padded and no window is needed. An entry is √2 times as large as one of
Hadamard's at most; where one coordinate holds most of a vector, the rotated ones follow its wave and are less normal
than Hadamard's. Calculated in float64 by NumPy's transform, O(d log d) for prime lengths too (Bluestein's).

Sources: the transform that TensorFlow Federated's `DiscreteFourierTransformFactory` packs into complex numbers, which
pads odd lengths; Ailon and Chazelle 2009, https://doi.org/10.1137/060673096
"""

import math

import numpy as np


class FourierRotation:
    """An orthogonal map of vectors of one size; as `hansa.stages.rotate.Rotation`, but for its transform.

    Args:
      size: coordinates.
      seed: of the signs; public.

    >>> x = np.arange(5.0)
    >>> y = FourierRotation(5, seed=1).apply(x)
    >>> bool(np.allclose(FourierRotation(5, seed=1).undo(y), x)), bool(np.isclose(y @ y, x @ x))
    (True, True)
    """

    def __init__(self, size: int, seed: int) -> None:
        self._signs = signs(size, seed)

    def apply(self, vector: np.ndarray) -> np.ndarray:
        """R·x: a new float64 array of the same shape (size,)."""
        return transformed(vector * self._signs)

    def undo(self, vector: np.ndarray) -> np.ndarray:
        """Rᵀ·y."""
        back = restored(vector)
        back *= self._signs
        return back


def signs(count: int, seed: int) -> np.ndarray:
    """±1 as int8, the same on every machine."""
    words = np.random.PCG64(seed).random_raw(-(-count // 64))
    bits = np.unpackbits(words.astype("<u8").view(np.uint8), count=count)
    return 1 - 2 * bits.view(np.int8)


def transformed(vector: np.ndarray) -> np.ndarray:
    """F·x, in float64.

    >>> np.round(transformed(np.array([1.0, 0.0, 0.0])), 3).tolist()
    [0.577, 0.816, 0.0]
    """
    # As numbers: re₀ 0 re₁ im₁ … ; the second and, for an even length, the last are zeros that say nothing.
    numbers = np.fft.rfft(vector.astype(np.float64, copy=False), norm="ortho").view(np.float64)
    numbers[1] = numbers[0]
    whole = numbers[1 : len(vector) + 1]
    whole[_inner(len(whole))] *= math.sqrt(2)
    return whole


def restored(vector: np.ndarray) -> np.ndarray:
    """Fᵀ·y, in float64."""
    size = len(vector)
    numbers = np.zeros(2 * (size // 2 + 1))
    numbers[1 : size + 1] = vector
    numbers[1 : size + 1][_inner(size)] *= math.sqrt(0.5)
    numbers[0], numbers[1] = numbers[1], 0.0
    back: np.ndarray = np.fft.irfft(numbers.view(np.complex128), size, norm="ortho")
    return back


def rounding(size: int, dtype: np.dtype) -> float:
    """The most, relative to its norm, by which float rounding moves a vector of this size in `apply` or `undo`.

    That of the result's type, and of the float64 transform, whose passes err by few units each; Bluestein's detour, for
    prime factors beyond √d, goes through convolutions that may be √d times as long as the vector.
    """
    exact = 64 * math.log2(2 * size + 2) * math.sqrt(size) * float(np.finfo(np.float64).eps)
    return float(np.finfo(dtype).eps) + exact


def _inner(size: int) -> slice:
    """The coordinates of all frequencies but the constant and, for an even size, the alternating one."""
    return slice(1, size - 1 if size % 2 == 0 else size)
