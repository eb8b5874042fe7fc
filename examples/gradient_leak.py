"""What a curious server sees of a client's picture: undefended, behind little noise and much, in a sum of many.

    pip install 'hansa[sklearn,torch,plot]'
    python examples/gradient_leak.py [picture.png]

Each of six clients holds one handwritten digit and sends one step of training. The server guesses a digit, computes the
step it would give, and moves the guess until both are equal (deep leakage from gradients).
"""

import os
import sys

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import hansa
from hansa.testing.attacks.eavesdrop import of_all, of_one
from hansa.testing.attacks.matching import DLG, Recovered, Seen

VICTIMS = [11, 25, 42, 57, 63, 92]
MANY = 100
ITERATIONS = 60 if os.environ.get("HANSA_ROUNDS") else 600
digits = hansa.data.digits()


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))


def job(*noise: hansa.Stage, cohort: int = 1) -> hansa.Job:
    return hansa.Job(
        model=hansa.TorchModel(net, loss=F.cross_entropy),
        algorithm=hansa.FedAvg(hansa.LocalWork(lr=0.1, steps=1)),
        pipeline=hansa.Pipeline([*([hansa.Clip(1.0)] if noise else []), hansa.UniformMean(), *noise], hansa.Sum()),
        cohort=cohort,
        seed=1,
    )


def read(job: hansa.Job, change: hansa.Tensors) -> Recovered:
    seen = Seen(
        model=job.model, params=job.model.init(job.seed), difference=change, work=job.algorithm.work, examples=1,
        shape=(64,), classes=10,
    )  # fmt: skip
    return DLG(iterations=ITERATIONS, restarts=2).recover(seen)


def alone(*noise: hansa.Stage) -> list[Recovered]:
    return [read(job(*noise), of_one(job(*noise), digits.take([row]), 1)) for row in VICTIMS]


def together() -> list[Recovered]:
    everybody = {f"{row:03}": digits.take([row]) for row in range(MANY)}
    found = read(job(cohort=MANY), of_all(job(cohort=MANY), hansa.Clients.of(everybody)))
    return [found] * len(VICTIMS)


def draw(rows: dict[str, np.ndarray], path: str) -> None:
    import matplotlib.pyplot as plt

    figure, grid = plt.subplots(len(rows), len(VICTIMS), figsize=(7.2, 1.25 * len(rows)), layout="constrained")
    for line, (name, pictures) in zip(grid, rows.items(), strict=True):
        for axis, picture in zip(line, pictures, strict=True):
            axis.imshow(picture.reshape(8, 8), cmap="gray_r", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=10)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(picture: str = "gradient_leak.png") -> None:
    torch.set_num_threads(1)
    truth = digits["x"][VICTIMS]
    cases = {
        "undefended": alone(),
        "noise z = 0.01": alone(hansa.LocalGaussian(0.01)),
        "noise z = 1": alone(hansa.LocalGaussian(1.0)),
        f"sum of {MANY}": together(),
    }
    blind = float(((digits["x"] - digits["x"].mean(axis=0)) ** 2).mean())
    print(f"mean squared error; guessing the average digit gives {blind:.3f}")
    for name, found in cases.items():
        errors = [float(one.errors(truth[i : i + 1])[0]) for i, one in enumerate(found)]
        print(f"{name:16}{np.median(errors):10.2g}   labels right {sum(_right(found))} of {len(VICTIMS)}")
    draw(
        {"the clients'": truth, **{name: np.stack([one.x[0] for one in found]) for name, found in cases.items()}},
        picture,
    )
    print(f"drawn in {picture}")


def _right(found: list[Recovered]) -> list[bool]:
    return [bool(one.y[0] == digits["y"][row]) for one, row in zip(found, VICTIMS, strict=True)]


if __name__ == "__main__":
    main(*sys.argv[1:])
