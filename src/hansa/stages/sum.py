"""The plain sum: the server sees each contribution and adds it as it comes.

The sum is taken in task order, block by block, so that it needs the memory of one model whatever the cohort, and gives
the same bits whatever the order of arrival.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hansa.core.pipeline import Arrived, Reducer, Server
from hansa.core.tensors import Tensors


@dataclass(frozen=True)
class Sum(Reducer):
    """Adds contributions in the clear. It hides nothing from the server: see `SecureSum` for that."""

    def server(self, cohort: Sequence[str]) -> Server:
        """Adds what arrives; stale contributions are scaled by their discount."""
        total: dict[str, np.ndarray] = {}
        while isinstance(event := (yield None), Arrived):
            for name, (shape, dtype) in event.message.shapes.items():
                first = name not in total
                if first:
                    total[name] = np.empty(shape, dtype)
                flat = total[name].reshape(-1)
                for where, block in event.message.blocks(name):
                    if event.discount != 1.0:
                        block = block * np.asarray(event.discount, block.dtype)
                    if first:
                        flat[where] = block
                    else:
                        flat[where] += block
        return Tensors(total)
