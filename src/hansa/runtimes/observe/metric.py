"""A record's metrics by name: `accuracy`, or `workers.accuracy` where several have it."""

from collections.abc import Sequence

from hansa.core.errors import ConfigError
from hansa.core.job import Job
from hansa.core.train import Record

GROUPS = ("central", "workers", "train")  # who is asked first where a plain name is in several


def metric_of(record: Record, name: str) -> float | None:
    """One metric of a record; None if this round has not measured it.

    >>> metric_of(Record(round=0, attempt=0, asked=1, counted=1, central={"loss": 0.5}, train={"loss": 0.7}), "loss")
    0.5
    """
    group, _, rest = name.partition(".")
    if group in GROUPS and rest:
        found = getattr(record, group).get(rest)
        return None if found is None else float(found)
    for group in GROUPS:
        if name in (metrics := getattr(record, group)):
            return float(metrics[name])
    return None


def more_is_better(name: str, job: Job) -> bool:
    """Whether more of a metric is better: as the job's evaluation says, else by its name."""
    if name.rpartition(".")[2] == job.evaluation.best:
        return job.evaluation.maximise
    return improves_upwards(name)


def improves_upwards(name: str) -> bool:
    """Whether more of a metric is better, by its name alone."""
    return not any(word in name.lower() for word in ("loss", "error", "perplexity", "mse", "mae"))


def evaluates(job: Job) -> bool:
    """Whether a job measures its model at all, beside the metrics of training."""
    how = job.evaluation
    return how.data is not None or how.central is not None or how.workers != 0


def check_metric(job: Job, name: str, record: Record) -> None:
    """ConfigError if a round that was measured lacks the metric."""
    measured = bool(record.central or record.workers) or (not evaluates(job) and bool(record.train))
    if measured and metric_of(record, name) is None:
        raise ConfigError(f"metric '{name}' is not measured: this job has {', '.join(names_of([record]))}.")


def names_of(records: Sequence[Record]) -> list[str]:
    """All metrics that records have, with their group: `central.loss`."""
    return sorted({f"{group}.{name}" for record in records for group in GROUPS for name in getattr(record, group)})
