"""TensorBoard: each round's metrics, bytes, seconds and memory as scalars, by its own writer, without torch."""

import os
import time
from collections.abc import Sequence
from typing import Any

from hansa.core.errors import MissingExtra
from hansa.core.job import Job
from hansa.core.train import Record
from hansa.runtimes.observe.observer import Observer
from hansa.runtimes.observe.resident import peak_memory_bytes
from hansa.runtimes.observe.table import row_of


class TensorBoard(Observer):
    """Writes event files that `tensorboard --logdir FOLDER` shows, live.

    Args:
      folder: made if missing; one for each run. Tags are `central/loss`, `run/seconds`; steps are rounds from 1.

    Guarantees:
      A resumed run tells TensorBoard to forget the rounds that were never committed.

    Raises:
      MissingExtra: tensorboard is not installed.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = os.fspath(folder)
        self._writer: Any = None
        _library()

    def begin(self, job: Job, run: str, records: Sequence[Record]) -> None:
        """Opens a new event file that takes up after the committed rounds."""
        writer, event, summary = _library()
        self._event, self._summary = event, summary
        self._writer = writer(self.folder)
        start = event.SessionLog(status=event.SessionLog.START)
        step = len(records) + 1  # events from this step on are purged
        self._writer.add_event(event.Event(wall_time=time.time(), step=step, session_log=start))

    def __call__(self, record: Record) -> None:
        """Adds one step, and flushes it."""
        if self._writer is None:
            raise RuntimeError("this observer has not begun: give it to hansa.train(observe=...).")
        row = row_of(record, peak_memory_bytes())
        step = row.pop("round")
        values = [
            self._summary.Summary.Value(
                tag=name.replace(".", "/") if "." in name else f"run/{name}", simple_value=value
            )
            for name, value in row.items()
            if value is not None
        ]
        summary = self._summary.Summary(value=values)
        self._writer.add_event(self._event.Event(wall_time=time.time(), step=step, summary=summary))
        self._writer.flush()

    def end(self, reason: str) -> None:
        """Closes the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _library() -> tuple[Any, Any, Any]:
    try:
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.event_file_writer import EventFileWriter
    except ImportError:
        raise MissingExtra("TensorBoard", "tensorboard", "tracking") from None
    return EventFileWriter, event_pb2, summary_pb2
