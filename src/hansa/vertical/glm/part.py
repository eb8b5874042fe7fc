"""What one party brings to a fit: its columns, standardised, and the labels if it has them."""

import math
from collections.abc import Sequence
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
