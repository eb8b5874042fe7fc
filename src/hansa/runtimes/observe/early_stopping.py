"""Early stopping: ends a run whose metric has stopped improving."""

import math
from collections.abc import Sequence

from hansa.core.errors import require
from hansa.core.job import Job
from hansa.core.train import Record
from hansa.runtimes.observe.metric import check_metric, improves_upwards, metric_of, more_is_better
from hansa.runtimes.observe.observer import Observer, StopTraining


class EarlyStopping(Observer):
    """Stops when a metric was measured `patience` times in a row without getting better than its best.

    Args:
      metric: `loss`, or `workers.loss` where both the server and the workers measure it.
      patience: measurements without improvement after which the run ends, ≥ 1. Rounds without an evaluation do not
        count.
      minimum_change: how much better is better, in the unit of the metric, ≥ 0.
      maximise: whether more is better; None asks the job's evaluation, then the metric's name.

    Guarantees:
      A run that was killed and resumed stops at the same round. A stopped run that is resumed with the same observer
      stops at once; with more patience, or without one, it goes on to the bits it would have had.

    Raises:
      ConfigError: the job does not measure the metric, or a value is out of its range.
    """

    def __init__(
        self, metric: str, *, patience: int, minimum_change: float = 0.0, maximise: bool | None = None
    ) -> None:
        require(patience >= 1, f"patience={patience}: at least one measurement without improvement.")
        require(minimum_change >= 0, f"minimum_change={minimum_change}: it may not be negative.")
        self.metric, self.patience, self.minimum_change, self.maximise = metric, patience, minimum_change, maximise
        self._job: Job | None = None
        self._restart(improves_upwards(metric))

    def _restart(self, by_default: bool) -> None:
        self._upwards = by_default if self.maximise is None else self.maximise
        self.best, self.best_round, self.waited = -math.inf if self._upwards else math.inf, -1, 0

    def begin(self, job: Job, run: str, records: Sequence[Record]) -> None:
        """Looks at the rounds before, as if it had been there."""
        self._job = job
        self._restart(more_is_better(self.metric, job))
        for record in records:
            self(record)

    def __call__(self, record: Record) -> None:
        """Counts; raises StopTraining when the patience is over."""
        if self._job is not None:
            check_metric(self._job, self.metric, record)
        value = metric_of(record, self.metric)
        if value is None:
            return
        gain = value - self.best if self._upwards else self.best - value
        if gain > self.minimum_change:  # false for NaN
            self.best, self.best_round, self.waited = value, record.round, 0
            return
        self.waited += 1
        if self.waited >= self.patience:
            best = f"its best was {self.best:.6g} in round {self.best_round + 1}" if self.best_round >= 0 else "never"
            raise StopTraining(
                f"{self.metric} has not improved in {self.waited} evaluations, up to round {record.round + 1} ({best})"
            )
