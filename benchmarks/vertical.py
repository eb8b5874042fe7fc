"""Different columns of the same people: private set intersection, as processes over mutual TLS on this machine.

    python benchmarks/vertical.py psi [--large]

Beside each intersection its own floor is timed: for Diffie–Hellman the products alone, on as many processes; for the
others hashing the same keys in a plain set.
"""

import argparse
import multiprocessing
import os
import resource
import socket
import tempfile
import time
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


def owner(folder: Path, known: Parties, name: str, low: int, count: int, options: dict[str, Any], told: Any) -> None:
    """One party of one run; says when it began, how long it took, what it sent and its peak memory."""
    from hansa.vertical.psi import Keys, intersect

    table = {"id": [f"user-{at:012d}" for at in range(low, low + count)]}
    with TlsMesh(folder / f"{name}.pem", known) as mesh:
        for peer in mesh.peers:
            mesh.send(peer, "ready", [b""])
        for peer in mesh.peers:
            mesh.recv(peer, "ready")
        began, before = time.perf_counter(), sum(mesh.counters.sent_bytes.values())
        if name == options.get("coordinator"):
            coordinate(mesh, Keys("id"), accept=lambda said: True, bucket_keys=1 << 24)
            shared = -1
        else:
            found = intersect(
                mesh, table, Keys("id"), accept=lambda said: True, workers=1, bucket_keys=1 << 24, **options
            )
            shared = len(found) if found is not None else -1
        took = time.perf_counter() - began
        sent = sum(mesh.counters.sent_bytes.values()) - before
    told.put((name, took, sent, shared, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))


def together(names: tuple[str, ...], sizes: tuple[int, ...], **options: Any) -> list[tuple[Any, ...]]:
    """All parties of a run as processes; halves are shared by neighbours."""
    context = multiprocessing.get_context("spawn")
    told = context.Queue()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        known = parties(folder, names)
        running = []
        for name, size in zip(names, sizes, strict=True):
            low = 0 if name == names[0] else min(sizes[0], size or 1) // 2
            running.append(context.Process(target=owner, args=(folder, known, name, low, size, options, told)))
        for process in running:
            process.start()
        ends = [told.get(timeout=1800) for _ in running]
        for process in running:
            process.join()
    return ends


def report(what: str, ends: list[tuple[Any, ...]], floor: float, floor_name: str) -> None:
    took, sent = max(end[1] for end in ends), sum(end[2] for end in ends)
    memory = sum(end[4] for end in ends)
    print(f"psi {what}  {took:.2f}  s  (ratio to {floor_name} {took / floor:.1f})", flush=True)
    print(f"psi {what}, all messages  {sent / 1e6:.1f}  MB")
    print(f"psi {what}, peak memory of all parties  {memory / 1e6:.0f}  MB", flush=True)


def _products(count: int) -> None:
    from hansa.crypto import curve

    secret = curve.scalar(os.urandom(32))
    curve.multiply(curve.hash_and_multiply(os.urandom(16 * count), 16, b"benchmark", secret), secret)


def products(count: int) -> float:
    """Seconds for an owner's products alone, two owners at once: from 2¹³ keys each."""
    sample = min(count, 1 << 13)
    context = multiprocessing.get_context("spawn")
    with context.Pool(2) as pool:
        pool.map(_products, [8, 8])
        began = time.perf_counter()
        pool.map(_products, [sample, sample], chunksize=1)
        return (time.perf_counter() - began) * count / sample


def plain(count: int) -> float:
    """Seconds for a plain intersection of sets of text."""
    a, b = ([f"user-{at:012d}" for at in range(low, low + count)] for low in (0, count // 2))
    began = time.perf_counter()
    assert len(set(a) & set(b)) == count - count // 2
    return time.perf_counter() - began


def psi(large: bool) -> None:
    two = ("bank", "shop")
    for power in (16, 20) if large else (16,):
        n = 1 << power
        report(f"ecdh 2^{power}", together(two, (n, n), protocol="ecdh"), products(n), "the products alone")
        report(f"fast 2^{power}", together(two, (n, n), protocol="fast"), plain(n), "a plain intersection")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("section", choices=["psi"])
    parser.add_argument("--large", action="store_true", help="2^20 keys, too")
    chosen = parser.parse_args()
    psi(chosen.large)
