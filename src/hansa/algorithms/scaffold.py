"""SCAFFOLD: control variates take out of each worker's steps what its data pulls away from the others'.

    worker i   y ← y − ηₗ (gᵢ(y) − cᵢ + c)   K times from y = x
               cᵢ⁺ = cᵢ − c + (x − y) / (K ηₗ)                                    (option II)
    server     x ← x + η · mean(y − x)        c ← c + |S|/N · mean(cᵢ⁺ − cᵢ)

c is the part `control` of the state and goes down with the model; cᵢ stays in worker i's memory, which moves on only
when its contribution was counted; cᵢ⁺ − cᵢ goes up as the side value `control`.

Source: Karimireddy, Kale, Mohri, Reddi, Stich, Suresh: SCAFFOLD: Stochastic Controlled Averaging for Federated
Learning, 2020, algorithm 1, https://arxiv.org/abs/1910.06378
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from hansa.core.algorithm import Aggregate, Algorithm, Update, moved
from hansa.core.errors import ConfigError, UpdateRejected
from hansa.core.model import Model, Role
from hansa.core.tensors import Tensors


@dataclass(frozen=True)
class Scaffold(Algorithm):
    """SCAFFOLD with option II. It needs `UniformMean()` and synchronous rounds.

    Args:
      work: plain SGD: the control of a worker is its mean gradient, which momentum or Adam would hide.
      server_lr: η.

    Raises:
      ConfigError: `work` is not plain SGD with lr > 0.
    """

    needs_uniform = True
    keeps_memory = True

    def __post_init__(self) -> None:
        work = self.work
        if work.optimiser != "sgd" or work.momentum or not work.lr > 0:
            raise ConfigError(
                f"optimiser='{work.optimiser}', momentum={work.momentum}, lr={work.lr}: SCAFFOLD reads a worker's mean "
                "gradient off its steps, so use optimiser='sgd', momentum=0 and lr > 0."
            )

    def init(self, params: Tensors) -> Tensors:
        """The model, and c = 0."""
        return Tensors.join(model=params, control=_control(params))

    def sides(self, params: Tensors) -> Mapping[str, Tensors]:
        """The change of a worker's control."""
        return {"control": _control(params)}

    def send(self, state: Tensors, group: str = "") -> Tensors:
        """The model x and the control c."""
        return state.only(name for name in state if name.split("/", 1)[0] in ("model", "control"))

    def train(self, model: Model, down: Tensors, memory: Tensors, data: Any, rng: np.random.Generator) -> Update:
        """Corrected local steps, and the worker's next control as memory."""
        ours = down.part("control")
        mine = memory if len(memory) else ours.zeros()
        correction = model.named(ours - mine, Role.TRAINABLE)
        start = down.part("model")
        fit = model.fit(start, data, self.work.with_(correction=correction), rng)
        if fit.steps < 1:
            raise UpdateRejected(f"fit made {fit.steps} steps: SCAFFOLD divides by them, at least 1 is needed.")
        difference = fit.params - start
        # Buffers have no gradient: their controls stay 0.
        change = {name: -ours[name] - difference[name] / (fit.steps * self.work.lr) for name in correction}
        changes = ours.zeros().updated(change)
        return Update(
            difference=difference, weight=float(len(data)), metrics=fit.metrics, side={"control": changes},
            memory=mine + changes,
        )  # fmt: skip

    def apply(self, state: Tensors, aggregate: Aggregate) -> Tensors:
        """The model moves by the mean, c by the share of the population that took part."""
        share = aggregate.count / aggregate.population
        control = state.part("control") + aggregate.side["control"] * share
        return moved(state.updated(Tensors.join(control=control)), aggregate, self.server_lr)


def _control(params: Tensors) -> Tensors:
    return params.only(name for name, (_, dtype) in params.shapes.items() if dtype.startswith("float")).zeros()
