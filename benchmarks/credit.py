"""Rows of the shape of the UCI credit data, which no benchmark has to download."""

import numpy as np


def credit(
    rows: int = 30_000, columns: int = 23, seed: int = 0, together: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Columns and labels.

    Args:
      rows, columns: how many.
      seed: of all of it.
      together: how much the product of a column of each owner weighs, which no linear model learns.
    """
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, columns)) @ (np.eye(columns) + 0.1 * rng.normal(size=(columns, columns)))
    chance = 1 / (1 + np.exp(1 - together * x[:, 0] * x[:, 20] - x @ rng.normal(size=columns) * 0.3))
    return x, (rng.random(rows) < chance).astype(np.float64)
