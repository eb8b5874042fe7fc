"""The demo's job: logistic regression over thirty measures of cell nuclei, averaged over three hospitals."""

import functools

import hansa
from hansa.app.demo import cases

SEED = 1

job = hansa.Job(
    name="demo",
    model=hansa.LogisticModel(cases.FEATURES, classes=2),
    algorithm=hansa.FedAvg(hansa.LocalWork(lr=0.1, epochs=2, batch_size=16)),
    pipeline=hansa.Pipeline([hansa.WeightedMean()], hansa.Sum()),
    cohort=len(cases.SHARES),
    rounds=30,
    evaluation=hansa.Evaluation(data=functools.partial(cases.held_out, SEED)),
    seed=SEED,
)
