"""The local runtime: one process, nothing serialised; one client at a time, or many where the model stacks them.

It is the reference: every other runtime gives the same bits for the same job and seed, as long as clients are trained
one at a time; stacked ones agree up to float rounding.
"""

import secrets
import time
from collections import deque
from collections.abc import Generator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from hansa.core.data import Clients
from hansa.core.errors import ConfigError, HansaError, SecretRoundVoid, require
from hansa.core.job import Job
from hansa.core.pipeline import Seat
from hansa.core.runtime import Deadline, Failure, Happening, Memories, Reply, Runtime, Session, Task, Traffic
from hansa.core.tensors import EMPTY, Tensors
from hansa.core.worker import perform
from hansa.crypto.simulated_seat import SimulatedSeat
from hansa.runtimes.history import History
from hansa.runtimes.simulation import simulate
from hansa.runtimes.together import RESULT_BYTES, Early, Together

Conversation = Generator[Tensors, Tensors | None, Tensors]
_NOTHING = Early()


class LocalSession(Session):
    """Performs tasks when the loop asks what happened next, in the order in which they were published.

    Args:
      job: what to perform.
      clients: opened one at a time, when their task's turn has come.
      memories: what clients remember between tasks.
      cohort: clients handed to a model together that can train many at once.
    """

    def __init__(self, job: Job, clients: Clients, memories: Memories, cohort: int = 1) -> None:
        self._job, self._clients, self._memories = job, clients, memories
        self._together: Together | None = None
        self._cohort = cohort
        if cohort > 1 and getattr(job.model, "stacks", False):
            self._together = Together(job.model)
            self._job = replace(job, model=self._together)
        self._found: dict[str, Early] = {}  # by task key
        self._waiting: deque[tuple[Task, Tensors, Tensors]] = deque()
        self._talking: dict[str, Conversation] = {}
        self._answers: deque[tuple[Task, int, Tensors]] = deque()
        self._deadline: Deadline | None = None
        self._secret = secrets.token_bytes(32)  # of all seats: parties of a simulation trust each other
        self._up = self._down = 0
        self._compute = 0.0
        self._since = time.perf_counter()

    def population(self) -> Sequence[str]:
        """All clients."""
        return self._clients.ids

    def publish(
        self, tasks: Sequence[Task], down: Tensors, frozen: Tensors = EMPTY, deadline_s: float | None = None
    ) -> None:
        """Queues the tasks. A simulation has no slow clients: the deadline comes when there is nothing left to do."""
        self._waiting.extend((task, down, frozen) for task in tasks)
        self._down += len(tasks) * down.size_bytes
        if tasks:
            self._deadline = Deadline(tasks[0].kind, tasks[0].round, tasks[0].attempt)

    def next(self) -> Happening:
        """Performs the next task, or takes up a conversation that the server answered."""
        if self._answers:
            task, leg, answer = self._answers.popleft()
            return self._step(task, leg, lambda: self._talking[task.key].send(answer))
        if self._waiting:
            task = self._waiting[0][0]
            if self._together is not None and task.kind == "train" and task.key not in self._found:
                self._train_together(self._together)
            task, down, frozen = self._waiting.popleft()
            return self._step(task, 0, lambda: next(self._begin(task, down, frozen)))
        if self._deadline is None:
            raise ConfigError("nothing is left to do, and the round is not over: lower its quorum.")
        deadline, self._deadline = self._deadline, None
        return deadline

    def send(self, task: Task, leg: int, message: Tensors) -> None:
        """Queues the server's answer; the leg has a deadline of its own."""
        self._answers.append((task, leg, message))
        self._down += message.size_bytes
        self._deadline = Deadline(task.kind, task.round, task.attempt)

    def seat(self, task: Task) -> Seat:
        """The server's."""
        return SimulatedSeat("server", task.context, self._secret)

    def retire(self, tasks: Sequence[Task]) -> None:
        """Ends conversations; the memory of a task is saved under its name, and is current only if it counted."""
        over = {task.key for task in tasks}
        self._waiting = deque(entry for entry in self._waiting if entry[0].key not in over)
        self._answers = deque(entry for entry in self._answers if entry[0].key not in over)
        for task in tasks:
            self._talking.pop(task.key, None)
            self._found.pop(task.key, None)

    def traffic(self) -> Traffic:
        """Bytes that would have travelled, and the time since the last call."""
        now = time.perf_counter()
        traffic = Traffic(self._up, self._down, now - self._since, self._compute)
        self._up, self._down, self._since, self._compute = 0, 0, now, 0.0
        return traffic

    def _begin(self, task: Task, down: Tensors, frozen: Tensors) -> Conversation:
        early = self._found.pop(task.key, _NOTHING)
        if self._together is not None:
            self._together.answer(early.found)
        data = self._open(task) if early.data is None else early.data
        self._talking[task.key] = self._conversation(task, down, frozen, data)
        return self._talking[task.key]

    def _open(self, task: Task) -> Any:
        return () if task.role == "helper" else self._clients.open(task.client)  # a helper has no data

    def _conversation(self, task: Task, down: Tensors, frozen: Tensors, data: Any) -> Conversation:
        memory = EMPTY if task.role == "helper" else self._memories.load(task.client, task.since)
        seat = SimulatedSeat(task.client, task.context, self._secret)
        return perform(self._job, task, down, data, memory, frozen, seat)

    def _train_together(self, together: Together) -> None:
        """Trains those that wait, as many as may be; who cannot be asked, or all if it fails, will be trained alone."""
        room = max(1, RESULT_BYTES // max(1, self._waiting[0][1].size_bytes))
        first = list(self._waiting)[: min(self._cohort, room)]
        train = [one for one in first if one[0].kind == "train" and one[0].role == "worker"]
        self._found.update({task.key: _NOTHING for task, _, _ in train})
        self._found.update(together.fit_all({one[0].key: partial(self._asks, *one) for one in train}))

    def _asks(self, task: Task, down: Tensors, frozen: Tensors) -> None:
        next(self._conversation(task, down, frozen, self._open(task)))

    def _step(self, task: Task, leg: int, go: Any) -> Happening:
        began = time.perf_counter() - self._found.get(task.key, _NOTHING).seconds
        try:
            message = go()
            self._finish(task, leg)
        except Exception as error:
            reason = str(error) if isinstance(error, HansaError) else f"{type(error).__name__}: {error}"
            return Failure(task, reason, gone=isinstance(error, SecretRoundVoid), error=error)
        seconds = time.perf_counter() - began
        self._compute += seconds
        self._up += message.size_bytes
        return Reply(task, leg, message, message.size_bytes, seconds)

    def _finish(self, task: Task, leg: int) -> None:
        """After the last leg's message the conversation ends with the memory to keep."""
        reducer = self._job.pipeline.reducer
        if reducer is not None and leg == reducer.legs - 1:
            try:
                self._talking.pop(task.key).send(None)
            except StopIteration as end:
                if task.kind == "train" and task.role == "worker":
                    self._memories.save(task.client, task.memory, end.value)


@dataclass(frozen=True)
class Local(Runtime):
    """Trains in this process.

    Args:
      cohort: clients whose data are opened and handed to the model together, where it trains many at once
        (`TorchModel(loop="cohort")`); others are trained one at a time.
    """

    cohort: int = 256

    def __post_init__(self) -> None:
        require(self.cohort >= 1, f"cohort={self.cohort}: at least one client is trained at a time.")

    def run(self, job: Job, clients: Clients, **options: Any) -> History:
        """Trains to the end, or from the store's last committed round; options as those of `simulate`."""

        def opened(job: Job, clients: Clients, memories: Memories) -> "nullcontext[LocalSession]":
            return nullcontext(LocalSession(job, clients, memories, self.cohort))

        return simulate(opened, job, clients, **options)


def train(job: Job, clients: Clients, runtime: Runtime | None = None, **options: Any) -> History:
    """Runs a job on a runtime and gives its history.

    Args:
      job: what to learn, and who may see what.
      clients: every client's data, by id.
      runtime: `Local()` if None; `Processes()` for all cores.
      options: of the runtime's `run`, as `observe=print`.

    Returns:
      The history: records of all rounds, and the model as an ordinary object of its library.

    Raises:
      JobError: the job has faults, all listed.
      TrainingFailed: a round could not be completed.
    """
    history: History = (runtime or Local()).run(job, clients, **options)
    return history
