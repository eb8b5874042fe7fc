"""What a run leaves behind: its records, and its model as an ordinary object again."""

import json
import os
from pathlib import Path
from typing import Any

from hansa.core.checkpoint import Checkpoint, dump
from hansa.core.errors import NotFound
from hansa.core.job import Job
from hansa.core.model import Role
from hansa.core.tensors import Tensors
from hansa.core.train import Outcome, Record


class History:
    """The outcome of a job.

    Args:
      job: that was run.
      outcome: what the round loop returned.
      best: checkpoint of the best round, if one was kept.
      reason: why it was stopped before its end, if it was.
    """

    def __init__(self, job: Job, outcome: Outcome, best: Checkpoint | None = None, reason: str = "") -> None:
        self.job = job
        self.checkpoint = outcome.checkpoint
        self.rounds: tuple[Record, ...] = outcome.records
        self.stopped = outcome.stopped
        self.reason = reason
        self._best = best

    @property
    def params(self) -> Tensors:
        """All tensors of the last model; private ones as they were before any worker trained them."""
        return whole_params(self.job, self.checkpoint)

    @property
    def model(self) -> Any:
        """The last model as its library knows it: an nn.Module, an estimator."""
        return self.job.model.finish(self.params)

    @property
    def best_params(self) -> Tensors:
        """All tensors of the best model; NotFound if `Evaluation(best=...)` did not ask for one."""
        if self._best is None:
            raise NotFound("no best model was kept: name its metric, as in Evaluation(data=..., best='loss').")
        return whole_params(self.job, self._best)

    @property
    def best_model(self) -> Any:
        """The best model as its library knows it."""
        return self.job.model.finish(self.best_params)

    def save(self, path: str | os.PathLike[str], best: bool = False) -> None:
        """Writes the last (or best) model's tensors as a safetensors file, whole or not at all."""
        params = self.best_params if best else self.params
        target = Path(path)
        beside = target.with_name(target.name + ".partial")
        beside.write_bytes(dump(params, {"job": self.job.name, "round": str(self.checkpoint.round)}))
        beside.replace(target)

    def to_json(self) -> str:
        """All records as a JSON text."""
        return json.dumps({"run": self.checkpoint.run, "rounds": [record.to_json() for record in self.rounds]})

    def __repr__(self) -> str:
        last = self.rounds[-1] if self.rounds else None
        metrics = {} if last is None else {**last.train, **last.workers, **last.central}
        shown = ", ".join(f"{name}={number:.4g}" for name, number in metrics.items())
        return f"History({len(self.rounds)} rounds{'; ' + shown if shown else ''})"


def whole_params(job: Job, checkpoint: Checkpoint) -> Tensors:
    """A checkpoint's model with its frozen and private tensors, which are not in it."""
    start = job.model.init(job.seed)
    return job.model.named(start, Role.FROZEN, Role.PRIVATE).updated(checkpoint.state.part("model"))
