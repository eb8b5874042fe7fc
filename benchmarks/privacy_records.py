"""Record-level privacy (DP-SGD): what it costs in time, and what it learns at a published ε.

    python benchmarks/privacy_records.py [speed] [mnist]      both without arguments

Each line is a figure: name, value, unit, and what it is held against.

speed: examples a second of `LocalWork(dp=…)` through `TorchModel.fit`, beside plain SGD with the same net, batches and
number of steps, by autograd (as the published ratios have it) and replayed (as we run it), taking turns; medians of the
processor's time, after visits in which steps are traced. Data are random: time does not depend on them. Plain SGD draws
batches of 256 exactly, DP-SGD each record with 256 / examples.

mnist: the published run of TensorFlow Privacy and Opacus on all of MNIST: σ 1.3, clip 1.5, batches of 256, 15 epochs,
their network, and δ = 1e-5. Needs HANSA_DATA.
"""

import statistics
import sys
import time
from dataclasses import replace

import numpy as np
import torch.nn.functional as F
from figures import figure
from torch import nn

import hansa
from hansa.core.model import RecordDP
from hansa.core.train import Record
from hansa.privacy.records import record_epsilon

PRIVATE = RecordDP(noise_multiplier=1.3, clip=1.5)
DELTA = 1e-5


def dense() -> nn.Module:
    """McMahan's 2NN: 199,210 parameters."""
    layers = [nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 10)]
    return nn.Sequential(*layers)


def convolutional() -> nn.Module:
    """The net of both libraries' MNIST examples: 26,010 parameters."""
    features = [
        nn.Conv2d(1, 16, 8, stride=2, padding=3), nn.ReLU(), nn.MaxPool2d(2, 1),
        nn.Conv2d(16, 32, 4, stride=2), nn.ReLU(), nn.MaxPool2d(2, 1),
    ]  # fmt: skip
    return nn.Sequential(*features, nn.Flatten(), nn.Linear(512, 32), nn.ReLU(), nn.Linear(32, 10))


def speed(examples: int = 256 * 40, repeats: int = 9, warm: int = 12) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.random((examples, 784), np.float32), rng.integers(0, 10, examples)
    plain = hansa.LocalWork(lr=0.05, epochs=1, batch_size=256)
    for name, net, shape in (("MLP", dense, (784,)), ("CNN", convolutional, (1, 28, 28))):
        data = hansa.Dataset(x=x.reshape(-1, *shape), y=y)
        ours, autograd = (hansa.TorchModel(net, F.cross_entropy, loop=loop) for loop in ("auto", "plain"))
        runs = {"plain": (ours, plain), "autograd": (autograd, plain), "private": (ours, replace(plain, dp=PRIVATE))}
        params = ours.init(0)
        taken: dict[str, list[float]] = {kind: [] for kind in runs}
        for at in range(warm + repeats):
            for kind, (model, work) in runs.items():
                began = time.process_time()
                model.fit(params, data, work, np.random.default_rng(at))
                taken[kind].append(time.process_time() - began)
        rates = {kind: examples / statistics.median(times[warm:]) for kind, times in taken.items()}
        private = rates["private"]
        loop = f"{private / rates['autograd']:.2f} x an autograd loop's {rates['autograd']:.0f}"
        replayed = f"{private / rates['plain']:.2f} x our replayed SGD's {rates['plain']:.0f}"
        target = "target 0.6; published 0.35 to 0.6"
        figure(f"DP-SGD, {name}, batch 256", private, "ex/s", f"{loop}, {target}; {replayed}")


def mnist() -> None:
    train, test = hansa.data.mnist((1, 28, 28))
    work = hansa.LocalWork(lr=0.25, epochs=1, batch_size=256, dp=PRIVATE)
    job = hansa.Job(
        model=hansa.TorchModel(convolutional, F.cross_entropy),
        algorithm=hansa.FedAvg(work),
        pipeline=hansa.Pipeline([hansa.UniformMean()], hansa.Sum()),
        cohort=1, rounds=15, seed=1, evaluation=hansa.Evaluation(data=test),
    )  # fmt: skip
    began = time.perf_counter()

    def tell(record: Record) -> None:
        print(f"  epoch {record.round + 1:2}  {100 * record.central['accuracy']:.2f} %", file=sys.stderr, flush=True)

    last = hansa.train(job, hansa.Clients.of({"all": train}), observe=tell).rounds[-1]
    spent = record_epsilon(work, examples=len(train), visits=job.rounds, delta=DELTA)
    figure("MNIST by DP-SGD, 15 epochs: accuracy", 100 * last.central["accuracy"], "%", "target 94.6 ± 1.0")
    figure("MNIST by DP-SGD, 15 epochs: ε", spent.epsilon, "", f"at δ = {DELTA:g}, target 1.19, RDP {spent.rdp:.3f}")
    figure("MNIST by DP-SGD, 15 epochs: time", time.perf_counter() - began, "s")


if __name__ == "__main__":
    for name in sys.argv[1:] or ["speed", "mnist"]:
        {"speed": speed, "mnist": mnist}[name]()
