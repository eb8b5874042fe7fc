"""What one visit reads, `Columns`, and what it measures on the way, `Tally`."""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from hansa.adapters.measure import Measures
from hansa.adapters.torch_device import on_device
from hansa.adapters.torch_loss import Task, correct
from hansa.core.errors import DataError
from hansa.core.model import Metrics

ColumnShapes = tuple[tuple[tuple[int, ...], Any], ...]  # of columns: shape and dtype


class Columns:
    """The data's columns as batches of tensors: read row by row on the CPU, held whole on an accelerator.

    Args:
      data: anything with columns by name.
      inputs, targets: names of columns.
      dtype: of all float columns.
      device: where batches are wanted.

    `targets` is the number of columns of that kind, which come last.
    """

    def __init__(self, data: Any, inputs: Sequence[str], targets: Sequence[str], dtype: Any, device: str) -> None:
        self.columns: list[Any] = [_column(data, name, dtype) for name in (*inputs, *targets)]
        self.targets = len(targets)
        self._inputs, self.device, self._last = len(inputs), device, self.columns[-1]
        if device != "cpu":
            self.columns = [on_device(column, device) for column in self.columns]

    def shapes(self, size: int) -> ColumnShapes:
        """Shape and dtype of each column, inputs first, of a batch of so many rows."""
        return tuple(((size, *column.shape[1:]), _torch_dtype(column.dtype)) for column in self.columns)

    def stranger(self, classes: int, ignored: int) -> int | None:
        """A label of the last column that is none of so many classes; None if there is none, or it has no labels."""
        labels = self._last
        if labels.dtype.kind not in "iu":
            return None
        wrong = labels[((labels < 0) | (labels >= classes)) & (labels != ignored)]
        return int(wrong.flat[0]) if wrong.size else None

    def take(self, rows: np.ndarray) -> tuple[list[Any], Any]:
        """Inputs, and the target or the tuple of targets, at these rows."""
        taken = self.gather(rows)
        inputs, targets = taken[: self._inputs], taken[self._inputs :]
        return inputs, targets[0] if len(targets) == 1 else tuple(targets)

    def gather(self, rows: np.ndarray) -> list[Any]:
        """All columns at these rows, inputs first; `rows` may have any shape."""
        if self.device == "cpu":
            return [torch.from_numpy(column.take(rows, 0)) for column in self.columns]
        at = torch.from_numpy(rows).to(self.device)
        return [column[at] for column in self.columns]


class Tally:
    """Metrics as they come by: tensors are kept and added up at the end, so that a step waits for nothing.

    Args:
      task: of the loss.
      measures: the user's own.
    """

    def __init__(self, task: Task, measures: Measures) -> None:
        self._task, self._measures = task, measures
        self._sums: dict[str, list[Any]] = {}
        self._sizes: list[int] = []
        self.steps = 0

    def add(self, losses: Any, outputs: Any, targets: Any, size: int) -> None:
        """Takes the losses of some batches of `size`, and the outputs and targets of all their examples."""
        self.steps += len(losses)
        self._sizes += [size] * len(losses)
        self._sums.setdefault("loss", []).append(losses)
        with torch.no_grad():
            right = correct(self._task, outputs, targets) if outputs is not None else None
            if right is not None:
                self._sums.setdefault("accuracy", []).append(right.reshape(1))
            for name, (measure, _) in self._measures.items():
                self._sums.setdefault(name, []).append(measure(outputs, targets).sum().reshape(1))

    def metrics(self) -> Metrics:
        """Each as (numerator, examples seen)."""
        seen = float(sum(self._sizes))
        found = {}
        for name, values in self._sums.items():
            each = torch.cat(values).double().cpu().numpy()
            found[name] = (float(each @ np.asarray(self._sizes) if name == "loss" else each.sum()), seen)
        return found


def _column(data: Any, name: str, dtype: Any) -> np.ndarray:
    """One column: floats in the model's dtype, integers that PyTorch can index with."""
    column = np.asarray(data[name])
    if column.dtype.kind == "f":
        return column.astype(str(dtype).removeprefix("torch."), copy=False)
    if column.dtype.kind in "iu" and column.dtype != np.uint8:
        return column.astype(np.int64, copy=False)
    if column.dtype.kind not in "ub":
        raise DataError(f"column '{name}' is {column.dtype}: PyTorch takes numbers; encode it when the data is loaded.")
    return column


@functools.cache
def _torch_dtype(dtype: Any) -> Any:
    return torch.from_numpy(np.empty(0, dtype)).dtype if isinstance(dtype, np.dtype) else dtype
