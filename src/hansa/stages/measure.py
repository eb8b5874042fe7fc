"""The length of contributions as a metric: how long updates are, before a clip, behind it, wherever it stands.

    encode   metric "‹name› norm" ← (min(‖x‖, most), 1)        decode   nothing: the mean over clients is in the record

It travels with the metrics, so that it is averaged like them, and under a secure sum nobody sees a single one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from hansa.core.errors import ConfigError
from hansa.core.pipeline import Setting, Signal, Stage, Step, fault
from hansa.core.tensors import Tensors
from hansa.privacy.checks import positive
from hansa.stages.clip import client_norms


@dataclass(frozen=True)
class Measure(Stage):
    """Sends the L2 norm of the value along: `[Measure("raw"), Clip(1.0), Measure("clipped"), UniformMean()]`.

    Args:
      name: of the metric, which is "‹name› norm" in the records.
      most: what a longer one is counted as, so that the sum has a bound; above 0.

    Guarantees:
      Contributions stay as they are. It is refused behind noise, where it would be released exactly; noise behind it
      takes it out of the message with the other metrics.
    """

    name: str = "update"
    most: float = field(default=1e6, kw_only=True)

    def __post_init__(self) -> None:
        if not self.name or "/" in self.name:
            raise ConfigError(f"name={self.name!r}: a word without a slash, as in 'raw'.")
        positive(most=self.most)

    def bind(self, signal: Signal, setting: Setting) -> Step:
        """Refuses a value that is rounded, a name that is taken, and a place behind noise."""
        if "value" not in signal.parts or signal.parts["value"].domain != "real":
            raise fault("Measure finds no numbers to measure: put it before what rounds, and not into `down`.")
        metric = signal.parts.get("metric")
        if metric is None:
            raise fault("Measure finds no metrics to go with, as behind noise, which leaves them out: put it first.")
        if f"{self.name} norm" in metric.shapes:
            raise fault(f"Measure('{self.name}') stands twice: give one of them another name.")
        shapes = {**metric.shapes, f"{self.name} norm": ((2,), "float64")}
        linf = max(metric.linf, self.most, 1.0)
        wider = replace(metric, shapes=shapes, linf=linf, l2=linf * math.sqrt(2 * len(shapes)))
        return _Measured(self, signal.with_(metric=wider))


class _Measured(Step):
    def __init__(self, stage: Measure, out: Signal) -> None:
        super().__init__(out)
        self._stage = stage

    def encode(
        self, x: Tensors, state: Tensors, memory: Tensors, rngs: Sequence[np.random.Generator]
    ) -> tuple[Tensors, Tensors]:
        norms = np.minimum(client_norms(x.only([name for name in x if name.startswith("value/")])), self._stage.most)
        pairs = np.stack([norms, np.ones(len(norms))], axis=1)
        return x.updated({f"metric/{self._stage.name} norm": pairs}), memory
