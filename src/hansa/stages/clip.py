"""Clipping: no contribution is longer than a bound."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from hansa.core.errors import ConfigError
from hansa.core.pipeline import Setting, Signal, Stage, Step, fault
from hansa.core.tensors import BLOCK, Tensors, squares

WITHIN = "within"
"""The side value of `Zeroing`: bounded already, and never clipped."""


@dataclass(frozen=True)
class Clip(Stage):
    """Scales a contribution's value down so that its L2 norm over all tensors is at most `bound`.

    Only the part `value` is clipped, never weight or metrics (a clip of them all would cancel itself in a weighted
    mean), nor buffers. Side values (SCAFFOLD's control) are clipped to the same bound, each by itself.

    Args:
      bound: in the unit of the update; above 0.

    Guarantees:
      The norm after clipping is at most `bound`, rounding included (the scale is rounded down by 2⁻²⁰).

    Source: McMahan et al. 2018, algorithm 1, https://arxiv.org/abs/1710.06963
    """

    bound: float

    def __post_init__(self) -> None:
        if not (self.bound > 0 and math.isfinite(self.bound)):
            raise ConfigError(f"bound={self.bound}: a clipping norm is finite and above 0.")

    def bind(self, signal: Signal, setting: Setting) -> Step:
        """Refuses a signal that is already weighted or rounded, where a bound would mean something else."""
        if signal.divided or "weight" not in signal.parts:
            raise fault("Clip after a mean would clip what is already scaled: put Clip first.")
        if signal.parts["value"].domain != "real" or not signal.parts["value"].additive:
            raise fault("Clip after a stage that rounds or selects cannot bound the update: put Clip first.")
        if not math.isinf(signal.parts["value"].l2) and signal.parts["value"].l2 < self.bound:
            raise fault(f"Clip({self.bound}) after a clip to {signal.parts['value'].l2:g} does nothing: leave one out.")
        names = [name for name in signal.averaged if name not in ("buffers", WITHIN)]
        parts = {name: replace(signal.parts[name], l2=self.bound, linf=self.bound) for name in names}
        return _Clipped(signal.with_(**parts), names, self.bound)


class _Clipped(Step):
    def __init__(self, out: Signal, names: Sequence[str], bound: float) -> None:
        super().__init__(out)
        self._names, self._bound = names, bound
        self.error = dict.fromkeys(names, bound * 2.0**-20)  # what `scaled_to` rounds down by

    def encode(
        self, x: Tensors, state: Tensors, memory: Tensors, rngs: Sequence[np.random.Generator]
    ) -> tuple[Tensors, Tensors]:
        for name in self._names:
            x = scaled_to(x, name, self._bound)[0]
        return x, memory


def scaled_to(x: Tensors, part: str, bound: float) -> tuple[Tensors, np.ndarray]:
    """Stacked contributions with one part's norms at most `bound`, and the norms before: shape (K,)."""
    names = [name for name in x if name.startswith(part + "/")]
    norms = client_norms(x.only(names))
    # Rounding must not carry the norm over the bound: 2**-20 is more than float32 loses in one product.
    with np.errstate(divide="ignore", invalid="ignore"):
        factors = np.where(norms > bound, bound / norms * (1 - 2.0**-20), 1.0)
    if (factors == 1.0).all():
        return x, norms
    scaled = {}
    for name in names:
        shape = (len(factors),) + (1,) * (x[name].ndim - 1)
        scaled[name] = x[name] * factors.astype(x[name].dtype).reshape(shape)
    return x.updated(scaled), norms


def client_norms(x: Tensors) -> np.ndarray:
    """The L2 norm of each stacked contribution over all its tensors: shape (K,), float64."""
    clients = len(next(iter(x.values())))
    sums = np.zeros(clients)
    for name in x:
        for client in range(clients):
            flat = np.asarray(x[name][client]).reshape(-1)
            sums[client] += sum(squares(flat[at : at + BLOCK]) for at in range(0, len(flat), BLOCK))
    norms: np.ndarray = np.sqrt(sums)
    return norms
