"""Simulation: examples trained a second through `hansa.train`, beside a plain PyTorch loop in as many processes.

    python benchmarks/simulation.py [T1 T2 T3 T4 tiny] [--processes 2] [--seconds 8] [--loop auto] [--precision bf16]
    python benchmarks/simulation.py [T1 T2 T3 T4] --device cuda [--seconds 8]      what `on_gpu.py` says

    T1   McMahan's MNIST 2NN, 100 clients of 600 examples, batches of 10, 10 clients a round
    T2   McMahan's MNIST CNN (1,663,370 parameters), the same
    T3   EMNIST-62 CNN of Reddi et al., 3,400 ragged clients, batches of 20
    T4   next character, 2 × LSTM 256, sequences of 80, 715 clients of 200, batches of 10
    tiny logistic regression of 60 inputs and 10 classes, 1,000 clients of 50 examples a round, in one process: its
         loops beside each other, by CPU time, of a round of `hansa.train` and of the training in it alone

Data is random, of the right shapes. One line a figure: name, value, unit; and the ratio of the two: of wall time, and
of the CPU time of all processes, which tells more where other programs keep the machine busy. `overhead` is the CPU
time of a round in one process that is not spent in the model's `fit`.
"""

import argparse
import dataclasses
import math
import multiprocessing
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import hansa
from hansa.core.data import Clients, Dataset

TASKS = ("T1", "T2", "T3", "T4")
COHORT = 10


def t1():
    return nn.Sequential(nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 10))


def t2():
    return nn.Sequential(
        nn.Unflatten(1, (1, 28, 28)), nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(3136, 512), nn.ReLU(),
        nn.Linear(512, 10),
    )  # fmt: skip


def t3():
    return nn.Sequential(
        nn.Unflatten(1, (1, 28, 28)), nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Dropout(0.25), nn.Flatten(), nn.Linear(9216, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 62),
    )  # fmt: skip


class T4(nn.Module):
    """Two LSTM layers over embedded characters."""

    def __init__(self):
        super().__init__()
        self.words, self.cell, self.out = nn.Embedding(90, 8), nn.LSTM(8, 256, 2, batch_first=True), nn.Linear(256, 90)

    def forward(self, x):
        return self.out(self.cell(self.words(x))[0]).transpose(1, 2)


NETS = {"T1": t1, "T2": t2, "T3": t3, "T4": T4}
BATCH = {"T1": 10, "T2": 10, "T3": 20, "T4": 10}
LR = {"T1": 0.05, "T2": 0.05, "T3": 0.05, "T4": 0.5}


@dataclass(frozen=True)
class RandomClients(Clients):
    """Clients of one task, cut out of a pool of random examples: the same in every process."""

    task: str

    @cached_property
    def _pool(self) -> tuple[Dataset, np.ndarray, np.ndarray]:
        r = np.random.default_rng(1234)
        if self.task in ("T1", "T2"):
            sizes, pool, classes = np.full(100, 600), 60_000, 10
            starts = np.arange(100) * 600
        elif self.task == "T3":
            sizes = np.exp(r.normal(math.log(190.0), 0.45, 3400)).round().clip(20, 400).astype(int)
            pool, classes = 20_000, 62
            starts = r.integers(0, pool - 400, 3400)
        else:
            tokens = r.integers(0, 90, (20_000, 81))
            return Dataset(x=tokens[:, :-1], y=tokens[:, 1:]), r.integers(0, 19_800, 715), np.full(715, 200)
        x = r.random((pool, 784), dtype=np.float32)
        return Dataset(x=x, y=r.integers(0, classes, pool)), starts, sizes

    @cached_property
    def ids(self) -> Sequence[str]:
        return [f"{i:04}" for i in range(len(self._pool[1]))]

    def sizes(self) -> np.ndarray:
        return self._pool[2]

    def open(self, client: str) -> Dataset:
        pool, starts, sizes = self._pool
        rows = slice(int(starts[int(client)]), int(starts[int(client)] + sizes[int(client)]))
        return Dataset(x=pool["x"][rows], y=pool["y"][rows])


@dataclass(frozen=True)
class Rate:
    """Examples a second of wall time, and examples a second of CPU time of all processes together."""

    wall: float
    cpu: float

    def over(self, other: "Rate") -> str:
        return f"ratio {self.wall / other.wall:.2f}, by CPU time {self.cpu / other.cpu:.2f}"


def plain(task: str, seconds: float, out: "multiprocessing.Queue[Rate]", barrier: "multiprocessing.Barrier") -> None:
    """One process of the hand-written loop."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net, clients, batch, seen = NETS[task](), RandomClients(task), BATCH[task], 0
    weights = list(net.parameters())
    datasets = [clients.open(client) for client in clients.ids[:40]]
    barrier.wait()
    began, cpu = time.perf_counter(), time.process_time()
    while time.perf_counter() - began < seconds:
        data = datasets[seen % len(datasets)]
        x, y = torch.from_numpy(data["x"]), torch.from_numpy(data["y"])
        for at in range(0, len(x), batch):
            grads = torch.autograd.grad(F.cross_entropy(net(x[at : at + batch]), y[at : at + batch]), weights)
            with torch.no_grad():
                torch._foreach_add_(weights, grads, alpha=-LR[task])
            seen += len(x[at : at + batch])
            if time.perf_counter() - began > seconds:
                break
    out.put(Rate(seen / (time.perf_counter() - began), seen / (time.process_time() - cpu)))


def plain_rate(task: str, processes: int, seconds: float) -> Rate:
    context = multiprocessing.get_context("spawn")
    out, barrier = context.Queue(), context.Barrier(processes)
    children = [context.Process(target=plain, args=(task, seconds, out, barrier)) for _ in range(processes)]
    for child in children:
        child.start()
    rates = [out.get() for _ in children]
    for child in children:
        child.join()
    return Rate(sum(rate.wall for rate in rates), statistics.mean(rate.cpu for rate in rates))


def cpu_s() -> float:
    """CPU seconds of this process and its children that are alive."""
    ticks = 0
    for child in multiprocessing.active_children():
        fields = Path(f"/proc/{child.pid}/stat").read_text().rsplit(")", 1)[1].split()
        ticks += int(fields[11]) + int(fields[12])
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def job_of(task: str, rounds: int, **settings: str | None) -> hansa.Job:
    return hansa.Job(
        model=hansa.TorchModel(NETS[task], F.cross_entropy, **settings),
        algorithm=hansa.FedAvg(hansa.LocalWork(lr=LR[task], epochs=1, batch_size=BATCH[task])),
        pipeline=hansa.Pipeline([hansa.WeightedMean()], hansa.Sum()),
        cohort=COHORT,
        rounds=rounds,
    )


def our_rate(task: str, processes: int, seconds: float, **settings: str | None) -> Rate:
    """Through `hansa.train`, the median of its rounds after two."""
    clients, used = RandomClients(task), []
    mean = float(np.mean(clients._pool[2])) * COHORT
    runtime = hansa.Processes(processes) if processes > 1 else hansa.Local()
    probe = hansa.train(job_of(task, 3, **settings), clients, runtime=runtime)
    rounds = max(5, math.ceil(seconds / probe.rounds[-1].seconds))
    history = hansa.train(
        job_of(task, rounds, **settings), clients, runtime=runtime, observe=lambda record: used.append(cpu_s())
    )
    times = [record.seconds for record in history.rounds[2:]]
    return Rate(mean / statistics.median(times), mean / statistics.median(np.diff(used[1:])))


class Timed(hansa.TorchModel):
    """Notes the CPU time that `fit` takes."""

    spent = 0.0

    def fit(self, *given):
        began = time.process_time()
        try:
            return super().fit(*given)
        finally:
            Timed.spent += time.process_time() - began


def overhead(task: str, rounds: int) -> float:
    """The share of a round's CPU time that is not spent in `fit`, in one process, after two rounds."""
    marks = []
    job = dataclasses.replace(job_of(task, rounds), model=Timed(NETS[task], F.cross_entropy))
    hansa.train(job, RandomClients(task), observe=lambda record: marks.append((time.process_time(), Timed.spent)))
    (began, before), (ended, after) = marks[1], marks[-1]
    return 1 - (after - before) / (ended - began)


def logistic() -> nn.Module:
    return nn.Linear(60, 10)


def tiny(rounds: int = 3, count: int = 1000) -> None:
    rng = np.random.default_rng(0)
    data = [Dataset(x=rng.normal(size=(50, 60)).astype("float32"), y=rng.integers(0, 10, 50)) for _ in range(count)]
    clients, work = Clients.of({f"{i:04d}": one for i, one in enumerate(data)}), hansa.LocalWork(0.1, 1, batch_size=10)
    found = {}
    for loop in ("plain", "replay", "cohort"):
        model, marks, alone = hansa.TorchModel(logistic, F.cross_entropy, loop=loop), [], []
        job = hansa.Job(
            model=model, algorithm=hansa.FedAvg(work), cohort=count, rounds=rounds,
            pipeline=hansa.Pipeline([hansa.WeightedMean()], hansa.Sum()),
        )  # fmt: skip
        hansa.train(job, clients, observe=lambda record, marks=marks: marks.append(time.process_time()))
        start = model.init(0)
        for _ in range(rounds):
            rngs = [np.random.default_rng(i) for i in range(count)]
            began = time.process_time()
            model.fit_cohort([start] * count, data, [work] * count, rngs)
            alone.append(time.process_time() - began)
        found[loop] = statistics.median(np.diff(marks)), statistics.median(alone[1:])
        whole, fits = (50 * count / seconds for seconds in found[loop])
        ratios = [before / now for before, now in zip(found["plain"], found[loop], strict=True)]
        print(
            f"tiny {loop}: {whole:.0f} examples/s of a round (ratio {ratios[0]:.2f}), "
            f"{fits:.0f} of training alone (ratio {ratios[1]:.2f})",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", default=TASKS)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--loop", default="auto")
    parser.add_argument("--precision")
    parser.add_argument("--device")
    asked = parser.parse_args()
    if asked.device:
        from on_gpu import compare  # it takes its tasks from here

        return compare(asked.tasks, asked.device, clients=100, seconds=asked.seconds)
    settings = {"loop": asked.loop, "precision": asked.precision}
    for task in asked.tasks:
        if task == "tiny":
            tiny()
            continue
        before = plain_rate(task, asked.processes, asked.seconds / 2)
        ours = our_rate(task, asked.processes, asked.seconds, **settings)
        after = plain_rate(task, asked.processes, asked.seconds / 2)
        reference = Rate((before.wall + after.wall) / 2, (before.cpu + after.cpu) / 2)
        print(f"{task} plain loop, {asked.processes} processes: {reference.wall:.0f} examples/s")
        print(f"{task} hansa.train: {ours.wall:.0f} examples/s  ({ours.over(reference)})")
        print(f"{task} overhead: {100 * overhead(task, 8):.1f} % of a round", flush=True)


if __name__ == "__main__":
    main()
