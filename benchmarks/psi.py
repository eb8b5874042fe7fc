"""Private set intersection, as processes over mutual TLS on this machine.

    python benchmarks/psi.py [--power 20] [--rows 10000000]

Beside each intersection its own floor is timed: for Diffie–Hellman the products alone, on as many processes; for the
others a plain intersection of the same keys. Ratios are of CPU seconds, which a busy machine disturbs less.
"""

import argparse
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from parties import play

from hansa.core.runtime import Mesh
from hansa.vertical.psi import Keys, coordinate, intersect

End = tuple[float, float, int, int, int]
"""Seconds by the clock and of the CPU, bytes sent, shared keys or −1, peak memory."""


def act(mesh: Mesh, ranges: dict[str, tuple[int, int]], options: dict[str, Any]) -> End:
    """One party of one run."""

    def table() -> Iterator[dict[str, list[str]]]:
        for at in range(low, high, 1 << 16):
            yield {"id": [f"user-{each:012d}" for each in range(at, min(at + (1 << 16), high))]}

    low, high = ranges[mesh.me]
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


def run(count: int, **options: Any) -> list[End]:
    """Two owners of so many keys, which share half of them, and a coordinator if the options name one."""
    options = {"bucket_keys": 1 << 24, **options}
    ranges = {"bank": (0, count), "shop": (count // 2, count // 2 + count)}
    if helper := options.get("coordinator"):
        ranges[helper] = (0, 0)
    ends: list[End] = play(list(ranges), act, ranges, options)
    assert {end[3] for end in ends} - {-1} == {count - count // 2}, ends
    return ends


def report(what: str, ends: list[End], floor: float, floor_name: str) -> None:
    took, sent = max(end[0] for end in ends), sum(end[2] for end in ends)
    busiest, memory = max(end[1] for end in ends), sum(end[4] for end in ends)
    print(f"psi {what}  {took:.2f}  s")
    print(f"psi {what}, the busiest party's CPU  {busiest:.2f}  s  (ratio to {floor_name} {busiest / floor:.1f})")
    print(f"psi {what}, all messages  {sent / 1e6:.1f}  MB")
    print(f"psi {what}, peak memory of all parties  {memory / 1e6:.0f}  MB", flush=True)


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


def two_owners(power: int = 16) -> None:
    n = 1 << power
    report(f"ecdh 2^{power}", run(n, protocol="ecdh"), products(n), "the products alone")
    report(f"fast 2^{power}", run(n, protocol="fast"), plain(n), "a plain intersection")


def coordinated(rows: int) -> None:
    """In buckets: memory does not grow with the rows."""
    for count in (rows // 4, rows):
        ends = run(count, protocol="coordinator", coordinator="registry", bucket_keys=1 << 18)
        report(f"coordinator, {count:,} rows", ends, plain(count), "a plain intersection")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--power", type=int, default=16, help="2^POWER keys for two owners")
    parser.add_argument("--rows", type=int, default=1_000_000, help="of each owner, with a coordinator")
    chosen = parser.parse_args()
    two_owners(chosen.power)
    coordinated(chosen.rows)
