"""A runtime that does what a test says: scripted answers, drop-outs, deadlines and crashes.

    session = FakeSession(job, clients, lambda task: "silent" if task.client == "b" else "reply")

What can become of a task, as one word:

    reply     it is performed and answered          twice     answered two times
    fail      its work raises                       gone      its lease runs out
    silent    nothing, ever                         late      answered once a later round is out
    nan       answered, with NaN in it              stop      the operator ends the run
    crash     the server is killed
    foreign   answered for another attempt, then as it should be
    slow:2    answered once a round two later is out, or when nothing else is left

When nothing is left to happen, the deadline of what was published last does.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from hansa.core.checkpoint import Checkpoint
from hansa.core.errors import HansaError
from hansa.core.job import Job
from hansa.core.ledger import Entry, Event
from hansa.core.runtime import Deadline, Failure, Happening, Memories, Reply, Session, Stop, Task, Traffic
from hansa.core.tensors import EMPTY, Tensors
from hansa.core.worker import perform
from hansa.runtimes.memory import MemoryMemories, MemoryStore

Behave = Callable[[Task], str]


class FakeSession(Session):
    """Performs tasks of one-leg reducers as its script says.

    Args:
      job: what to perform.
      clients: data by id; change it between rounds and the population changes.
      behave: the word for each task.
      order: shuffles what can happen next, if given; otherwise in the order of publication.
      memories: of the workers; they outlive a crash of the server.
      limit: happenings after which a test that would hang fails instead.
    """

    def __init__(
        self,
        job: Job,
        clients: Mapping[str, Any],
        behave: Behave = lambda task: "reply",
        order: random.Random | None = None,
        memories: Memories | None = None,
        limit: int = 100_000,
    ) -> None:
        self.job, self.clients, self.behave, self.order, self.limit = job, clients, behave, order, limit
        self.memories: Memories = memories if memories is not None else MemoryMemories()
        self.published: list[Task] = []
        self.retired: list[Task] = []
        self.downs: list[Tensors] = []
        self.messages: list[Tensors] = []
        self._waiting: list[tuple[Task, str, Tensors, Tensors]] = []
        self._ready: list[Happening] = []
        self._deadline: Deadline | None = None

    def population(self) -> Sequence[str]:
        """The clients there are now."""
        return sorted(self.clients)

    def publish(
        self, tasks: Sequence[Task], down: Tensors, frozen: Tensors = EMPTY, deadline_s: float | None = None
    ) -> None:
        """Takes the tasks into the script."""
        self.published += tasks
        self.downs.append(down)
        self._waiting += [(task, self.behave(task), down, frozen) for task in tasks]
        self._deadline = Deadline(tasks[0].kind, tasks[0].round, tasks[0].attempt)

    def next(self) -> Happening:
        """The next thing of the script."""
        self.limit -= 1
        assert self.limit > 0, "the loop waits for ever"
        if not self._ready:
            able = [entry for entry in self._waiting if self._able(entry[0], entry[1])]
            late = [entry for entry in self._waiting if entry[1].startswith("slow")]
            if able or (late and self._deadline is None):
                chosen = self.order.choice(able or late) if self.order else (able or late)[0]
                self._waiting = [entry for entry in self._waiting if entry is not chosen]
                self._ready += self._happens(*chosen)
            else:
                assert self._deadline is not None, "nothing is left to happen, and the loop waits"
                self._ready.append(self._deadline)
                self._deadline = None
        return self._ready.pop(0)

    def send(self, task: Task, leg: int, message: Tensors) -> None:
        """Refuses: reducers of one leg answer nothing."""
        raise AssertionError("this session carries one leg")

    def retire(self, tasks: Sequence[Task]) -> None:
        """Notes them; late answers still come, as they do from real workers."""
        self.retired += tasks

    def traffic(self) -> Traffic:
        """Nothing, always."""
        return Traffic()

    def _able(self, task: Task, word: str) -> bool:
        newest = max((other.round for other in self.published if other.kind == "train"), default=0)
        wait = 1 if word == "late" else int(word.partition(":")[2] or 0)
        return word != "silent" and (wait == 0 or newest >= task.round + wait)

    def _happens(self, task: Task, word: str, down: Tensors, frozen: Tensors) -> list[Happening]:
        if word == "stop":
            return [Stop("the test wants it")]
        if word == "crash":
            raise Crash
        if word in ("fail", "gone"):
            return [Failure(task, f"{word} by script", gone=word == "gone", error=ValueError("scripted"))]
        try:
            memory = self.memories.load(task.client, task.since)
            work = perform(self.job, task, down, self.clients[task.client], memory, frozen)
            message = next(work)
            try:
                work.send(None)
            except StopIteration as end:
                if task.kind == "train":
                    self.memories.save(task.client, task.memory, end.value)
        except HansaError as error:
            return [Failure(task, str(error), error=error)]
        if word == "nan":
            message = message.map(lambda a: a * np.nan)
        self.messages.append(message)
        reply = Reply(task, 0, message)
        if word == "foreign":
            return [Reply(replace(task, attempt=task.attempt + 7), 0, message), reply]
        return [reply, reply] if word == "twice" else [reply]


class Crash(BaseException):
    """The server was killed."""


class CrashingStore(MemoryStore):
    """A store that kills the server at its nth writing call, before or after what the call does is durable.

    Args:
      at: which call, from 1; 0 for none.
      after: whether it is durable when the server dies.
    """

    def __init__(self, at: int = 0, after: bool = False) -> None:
        super().__init__()
        self.at, self.after, self.calls = at, after, 0
        self.log: list[str] = []

    def charge(self, round: int, attempt: int, survivors: Sequence[str], events: Sequence[Event]) -> None:
        """Charges, or dies."""
        self._call("charge", lambda: super(CrashingStore, self).charge(round, attempt, survivors, events))

    def charges(self) -> Sequence[Entry]:
        """What was charged."""
        return super().charges()

    def commit(self, checkpoint: Checkpoint, record: Mapping[str, Any], best: bool) -> None:
        """Commits, or dies. What is kept went through bytes, as it would on a disk."""
        saved = Checkpoint.load(checkpoint.dump())
        self._call("commit", lambda: super(CrashingStore, self).commit(saved, record, best))

    def _call(self, name: str, act: Callable[[], None]) -> None:
        self.calls += 1
        self.log.append(name)
        if self.calls == self.at and not self.after:
            raise Crash
        act()
        if self.calls == self.at:
            raise Crash
