"""Four ways to the same ε on handwritten digits, and what each leaves of the accuracy.

    pip install 'hansa[sklearn,dp]'
    python examples/private_mechanisms.py

1,000 clients hold one or two digits each. All four cost ε = 8 at δ = 1e-5 over the run, for whoever sees the models.
They differ in who adds the noise and how clients are drawn, and so in what the server itself could learn.
"""

import dataclasses
import math
import os

import hansa

CLIENTS, EPSILON, DELTA = 1000, 8.0, 1e-5
ROUNDS = int(os.environ.get("HANSA_ROUNDS", "20"))

train, test = hansa.data.split(hansa.data.digits())
clients = hansa.data.partition(train, hansa.data.IID(), clients=CLIENTS)
plain = hansa.Job(
    model=hansa.LogisticModel(64, 10),
    algorithm=hansa.FedAvg(hansa.LocalWork(lr=0.5, epochs=5)),
    pipeline=hansa.Pipeline([hansa.Clip(1.0), hansa.UniformMean()], hansa.Sum()),
    cohort=100,
    rounds=ROUNDS,
    evaluation=hansa.Evaluation(data=test, every=ROUNDS),
)
HOW: dict[str, tuple[type[hansa.Stage], dict[str, object], hansa.Sampling]] = {
    "no noise": (hansa.Gaussian, {}, hansa.Fixed(100)),
    "server, Poisson sample": (hansa.Gaussian, {}, hansa.Poisson(0.1)),
    "server, taking turns, matrix": (hansa.MatrixNoise, {"rounds": ROUNDS}, hansa.Turns(100, groups=5)),
    "clients' shares, fixed-size sample": (hansa.DistributedGaussian, {"bits": 20}, hansa.Fixed(100)),
    "each client by itself": (hansa.LocalGaussian, {}, hansa.Fixed(100)),
}


def private(name: str) -> hansa.Job:
    stage, options, sampling = HOW[name]
    job = dataclasses.replace(plain, cohort=None, sampling=sampling)
    if name == "no noise":
        return job

    def noisy(z: float) -> hansa.Job:
        stages = [*plain.pipeline.stages, stage(z, **options)]  # type: ignore[call-arg]
        return dataclasses.replace(job, pipeline=hansa.Pipeline(stages, hansa.Sum()))

    return hansa.privacy.calibrated(noisy, epsilon=EPSILON, population=CLIENTS, delta=DELTA)


if __name__ == "__main__":
    for name in HOW:
        job = private(name)
        accuracy = hansa.train(job, clients).rounds[-1].central["accuracy"]
        z, spent = 0.0, math.inf
        if name != "no noise":
            z = job.bind(CLIENTS).events()[0].noise_multiplier
            spent = hansa.privacy.epsilon(job, population=CLIENTS, delta=DELTA).epsilon
        print(f"{name:36} multiplier {z:7.3f}   ε {spent:5.2f}   accuracy {accuracy:.3f}")
