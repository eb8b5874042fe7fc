"""One leg of one round: which tasks are wanted, which answers count, and when it is over.

    phase    event       verdict
    open     reply       count      closes the leg when enough are here
    open     failure     drop       voids it when the quorum cannot be reached any more
    open     deadline    close      with a quorum; void without
    any      again       duplicate  a second answer to one task is counted, never added
    any      foreign     foreign    so is an answer to a task of another round
    closed   reply       late       and one that comes too late
    void     reply       late

A leg closes once. Answers are released in task order, each as soon as all before it answered or dropped out, so that
float sums are the same bits whatever the order of arrival, and can begin before the last answer is here.
"""

from collections.abc import Iterator, Sequence
from enum import StrEnum

from hansa.core.errors import ProtocolError
from hansa.core.runtime import Deadline, Failure, Reply, Task
from hansa.core.tensors import EMPTY


class Phase(StrEnum):
    """Where a leg stands."""

    OPEN = "open"
    CLOSED = "closed"
    VOID = "void"


class Verdict(StrEnum):
    """What became of an event."""

    COUNT = "count"
    DROP = "drop"
    CLOSE = "close"
    LATE = "late"
    DUPLICATE = "duplicate"
    FOREIGN = "foreign"


TABLE: dict[tuple[Phase, str], Verdict] = {
    (Phase.OPEN, "reply"): Verdict.COUNT,
    (Phase.OPEN, "failure"): Verdict.DROP,
    (Phase.OPEN, "deadline"): Verdict.CLOSE,
    (Phase.CLOSED, "reply"): Verdict.LATE,
    (Phase.CLOSED, "failure"): Verdict.LATE,
    (Phase.CLOSED, "deadline"): Verdict.LATE,
    (Phase.VOID, "reply"): Verdict.LATE,
    (Phase.VOID, "failure"): Verdict.LATE,
    (Phase.VOID, "deadline"): Verdict.LATE,
    **{(phase, "again"): Verdict.DUPLICATE for phase in Phase},
    **{(phase, "foreign"): Verdict.FOREIGN for phase in Phase},
}


class Round:
    """The answers to some tasks in one leg.

    Args:
      tasks: wanted, in the order in which their answers are added.
      quorum: answers that suffice when no more can come or the deadline is over.
      enough: answers that close the leg at once; at least the quorum.
      leg: of the reducer's conversation.
    """

    def __init__(self, tasks: Sequence[Task], quorum: int, enough: int, leg: int = 0) -> None:
        self.phase = Phase.OPEN
        self.leg = leg
        self.dropped: dict[str, Failure] = {}  # client -> why
        self.ignored = {Verdict.LATE: 0, Verdict.DUPLICATE: 0, Verdict.FOREIGN: 0}
        self._wanted = {task.key: task for task in tasks}
        self._replies: dict[str, Reply] = {}
        self._gone: set[str] = set()
        self._released: set[str] = set()
        self._order = list(self._wanted)
        self._next = 0
        self._quorum, self._enough = max(1, quorum), max(1, quorum, enough)
        self._settle()

    def on(self, happening: Reply | Failure | Deadline) -> Verdict:
        """Takes one event and says what became of it."""
        event = self._event(happening)
        verdict = TABLE[self.phase, event]
        if verdict in self.ignored:
            self.ignored[verdict] += 1
        elif isinstance(happening, Reply):
            self._replies[happening.task.key] = happening
        elif isinstance(happening, Failure):
            self._drop(happening)
        self._settle(over=verdict == Verdict.CLOSE)
        return verdict

    def reject(self, failure: Failure) -> None:
        """Takes back an answer that turned out unusable when it was released."""
        if failure.task.key not in self._replies:
            raise ProtocolError(f"'{failure.task.client}' has no answer to reject in this round.")
        del self._replies[failure.task.key]
        self._drop(failure)
        if self.phase == Phase.CLOSED and len(self._replies) < self._quorum:
            self.phase = Phase.VOID
        self._settle()

    def ready(self) -> Iterator[Reply]:
        """Answers that can be added now, in task order, each once."""
        while self._next < len(self._order) and self.phase != Phase.VOID:
            key = self._order[self._next]
            if key not in self._replies and key not in self._gone and self.phase == Phase.OPEN:
                return
            self._next += 1
            if key in self._replies:
                reply = self._replies[key]
                # The message is the reducer's from here on: what is kept is who answered.
                self._replies[key] = Reply(reply.task, reply.leg, EMPTY, reply.size_bytes, reply.seconds)
                yield reply

    @property
    def survivors(self) -> tuple[Task, ...]:
        """Tasks whose answers count, in task order."""
        return tuple(self._wanted[key] for key in self._order if key in self._replies)

    @property
    def outstanding(self) -> tuple[Task, ...]:
        """Tasks that have neither answered nor dropped out."""
        return tuple(task for key, task in self._wanted.items() if key not in self._replies and key not in self._gone)

    def why(self) -> str:
        """What became of the tasks that did not answer, in words."""
        failed = [f"{client}: {failure.reason.rstrip('.')}" for client, failure in sorted(self.dropped.items())]
        absent = [f"{task.client}: no answer" for task in self.outstanding]
        return "; ".join([*failed, *absent][:10]) or "nobody was asked"

    def _event(self, happening: Reply | Failure | Deadline) -> str:
        if isinstance(happening, Deadline):
            return "deadline"
        key = happening.task.key
        if key not in self._wanted or self._wanted[key] != happening.task:
            return "foreign"
        if isinstance(happening, Reply) and happening.leg != self.leg:
            return "again" if happening.leg < self.leg else "foreign"
        if key in self._replies or key in self._gone:
            return "again"
        return "reply" if isinstance(happening, Reply) else "failure"

    def _drop(self, failure: Failure) -> None:
        self._gone.add(failure.task.key)
        self.dropped[failure.task.client] = failure

    def _settle(self, over: bool = False) -> None:
        if self.phase != Phase.OPEN:
            return
        here = len(self._replies)
        coming = len(self._wanted) - here - len(self._gone)  # who answered is not gone
        if here >= self._enough or (here >= self._quorum and (over or not coming)):
            self.phase = Phase.CLOSED
        elif over or here + coming < self._quorum:
            self.phase = Phase.VOID
