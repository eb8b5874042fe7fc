"""Compression: what it costs in time, what it loses, and what a federation learns with a sixtieth of the bytes.

    python benchmarks/privacy_compression.py [speed] [loss] [learning]      all without arguments

Each line is a figure: name, value, unit, and what it is held against.

speed: 2^20 float32, one thread, medians of 21 of the processor's time (which other processes disturb least), each
beside the plain NumPy butterfly of the same transform.

loss: NMSE E‖decoded − x‖²/‖x‖² on 2^20 normal numbers at 1, 2 and 4 bits a coordinate that travel. EDEN's and the
dither's published figures are those of their authors' methods with a single table of probabilities.

learning: McMahan's 2NN on MNIST, 100 clients IID, C = 0.1, E = 1, B = 10, lr 0.2, 100 rounds, uncompressed and with 2
bits + rotation + a mask of 25 %: accuracy on the test set, and bytes that one client sends. Needs HANSA_DATA.
"""

import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np
from figures import figure

import hansa
from hansa.core.algorithm import Algorithm
from hansa.core.pipeline import Bound, Part, Pipeline, Setting, Signal, Stage
from hansa.core.sampling import Fixed
from hansa.core.tensors import EMPTY, Tensors
from hansa.stages.rotate import Rotation

SIZE = 1 << 20
PUBLISHED = {("Eden", 1): 0.571, ("Eden", 2): 0.133, ("Eden", 4): 0.0096,
             ("Dither", 1): 1.03, ("Dither", 2): 0.108, ("Dither", 4): 0.0056}  # fmt: skip


def butterfly(x: np.ndarray) -> np.ndarray:
    """The transform as anyone would write it in NumPy."""
    half, x, out = 1, x.copy(), np.empty_like(x)
    while half < len(x):
        pairs, into = x.reshape(-1, 2, half), out.reshape(-1, 2, half)
        np.add(pairs[:, 0], pairs[:, 1], out=into[:, 0])
        np.subtract(pairs[:, 0], pairs[:, 1], out=into[:, 1])
        x, out, half = out, x, 2 * half
    return x


def bound(*stages: Stage, size: int = SIZE) -> Bound:
    setting = Setting(sampling=Fixed(10), algorithm=Algorithm(hansa.LocalWork(lr=1.0, epochs=1)), population=10)
    value = Part(shapes={"w": ((size,), "float32")})
    weight = Part(shapes={"weight": ((1,), "float64")}, bits=64)
    return Pipeline(stages, hansa.Sum()).bind(Signal({"value": value, "weight": weight}), setting)


def message(b: Bound, x: np.ndarray, seed: int = 0) -> Tensors:
    contribution = Tensors({"value/w": x[None], "weight/weight": np.ones((1, 1))})
    return b.encode(contribution, b.start(), EMPTY, [np.random.default_rng(seed)])[0].map(lambda a: a[0])


def decoded(b: Bound, sent: Tensors) -> np.ndarray:
    total = b.decode_one(sent, b.start())
    for i in range(len(b.steps) - 1, 0, -1):  # what was left to the total, but for the mean's division
        if b.steps[i].out.parts["value"].additive:
            total = b.steps[i].decode_one(total, b.start().part(str(i)))
    return np.asarray(total["value/w"], np.float64)


def medians(runs: dict[str, Callable[[], object]], repeats: int = 21) -> dict[str, float]:
    """Milliseconds of processor time of each, taking turns."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            began = time.process_time()
            run()
            taken[name].append((time.process_time() - began) * 1e3)
    return {name: statistics.median(times) for name, times in taken.items()}


def speed() -> None:
    x = (np.random.default_rng(0).standard_normal(SIZE) / math.sqrt(SIZE)).astype("float32")
    rotation = Rotation(SIZE, 1)
    plain = bound(hansa.Clip(2.0), hansa.UniformMean())
    rotated = bound(hansa.Clip(2.0), hansa.UniformMean(), hansa.Rotate(clip=3.0), hansa.Quantise(8))
    codes = {
        "Eden(2)": bound(hansa.UniformMean(), hansa.Eden(2)),
        "Dither(2)": bound(hansa.UniformMean(), hansa.Dither(2)),
    }
    sent = {name: message(b, x) for name, b in codes.items()}
    taken = medians({
        "butterfly": lambda: butterfly(x),
        "rotation": lambda: rotation.apply(x),
        "plain": lambda: message(plain, x),
        "rotated": lambda: message(rotated, x),
        **{f"{name} written": lambda b=b: message(b, x) for name, b in codes.items()},
        **{f"{name} read": lambda b=b, name=name: b.decode_one(sent[name], b.start()) for name, b in codes.items()},
    })  # fmt: skip
    ratio = f"{taken['rotation'] / taken['butterfly']:.2f} x the butterfly's {taken['butterfly']:.1f} ms"
    figure("2^20 floats rotated", taken["rotation"], "ms", ratio)
    pair = taken["rotated"] - taken["plain"]
    figure(
        "2^20 floats rotated and quantised to 8 bits", pair, "ms", f"{pair / taken['butterfly']:.2f} x, target 12 ms"
    )
    for name in codes:
        figure(f"2^20 floats by {name}", taken[f"{name} written"], "ms", f"read back {taken[f'{name} read']:.1f} ms")


def loss() -> None:
    x = np.random.default_rng(0).standard_normal(SIZE).astype("float32")
    norm = float(np.linalg.norm(x.astype("float64")))
    for bits in (1, 2, 4):
        codes: dict[str, Sequence[Stage]] = {
            "Eden": [hansa.UniformMean(), hansa.Eden(bits)],
            "Dither": [hansa.UniformMean(), hansa.Dither(bits)],
        }
        if bits > 1:  # adds up: the grid is the same for all clients, and the clip is as long as the vector
            grid = [hansa.Rotate(clip={2: 2.0, 4: 3.0}[bits]), hansa.Quantise(bits), hansa.Pack()]
            codes["Rotate + Quantise"] = [hansa.Clip(norm * 1.001), hansa.UniformMean(), *grid]
        for name, stages in codes.items():
            b = bound(*stages)
            sent = message(b, x)
            error = float(((decoded(b, sent) - x) ** 2).sum()) / norm**2
            known = PUBLISHED.get((name, bits))
            against = f"published {known}, {error / known:.3f} x" if known else "adds up under a secure sum"
            figure(f"NMSE, {name} at {8 * sent.size_bytes / SIZE:.3f} bits", error, "", against)


def learning() -> None:
    import torch.nn.functional as F
    from torch import nn

    def net() -> nn.Module:
        layers = [nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 10)]
        return nn.Sequential(*layers)

    train, test = hansa.data.mnist((784,))
    clients = hansa.data.partition(train, hansa.data.IID(), clients=100, seed=1)
    mean, reached, sent = hansa.UniformMean(), dict[str, float](), dict[str, float]()
    for name, stages in {
        "uncompressed": [mean],
        "rotation, 25 % mask, 2 bits": [
            hansa.AdaptiveClip(1.0), mean,
            hansa.Rotate(clip=2.0), hansa.RandomMask(0.25), hansa.Quantise(2), hansa.Pack(),
        ],
        "25 % masks of their own, EDEN's 2 bits": [mean, hansa.RandomMask(0.25, shared=False), hansa.Eden(2)],
    }.items():  # fmt: skip
        job = hansa.Job(
            model=hansa.TorchModel(net, F.cross_entropy),
            algorithm=hansa.FedAvg(hansa.LocalWork(lr=0.2, epochs=1, batch_size=10)),
            pipeline=hansa.Pipeline(stages, hansa.Sum()),
            cohort=10, rounds=100, seed=1, evaluation=hansa.Evaluation(data=test, every=100),
        )  # fmt: skip
        rounds = hansa.train(job, clients).rounds
        reached[name] = 100 * rounds[-1].central["accuracy"]
        sent[name] = sum(record.up_bytes for record in rounds) / sum(record.asked for record in rounds)
        lost = f"{reached['uncompressed'] - reached[name]:+.2f} points lost, target 1" if len(reached) > 1 else ""
        share = f"1/{sent['uncompressed'] / sent[name]:.1f} of the bytes, target 1/60" if len(sent) > 1 else ""
        figure(f"2NN after 100 rounds, {name}", reached[name], "%", lost)
        figure(f"2NN, bytes up a client, {name}", sent[name], "bytes", share)


if __name__ == "__main__":
    for name in sys.argv[1:] or ["speed", "loss", "learning"]:
        {"speed": speed, "loss": loss, "learning": learning}[name]()
