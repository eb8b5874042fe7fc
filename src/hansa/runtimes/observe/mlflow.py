"""MLflow: one of its runs for each of ours, with the job's fields as parameters and each round's row as metrics."""

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

from hansa.core.errors import MissingExtra
from hansa.core.job import Job
from hansa.core.train import Record
from hansa.runtimes.observe.observer import Observer
from hansa.runtimes.observe.resident import peak_memory_bytes
from hansa.runtimes.observe.table import row_of

TAG = "hansa.run"  # carries our run's id, by which a resumed run is found again
LONGEST = 500  # what MLflow takes as the value of a parameter
MOST = 100  # parameters that it takes at once


class MLflow(Observer):
    """Logs to an MLflow tracking server, database or folder.

    Args:
      experiment: its name; made if missing.
      uri: where it tracks, as `sqlite:///mlflow.db`, `file:./mlruns` or `http://host:5000`; None for MLflow's default.
      name: of the MLflow run; the job's name if None.

    Guarantees:
      A resumed run goes on in its MLflow run, and no round is logged twice.

    Raises:
      MissingExtra: mlflow is not installed.
    """

    def __init__(self, experiment: str = "hansa", *, uri: str | None = None, name: str | None = None) -> None:
        self.experiment, self.uri, self.name = experiment, uri, name
        self._library = _library()
        self._client: Any = None
        self._run = ""
        self._logged = 0

    def begin(self, job: Job, run: str, records: Sequence[Record]) -> None:
        """Finds the run by its tag, or makes it and logs its parameters; then the rounds it lacks."""
        self._client = client = self._library.MlflowClient(tracking_uri=self.uri)
        known = client.get_experiment_by_name(self.experiment)
        experiment = known.experiment_id if known is not None else client.create_experiment(self.experiment)
        found = client.search_runs([experiment], filter_string=f"tags.`{TAG}` = '{run}'", max_results=1)
        if found:
            self._run = found[0].info.run_id
            self._logged = max((m.step for m in client.get_metric_history(self._run, "counted")), default=0)
            client.update_run(self._run, status="RUNNING")
        else:
            made = client.create_run(experiment, tags={TAG: run}, run_name=self.name or job.name)
            self._run, self._logged = made.info.run_id, 0
            params = [self._library.entities.Param(key, text[:LONGEST]) for key, text in settings_of(job).items()]
            for first in range(0, len(params), MOST):
                client.log_batch(self._run, params=params[first : first + MOST])
        for record in records:
            self._log(record, None)

    def __call__(self, record: Record) -> None:
        """Logs one round."""
        self._log(record, peak_memory_bytes())

    def end(self, reason: str) -> None:
        """Closes the MLflow run, with the reason if it ended before its time."""
        if self._client is not None:
            if reason:
                self._client.set_tag(self._run, "hansa.reason", reason[:LONGEST])
            self._client.set_terminated(self._run, "KILLED" if reason else "FINISHED")

    def _log(self, record: Record, memory: int | None) -> None:
        row = row_of(record, memory)
        step = row.pop("round")
        if step <= self._logged:
            return
        now = int(time.time() * 1000)
        values = {name: float(value) for name, value in row.items() if value is not None}
        metrics = [self._library.entities.Metric(name, v, now, step) for name, v in values.items() if not math.isnan(v)]
        self._client.log_batch(self._run, metrics=metrics)
        self._logged = step


def settings_of(thing: Any, path: str = "") -> dict[str, str]:
    """A job's fields under the names that `--set` knows, as text.

    >>> from hansa.core.model import LocalWork
    >>> settings_of(LocalWork(lr=0.1, epochs=1), "work")["work.lr"]
    '0.1'
    """
    parts: list[tuple[Any, Any]]
    if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        parts = [(field.name, getattr(thing, field.name)) for field in dataclasses.fields(thing)]
        found = {path: type(thing).__name__} if path else {}
    elif isinstance(thing, list | tuple | Mapping):
        parts = list(thing.items()) if isinstance(thing, Mapping) else list(enumerate(thing))
        found = {}
    elif thing is None or isinstance(thing, bool | int | float | str):
        return {path: str(thing)}
    else:
        return {path: getattr(thing, "__qualname__", type(thing).__name__)}
    for name, part in parts:
        found |= settings_of(part, f"{path}.{name}".strip("."))
    return found


def _library() -> Any:
    try:
        import mlflow
        import mlflow.entities
    except ImportError:
        raise MissingExtra("MLflow", "mlflow", "tracking") from None
    return mlflow
