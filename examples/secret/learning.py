"""What the programs of this folder have in common: the data, one training loop, and the same in the clear beside it.

A program of this folder is an ordinary PyTorch script. `hansa mpc local` runs all its parties, a process each:

    hansa mpc local examples/secret/housing.py
    HANSA_DATA=… hansa mpc local examples/secret/mnist_mlp.py
"""

import argparse
import csv
import os
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_diabetes, make_classification
from torch import nn

import hansa
import hansa.mpc

Pair = tuple[torch.Tensor, torch.Tensor]


def arguments(about: str, **defaults: float) -> argparse.Namespace:
    """The options of every program here: its numbers, and --quick."""
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="seconds, on data that is bundled or made up")
    for name, default in defaults.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    return parser.parse_args()


# -- data


def housing(quick: bool) -> tuple[Pair, Pair]:
    """Boston's prices by 13 columns, 404 rows and 102, where HANSA_DATA is; else the diabetes data of scikit-learn."""
    file = Path(os.environ.get("HANSA_DATA", "")) / "boston" / "housing.data"
    if quick or not file.is_file():
        data = load_diabetes()
        x, y = data.data, data.target[:, None] / 100
    else:
        table = np.loadtxt(file)
        x, y = table[:, :13], table[:, 13:]
    x = (x - x.mean(0)) / (x.max(0) - x.min(0))
    cut = round(0.8 * len(x))
    x, y = torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.float32)
    return (x[:cut], y[:cut]), (x[cut:], y[cut:])


def images(quick: bool) -> tuple[Pair, Pair]:
    """MNIST where HANSA_DATA is, else scikit-learn's digits, 8 × 8; x in 0..1 of shape (rows, pixels), y the digit."""
    if quick or "HANSA_DATA" not in os.environ:
        train, test = hansa.data.split(hansa.data.digits(), 0.2, seed=0)
    else:
        train, test = hansa.data.mnist((784,))
    pairs = [(torch.from_numpy(np.asarray(d["x"])), torch.from_numpy(np.asarray(d["y"]))) for d in (train, test)]
    order = torch.randperm(len(pairs[0][0]), generator=torch.Generator().manual_seed(0))
    return (pairs[0][0][order], pairs[0][1][order]), pairs[1]


def clicks(quick: bool, buckets: int = 8) -> tuple[Pair, Pair]:
    """Criteo's sample of 200 rows where HANSA_DATA is, else made up: x numbers and hashed categories, y a click."""
    file = Path(os.environ.get("HANSA_DATA", "")) / "criteo_sample" / "criteo_sample.txt"
    if quick or not file.is_file():
        x, y = make_classification(200, 40, n_informative=12, random_state=0)
        x = x / 4
    else:
        rows = list(csv.reader(file.read_text().splitlines()))[1:]
        y = np.array([float(row[0]) for row in rows])
        numbers = np.array([[np.log1p(max(0.0, float(cell or 0))) for cell in row[1:14]] for row in rows])
        numbers /= np.maximum(numbers.max(0), 1e-9)
        places = np.array([[zlib.crc32(cell.encode()) % buckets for cell in row[14:]] for row in rows])
        x = np.concatenate([numbers, np.eye(buckets)[places].reshape(len(rows), -1)], 1)
    x, y = torch.tensor(x, dtype=torch.float32), torch.tensor(y[:, None], dtype=torch.float32)
    return (x[:160], y[:160]), (x[160:], y[160:])


# -- training


@dataclass(frozen=True)
class Training:
    """How a network is trained.

    Args:
      loss: of predictions and labels.
      epochs: over all rows, in the same order in the clear and on shares.
      batch: rows of a step; a last one that is smaller is left out.
      lr: of SGD.
      momentum: of SGD.
    """

    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    epochs: int = 1
    batch: int = 128
    lr: float = 0.1
    momentum: float = 0.0

    def run(self, model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> nn.Module:
        """What anybody would write; x and y are tensors or secrets, and so are the model's parameters then."""
        optimiser = torch.optim.SGD(model.parameters(), lr=self.lr, momentum=self.momentum, foreach=False)
        for _ in range(self.epochs):
            for at in range(0, len(x) - self.batch + 1, self.batch):
                optimiser.zero_grad()
                self.loss(model(x[at : at + self.batch]), y[at : at + self.batch]).backward()
                optimiser.step()
        return model


def beside(
    session: hansa.mpc.Session, net: Callable[[], nn.Module], training: Training, train: Pair, test: Pair,
    score: Callable[[nn.Module, Pair], float], called: str,
) -> Sequence[float] | None:  # fmt: skip
    """Trains on shares and in the clear from the same start, and prints both scores on the test rows.

    The first party has the features, the last one the labels; the first one learns the model. That an example also
    trains in the clear is for comparison: nobody who had the need for shares could.

    Returns:
      The score in the clear and that of the model from shares; None at the parties that learn nothing.
    """
    torch.manual_seed(0)
    clear, secret = net(), net()
    secret.load_state_dict(clear.state_dict())
    first, last = session.names[0], session.names[-1]
    x = session.share(lambda: train[0], owner=first)  # called at its owner alone
    y = session.share(lambda: train[1], owner=last)
    session.share_module(secret)
    began = time.perf_counter()
    training.run(secret, x, y)
    opened = session.reveal(secret.state_dict(), to=first)
    seconds = time.perf_counter() - began
    if session.me != first:
        return None
    training.run(clear, *train)
    learnt = net()
    learnt.load_state_dict(opened)
    scores = score(clear, test), score(learnt, test)
    print(f"{called:34}{'in the clear':>14}{'on shares':>12}{'difference':>12}")
    print(f"{'':34}{scores[0]:14.4f}{scores[1]:12.4f}{scores[1] - scores[0]:+12.4f}")
    steps = training.epochs * (len(train[0]) // training.batch)
    print(f"{steps} steps on shares in {seconds:.1f} s, {steps / seconds:.1f} a second\n")
    print(session.report())
    return scores


def accuracy(model: nn.Module, test: Pair) -> float:
    """Of the largest of several outputs, or of the sign of one."""
    with torch.no_grad():
        out = model(test[0])
    guess = out.argmax(1) if out.shape[1] > 1 else (out[:, 0] > 0).long()
    labels = test[1].argmax(1) if test[1].ndim > 1 and test[1].shape[1] > 1 else test[1].reshape(-1).long()
    return float((guess == labels).double().mean())
