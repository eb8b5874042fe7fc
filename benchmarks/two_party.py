"""Two parties without a helper, as processes over mutual TLS on loopback: what oblivious transfers give, and a step of
logistic regression beside the three-party protocol's.

    python benchmarks/two_party.py [--repeats N] [--rows 1024]

Each line is `name  value unit  (…)`: the best repetition of the slower party by wall clock, and in brackets what a CPU
second of one party gives, its megabytes, and the ratio to what runs beside it: for transfers to their AES alone (80
bytes at the sender, at this machine's rate of one core), for the step to aby3's in the same run.
"""

import argparse
import os
import time
from collections.abc import Callable
from typing import Any

from parties import play

from hansa.core.runtime import Mesh

NAMES = ("alice", "bob", "carol")
COUNTS = {"transfers": 1 << 19, "products": 1 << 13, "ands": 1 << 18, "comparisons": 1 << 13, "truncations": 1 << 16}


def programs(session: Any, rows: int) -> dict[str, Callable[[], Any]]:
    """What is timed: the protocol's operations, and a step on `rows` of 23 columns, 13 of one owner."""
    import numpy as np
    import torch

    protocol, random = session.meter.protocol, torch.Generator().manual_seed(1)

    def number(count: int) -> Any:
        value = torch.randint(-(2**40), 2**40, (count,), generator=random)
        return protocol.input(value if session.me == NAMES[0] else None, (count,), NAMES[0])

    columns = [
        session.share(torch.randn(rows, width, generator=random), NAMES[at]) for at, width in enumerate((13, 10))
    ]
    x, y = torch.cat(columns, 1), session.share((torch.rand(rows, 1, generator=random) < 0.5).float(), NAMES[0])
    start = session.share(torch.zeros(23, 1), NAMES[0])

    def step() -> None:
        (start - (x.T @ (torch.sigmoid(x @ start) - y)) * (0.5 / rows)).value.share()

    if protocol.name != "two_party":
        return {"step": step}
    values = np.ones((COUNTS["transfers"], 1), np.uint64)
    choices = np.ones(len(values), np.uint8)

    def transfers() -> None:
        if session.me == NAMES[0]:
            protocol._sender.correlated([values])
        else:
            asked = protocol._receiver.request(choices)
            protocol._receiver.correlated(asked, choices, [values.shape], [values.dtype])

    a, b, small = number(COUNTS["products"]), number(COUNTS["comparisons"]), number(COUNTS["truncations"])
    words = protocol.constant_bits(torch.zeros(COUNTS["ands"] // 64, dtype=torch.int64))
    return {
        "transfers": transfers, "products": lambda: protocol.bilinear(a, a, torch.mul),
        "ands": lambda: protocol.both(words, words), "comparisons": lambda: protocol.negative(b),
        "truncations": lambda: protocol.truncate(small, 16), "step": step,
    }  # fmt: skip


def act(mesh: Mesh, protocol: str, rows: int, repeats: int) -> dict[str, tuple[float, float, float]]:
    """One party: every program, several times; the best by wall clock, with its CPU seconds and megabytes."""
    import torch

    from hansa.mpc.session import Session

    torch.set_num_threads(1)
    found = {}
    with Session(mesh, protocol) as session:
        for name, run in programs(session, rows).items():
            run()
            times = []
            for _ in range(repeats):
                sent, cpu, began = sum(mesh.counters.sent_bytes.values()), time.process_time(), time.perf_counter()
                run()
                wall, cpu = time.perf_counter() - began, time.process_time() - cpu
                times.append((wall, cpu, (sum(mesh.counters.sent_bytes.values()) - sent) / 1e6))
            found[name] = min(times)
    return found


def measured(protocol: str, count: int, given: argparse.Namespace) -> dict[str, tuple[float, ...]]:
    """Program to (seconds of the slower party, CPU seconds and megabytes of the busier one)."""
    ends = play(NAMES[:count], act, protocol, given.rows, given.repeats)
    return {name: tuple(map(max, zip(*(end[name] for end in ends), strict=True))) for name in ends[0]}


def aes_bytes_per_second() -> float:
    """Of one core."""
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    cipher, data = Cipher(algorithms.AES(bytes(16)), modes.ECB()).encryptor(), bytes(1 << 18)
    out, best = bytearray(len(data) + 16), float("inf")
    for _ in range(50):
        began = time.perf_counter()
        cipher.update_into(data, out)
        best = min(best, time.perf_counter() - began)
    return len(data) / best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rows", type=int, default=1024)
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    two, three = measured("two_party", 2, given), measured("aby3", 3, given)
    ceiling = aes_bytes_per_second() / 80
    for name, count in COUNTS.items():
        wall, cpu, megabytes = two[name]
        ratio = f"; ratio {ceiling / (count / cpu):.1f} to their AES" if name == "transfers" else ""
        print(
            f"{name:<12} {count / wall:>12,.0f} /s   ({count / cpu:,.0f} by CPU, {megabytes:.1f} MB for {count}{ratio})"
        )
    wall, cpu, megabytes = two["step"]
    beside = f"ratio to aby3 {wall / three['step'][0]:.1f} by wall clock, {cpu / three['step'][1]:.1f} by CPU"
    print(f"{'step':<12} {wall:>12.3f} s    (CPU {cpu:.3f} s, {megabytes:.1f} MB; {beside})")


if __name__ == "__main__":
    main()
