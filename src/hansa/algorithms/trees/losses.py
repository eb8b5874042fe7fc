"""What boosting descends: a loss's start, gradients and hessians by the margin, and its value.

    logistic   g = p − y,  h = p (1 − p),   p = 1 / (1 + e^−margin)
    squared    g = margin − y,  h = 1
    softmax    gₖ = pₖ − [y = k],  hₖ = pₖ (1 − pₖ)

Gradients become integers before they are summed: sums are then exact, in whatever order and under whatever encryption
they are made, and the trees of all learners are the same.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hansa.core.errors import DataError

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]

VALUE_BITS = 26
"""Of the largest gradient or hessian of a tree as an integer; the others are on its scale."""


class Loss(ABC):
    """One loss; margins have shape (rows, outputs)."""

    outputs = 1

    def __init__(self, labels: Floats) -> None:
        self.labels = labels

    @abstractmethod
    def base(self) -> Floats:
        """The margin to start from, shape (outputs,)."""

    @abstractmethod
    def gradients(self, margins: Floats) -> tuple[Floats, Floats]:
        """First and second derivatives of each row's loss, shape (rows, outputs)."""

    @abstractmethod
    def mean(self, margins: Floats, rows: NDArray[np.bool_]) -> float:
        """The mean loss of some rows."""


class Logistic(Loss):
    """Cross-entropy of two classes, 0 and 1."""

    def __init__(self, labels: Floats) -> None:
        super().__init__(labels)
        if not np.isin(labels, (0, 1)).all():
            raise DataError(f"labels such as {_first_other(labels, (0, 1))}: the logistic loss takes 0 and 1.")

    def base(self) -> Floats:
        """The log-odds of all labels."""
        share = np.clip(self.labels.mean(), 1e-6, 1 - 1e-6)
        return np.array([np.log(share / (1 - share))])

    def gradients(self, margins: Floats) -> tuple[Floats, Floats]:
        """Of p − y and p (1 − p)."""
        p = _sigmoid(margins)
        return p - self.labels[:, None], p * (1 - p)

    def mean(self, margins: Floats, rows: NDArray[np.bool_]) -> float:
        """Nats a row."""
        margin = margins[rows, 0]
        return float(np.mean(np.logaddexp(0, margin) - margin * self.labels[rows]))


class Squared(Loss):
    """Half the squared error."""

    def base(self) -> Floats:
        """The labels' mean."""
        return np.array([self.labels.mean()])

    def gradients(self, margins: Floats) -> tuple[Floats, Floats]:
        """Of margin − y and 1."""
        return margins - self.labels[:, None], np.ones_like(margins)

    def mean(self, margins: Floats, rows: NDArray[np.bool_]) -> float:
        """Half the mean squared error."""
        return float(0.5 * np.mean((margins[rows, 0] - self.labels[rows]) ** 2))


class Softmax(Loss):
    """Cross-entropy of classes 0 … K − 1."""

    def __init__(self, labels: Floats) -> None:
        super().__init__(labels)
        classes = labels.astype(np.int64)
        if (classes != labels).any() or classes.min() < 0 or len(np.unique(classes)) != classes.max() + 1:
            raise DataError("labels of the softmax loss are classes 0 … K − 1, each of which occurs.")
        self.outputs = int(classes.max()) + 1
        self.classes = classes

    def base(self) -> Floats:
        """Zeros: all classes alike."""
        return np.zeros(self.outputs)

    def gradients(self, margins: Floats) -> tuple[Floats, Floats]:
        """pₖ − [y = k] and pₖ (1 − pₖ)."""
        p = _softmax(margins)
        hessian = p * (1 - p)
        p[np.arange(len(p)), self.classes] -= 1
        return p, hessian

    def mean(self, margins: Floats, rows: NDArray[np.bool_]) -> float:
        """Nats a row."""
        p = _softmax(margins[rows])
        return float(-np.mean(np.log(np.maximum(p[np.arange(len(p)), self.classes[rows]], 1e-300))))


LOSS: Mapping[str, type[Loss]] = {"logistic": Logistic, "squared": Squared, "softmax": Softmax}


def loss_of(name: str, labels: Any) -> Loss:
    """The loss over these labels.

    Raises:
      DataError: labels that it does not take.
    """
    values = np.asarray(labels)
    if values.dtype.kind not in "biuf" or values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise DataError(f"labels of type {values.dtype}, shape {values.shape}: give one finite number for each row.")
    return LOSS[name](values.astype(np.float64))


def predictions(loss: str, margins: Floats) -> Floats:
    """What margins mean: the probability of 1, a number, or the classes' probabilities (rows, classes)."""
    means: dict[str, Callable[[], Floats]] = {
        "logistic": lambda: _sigmoid(margins[:, 0]), "squared": lambda: margins[:, 0],
        "softmax": lambda: _softmax(margins),
    }  # fmt: skip
    return means[loss]()


@dataclass(frozen=True)
class Gradients:
    """One tree's gradients as integers, of the rows that it learns from.

    Args:
      rows: their indices, ascending.
      g, h: integers of at most 2^VALUE_BITS; h is at least 1, so that a sum of 0 means no row.
      unit: what 1 stands for.
    """

    rows: NDArray[np.int64]
    g: Ints
    h: Ints
    unit: float

    @classmethod
    def of(cls, rows: NDArray[np.int64], g: Floats, h: Floats) -> "Gradients":
        """Rounds real ones, on the scale of the largest."""
        largest = max(float(np.abs(g).max()), float(h.max()), 1e-30)
        exponent = VALUE_BITS - int(np.ceil(np.log2(largest)))
        return cls(
            rows, np.rint(np.ldexp(g, exponent)).astype(np.int64),
            np.maximum(1, np.rint(np.ldexp(h, exponent))).astype(np.int64), float(2.0**-exponent),
        )  # fmt: skip


def _sigmoid(margin: Floats) -> Floats:
    return 1 / (1 + np.exp(-np.clip(margin, -500, 500)))


def _softmax(margins: Floats) -> Floats:
    powers: Floats = np.exp(margins - margins.max(axis=1, keepdims=True))
    powers /= powers.sum(axis=1, keepdims=True)
    return powers


def _first_other(labels: Floats, known: tuple[int, ...]) -> float:
    return float(labels[~np.isin(labels, known)][0])
