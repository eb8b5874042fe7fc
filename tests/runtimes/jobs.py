"""Jobs and clients by name, which every runtime can rebuild: the equality suite runs them."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from hansa.core.algorithm import Algorithm, Update
from hansa.core.data import Clients, Dataset
from hansa.core.job import Evaluation, Job
from hansa.core.model import Fit, LocalWork, Metrics, Model, Role
from hansa.core.pipeline import Pipeline
from hansa.core.tensors import Tensors
from hansa.stages.clip import Clip
from hansa.stages.mean import UniformMean, WeightedMean
from hansa.stages.sum import Sum


@dataclass(frozen=True)
class Regression(Model):
    """Least squares with a private offset, a frozen scale and a buffer: every role in four tensors."""

    width: int = 5

    def init(self, seed: int) -> Tensors:
        rng = np.random.default_rng(seed)
        return Tensors(
            {
                "weight": rng.normal(size=self.width).astype("float32"),
                "offset": np.zeros(1, "float32"),
                "scale": np.full(1, 2, "float32"),
                "seen": np.zeros(1, "float32"),
            }
        )

    def roles(self) -> dict[str, Role]:
        return {"offset": Role.PRIVATE, "scale": Role.FROZEN, "seen": Role.BUFFER}

    def fit(self, params: Tensors, data: Any, work: LocalWork, rng: np.random.Generator) -> Fit:
        weight, offset = params["weight"].copy(), params["offset"].copy()
        loss = 0.0
        steps = work.batches(len(data), rng)
        for rows in steps:
            x, y = data["x"][rows], data["y"][rows]
            error = (x @ weight) * params["scale"] + offset - y
            weight -= np.float32(work.lr) * (x.T @ error) / np.float32(len(rows))
            offset -= np.float32(work.lr) * error.mean(dtype="float32")
            loss += float((error**2).sum())
        seen = params["seen"] + np.float32(len(steps))
        fitted = params.updated({"weight": weight, "offset": offset, "seen": seen})
        return Fit(fitted, len(steps), {"loss": (loss, sum(map(len, steps)))})

    def evaluate(self, params: Tensors, data: Any) -> Metrics:
        error = (data["x"] @ params["weight"]) * params["scale"] + params["offset"] - data["y"]
        return {"loss": (float((error**2).sum()), len(data))}


@dataclass(frozen=True)
class Remembering(Algorithm):
    """Averaging in which each worker also remembers how often it took part, and sends it."""

    keeps_memory = True

    def sides(self, params: Tensors) -> dict[str, Tensors]:
        return {"visits": Tensors({"n": np.zeros(1, "float32")})}

    def train(self, model: Model, down: Tensors, memory: Tensors, data: Any, rng: np.random.Generator) -> Update:
        update = super().train(model, down, memory, data, rng)
        visits = (memory["n"] if len(memory) else np.zeros(1, "float32")) + np.float32(1)
        kept = Tensors({"n": visits})
        return Update(
            difference=update.difference,
            weight=update.weight,
            metrics=update.metrics,
            side={"visits": kept},
            memory=kept,
        )


def some_clients(count: int = 6) -> Clients:
    """Least-squares data of ragged sizes."""
    rng = np.random.default_rng(7)
    truth = rng.normal(size=5).astype("float32")
    datasets = {}
    for client in range(count):
        x = rng.normal(size=(8 + 5 * client, 5)).astype("float32")
        with np.errstate(invalid="ignore"):  # a BLAS may raise the flag for lanes beyond the end of so short a vector
            y = 2 * x @ truth + np.float32(client)
        datasets[f"client-{client}"] = Dataset(x=x, y=y)
    return Clients.of(datasets)


def plain() -> Job:
    """A weighted mean of a sampled cohort, evaluated on the workers."""
    return Job(
        model=Regression(),
        algorithm=Algorithm(LocalWork(lr=0.05, epochs=2, batch_size=4)),
        pipeline=Pipeline([WeightedMean()], Sum()),
        cohort=4,
        rounds=5,
        evaluation=Evaluation(workers=None, every=2, best="loss"),
        seed=3,
    )


def remembering() -> Job:
    """Clipped, uniform, with memory at the workers."""
    return Job(
        model=Regression(),
        algorithm=Remembering(LocalWork(lr=0.05, epochs=1, batch_size=4)),
        pipeline=Pipeline([Clip(3.0), UniformMean()], Sum()),
        cohort=3,
        rounds=6,
        seed=4,
    )


JOBS = {"plain": plain, "remembering": remembering}
