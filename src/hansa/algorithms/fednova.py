"""FedNova: workers that take different numbers of steps pull the mean no further for it.

    worker k   d_k = (wₖ − w) / aₖ          aₖ: the length of its accumulated steps, τₖ of them
    server     w ← w + η · (Σ p_k a_k) · Σ p_k d_k              p_k = n_k / n, by the weighted mean

    a of plain SGD       τ
    with momentum ρ      (τ − ρ (1 − ρ^τ) / (1 − ρ)) / (1 − ρ)
    with a pull μ        (1 − (1 − lr·μ)^τ) / (lr·μ)

With equal steps it is FedAvg. a_k goes up as the side value `steps`.

Source: Wang, Liu, Liang, Joshi, Poor: Tackling the Objective Inconsistency Problem in Heterogeneous Federated
Optimization, 2020, algorithm 1 and section 4, https://arxiv.org/abs/2007.07481
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from hansa.core.algorithm import Aggregate, Algorithm, Update, moved
from hansa.core.errors import ConfigError
from hansa.core.model import LocalWork, Model, Role
from hansa.core.tensors import Tensors


@dataclass(frozen=True)
class FedNova(Algorithm):
    """Normalised averaging. It takes SGD with momentum or a proximal pull, not both, and not Adam.

    Args:
      work: what workers do in a round; by epochs, their steps differ with their data.
      server_lr: η.
    """

    def __post_init__(self) -> None:
        if self.work.optimiser != "sgd":
            raise ConfigError(f"optimiser='{self.work.optimiser}': FedNova knows the step lengths of 'sgd' alone.")
        if self.work.momentum and self.work.proximal:
            raise ConfigError(f"momentum={self.work.momentum} and proximal={self.work.proximal}: FedNova takes one.")

    def sides(self, params: Tensors) -> Mapping[str, Tensors]:
        """aₖ."""
        return {"steps": Tensors({"a": np.zeros(1)})}

    def train(self, model: Model, down: Tensors, memory: Tensors, data: Any, rng: np.random.Generator) -> Update:
        """Trains, and divides the difference of trainable tensors by the length of the steps taken."""
        start = down.part("model")
        fit = model.fit(start, data, self.work, rng)
        difference, a = fit.params - start, length(self.work, fit.steps)
        trained = model.named(difference, Role.TRAINABLE)
        scaled = trained.map(lambda array: array / np.asarray(a, array.dtype))
        return Update(
            difference=difference.updated(scaled), weight=float(len(data)), metrics=fit.metrics,
            side={"steps": Tensors({"a": np.array([a])})},
        )  # fmt: skip

    def apply(self, state: Tensors, aggregate: Aggregate) -> Tensors:
        """The mean direction, times the mean length."""
        return moved(state, aggregate, self.server_lr * float(aggregate.side["steps"]["a"][0]))


def length(work: LocalWork, steps: int) -> float:
    """a: the L1 norm of the weights with which `steps` gradients enter the difference.

    >>> length(LocalWork(lr=0.1, steps=1, momentum=0.5), 2)
    2.5
    """
    if work.momentum:
        rho = work.momentum
        return (steps - rho * (1 - rho**steps) / (1 - rho)) / (1 - rho)
    if work.proximal and work.lr:
        pull = work.lr * work.proximal
        return (1 - (1 - pull) ** steps) / pull
    return float(steps)
