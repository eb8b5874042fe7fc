"""NIID-Bench on MNIST: four algorithms, on ten clients that differ in their labels.

    HANSA_DATA=… python examples/papers/niid_bench.py --picture niid.png

All ten clients take part in every round, in batches of 64. Labels are shared out by Dirichlet(0.5), or two to a client.
The paper has 50 rounds of ten epochs with momentum; this has 8 rounds of one epoch of plain SGD, a ten times larger
step making up for the momentum, which SCAFFOLD does without; on two labels, where that step makes SCAFFOLD diverge,
half of it and 24 rounds.

Source: Li, Diao, Chen, He: Federated Learning on Non-IID Data Silos: An Experimental Study, 2022, table 3,
https://arxiv.org/abs/2102.02079
"""

import functools
from collections.abc import Sequence

import torch.nn.functional as F
from images import images
from report import Line, arguments, draw, measured, runtime, table
from torch import nn

import hansa

ALGORITHMS = {
    "FedAvg": hansa.FedAvg,
    "SCAFFOLD": hansa.Scaffold,
    "FedProx": functools.partial(hansa.FedProx, mu=0.01),
    "FedNova": hansa.FedNova,
}
SPLITS = {"Dirichlet(0.5)": hansa.data.Dirichlet(alpha=0.5, min_examples=10), "two labels": hansa.data.Pathological(2)}
SETTINGS = {"Dirichlet(0.5)": (0.1, 8), "two labels": (0.05, 24)}  # learning rate, rounds
PUBLISHED = {
    "Dirichlet(0.5)": {"FedAvg": 0.9889, "SCAFFOLD": 0.9907, "FedProx": 0.9902, "FedNova": 0.9803},
    "two labels": {"FedAvg": 0.9686, "SCAFFOLD": 0.9692, "FedProx": 0.9685, "FedNova": 0.9665},
}


def simple_cnn() -> nn.Module:
    """The paper's: LeNet with 6 and 16 channels, 44,426 parameters."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 28, 28)),
        *(nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(256, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)),
    )


def learn(split: str, name: str, quick: bool, processes: int) -> Line:
    """Test accuracy by round of one algorithm on one split."""
    train, test = images(quick)
    clients = hansa.data.partition(train, SPLITS[split], clients=5 if quick else 10, seed=1)
    lr, rounds = SETTINGS[split]
    work = hansa.LocalWork(lr=lr, epochs=1, batch_size=5 if quick else 64)
    # SCAFFOLD counts every client the same; the others weight by examples, as the paper does.
    mean = hansa.UniformMean() if name == "SCAFFOLD" else hansa.WeightedMean()
    job = hansa.Job(
        # Tracing the step pays where there are many of them.
        model=hansa.TorchModel(simple_cnn, F.cross_entropy, loop="plain" if quick else "auto"),
        algorithm=ALGORITHMS[name](work),
        pipeline=hansa.Pipeline([mean], hansa.Sum()),
        cohort=len(clients),
        rounds=3 if quick else rounds,
        evaluation=hansa.Evaluation(data=test),
        seed=1,
    )
    return measured(hansa.train(job, clients, runtime=runtime(processes)))


def main(argv: Sequence[str] | None = None) -> dict[str, dict[str, Line]]:
    options = arguments(__doc__, argv)
    found = {
        split: {name: learn(split, name, options.quick, options.processes) for name in ALGORITHMS} for split in SPLITS
    }
    rows = [
        [f"{split}, {name}", f"{100 * line[1][-1]:.2f}", f"{100 * PUBLISHED[split][name]:.2f}"]
        for split, lines in found.items()
        for name, line in lines.items()
    ]
    table(["accuracy, %", "ours", "published"], rows)
    draw(options.picture, found, xlabel="round", ylabel="accuracy", ylim=(0 if options.quick else 0.6, 1))
    return found


if __name__ == "__main__":
    main()
