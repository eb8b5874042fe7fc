"""Federated averaging: workers train, the server takes the mean of what changed.

    w ← w + η · Σ nₖ (wₖ − w) / Σ nₖ          η = 1 in the paper; nₖ = examples of worker k

`WeightedMean()` in the pipeline gives the paper's weights nₖ, `UniformMean()` counts every worker the same. With
`LocalWork(steps=1)` a round is one step of synchronous SGD.

Source: McMahan, Moore, Ramage, Hampson, Agüera y Arcas: Communication-Efficient Learning of Deep Networks from
Decentralized Data, 2017, algorithm 1, https://arxiv.org/abs/1602.05629
"""

from dataclasses import dataclass

from hansa.core.algorithm import Algorithm


@dataclass(frozen=True)
class FedAvg(Algorithm):
    """Federated averaging.

    Args:
      work: what workers do in a round.
      server_lr: η, the share of the mean by which the server moves.

    >>> from hansa.core.model import LocalWork
    >>> FedAvg(LocalWork(lr=0.1, epochs=1, batch_size=10)).server_lr
    1.0
    """
