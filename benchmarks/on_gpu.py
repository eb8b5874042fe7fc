"""Simulation on one device: `hansa.train` with a round's clients stacked, beside what one would write by hand.

    python benchmarks/on_gpu.py [T1 T2 T3 T4] [--device cuda] [--clients 100] [--seconds 8]

    plain loop     a client's examples on the device, forward, backward and update, batch by batch
    torch.func     vmap(grad(loss)) over all clients' stacked weights, eagerly, on batches that are there already
    hansa.train    a whole round: sampling, examples to the device, training, aggregation, metrics

Tasks are those of `simulation.py`, float32 without TF32; the clock stops when the device has finished. `of products` is
the share of the rate of one large matrix product, in the same run, that the examples' own multiplications make: those
of the forward and backward pass as `FlopCounterMode` counts them, two operations each. With `--device cpu --clients 3
--seconds 0.1` it all runs anywhere.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from figures import figure
from simulation import BATCH, LR, NETS, TASKS, RandomClients, job_of
from torch.utils.flop_counter import FlopCounterMode

import hansa

FULL = 5  # batches of each client in the stacked loop: of ragged clients, those with so many full ones


def done(device: str) -> None:
    """Waits for the device."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def per_second(step: Callable[[], int], device: str, seconds: float) -> float:
    """How many of what a step counts are done in a second, after two steps."""
    step()
    step()
    done(device)
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        count += step()
        done(device)
    return count / (time.perf_counter() - began)


def product_rate(device: str, seconds: float, dtype: torch.dtype = torch.float32) -> float:
    """Operations a second of a large product."""
    size = 8192 if device.startswith("cuda") else 512
    a, b = (torch.rand(size, size, dtype=dtype, device=device) for _ in range(2))

    def step() -> int:
        torch.mm(a, b)
        return 2 * size**3

    return per_second(step, device, seconds)


def operations(task: str) -> float:
    """Of one example's forward and backward pass in products and convolutions."""
    batch = BATCH[task]
    with torch.device("meta"):
        net = NETS[task]()
        x = torch.zeros(batch, 80, dtype=torch.int64) if task == "T4" else torch.zeros(batch, 784)
        y = torch.zeros((batch, 80) if task == "T4" else (batch,), dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        F.cross_entropy(net(x), y).backward()
    return counter.get_total_flops() / batch


def tensors(task: str, client: str, device: str) -> list[torch.Tensor]:
    data = RandomClients(task).open(client)
    return [torch.from_numpy(data[name]).to(device) for name in ("x", "y")]


def plain(task: str, device: str, seconds: float) -> float:
    """Examples a second of the hand-written loop; a client is one step of the clock."""
    torch.manual_seed(0)
    net = NETS[task]().to(device)
    weights, batch = list(net.parameters()), BATCH[task]
    clients = [tensors(task, client, device) for client in RandomClients(task).ids[:40]]
    turn = 0

    def step() -> int:
        nonlocal turn
        x, y = clients[turn % len(clients)]
        turn += 1
        for at in range(0, len(x), batch):
            grads = torch.autograd.grad(F.cross_entropy(net(x[at : at + batch]), y[at : at + batch]), weights)
            with torch.no_grad():
                torch._foreach_add_(weights, grads, alpha=-LR[task])
        return len(x)

    return per_second(step, device, seconds)


def stacked(task: str, device: str, clients: int, seconds: float) -> float:
    """Examples a second of `torch.func`, all clients at once."""
    torch.manual_seed(0)
    population, batch = RandomClients(task), BATCH[task]
    long = [client for client, size in zip(population.ids, population.sizes(), strict=True) if size >= FULL * batch]
    opened = [tensors(task, client, device) for client in long[:clients]]
    x, y = (
        torch.stack([columns[i][: FULL * batch].unflatten(0, (FULL, batch)) for columns in opened], 1) for i in (0, 1)
    )
    net = NETS[task]().to(device)
    weights = {
        name: weight.detach().expand(len(opened), *weight.shape).clone() for name, weight in net.named_parameters()
    }

    def loss(own: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(torch.func.functional_call(net, own, (x,)), y)

    grad = torch.func.vmap(torch.func.grad(loss), randomness="different")

    def step() -> int:
        for at in range(FULL):
            grads = grad(weights, x[at], y[at])
            for name, weight in weights.items():
                weight.add_(grads[name], alpha=-LR[task])
        return FULL * batch * len(opened)

    return per_second(step, device, seconds)


def ours(task: str, device: str, clients: int, seconds: float, **settings: str) -> float:
    """Examples a second through `hansa.train`: the median of the rounds after two, of which the first traces."""
    population = RandomClients(task)
    job = job_of(task, 3, device=device, **settings)
    job = replace(job, cohort=min(clients, len(population)), sampling=None)
    probe = hansa.train(job, population).rounds[-1].seconds
    rounds = 2 + max(3, round(seconds / max(probe, 1e-6)))
    records = hansa.train(replace(job, rounds=rounds), population).rounds[2:]
    return float(np.mean(population.sizes())) * job.cohort / statistics.median(record.seconds for record in records)


def compare(tasks: Sequence[str], device: str, clients: int, seconds: float) -> None:
    """Prints all figures."""
    exact()
    products = product_rate(device, seconds / 4)
    figure(f"{device}: products of float32", products / 1e12, "TFLOP/s")
    if device.startswith("cuda"):
        figure(f"{device}: products of bfloat16", product_rate(device, seconds / 4, torch.bfloat16) / 1e12, "TFLOP/s")
    for task in tasks:
        share = operations(task) / products
        loop = plain(task, device, seconds / 2)
        figure(f"{task} plain loop, one client after another", loop, "1/s", f"{100 * loop * share:.2f} % of products")
        try:
            by_hand = stacked(task, device, clients, seconds / 2)
            against = f"ratio {by_hand / loop:.2f} to the plain loop, {100 * by_hand * share:.2f} % of products"
            figure(f"{task} torch.func, {clients} clients", by_hand, "1/s", against)
        except RuntimeError as error:  # no rule for vmap, or no memory
            by_hand = float("nan")
            print(f"{task} torch.func, {clients} clients: {str(error).splitlines()[0]}", flush=True)
        for loop_name in ("cohort", "replay"):
            rate = ours(task, device, clients, seconds, loop=loop_name)
            against = f"ratio {rate / loop:.2f} to the plain loop, {rate / by_hand:.2f} to torch.func"
            figure(f"{task} hansa.train, {clients} clients, {loop_name}", rate, "1/s",
                   f"{against}, {100 * rate * share:.2f} % of products")  # fmt: skip


def exact() -> None:
    """float32 as such for all that is compared, as `hansa.train` has it by itself."""
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", default=TASKS)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=8)
    asked = parser.parse_args()
    compare(asked.tasks, asked.device, asked.clients, asked.seconds)


if __name__ == "__main__":
    main()
