"""What one party brings to a fit: its columns, standardised, and the labels if it has them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hansa.core.errors import DataError, require
from hansa.vertical.table import AlignedTable

if TYPE_CHECKING:
    from hansa.vertical.glm.model import Glm

_LARGEST_COUNT = 1000.0  # of a Poisson label: exp is right up to e⁵ times the mean it begins with


@dataclass(frozen=True)
class Part:
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
        cls, glm: "Glm", me: str, table: AlignedTable | None, label: str | None, columns: Sequence[str] | None
    ) -> "Part":
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


def _labels(glm: "Glm", name: str, column: NDArray[Any]) -> tuple[Any, Any, Any, tuple[Any, ...]]:
    """Labels of shape (rows, outputs), weights of rows, the intercepts to begin with, and the classes."""
    number = column.dtype == np.float64
    if any(each is None for each in column) or (number and not np.isfinite(column).all()):
        raise DataError(f"the label '{name}' has missing values: leave those rows out before the alignment.")
    if glm.family in ("linear", "poisson"):
        return *_numbers(glm.family, name, column), ()
    classes, places = np.unique(column, return_inverse=True)
    wanted = "two classes" if glm.family == "logistic" else "at least two classes"
    if len(classes) < 2 or (glm.family == "logistic" and len(classes) > 2):
        raise DataError(f"the label '{name}' has {len(classes)} classes, and a {glm.family} model needs {wanted}.")
    named, share, weight = tuple(classes.tolist()), np.bincount(places) / len(places), None
    if glm.class_weight is not None:
        each = _class_weights(glm.class_weight, named, share)
        weight = each[places][:, None]
        share = share * each / (share * each).sum()
    if glm.family == "logistic":
        return places[:, None].astype(np.float64), weight, np.log(share[1:] / share[:1]), named
    return np.eye(len(classes))[places], weight, np.log(share) - np.log(share).mean(), named


def _numbers(family: str, name: str, column: NDArray[Any]) -> tuple[Any, None, Any]:
    """Labels that are numbers, no weights, and the intercept of their mean."""
    if column.dtype != np.float64:
        raise DataError(f"the label '{name}' is text, and a {family} model predicts numbers.")
    if family == "poisson" and ((column < 0).any() or column.max() > _LARGEST_COUNT):
        raise DataError(f"the label '{name}' has values outside 0 to {_LARGEST_COUNT:g}: those are no counts here.")
    mean = column.mean()
    return column[:, None], None, np.array([mean if family == "linear" else math.log(max(mean, 1e-3))])


def _class_weights(
    given: str | Mapping[Any, float], classes: tuple[Any, ...], share: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The weight of each class, of which there are these shares."""
    if isinstance(given, str):
        require(given == "balanced", f"class_weight='{given}': the only word is 'balanced'.")
        return 1 / (len(classes) * share)
    known = {str(key): value for key, value in given.items()}
    missing = [str(one) for one in classes if str(one) not in known]
    require(not missing, f"class_weight names no weight for {missing}: it names {sorted(known)}.")
    return np.array([known[str(one)] for one in classes], np.float64)
