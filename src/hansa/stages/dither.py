"""Subtractive dither with entropy coding: an error that is uniform whatever was written, at the rate of its entropy.

    y = R·x, σ = ‖x‖/√d, Δ = r·σ      sent: k = round(y/Δ + u), entropy-coded      decode: Rᵀ·Δ(k − u)

u is uniform in [−½, ½) and known to both sides from a seed that travels along, so that the error of every coordinate is
uniform in ±Δ/2 and independent of x. Rotated coordinates are close to normal: the probability of k given u is known,
and asymmetric numeral systems write each k in −log₂ of it. u is told apart in 16 classes, each with a table of its own:
at one bit that halves the error of a single table for all u.

Every message has the same length. r is the finest of a fixed row of ratios at which the code fits.
"""

import bisect
import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from hansa.core.errors import ConfigError, MissingExtra, UpdateRejected
from hansa.core.pipeline import Setting, Signal, Stage, Step
from hansa.core.tensors import Array, squares
from hansa.stages.coded import TINY, Code, Coded
from hansa.stages.flat import Flat, flats
from hansa.stages.rotate import Rotation, rounding

_CLASSES = 16  # of u
_FINENESS = 256  # ratios from one power of two to the next
_REACH = 16.0  # standard deviations beyond which a coordinate is cut: of a rotated one, with probability below 10⁻⁵⁰
_PLACES = (-4, 7)  # powers of two between which the declared ratio lies
_COARSEST = 8 * _FINENESS  # places coarser than the declared one that are tried, and accepted from a peer


@dataclass(frozen=True)
class Dither(Stage):
    """Entropy-coded dithered quantisation at `bits` bits a coordinate, up or down; the least error of all codes here.

    It rotates by itself, as `Eden` does, and needs no clip. What it makes does not add up.

    Args:
      bits: of one coordinate, from 0.5 to 8; it need not be whole.

    Guarantees:
      The mean over seeds is the contribution itself, for every vector but the shortest, and the error of a rotated
      coordinate does not depend on it. A decoded contribution is at most √(1 + 2·NMSE) times as long as it was. Every
      message has bits·d/8 bytes, and at most 35 more.

    | bits | 1 | 2 | 4 |
    |---|---|---|---|
    | NMSE: E‖decoded − x‖² / ‖x‖² | 0.55 | 0.098 | 0.0056 |

    Needs the library constriction: pip install 'hansa[compress]'.

    Sources: Zamir and Feder 1992, On Universal Quantization by Randomized Uniform/Lattice Quantizers,
    https://doi.org/10.1109/18.119699; for federated learning Shlezinger et al. 2020, UVeQFed,
    https://arxiv.org/abs/2006.03262; coder: Bamler 2022, https://arxiv.org/abs/2201.01741
    """

    bits: float

    def __post_init__(self) -> None:
        if not 0.5 <= self.bits <= 8:
            raise ConfigError(f"bits={self.bits}: choose a number from 0.5 to 8.")

    def bind(self, signal: Signal, setting: Setting) -> Step:
        """Refuses a value that is rounded already; MissingExtra without its library."""
        _library()
        return Coded(signal, setting, flats(signal, "Dither"), lambda flat: _Dithered(flat, self.bits))


class _Dithered(Code):
    """The rotated, dithered and entropy-coded vector."""

    def __init__(self, flat: Flat, bits: float) -> None:
        self._size, self._type = flat.size, flat.work
        # Two words more than the rate: the coder's own state, and what a short vector may need.
        self._words = math.ceil(bits * flat.size / 32) + 2
        self._finest = _finest(bits, flat.size)
        nmse = _ratio(self._finest) ** 2 / 12
        self.shapes = {
            ":code": ((4 * self._words,), "uint8"),
            ":step": ((1,), "float64"),
            ":ratio": ((1,), "int32"),
            ":seed": ((1,), "uint64"),
        }
        self._longest = math.sqrt(1 + 2 * nmse)
        self.growth = self._longest * (1 + 3 * rounding(flat.size, flat.work))
        self.error = math.sqrt(1 + self.growth**2)

    def write(self, vector: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        seed = int(rng.integers(1 << 63))
        norm, step, ratio, code = math.sqrt(squares(vector)), 0.0, self._finest, np.empty(0, np.uint32)
        if norm > TINY:
            rotated = Rotation(self._size, seed).apply(vector)
            uniform, order, counts = _dither(self._size, seed, self._type)
            while True:
                step = _ratio(ratio) * norm / math.sqrt(self._size)
                most = _most(ratio)
                numbers = np.clip(np.rint(rotated / step + uniform), -most, most)
                code = _encoded(numbers[order].astype(np.int32), counts, ratio)
                if (excess := len(code) - self._words) <= 0:
                    break
                ratio -= math.ceil(_FINENESS * 32 * excess / self._size)
            length = step * math.sqrt(squares(numbers - uniform))
            step *= min(1.0, self._longest * norm / length) if length > 0 else 1.0
        padded = np.zeros(self._words, "<u4")
        padded[: len(code)] = code
        return {
            ":code": padded.view(np.uint8),
            ":step": np.array([step]),
            ":ratio": np.array([ratio], np.int32),
            ":seed": np.array([seed], np.uint64),
        }

    def read(self, arrays: Mapping[str, Array]) -> np.ndarray:
        seed, ratio, step = int(arrays[":seed"][0]), int(arrays[":ratio"][0]), float(arrays[":step"][0])
        if not self._finest - _COARSEST <= ratio <= self._finest:
            raise UpdateRejected(f"ratio {ratio} is none that {self._size} coordinates were ever written with.")
        uniform, order, counts = _dither(self._size, seed, self._type)
        words = np.ascontiguousarray(arrays[":code"]).view("<u4").astype(np.uint32)
        numbers = np.empty(self._size, self._type)
        numbers[order] = _decoded(words, counts, ratio) if step else 0
        numbers -= uniform
        numbers *= step
        return Rotation(self._size, seed).undo(numbers)


def _dither(size: int, seed: int, kind: np.dtype) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """The dither u of every coordinate; the coordinates ordered by class; and how many each class has."""
    # Another stream than the signs of the rotation, from the same seed.
    words = np.random.PCG64((seed, 1)).random_raw(-(-size // 4)).astype("<u8").view("<u2")[:size]
    classes = (words >> (16 - _CLASSES.bit_length() + 1)).astype(np.uint8)
    uniform = (words.astype(kind) + kind.type(0.5)) * kind.type(2.0**-16) - kind.type(0.5)
    return uniform, np.argsort(classes, kind="stable"), np.bincount(classes, minlength=_CLASSES).tolist()


def _encoded(numbers: np.ndarray, counts: list[int], ratio: int) -> np.ndarray:
    """Numbers, class after class, as 32-bit words."""
    coder, end = _library().stream.stack.AnsCoder(), len(numbers)
    for model, count in zip(_models(ratio)[::-1], counts[::-1], strict=True):
        coder.encode_reverse(numbers[end - count : end] + _most(ratio), model)
        end -= count
    words: np.ndarray = coder.get_compressed()
    return words


def _decoded(words: np.ndarray, counts: list[int], ratio: int) -> np.ndarray:
    """The numbers in the words; what nobody encoded decodes to some numbers, too."""
    used = len(words) - int(np.argmax(words[::-1] != 0)) if words.any() else 0  # a code never ends in a zero word
    coder = _library().stream.stack.AnsCoder(words[:used])
    numbers = [coder.decode(model, count) for model, count in zip(_models(ratio), counts, strict=True)]
    return np.concatenate(numbers) - _most(ratio)


def _ratio(index: int) -> float:
    """Δ/σ of a place in the row: finer with every place."""
    return math.pow(2.0, -index / _FINENESS)


def _most(index: int) -> int:
    """The largest |k| that is told apart."""
    return math.ceil(_REACH / _ratio(index)) + 1


@functools.lru_cache(maxsize=64)
def _tables(index: int) -> np.ndarray:
    """Probabilities of k given the middle of each class of u: shape (classes, numbers)."""
    middles = (np.arange(_CLASSES) + 0.5) / _CLASSES - 0.5
    edges = (np.arange(-_most(index), _most(index) + 2) - 0.5 - middles[:, None]) * _ratio(index)
    # Beyond 9 deviations nothing is left to tell apart; libraries of mathematics may differ in the last bits, which
    # the grid of 2⁻²⁰ removes: both sides must calculate with the same tables.
    below = np.array([[0.5 * math.erfc(-min(max(e, -9.0), 9.0) / math.sqrt(2)) for e in row] for row in edges])
    tables: np.ndarray = np.rint(np.diff(below, axis=1) * 2.0**20)
    return tables


@functools.lru_cache(maxsize=64)
def _models(index: int) -> list[Any]:
    """The coder's tables, one for each class; a number of probability 0 has a code, too, if a long one."""
    categorical = _library().stream.model.Categorical
    return [categorical(np.maximum(row, 2.0**-4).astype(np.float32), perfect=False) for row in _tables(index)]


@functools.cache
def _entropy(index: int) -> float:
    """Bits of a number, the dither's class being known."""
    ratio = _ratio(index)
    if ratio < 1 / 4:  # h(z + u) − h(u), z + u being as good as normal
        return 0.5 * math.log2(2 * math.pi * math.e * (1 + ratio**2 / 12)) - math.log2(ratio)
    shares = _tables(index) / 2.0**20
    return float(-(shares * np.log2(np.maximum(shares, 2.0**-20))).sum() / _CLASSES)


@functools.lru_cache(maxsize=64)
def _finest(bits: float, size: int) -> int:
    """The place of the finest ratio at which a vector of this size almost always fits, one word being spare."""

    def needed(index: int) -> float:
        return _entropy(index) * size + 2 * math.sqrt(size)  # the code's length varies by less than a bit a coordinate

    places = range(_FINENESS * _PLACES[0], _FINENESS * _PLACES[1])
    return places[max(0, bisect.bisect_right(places, bits * size + 32, key=needed) - 1)]


def _library() -> ModuleType:
    try:
        import constriction
    except ModuleNotFoundError:
        raise MissingExtra("Dither", "constriction", "compress") from None
    library: ModuleType = constriction
    return library
