"""Secure sums: what a client and the server compute, and what travels, without a network.

    python benchmarks/privacy_secure_sum.py [--thorough]

Beside each the same vectors are added in the clear, which is the least that any sum costs.
"""

import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from hansa.crypto import secagg
from hansa.crypto.seats import SimulatedSeat
from hansa.crypto.secagg.graph import choose_graph


def timed(run: Callable[[], Any], into: list[float]) -> Any:
    began = time.perf_counter()
    result = run()
    into.append(time.perf_counter() - began)
    return result


def round_of(n: int, values: int, bits: int, dropped: float, watched: int = 5, sparse: bool = False) -> None:
    """One round; some clients are timed, the others' vectors are zeros under the same masks."""
    graph = choose_graph(n, 0.2, 0.1) if sparse else None
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
    began = time.perf_counter()
    total = server.total()
    unmasking = time.perf_counter() - began
    assert not total[0].any(), "the masks did not cancel"
    began = time.perf_counter()
    clear = np.zeros_like(small)
    for _ in range(len(alive)):
        clear += small
    plainly = time.perf_counter() - began
    client = statistics.median(sum(seconds[name]) for name in alive)
    kind = f"k={graph.neighbours}" if graph else "complete"
    what = f"n={n} values={values} bits={bits} {kind} drop-out={dropped:.0%}"
    print(f"client, {what}  {client * 1e3:.1f}  ms")
    print(f"server unmasking, {what}  {unmasking:.2f}  s  (ratio to adding in the clear {unmasking / plainly:.1f})")
    print(f"server adding, {what}  {sum(adding):.2f}  s  (ratio {sum(adding) / plainly:.1f})")
    print(f"masked vector, {what}  {sent}  bytes")


def expansion(users: int, values: int, bits: int) -> None:
    """All that a client sends, over its values' own bits."""
    from hansa.crypto.secagg.terms import SEALED_BYTES, SHARE_LIMBS

    modulus = int(np.ceil(np.log2(users * ((1 << bits) - 1) + 1)))
    vector = -(-values * modulus // 8)
    shares = (users - 1) * SEALED_BYTES + users * 4 * SHARE_LIMBS
    print(
        f"expansion, {users} users x {values} of {bits} bits, complete  {(vector + shares) * 8 / (values * bits):.3f}"
        "  x  (published 1.73)"
    )


def main() -> None:
    expansion(1 << 10, 1 << 20, 16)
    round_of(100, 1_000_000, 32, 0.1)
    if "--thorough" in sys.argv:
        round_of(1000, 1_000_000, 32, 0.1, sparse=True)


if __name__ == "__main__":
    main()
