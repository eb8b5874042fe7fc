"""A strategy of our own: federated averaging whose server takes smaller steps as rounds go by.

    python examples/custom_strategy.py

Whatever is not overridden is FedAvg. The state is a tree of tensors, so it is checkpointed and resumed by itself.
"""

from dataclasses import dataclass

import numpy as np

import hansa
from hansa.core.algorithm import moved


@dataclass(frozen=True)
class Decaying(hansa.Algorithm):
    decay: float = 0.9

    def init(self, params):
        return hansa.Tensors.join(model=params, schedule=hansa.Tensors({"lr": np.array([self.server_lr])}))

    def apply(self, state, aggregate):
        lr = state["schedule/lr"]
        after = moved(state, aggregate, lr=float(lr[0]))
        return after.updated({"schedule/lr": lr * self.decay})


def main() -> None:
    data = hansa.data.partition(hansa.data.digits(), hansa.data.Dirichlet(alpha=0.3), clients=10)
    model = hansa.LogisticModel(inputs=64, classes=10)
    algorithm = Decaying(hansa.LocalWork(lr=0.05, epochs=1, batch_size=10))
    pipeline = hansa.Pipeline([hansa.WeightedMean()], hansa.Sum())
    print(hansa.train(hansa.Job(model=model, algorithm=algorithm, pipeline=pipeline, cohort=5, rounds=10), data))


if __name__ == "__main__":
    main()
