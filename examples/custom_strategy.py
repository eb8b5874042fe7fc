"""A strategy of one's own: the server keeps momentum over rounds, and workers train less as time goes on.

    pip install 'hansa[data]'
    python examples/custom_strategy.py

Whatever a method decides is a method of `Algorithm`: what is sent, how a worker trains, what the server does with
the mean. Who is asked is `Job(sampling=...)`, and how updates are added up is the pipeline's.
"""

import os
from dataclasses import dataclass

import numpy as np

import hansa


@dataclass(frozen=True)
class HeavyBall(hansa.Algorithm):
    """The server moves by β times its last move plus the mean of the differences."""

    beta: float = 0.5

    def init(self, params):
        return hansa.Tensors.join(model=params, move=params.zeros(), round=hansa.Tensors({"n": np.zeros(1)}))

    def send(self, state, group=""):
        return hansa.Tensors.join(model=state.part("model"), round=state.part("round"))

    def train(self, model, down, memory, data, rng):
        work = self.work.with_(lr=self.work.lr / (1 + 0.1 * float(down["round/n"][0])))
        start = down.part("model")
        fit = model.fit(start, data, work, rng)
        return hansa.Update(difference=fit.params - start, weight=float(len(data)), metrics=fit.metrics)

    def apply(self, state, aggregate):
        move = state.part("move") * self.beta + aggregate.mean
        rounds = state.part("round").map(lambda n: n + 1)
        return hansa.Tensors.join(model=state.part("model") + move, move=move, round=rounds)


train, test = hansa.data.split(hansa.data.digits(), test=0.2)
clients = hansa.data.partition(train, hansa.data.Dirichlet(alpha=0.3), clients=10)
work = hansa.LocalWork(lr=0.1, epochs=1, batch_size=10)
for algorithm in (hansa.FedAvg(work), HeavyBall(work)):
    job = hansa.Job(
        model=hansa.LogisticModel(64, classes=10),
        algorithm=algorithm,
        pipeline=hansa.Pipeline([hansa.WeightedMean()], hansa.Sum()),
        cohort=5,
        rounds=int(os.environ.get("HANSA_ROUNDS", "10")),
        evaluation=hansa.Evaluation(data=test),
    )
    print(f"{type(algorithm).__name__:<10} {hansa.train(job, clients)}")
