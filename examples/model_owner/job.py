"""What the model owner asks for: digits read by logistic regression, from means that nobody but the owner learns.

The model owner runs the server; two helpers, run by others, hold the other shares of every contribution. The data
owners come with data of their own and need not know each other.
"""

import hansa

OWNERS, HELPERS = 5, ("helper-a", "helper-b")


def held_out() -> hansa.Dataset:
    """The fifth of the digits that the model owner measures its model with."""
    return hansa.data.split(hansa.data.digits())[1]


def holdings(owners: int = OWNERS) -> dict[str, hansa.Dataset]:
    """Each data owner's digits: all have few of some kinds, and none is representative."""
    train, _ = hansa.data.split(hansa.data.digits())
    parts = hansa.data.partition(train, hansa.data.Dirichlet(alpha=0.3), clients=owners, seed=1)
    return {f"data-owner-{at}": parts.open(name) for at, name in enumerate(parts.ids)}


job = hansa.Job(
    name="model-owner",
    model=hansa.LogisticModel(64, 10),
    algorithm=hansa.FedAvg(hansa.LocalWork(lr=0.5, epochs=2, batch_size=10)),
    pipeline=hansa.Pipeline([hansa.Clip(2.0), hansa.UniformMean(), hansa.Quantise(16)], hansa.MpcSum(HELPERS)),
    cohort=OWNERS,
    rounds=30,
    evaluation=hansa.Evaluation(data=held_out, every=10),
    seed=1,
)


def clients(count: int = OWNERS) -> hansa.Clients:
    """For `hansa simulate`, which protects nobody: the data owners of a federation bring their own."""
    return hansa.Clients.of(holdings(count))
