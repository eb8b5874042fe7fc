"""The worker's half: what may leave it, and what it refuses."""

import math

import numpy as np
import pytest

from hansa.core.algorithm import Algorithm, Update
from hansa.core.data import Dataset
from hansa.core.errors import DataError, TensorMismatch, UpdateRejected
from hansa.core.job import Job
from hansa.core.model import Fit, LocalWork
from hansa.core.pipeline import Pipeline
from hansa.core.runtime import Task
from hansa.core.tensors import EMPTY, Tensors
from hansa.core.worker import perform
from hansa.stages.mean import UniformMean, WeightedMean
from hansa.stages.sum import Sum
from hansa.testing.models import Line, points


class Averaging(Algorithm):
    """The defaults."""


def job(model=None, algorithm=None, **settings) -> Job:
    return Job(
        model=model or Line(), algorithm=algorithm or Averaging(LocalWork(lr=0.1, steps=1)), cohort=1,
        pipeline=Pipeline([WeightedMean()], Sum()), **settings,
    )  # fmt: skip


def task(kind: str = "train") -> Task:
    return Task(run="r", fingerprint="f", kind=kind, version=3, round=3, attempt=0, client="bee", position=0)


def done(job: Job, kind: str = "train", data=None, memory=EMPTY, frozen=EMPTY) -> tuple[Tensors, Tensors]:
    """The message and the memory."""
    sent = Tensors(
        {
            name: array
            for name, array in job.model.init(0).items()
            if job.model.role(name).value in ("trainable", "buffer")
        }
    )
    work = perform(job, task(kind), Tensors.join(model=sent), points(1, 5) if data is None else data, memory, frozen)
    message = next(work)
    with pytest.raises(StopIteration) as end:
        work.send(None)
    return message, end.value.value


def test_a_message_holds_the_bound_parts_and_nothing_else() -> None:
    message, memory = done(job())
    assert set(message) == {"value/w", "value/b", "weight/weight", "metric/loss"}
    assert message["weight/weight"].tolist() == [5.0]
    assert message["metric/loss"][1] == 5.0
    assert memory == EMPTY


def test_a_private_tensor_stays_in_memory_and_a_frozen_one_is_not_sent() -> None:
    found = job(Line(given=(("b", "private"),)))
    message, memory = done(found)
    assert not any(name.endswith("/b") for name in message)
    assert memory["private/b"].shape == (1,)
    again, _ = done(found, memory=memory)
    assert again != message  # it went on from its own b
    message, memory = done(job(Line(given=(("b", "frozen"),))), frozen=Tensors({"b": np.array([7.0])}))
    assert set(message.part("value")) == {"w"}
    assert memory == EMPTY


def test_training_randomness_comes_from_seed_round_and_client_alone() -> None:
    work = Averaging(LocalWork(lr=0.1, epochs=1, batch_size=2))
    assert done(job(algorithm=work, seed=1))[0] == done(job(algorithm=work, seed=1))[0]
    assert done(job(algorithm=work, seed=1))[0] != done(job(algorithm=work, seed=2))[0]


def test_no_examples_is_an_error_that_names_the_client() -> None:
    with pytest.raises(DataError, match=r"'bee' has no examples: give it data, or leave it out"):
        done(job(), data=Dataset(x=[], y=[]))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_update_that_is_not_finite_is_refused_with_tensor_and_round(bad: float) -> None:
    class Broken(Line):
        def fit(self, params, data, work, rng):
            return Fit(params.updated({"w": np.array([bad])}), 1)

    with pytest.raises(
        UpdateRejected, match=r"'bee' gave an update with NaN or infinity in 'value/w' in round 3: lower"
    ):
        done(job(Broken()))


@pytest.mark.parametrize("weight", [0.0, -1.0, math.nan, math.inf])
def test_weights_are_finite_and_above_zero(weight: float) -> None:
    class Weighing(Averaging):
        def train(self, model, down, memory, data, rng):
            return Update(difference=down.part("model").zeros(), weight=weight)

    with pytest.raises(UpdateRejected, match=rf"'bee' gave the weight {weight}: it must be finite and above 0"):
        done(job(algorithm=Weighing(LocalWork(lr=0.1, steps=1))))


@pytest.mark.parametrize(
    ("difference", "message"),
    [
        ({"w": np.zeros(1)}, r"the update of 'bee' lacks \['value/b'\]"),
        ({"w": np.zeros(1), "b": np.zeros(1), "c": np.zeros(1)}, r"has the unknown \['value/c'\]"),
        ({"w": np.zeros(2), "b": np.zeros(1)}, r"'value/w' has shape \(2,\) in the update of 'bee', not \(1,\)"),
        ({"w": np.zeros(1, "float32"), "b": np.zeros(1)}, r"'value/w' is float32 in the update of 'bee', not float64"),
    ],
)
def test_wrong_names_shapes_and_types_are_named(difference: dict, message: str) -> None:
    class Odd(Averaging):
        def train(self, model, down, memory, data, rng):
            return Update(difference=Tensors(difference), weight=1.0)

    with pytest.raises(TensorMismatch, match=message):
        done(job(algorithm=Odd(LocalWork(lr=0.1, steps=1))))


def test_metrics_and_weights_are_clipped_to_their_declared_bounds() -> None:
    class Loud(Line):
        metrics = {"loss": 2.0, "accuracy": 1.0}  # noqa: RUF012

        def fit(self, params, data, work, rng):
            return Fit(params, 1, {"loss": (-1000.0, 8.0), "accuracy": (6.0, 8.0), "unknown": (1.0, 1.0)})

    message, _ = done(job(Loud(), max_examples=4.0))
    assert message["weight/weight"].tolist() == [4.0]
    assert message["metric/loss"].tolist() == [-8.0, 4.0]  # at most 4 examples of at most 2
    assert message["metric/accuracy"].tolist() == [3.0, 4.0]  # the mean is kept
    assert set(message.part("metric")) == {"loss", "accuracy"}


@pytest.mark.parametrize("metric", [(math.nan, 1.0), (1.0, math.nan), (math.inf, 1.0), (1.0, -1.0)])
def test_metrics_that_are_no_numbers_are_refused(metric: tuple[float, float]) -> None:
    class Silly(Line):
        def evaluate(self, params, data):
            return {"loss": metric}

    with pytest.raises(UpdateRejected, match=r"the metric 'loss' is .* over .*: lower the learning rate"):
        done(job(Silly()), "evaluate")


def test_evaluation_and_queries_send_metrics_alone_and_keep_their_memory() -> None:
    memory = Tensors({"private/b": np.array([2.0])})
    message, kept = done(job(Line(given=(("b", "private"),))), "evaluate", memory=memory)
    assert set(message) == {"metric/loss"}
    assert kept == memory
    asked = job(query=lambda data: {"age": (float(data["y"].sum()), len(data))}, answers={"age": math.inf})
    message, _ = done(asked, "query", Dataset(y=[30.0, 50.0]))
    assert message["metric/age"].tolist() == [80.0, 2.0]


def test_a_query_that_the_job_does_not_have_is_refused() -> None:
    with pytest.raises(UpdateRejected, match=r"'bee' asks a query, but the job has none: give Job\(query"):
        done(job(), "query")


def test_contributions_go_through_the_pipeline() -> None:
    uniform = Job(
        model=Line(),
        algorithm=Averaging(LocalWork(lr=0.1, steps=1)),
        cohort=1,
        pipeline=Pipeline([UniformMean()], Sum()),
    )
    assert set(done(uniform)[0].parts) == {"value", "metric"}
