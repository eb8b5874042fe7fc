"""Who masks with whom: everybody, or k neighbours each, so that the work grows with log n instead of n.

    n · P[at least t of k neighbours are corrupt]        ≤ 2^−σ      nobody's secrets are in wrong hands
    n · P[at least 2t − k − 1 of them are]               ≤ 2^−σ      nor both, if halves hear different tales
    n · P[fewer than t of k neighbours stay]             ≤ 2^−η      the round can be finished

The second is for a server that lies, and holds the first: of k + 1 holders, of which c are corrupt, some t may believe
that a client masked and other t that it dropped out, if 2t ≤ k + 1 + c.

The neighbourhoods are drawn from a hash of all advertised keys, so that nobody chooses them. A server that lies chooses
whom to list, as long as enough are listed: it may leave out honest clients and none of its own, which is why the second
is taken over the fewest clients of a round. And it may try as many lists as it has time for: some 2^σ for one it likes.

Source: Bell, Bonawitz, Gascón, Lepoint and Raykova 2020, https://eprint.iacr.org/2020/704
"""

import hashlib
import math
from dataclasses import dataclass

import numpy as np

from hansa.core.errors import ConfigError


@dataclass(frozen=True)
class Graph:
    """How many mask with each client, and how many of them give its secrets back.

    Args:
      neighbours: k; n − 1 in a complete graph.
      threshold: t, of the k neighbours and the client itself.
      failure: the probability that a round with the declared drop-outs cannot be finished.
      leak: the probability that some client has so many corrupt holders that it can be opened.
    """

    neighbours: int
    threshold: int
    failure: float
    leak: float

    def __str__(self) -> str:
        return (
            f"{self.neighbours} neighbours each, threshold {self.threshold}; the declared drop-outs end a round with "
            f"probability {self.failure:.1e}, the declared corruption reveals somebody's update with {self.leak:.1e}"
        )


def choose_graph(
    n: int, corrupt: float = 0.05, dropout: float = 0.05, sigma: int = 40, eta: int = 30, lying: bool = False,
    *, fewest: int | None = None, group: int | None = None,
) -> Graph:  # fmt: skip
    """The fewest neighbours that hold the bounds.

    Args:
      n: clients of a round.
      corrupt: the fraction of clients that may work with the server.
      dropout: the fraction that may drop out.
      sigma: bits of security; eta: bits of correctness.
      lying: whether the server may lie about who takes part and who masked; else it is taken to follow the protocol.
      fewest: clients that a server that lies must list at least; all if None.
      group: clients among whom neighbours are found, where a round is made of groups that chance draws; all if None.

    Raises:
      ConfigError: no number of neighbours holds both.
    """
    for name, given in (("corrupt", corrupt), ("dropout", dropout)):
        if not 0 <= given < 1:
            raise ConfigError(f"{name}={given}: a fraction of the clients, in [0, 1).")
    bad, gone = round(corrupt * n), round(dropout * n)
    listed = min(n, fewest or n) if lying else n
    for k in range(2, min(listed, group or n), 2):
        tail = _tail(listed - 1, min(bad, listed - 1), k)
        needed = {t: 2 * t - k - 1 if lying else t for t in range(k // 2 + 1 if lying else 1, k + 1)}
        threshold = next((t for t, bad_ones in needed.items() if n * tail[bad_ones] <= 2.0**-sigma), None)
        if threshold is None:
            continue
        lost = n * float(_tail(n - 1, gone, k)[k - threshold + 1])
        if lost <= 2.0**-eta:
            return Graph(k, threshold, lost, n * float(tail[needed[threshold]]))
    raise ConfigError(
        f"no graph of {n} clients stands {corrupt:.0%} corrupt and {dropout:.0%} dropping out: "
        "declare fewer of either, or ask more clients."
    )


def neighbourhoods(size: int, degree: int, seed: bytes) -> list[list[int]]:
    """A graph in which client i has `degree` neighbours, from 32 public bytes: a ring in an order that they draw.

    Each is linked with the degree / 2 before and after it in the order.
    """
    if degree >= size - 1:
        return [[j for j in range(size) if j != i] for i in range(size)]
    order = _order(size, seed)
    linked: list[list[int]] = [[] for _ in range(size)]
    for place, client in enumerate(order):
        linked[int(client)] = _around(order, place, degree)
    return linked


def neighbours(at: int, size: int, degree: int, seed: bytes) -> list[int]:
    """One client's row of `neighbourhoods`, without the others'."""
    if degree >= size - 1:
        return [j for j in range(size) if j != at]
    order = _order(size, seed)
    return _around(order, int(np.flatnonzero(order == at)[0]), degree)


def _order(size: int, seed: bytes) -> np.ndarray:
    raw = hashlib.shake_256(b"neighbours" + seed).digest(8 * size)
    return np.argsort(np.frombuffer(raw, "<u8"), kind="stable")


def _around(order: np.ndarray, place: int, degree: int) -> list[int]:
    places = np.arange(place - degree // 2, place + degree // 2 + 1) % len(order)
    near: list[int] = order[places].tolist()
    del near[degree // 2]  # itself
    return sorted(near)


def _tail(population: int, marked: int, drawn: int) -> np.ndarray:
    """P[X ≥ x] for x = 0 … drawn + 1, X the marked ones among so many drawn without replacement."""
    log = [math.lgamma(each + 1) for each in range(population + 1)]

    def choose(a: int, b: int) -> float:
        return log[a] - log[b] - log[a - b] if 0 <= b <= a else -math.inf

    whole = choose(population, drawn)
    chances = [math.exp(choose(marked, x) + choose(population - marked, drawn - x) - whole) for x in range(drawn + 1)]
    return np.append(np.cumsum(chances[::-1])[::-1], 0.0)
