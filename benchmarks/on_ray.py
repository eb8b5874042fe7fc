"""Ray: what a second worker brings, what it costs beside plain processes, and how much memory a thousand clients take.

    python benchmarks/on_ray.py [speed] [overhead] [memory] [many] [--turns 3] [--rounds 6]      all without arguments

speed      McMahan's MNIST CNN (T2 of benchmarks/simulation.py), 10 clients of 600 examples a round: one worker, and two
overhead   the same, and the small 2NN (T1), with two workers: Ray, and Processes
memory     1,000 clients of 60 examples in the driver's memory, the CNN, 20 a round, two workers: the proportional share
           (PSS) of the driver, its workers and all that Ray runs, at its highest
many       10,000 clients of 20 examples, opened on the workers, the 2NN, 100 a round, two workers: rounds a second

Runs take turns on one private cluster; each gives the median of its rounds after the first two. Ratios are of runs of
the same turn; the range over turns says how noisy the machine is.
"""

import argparse
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import psutil
import torch.nn.functional as F
from simulation import BATCH, LR, NETS, RandomClients

import hansa
from hansa.core.data import Clients, Dataset
from hansa.core.runtime import Runtime
from hansa.runtimes.ray_cluster import connected

COHORT = 10


def job(task: str, rounds: int, cohort: int = COHORT) -> hansa.Job:
    return hansa.Job(
        model=hansa.TorchModel(NETS[task], F.cross_entropy),
        algorithm=hansa.FedAvg(hansa.LocalWork(lr=LR[task], epochs=1, batch_size=BATCH[task])),
        pipeline=hansa.Pipeline([hansa.WeightedMean()], hansa.Sum()),
        cohort=cohort,
        rounds=rounds,
    )


def rate(task: str, runtime: Runtime, workers: int, rounds: int) -> tuple[float, float]:
    """Examples a second, and the share of their time that workers train."""
    history = hansa.train(job(task, rounds + 2), RandomClients(task), runtime=runtime)
    measured = history.rounds[2:]
    busy = statistics.median(record.compute_seconds / (workers * record.seconds) for record in measured)
    return COHORT * 600 / statistics.median(record.seconds for record in measured), busy


def compare(task: str, runtimes: dict[str, tuple[Runtime, int]], turns: int, rounds: int, note: str) -> None:
    """Two runtimes in turns: the rate of each, and the ratio of the second to the first."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in runtimes}
    for turn in range(turns):
        for name in sorted(runtimes, reverse=bool(turn % 2)):
            found[name].append(rate(task, *runtimes[name], rounds))
    for name, figures in found.items():
        each, busy = (statistics.median(kind) for kind in zip(*figures, strict=True))
        print(f"{task}, {name:34} {each:9.0f} examples/s  (workers busy {busy:.0%})")
    first, second = found.values()
    ratios = sorted(b[0] / a[0] for a, b in zip(first, second, strict=True))
    spread = f"{ratios[0]:.2f} to {ratios[-1]:.2f} over {turns} turns"
    print(f"{task}, ratio{'':30} {statistics.median(ratios):9.2f} x           ({spread}; {note})", flush=True)


@contextmanager
def watched() -> Iterator[list[int]]:
    """The highest proportional share of memory of this process and all below it, sampled."""
    peak, over = [0], threading.Event()

    def look() -> None:
        while not over.wait(0.2):
            total = 0
            for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
                try:
                    total += process.memory_full_info().pss
                except psutil.Error:
                    continue
            peak[0] = max(peak[0], total)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield peak
    finally:
        over.set()
        thread.join()


def memory(rounds: int) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.random((60_000, 784), dtype=np.float32), rng.integers(0, 10, 60_000)
    clients = Clients.of(
        {f"{i:04}": Dataset(x=x[i * 60 : i * 60 + 60], y=y[i * 60 : i * 60 + 60]) for i in range(1000)}
    )
    began = time.perf_counter()
    with watched() as peak:
        history = hansa.train(job("T2", rounds, cohort=20), clients, runtime=hansa.Ray(workers=2))
    seconds = time.perf_counter() - began
    print(f"1,000 clients, peak memory of all processes {peak[0] / 2**30:11.2f} GiB         (bound 4)")
    rounds_s = statistics.median(record.seconds for record in history.rounds[1:])
    print(f"1,000 clients, a round of 20 {'':16} {rounds_s:9.2f} s           (with start and end {seconds:.0f} s)")


@dataclass(frozen=True)
class Many(Clients):
    """Small clients, made when they are opened."""

    count: int = 10_000

    @cached_property
    def ids(self) -> list[str]:
        return [f"{i:05}" for i in range(self.count)]

    def open(self, client: str) -> Dataset:
        rng = np.random.default_rng(int(client))
        return Dataset(x=rng.random((20, 784), dtype=np.float32), y=rng.integers(0, 10, 20))


def many(rounds: int) -> None:
    with watched() as peak:
        history = hansa.train(job("T1", rounds + 2, cohort=100), Many(), runtime=hansa.Ray(workers=2))
    seconds = statistics.median(record.seconds for record in history.rounds[2:])
    print(f"10,000 clients, 100 a round {'':17} {1 / seconds:9.2f} rounds/s")
    print(f"10,000 clients, peak memory of all processes {peak[0] / 2**30:10.2f} GiB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=["speed", "overhead", "memory", "many"])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=6)
    asked = parser.parse_args()
    one, two, processes = (hansa.Ray(workers=1), 1), (hansa.Ray(workers=2), 2), (hansa.Processes(2), 2)
    with connected(None, processors=2, store_bytes=1 << 30):
        if "speed" in asked.parts:
            workers = {"1 worker of Ray": one, "2 workers of Ray": two}
            compare("T2", workers, asked.turns, asked.rounds, "target 1.7")
        if "overhead" in asked.parts:
            for task in ("T2", "T1"):
                beside = {"2 processes": processes, "2 workers of Ray": two}
                compare(task, beside, asked.turns, asked.rounds, "1: Ray costs nothing")
    if "memory" in asked.parts:
        memory(asked.rounds)
    if "many" in asked.parts:
        many(asked.rounds)


if __name__ == "__main__":
    main()
