"""What protective noise costs: time to draw it, how much it is against the best that is known, and what ε it takes.

    python benchmarks/privacy_noise.py

Each line is a figure: name, value, unit, and what it is held against, in the same run. Times are medians of 9 of the
processor's time, one thread, for 2^20 coordinates; the ceiling is NumPy's own generator, which protects nobody.
"""

import math
import statistics
import time
from collections import Counter
from collections.abc import Callable

import numpy as np
from figures import figure

import hansa
from hansa.core.algorithm import Algorithm
from hansa.core.ledger import Event
from hansa.core.pipeline import Bound, Part, Pipeline, Setting, Signal, Stage
from hansa.core.sampling import Fixed, Stream
from hansa.core.tensors import EMPTY, Tensors
from hansa.privacy import Target, multiplier, plan
from hansa.privacy.accountant import cost
from hansa.privacy.correlated import banded, error, restart, tree_error
from hansa.privacy.discrete import discrete_gaussian, skellam
from hansa.privacy.noise import Laplaces, Normals

SIZE = 1 << 20


def ms(work: Callable[[], object]) -> float:
    taken = []
    for _ in range(9):
        began = time.process_time()
        work()
        taken.append(1e3 * (time.process_time() - began))
    return statistics.median(taken)


def bound(*stages: Stage, clients: int, size: int = SIZE) -> Bound:
    parts = {
        "value": Part(shapes={"w": ((size,), "float32")}),
        "weight": Part(shapes={"weight": ((1,), "float64")}, bits=64),
    }
    setting = Setting(
        sampling=Fixed(clients), algorithm=Algorithm(hansa.LocalWork(lr=1.0, epochs=1)), population=clients
    )
    return Pipeline(stages, hansa.Sum()).bind(Signal(parts), setting)


def times() -> None:
    rng = np.random.default_rng(0)
    ceiling = ms(lambda: rng.standard_normal(SIZE))
    figure("numpy's normals", ceiling, "ms", "the ceiling")
    for name, work in {
        "normals": lambda: Normals(Stream(b"x")).draw(SIZE),
        "Laplace": lambda: Laplaces(Stream(b"x")).draw(SIZE),
        "discrete Gaussian, σ = 500": lambda: discrete_gaussian(500.0**2).draw(Stream(b"x"), SIZE),
        "Skellam, σ = 500": lambda: skellam(500.0**2).draw(Stream(b"x"), SIZE),
    }.items():
        work()
        taken = ms(work)
        figure(f"{name}, from a secret", taken, "ms", f"{taken / ceiling:.1f} x the ceiling")
    b = bound(hansa.Clip(1.0), hansa.UniformMean(), hansa.DistributedGaussian(1.0, bits=20), clients=100)
    x = Tensors({"value/w": rng.standard_normal((1, SIZE)).astype("float32"), "weight/weight": np.ones((1, 1))})
    figure("a client's clip, rounding and share of noise", ms(lambda: b.encode(x, b.start(), EMPTY, [rng])), "ms")


def amounts() -> None:
    central = cost(Counter({Event(mechanism="gaussian", noise_multiplier=1.0): 1}), 1e-5).rdp
    for size in (1000, 100_000, 1_000_000):
        for kind in (hansa.DistributedGaussian, hansa.DistributedSkellam):
            stages = [hansa.Clip(1.0), hansa.UniformMean(), hansa.Rotate(clip=4), kind(1.0, bits=16)]
            b = bound(*stages, clients=100, size=size)
            grid = b.steps[-1]._grids[0]
            spent = cost(Counter(b.events()), 1e-5).epsilon
            name = f"{kind.__name__}, {size} coordinates, 16 bits"
            figure(f"{name}: ε", spent, "", f"{100 * (spent / central - 1):+.2f} % of the central one's RDP")
            figure(f"{name}: noise", math.sqrt(100 * grid.variance) * grid.unit, "z·C", "1 is the central one's")
    for groups in (10, 50, 200):
        alone = error(np.ones(1), 1000, groups)
        matrix = error(np.array(banded(1000, groups, groups)), 1000, groups)
        tree = tree_error(1000, restart(1000, groups), groups)
        figure(f"MatrixNoise, 1000 rounds, {groups} groups", matrix / alone, "", "of independent noise")
        figure(f"TreeNoise, 1000 rounds, {groups} groups", tree / alone, "", "of independent noise")


def targets() -> None:
    figure("σ for ε = 2, q = .01, T = 1000, by RDP", multiplier(2, 1e-5, 0.01, 1000, by="rdp"), "", "published 1.02229")
    figure("σ for ε = 2, q = .01, T = 1000, by PLD", multiplier(2, 1e-5, 0.01, 1000, by="pld"), "", "published 0.95924")
    for by, published in (("rdp", "published 120 (TFF)"), ("pld", "")):
        found = plan(Target(epsilon=2, delta=1e-5, clients=3383, rounds=100, by=by), noise=0.01)
        figure(f"cohort for TFF's example, by {by.upper()}", found.cohort, "clients", published)


if __name__ == "__main__":
    times()
    amounts()
    targets()
