"""The types of Flower's API."""

from typing import Any

import numpy as np

Weights = list[np.ndarray] | np.ndarray
"""Parameters as Flower's clients give them: a list of arrays, or one flat array."""
Scalar = bool | float | int | str
Config = dict[str, Any]
