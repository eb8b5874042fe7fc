"""What a run says: one file of JSON lines for each run, which followers read from where they were."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hansa.runtimes.grpc.wire import REASON

_MOST = 64 << 20  # bytes of one run's log; what comes after is left out, with a line that says so


class RunLog:
    """The log of one run; safe to call from any thread.

    Args:
      path: of its file, appended to.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._size = path.stat().st_size

    def say(self, source: str, text: str) -> None:
        """Adds lines, each cut at a length that no honest one has. A full disk loses them: they are no state."""
        if self._size > _MOST:
            return
        for line in text.splitlines() or [""]:
            entry = (
                json.dumps({"time": round(time.time(), 3), "source": source, "text": line[:REASON]}).encode() + b"\n"
            )
            self._size += len(entry)
            if self._size > _MOST:
                entry = (
                    json.dumps({"time": time.time(), "source": "server", "text": "this log is full"}).encode() + b"\n"
                )
            try:
                os.write(self._file, entry)
            except OSError:
                return

    def read(self, start: int) -> Iterator[dict[str, Any]]:
        """Whole lines from byte `start` on, each with `next`, the byte after it."""
        with open(self._path, "rb") as file:
            file.seek(start)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                start += len(line)
                try:
                    yield {**json.loads(line), "next": start}
                except ValueError:
                    continue  # torn by a full disk

    def close(self) -> None:
        """Closes the file."""
        os.close(self._file)
