"""One optimiser step as `LocalWork` declares it: the formulas that every adapter follows.

    g ← ∇loss(w) + decay·w + μ·(w − w₀) + correction       the loss being the mean over the batch
    g ← g · mask
    sgd:   v ← momentum·v + g          w ← w − lr·v         v starts at 0
    adam:  m ← β₁m + (1−β₁)g           n ← β₂n + (1−β₂)g²   both start at 0
           w ← w − lr · (m / (1−β₁ᵗ)) / (√(n / (1−β₂ᵗ)) + ε)

Written with operators alone, so that NumPy, JAX and torch arrays pass through the same lines. The PyTorch adapter has a
faster form of its own; a test holds it to this one.
"""

from collections.abc import Mapping
from typing import Any

from hansa.core.errors import TensorMismatch
from hansa.core.model import LocalWork
from hansa.core.tensors import Array

Arrays = dict[str, Array]
Moments = dict[str, Arrays]  # "first" and "second", each by name; empty where the optimiser keeps none


class Descent:
    """The optimiser of one visit.

    Args:
      work: what is asked.
      start: parameters as they were sent, for the proximal pull; tensors that are missing here are not pulled.
      correction: the work's, as arrays of the framework; missing names count as 0.
      mask: likewise; missing names count as 1.
    """

    def __init__(
        self, work: LocalWork, start: Mapping[str, Array], correction: Mapping[str, Array], mask: Mapping[str, Array]
    ) -> None:
        self.work, self.start, self.correction, self.mask = work, start, correction, mask

    def begin(self, params: Mapping[str, Array]) -> Moments:
        """The optimiser's memory before the first step."""
        zeros = {name: w * 0 for name, w in params.items()}
        if self.work.optimiser == "adam":
            return {"first": zeros, "second": dict(zeros)}
        return {"first": zeros} if self.work.momentum else {}

    def step(
        self, params: Mapping[str, Array], grads: Mapping[str, Array], moments: Moments, count: Any
    ) -> tuple[Arrays, Moments]:
        """New parameters and memory; nothing is changed in place. `count` is the number of this step, from 1."""
        work, after = self.work, {}
        kept: Moments = {which: {} for which in moments}
        for name, w in params.items():
            g = self._gradient(name, w, grads[name])
            if work.optimiser == "adam":
                beta1, beta2 = work.betas
                m = kept["first"][name] = beta1 * moments["first"][name] + (1 - beta1) * g
                n = kept["second"][name] = beta2 * moments["second"][name] + (1 - beta2) * (g * g)
                g = (m / (1 - beta1**count)) / ((n / (1 - beta2**count)) ** 0.5 + work.eps)
            elif moments:
                g = kept["first"][name] = work.momentum * moments["first"][name] + g
            after[name] = w - work.lr * g
        return after, kept

    def _gradient(self, name: str, w: Array, g: Array) -> Array:
        if self.work.weight_decay:
            g = g + self.work.weight_decay * w
        if self.work.proximal and name in self.start:
            g = g + self.work.proximal * (w - self.start[name])
        if name in self.correction:
            g = g + self.correction[name]
        if name in self.mask:
            g = g * self.mask[name]
        return g


def check_terms(work: LocalWork, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises TensorMismatch unless correction and mask name tensors of the model, with their shapes."""
    for what, terms in (("correction", work.correction), ("mask", work.mask)):
        for name in terms:
            if name not in shapes:
                raise TensorMismatch(f"the {what} names '{name}', which is not trained: {sorted(shapes)[:8]} are.")
            if tuple(terms[name].shape) != tuple(shapes[name]):
                raise TensorMismatch(
                    f"the {what} of '{name}' has shape {tuple(terms[name].shape)}, not {tuple(shapes[name])}."
                )
