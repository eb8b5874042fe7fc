"""Three jobs on one fleet under six schedulers: how long until all are done, and how unequally devices were picked.

    python examples/shared_fleet.py [picture.png]

A hundred phones, tablets and laptops hold the digits and train three models at once, each device one at a time: a light
job, one of twice its work and one of five times. Three seeds of each. Needs scikit-learn and, for the picture,
matplotlib: pip install 'hansa[data,plot]'
"""

import os
import sys

import hansa
from hansa.data import Dirichlet, digits, partition, split
from hansa.runtimes.virtual.bayesian import Bayesian
from hansa.runtimes.virtual.genetic import Genetic
from hansa.runtimes.virtual.rlds import RLDS
from hansa.runtimes.virtual.schedulers import FedCS, Greedy, Random, Scheduler
from hansa.runtimes.virtual.sharing import Shared, SharedResult

CLIENTS, COHORT, SEEDS = 100, 10, (1, 2, 3)
ROUNDS = int(os.environ.get("HANSA_ROUNDS", "20"))
SCHEDULERS = {
    "random": Random(),
    "greedy": Greedy(),
    "FedCS, 2 s": FedCS(deadline_s=2.0),
    "Bayesian": Bayesian(),
    "genetic": Genetic(),
    "RLDS": RLDS(),
    "RLDS, fairness 5": RLDS(fairness=5.0),
}

train_set, test_set = split(digits(), 0.2, seed=0)
clients = partition(train_set, Dirichlet(alpha=0.5), clients=CLIENTS, seed=0)


def job(epochs: int) -> hansa.Job:
    return hansa.Job(
        model=hansa.LogisticModel(64, 10),
        algorithm=hansa.FedAvg(hansa.LocalWork(lr=0.03, epochs=epochs, batch_size=8)),
        pipeline=hansa.Pipeline([hansa.UniformMean()], hansa.Sum()),
        cohort=COHORT,
        rounds=ROUNDS,
        evaluation=hansa.Evaluation(data=test_set),
        seed=epochs,
    )


def figures(result: SharedResult) -> tuple[float, float, float]:
    """Makespan, the jobs' mean unfairness, and the mean accuracy they ended with."""
    last = [history.rounds[-1].central["accuracy"] for history in result.histories.values()]
    return result.makespan_s, sum(result.unfairness.values()) / len(last), sum(last) / len(last)


def run(scheduler: Scheduler, seed: int) -> tuple[float, float, float]:
    fleet = hansa.Fleet.tiers(CLIENTS, sigma=0.8, seed=seed).with_(jitter=0.2)
    jobs = {"light": job(1), "middle": job(2), "heavy": job(5)}
    return figures(Shared(jobs, clients, fleet, scheduler, seed=seed).run())


def draw(found: dict[str, list[tuple[float, float, float]]], picture: str) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for name, points in found.items():
        seconds, unfair, _ = zip(*points, strict=True)
        axes.scatter(seconds, unfair, label=name, s=30)
    axes.set(xlabel="simulated seconds until all three jobs are done", xscale="log")
    axes.set(ylabel="variance of how often\na device was picked")
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(picture, dpi=120)


def main(picture: str | None = None) -> None:
    found = {name: [run(scheduler, seed) for seed in SEEDS] for name, scheduler in SCHEDULERS.items()}
    print(f"{'mean of three seeds':20}{'makespan, s':>12}{'of random':>11}{'unfairness':>12}{'accuracy':>10}")
    for name, points in found.items():
        seconds, unfair, accuracy = (sum(part) / len(points) for part in zip(*points, strict=True))
        beside = sum(point[0] / other[0] for point, other in zip(points, found["random"], strict=True)) / len(points)
        print(f"{name:20}{seconds:12.0f}{beside:11.2f}{unfair:12.2f}{accuracy:10.4f}")
    if picture is not None:
        draw(found, picture)
        print(f"drawn in {picture}")


if __name__ == "__main__":
    main(*sys.argv[1:])
