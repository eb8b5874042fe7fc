"""A target: ends a run once a metric is good enough."""

from collections.abc import Sequence

from hansa.core.job import Job
from hansa.core.train import Record
from hansa.runtimes.observe.metric import check_metric, metric_of, more_is_better
from hansa.runtimes.observe.observer import Observer, StopTraining


class Target(Observer):
    """Stops after the first round in which a metric reaches a value.

    Args:
      metric: `accuracy`, or `workers.accuracy` where both the server and the workers measure it.
      value: at which the run ends.
      maximise: whether more is better; None asks the job's evaluation, then the metric's name.

    Guarantees:
      A run that was killed and resumed stops at the same round. A stopped run that is resumed with the same observer
      stops at once; with a farther target, or without one, it goes on to the bits it would have had.

    Raises:
      ConfigError: the job does not measure the metric.
    """

    def __init__(self, metric: str, value: float, *, maximise: bool | None = None) -> None:
        self.metric, self.value, self.maximise = metric, value, maximise
        self._job: Job | None = None

    def begin(self, job: Job, run: str, records: Sequence[Record]) -> None:
        """Looks at the rounds before, as if it had been there."""
        self._job = job
        for record in records:
            self(record)

    def __call__(self, record: Record) -> None:
        """Raises StopTraining when the target is reached."""
        assert self._job is not None
        check_metric(self._job, self.metric, record)
        more = more_is_better(self.metric, self._job) if self.maximise is None else self.maximise
        value = metric_of(record, self.metric)
        if value is not None and (value >= self.value if more else value <= self.value):  # false for NaN
            raise StopTraining(f"{self.metric} reached {value:.6g} in round {record.round + 1}, target {self.value:g}")
