"""A progress bar in the terminal: rounds, the time left, and the latest metrics."""

from collections.abc import Sequence
from typing import Any

from hansa.core.errors import MissingExtra
from hansa.core.job import Job
from hansa.core.train import Record
from hansa.runtimes.observe.metric import GROUPS
from hansa.runtimes.observe.observer import Observer
from hansa.runtimes.observe.resident import peak_memory_bytes


class Progress(Observer):
    """Shows one line that is redrawn after each round, and stays when the run is over.

    Args:
      console: a rich Console; None for stderr. Where it is no terminal, only the last state is printed.

    Raises:
      MissingExtra: rich is not installed.
    """

    def __init__(self, console: Any = None) -> None:
        try:
            import rich.console
            import rich.progress
        except ImportError:
            raise MissingExtra("Progress", "rich", "cli") from None
        self._rich = rich.progress
        self._console = console if console is not None else rich.console.Console(stderr=True)
        self._progress: Any = None

    def begin(self, job: Job, run: str, records: Sequence[Record]) -> None:
        """Draws the bar; the time left is reckoned from the rounds of this call."""
        rich = self._rich
        self._progress = rich.Progress(
            rich.TextColumn("{task.description}"), rich.BarColumn(), rich.MofNCompleteColumn(),
            rich.TimeRemainingColumn(compact=True), rich.TextColumn("left  {task.fields[metrics]}", markup=False),
            console=self._console,
        )  # fmt: skip
        name = job.name.replace("[", "\\[")
        self._task = self._progress.add_task(name, total=job.rounds, completed=len(records), metrics="")
        self._progress.start()

    def __call__(self, record: Record) -> None:
        """Moves the bar on."""
        if self._progress is not None:
            self._progress.update(self._task, completed=record.round + 1, metrics=self._metrics(record))

    def end(self, reason: str) -> None:
        """Leaves the bar as it is, and the reason below it."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
            if reason:
                self._console.print(f"stopped: {reason}", markup=False)

    @staticmethod
    def _metrics(record: Record) -> str:
        for group in GROUPS:
            if metrics := getattr(record, group):
                shown = [f"{name} {value:.4g}" for name, value in sorted(metrics.items())]
                return "  ".join([*shown, f"{peak_memory_bytes() / 1e6:.0f} MB"])
        return ""
