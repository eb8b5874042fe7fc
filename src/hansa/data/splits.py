"""Named parts of data, divided and put together again.

    divide(data, train=0.8, valid=0.1, test=0.1)     one data set in parts, by shares or by numbers of rows
    merge(parts["train"], parts["valid"])            several data sets in one
    regroup(parts, development=("train", "valid"))   parts under new names, each merged from old ones

No row is in two parts.
"""

from collections.abc import Mapping

import numpy as np

from hansa.core.data import Dataset
from hansa.core.errors import DataError
from hansa.data.partitioners.size import apportion


def divide(dataset: Dataset, *, seed: int | None = 0, **parts: float) -> dict[str, Dataset]:
    """Cuts one data set into named parts.

    Args:
      dataset: to divide.
      seed: of the random order; None keeps the rows in their order: the first part is the beginning.
      **parts: shares, all below or equal to 1 (the rest of the rows is left out if they sum to less), or whole numbers
        of rows.

    Returns:
      The parts by name; no row is in two of them; within a part rows keep their order.

    Raises:
      DataError: no parts, one that is not above 0, or more than there is.

    >>> {name: len(part) for name, part in divide(Dataset(x=np.arange(10)), train=0.75, test=0.25).items()}
    {'train': 8, 'test': 2}
    """
    sizes = np.array(list(parts.values()), dtype=float)
    if not len(sizes) or not np.all(np.isfinite(sizes)) or not np.all(sizes > 0):
        raise DataError(f"parts {parts} must be shares or numbers of rows above 0, as in train=0.8, test=0.2.")
    if all(isinstance(size, (int, np.integer)) for size in parts.values()):
        counts = sizes.astype(np.int64)
    elif sizes.sum() <= 1 + 1e-9:
        left_out = max(0.0, 1 - sizes.sum())
        counts = apportion(len(dataset), np.append(sizes, left_out if left_out > 1e-9 else 0.0))[:-1]
    else:
        raise DataError(f"parts {parts} sum to {sizes.sum():g}: give shares that sum to at most 1, or whole numbers.")
    if counts.sum() > len(dataset):
        raise DataError(f"parts {parts} need {counts.sum()} rows, but there are {len(dataset)}: lower them.")
    rows = np.arange(len(dataset)) if seed is None else np.random.default_rng(seed).permutation(len(dataset))
    ends = np.cumsum(counts)
    return {
        name: dataset.take(np.sort(rows[end - count : end]))
        for name, end, count in zip(parts, ends.tolist(), counts.tolist(), strict=True)
    }


def merge(*datasets: Dataset) -> Dataset:
    """The rows of several data sets, one after the other.

    Raises:
      DataError: none is given, or their columns differ in name, kind or shape.

    >>> merge(Dataset(x=[1, 2]), Dataset(x=[3]))["x"].tolist()
    [1, 2, 3]
    """
    if not datasets:
        raise DataError("there is nothing to merge: give at least one data set.")
    first = datasets[0]
    for number, dataset in enumerate(datasets[1:], start=2):
        for name in {*first, *dataset}:
            if name not in first or name not in dataset:
                raise DataError(f"data set {number} and the first differ in column '{name}': give all the same.")
            one, other = first[name], dataset[name]
            if one.dtype.kind != other.dtype.kind or one.shape[1:] != other.shape[1:]:
                raise DataError(
                    f"column '{name}' of data set {number} is {other.dtype}{list(other.shape[1:])}, of the first "
                    f"{one.dtype}{list(one.shape[1:])}: make them alike."
                )
    return Dataset(**{name: np.concatenate([dataset[name] for dataset in datasets]) for name in first})


def regroup(parts: Mapping[str, Dataset], **groups: tuple[str, ...]) -> dict[str, Dataset]:
    """Parts under new names, each merged from the old ones that are named; what is not named is left out.

    >>> parts = divide(Dataset(x=np.arange(10)), train=6, valid=2, test=2)
    >>> {name: len(part) for name, part in regroup(parts, development=("train", "valid"), test=("test",)).items()}
    {'development': 8, 'test': 2}
    """
    missing = [name for names in groups.values() for name in names if name not in parts]
    if missing:
        raise DataError(f"there is no part '{missing[0]}': there are {sorted(parts)}.")
    return {group: merge(*(parts[name] for name in names)) for group, names in groups.items()}
