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

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from hansa.core.errors import ConfigError, DataError, require
from hansa.mpc.files import place_of
from hansa.mpc.secret import SecretTensor
from hansa.mpc.session import Session
from hansa.vertical.learns import Learns
from hansa.vertical.table import AlignedTable

FAMILIES = ("linear", "logistic", "poisson", "multinomial")
SOLVERS = ("sgd", "newton")
_HALVINGS = 24  # of the error of an inverse: enough for eigenvalues down to 2^−18 of the trace
_LARGEST_COUNT = 1000.0  # of a Poisson label: exp is right up to e⁵ times the mean it begins with


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
        kind = "multinomial models have none here: fit one logistic model for each class."
        require(not (self.errors and self.family == "multinomial"), f"errors=True: {kind}")
        weighted = self.class_weight is None or self.family in ("logistic", "multinomial")
        require(weighted, f"class_weight={self.class_weight!r}: a {self.family} model has no classes.")

    def fit(
        self, session: Session, table: AlignedTable | None, label: str | None = None, *,
        columns: Sequence[str] | None = None, others: Mapping[str, SecretTensor] | None = None,
        keep: Path | None = None, observe: Callable[[int], None] | None = None,
    ) -> "FittedGlm":  # fmt: skip
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
        """
        mine = _Part.of(self, session.me, table, label, columns)
        given = dict(others or {})
        meeting = _Meeting.hold(session, mine).joined_by(given)
        x = torch.cat([given[name] if name in given else session.share(mine.x, name) for name in meeting.owners], 1)
        y = session.share(mine.y, meeting.label_owner)
        weight = session.share(mine.weight, meeting.label_owner) if meeting.weighted else None
        kept = _Kept.of(session, keep, f"{self!r} {meeting!r}")
        done, state = kept.newest() if kept is not None else (0, None)
        if state is None:
            state = session.share(_placed(mine.start, meeting), meeting.label_owner)
        steps = _newton if self.solver == "newton" else _sgd
        for epoch, state in enumerate(steps(self, meeting, x, y, weight, state, done), start=done):  # noqa: B020
            if kept is not None:
                kept.save(epoch + 1, state)
            if observe is not None:
                observe(epoch)
        beta = state[:, : meeting.outputs]
        variance = _variance(self, meeting, x, y, weight, beta) if self.errors else None
        if kept is not None:
            kept.forget()
        return _opened(self, session, meeting, mine, beta, variance, given)


# -- what each party brings


@dataclass(frozen=True)
class _Part:
    """One party's columns, standardised, and the labels if it has them."""

    names: tuple[str, ...] = ()
    rows: int = 0
    alignment: bytes = bytes(32)
    x: NDArray[np.float64] | None = None
    mean: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    scale: NDArray[np.float64] = field(default_factory=lambda: np.ones(0))
    y: NDArray[np.float64] | None = None
    weight: NDArray[np.float64] | None = None
    start: NDArray[np.float64] | None = None
    classes: tuple[Any, ...] = ()

    @classmethod
    def of(
        cls, glm: Glm, me: str, table: AlignedTable | None, label: str | None, columns: Sequence[str] | None
    ) -> "_Part":
        if table is None:
            require(label is None, f"label='{label}' without a table: give the table that has it.")
            return cls()
        require(table.owner == me, f"the table is of '{table.owner}', and this party is '{me}': give its own table.")
        names = tuple(name for name in (columns or table.names) if name != label)
        x = table.matrix(names)
        holes = [name for name, column in zip(names, x.T, strict=True) if not np.isfinite(column).all()]
        if holes:
            raise DataError(f"the columns {holes} of '{me}' have missing or infinite values: fill them, or drop them.")
        mean, scale = x.mean(0), x.std(0)
        flat = [name for name, deviation in zip(names, scale, strict=True) if deviation == 0]
        if flat:
            raise DataError(f"the columns {flat} of '{me}' are constant: drop them.")
        x = (x - mean) / scale
        y = weight = start = None
        classes: tuple[Any, ...] = ()
        if label is not None:
            y, weight, start, classes = _labels(glm, label, table[label])
            x = np.column_stack([np.ones(len(table)), x])
        return cls(names, len(table), table.alignment, x, mean, scale, y, weight, start, classes)


def _labels(glm: Glm, name: str, column: NDArray[Any]) -> tuple[Any, Any, Any, tuple[Any, ...]]:
    """Labels of shape (rows, outputs), weights of rows, the intercepts to begin with, and the classes."""
    number = column.dtype == np.float64
    if any(each is None for each in column) or (number and not np.isfinite(column).all()):
        raise DataError(f"the label '{name}' has missing values: leave those rows out before the alignment.")
    if glm.family in ("linear", "poisson"):
        if not number:
            raise DataError(f"the label '{name}' is text, and a {glm.family} model predicts numbers.")
        if glm.family == "poisson" and ((column < 0).any() or column.max() > _LARGEST_COUNT):
            raise DataError(f"the label '{name}' has values outside 0 to {_LARGEST_COUNT:g}: those are no counts here.")
        mean = column.mean()
        start = mean if glm.family == "linear" else math.log(max(mean, 1e-3))
        return column[:, None], None, np.array([start]), ()
    classes, places = np.unique(column, return_inverse=True)
    wanted = "two classes" if glm.family == "logistic" else "at least two classes"
    if len(classes) < 2 or (glm.family == "logistic" and len(classes) > 2):
        raise DataError(f"the label '{name}' has {len(classes)} classes, and a {glm.family} model needs {wanted}.")
    weight = None
    share = np.bincount(places) / len(places)
    if glm.class_weight is not None:
        if isinstance(glm.class_weight, str):
            require(glm.class_weight == "balanced", f"class_weight='{glm.class_weight}': the only word is 'balanced'.")
            each = 1 / (len(classes) * share)
        else:
            known = {str(key): value for key, value in glm.class_weight.items()}
            missing = [str(one) for one in classes.tolist() if str(one) not in known]
            require(not missing, f"class_weight names no weight for {missing}: it names {sorted(known)}.")
            each = np.array([known[str(one)] for one in classes.tolist()], np.float64)
        weight = each[places][:, None]
        share = share * each / (share * each).sum()
    if glm.family == "logistic":
        return places[:, None].astype(np.float64), weight, np.log(share[1:] / share[:1]), tuple(classes.tolist())
    return np.eye(len(classes))[places], weight, np.log(share) - np.log(share).mean(), tuple(classes.tolist())


@dataclass(frozen=True)
class _Meeting:
    """What all parties know of each other: sizes alone."""

    owners: tuple[str, ...]
    counts: tuple[int, ...]  # of columns in X, the label owner's column of ones included
    label_owner: str
    outputs: int
    rows: int
    alignment: str
    weighted: bool

    @classmethod
    def hold(cls, session: Session, mine: _Part) -> "_Meeting":
        width = 0 if mine.x is None else mine.x.shape[1]
        outputs = 0 if mine.y is None else mine.y.shape[1]
        head = [width, mine.rows, mine.alignment.hex(), outputs, mine.weight is not None]
        heads = _told(session, "columns", head)
        owners = tuple(name for name in session.names if heads[name][0])
        labelled = [name for name in owners if heads[name][3]]
        if len(labelled) != 1:
            fault = f"the owners {labelled} all gave a label" if labelled else "nobody gave a label"
            raise ConfigError(f"{fault}: exactly one owner names its column of labels.")
        first = heads[labelled[0]]
        apart = [name for name in owners if heads[name][1:3] != first[1:3]]
        if apart:
            raise ConfigError(f"the tables of {[labelled[0], *apart]} are of different alignments: align them again.")
        counts = tuple(heads[name][0] for name in owners)
        if sum(counts) < 2:
            raise ConfigError("nobody gave a column besides the label: there is nothing to learn from.")
        return cls(owners, counts, labelled[0], first[3], first[1], first[2], first[4])

    def joined_by(self, others: Mapping[str, torch.Tensor]) -> "_Meeting":
        """With the columns of owners that do not compute after those of the parties."""
        for name, columns in others.items():
            fits = columns.ndim == 2 and columns.shape[0] == self.rows
            require(fits, f"others['{name}'] has shape {tuple(columns.shape)}: the tables have {self.rows} rows.")
            require(name not in self.owners, f"others['{name}']: '{name}' gives a table of its own.")
        counts = (*self.counts, *(columns.shape[1] for columns in others.values()))
        return replace(self, owners=(*self.owners, *others), counts=counts)

    def place(self, owner: str) -> slice:
        """Of an owner's coefficients."""
        begin = sum(self.counts[: self.owners.index(owner)])
        return slice(begin, begin + self.counts[self.owners.index(owner)])

    @property
    def width(self) -> int:
        """Of X."""
        return sum(self.counts)

    @property
    def penalised(self) -> torch.Tensor:
        """1 for each coefficient but the intercept, of shape (width, 1)."""
        mask = torch.ones(self.width, 1)
        mask[self.place(self.label_owner).start] = 0
        return mask


def _told(session: Session, what: str, mine: Any) -> dict[str, Any]:
    """What every party says, by name, as plain values."""
    told = session.mesh.exchange(what, json.dumps(mine).encode())
    return {name: json.loads(content) for name, content in told.items()}


def _placed(start: NDArray[np.float64] | None, meeting: _Meeting) -> NDArray[np.float64] | None:
    """Coefficients of zero but for the intercepts, at the label owner."""
    if start is None:
        return None
    beta = np.zeros((meeting.width, meeting.outputs))
    beta[meeting.place(meeting.label_owner).start] = start
    return beta


@dataclass(frozen=True)
class _Kept:
    """This party's shares of the coefficients after the last two epochs, so that a lost party costs one at most."""

    session: Session
    folder: Path

    @classmethod
    def of(cls, session: Session, folder: Path | None, run: str) -> "_Kept | None":
        """In a folder of its own for each kind of run; None if no party keeps anything."""
        keeps = _told(session, "keeps", folder is not None)
        if len(set(keeps.values())) > 1:
            without = [name for name in session.names if not keeps[name]]
            raise ConfigError(f"the parties {without} gave no folder to keep shares in: all give one, or none does.")
        return None if folder is None else cls(session, folder / hashlib.sha256(run.encode()).hexdigest()[:16])

    def newest(self) -> tuple[int, torch.Tensor | None]:
        """The epochs that all parties have behind them, and the secret state after them."""
        folders = [path for path in self.folder.glob("epoch-*") if Path(place_of(str(path), self.session.me)).exists()]
        mine = [int(path.name.removeprefix("epoch-")) for path in folders]
        common = set(mine).intersection(*_told(self.session, "epochs", mine).values())
        if not common:
            return 0, None
        state = self.session.load(str(self.folder / f"epoch-{max(common)}"))
        assert isinstance(state, SecretTensor)
        return max(common), state

    def save(self, epochs: int, state: torch.Tensor) -> None:
        """After so many epochs; what is two epochs older goes."""
        self.session.save(state, str(self.folder / f"epoch-{epochs}"))
        shutil.rmtree(self.folder / f"epoch-{epochs - 2}", ignore_errors=True)

    def forget(self) -> None:
        """Nothing is left of a fit that came to its end."""
        shutil.rmtree(self.folder, ignore_errors=True)


# -- solvers


def _mean(glm: Glm, scores: torch.Tensor) -> torch.Tensor:
    """The family's inverse link."""
    if glm.family == "logistic":
        return torch.sigmoid(scores)
    if glm.family == "poisson":
        return torch.exp(scores)
    return torch.softmax(scores, 1) if glm.family == "multinomial" else scores


def _residuals(
    glm: Glm, x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor | None, beta: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Predicted means, and their weighted distance from the labels."""
    mean = _mean(glm, x @ beta)
    distance = mean - y
    return mean, distance if weight is None else distance * weight


def _sgd(
    glm: Glm, meeting: _Meeting, x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor | None, state: torch.Tensor,
    done: int,
) -> Iterator[torch.Tensor]:  # fmt: skip
    """Yields the coefficients after each epoch, and beside them their velocity if there is momentum.

    Rows come in a public random order; less than a batch is left out, another part each time.
    """
    generator = torch.Generator().manual_seed(glm.seed)
    size, outputs = min(glm.batch_size, meeting.rows), meeting.outputs
    beta, velocity = state[:, :outputs], state[:, outputs:] if state.shape[1] > outputs else None
    for epoch in range(glm.epochs):
        order = torch.randperm(meeting.rows, generator=generator)
        if epoch < done:
            continue
        shuffled = [None if each is None else each[order] for each in (x, y, weight)]
        for at in range(0, meeting.rows - size + 1, size):
            some, labels, weights = (None if each is None else each[at : at + size] for each in shuffled)
            assert some is not None
            assert labels is not None
            _, distance = _residuals(glm, some, labels, weights, beta)
            gradient = (some.T @ distance) * (1 / size)
            if glm.l2:
                gradient = gradient + beta * (meeting.penalised * glm.l2)
            if glm.momentum:
                velocity = gradient if velocity is None else velocity * glm.momentum + gradient
                gradient = velocity
            beta = beta - gradient * glm.lr
            if glm.l1:
                beta = _threshold(beta, meeting.penalised * (glm.lr * glm.l1))
        yield beta if velocity is None else torch.cat([beta, velocity], 1)


def _threshold(beta: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
    """The coefficients, nearer to 0 by `by`, and 0 where they were within it."""
    both = torch.relu(torch.stack([beta - by, -beta - by]))
    return both[0] - both[1]


def _newton(
    glm: Glm, meeting: _Meeting, x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor | None, beta: torch.Tensor,
    done: int,
) -> Iterator[torch.Tensor]:  # fmt: skip
    """Yields the coefficients after each whole step; the multinomial's matrix is Böhning's bound, inverted once."""
    fixed = glm.family in ("linear", "multinomial")
    inverse = None
    for _ in range(done, glm.epochs):
        mean, distance = _residuals(glm, x, y, weight, beta)
        gradient = (x.T @ distance) * (1 / meeting.rows)
        if glm.l2:
            gradient = gradient + beta * (meeting.penalised * glm.l2)
        if inverse is None or not fixed:
            inverse = _inverse(_curvature(glm, meeting, x, weight, mean))
        beta = beta - inverse @ gradient
        yield beta


def _curvature(
    glm: Glm, meeting: _Meeting, x: torch.Tensor, weight: torch.Tensor | None, mean: torch.Tensor
) -> torch.Tensor:
    """Newton's matrix XᵀWX/n + l2, of shape (width, width)."""
    w = weight
    if glm.family == "logistic":
        w = mean * (1 - mean) if weight is None else mean * (1 - mean) * weight
    elif glm.family == "poisson":
        w = mean
    elif glm.family == "multinomial":
        w = 0.5 if weight is None else weight * 0.5
    matrix = (x.T @ (x if w is None else x * w)) * (1 / meeting.rows)
    return matrix + torch.diag(meeting.penalised[:, 0] * glm.l2) if glm.l2 else matrix


def _inverse(matrix: torch.Tensor) -> torch.Tensor:
    """The inverse of a positive definite matrix, by products alone.

    V ← V(2 − AV) from V = 1/trace(A) halves the error's exponent at each step once an eigenvalue is found; an
    eigenvalue λ takes log₂(trace/λ) steps to be found. Rounding errors correct themselves.

    Source: Schulz 1933, Iterative Berechnung der reziproken Matrix, https://doi.org/10.1002/zamm.19330130111
    """
    eye = torch.eye(len(matrix))
    trace = (matrix * eye).sum()
    inverse = eye * (1 / trace)
    for _ in range(_HALVINGS):
        inverse = inverse @ (2 * eye - matrix @ inverse)
    return inverse


def _variance(
    glm: Glm, meeting: _Meeting, x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor | None, beta: torch.Tensor
) -> torch.Tensor:
    """The variance of each coefficient, times n: the diagonal of the inverse matrix at the end."""
    mean, distance = _residuals(glm, x, y, weight, beta)
    inverse = _inverse(_curvature(glm, meeting, x, weight, mean))
    diagonal = (inverse * torch.eye(meeting.width)).sum(1, keepdim=True)
    if glm.family == "linear":
        diagonal = diagonal * ((distance * distance).sum() * (1 / (meeting.rows - meeting.width)))
    return diagonal


# -- what comes out


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
      standard_errors: of the coefficients in the columns' own unit; None unless asked for.
      everyone: all coefficients by owner, on standardised columns, where all were opened to all.
      others: the secret coefficients of owners that do not compute; `session.save` writes their shares.
    """

    glm: Glm
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
        """Two-sided, by Wald's test against the normal distribution, of shape (columns,).

        Raises:
          ConfigError: the model was fitted without errors=True.
        """
        if self.standard_errors is None:
            raise ConfigError("the model was fitted without standard errors: fit it with errors=True.")
        z = np.abs(self.raw[:, 0] / self.standard_errors)
        return np.array([math.erfc(each / math.sqrt(2)) for each in z])

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
        owners, rows = _present(session, mine, alignment)
        if not rows:
            return np.zeros((0,)) if session.me in (shown if not isinstance(shown, str) else (shown,)) else None
        total: torch.Tensor | None = None
        for owner in owners:
            shared = session.share(mine, owner)
            total = shared if total is None else total + shared
        absent = sorted(set(self.others) ^ set(others or {}))
        require(not absent, f"others={absent}: give the columns of exactly {sorted(self.others)}, as for the fit.")
        for name, columns in (others or {}).items():
            total = columns @ self.others[name] + total
        assert isinstance(total, SecretTensor)
        mean = session.reveal(_mean(self.glm, total), to=shown)
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
            values = "  ".join(f"{each:12.6g}" for each in self.raw[at])
            more = "" if errors is None else f"{errors[at]:14.6g}{self.p_values[at]:10.3g}"
            lines.append(f"{name[:23]:24}  {values}{more}")
        if self.intercept is not None:
            at_means = "  ".join(f"{each:12.6g}" for each in self.intercept)
            lines.append(f"{'intercept (at means)':24}  {at_means}")
        return "\n".join(lines)


def _present(session: Session, mine: NDArray[np.float64] | None, alignment: bytes) -> tuple[list[str], int]:
    """Who has a part of the score, and of how many rows."""
    head = [None if mine is None else len(mine), alignment.hex()]
    heads = _told(session, "rows", head)
    owners = [name for name in session.names if heads[name][0] is not None]
    if not owners:
        raise ConfigError("no party gave a table: each owner gives its columns of the rows to predict.")
    if any(heads[name] != heads[owners[0]] for name in owners):
        raise ConfigError(f"the tables of {owners} are of different rows: align them, and take the same rows.")
    return owners, int(heads[owners[0]][0])


def _opened(
    glm: Glm, session: Session, meeting: _Meeting, mine: _Part, beta: torch.Tensor, variance: torch.Tensor | None,
    others: Mapping[str, torch.Tensor],
) -> FittedGlm:  # fmt: skip
    """Opens each owner's coefficients, to it alone or to all."""
    own, errors, everyone = np.zeros((0, meeting.outputs)), np.zeros((0, 1)), {}
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
        np.sqrt(np.maximum(errors[:, 0], 0) / max(1, meeting.rows)) / mine.scale if variance is not None else None
    )
    return FittedGlm(
        glm, session.me, meeting.label_owner, mine.names, mine.mean, mine.scale, own, intercept, mine.classes,
        deviation, everyone if glm.open_to == "all" else None,
        {name: beta[meeting.place(name)] for name in others},
    )  # fmt: skip
