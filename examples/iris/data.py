"""Fisher's 150 irises, split as in the tutorial: 30 for validation at the server, 60 for alice, 60 for bob."""

import numpy as np

import hansa


def cut() -> dict[str, hansa.Dataset]:
    """The three parts, shuffled with NumPy's legacy generator and seed 42, as the tutorial does."""
    flowers = hansa.data.iris()
    order = np.arange(len(flowers))
    np.random.RandomState(42).shuffle(order)
    rows = {"validation": order[:30], "alice": order[30:90], "bob": order[90:]}
    return {name: flowers.take(part) for name, part in rows.items()}


def alice() -> hansa.Dataset:
    """What alice's worker trains on."""
    return cut()["alice"]


def bob() -> hansa.Dataset:
    """What bob's worker trains on."""
    return cut()["bob"]


def validation() -> hansa.Dataset:
    """What the server measures the model with."""
    return cut()["validation"]
