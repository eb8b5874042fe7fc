"""What a curious server has of a client after one round, and what everybody has who sees the next model.

    of_one    the client's own update, decoded as far as the server can: where the reducer shows it single messages
    of_all    the mean that the round releases, with the noise in it: all that is left where it does not

Both come from the job's own `perform`, pipeline and runtime; nothing is rebuilt here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from hansa.core.algorithm import Aggregate, Algorithm, Update
from hansa.core.data import Clients
from hansa.core.errors import ConfigError
from hansa.core.job import Evaluation, Job
from hansa.core.model import Model, Role
from hansa.core.pipeline import Decoding
from hansa.core.runtime import Task
from hansa.core.sampling import Fixed, Stream
from hansa.core.tensors import Tensors
from hansa.core.worker import perform
from hansa.runtimes.local import Local


@dataclass(frozen=True)
class Tap(Algorithm):
    """An algorithm as it is, that also keeps the sum of the means of all rounds: what an observer of the models has.

    Args:
      inner: the real one.
    """

    inner: Algorithm = field(kw_only=True)

    def __post_init__(self) -> None:
        for name in ("needs_uniform", "keeps_memory"):
            object.__setattr__(self, name, getattr(self.inner, name))

    @property
    def discounts(self) -> bool:
        """As the real one."""
        return self.inner.discounts

    def init(self, params: Tensors) -> Tensors:
        """The real state, and zeros."""
        return self.inner.init(params).updated(Tensors.join(tap=params.map(np.zeros_like)))

    def sides(self, params: Tensors) -> Mapping[str, Tensors]:
        """As the real one."""
        return self.inner.sides(params)

    def send(self, state: Tensors, group: str = "") -> Tensors:
        """As the real one."""
        return self.inner.send(state.without("tap"), group)

    def train(self, model: Model, down: Tensors, memory: Tensors, data: Any, rng: np.random.Generator) -> Update:
        """As the real one."""
        return self.inner.train(model, down, memory, data, rng)

    def discount(self, staleness: int) -> float:
        """As the real one."""
        return self.inner.discount(staleness)

    def apply(self, state: Tensors, aggregate: Aggregate) -> Tensors:
        """The real one's state, and the mean added up (before it is given on: `apply` may overwrite it)."""
        before = state.part("tap")
        heard = before.updated({name: before[name] + aggregate.mean[name] for name in aggregate.mean})
        return self.inner.apply(state.without("tap"), aggregate).updated(Tensors.join(tap=heard))


class _Hidden(Exception):
    """A stage asked for protective randomness."""


def of_one(job: Job, data: Any, population: int) -> Tensors:
    """One client's update of the first round as the server can decode it, protective noise of its own apart.

    Args:
      job: with a reducer that sees each contribution.
      data: the client's.
      population: clients that could be asked.

    Raises:
      ConfigError: the reducer shows the server no single contributions.
    """
    reducer = job.pipeline.reducer
    if reducer is None or reducer.sees != "each" or reducer.legs != 1:
        raise ConfigError(f"{reducer} shows the server no single contributions: ask `of_all`.")
    params = job.model.init(job.seed)
    task = Task(
        run="audit", fingerprint="", kind="train", version=0, round=0, attempt=0, client="audited", position=0,
        population=population,
    )  # fmt: skip
    bound = job.bind(population)
    state = bound.start()
    sent = job.algorithm.send(job.algorithm.init(job.model.named(params, Role.TRAINABLE, Role.BUFFER)))
    talk = perform(
        job, task, sent.updated(Tensors.join(pipeline=state)), data, frozen=job.model.named(params, Role.FROZEN)
    )
    total = bound.decode_one(next(talk), state)
    plain = [all(part.additive for part in step.out.parts.values()) for step in bound.steps]
    alone = plain.index(False) if False in plain else len(plain)
    for i in reversed(range(alone)):
        try:
            total, _ = bound.steps[i].decode_total(total, state.part(str(i)), Decoding(1, 1.0, _refuse))
        except _Hidden:
            continue  # what the server itself will add to the sum hides nothing from it
    return total.part("value")


def of_all(job: Job, clients: Clients) -> Tensors:
    """The mean of the first round with all of these clients, as it is released: decoded, noised and divided."""
    everybody = Fixed(len(clients))
    once = replace(
        job, algorithm=Tap(job.algorithm.work, inner=job.algorithm), cohort=None, sampling=everybody, rounds=1,
        evaluation=Evaluation(), epsilon=None, delta=None,
    )  # fmt: skip
    heard = Local().run(once, clients).checkpoint.state.part("tap")
    return job.model.named(heard, Role.TRAINABLE)


def _refuse(label: str) -> Stream:
    raise _Hidden(label)
