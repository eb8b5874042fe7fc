"""Which clients are trained together, and in which pieces: batches of like size share a bucket; little is padded.

sizes of batches, by client    10 10 4 │ 10 10 3 │ 10 7
widths, steps of one bucket    10 10 4              a client that has ended goes on with padding
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

Sizes = Sequence[int]  # rows of each step of one client


class Run(NamedTuple):
    """Consecutive steps, from `first` to before `last`, of one width, before which no client ends."""

    first: int
    last: int
    width: int
    padded: bool  # whether any client's batch is less wide in any of them


def buckets(clients: Sequence[Sizes], waste: float) -> list[list[int]]:
    """Groups of clients whose batches are padded to the widest of each step.

    Args:
      clients: for each client, the rows of its steps; at least one step.
      waste: rows of padding, at most, for each row that is needed; at 0 only equal ones share a bucket.

    Returns:
      Indices of clients; each in one bucket.
    """
    found: list[list[int]] = []
    widths, rows = np.zeros(0, np.int64), 0
    for i in sorted(range(len(clients)), key=lambda i: (-len(clients[i]), *(-size for size in clients[i]))):
        own = np.asarray(clients[i])
        wider = widths.copy() if found else own
        np.maximum(wider[: len(own)], own, out=wider[: len(own)])
        together = rows + int(own.sum())
        if found and (len(found[-1]) + 1) * int(wider.sum()) <= (1 + waste) * together:
            found[-1].append(i)
            widths, rows = wider, together
        else:
            found.append([i])
            widths, rows = own.copy(), int(own.sum())
    return found


def table(clients: Sequence[Sizes]) -> np.ndarray:
    """Rows of each client's steps, of shape (clients, steps); 0 after its last."""
    sizes = np.zeros((len(clients), max(map(len, clients))), np.int64)
    for row, own in zip(sizes, clients, strict=True):
        row[: len(own)] = own
    return sizes


def runs(sizes: np.ndarray, most: int) -> Iterator[Run]:
    """The steps of a bucket in pieces.

    Args:
      sizes: of `table`.
      most: rows of one client, at most, in a piece of several steps.
    """
    widths, active = sizes.max(0), (sizes > 0).sum(0)
    padded, first = (sizes < widths).any(0), 0
    alike = list(zip(widths, active, padded, strict=True))
    for last in range(1, len(alike) + 1):
        if last == len(alike) or alike[last] != alike[first] or (last + 1 - first) * widths[first] > most:
            yield Run(first, last, int(widths[first]), bool(padded[first]))
            first = last
