"""Three ways to train on one fleet, by simulated time: wait for all, take the first to answer, or never wait at all.

    pip install 'hansa[data,plot]'
    python examples/virtual_time.py [picture.png]

A hundred phones, tablets and laptops hold the digits, with few labels each; one in twenty tasks is abandoned. The
training is real, only its duration is simulated.
"""

import os
import sys

import hansa
from hansa.data import Dirichlet, digits, partition, split
from hansa.runtimes.virtual.runtime import VirtualHistory
from hansa.runtimes.virtual.timing import curve, table

CLIENTS, COHORT, TARGET = 100, 20, 0.9
ROUNDS = int(os.environ.get("HANSA_ROUNDS", "40"))

train_set, test_set = split(digits(), 0.2, seed=0)
clients = partition(train_set, Dirichlet(alpha=0.5), clients=CLIENTS, seed=0)
fleet = hansa.Fleet.tiers(CLIENTS, sigma=0.8, seed=0).with_(dropout=0.05, jitter=0.2)


def run(sampling: hansa.Fixed, rounds: int, algorithm: type[hansa.Algorithm] = hansa.FedAvg) -> VirtualHistory:
    job = hansa.Job(
        model=hansa.LogisticModel(64, 10),
        algorithm=algorithm(hansa.LocalWork(lr=0.03, epochs=5, batch_size=8)),
        pipeline=hansa.Pipeline([hansa.UniformMean()], hansa.Sum()),
        sampling=sampling,
        rounds=rounds,
        evaluation=hansa.Evaluation(data=test_set),
        seed=1,
    )
    return hansa.Virtual(fleet).run(job, clients)


def draw(histories: dict[str, VirtualHistory], picture: str) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for name, history in histories.items():
        seconds, accuracy = zip(*curve(history, "accuracy"), strict=True)
        axes.step(seconds, accuracy, where="post", label=name)
    axes.axhline(TARGET, color="grey", linewidth=0.8, linestyle=":")
    axes.set(xlabel="simulated seconds", ylabel="accuracy on held-out digits", xscale="log", xlim=(1, None))
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(picture, dpi=120)


def main(picture: str | None = None) -> None:
    # A quorum lets a round go on without those that dropped out.
    most = COHORT // 2
    histories = {
        "synchronous": run(hansa.Fixed(COHORT, quorum=most), ROUNDS),
        "over-selected by 50 %": run(hansa.Fixed(COHORT, quorum=most, over_select=0.5), ROUNDS),
        "FedBuff, 5 of 20": run(hansa.Fixed(COHORT, quorum=5, max_staleness=50), 4 * ROUNDS, hansa.FedBuff),
    }
    print(table(histories, "accuracy", TARGET))
    stale = histories["FedBuff, 5 of 20"].tally.staleness
    print("\nFedBuff's updates by staleness:", ", ".join(f"{age}: {stale[age]}" for age in sorted(stale)))
    if picture is not None:
        draw(histories, picture)
        print(f"drawn in {picture}")


if __name__ == "__main__":
    main(*sys.argv[1:])
