"""Secure federated transfer learning: an owner without labels learns from one with, by the few people whom both know.

    source   x_A, y of many people  ─ encoder A ─► u_A       Φ = mean over its people of y·u_A
    target   x_B                    ─ encoder B ─► u_B       score of a person = Φ·u_B

    loss over the shared people     mean( −y·s/2 + s²/8 )             log(1 + e^(−y·s)) to second order, less ln 2
                                  + γ · mean ‖u_A − u_B‖²             both encoders mean the same
                                  + λ/2 · ‖weights‖²

Everything is computed on shares: features, labels, encoders, Φ, and the gradients of all of them. Only scores are
opened, to whom they are for. The paper opens each party's gradients to it; of those of the alignment loss, which are
multiples of u_A − u_B, the other party's representation can be had, so nothing of the kind is opened here.

Source: Liu, Kang, Xing, Chen and Yang 2018, Secure Federated Transfer Learning, https://arxiv.org/abs/1812.03337
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hansa.core.errors import ConfigError, DataError, TrainingFailed, require
from hansa.mpc.session import Session
from hansa.vertical.learns import Learns, statement
from hansa.vertical.table import AlignedTable


@dataclass(frozen=True, kw_only=True)
class TransferLearning:
    """Who learns from whom, and how; the same at every party of a session.

    Args:
      source: has labels, and other people beside the shared ones.
      target: has other columns.
      hidden: numbers in a representation.
      gamma: γ, of the alignment loss.
      decay: λ, of all weights.
      lr, momentum, steps: of gradient descent over all shared people at once.
      seed: of the encoders' first weights, which all know.
    """

    source: str
    target: str
    hidden: int = 8
    gamma: float = 1.0
    decay: float = 0.1
    lr: float = 0.1
    momentum: float = 0.9
    steps: int = 60
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.source != self.target, f"source and target are both '{self.source}': name two owners.")
        for name in ("hidden", "steps"):
            require(getattr(self, name) >= 1, f"{name}={getattr(self, name)}: at least 1 is needed.")
        for name in ("gamma", "decay"):
            require(getattr(self, name) >= 0, f"{name}={getattr(self, name)}: it is not negative.")
        require(self.lr > 0, f"lr={self.lr}: a learning rate is above 0.")
        require(0 <= self.momentum < 1, f"momentum={self.momentum}: it lies in [0, 1).")

    def learns(self) -> Learns:
        """What each party learns from `fit`; predictions are opened to whom `predict` names."""
        told = ["how many people the source has, how many are shared, and how many columns each owner has"]
        return {self.source: told, self.target: told}

    def encoder(self, columns: int, place: int) -> nn.Module:
        """A fresh encoder: a linear layer and tanh."""
        layer = nn.Linear(columns, self.hidden, bias=False)
        generator = torch.Generator().manual_seed(2 * self.seed + place)
        with torch.no_grad():
            layer.weight.copy_(torch.randn(self.hidden, columns, generator=generator) / columns**0.5)
        return nn.Sequential(layer, nn.Tanh())

    def fit(
        self, session: Session, *, shared: AlignedTable | None = None, others: AlignedTable | None = None,
        labels: NDArray[np.float64] | None = None, announce: Callable[[str], None] = print,
    ) -> "Transferred":  # fmt: skip
        """Trains both encoders on shares; every party of the session calls it.

        Args:
          session: of source, target and whoever else computes.
          shared: the people whom both know, in the common order; at source and target.
          others: the source's other people, of the same columns; at the target they only set its scale.
          labels: 0 and 1, at the source: of the shared people, then of the others.
          announce: is told, before anything is shared, what each party learns.

        Raises:
          ConfigError: the tables are of different alignments, or data is given where there is none.
          DataError: labels are not 0 and 1 or too few, a value is missing, or columns differ.
        """
        require(
            {self.source, self.target} <= set(session.names), f"the session lacks '{self.source}' or '{self.target}'."
        )
        session.agree("settings of transfer learning", repr(self).encode())
        announce(statement("Transfer learning", self.learns()))
        mine, whose = _given(self, session.me, shared, others, labels)
        self._aligned(session, shared)
        x = {name: session.share(mine, owner=name) for name in (self.source, self.target)}
        y = session.share(
            None if labels is None else torch.from_numpy(2.0 * np.asarray(labels) - 1).float(), self.source
        )
        encoders = [self.encoder(x[name].shape[1], at) for at, name in enumerate((self.source, self.target))]
        for encoder in encoders:
            session.share_module(encoder, self.source)
        phi = self.train(x[self.source], x[self.target], y, encoders)
        return Transferred(self, encoders[1], phi, whose)

    def train(
        self, x_source: torch.Tensor, x_target: torch.Tensor, y: torch.Tensor, encoders: list[nn.Module]
    ) -> torch.Tensor:
        """The same on tensors in the clear and on secrets: trains the encoders in place, and gives Φ.

        Args:
          x_source: shape (people, columns), the shared ones first.
          x_target: shape (shared, other columns).
          y: −1 and 1, shape (people,).
          encoders: the source's, the target's.
        """
        parameters = [each for encoder in encoders for each in encoder.parameters()]
        optimiser = torch.optim.SGD(parameters, lr=self.lr, momentum=self.momentum)
        count = x_target.shape[0]
        for _ in range(self.steps):
            optimiser.zero_grad()
            u_source, u_target = encoders[0](x_source), encoders[1](x_target)
            score = u_target @ (y[:, None] * u_source).mean(0)
            label = (score * score * 0.125 - y[:count] * score * 0.5).mean()
            apart = u_source[:count] - u_target
            alignment = (apart * apart).sum(1).mean()
            weights = sum((each * each).sum() for each in parameters)
            (label + alignment * self.gamma + weights * (self.decay / 2)).backward()
            optimiser.step()
        with torch.no_grad():
            phi: torch.Tensor = (y[:, None] * encoders[0](x_source)).mean(0)
        return phi

    def _aligned(self, session: Session, shared: AlignedTable | None) -> None:
        """Source and target compare their alignments."""
        other = {self.source: self.target, self.target: self.source}.get(session.me)
        if other is None or shared is None:
            return
        mine = shared.alignment + len(shared).to_bytes(8, "little")
        session.mesh.send(other, "alignment", [mine])
        if b"".join(session.mesh.recv(other, "alignment")) != mine:
            raise ConfigError(f"the table of '{other}' is of another alignment: align again, and take the same rows.")


@dataclass(frozen=True)
class Transferred:
    """What was learnt, on shares: who has this object has one party's share of it.

    Args:
      plan: what it was learnt by.
      encoder: the target's, secret.
      phi: Φ, secret.
      scale: mean and deviation of each of the target's columns; at the target alone.
    """

    plan: TransferLearning
    encoder: nn.Module = field(repr=False)
    phi: torch.Tensor = field(repr=False)
    scale: "Scale" = field(repr=False)

    def predict(
        self, session: Session, table: AlignedTable | None = None, *, to: str | None = None
    ) -> NDArray[np.float64] | None:
        """The probability of label 1 for people of the target's; every party of the session calls it.

        Args:
          session: the one it was learnt in.
          table: at the target, of the columns it was learnt from.
          to: who learns the probabilities; the target if None.

        Returns:
          Shape (rows,), at that party; None at the others.
        """
        if (session.me == self.plan.target) != (table is not None):
            raise ConfigError(f"table: people to predict are those of '{self.plan.target}', and of nobody else.")
        x = session.share(None if table is None else self.scale.applied(table), owner=self.plan.target)
        with torch.no_grad():
            score = session.reveal(self.encoder(x) @ self.phi, to or self.plan.target)
        if score is None:
            return None
        if not torch.isfinite(score).all() or float(score.abs().max()) > 2 * self.plan.hidden:
            raise TrainingFailed(
                "the encoders have grown beyond what fixed-point numbers hold: lower lr or raise decay."
            )
        found: NDArray[np.float64] = torch.sigmoid(score.double()).numpy()
        return found


@dataclass(frozen=True)
class Scale:
    """Means and deviations of one owner's columns, which stay with it; without columns where there are none."""

    names: tuple[str, ...] = ()
    mean: NDArray[np.float64] = field(default_factory=lambda: np.empty(0), repr=False)
    deviation: NDArray[np.float64] = field(default_factory=lambda: np.empty(0), repr=False)

    @staticmethod
    def of(table: AlignedTable, x: NDArray[np.float64]) -> "Scale":
        """Of all rows; constant columns are left as they are, less their mean."""
        deviation = x.std(0)
        return Scale(table.names, x.mean(0), np.where(deviation > 0, deviation, 1.0))

    def applied(self, table: AlignedTable) -> torch.Tensor:
        """Standardised rows; DataError if columns differ or a value is missing."""
        if table.names != self.names:
            raise DataError(f"the columns are {table.names}, and were {self.names}: give the same in the same order.")
        x = table.matrix()
        if not np.isfinite(x).all():
            raise DataError(f"the table of '{table.owner}' has missing values: fill them in first.")
        return torch.from_numpy((x - self.mean) / self.deviation).float()


def _given(
    plan: TransferLearning, me: str, shared: AlignedTable | None, others: AlignedTable | None, labels: object
) -> tuple[torch.Tensor | None, Scale]:
    """This party's standardised rows to be shared, and its scale."""
    if me not in (plan.source, plan.target):
        fault = f"'{me}' is neither source nor target: it gives no data."
        require(shared is None and others is None and labels is None, fault)
        return None, Scale()
    require(shared is not None, f"shared: '{me}' gives its columns of the shared people.")
    require(
        (labels is not None) == (me == plan.source), f"labels: they are those of '{plan.source}', and of nobody else."
    )
    assert shared is not None
    tables = [shared] if others is None else [shared, others]
    rows = sum(map(len, tables))
    if labels is not None:
        y = np.asarray(labels, np.float64)
        if y.shape != (rows,) or not np.isin(y, (0, 1)).all():
            raise DataError(f"labels are {rows} times 0 or 1, of the shared people and then the others.")
    scale = Scale.of(shared, np.concatenate([each.matrix() for each in tables]))
    kept = tables if me == plan.source else tables[:1]
    return torch.cat([scale.applied(each) for each in kept]), scale
