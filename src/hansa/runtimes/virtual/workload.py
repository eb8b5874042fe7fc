"""What a task asks of a device, before it is done: examples, steps and bytes, read off the job's declaration."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from hansa.core.data import Clients
from hansa.core.job import Job
from hansa.core.model import LocalWork

FORWARD = 1 / 3  # of a training example's cost: an evaluation has no backward pass, which costs about twice the forward


def declared(work: LocalWork, examples: Any) -> tuple[Any, Any]:
    """Examples seen and steps taken in one visit, for one number of examples or an array of them.

    >>> [int(number) for number in declared(LocalWork(lr=0.1, epochs=2, batch_size=10), 25)]
    [50, 6]
    >>> seven = LocalWork(lr=0.1, steps=7, batch_size=10)  # two passes of three batches, and one batch more
    >>> [int(number) for number in declared(seven, 25)]
    [60, 7]
    """
    size = np.minimum(work.batch_size or examples, examples)
    per_pass = -(-examples // size)
    if work.epochs is not None:
        return examples * work.epochs, per_pass * work.epochs
    steps = work.steps or 0
    return steps // per_pass * examples + steps % per_pass * size, steps


class Workload:
    """The cost of one job's tasks.

    Args:
      job: its algorithm declares the work, its pipeline the size of a message.
      clients: whose sizes are asked; a client whose population does not know them is opened, once.
      population: clients that can be asked.
    """

    def __init__(self, job: Job, clients: Clients, population: int) -> None:
        self._job, self._clients, self._population = job, clients, population
        self._sizes: dict[str, int] = {}
        self._up: dict[str, float] = {}

    def examples(self, client: str) -> int:
        """How many examples a client has; at least 1, since an empty one fails only when it is asked."""
        if client not in self._sizes:
            self._sizes[client] = max(1, len(self._clients.open(client)))
        return self._sizes[client]

    def all_examples(self, ids: Sequence[str]) -> np.ndarray:
        """The sizes of all clients; from the population where it has them, else by opening each."""
        known = getattr(self._clients, "sizes", None)
        if callable(known):
            return np.maximum(np.asarray(known(), np.int64), 1).astype(np.int64)
        return np.array([self.examples(client) for client in ids])

    def work(self, kind: str, examples: Any) -> tuple[Any, Any]:
        """Examples (as training would cost) and optimiser steps of one task."""
        if kind == "train":
            return declared(self._job.algorithm.work, examples)
        return examples * FORWARD, 0

    def up_bytes(self, kind: str) -> float:
        """Declared size of one message of the first leg."""
        if kind not in self._up:
            self._up[kind] = self._job.bind(self._population, kind).bits() / 8
        return self._up[kind]

    def down_bytes(self) -> float:
        """Declared size of what the server sends."""
        return self.up_bytes("down")
