"""What the usual tasks take: rounds a second, with many clients, in a stream of all of them, in stacks in processes.

    python benchmarks/tasks.py [tasks] [many] [stream] [stacks] [--rounds 5] [--every 200] [--processes 2]

tasks    `hansa.tasks` on stand-ins, in their usual settings: rounds and examples a second, as FedJAX reports its own
many     10,000 clients of one machine, 100 a round, the 2NN of 200 units: rounds a second, and memory
stream   every so many-th of StackOverflow's 342,477 clients is opened in turn: clients a second, and memory at the most
stacks   logistic regression of 500 clients a round in two processes: stacks of 64 against one client at a time

Rounds are medians after the first two; memory is the resident set above what it was after imports, in MB.
"""

import argparse
import statistics
import time
from dataclasses import replace

from figures import figure
from population import peak_mb, resident_mb

import hansa
from hansa.adapters import reference_networks  # noqa: F401  PyTorch is imported before memory is first looked at

TASKS = ("emnist-cnn", "emnist-dense", "shakespeare", "stackoverflow-words", "cifar100-resnet")


def seconds(job: hansa.Job, clients: hansa.Clients, runtime: object, rounds: int) -> float:
    """Of the median round after two that warm up."""
    measured = replace(job, rounds=rounds + 2, evaluation=hansa.Evaluation())
    records = hansa.train(measured, clients, runtime=runtime).rounds[2:]
    return statistics.median(record.seconds for record in records)


def tasks(rounds: int, processes: int) -> None:
    for name in TASKS:
        task = hansa.tasks.load(name)
        each = seconds(task.job, task.clients, hansa.Processes(processes), rounds)
        examples = task.job.cohort * task.clients.sizes().mean()
        figure(f"{name}, {task.job.cohort} of {len(task.clients):,} clients", 1 / each, "rounds/s",
               f"{examples / each:,.0f} examples/s, as many as {task.job.cohort} clients have on average")  # fmt: skip


def many(rounds: int, processes: int) -> None:
    before = resident_mb()
    clients = hansa.data.twin("emnist", clients=10_000, examples=200_000)
    job = hansa.tasks.job("emnist-dense", cohort=100)
    each = seconds(job, clients, hansa.Processes(processes), rounds)
    figure("10,000 clients, 100 a round", 1 / each, "rounds/s")
    figure("10,000 clients: memory of the parent, at the most", peak_mb() - before, "MB")


def stream(every: int) -> None:
    before, began = resident_mb(), time.perf_counter()
    clients = hansa.data.twin("stackoverflow")
    opened = rows = 0
    for client in clients.ids[::every]:
        rows += len(clients.open(client))
        opened += 1
    took = time.perf_counter() - began
    figure(f"stream of {opened:,} of {len(clients):,} clients", opened / took, "1/s", f"{rows / took:,.0f} examples/s")
    most = peak_mb() - before
    figure("stream: memory at the most", most, "MB", f"{most / 1024:.3f} of the bound of 1 GB")


def stacks(rounds: int, processes: int) -> None:
    clients = hansa.data.partition(hansa.data.blobs(10_000, 10, features=784), hansa.data.IID(), clients=500)
    job, found = hansa.tasks.job("emnist-logistic", cohort=500), {}
    for loop in ("replay", "cohort", "cohort", "replay"):
        model = replace(job.model, loop=loop)
        each = seconds(replace(job, model=model), clients, hansa.Processes(processes), rounds)
        found[loop] = min(each, found.get(loop, each))
    figure("500 clients a round, one at a time", 1 / found["replay"], "rounds/s")
    figure("500 clients a round, stacks of 64", 1 / found["cohort"], "rounds/s",
           f"{found['replay'] / found['cohort']:.2f} times as many")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="*", help="tasks, many, stream, stacks; all without")
    parser.add_argument("--rounds", type=int, default=5, help="measured, after two that are not (default: 5)")
    parser.add_argument("--every", type=int, default=200, help="which clients are streamed; 1 is all (default: 200)")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    wanted = options.what or ["tasks", "many", "stream", "stacks"]
    if "tasks" in wanted:
        tasks(options.rounds, options.processes)
    if "many" in wanted:
        many(options.rounds, options.processes)
    if "stream" in wanted:
        stream(options.every)
    if "stacks" in wanted:
        stacks(options.rounds, options.processes)


if __name__ == "__main__":
    main()
