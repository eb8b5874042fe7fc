"""What comes out of a fit: one party's part of the model, and prediction together."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from hansa.core.errors import ConfigError, DataError, require
from hansa.mpc.secret import SecretTensor
from hansa.mpc.session import Session
from hansa.runtimes.mesh.messages import told
from hansa.vertical.glm.meeting import Meeting
from hansa.vertical.glm.part import Part
from hansa.vertical.glm.solvers import mean_of
from hansa.vertical.table import AlignedTable

if TYPE_CHECKING:
    from hansa.vertical.glm.model import Glm


@dataclass(frozen=True)
class FittedGlm:
    """One party's part of a fitted model: the coefficients of its own columns.

    Args:
      glm: what was fitted.
      owner: this party.
      label_owner: who has the labels, and the intercept.
      names: of this party's columns.
      mean: of each, subtracted before the coefficient applies.
      scale: of each, divided by.
      coefficients: of standardised columns, of shape (columns, outputs).
      intercept: of shape (outputs,); at the label owner alone, else None.
      classes: of the label, in the order of the outputs; at the label owner alone.
      standard_errors: of `raw`, of shape (columns,), or (columns, classes) for a multinomial model, whose coefficients
        sum to 0 over the classes; None unless asked for.
      everyone: all coefficients by owner, on standardised columns, where all were opened to all.
      others: the secret coefficients of owners that do not compute; `session.save` writes their shares.
    """

    glm: "Glm"
    owner: str
    label_owner: str
    names: tuple[str, ...]
    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    coefficients: NDArray[np.float64]
    intercept: NDArray[np.float64] | None = None
    classes: tuple[Any, ...] = ()
    standard_errors: NDArray[np.float64] | None = None
    everyone: Mapping[str, NDArray[np.float64]] | None = None
    others: Mapping[str, torch.Tensor] = field(default_factory=dict)

    @property
    def raw(self) -> NDArray[np.float64]:
        """Coefficients in the columns' own units, of shape (columns, outputs)."""
        return self.coefficients / self.scale[:, None]

    @property
    def p_values(self) -> NDArray[np.float64]:
        """Two-sided, by Wald's test against the normal distribution, of the shape of the standard errors.

        Raises:
          ConfigError: the model was fitted without errors=True.
        """
        if self.standard_errors is None:
            raise ConfigError("the model was fitted without standard errors: fit it with errors=True.")
        errors = self.standard_errors
        z = np.abs((self.raw if errors.ndim == 2 else self.raw[:, 0]) / errors)
        return np.array([math.erfc(each / math.sqrt(2)) for each in z.flat]).reshape(z.shape)

    def scores(self, table: AlignedTable) -> NDArray[np.float64]:
        """This party's share of the score of each row, of shape (rows, outputs); never sent as it is."""
        x = (table.matrix(self.names) - self.mean) / self.scale
        if not np.isfinite(x).all():
            raise DataError(f"the table of '{self.owner}' has missing or infinite values in {list(self.names)}.")
        own = x @ self.coefficients
        return own if self.intercept is None else own + self.intercept

    def predict(
        self, session: Session, table: AlignedTable | None, to: str | Sequence[str] | None = None, *,
        others: Mapping[str, SecretTensor] | None = None,
    ) -> NDArray[np.float64] | None:  # fmt: skip
        """The mean of each row, computed on shares of the scores: every party calls it.

        Args:
          session: of `hansa.mpc`, with the owners that fitted the model.
          table: this party's columns of the rows; None at a party without columns.
          to: who learns the answer; the label owner if None.
          others: columns of owners that do not compute, as when it was fitted.

        Returns:
          Of shape (rows,), or (rows, classes) for a multinomial model; None at the others.
        """
        shown = to if to is not None else self.label_owner
        mine = None if table is None or not self._has_part else self.scores(table)
        alignment = b"" if mine is None or table is None else table.alignment
        owners, rows, outputs = _present(session, mine, alignment)
        if not rows:
            return np.zeros((0,)) if session.me in (shown if not isinstance(shown, str) else (shown,)) else None
        total: torch.Tensor | None = None
        for owner in owners:
            shared = session.share(mine, owner, shape=(rows, outputs))
            total = shared if total is None else total + shared
        absent = sorted(set(self.others) ^ set(others or {}))
        require(not absent, f"others={absent}: give the columns of exactly {sorted(self.others)}, as for the fit.")
        for name, columns in (others or {}).items():
            total = columns @ self.others[name] + total
        assert isinstance(total, SecretTensor)
        mean = session.reveal(mean_of(self.glm, total), to=shown)
        if mean is None:
            return None
        array: NDArray[np.float64] = mean.double().numpy()
        return array if self.glm.family == "multinomial" else array[:, 0]

    @property
    def _has_part(self) -> bool:
        return bool(self.names) or self.intercept is not None

    def summary(self) -> str:
        """A table of this party's coefficients."""
        errors = self.standard_errors
        lines = [f"{'':24}{'coefficient':>14}" + (f"{'std. error':>14}{'p':>10}" if errors is not None else "")]
        for at, name in enumerate(self.names):
            if errors is None:
                lines.append(f"{name[:23]:24}  " + "  ".join(f"{each:12.6g}" for each in self.raw[at]))
                continue
            tested = zip(self.raw[at], np.atleast_1d(errors[at]), np.atleast_1d(self.p_values[at]), strict=True)
            for output, (value, error, p) in enumerate(tested):  # of several classes, a line for each
                lines.append(f"{'' if output else name[:23]:24}  {value:12.6g}{error:14.6g}{p:10.3g}")
        if self.intercept is not None:
            at_means = "  ".join(f"{each:12.6g}" for each in self.intercept)
            lines.append(f"{'intercept (at means)':24}  {at_means}")
        return "\n".join(lines)


def _present(session: Session, mine: NDArray[np.float64] | None, alignment: bytes) -> tuple[list[str], int, int]:
    """Who has a part of the score, and of how many rows and outputs."""
    head = [*((None, 0) if mine is None else mine.shape), alignment.hex()]
    heads = told(session.mesh, "rows", head, tuple[int | None, int, str])
    owners = [name for name in session.names if heads[name][0] is not None]
    if not owners:
        raise ConfigError("no party gave a table: each owner gives its columns of the rows to predict.")
    if any(heads[name] != heads[owners[0]] for name in owners):
        raise ConfigError(f"the tables of {owners} are of different rows: align them, and take the same rows.")
    return owners, heads[owners[0]][0], heads[owners[0]][1]


def opened(
    glm: "Glm", session: Session, meeting: Meeting, mine: Part, beta: torch.Tensor, variance: torch.Tensor | None,
    others: Mapping[str, torch.Tensor],
) -> FittedGlm:  # fmt: skip
    """Opens each owner's coefficients, to it alone or to all."""
    own, errors, everyone = np.zeros((0, meeting.outputs)), np.zeros((0, meeting.outputs)), {}
    for owner in meeting.owners:
        if owner in others and glm.open_to == "owner":
            continue
        to = owner if glm.open_to == "owner" else None
        values = session.reveal(beta[meeting.place(owner)], to=to)
        deviations = None if variance is None else session.reveal(variance[meeting.place(owner)], to=to)
        if values is not None:
            everyone[owner] = values.double().numpy()
        if owner == session.me:
            own = values.double().numpy()
            errors = errors if deviations is None else deviations.double().numpy()
    intercept = None
    if session.me == meeting.label_owner:
        intercept, own, errors = own[0], own[1:], errors[1:]
    deviation = (
        np.sqrt(np.maximum(errors, 0) / max(1, meeting.rows)) / mine.scale[:, None] if variance is not None else None
    )
    if deviation is not None and glm.family != "multinomial":
        deviation = deviation[:, 0]
    return FittedGlm(
        glm, session.me, meeting.label_owner, mine.names, mine.mean, mine.scale, own, intercept, mine.classes,
        deviation, everyone if glm.open_to == "all" else None,
        {name: beta[meeting.place(name)] for name in others},
    )  # fmt: skip
