"""A model small enough to train by hand: a line through points, in float64.

loss = mean (w·x + b − y)² / 2        dw = mean (w·x + b − y) x        db = mean (w·x + b − y)
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from hansa.core.data import Dataset
from hansa.core.model import Fit, LocalWork, Metrics, Model, Role
from hansa.core.tensors import Tensors


@dataclass(frozen=True)
class Line(Model):
    """y = w·x + b, trained by plain gradient descent with `LocalWork`'s pull, correction and mask.

    Args:
      inputs: length of w.
      given: roles of tensors that are not trainable, as in `(("b", "private"),)`; a buffer becomes the mean of y.
      most_steps: where fit stops, whatever was asked: a straggler's partial work; None for never.
    """

    inputs: int = 1
    given: tuple[tuple[str, str], ...] = ()
    most_steps: int | None = None

    def init(self, seed: int) -> Tensors:
        """Zeros, whatever the seed."""
        return Tensors({"w": np.zeros(self.inputs), "b": np.zeros(1)})

    def roles(self) -> Mapping[str, Role]:
        """As given."""
        return {name: Role(role) for name, role in self.given}

    def fit(self, params: Tensors, data: Any, work: LocalWork, rng: np.random.Generator) -> Fit:
        """Steps as `work.batches` gives them; the metric is the loss before each step."""
        now = {name: np.array(params[name]) for name in params}
        batches, total, seen = work.batches(len(data), rng)[: self.most_steps], 0.0, 0
        for rows in batches:
            x, y = data["x"][rows].reshape(len(rows), -1), data["y"][rows]
            errors = x @ now["w"] + now["b"] - y
            total, seen = total + float((errors**2).sum() / 2), seen + len(rows)
            gradients = {"w": errors @ x / len(rows), "b": np.array([errors.mean()])}
            for name, gradient in gradients.items():
                role = self.role(name)
                if role == Role.BUFFER:
                    now[name] = np.array([y.mean()])
                elif role != Role.FROZEN:
                    gradient = gradient + work.proximal * (now[name] - params[name])
                    gradient = gradient + work.correction.get(name, 0.0)
                    now[name] = now[name] - work.lr * gradient * work.mask.get(name, 1.0)
        return Fit(Tensors(now), len(batches), {"loss": (total, seen)})

    def evaluate(self, params: Tensors, data: Any) -> Metrics:
        """The loss."""
        errors = data["x"].reshape(len(data), -1) @ params["w"] + params["b"] - data["y"]
        return {"loss": (float((errors**2).sum() / 2), float(len(data)))}


def points(seed: int, examples: int, slope: float = 2.0, bias: float = 1.0) -> Dataset:
    """Points near a line: y = slope · x + bias + noise of deviation 0.1."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=examples)
    return Dataset(x=x, y=slope * x + bias + 0.1 * rng.normal(size=examples))
