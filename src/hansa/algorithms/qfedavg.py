"""q-FedAvg: a fairer mean, which listens more to workers whose loss is high.

    worker k   d = wₖ − w,  F = Fₖ(w)
               Δₖ = F^q · d            hₖ = q F^(q−1) · L ‖d‖² + F^q            (both divided by the paper's L)
    server     w ← w + η · Σ Δₖ / Σ hₖ

q = 0 is FedAvg with a uniform mean; larger q evens out the workers' accuracies. F is measured before training, on all
of the worker's data; hₖ goes up as the side value `denominator`. A clip bounds both, so choose its norm for F^q d.

Source: Li, Sanjabi, Beirami, Smith: Fair Resource Allocation in Federated Learning, 2020, algorithm 2,
https://arxiv.org/abs/1905.10497
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from hansa.core.algorithm import Aggregate, Algorithm, Update, moved
from hansa.core.errors import ConfigError, UpdateRejected
from hansa.core.model import Model, Role, value
from hansa.core.tensors import Tensors

_LEAST_LOSS = 1e-10  # keeps F^(q−1) finite where the loss is 0, as the authors' code does


@dataclass(frozen=True)
class QFedAvg(Algorithm):
    """q-FedAvg. It needs `UniformMean()`, and a model whose `evaluate` gives a `loss` of 0 or more.

    Args:
      work: what workers do in a round.
      server_lr: η.
      q: 0 or more. The paper tries 0.001 to 5.
      lipschitz: L, the smoothness of the losses; None is 1 / lr, as in the paper.
    """

    q: float = field(default=1.0, kw_only=True)
    lipschitz: float | None = field(default=None, kw_only=True)

    needs_uniform = True

    def __post_init__(self) -> None:
        if not (self.q >= 0 and math.isfinite(self.q)):
            raise ConfigError(f"q={self.q}: it is finite and 0 or more.")
        if self.lipschitz is None and not self.work.lr > 0:
            raise ConfigError(f"lr={self.work.lr} gives no smoothness 1 / lr: give lipschitz.")
        if self.lipschitz is not None and not self.lipschitz > 0:
            raise ConfigError(f"lipschitz={self.lipschitz}: a smoothness is above 0; leave it out for 1 / lr.")

    def sides(self, params: Tensors) -> Mapping[str, Tensors]:
        """hₖ."""
        return {"denominator": Tensors({"h": np.zeros(1)})}

    def train(self, model: Model, down: Tensors, memory: Tensors, data: Any, rng: np.random.Generator) -> Update:
        """Measures F, trains, and scales the difference of trainable tensors."""
        loss = value(model.evaluate(down.part("model"), data)).get("loss", math.nan)
        if not (loss >= 0 and math.isfinite(loss)):
            raise UpdateRejected(f"loss={loss} before training: q-FedAvg needs a finite metric 'loss' of 0 or more.")
        loss += _LEAST_LOSS
        update = super().train(model, down, memory, data, rng)
        trained = model.named(update.difference, Role.TRAINABLE)
        smoothness = self.lipschitz if self.lipschitz is not None else 1 / self.work.lr
        h = loss**self.q
        if self.q:
            h += self.q * loss ** (self.q - 1) * smoothness * trained.norm() ** 2
        return replace(
            update,
            difference=update.difference.updated(trained * loss**self.q),
            side={"denominator": Tensors({"h": np.array([h])})},
        )

    def apply(self, state: Tensors, aggregate: Aggregate) -> Tensors:
        """Moves by the quotient of the two means."""
        return moved(state, aggregate, self.server_lr / float(aggregate.side["denominator"]["h"][0]))
