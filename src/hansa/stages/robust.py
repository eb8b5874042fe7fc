"""Reducers that a few wrong contributions cannot carry away; they see each contribution.

    median   coordinate by coordinate, over the cohort; its breakdown point is 1/2

They give the robust mean times the count, which is what a sum would have been: the mean stage divides as ever.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hansa.core.pipeline import Arrived, Reducer, Seat, Sensitivity, Server, Setting, Signal, fault
from hansa.core.tensors import Tensors


@dataclass(frozen=True)
class Median(Reducer):
    """The coordinate-wise median of the contributions. Metrics are added up as `Sum` does: they steer nothing.

    Fewer than half of the clients, whatever they send, cannot push a coordinate beyond the range of the others'.
    Messages are kept until the round is over (on disk, where the runtime spools them) and read block by block: the
    memory is that of one block times the cohort, or of the decoded contributions where a stage before it cannot be
    added (`TopK`).

    Source: Yin et al. 2018, Byzantine-Robust Distributed Learning, https://arxiv.org/abs/1803.01498
    """

    def bind(self, signal: Signal, setting: Setting) -> None:
        """Refuses weights, which a median has no use for, and what is divided by another number than the count."""
        faults = []
        if "weight" in signal.parts:
            faults.append(
                "Median counts every client the same and takes no weights: put UniformMean() in the pipeline."
            )
        if setting.sampling.kind == "poisson":
            faults.append(
                "Median under Poisson sampling would be divided by the expected cohort: use cohort=n instead."
            )
        if setting.algorithm.discounts:
            faults.append(
                f"Median cannot discount stale updates, as {type(setting.algorithm).__name__} asks: use Sum()."
            )
        if faults:
            raise fault(*faults)

    def settle(self, signal: Signal, setting: Setting) -> Sensitivity:
        """Unbounded: one client may move a coordinate's median from end to end, which counts for the whole cohort."""
        return dict.fromkeys(signal.parts, math.inf)

    def server(self, cohort: Sequence[str], seat: Seat | None = None) -> Server:
        """Keeps what arrives; takes the medians when the leg is closed."""
        messages: list[Tensors] = []
        while isinstance(event := (yield None), Arrived):
            messages.append(event.message)
        total: dict[str, np.ndarray] = {}
        for name, (shape, dtype) in (messages[0].shapes if messages else {}).items():
            exact = name.startswith("metric/")
            kind = np.dtype(dtype)
            total[name] = np.empty(shape, kind if exact or kind.kind == "f" else np.float64)
            flat = total[name].reshape(-1)
            for blocks in zip(*(message.blocks(name) for message in messages), strict=True):
                stacked = np.stack([block for _, block in blocks])
                flat[blocks[0][0]] = stacked.sum(axis=0) if exact else np.median(stacked, axis=0) * len(messages)
        return Tensors(total)
