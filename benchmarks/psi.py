"""Private set intersection, as processes over mutual TLS on this machine.

    python benchmarks/psi.py [--power 20] [--rows 10000000]

Beside each intersection its own floor is timed: for Diffie–Hellman the products alone, on as many processes; for the
others a plain intersection of the same keys. Ratios are of CPU seconds, which a busy machine disturbs less.
"""

import argparse
import multiprocessing
import os
import resource
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hansa.app.enrol import Authority
from hansa.runtimes.mesh import Parties, Party, TlsMesh


def parties(folder: Path, names: tuple[str, ...]) -> Parties:
    authority = Authority.create(folder / "authority", "benchmark")
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in names]
    made = []
    for name, each in zip(names, sockets, strict=True):
        authority.issue(name, "party", hosts=["127.0.0.1"]).rename(folder / f"{name}.pem")
        made.append(Party(name, f"127.0.0.1:{each.getsockname()[1]}"))
        each.close()
    return Parties(tuple(made))


# -- private set intersection


def party(folder: Path, known: Parties, name: str, low: int, count: int, options: dict[str, Any], told: Any) -> None:
    """One party of one run: how long it took, by the clock and in CPU seconds, what it sent, and its peak memory."""
    from hansa.vertical.psi import Keys, coordinate, intersect

    def table() -> Iterator[dict[str, list[str]]]:
        for at in range(low, low + count, 1 << 16):
            yield {"id": [f"user-{each:012d}" for each in range(at, min(at + (1 << 16), low + count))]}

    with TlsMesh(folder / f"{name}.pem", known) as mesh:
        for peer in mesh.peers:
            mesh.send(peer, "ready", [b""])
        for peer in mesh.peers:
            mesh.recv(peer, "ready")
        began, cpu, before = time.perf_counter(), time.process_time(), sum(mesh.counters.sent_bytes.values())
        shared = -1
        if name == options.get("coordinator"):
            coordinate(mesh, Keys("id"), accept=lambda said: True, bucket_keys=options["bucket_keys"])
        else:
            found = intersect(
                mesh, table, Keys("id"), accept=lambda said: True, workers=1, folder=folder / f"{name}-run", **options
            )
            shared = -1 if found is None else len(found)
        took, used = time.perf_counter() - began, time.process_time() - cpu
        sent = sum(mesh.counters.sent_bytes.values()) - before
    told.put((name, took, used, sent, shared, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))


def together(names: tuple[str, ...], sizes: tuple[int, ...], **options: Any) -> list[tuple[Any, ...]]:
    """All parties of a run as processes; the first two owners share half of the smaller set."""
    options = {"bucket_keys": 1 << 24, **options}
    context = multiprocessing.get_context("spawn")
    told = context.Queue()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        known = parties(folder, names)
        lows = (0, sizes[0] - min(sizes[:2]) // 2, *(0 for _ in names[2:]))
        running = [
            context.Process(target=party, args=(folder, known, name, low, size, options, told))
            for name, low, size in zip(names, lows, sizes, strict=True)
        ]
        for process in running:
            process.start()
        ends = [told.get(timeout=1800) for _ in running]
        for process in running:
            process.join()
    found = {end[4] for end in ends} - {-1}
    assert found == {min(sizes[:2]) // 2}, found
    return ends


def report(what: str, ends: list[tuple[Any, ...]], floor: float, floor_name: str) -> None:
    took, sent = max(end[1] for end in ends), sum(end[3] for end in ends)
    busiest, memory = max(end[2] for end in ends), sum(end[5] for end in ends)
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
    two, n = ("bank", "shop"), 1 << power
    report(f"ecdh 2^{power}", together(two, (n, n), protocol="ecdh"), products(n), "the products alone")
    report(f"fast 2^{power}", together(two, (n, n), protocol="fast"), plain(n), "a plain intersection")


def coordinated(coordinator: str, rows: int) -> None:
    """With a coordinator, in buckets: memory does not grow with the rows."""
    for count in (rows // 4, rows):
        ends = together(
            ("bank", "shop", coordinator), (count, count, 0), protocol="coordinator", coordinator=coordinator,
            bucket_keys=1 << 18,
        )  # fmt: skip
        report(f"coordinator {count:.3g} rows", ends, plain(count), "a plain intersection")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--power", type=int, default=16, help="2^POWER keys for two owners")
    parser.add_argument("--rows", type=int, default=1_000_000, help="of each owner, with a coordinator")
    chosen = parser.parse_args()
    two_owners(chosen.power)
    coordinated("coordinator", chosen.rows)
