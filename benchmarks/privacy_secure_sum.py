"""Secure sums: what a client and the server compute, and what travels, without a network.

    python benchmarks/privacy_secure_sum.py [--clients 100 1000] [--values 1000000]

Beside clients and server stands what nothing can go below: the same bytes of AES in counter mode, written over and over
into one piece of cache by the same library in the same run, and added to nothing. Times are the processor's.

1,000 clients run twice: in the graph for a server that keeps to the protocol, and in that against one that lies.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from figures import figure

from hansa.crypto import secagg
from hansa.crypto.masking import KEY_BYTES, add_masks
from hansa.crypto.seats import SimulatedSeat
from hansa.crypto.secagg.graph import choose_graph


def timed(run: Callable[[], Any], into: list[float]) -> Any:
    began = time.process_time()
    result = run()
    into.append(time.process_time() - began)
    return result


def bare(size: int) -> float:
    """Seconds of so many bytes of AES in counter mode, and of nothing else."""
    zeros, out = bytes(1 << 17), np.empty((1 << 17) + 15, np.uint8)
    stream = Cipher(algorithms.AES(bytes(16)), modes.CTR(bytes(16))).encryptor()
    began = time.process_time()
    for _ in range(-(-size // len(zeros))):
        stream.update_into(zeros, out.data)
    return time.process_time() - began


def masking(vector: np.ndarray, masks: int) -> tuple[float, float]:
    """Seconds of one mask by AES alone, and of one made and added, as medians of turns."""
    alone, added = [], []
    for _ in range(7):
        alone.append(bare(masks * vector.nbytes))
        began = time.process_time()
        add_masks([vector], [(os.urandom(KEY_BYTES), 1) for _ in range(masks)])
        added.append(time.process_time() - began)
    return statistics.median(alone) / masks, statistics.median(added) / masks


def round_of(
    n: int, values: int, bits: int, dropped: float, targets: tuple[str, str], lying: bool | None = None
) -> None:
    """One round of vectors of zeros, in this process; all clients are timed.

    The graph is complete, or chosen for a server that may lie, or that may not.
    """
    graph = None if lying is None else choose_graph(n, 0.2, 0.1, lying=lying)
    fields = secagg.Fields((values,), (bits,))
    holders = None if graph is None else graph.threshold
    terms = secagg.Terms(b"benchmark", fields, 0.7, None if graph is None else graph.neighbours, holders)
    secret, names = os.urandom(32), [f"c{at:05}" for at in range(n)]
    server = secagg.Server(terms, SimulatedSeat("server", terms.context, secret))
    clients = {name: secagg.Client(terms, SimulatedSeat(name, terms.context, secret)) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for name, client in clients.items():
        server.add_advert(name, timed(client.advertise, seconds[name]))
    answers = server.close_adverts(names)
    for name, client in clients.items():
        server.add_shares(name, timed(lambda c=client, a=answers[name]: c.share(*a), seconds[name]))
    sealed = server.close_shares(names)
    alive = names[int(dropped * n) :]
    small, sent = np.zeros(values, np.uint32 if bits <= 32 else np.uint64), 0
    adding: list[float] = []
    for at, name in enumerate(alive):
        packed = timed(lambda c=clients[name], s=sealed[name]: c.mask(s, [small.copy()]), seconds[name])
        sent = len(packed)
        timed(lambda p=packed, name=name: server.add_masked(name, p), adding)
        if at % 100 == 99:
            print(f"  {at + 1} of {len(alive)} masked", file=sys.stderr)
    survivors = server.close_masked(alive)
    for name in alive:
        server.add_agreement(name, timed(lambda c=clients[name]: c.agree(survivors), seconds[name]))
    signatures = server.close_agreements(alive)
    for name in alive:
        server.add_revealed(name, timed(lambda c=clients[name], s=signatures[name]: c.unmask(s), seconds[name]))
    began = time.process_time()
    total = server.total()
    unmasking = time.process_time() - began
    assert not total[0].any(), "the masks did not cancel"
    began = time.process_time()
    clear = np.zeros_like(small)
    for _ in range(len(alive)):
        clear += small
    plainly = time.process_time() - began
    client = statistics.median(sum(seconds[name]) for name in alive)
    near = graph.neighbours if graph else n - 1
    aes, mask = masking(small, 25)
    masks, undone = 1 + near, len(alive) + (n - len(alive)) * near * len(alive) / (n - 1)
    kind = f"k={near}" if graph else "complete"
    what = f"n={n}, {values} x {bits} bits, {kind}, {dropped:.0%} gone"
    figure(f"a mask made and added, {values} x {bits} bits", mask * 1e3, "ms", f"{mask / aes:.2f} x its AES alone")
    beside = f"{client / aes / masks:.2f} x the AES of its {masks} masks, target {targets[0]}"
    figure(f"client, {what}", client * 1e3, "ms", beside)
    beside = f"{unmasking / aes / undone:.2f} x the AES of {undone:.0f} masks, target {targets[1]}"
    figure(f"server unmasking, {what}", unmasking, "s", beside)
    figure(f"server adding, {what}", sum(adding), "s", f"{sum(adding) / plainly:.1f} x adding in the clear")
    figure(f"masked vector, {what}", sent, "bytes", f"{8 * sent / (values * bits):.3f} x its values")


def expansion(users: int, values: int, bits: int) -> None:
    """All that a client sends, over its values' own bits."""
    from hansa.crypto.secagg.terms import SEALED_BYTES
    from hansa.crypto.shamir import limbs

    modulus = int(np.ceil(np.log2(users * ((1 << bits) - 1) + 1)))
    vector = -(-values * modulus // 8)
    shares = (users - 1) * SEALED_BYTES + users * 4 * limbs(bytes(32))  # sealed in leg 1, revealed in leg 4
    expanded = (vector + shares) * 8 / (values * bits)
    name = f"expansion, {users} users x {values} of {bits} bits, complete"
    figure(name, expanded, "x", f"target 1.6, published 1.73, the vector alone {vector * 8 / (values * bits):.3f}")


def main() -> None:
    """Prints the lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=[100, 1000], choices=[100, 1000])
    parser.add_argument("--values", type=int, default=1_000_000, help="fewer are quicker, and another figure")
    given = parser.parse_args()
    expansion(1 << 10, 1 << 20, 16)
    if 100 in given.clients:
        targets = "100; a peer's own functions: 1,900", "0.8; a peer's own functions: 122"
        round_of(100, given.values, 32, 0.1, targets)
    if 1000 in given.clients:
        round_of(1000, given.values, 32, 0.1, ("70", "5"), lying=False)
        round_of(1000, given.values, 32, 0.1, ("none: 162 neighbours, not 74", "none"), lying=True)


if __name__ == "__main__":
    main()
