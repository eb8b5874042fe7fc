"""Private set intersection, as processes over mutual TLS on this machine.

    python benchmarks/psi.py [ecdh-16] [fast-16] [ecdh-20] [fast-20] [coordinator-1m] [coordinator-10m]
                             [unbalanced-1m] [unbalanced-10m]

Two owners of 2¹⁶ or 2²⁰ keys, or two and a coordinator of a million or ten million rows each; a process and a core for
each party. `unbalanced`: 10⁴ keys looked up in a million or ten million, which are prepared first.
Beside each intersection its own floor is timed: for Diffie–Hellman the products alone, on as many processes; for the
others a plain intersection of the same keys. Ratios are of CPU seconds, which a busy machine disturbs less.
"""

import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from figures import figure
from parties import play

from hansa.core.runtime import Mesh
from hansa.vertical.psi import Keys, Prepared, coordinate, intersect, look_up

End = tuple[float, float, int, int, int]
"""Seconds by the clock and of the CPU, bytes sent, shared keys or −1, peak memory."""


def users(low: int, high: int) -> Iterator[dict[str, list[str]]]:
    """A table, in pieces."""
    for at in range(low, high, 1 << 16):
        yield {"id": [f"user-{each:012d}" for each in range(at, min(at + (1 << 16), high))]}


def act(mesh: Mesh, ranges: dict[str, tuple[int, int]], options: dict[str, Any]) -> End:
    """One party of one run."""
    table = partial(users, *ranges[mesh.me])
    for peer in mesh.peers:
        mesh.send(peer, "ready", [b""])
    for peer in mesh.peers:
        mesh.recv(peer, "ready")
    began, cpu, before = time.perf_counter(), time.process_time(), sum(mesh.counters.sent_bytes.values())
    shared, ask = -1, {"accept": lambda said: True}
    with tempfile.TemporaryDirectory() as folder:
        if mesh.me == options.get("coordinator"):
            coordinate(mesh, Keys("id"), bucket_keys=options["bucket_keys"], **ask)
        else:
            found = intersect(mesh, table, Keys("id"), workers=1, folder=Path(folder) / "run", **ask, **options)
            shared = -1 if found is None else len(found)
    sent, memory = sum(mesh.counters.sent_bytes.values()) - before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return time.perf_counter() - began, time.process_time() - cpu, sent, shared, memory * 1024


def ask_about(mesh: Mesh, few: int, folder: str) -> End:
    """One side of a look-up of `few` keys, half of which are there."""
    began, cpu, found = time.perf_counter(), time.process_time(), -1
    if mesh.me == "register":
        Prepared.open(Path(folder) / "large").answer(mesh, cap=few, accept=lambda said: True)
    else:
        rows = look_up(
            mesh, next(users(-few // 2, few // 2)), Keys("id"), cap=few, accept=lambda said: True,
            kept=Path(folder) / "kept",
        )  # fmt: skip
        found = len(rows)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return time.perf_counter() - began, time.process_time() - cpu, sum(mesh.counters.sent_bytes.values()), found, memory


def run(count: int, **options: Any) -> list[End]:
    """Two owners of so many keys, which share half of them, and a coordinator if the options name one."""
    options = {"bucket_keys": 1 << 24, **options}
    ranges = {"bank": (0, count), "shop": (count // 2, count // 2 + count)}
    if helper := options.get("coordinator"):
        ranges[helper] = (0, 0)
    ends: list[End] = play(list(ranges), act, ranges, options)
    assert {end[3] for end in ends} - {-1} == {count - count // 2}, ends
    return ends


def report(what: str, ends: list[End], floor: float, against: str) -> None:
    took, sent = max(end[0] for end in ends), sum(end[2] for end in ends)
    busiest, memory = max(end[1] for end in ends), sum(end[4] for end in ends)
    target = TARGETS.get(what, {})
    figure(f"psi {what}", took, "s", target.get("s", ""))
    figure(f"psi {what}, the busiest party's CPU", busiest, "s", f"{against} × {busiest / floor:.2f}")
    figure(f"psi {what}, all messages", sent / 1e6, "MB", target.get("MB", ""))
    figure(f"psi {what}, peak memory of all parties", memory / 1e9, "GB", target.get("GB", ""))


def _products(count: int) -> float:
    from hansa.crypto import curve

    secret = curve.scalar(os.urandom(32))
    began = time.process_time()
    curve.multiply(curve.hash_and_multiply(os.urandom(16 * count), 16, b"benchmark", secret), secret)
    return time.process_time() - began


def products(count: int) -> float:
    """CPU seconds of an owner's products alone, while another owner makes its own: from 2¹³ keys each."""
    sample = min(count, 1 << 13)
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        pool.map(_products, [8, 8])
        return max(pool.map(_products, [sample, sample], chunksize=1)) * count / sample


def plain(count: int) -> float:
    """CPU seconds of a plain intersection of sets of text."""
    a, b = ([f"user-{at:012d}" for at in range(low, low + count)] for low in (0, count // 2))
    began = time.process_time()
    assert len(set(a) & set(b)) == count - count // 2
    return time.process_time() - began


def ecdh(power: int) -> None:
    n = 1 << power
    report(f"ecdh 2^{power}", run(n, protocol="ecdh"), products(n), "the products alone")


def fast(power: int) -> None:
    n = 1 << power
    report(f"fast 2^{power}", run(n, protocol="fast"), plain(n), "a plain intersection")


def coordinated(count: int) -> None:
    """In buckets: memory does not grow with the rows."""
    ends = run(count, protocol="coordinator", coordinator="registry", bucket_keys=1 << 18)
    report(f"coordinator, {count:,} rows", ends, plain(min(count, 10**6)) * max(1, count / 10**6), PLAIN)


def unbalanced(count: int, few: int = 10**4) -> None:
    """A small table against a large one: preparing it once, a first look-up that fetches its tags, and a later one."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        Prepared.make(partial(users, 0, count), Keys("id"), Path(folder) / "large")
        figure(f"psi unbalanced, {count:,} keys prepared", time.perf_counter() - began, "s", "all cores")
        for which in ("first", "later"):
            ends: list[End] = play(["register", "shop"], ask_about, few, folder)
            assert ends[1][3] == few // 2, ends
            what, took = f"psi unbalanced, {few:,} in {count:,}, {which}", max(end[0] for end in ends)
            busiest = max(end[1] for end in ends)
            figure(what, took, "s", f"CPU of the busiest: the products alone × {busiest / products(few):.2f}")
            figure(f"{what}, all messages", sum(end[2] for end in ends) / 1e6, "MB")
            figure(f"{what}, peak memory of both", sum(end[4] for end in ends) / 1e9, "GB")


def two_owners() -> None:
    ecdh(16)
    fast(16)


TARGETS = {
    "ecdh 2^16": {"s": "target 3"},
    "fast 2^16": {"s": "target 0.6"},
    "ecdh 2^20": {"s": "target 45"},
    "fast 2^20": {"s": "target 7", "MB": "target 120"},
    "coordinator, 10,000,000 rows": {"s": "target 30", "GB": "target 3"},
}
PLAIN = "a plain intersection of 10^6, by the row,"
FIGURES: dict[str, Callable[[], None]] = {
    "ecdh-16": partial(ecdh, 16), "fast-16": partial(fast, 16), "ecdh-20": partial(ecdh, 20),
    "fast-20": partial(fast, 20), "coordinator-1m": partial(coordinated, 10**6),
    "coordinator-10m": partial(coordinated, 10**7), "unbalanced-1m": partial(unbalanced, 10**6),
    "unbalanced-10m": partial(unbalanced, 10**7),
}  # fmt: skip

if __name__ == "__main__":
    for name in sys.argv[1:] or ("ecdh-16", "fast-16", "coordinator-1m"):
        FIGURES[name]()
