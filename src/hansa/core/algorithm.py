"""What one round does to the model: `Algorithm`, and the two values it exchanges, `Update` and `Aggregate`.

    state ── send ──► down ──(worker)── train ──► Update ── … sums … ──► Aggregate ── apply ──► state

An algorithm never sees one worker on the server, and never another worker at a worker.
"""

from abc import ABC
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hansa.core.model import LocalWork, Metrics, Model
from hansa.core.tensors import EMPTY, Tensors


@dataclass(frozen=True, kw_only=True)
class Update:
    """What one worker contributes.

    Args:
      difference: parameters after minus before; a subset of the model's names.
      weight: finite and > 0; the number of examples unless the algorithm says otherwise.
      metrics: seen in training, as (numerator, denominator).
      side: further values to be averaged, by part name (SCAFFOLD's `control`).
      memory: what the worker keeps for its next task of this run; it never leaves it.
    """

    difference: Tensors
    weight: float
    metrics: Metrics = field(default_factory=dict)
    side: Mapping[str, Tensors] = field(default_factory=dict)
    memory: Tensors = EMPTY


@dataclass(frozen=True, kw_only=True)
class Aggregate:
    """What the server learns of a round.

    Args:
      mean: of the differences of trainable tensors. `apply` may overwrite its arrays: nobody reads them after it.
      buffers: mean of the differences of buffers.
      side: means of the side values, by part name.
      weight: total weight, or the count where the pipeline sends no weights.
      count: contributions counted.
      population: clients that could have been asked.
    """

    mean: Tensors
    buffers: Tensors = EMPTY
    side: Mapping[str, Tensors] = field(default_factory=dict)
    weight: float
    count: int
    population: int


@dataclass(frozen=True)
class Algorithm(ABC):
    """Federated averaging, unless a method is overridden; subclasses are frozen dataclasses, one file a paper.

    The state is one flat `Tensors` whose part `model` holds what is trained; algorithms add parts of their own. A
    custom strategy is a subclass in a few lines; here the server moves half as far as the mean says:

    >>> class Halved(Algorithm):
    ...     def apply(self, state, aggregate):
    ...         return moved(state, aggregate, lr=0.5)
    """

    work: LocalWork
    server_lr: float = field(default=1.0, kw_only=True)

    needs_uniform = False
    """True if the pipeline must give every contribution the same weight."""
    keeps_memory = False
    """True if workers keep memory from one task to the next; such an algorithm refuses stale updates."""

    def init(self, params: Tensors) -> Tensors:
        """The server's state at the start, from the model's trainable tensors and buffers."""
        return Tensors.join(model=params)

    def sides(self, params: Tensors) -> Mapping[str, Tensors]:
        """Zeros of the side values that updates carry, so that the pipeline can be bound before any data."""
        return {}

    def send(self, state: Tensors, group: str = "") -> Tensors:
        """What workers of a group need of the state, as parts; `model` is one of them."""
        return Tensors.join(model=state.part("model"))

    def train(self, model: Model, down: Tensors, memory: Tensors, data: Any, rng: np.random.Generator) -> Update:
        """One worker's training.

        Args:
          model: its `fit` does the work.
          down: what `send` gave; its part `model` here also holds the frozen and private tensors.
          memory: what this worker's last counted update kept; empty the first time.
          data: the worker's own.
          rng: from the job's seed, the round and the client.
        """
        start = down.part("model")
        fit = model.fit(start, data, self.work, rng)
        start.meets(fit.params, f"what {type(model).__name__}.fit gave")
        return Update(difference=fit.params - start, weight=float(len(data)), metrics=fit.metrics)

    def discount(self, staleness: int) -> float:
        """The factor of an update that was trained on a model `staleness` versions old."""
        return 1.0

    @property
    def discounts(self) -> bool:
        """True if `discount` is not always 1, which a sum that hides contributions cannot do."""
        return type(self).discount is not Algorithm.discount

    def apply(self, state: Tensors, aggregate: Aggregate) -> Tensors:
        """The next state."""
        return moved(state, aggregate, self.server_lr)


def moved(state: Tensors, aggregate: Aggregate, lr: float = 1.0) -> Tensors:
    """The state with its model moved by `lr` times the mean (buffers by the whole mean), reusing the mean's memory."""
    model = state.part("model")
    moves = aggregate.mean.updated(aggregate.buffers)
    after = dict(model)
    for name in moves:
        step = moves[name]
        if lr != 1.0 and name in aggregate.mean:
            step *= lr
        step += model[name]
        after[name] = step
    return state.updated(Tensors.join(model=Tensors(after)))
