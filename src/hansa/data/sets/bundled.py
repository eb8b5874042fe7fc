"""The data sets that scikit-learn carries in its package: real, small, and there without a network."""

from typing import Any

import numpy as np

from hansa.core.data import Dataset
from hansa.core.errors import DataError, MissingExtra


def digits() -> Dataset:
    """1,797 handwritten digits: x float32 (64) = 8 × 8 grey levels in 0..1, y the digit.

    Source: Alpaydin & Kaynak 1998, https://archive.ics.uci.edu/dataset/80
    """
    return _bundled("digits", scale=16.0)


def iris() -> Dataset:
    """150 flowers: x float32 (4), sepal and petal length and width in cm; y the species, 0..2.

    Source: Fisher 1936, https://archive.ics.uci.edu/dataset/53
    """
    return _bundled("iris")


def breast_cancer() -> Dataset:
    """569 tumours: x float32 (30), measures of cell nuclei in their own units (see `standardise`); y 1 where benign.

    Source: Street et al. 1993, https://archive.ics.uci.edu/dataset/17
    """
    return _bundled("breast_cancer")


def wine() -> Dataset:
    """178 wines: x float32 (13), chemical measures in their own units (see `standardise`); y the cultivar, 0..2.

    Source: Forina et al. 1988, https://archive.ics.uci.edu/dataset/109
    """
    return _bundled("wine")


def diabetes() -> Dataset:
    """442 patients: x float32 (10), centred and scaled; y float32, progression of the disease after a year.

    Source: Efron et al. 2004, https://www4.stat.ncsu.edu/~boos/var.select/diabetes.html
    """
    return _bundled("diabetes")


def split(dataset: Dataset, test: float = 0.2, seed: int = 0) -> tuple[Dataset, Dataset]:
    """Two random parts, the first for training and the second for testing, each with at least one example.

    Args:
      dataset: at least two examples.
      test: the share of the second part, above 0 and below 1; the number of its examples is rounded.
      seed: the same seed gives the same parts.

    Raises:
      DataError: a share outside (0, 1), or fewer than two examples.

    >>> tuple(map(len, split(Dataset(x=np.arange(10)), test=0.3)))
    (7, 3)
    """
    if not 0 < test < 1:
        raise DataError(f"test={test!r} must be a share above 0 and below 1.")
    if len(dataset) < 2:
        raise DataError(f"a data set of {len(dataset)} examples cannot be split: give at least two.")
    held_out = min(max(round(test * len(dataset)), 1), len(dataset) - 1)
    order = np.random.default_rng(seed).permutation(len(dataset))
    return dataset.take(np.sort(order[held_out:])), dataset.take(np.sort(order[:held_out]))


def standardise(dataset: Dataset, like: Dataset | None = None, column: str = "x") -> Dataset:
    """Each feature less its mean, divided by its standard deviation; a feature that never varies becomes 0.

    Args:
      dataset: what to standardise.
      like: where means and deviations come from, by default `dataset` itself. For a test set give the training set
        *before* it was standardised: `standardise(test, like=train), standardise(train)`.
      column: the column of features, of shape (examples, ...).

    Returns:
      A new Dataset; `column` is float32, the others are those of `dataset`.

    In a federation the statistics of all parties' data are not at hand: each party standardises by its own, or by
    published ones.
    """
    source = (like or dataset)[column]
    if len(source) == 0:
        raise DataError(f"column '{column}' has no examples to take a mean of: give at least one.")
    mean = source.mean(0, dtype=np.float64)
    deviation = source.std(0, dtype=np.float64)
    features = (dataset[column] - mean) / np.where(deviation > 0, deviation, 1.0)
    return Dataset(**{**dataset.columns, column: features.astype(np.float32)})


def _bundled(name: str, scale: float = 1.0) -> Dataset:
    try:
        from sklearn import datasets
    except ImportError:
        raise MissingExtra(f"hansa.data.{name}", "scikit-learn", "data") from None
    loaded: Any = getattr(datasets, f"load_{name}")()
    target = loaded.target
    kind = np.int64 if target.dtype.kind in "iu" else np.float32
    return Dataset(x=(loaded.data / scale).astype(np.float32), y=target.astype(kind))
