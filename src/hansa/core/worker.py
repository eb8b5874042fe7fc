"""The worker's half of a task: `perform`, one pure function that every runtime calls.

Nothing but the messages it yields leaves a worker; what it returns is the memory that the worker keeps, current only
once the server has committed the round.
"""

import math
from collections.abc import Generator, Mapping
from typing import Any

import numpy as np

from hansa.core.algorithm import Update
from hansa.core.errors import DataError, UpdateRejected
from hansa.core.job import Job
from hansa.core.model import Metrics, Role
from hansa.core.pipeline import Reducer, Seat, Worker
from hansa.core.runtime import Task
from hansa.core.sampling import Stream
from hansa.core.tensors import EMPTY, Tensors, mismatch, stack


def perform(
    job: Job,
    task: Task,
    down: Tensors,
    data: Any,
    memory: Tensors = EMPTY,
    frozen: Tensors = EMPTY,
    seat: Seat | None = None,
) -> Generator[Tensors, Tensors | None, Tensors]:
    """Does one task, as a conversation.

    Args:
      job: the same on every side; its fingerprint is the runtime's to compare.
      task: what is asked.
      down: the server's message: parts of the algorithm, and `pipeline`, the stages' public state.
      data: the worker's own; anything with a length. A helper has none.
      memory: what this client kept at its last counted task; empty at first.
      frozen: the model's frozen tensors.
      seat: this client's; one that proves nothing if None.

    Yields:
      The message of each leg of the reducer; it is sent the server's answer, or None after the last leg.

    Returns:
      The client's memory after this task.

    Raises:
      DataError: there are no examples.
      TensorMismatch: the update has other names or shapes than the model.
      UpdateRejected: the update or a metric is not finite.
    """
    seat = seat or Seat(task.client, task.context)
    if task.role == "helper":
        yield from _converse(_reducer(job, task).helper(seat))
        return memory
    if len(data) == 0:
        raise DataError(f"'{task.client}' has no examples: give it data, or leave it out of the federation.")
    state, down = down.part("pipeline"), _decoded(job, task, down.without("pipeline"))
    kept = memory.part("private")
    private = kept if len(kept) or Role.PRIVATE not in job.model.roles().values() else job.model.init(job.seed)
    private = job.model.named(private, Role.PRIVATE)
    params = down.part("model").updated(frozen).updated(private)
    rng = np.random.default_rng(Stream("train", job.seed, task.kind, task.round, task.client).seed())
    if task.kind == "train":
        whole = down.updated(Tensors.join(model=params))
        update = job.algorithm.train(job.model, whole, memory.part("algorithm"), data, rng)
        contribution = _contribution(job, task, update)
        bound = job.bind(task.population)
        stages = memory.part("stage").map(lambda a: a[None])
        encoded, stages = bound.encode(stack([contribution]), state, stages, [rng])
        private = private.zip(update.difference.only(private), lambda a, b: a + b)
        memory = Tensors.join(algorithm=update.memory, stage=stages.map(lambda a: a[0]), private=private)
        message = encoded.map(lambda a: a[0])
    else:
        metrics = job.model.evaluate(params, data) if task.kind == "evaluate" else _asked(job, task, data)
        bound = job.bind(task.population, task.kind)
        names = job.model.metrics if task.kind == "evaluate" else job.answers
        message = Tensors.join(metric=_metrics(job, metrics, names))
    yield from _converse(_reducer(job, task).worker(message, seat))
    return memory


def _reducer(job: Job, task: Task) -> Reducer:
    """The reducer, bound to what this kind of task sends."""
    reducer = job.bind(task.population, task.kind).reducer
    assert reducer is not None
    return reducer


def _converse(role: Worker) -> Generator[Tensors, Tensors | None, None]:
    outgoing = next(role)
    while (incoming := (yield outgoing)) is not None:
        outgoing = role.send(incoming)


def _decoded(job: Job, task: Task, down: Tensors) -> Tensors:
    bound = job.bind(task.population, "down")
    return bound.decode_one(down, bound.start()) if bound.steps else down


def _contribution(job: Job, task: Task, update: Update) -> Tensors:
    """The update as flat parts, checked against the shapes that were bound."""
    value = job.model.named(update.difference, Role.TRAINABLE)
    if not (update.weight > 0 and math.isfinite(update.weight)):
        raise UpdateRejected(f"'{task.client}' gave the weight {update.weight}: it must be finite and above 0.")
    parts = {
        "value": value,
        "buffers": job.model.named(update.difference, Role.BUFFER),
        "weight": Tensors({"weight": np.array([float(min(update.weight, job.max_examples))])}),
        "metric": _metrics(job, update.metrics, job.model.metrics),
        **update.side,
    }
    whole = Tensors.join(**parts)
    mismatch(job.signal.shapes, whole.shapes, f"the update of '{task.client}'", dtypes=True)
    if broken := whole.first_not_finite():
        raise UpdateRejected(
            f"'{task.client}' gave an update with NaN or infinity in '{broken}' in round {task.round}: "
            "lower the learning rate, or clean its data."
        )
    return whole


def _metrics(job: Job, metrics: Metrics, names: Mapping[str, float]) -> Tensors:
    """Numerators and denominators, clipped to their declared bounds."""
    clipped = {}
    for name, bound in names.items():
        top, bottom = metrics.get(name, (0.0, 0.0))
        if not (math.isfinite(top) and math.isfinite(bottom) and bottom >= 0):
            raise UpdateRejected(f"the metric '{name}' is {top} over {bottom}: lower the learning rate, mend the data.")
        share = min(1.0, job.max_examples / bottom) if bottom else 0.0
        limit = bound * bottom * share if bottom else 0.0
        clipped[name] = np.array([min(max(top * share, -limit), limit), bottom * share])
    return Tensors(clipped)


def _asked(job: Job, task: Task, data: Any) -> Metrics:
    if job.query is None:
        raise UpdateRejected(f"the task for '{task.client}' asks a query, but the job has none: give Job(query=...).")
    return job.query(data)
