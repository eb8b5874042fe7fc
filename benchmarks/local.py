"""Local training: what the PyTorch adapter costs over a plain loop.

    python benchmarks/local.py

Each line is a figure: name, value, unit, and what it is held against. How fast MNIST is learnt is told by
`examples/papers/fedavg_mnist.py`.

McMahan's 2NN (784-200-200-10), one client of 600 examples, batch 10, one epoch of SGD, one thread. A hand-written
PyTorch loop (`torch.optim.SGD`) and `TorchModel.fit` take turns; medians. Ours includes loading and returning tensors
and the metrics of training, the plain loop does neither.
"""

import functools
import statistics
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import hansa

WORK = hansa.LocalWork(lr=0.2, epochs=1, batch_size=10)


def net() -> nn.Module:
    """McMahan's 2NN."""
    layers = [nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 10)]
    return nn.Sequential(*layers)


def figure(name: str, value: float, unit: str, against: str = "") -> None:
    print(f"{name:44} {value:10.3f} {unit:8} {against}", flush=True)


def plain_loop(module: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
    """One epoch as anyone would write it."""
    optimiser = torch.optim.SGD(module.parameters(), lr=WORK.lr)
    module.train()
    order = torch.randperm(len(x))
    for at in range(0, len(x), 10):
        rows = order[at : at + 10]
        optimiser.zero_grad()
        F.cross_entropy(module(x[rows]), y[rows]).backward()
        optimiser.step()


def cost(repeats: int = 60) -> None:
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    x, y = rng.random((600, 784), dtype=np.float32), rng.integers(0, 10, 600)
    model, data, module = hansa.TorchModel(net, F.cross_entropy), hansa.Dataset(x=x, y=y), net()
    params = model.init(0)
    runs = {
        "plain": functools.partial(plain_loop, module, torch.from_numpy(x), torch.from_numpy(y)),
        "ours": lambda: model.fit(params, data, WORK, np.random.default_rng(0)),
    }
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats):
        for name in sorted(runs, reverse=bool(turn % 2)):
            began = time.perf_counter()
            runs[name]()
            taken[name].append(time.perf_counter() - began)
    plain, ours = (statistics.median(taken[name][5:]) for name in ("plain", "ours"))
    ratio = statistics.median(b / a for a, b in zip(taken["plain"][5:], taken["ours"][5:], strict=True))
    figure("2NN epoch, plain PyTorch loop", plain * 1e3, "ms")
    figure("2NN epoch, TorchModel.fit", ours * 1e3, "ms", f"{ours / plain:.2f} x plain, target 1.15")
    figure("2NN epoch, median of paired ratios", ratio, "x", "target 1.15")


if __name__ == "__main__":
    cost()
