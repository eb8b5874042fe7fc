"""The processes runtime: one worker process a core, the same bits as the local runtime.

    parent   round loop ── Session ──► idle process: {"task", names of files} as JSON over a pipe
    child    perform(...) ──► its message as a file in a private folder (shared memory where there is one)

Only JSON and safetensors files pass between them, never a pickled object: a child rebuilds the job from its canonical
form, so models, losses and callables must be importable by name. A child that dies is replaced, its task done again.
"""

import bisect
import json
import mmap
import multiprocessing
import os
import secrets
import signal
import tempfile
import time
import traceback
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from hansa.core.checkpoint import buffers, open_bytes
from hansa.core.data import Clients, Dataset
from hansa.core.errors import ConfigError, DataError, HansaError
from hansa.core.job import Job, canonical
from hansa.core.runtime import Deadline, Failure, Happening, Memories, Reply, Runtime, Session, Task, Traffic
from hansa.core.tensors import EMPTY, Tensors
from hansa.core.worker import perform
from hansa.runtimes.forms import rebuild, task_form, task_of, worker_form
from hansa.runtimes.history import History
from hansa.runtimes.simulation import simulate

TRIES = 3  # of one task, when the process that does it dies
WINDOW = 4  # tasks for each process among which the longest goes first: more would hold more finished messages back


@dataclass(frozen=True)
class Processes(Runtime):
    """Trains in several processes of this machine.

    Args:
      count: how many; None for one a core.
    """

    count: int | None = None

    def __post_init__(self) -> None:
        if self.count is not None and self.count < 1:
            raise ConfigError(f"count={self.count}: at least one process is needed.")

    def run(self, job: Job, clients: Clients, **options: Any) -> History:
        """Trains to the end, or from the store's last committed round; options as those of `simulate`."""
        count = self.count or os.cpu_count() or 1

        def opened(job: Job, clients: Clients, memories: Memories) -> "closing[ProcessSession]":
            return closing(ProcessSession(job, clients, memories, count))

        return simulate(opened, job, clients, **options)


class ProcessSession(Session):
    """Hands each task to an idle process, the longest first.

    Args:
      job: must be rebuildable by name; JobError lists what is not.
      clients: opened in the children where their canonical form says all of them, else here and handed over as files.
      memories: what clients remember between tasks.
      count: processes, started as tasks are published.
    """

    def __init__(self, job: Job, clients: Clients, memories: Memories, count: int) -> None:
        self._clients, self._memories, self._count = clients, memories, count
        self._setup = {"job": worker_form(job), "clients": _form(clients)}
        shared = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self._folder = tempfile.TemporaryDirectory(prefix="hansa-", dir=shared)
        self._staged: dict[str, str] = {}  # client -> file of its data
        self._frozen: dict[str, str] = {}  # hash -> file
        self._waiting: deque[_Request] = deque()
        self._children: list[_Child] = []
        self._place: dict[str, _Child] = {}  # task key -> the process its conversation lives in
        self._used: dict[str, list[str]] = {}  # task key -> files that go when it is retired
        self._users: dict[str, int] = {}  # file -> tasks it serves, where they are several
        sizes = getattr(clients, "sizes", None)  # of clients that know them without being opened
        self._sizes = sizes() if callable(sizes) else None
        self._seconds: dict[str, float] = {}  # client -> how long its last task took
        self._example_s = 1e-3
        self._deadline: Deadline | None = None
        self._up = self._down = 0
        self._compute = 0.0
        self._since = time.perf_counter()

    def close(self) -> None:
        """Ends the processes and deletes the folder."""
        for child in self._children:
            child.end()
        self._folder.cleanup()

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
        files = {"down": self._write(down), "frozen": self._frozen.get(tasks[0].frozen, "")}
        self._users[files["down"]] = len(tasks)
        for task in tasks:
            self._used[task.key] = [files["down"]]
        for at in range(0, len(tasks), WINDOW * self._count):
            window = sorted(tasks[at : at + WINDOW * self._count], key=lambda task: -self._expected_s(task.client))
            self._waiting.extend(_Request(task, files) for task in window)
        self._down += len(tasks) * down.size_bytes
        self._deadline = Deadline(tasks[0].kind, tasks[0].round, tasks[0].attempt)

    def next(self) -> Happening:
        """Keeps every process busy, and gives what the first of them reports."""
        while True:
            self._dispatch()
            busy = {child.pipe: child for child in self._children if child.request is not None}
            if not busy:
                if self._deadline is None:
                    raise ConfigError("nothing is left to do, and the round is not over: lower its quorum.")
                deadline, self._deadline = self._deadline, None
                return deadline
            for pipe in wait(list(busy)):
                happening = self._heard(busy[pipe])  # type: ignore[index]
                if happening is not None:
                    return happening

    def send(self, task: Task, leg: int, message: Tensors) -> None:
        """Queues the server's answer for the process that holds the conversation."""
        answer = self._write(message)
        self._used[task.key].append(answer)
        self._waiting.append(_Request(task, {"answer": answer}, leg))

    def retire(self, tasks: Sequence[Task]) -> None:
        """Drops what was not begun and deletes the files; a child forgets a conversation when its next task begins."""
        over = {task.key for task in tasks}
        self._waiting = deque(request for request in self._waiting if request.task.key not in over)
        for key in over:
            self._place.pop(key, None)
            for path in self._used.pop(key, ()):
                self._users[path] = self._users.get(path, 1) - 1
                if not self._users[path]:
                    del self._users[path]
                    os.unlink(path)

    def traffic(self) -> Traffic:
        """Bytes that would have travelled, and the time since the last call."""
        now = time.perf_counter()
        traffic = Traffic(self._up, self._down, now - self._since, self._compute)
        self._up, self._down, self._since, self._compute = 0, 0, now, 0.0
        return traffic

    def _expected_s(self, client: str) -> float:
        """Seconds that a client's task will take: as its last one took, or by its number of examples."""
        if client not in self._seconds and self._sizes is not None:
            return float(self._sizes[bisect.bisect_left(self._clients.ids, client)]) * self._example_s
        return self._seconds.get(client, 0.0)

    def _learn(self, client: str, seconds: float) -> None:
        """Notes how long a task took, and what an example takes."""
        self._seconds[client] = seconds
        if self._sizes is not None:
            size = float(self._sizes[bisect.bisect_left(self._clients.ids, client)])
            self._example_s += 0.1 * (seconds / max(1.0, size) - self._example_s)

    # -- children

    def _dispatch(self) -> None:
        """Gives every idle process something to do, as far as there is anything for it."""
        busy = sum(child.request is not None for child in self._children)
        while len(self._children) < min(self._count, len(self._waiting) + busy):
            self._children.append(_Child({**self._setup, "folder": self._folder.name}))
        idle = [child for child in self._children if child.request is None]
        for _ in range(len(self._waiting)):
            request = self._waiting.popleft()
            home = self._place.get(request.task.key)
            free = [child for child in idle if not request.leg or child is home]
            if not free:
                self._waiting.append(request)
                continue
            idle.remove(free[0])
            self._place[request.task.key] = free[0]
            free[0].begin(request, self._inputs(request))

    def _inputs(self, request: "_Request") -> dict[str, str]:
        if request.leg:
            return request.files
        task = request.task
        memory = self._memories.load(task.client, task.since)
        remembered = ""
        if len(memory):
            remembered = self._write(memory)
            self._used[task.key].append(remembered)
        return {**request.files, "memory": remembered, "data": self._stage(task.client)}

    def _stage(self, client: str) -> str:
        """The file of one client's columns, written when it is first asked; empty where children open it."""
        if self._setup["clients"] is not None:
            return ""
        if client not in self._staged:
            data = self._clients.open(client)
            if not isinstance(data, Dataset):
                raise DataError(
                    f"the data of '{client}' is a {type(data).__name__}, which cannot be handed to another process: "
                    "give a Dataset, or clients that are a frozen dataclass (children open them), or use Local()."
                )
            self._staged[client] = self._write(Tensors(data.columns))
        return self._staged[client]

    def _write(self, tensors: Tensors) -> str:
        return write_tensors(tensors, self._folder.name)

    def _heard(self, child: "_Child") -> Happening | None:
        request = child.request
        assert request is not None
        try:
            report = json.loads(child.pipe.recv_bytes())
        except (EOFError, OSError):
            self._children.remove(child)
            child.end()
            if request.leg or request.tries + 1 >= TRIES:
                return Failure(request.task, f"its process died (exit code {child.process.exitcode})", gone=True)
            request.tries += 1
            self._waiting.appendleft(request)
            return None
        child.request = None
        if "error" in report:
            return Failure(request.task, report["error"], error=ChildError(report["traceback"]))
        if report.get("memory"):
            self._memories.save(request.task.client, request.task.memory, read_tensors(report["memory"]))
            os.unlink(report["memory"])
        message = read_tensors(report["message"])
        os.unlink(report["message"])  # the mapping lives as long as the arrays
        self._up += message.size_bytes
        self._compute += report["seconds"]
        if request.task.kind == "train":
            self._learn(request.task.client, report["seconds"])
        return Reply(request.task, request.leg, message, message.size_bytes, report["seconds"])


def _form(clients: Clients) -> Any:
    """The population's canonical form where children can open it themselves, else None."""
    try:
        form = canonical(clients)
    except HansaError:
        return None
    return form if isinstance(form, dict) and "$type" in form and "$array" not in json.dumps(form) else None


class ChildError(Exception):
    """What a worker process raised, with its traceback as text."""


class _Request:
    """One leg of one task, and the files it needs."""

    def __init__(self, task: Task, files: Mapping[str, str], leg: int = 0) -> None:
        self.task, self.files, self.leg, self.tries = task, dict(files), leg, 0


class _Child:
    """A worker process and the pipe to it."""

    def __init__(self, setup: Mapping[str, Any]) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, json.dumps(setup).encode()), daemon=True)
        self.process.start()
        theirs.close()
        self.request: _Request | None = None

    def begin(self, request: _Request, files: Mapping[str, str]) -> None:
        self.request = request
        message = {"task": task_form(request.task), "leg": request.leg, **files}
        with suppress(OSError):  # it died: the pipe says so again when it is read, and the task goes to another
            self.pipe.send_bytes(json.dumps(message).encode())

    def end(self) -> None:
        self.pipe.close()
        self.process.terminate()
        self.process.join()


def serve(pipe: Connection, setup: bytes) -> None:
    """A worker process: does what comes over the pipe until it is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which then ends its children
    given = json.loads(setup)
    state: dict[str, Any] = {}
    while True:
        try:
            request = json.loads(pipe.recv_bytes())
        except (EOFError, KeyboardInterrupt):
            return
        try:
            if not state:
                state["job"] = rebuild(given["job"])
                state["clients"] = rebuild(given["clients"])
                state["talking"] = {}
            report = _done(state, request, given["folder"])
        except Exception as error:
            text = str(error) if isinstance(error, HansaError) else f"{type(error).__name__}: {error}"
            report = {"error": text, "traceback": traceback.format_exc()}
        pipe.send_bytes(json.dumps(report).encode())


def _done(state: dict[str, Any], request: Mapping[str, Any], folder: str) -> dict[str, Any]:
    task, job, talking = task_of(request["task"]), state["job"], state["talking"]
    began = time.perf_counter()
    if request["leg"] == 0:
        talking.clear()
        data = Dataset(**dict(read_tensors(request["data"]))) if request["data"] else state["clients"].open(task.client)
        parts = [read_tensors(request[name]) if request[name] else EMPTY for name in ("down", "memory", "frozen")]
        talking[task.key] = perform(job, task, parts[0], data, parts[1], parts[2])
        message = next(talking[task.key])
    else:
        message = talking[task.key].send(read_tensors(request["answer"]))
    report: dict[str, Any] = {"message": write_tensors(message, folder), "seconds": time.perf_counter() - began}
    if request["leg"] == job.pipeline.reducer.legs - 1:
        try:
            talking.pop(task.key).send(None)
        except StopIteration as end:
            if task.kind == "train" and len(end.value):
                report["memory"] = write_tensors(end.value, folder)
    return report


def write_tensors(tensors: Tensors, folder: str) -> str:
    """Writes a safetensors file of a random name and gives its path."""
    path = os.path.join(folder, secrets.token_hex(12))
    with open(path, "xb") as file:
        file.writelines(buffers(tensors))
    return path


def read_tensors(path: str) -> Tensors:
    """The tensors of a file, mapped into memory; the pages live as long as the arrays."""
    with open(path, "rb") as file:
        return open_bytes(memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)))[0]
