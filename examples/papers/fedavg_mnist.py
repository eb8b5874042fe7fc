"""Federated averaging on MNIST: rounds until 97, 98 and 99 % of the test digits are read right.

    HANSA_DATA=… python examples/papers/fedavg_mnist.py --picture fedavg.png

100 clients, ten of them a round, one epoch each in batches of 10. The 2NN is a net of two hidden layers, trained by
clients that have a random share of the digits, or two shards of digits sorted by label; the CNN by the former.

Source: McMahan, Moore, Ramage, Hampson, Agüera y Arcas: Communication-Efficient Learning of Deep Networks from
Decentralized Data, 2017, tables 1 and 2, https://arxiv.org/abs/1602.05629
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from images import images
from report import Line, arguments, draw, measured, reached, runtime, table
from torch import nn

import hansa

TARGETS = (0.97, 0.98, 0.99)


def two_hidden_layers() -> nn.Module:
    """McMahan's 2NN: 199,210 parameters."""
    return nn.Sequential(nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 10))


def convolutional() -> nn.Module:
    """McMahan's CNN: 1,663,370 parameters."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 28, 28)),
        *(nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(3136, 512), nn.ReLU(), nn.Linear(512, 10)),
    )


@dataclass(frozen=True)
class Experiment:
    """One line of the table; the paper needed `published` rounds to reach `target`."""

    net: Callable[[], nn.Module]
    rule: hansa.data.Partitioner
    lr: float
    rounds: int
    target: float
    published: int
    every: int = 1

    def learn(self, quick: bool, processes: int) -> Line:
        """Test accuracy by round; a quick run has ten clients and four rounds."""
        train, test = images(quick)
        job = hansa.Job(
            model=hansa.TorchModel(self.net, F.cross_entropy),
            algorithm=hansa.FedAvg(hansa.LocalWork(lr=self.lr, epochs=1, batch_size=10)),
            pipeline=hansa.Pipeline([hansa.WeightedMean()], hansa.Sum()),
            cohort=5 if quick else 10,
            rounds=4 if quick else self.rounds,
            evaluation=hansa.Evaluation(data=test, every=self.every),
            seed=1,
        )
        clients = hansa.data.partition(train, self.rule, clients=10 if quick else 100, seed=1)
        return measured(hansa.train(job, clients, runtime=runtime(processes)))


EXPERIMENTS = {
    "2NN, IID": Experiment(two_hidden_layers, hansa.data.IID(), 0.2, 100, 0.97, 87),
    "2NN, two shards": Experiment(two_hidden_layers, hansa.data.Shards(2), 0.2, 300, 0.97, 664),
    "CNN, IID": Experiment(convolutional, hansa.data.IID(), 0.2, 46, 0.99, 34, every=2),
}


def main(argv: Sequence[str] | None = None) -> dict[str, Line]:
    options = arguments(__doc__, argv)
    lines = {name: one.learn(options.quick, options.processes) for name, one in EXPERIMENTS.items()}
    rows = [
        [name, *(reached(lines[name], target) for target in TARGETS), f"{one.published} to {one.target:.0%}",
         f"{max(lines[name][1]):.4f}"]
        for name, one in EXPERIMENTS.items()
    ]  # fmt: skip
    table(["rounds to", *(f"{target:.0%}" for target in TARGETS), "published", "best accuracy"], rows)
    panels = {
        name: {"ours": lines[name], "published": ([one.published], [one.target])} for name, one in EXPERIMENTS.items()
    }
    draw(options.picture, panels, xlabel="round", ylabel="accuracy", ylim=(0 if options.quick else 0.8, 1))
    return lines


if __name__ == "__main__":
    main()
