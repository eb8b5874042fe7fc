"""What was asked of whom: a line of JSON when a run begins and one when it ends, and a limit read from them.

A set of made-up keys is a question about each of them. The cap bounds one run; the limit here bounds the runs with the
same owners in a window of time. A run counts from when it begins, also if it fails; one that is resumed counts once.
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hansa.core.errors import ConfigError, HansaError, PolicyError, require
from hansa.crypto.private_file import locked
from hansa.vertical.psi.terms import Session

_DAY_S = 86400.0


@dataclass(frozen=True)
class Audit:
    """A file of an owner's runs, and how many of them it allows.

    Args:
      path: appended to, never rewritten; made readable by its owner alone.
      runs: with the same owners, within `days`.
      days: the window.
      clock: seconds since 1970.
    """

    path: Path
    runs: int = 10
    days: float = 1.0
    clock: Callable[[], float] = field(default=time.time, repr=False, compare=False)

    def __post_init__(self) -> None:
        require(self.runs >= 1, f"runs={self.runs}: allow at least one.")
        require(self.days > 0, f"days={self.days}: a window is longer than nothing.")

    def begin(self, session: Session) -> None:
        """Records a run, before anything of the set is sent.

        Raises:
          PolicyError: the limit is reached.
          ConfigError: the file holds something else than runs.
        """
        terms, run = session.terms, _id(session)
        with locked(self.path.with_name(f".{self.path.name}.lock")):
            since = self.clock() - self.days * _DAY_S
            recent = {
                line["run"]
                for line in self._lines()
                if line["event"] == "began" and line["time"] >= since and set(line["owners"]) == set(terms.owners)
            }
            if len(recent - {run}) >= self.runs:
                raise PolicyError(
                    f"{len(recent)} intersections with {', '.join(session.others)} began within {self.days:g} days, "
                    f"and {self.runs} are allowed: wait, or raise the limit; see {self.path}."
                )
            self._append(
                session, "began", protocol=terms.protocol, owners=terms.owners, learns=terms.learns, cap=terms.cap,
                sizes=dict(session.sizes),
            )  # fmt: skip

    def end(self, session: Session, **result: Any) -> None:
        """Records how a run ended."""
        self._append(session, "ended", **result)

    def _append(self, session: Session, event: str, **facts: Any) -> None:
        line = {"time": self.clock(), "run": _id(session), "event": event, "me": session.mesh.me, **facts}
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with open(descriptor, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _lines(self) -> list[Mapping[str, Any]]:
        if not self.path.exists():
            return []
        try:
            lines = [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]
            assert all({"run", "event", "time"} <= line.keys() for line in lines)
        except (ValueError, AssertionError, AttributeError):
            raise ConfigError(f"{self.path} is no audit file of intersections: move it away.") from None
        return lines


@contextmanager
def recorded(audit: Audit | None, session: Session) -> Iterator[dict[str, Any]]:
    """Records one run from its beginning to its end, also one that fails; the body fills in how it ended.

    Raises:
      PolicyError, ConfigError: as `Audit.begin`, before the body runs.
    """
    result: dict[str, Any] = {}
    if audit is None:
        yield result
        return
    audit.begin(session)
    try:
        yield result
    except HansaError as error:
        audit.end(session, error=type(error).__name__)
        raise
    audit.end(session, **result)


def _id(session: Session) -> str:
    return session.salt.hex()[:16]
