"""What runtimes that hand tasks to a pool of workers share: schedule, conversations, and what is done after a death.

    parent   round loop ── PoolSession ──► idle worker: a task as JSON, and handles of its tensors
    worker   Performer: perform(...) ──► its message, the client's new memory, and the seconds it took

A handle says where tensors lie so that every worker can read them: a file here, an object in the store of a cluster.
Only JSON and tensors pass, never a pickled object: a worker rebuilds the job from its canonical form, so models, losses
and callables must be importable by name. The longest task goes first; a worker that dies is replaced, its task done
again; and no bit of the result depends on who did what.

Where the model trains many clients at once, a worker is handed a stack: the first task with the inputs of all, which it
trains together, then the others, to which it has the answers. Stacks are cut by the order of the tasks, whoever does
them, and a stack whose worker dies is trained whole again, so that neither the number of workers nor their deaths
change what is computed.
"""

import bisect
import json
import math
import secrets
import time
import traceback
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Any, Generic, TypeVar

import numpy as np

from hansa.core.data import Clients, Dataset
from hansa.core.errors import ConfigError, DataError, HansaError, SecretRoundVoid
from hansa.core.job import Job, canonical
from hansa.core.pipeline import Seat
from hansa.core.runtime import Deadline, Failure, Happening, Memories, Reply, Session, Task, Traffic
from hansa.core.tensors import EMPTY, Tensors
from hansa.core.worker import perform
from hansa.crypto.simulated_seat import SimulatedSeat
from hansa.runtimes.forms import rebuild, task_of, worker_form
from hansa.runtimes.together import RESULT_BYTES, Early, Together

DEVICE = "HANSA_DEVICE"  # environment variable by which a worker is told where its models train
TRIES = 3  # of one task, when the worker that does it dies
COHORT = 64  # clients in a stack: several stacks a worker in a round of hundreds
# Among how many tasks or stacks a worker, or messages of how many bytes, the longest goes first: more would hold more
# finished messages back.
WINDOW, HELD_BYTES = 4, 64 << 20
ALIKE = 1.25  # the factor between lengths of tasks that are told apart

Handle = TypeVar("Handle")
Conversation = Generator[Tensors, Tensors | None, Tensors]


@dataclass(eq=False)
class Request(Generic[Handle]):
    """One leg of one task, the handles of what it needs, and how many workers have died of it.

    Args:
      stack: all that are trained together with it, and itself; none if it is trained alone.
      fellows: those of the stack that the same worker is to do after it.
    """

    task: Task
    inputs: dict[str, Handle]
    leg: int = 0
    deaths: int = 0
    stack: Sequence["Request[Handle]"] = ()
    fellows: Sequence["Request[Handle]"] = ()


@dataclass(frozen=True)
class Report:
    """What a worker has done: its message and the client's memory after the last leg, or the error it met."""

    message: Tensors = EMPTY
    memory: Tensors = EMPTY
    seconds: float = 0.0
    error: str = ""
    traceback: str = ""
    gone: bool = False  # the error is of this attempt alone

    @staticmethod
    def of(said: Mapping[str, Any], read: Callable[[Any], Tensors]) -> "Report":
        """The report that a performer gave, its tensors read."""
        return Report(**{**said, **{name: read(said[name]) for name in ("message", "memory") if name in said}})


class WorkerError(Exception):
    """What was raised in a worker, with its traceback as text."""


class Member(ABC, Generic[Handle]):
    """A worker as its parent sees it: it does one request at a time, and the conversations it began stay with it."""

    def __init__(self) -> None:
        self.ready = True  # whether it can be given work
        self.request: Request[Handle] | None = None
        self.answers: deque[Request[Handle]] = deque()  # of the server, in its conversations; and of a stack, the rest
        self.stack: Sequence[Request[Handle]] = ()  # that it has trained together
        self.over: list[str] = []  # conversations that it may forget

    @abstractmethod
    def begin(self, asked: Mapping[str, Any], inputs: Mapping[str, Handle]) -> None:
        """Sends it a request, as JSON and handles, without waiting; its death is noticed when it is listened to."""

    @abstractmethod
    def end(self) -> None:
        """Ends it, whether it lives or not."""


class PoolSession(Session, Generic[Handle]):
    """Hands each task to an idle worker, the longest first.

    Args:
      job: must be rebuildable by name; JobError lists what is not.
      clients: opened in the workers where their canonical form says all of them, else here, and handed over once.
      memories: what clients remember between tasks.
      count: workers, started as tasks are published.
      cohort: clients in a stack, where the model trains many at once.
    """

    def __init__(self, job: Job, clients: Clients, memories: Memories, count: int, cohort: int = 1) -> None:
        self._clients, self._memories, self._count = clients, memories, count
        self._cohort = cohort if getattr(job.model, "stacks", False) else 1
        self._converses = job.pipeline.reducer is not None and job.pipeline.reducer.legs > 1
        self._setup: dict[str, Any] = {"job": worker_form(job), "clients": _form(clients)}
        self._staged: dict[str, Handle] = {}  # client -> its data
        self._frozen: dict[str, Handle] = {}  # by hash
        self._waiting: deque[Request[Handle]] = deque()  # tasks that are not begun
        self._members: list[Member[Handle]] = []
        self._home: dict[str, Member[Handle]] = {}  # task key -> the worker in which its conversation lives
        self._lost: deque[Failure] = deque()  # conversations that died with their worker
        self._used: dict[str, list[Handle]] = {}  # task key -> what goes when it is retired
        self._users: dict[Handle, int] = {}  # handle -> tasks it serves, where they are several
        sizes = getattr(clients, "sizes", None)  # of clients that know them without being opened
        self._sizes = sizes() if callable(sizes) else None
        self._ids = clients.ids if self._sizes is not None else ()  # held: a population may make its names anew
        self._seconds: dict[str, float] = {}  # client -> how long its last task took
        self._example_s = 1e-3
        self._secret = secrets.token_bytes(32)  # of all seats: parties of a simulation trust each other
        self._deadline: Deadline | None = None
        self._up = self._down = 0
        self._compute = 0.0
        self._since = time.perf_counter()

    # -- what carries: processes of this machine, or actors of a cluster

    @abstractmethod
    def _start(self) -> Member[Handle]:
        """A new worker; it may become ready later."""

    @abstractmethod
    def _hear(self) -> tuple[Member[Handle], Report | str] | None:
        """Blocks until a worker reports, or has died: then a text says why. None if there may be more to hand out."""

    @abstractmethod
    def _write(self, tensors: Tensors) -> Handle:
        """Puts tensors where every worker can read them."""

    def _delete(self, handle: Handle) -> None:
        """Deletes what no task needs any longer; nothing to do where handles are counted."""

    def _near(self, member: Member[Handle], client: str) -> bool:
        """Whether a worker has a client's data at hand, or nobody has."""
        return True

    # -- the session

    def close(self) -> None:
        """Ends the workers."""
        for member in self._members:
            member.end()

    def population(self) -> Sequence[str]:
        """All clients."""
        return self._clients.ids

    def publish(
        self, tasks: Sequence[Task], down: Tensors, frozen: Tensors = EMPTY, deadline_s: float | None = None
    ) -> None:
        """Writes the message once, and queues the tasks; the deadline comes when there is nothing left to do."""
        if not tasks:
            return
        if len(frozen) and tasks[0].frozen not in self._frozen:
            self._frozen[tasks[0].frozen] = self._write(frozen)
        message = self._write(down)
        inputs = {"down": message}
        if tasks[0].frozen in self._frozen:
            inputs["frozen"] = self._frozen[tasks[0].frozen]
        self._users[message] = len(tasks)
        for task in tasks:
            self._used[task.key] = [message]
        heads = self._stacked([Request(task, dict(inputs)) for task in tasks], down.size_bytes)
        window = max(WINDOW * self._count, HELD_BYTES // max(1, down.size_bytes))
        for at in range(0, len(heads), window):
            self._waiting.extend(sorted(heads[at : at + window], key=self._length, reverse=True))
        self._down += len(tasks) * down.size_bytes
        self._deadline = Deadline(tasks[0].kind, tasks[0].round, tasks[0].attempt)

    def next(self) -> Happening:
        """Keeps every worker busy, and gives what the first of them reports."""
        while not self._lost:
            self._dispatch()
            if not self._waiting and not any(member.request for member in self._members):
                if self._deadline is None:
                    raise ConfigError("nothing is left to do, and the round is not over: lower its quorum.")
                deadline, self._deadline = self._deadline, None
                return deadline
            heard = self._hear()
            happening = self._take(*heard) if heard is not None else None
            if happening is not None:
                self._dispatch()  # the worker goes on while the round loop adds up what it gave
                return happening
        return self._lost.popleft()

    def send(self, task: Task, leg: int, message: Tensors) -> None:
        """Queues the server's answer for the worker that holds the conversation."""
        home = self._home[task.key]
        if home not in self._members:
            self._lost.append(_conversation_lost(task))
            return
        answer = self._write(message)
        self._used[task.key].append(answer)
        home.answers.append(Request(task, {"answer": answer}, leg))
        self._down += message.size_bytes
        self._deadline = Deadline(task.kind, task.round, task.attempt)

    def seat(self, task: Task) -> Seat:
        """The server's."""
        return SimulatedSeat("server", task.context, self._secret)

    def retire(self, tasks: Sequence[Task]) -> None:
        """Drops what was not begun, deletes what was written, and lets workers forget conversations."""
        over = {task.key for task in tasks}
        left = (_without(request, over) for request in self._waiting)
        self._waiting = deque(request for request in left if request is not None)
        self._lost = deque(failure for failure in self._lost if failure.task.key not in over)
        for member in self._members:
            member.answers = deque(request for request in member.answers if request.task.key not in over)
        for key in over:
            home = self._home.pop(key, None)
            if home is not None:
                home.over.append(key)
            for handle in self._used.pop(key, ()):
                self._users[handle] = self._users.get(handle, 1) - 1
                if not self._users[handle]:
                    del self._users[handle]
                    self._delete(handle)

    def traffic(self) -> Traffic:
        """Bytes that would have travelled, and the time since the last call."""
        now = time.perf_counter()
        traffic = Traffic(self._up, self._down, now - self._since, self._compute)
        self._up, self._down, self._since, self._compute = 0, 0, now, 0.0
        return traffic

    # -- who does what

    def _stacked(self, requests: list[Request[Handle]], model_bytes: int) -> list[Request[Handle]]:
        """The first request of each stack, in which it names the others; and those that go alone."""
        most = min(self._cohort, RESULT_BYTES // max(1, model_bytes))
        if most < 2 or requests[0].task.kind != "train":
            return requests
        heads = [request for request in requests if request.task.role != "worker"]
        trained = [request for request in requests if request.task.role == "worker"]
        for at in range(0, len(trained), most):
            stack = trained[at : at + most]
            for request in stack:
                request.stack = stack
            stack[0].fellows = stack[1:]
            heads.append(stack[0])
        return heads

    def _length(self, head: Request[Handle]) -> int:
        """The class of a task's expected seconds. Alike ones stay in task order, in which messages are added: one that
        comes before its turn waits, and then the workers wait for it to be added at the end of the round.
        """
        expected = sum(self._expected_s(request.task.client) for request in (head, *head.fellows))
        return round(math.log(max(1e-6, expected)) / math.log(ALIKE))

    def _expected_s(self, client: str) -> float:
        """Seconds that a client's task will take: as its last one took, or by its number of examples."""
        return self._seconds.get(client, self._examples(client) * self._example_s)

    def _learn(self, client: str, seconds: float) -> None:
        """Notes how long a task took, and what an example takes."""
        self._seconds[client] = seconds
        if self._sizes is not None:
            self._example_s += 0.1 * (seconds / max(1.0, self._examples(client)) - self._example_s)

    def _examples(self, client: str) -> float:
        """How many a client has; 0 where the population does not say, and for a helper, who is not of it."""
        if self._sizes is None:
            return 0.0
        at = bisect.bisect_left(self._ids, client)
        return float(self._sizes[at]) if at < len(self._ids) and self._ids[at] == client else 0.0

    def _dispatch(self) -> None:
        """Gives every idle worker something to do, as far as there is anything for it."""
        busy = sum(member.request is not None for member in self._members)
        while len(self._members) < min(self._count, len(self._waiting) + busy):
            self._members.append(self._start())
        for member in self._members:
            if member.ready and member.request is None and (request := self._pick(member)) is not None:
                self._begin(member, request)

    def _begin(self, member: Member[Handle], request: Request[Handle]) -> None:
        """Has a worker do a request; the first of a stack comes with what the others need."""
        member.request = request
        if self._converses:
            self._home[request.task.key] = member
        inputs, stack = dict(self._inputs(request)), list[Request[Handle]]()
        if request.stack and request.stack is not member.stack:
            member.stack = request.stack
            stack = [one for one in request.stack if one.task.key in self._used]  # the others are over
        for i, one in enumerate(stack):
            inputs.update({f"{name} {i}": given for name, given in self._inputs(one).items() if name in _OWN})
        asked = {
            "task": vars(request.task), "leg": request.leg, "stack": [vars(one.task) for one in stack],
            "over": member.over, "secret": self._secret.hex(),
        }  # fmt: skip
        member.over = []
        member.begin(asked, inputs)

    def _pick(self, member: Member[Handle]) -> Request[Handle] | None:
        """An answer in a conversation; else, of the tasks whose turn it is, one whose data is near, or the first."""
        if member.answers or not self._waiting:
            return member.answers.popleft() if member.answers else None
        turn = islice(self._waiting, WINDOW * self._count)
        at = next((i for i, request in enumerate(turn) if self._near(member, request.task.client)), 0)
        request = self._waiting[at]
        del self._waiting[at]
        member.answers.extend(request.fellows)
        return request

    def _inputs(self, request: Request[Handle]) -> dict[str, Handle]:
        """What a request needs; the client's own is added when it is first asked for."""
        task, inputs = request.task, request.inputs
        if request.leg or task.role == "helper":
            return inputs
        if "memory" not in inputs and len(memory := self._memories.load(task.client, task.since)):
            inputs["memory"] = self._write(memory)
            self._used[task.key].append(inputs["memory"])
        if self._setup["clients"] is None:
            inputs["data"] = self._stage(task.client)
        return inputs

    def _stage(self, client: str) -> Handle:
        """The handle of one client's columns, which are written when they are first asked for."""
        if client not in self._staged:
            data = self._clients.open(client)
            if not isinstance(data, Dataset):
                raise DataError(
                    f"the data of '{client}' is a {type(data).__name__}, which cannot be handed to another process: "
                    "give a Dataset, or clients that are a frozen dataclass (workers open them), or use Local()."
                )
            self._staged[client] = self._write(Tensors(data.columns))
        return self._staged[client]

    # -- what comes back

    def _take(self, member: Member[Handle], heard: Report | str) -> Happening | None:
        """What a report means to the round loop; None if nothing, as the first death of a task."""
        if isinstance(heard, str):
            return self._bury(member, heard)
        request, member.request = member.request, None
        assert request is not None
        if heard.error:
            return Failure(request.task, heard.error, heard.gone, WorkerError(heard.traceback))
        if len(heard.memory):
            owned = heard.memory.map(np.array)  # kept for long, and what hands tensors over is not to be held open
            self._memories.save(request.task.client, request.task.memory, owned)
        size = heard.message.size_bytes
        self._up += size
        self._compute += heard.seconds
        if request.task.kind == "train" and request.task.role == "worker":
            self._learn(request.task.client, heard.seconds)
        return Reply(request.task, request.leg, heard.message, size, heard.seconds)

    def _bury(self, member: Member[Handle], why: str) -> Happening | None:
        """Takes a dead worker out. Its task goes to another, its conversations are lost."""
        self._members.remove(member)
        member.end()
        self._lost.extend(_conversation_lost(request.task) for request in member.answers if request.leg)
        again = [request for request in member.answers if not request.leg]
        request = member.request
        happening: Happening | None = None
        if request is not None and request.task.key in self._used:  # else nothing was asked, or nobody waits for it
            request.deaths += 1
            if request.leg:
                happening = _conversation_lost(request.task)
            else:
                again.insert(0, request)
        if again and again[0].deaths == TRIES:
            if not again[0].stack:
                return Failure(again[0].task, f"{TRIES} workers died while they did its task, the last one: {why}")
            for one in again:  # alone it will show whose fault it is
                one.stack, one.fellows, one.deaths = (), (), 0
            self._waiting.extendleft(reversed(again))
        elif again:
            again[0].fellows = again[1:]
            self._waiting.appendleft(again[0])
        return happening


def _without(head: Request[Any], over: set[str]) -> Request[Any] | None:
    """What is left of a stack, or of a request that goes alone, when some tasks are over."""
    left = [request for request in (head, *head.fellows) if request.task.key not in over]
    if left:
        left[0].fellows = left[1:]
    return left[0] if left else None


def _conversation_lost(task: Task) -> Failure:
    return Failure(task, "the worker that held its conversation died", gone=True)


def _form(clients: Clients) -> Any:
    """The population's canonical form where workers can open it themselves, else None."""
    try:
        form = canonical(clients)
    except HansaError:
        return None
    return form if isinstance(form, dict) and "$type" in form and "$array" not in json.dumps(form) else None


_OWN = ("data", "memory")  # inputs that are one client's; the others are those of all


@dataclass
class Performer:
    """A worker's half of the pool: the job, the population, and the conversations that live here.

    Args:
      job, clients: canonical forms, rebuilt when they are first needed; clients may be None.
    """

    job: Any
    clients: Any
    _rebuilt: tuple[Job, Clients | None] | None = None
    _together: Together | None = None
    _early: dict[str, Early] = field(default_factory=dict)  # of a stack, by task key
    _talking: dict[str, Conversation] = field(default_factory=dict)

    def step(
        self, asked: Mapping[str, Any], read: Callable[[str], Tensors], write: Callable[[Tensors], Any]
    ) -> dict[str, Any]:
        """Does one leg of a task.

        Args:
          asked: as the parent's dispatch made it.
          read: gives the tensors of an input by its name, empty if there is none.
          write: makes of tensors what the parent can read.

        Returns:
          The fields of a `Report`, tensors written; whatever was raised is in it, as text.
        """
        try:
            return self._step(asked, read, write)
        except Exception as error:
            text = str(error) if isinstance(error, HansaError) else f"{type(error).__name__}: {error}"
            gone = isinstance(error, SecretRoundVoid)
            return {"error": text, "traceback": traceback.format_exc(), "gone": gone}

    def _step(
        self, asked: Mapping[str, Any], read: Callable[[str], Tensors], write: Callable[[Tensors], Any]
    ) -> dict[str, Any]:
        if self._rebuilt is None:
            self._rebuilt = rebuild(self.job), rebuild(self.clients)
        job, task, leg = self._rebuilt[0], task_of(asked["task"]), asked["leg"]
        for key in asked["over"]:
            self._talking.pop(key, None)
        if asked["stack"]:
            self._train_together(asked, read)
        early = self._early.pop(task.key, Early())
        began = time.perf_counter() - early.seconds
        if leg == 0:
            if self._together is not None:
                self._together.answer(early.found)
            self._talking[task.key] = self._begin(task, asked["secret"], read, early.data)
            message = next(self._talking[task.key])
        else:
            message = self._talking[task.key].send(read("answer"))
        said = {"message": write(message), "seconds": time.perf_counter() - began}
        assert job.pipeline.reducer is not None
        if leg == job.pipeline.reducer.legs - 1:
            try:
                self._talking.pop(task.key).send(None)
            except StopIteration as end:
                if task.kind == "train" and len(end.value):
                    said["memory"] = write(end.value)
        return said

    def _begin(self, task: Task, secret: str, read: Callable[[str], Tensors], data: Any = None) -> Conversation:
        """The conversation of a task, whose data is opened unless it is given."""
        assert self._rebuilt is not None
        job, clients = self._rebuilt
        seat = SimulatedSeat(task.client, task.context, bytes.fromhex(secret))
        data = _data(clients, task, read) if data is None else data
        return perform(job, task, read("down"), data, read("memory"), read("frozen"), seat)

    def _train_together(self, asked: Mapping[str, Any], read: Callable[[str], Tensors]) -> None:
        """Trains a stack; what is found waits until each task's turn comes."""
        assert self._rebuilt is not None
        if self._together is None:
            job, clients = self._rebuilt
            self._together = Together(job.model)
            self._rebuilt = replace(job, model=self._together), clients

        whole = {name: read(name) for name in ("down", "frozen")}  # once, so that all have the same arrays

        def begin(i: int, task: Task) -> None:
            next(self._begin(task, asked["secret"], lambda name: read(f"{name} {i}") if name in _OWN else whole[name]))

        tasks = [task_of(form) for form in asked["stack"]]
        self._early = self._together.fit_all({task.key: partial(begin, i, task) for i, task in enumerate(tasks)})


def _data(clients: Clients | None, task: Task, read: Callable[[str], Tensors]) -> Any:
    """What the parent handed over, or what is opened here; a helper has none."""
    columns = read("data")
    if len(columns) or task.role == "helper":
        return Dataset(**dict(columns)) if len(columns) else ()
    assert clients is not None
    return clients.open(task.client)
