"""FedProx: federated averaging whose workers are held near the model they were sent.

    worker k minimises  Fₖ(w) + μ/2 ‖w − wₜ‖²,  for as long as it can

μ = 0 is FedAvg. A worker that did less than was asked (a `Model.fit` that stops early) is counted like any other: the
pull is what makes such partial work harmless.

Source: Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith: Federated Optimization in Heterogeneous Networks, 2020,
algorithm 2, https://arxiv.org/abs/1812.06127
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hansa.core.algorithm import Algorithm, Update
from hansa.core.errors import ConfigError
from hansa.core.model import Model
from hansa.core.tensors import Tensors


@dataclass(frozen=True)
class FedProx(Algorithm):
    """FedProx.

    Args:
      work: what workers do in a round; its own `proximal` stays 0.
      mu: μ, the strength of the pull; 0 or more. The paper tries 0.001 to 1.

    Raises:
      ConfigError: `mu` is negative, or the pull is given twice.
    """

    mu: float = field(kw_only=True)

    def __post_init__(self) -> None:
        if not self.mu >= 0:
            raise ConfigError(f"mu={self.mu}: FedProx's pull is 0 or more.")
        if self.work.proximal:
            raise ConfigError(f"mu={self.mu} and work.proximal={self.work.proximal}: give the pull once, as mu.")

    def train(self, model: Model, down: Tensors, memory: Tensors, data: Any, rng: np.random.Generator) -> Update:
        """Federated averaging's, with the pull."""
        pulled = Algorithm(self.work.with_(proximal=self.mu))
        return pulled.train(model, down, memory, data, rng)
