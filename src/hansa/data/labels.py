"""Reading a column as labels: which ones there are, and which one each example has, as a code from 0."""

import numpy as np

from hansa.core.data import Dataset
from hansa.core.errors import DataError


def labels(dataset: Dataset, column: str = "y") -> tuple[np.ndarray, np.ndarray]:
    """The labels of a column, and the place of every example's label among them.

    Args:
      dataset: examples with a column of whole numbers, strings or booleans, one for each example.
      column: its name.

    Returns:
      The distinct labels, sorted, and for every example the index of its label.

    Raises:
      DataError: there is no such column, or it holds vectors, measurements or NaN instead of labels.

    >>> found, codes = labels(Dataset(y=["b", "a", "b"]))
    >>> found.tolist(), codes.tolist()
    (['a', 'b'], [1, 0, 1])
    """
    values = one_value_each(dataset, column)
    if values.dtype.kind == "f" and not np.all(values == np.trunc(values)):
        raise DataError(
            f"column '{column}' holds measurements, not labels: split by IID, QuantitySkew or Sizes, "
            f"or add a column that says in which bin each example falls (numpy.digitize) and name that."
        )
    found, codes = np.unique(values, return_inverse=True)
    return found, codes


def one_value_each(dataset: Dataset, column: str) -> np.ndarray:
    """The column, once it is sure that it holds one value, and no NaN, for each example."""
    values = dataset[column]
    if values.ndim != 1:
        raise DataError(
            f"column '{column}' has shape {list(values.shape)}, but one value for each example is needed: "
            f"for one-hot labels add a column with column.argmax(1)."
        )
    if values.dtype.kind in "fcmM" and np.isnan(values).any():
        missing = int(np.isnan(values).sum())
        raise DataError(f"column '{column}' is missing (NaN) in {missing} examples: drop or fill them first.")
    if values.dtype == object:
        values = values.astype(str)
    return values
