"""Metrics and losses that adapters share, written with operators that NumPy's and JAX's arrays both have."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from hansa.core.errors import ConfigError

Measures = Mapping[str, tuple[Callable[[Any, Any], Any], float]]


def bounds(measures: Measures, classifies: bool) -> dict[str, float]:
    """Names and bounds of all metrics: loss, accuracy where classes are predicted, and the user's own.

    >>> bounds({"error": (lambda outputs, targets: abs(outputs - targets), 10.0)}, classifies=False)
    {'loss': inf, 'error': 10.0}
    """
    metrics = {"loss": math.inf} | ({"accuracy": 1.0} if classifies else {})
    for name, measure in measures.items():
        if name in metrics or not (isinstance(measure, tuple | list) and len(measure) == 2 and callable(measure[0])):
            raise ConfigError(f"measures['{name}']: give a name of its own and a pair (callable, largest value).")
        metrics[name] = float(measure[1])
    return metrics
