"""Tensor roles through the worker's half of a task: batch norm, a frozen backbone, a private head."""

import dataclasses

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

from hansa.adapters.torch import TorchModel  # noqa: E402
from hansa.algorithms.fedavg import FedAvg  # noqa: E402
from hansa.core.data import Clients, Dataset  # noqa: E402
from hansa.core.job import Job  # noqa: E402
from hansa.core.model import LocalWork, Role  # noqa: E402
from hansa.core.pipeline import Pipeline  # noqa: E402
from hansa.core.runtime import Task  # noqa: E402
from hansa.core.tensors import EMPTY, Tensors  # noqa: E402
from hansa.core.worker import perform  # noqa: E402
from hansa.runtimes.local import train  # noqa: E402
from hansa.stages.clip import Clip  # noqa: E402
from hansa.stages.mean import UniformMean  # noqa: E402
from hansa.stages.sum import Sum  # noqa: E402

WORK = LocalWork(lr=0.1, epochs=2, batch_size=8)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.norm, self.head = nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(torch.relu(self.norm(self.body(x))))


def data_of(seed):
    rng = np.random.default_rng(seed)
    return Dataset(x=rng.normal(loc=seed, size=(24, 6)), y=rng.integers(0, 3, 24))


def job_of(stages=(), **roles):
    model = TorchModel(Net, F.cross_entropy, **roles)
    return Job(
        model=model, algorithm=FedAvg(WORK), pipeline=Pipeline([*stages, UniformMean()], Sum()), cohort=2, rounds=2
    )


def visit(job, data, memory=EMPTY, round=0, client="a"):
    """One training task at one worker: its message and the memory it keeps."""
    task = Task(
        run="",
        fingerprint="",
        kind="train",
        version=0,
        round=round,
        attempt=0,
        client=client,
        position=0,
        population=2,
    )
    params = job.model.init(job.seed)
    down = Tensors.join(model=job.model.named(params, Role.TRAINABLE, Role.BUFFER))
    talk = perform(job, task, down, data, memory, job.model.named(params, Role.FROZEN))
    message = next(talk)
    with pytest.raises(StopIteration) as end:
        talk.send(None)
    return message, end.value.value


def test_batch_norm_statistics_are_averaged_apart_and_not_clipped():
    job = job_of([Clip(0.01)])
    one, two = data_of(1), data_of(2)
    messages = [visit(job, data, client=client)[0] for client, data in (("a", one), ("b", two))]
    for message in messages:
        assert message.part("value").norm() <= 0.01 * (1 + 1e-6)
        assert set(message.part("buffers")) == {"norm.running_mean", "norm.running_var"}
        assert message.part("buffers").norm() > 0.1
        assert not any("num_batches_tracked" in name for name in message)
    history = train(dataclasses.replace(job, rounds=1), Clients.of({"a": one, "b": two}))
    start = job.model.init(job.seed)
    for name in ("norm.running_mean", "norm.running_var"):
        expected = start[name] + np.mean([message[f"buffers/{name}"] for message in messages], axis=0)
        np.testing.assert_allclose(history.params[name], expected, rtol=1e-5)


def test_a_frozen_backbone_is_the_same_after_training_and_never_sent_back():
    job = job_of(frozen=("body.*",))
    message, _ = visit(job, data_of(1))
    assert set(message.part("value")) == {"head.bias", "head.weight", "norm.bias", "norm.weight"}
    assert not any("body" in name for name in message)
    history = train(job, Clients.of({"a": data_of(1), "b": data_of(2)}))
    start = job.model.init(job.seed)
    for name in start:
        same = (history.params[name] == start[name]).all()
        assert same == (name.startswith("body") or name.endswith("tracked")), name


def test_a_private_head_stays_in_the_workers_memory():
    job = job_of(private=("head.*",))
    start = job.model.init(job.seed)
    message, memory = visit(job, data_of(1))
    assert not any("head" in name for name in message)
    kept = memory.part("private")
    assert set(kept) == {"head.bias", "head.weight"} and (kept["head.weight"] != start["head.weight"]).any()
    # The next visit starts from it: the first and the second head differ from what a fresh worker would get.
    _, again = visit(job, data_of(1), memory, round=1)
    _, fresh = visit(job, data_of(1), EMPTY, round=1)
    assert (again.part("private")["head.weight"] != fresh.part("private")["head.weight"]).any()
    history = train(job, Clients.of({"a": data_of(1), "b": data_of(2)}))
    assert (history.params["head.weight"] == start["head.weight"]).all()
    assert (history.params["body.weight"] != start["body.weight"]).any()
