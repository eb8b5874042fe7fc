"""Generalised linear models of columns that nobody joins: linear, logistic, Poisson and multinomial.

    owner k       standardises its own columns and shares them              X = [1 | X₁ | X₂ | …]   secret
    label owner   shares labels and weights of rows, its first column is 1  y, w                    secret
    all           gradient Xᵀ(μ(Xβ) − y)/n, Newton's matrix XᵀWX/n, its inverse: on shares          β       secret
    at the end    the coefficients of owner k's columns are opened to owner k alone

Every party calls `Glm.fit` with the session, as every party runs the same program. The session's protocol decides who
else is needed: `two_party` nobody, `aby3` a third party that computes and may own columns or not.

Source: McCullagh & Nelder 1989, Generalized Linear Models, chapter 2; Böhning 1992, Multinomial logistic regression
algorithm, https://doi.org/10.1007/BF00048682 (the fixed bound of the multinomial's matrix).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from hansa.core.errors import require
from hansa.mpc.secret import SecretTensor
from hansa.mpc.session import Session
from hansa.vertical.glm.fitted import FittedGlm, opened
from hansa.vertical.glm.kept import Kept
from hansa.vertical.glm.meeting import Meeting
from hansa.vertical.glm.part import Part
from hansa.vertical.glm.solvers import Problem, newton, sgd, variance
from hansa.vertical.learns import Learns
from hansa.vertical.table import AlignedTable

FAMILIES = ("linear", "logistic", "poisson", "multinomial")
SOLVERS = ("sgd", "newton")


@dataclass(frozen=True, kw_only=True)
class Glm:
    """A generalised linear model and how it is fitted.

    Args:
      family: `linear`, `logistic` (labels of two classes), `poisson` (counts) or `multinomial` (several classes).
      solver: `sgd`, in mini-batches; or `newton`, whole steps, few of them.
      epochs: of SGD, or steps of Newton.
      batch_size: rows of a step of SGD.
      lr: of SGD, on standardised columns.
      momentum: of SGD.
      l1: strength of Σ|β| on standardised columns, by soft thresholds; SGD alone.
      l2: strength of ½Σβ², likewise; neither touches the intercept.
      class_weight: `balanced`, or a weight for each class; the label owner's, and secret.
      errors: whether each owner learns standard errors and p-values of its coefficients.
      open_to: `owner` opens a coefficient to its column's owner alone; `all` opens all to all.
      seed: of the public order of the rows.

    | data | usual settings |
    |---|---|
    | thousands of rows, tens of columns | solver="newton", epochs=6 |
    | 30,000 rows and more | solver="sgd", batch_size=1024, lr=1.0, epochs=3 |
    """

    family: str = "logistic"
    solver: str = "sgd"
    epochs: int = 5
    batch_size: int = 1024
    lr: float = 0.5
    momentum: float = 0.0
    l1: float = 0.0
    l2: float = 0.0
    class_weight: str | Mapping[Any, float] | None = None
    errors: bool = False
    open_to: str = "owner"
    seed: int = 0

    title: ClassVar[str] = "Generalised linear model"
    learns: ClassVar[Learns] = {
        "each owner": (
            "the coefficients of its own columns (of all, with open_to='all'), with errors=True their standard errors",
            "how many rows there are and how many columns each owner has; who has the label, how many classes it has",
        ),
        "a helper": ("the same sizes, and no value, unless it colludes with another computing party (aby3)",),
        "who may see a prediction": (
            "the mean of each row; where there are two owners, it thereby learns the other's share of each score",
        ),
    }

    def __post_init__(self) -> None:
        require(self.family in FAMILIES, f"family='{self.family}': choose one of {', '.join(FAMILIES)}.")
        require(self.solver in SOLVERS, f"solver='{self.solver}': choose one of {', '.join(SOLVERS)}.")
        require(self.open_to in ("owner", "all"), f"open_to='{self.open_to}': choose 'owner' or 'all'.")
        for name in ("epochs", "batch_size"):
            require(getattr(self, name) >= 1, f"{name}={getattr(self, name)}: give at least 1.")
        require(self.lr > 0 and math.isfinite(self.lr), f"lr={self.lr}: give a positive number.")
        require(0 <= self.momentum < 1, f"momentum={self.momentum}: give a number from 0 to below 1.")
        require(self.l1 >= 0 and self.l2 >= 0, f"l1={self.l1}, l2={self.l2}: neither may be negative.")
        newton = "needs a gradient everywhere: take solver='sgd' for l1."
        require(not (self.l1 and self.solver == "newton"), f"l1={self.l1}: Newton's method {newton}")
        weighted = self.class_weight is None or self.family in ("logistic", "multinomial")
        require(weighted, f"class_weight={self.class_weight!r}: a {self.family} model has no classes.")

    def fit(
        self, session: Session, table: AlignedTable | None, label: str | None = None, *,
        columns: Sequence[str] | None = None, others: Mapping[str, SecretTensor] | None = None,
        keep: Path | None = None, observe: Callable[[int], None] | None = None,
    ) -> FittedGlm:  # fmt: skip
        """Fits the model; every party of the session calls it.

        Args:
          session: of `hansa.mpc`.
          table: this party's columns; None at a helper.
          label: its column of labels, at one owner alone.
          columns: those to use; None takes all but the label.
          others: columns of owners that do not compute, by the owner's name, of shape (rows, columns): what
            `session.load` gives of their files of shares. They are standardised, in the common order; who
            shares them answers for that, since no hash of an order comes with them.
          keep: a folder of this party for its shares of the coefficients after each epoch. All parties give one, or
            none does. A fit that lost a party goes on from there when all call it again with the same settings.
          observe: called with the number of each epoch that is done.

        Returns:
          This party's part of the model.

        Raises:
          ConfigError: tables of different alignments; no label, or two; no columns at all.
          DataError: text, missing values, constant columns, or labels that the family does not have.
          ProtocolError: a party says what cannot be read, or shares something else than it said.
        """
        mine = Part.of(self, session.me, table, label, columns)
        given = dict(others or {})
        meeting = Meeting.hold(session, mine).joined_by(given)
        parts = [
            given[name] if name in given else session.share(mine.x, name, shape=(meeting.rows, count))
            for name, count in zip(meeting.owners, meeting.counts, strict=True)
        ]
        x, of_labels = torch.cat(parts, 1), (meeting.rows, meeting.outputs)
        y = session.share(mine.y, meeting.label_owner, shape=of_labels)
        weight = session.share(mine.weight, meeting.label_owner, shape=(meeting.rows, 1)) if meeting.weighted else None
        kept = Kept.of(session, keep, f"{self!r} {meeting!r}")
        done, state = kept.newest() if kept is not None else (0, None)
        if state is None:
            start = meeting.placed(mine.start)
            state = session.share(start, meeting.label_owner, shape=(meeting.width, meeting.outputs))
        problem = Problem(self, meeting, x, y, weight)
        steps = newton if self.solver == "newton" else sgd
        for epoch, state in enumerate(steps(problem, state, done), start=done):  # noqa: B020
            if kept is not None:
                kept.save(epoch + 1, state)
            if observe is not None:
                observe(epoch)
        beta = state[:, : meeting.outputs]
        variances = variance(problem, beta) if self.errors else None
        if kept is not None:
            kept.forget()
        return opened(self, session, meeting, mine, beta, variances, given)
