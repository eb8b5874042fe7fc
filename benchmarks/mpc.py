"""Secret-shared learning: three parties as processes over mutual TLS on loopback, through tensors of ordinary PyTorch.

    python benchmarks/mpc.py [--modes fast,default] [--repeats N] [--peer FILE] [name ...]

    matmul      W1   1024³, secret × secret              sigmoid   W4   10⁵ numbers
    multiply    W2   10⁶ numbers                         logistic  W5   100 features, batch 128, an iteration
    relu        W3   10⁶ numbers                         linear         the same without a sigmoid
    mlp         W6   784-128-128-10, a training step     cnn       W7   LeNet's inference, batch 100
    dispatch         the same, 1-1-1-10 of one example   image          the same, one image
    sort             2^10 numbers; sort16: 2^16          network        as sort, by Batcher's network; network16

Each line is `name, mode  value unit`: the best repetition of the slowest party; in brackets the median, the CPU seconds
of all three parties, the rounds, and the target. `fast` is fast truncation and a sigmoid of three pieces, `default`
what a session does unless told otherwise. `dispatch` does as many operations as `mlp` and next to no arithmetic: its
processor seconds at the busiest party, in per cent of `mlp`'s seconds, are about what Python and calls of the sockets
take of it. FILE is another implementation with `party(index, folder, tls, names, threads, queue)`: it runs in the same
processes, between our repetitions, so that the ratio to it says something on a busy machine. It begins anew each time,
and its processor seconds have that in them: compare seconds of the clock.
"""

import argparse
import importlib
import math
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
NAMES = ("alice", "bob", "carol")
MODES = {"fast": {"truncation": "fast", "sigmoid": "three"}, "default": {}}
# name -> its number, the peer's name for it, iterations in one repetition, seconds to reach by default
WORK: dict[str, tuple[str, str, int, float | None]] = {
    "matmul": ("W1", "W1", 1, 0.6), "multiply": ("W2", "W2", 1, 0.12), "relu": ("W3", "W3", 1, 0.4),
    "sigmoid": ("W4", "W4", 1, 0.2), "logistic": ("W5", "W5_128", 20, 1 / 130), "linear": ("", "W5lin_128", 20, None),
    "mlp": ("W6", "W6", 1, 0.1), "dispatch": ("", "", 1, None), "cnn": ("W7", "W7p", 1, 0.55),
    "image": ("", "W7b1", 1, None), "sort": ("", "", 1, 0.14), "sort16": ("", "", 1, 7.37),
    "network": ("", "", 1, None), "network16": ("", "", 1, None),
}  # fmt: skip


def programs(session: Any) -> dict[str, Callable[[], Callable[[], Any]]]:
    """What prepares each workload and gives what is timed, which returns a secret tensor to wait for."""
    import torch
    import torch.nn.functional as F
    from torch import nn

    torch.manual_seed(3)

    def share(*shape: int, scale: float = 1.0) -> Any:
        return session.share(torch.randn(shape) * scale, NAMES[0])

    def pair(*shape: int) -> tuple[Any, Any]:
        return share(*shape), share(*shape)

    def matmul() -> Callable[[], Any]:
        a, b = pair(1024, 1024)
        return lambda: a @ b

    def multiply() -> Callable[[], Any]:
        a, b = pair(1_000_000)
        return lambda: a * b

    def relu() -> Callable[[], Any]:
        a = share(1_000_000)
        return lambda: torch.relu(a)

    def sigmoid() -> Callable[[], Any]:
        a = share(100_000, scale=3)
        return lambda: torch.sigmoid(a)

    def regression(loss: Callable[[Any, Any], Any]) -> Callable[[], Any]:
        x, y = share(20 * 128, 100, scale=0.3), session.share((torch.rand(20 * 128, 1) < 0.5).float(), NAMES[0])
        model = session.share_module(nn.Linear(100, 1))
        optimiser = torch.optim.SGD(model.parameters(), lr=1 / 8)

        def train() -> Any:
            for at in range(0, 20 * 128, 128):
                optimiser.zero_grad()
                loss(model(x[at : at + 128]), y[at : at + 128]).backward()
                optimiser.step()
            return model.weight

        return train

    def mlp(batch: int, inputs: int, hidden: int) -> Callable[[], Any]:
        x, y = share(batch, inputs, scale=0.3), torch.randint(0, 10, (batch,))
        layers = nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 10)
        model = session.share_module(nn.Sequential(*layers))
        optimiser = torch.optim.SGD(model.parameters(), lr=1 / 8)

        def step() -> Any:
            optimiser.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimiser.step()
            return list(model.parameters())

        return step

    def cnn(batch: int) -> Callable[[], Any]:
        x = share(batch, 1, 28, 28)
        convolutions = (
            nn.Conv2d(1, 6, 5, padding=2), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(6, 16, 5), nn.MaxPool2d(2), nn.ReLU()
        )  # fmt: skip
        dense = nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)
        model = session.share_module(nn.Sequential(*convolutions, *dense))

        def infer() -> Any:
            with torch.no_grad():
                return model(x)

        return infer

    def sort(size: int, fewest: float = 32) -> Callable[[], Any]:
        x = share(size)

        def run() -> Any:
            type(session.meter.protocol).sorts_from = fewest
            return x.sort()[0]

        return run

    return {
        "matmul": matmul, "multiply": multiply, "relu": relu, "sigmoid": sigmoid,
        "mlp": lambda: mlp(128, 784, 128), "dispatch": lambda: mlp(1, 1, 1),
        "logistic": lambda: regression(F.binary_cross_entropy_with_logits), "linear": lambda: regression(F.mse_loss),
        "cnn": lambda: cnn(100), "image": lambda: cnn(1),
        "sort": lambda: sort(1 << 10), "network": lambda: sort(1 << 10, math.inf),
        "sort16": lambda: sort(1 << 16), "network16": lambda: sort(1 << 16, math.inf),
    }  # fmt: skip


def settle(result: Any) -> None:
    """What a program leaves waiting until somebody needs it."""
    for each in result if isinstance(result, list) else [result]:
        each.value.share()


def barrier(session: Any) -> None:
    for _ in range(2):
        for peer in session.mesh.peers:
            session.mesh.send(peer, "barrier", [b"."])
        for peer in session.mesh.peers:
            session.mesh.recv(peer, "barrier")


def party(at: int, folder: str, parties: Any, mode: str, names: list[str], given: Any, pipe: Any) -> None:
    """One process: every workload, ours and the peer's in turn."""
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    from hansa.mpc.session import connect

    torch.set_num_threads(1)
    peer = None
    if given.peer:
        sys.path.insert(0, str(Path(given.peer).resolve().parent))
        peer = importlib.import_module(Path(given.peer).stem)
    identity = Path(folder) / f"{NAMES[at]}.pem"
    with connect(parties, identity=identity, program=__file__, protocol=given.protocol, **MODES[mode]) as session:
        for name in names:
            run = programs(session)[name]()
            settle(run())
            for repetition in range(given.repeats):
                barrier(session)
                rounds, sent = session.mesh.counters.rounds, sum(session.mesh.counters.sent_bytes.values())
                cpu, began = time.process_time(), time.perf_counter()
                settle(run())
                wall, cpu = time.perf_counter() - began, time.process_time() - cpu
                rounds, sent = (
                    session.mesh.counters.rounds - rounds, sum(session.mesh.counters.sent_bytes.values()) - sent
                )  # fmt: skip
                pipe.send((name, "ours", [wall], cpu, rounds, sent))
                if peer is not None and mode == "fast" and WORK[name][1]:
                    lines: list[Any] = []
                    cpu = time.process_time()
                    peer.party(
                        at, f"{folder}/{name}{repetition}", True, [WORK[name][1]], 1, SimpleNamespace(put=lines.append)
                    )
                    cpu = (time.process_time() - cpu) / len(lines[0][2])
                    pipe.send((name, "peer", lines[0][2], cpu, 0, 0))
            if given.profile:
                profile(session, run, name, at)
        if given.report and at == 0:
            print(session.report(), file=sys.stderr)
    pipe.send(None)


def profile(session: Any, run: Callable[[], Any], name: str, at: int) -> None:
    import cProfile
    import pstats

    barrier(session)
    watch = cProfile.Profile()
    watch.runcall(lambda: settle(run()))
    if at == 0:
        print(name, file=sys.stderr)
        pstats.Stats(watch, stream=sys.stderr).sort_stats("tottime").print_stats(35)


def measured(folder: Path, mode: str, names: list[str], given: Any) -> Iterator[tuple[str, str, list[Any]]]:
    """(workload, whose, what each party measured) as it comes."""
    from hansa.runtimes.mesh import Parties, Party
    from hansa.runtimes.mesh.parties import free_ports

    parties = Parties(tuple(Party(n, f"127.0.0.1:{p}") for n, p in zip(NAMES, free_ports(3), strict=True)))
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe(duplex=False) for _ in NAMES]
    children = [
        context.Process(target=party, args=(at, str(folder), parties, mode, names, given, pipes[at][1]), daemon=True)
        for at in range(3)
    ]
    for child in children:
        child.start()
    for _, theirs in pipes:
        theirs.close()
    try:
        while all(lines := [mine.recv() for mine, _ in pipes]):
            yield lines[0][0], lines[0][1], lines
    finally:
        for child in children:
            child.join(10)
            child.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*WORK, []])
    parser.add_argument("--modes", default="fast,default")
    parser.add_argument("--protocol", default="aby3")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peer")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--report", action="store_true")
    given = parser.parse_args()
    names = given.names or [name for name in WORK if name != "network16"]
    from hansa.app.enrol import Authority

    for mode in given.modes.split(","):
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            authority = Authority.create(folder / "authority", "benchmark")
            for name in NAMES:
                authority.issue(name, "party", hosts=["127.0.0.1"]).rename(folder / f"{name}.pem")
            if given.peer:
                sys.path.insert(0, str(Path(given.peer).resolve().parent))
                certs = importlib.import_module("bench_transport").certs
                for name in names:
                    for repetition in range(given.repeats):
                        (folder / f"{name}{repetition}").mkdir()
                        certs(f"{folder}/{name}{repetition}")
            found: dict[tuple[str, str], list[Any]] = {}
            for name, whose, lines in measured(folder, mode, names, given):
                found.setdefault((name, whose), []).append(lines)
                last = whose == "peer" or not given.peer or mode != "fast" or not WORK[name][1]
                if last and len(found[name, whose]) == given.repeats:
                    print(line(name, mode, found), flush=True)


def line(name: str, mode: str, found: dict[tuple[str, str], list[Any]]) -> str:
    number, _, iterations, target = WORK[name]

    def walls(whose: str, name: str = name) -> list[float]:
        return [
            max(times) / WORK[name][2]
            for lines in found[name, whose]
            for times in zip(*(line[2] for line in lines), strict=True)
        ]

    def cpu(whose: str) -> float:
        return min(sum(line[3] for line in lines) for lines in found[name, whose]) / iterations

    ours, lines = walls("ours"), found[name, "ours"][0]
    rounds, sent = max(each[4] for each in lines) / iterations, max(each[5] for each in lines) / iterations
    text = (
        f"{number} {name}, {mode}  {min(ours):.4f}  s  (median {statistics.median(ours):.4f}, "
        f"cpu {cpu('ours'):.4f}, {rounds:.0f} rounds, {sent / 1e6:.2f} MB, {1 / min(ours):.0f}/s"
    ).lstrip()
    if (name, "peer") in found:
        theirs = walls("peer")
        text += (
            f"; peer {min(theirs):.4f}, median {statistics.median(theirs):.4f}, "
            f"cpu {cpu('peer'):.4f} with its start, "
            f"ratio {min(ours) / min(theirs):.2f}, "
            f"of medians {statistics.median(ours) / statistics.median(theirs):.2f}, target 1.25"
        )
    elif mode == "default" and target is not None:
        text += f"; target {target:.4f}"
    if name == "dispatch" and ("mlp", "ours") in found:
        busiest = min(max(each[3] for each in lines) for lines in found[name, "ours"])
        text += f"; {100 * busiest / statistics.median(walls('ours', 'mlp')):.0f} % of mlp, target 15 %"
    return text + ")"


if __name__ == "__main__":
    main()
