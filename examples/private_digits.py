"""Federated averaging on handwritten digits with differential privacy: what ε buys, every few rounds.

    pip install 'hansa[sklearn,dp]'
    python examples/private_digits.py

300 clients hold four or five digits each; a round asks each with probability 0.3, clips every update to norm 1 and adds
noise to the quantised sum. ε protects a client's whole data from whoever sees the models; the server, which adds the
updates up in the clear, sees them all.
"""

import hansa
from hansa.core.train import Record

CLIENTS, DELTA = 300, 1e-3

train, test = hansa.data.split(hansa.data.digits())
clients = hansa.data.partition(train, hansa.data.IID(), clients=CLIENTS)
job = hansa.Job(
    model=hansa.LogisticModel(64, 10),
    algorithm=hansa.FedAvg(hansa.LocalWork(lr=0.5, epochs=2, batch_size=5)),
    pipeline=hansa.Pipeline(
        [hansa.Clip(1.0), hansa.UniformMean(), hansa.Gaussian(2.0), hansa.Quantise(16)], hansa.Sum()
    ),
    sampling=hansa.Poisson(0.3),
    rounds=30,
    evaluation=hansa.Evaluation(data=test, every=5),
    seed=1,
)


def report(record: Record) -> None:
    done = record.round + 1
    if record.central:
        cost = hansa.privacy.epsilon(job, population=CLIENTS, delta=DELTA, rounds=done)
        print(f"round {done:3}   accuracy {record.central['accuracy']:.3f}   {cost}")


if __name__ == "__main__":
    hansa.train(job, clients, observe=report)
