"""The plain sum: the server sees each contribution and adds it as it comes.

The sum is taken in task order, block by block, so that it needs the memory of one model whatever the cohort, and gives
the same bits whatever the order of arrival. Integers are added as 64-bit ones whatever they travel as; floats in their
own type, whose rounding widens what one client can change (`settle`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hansa.core.pipeline import Arrived, Part, Reducer, Seat, Sensitivity, Server, Setting, Signal
from hansa.core.tensors import Tensors
from hansa.privacy.threats import OPEN, Sees


@dataclass(frozen=True)
class Sum(Reducer):
    """Adds contributions in the clear. It hides nothing from the server: see `SecureSum` for that.

    Guarantees:
      Integers (of `Quantise`) are added exactly: a stage that makes them refuses what could overflow 64 bits. A sum of
      n floats of norm at most C can differ by (1 + u·n²)·C for one client more or less, u being the unit of rounding
      (2⁻²⁴ in float32): each of n additions rounds a vector no longer than n·C by at most u of it, with and without.
    """

    threats: ClassVar[tuple[Sees, ...]] = OPEN

    def settle(self, signal: Signal, setting: Setting) -> Sensitivity:
        """Widens real parts by what the rounding of n additions can hide or show."""
        return {name: part.l2 * rounding_of_sum(part, setting) for name, part in signal.parts.items()}

    def server(self, cohort: Sequence[str], seat: Seat | None = None) -> Server:
        """Adds what arrives; stale contributions are scaled by their discount."""
        total: dict[str, np.ndarray] = {}
        while isinstance(event := (yield None), Arrived):
            for name, (shape, dtype) in event.message.shapes.items():
                first, kind = name not in total, np.int64 if np.dtype(dtype).kind in "iub" else dtype
                for where, block in event.message.blocks(name):
                    if name not in total:  # where the first contribution is: on a device, if it was trained there
                        total[name] = np.empty_like(block, kind, order="C", subok=False, shape=shape)
                    if event.discount != 1.0 and total[name].dtype.kind == "i":
                        total[name] = total[name].astype(np.float64)  # a discounted integer is none
                    flat = total[name].reshape(-1)
                    if event.discount != 1.0:
                        block = block * np.asarray(event.discount, flat.dtype)
                    if first:
                        flat[where] = block
                    else:
                        flat[where] += block
                if name not in total:  # of no numbers, so that there was no block
                    total[name] = np.empty(shape, kind)
        return Tensors({name: np.asarray(array) for name, array in total.items()})


def rounding_of_sum(part: Part, setting: Setting) -> float:
    """The factor by which the rounding of a float sum widens what one client can change: 1 + u·n²; 1 for integers."""
    return 1 + unit(part) * likely_most(setting) ** 2


def unit(part: Part) -> float:
    """The unit of rounding of a part's coarsest floats: 2⁻²⁴ for float32; 0 for integers."""
    kinds = [np.dtype(dtype) for _, dtype in part.shapes.values()]
    return max((float(np.finfo(kind).eps) / 2 for kind in kinds if kind.kind == "f"), default=0.0)


def likely_most(setting: Setting) -> float:
    """Contributions that no round exceeds, or only with a probability below 10⁻²⁰ where every client tosses a coin.

    For m expected ones Bernstein's bound gives exp(−t² / (2m + 2t/3)), and t = 10·√m + 100 makes it less than that.
    """
    if setting.sampling.kind != "poisson":
        return setting.most
    return min(setting.most, setting.cohort + 10 * math.sqrt(setting.cohort) + 100)
