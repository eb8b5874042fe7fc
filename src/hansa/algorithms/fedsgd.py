"""Federated SGD: one gradient over all of a worker's data, one step of the server a round.

    w ← w − η · Σ nₖ ∇Fₖ(w) / Σ nₖ

With `WeightedMean()` this is exactly a step of gradient descent on the pooled data.

Source: McMahan, Moore, Ramage, Hampson, Agüera y Arcas: Communication-Efficient Learning of Deep Networks from
Decentralized Data, 2017, section 2, https://arxiv.org/abs/1602.05629
"""

from dataclasses import dataclass, field

from hansa.core.algorithm import Algorithm
from hansa.core.errors import ConfigError
from hansa.core.model import LocalWork


@dataclass(frozen=True)
class FedSGD(Algorithm):
    """Federated SGD.

    Args:
      work: one step of plain SGD on all examples; its lr times `server_lr` is the paper's η.
      server_lr: see `work`: `FedSGD(server_lr=0.1)` is all that is usually said.

    Raises:
      ConfigError: `work` is more than one full gradient.
    """

    work: LocalWork = field(default=LocalWork(lr=1.0, steps=1))

    def __post_init__(self) -> None:
        work = self.work
        if work.batch_size is not None or 1 not in (work.steps, work.epochs):
            raise ConfigError(
                f"steps={work.steps}, epochs={work.epochs}, batch_size={work.batch_size}: FedSGD takes one gradient "
                "over all examples, as in LocalWork(lr=1.0, steps=1); use FedAvg for more."
            )
        if work.optimiser != "sgd":
            raise ConfigError(f"optimiser='{work.optimiser}': FedSGD averages gradients, which takes 'sgd'.")
