"""The processes runtime: one worker process a core, the same bits as the local runtime.

    parent   round loop ── Session ──► idle process: {"task", names of files} as JSON over a pipe
    child    perform(...) ──► its message as a file in a private folder (shared memory where there is one)

Only JSON and safetensors files pass between them, never a pickled object: a child rebuilds the job from its canonical
form, so models, losses and callables must be importable by name. A child that dies is replaced and its tasks done again.
"""

import json
import mmap
import multiprocessing
import os
import secrets
import tempfile
import time
import traceback
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from hansa.core.checkpoint import buffers, open_bytes
from hansa.core.data import Clients, Dataset
from hansa.core.errors import ConfigError, DataError, HansaError
from hansa.core.job import Job, canonical, rebuild
from hansa.core.runtime import Deadline, Failure, Happening, Memories, Reply, Runtime, Session, Store, Task, Traffic
from hansa.core.tensors import EMPTY, Tensors
from hansa.core.train import Observe
from hansa.core.train import train as train_rounds
from hansa.core.worker import perform
from hansa.runtimes.history import History
from hansa.runtimes.memory import MemoryMemories, MemoryStore

TRIES = 3  # of one task, when the process that does it dies


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

    def run(
        self, job: Job, clients: Clients, *, store: Store | None = None, observe: Observe | None = None, **options: Any
    ) -> History:
        """Trains to the end, or from the store's last committed round; arguments as those of `Local.run`."""
        state = store if store is not None else MemoryStore()
        saved = state.load()
        run = saved.run if saved is not None else secrets.token_hex(8)
        job.check(len(clients))
        memories = options.get("memories") or MemoryMemories()
        with ProcessSession(job, clients, memories, self.count or os.cpu_count() or 1) as session:
            outcome = train_rounds(job, session, state, run=run, observe=observe)
        return History(job, outcome, state.best())


class ProcessSession(Session):
    """Hands each task to an idle process.

    Args:
      job: must be rebuildable by name; JobError lists what is not.
      clients: opened here and handed over as files, or in the children where their canonical form allows it.
      memories: what clients remember between tasks.
      count: processes, started when the first tasks are published.
    """

    def __init__(self, job: Job, clients: Clients, memories: Memories, count: int) -> None:
        self._form, self._clients, self._memories = job.worker_form(), clients, memories
        self._count = count
        shared = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self._folder = tempfile.TemporaryDirectory(prefix="hansa-", dir=shared)
        self._staged: dict[str, str] = {}  # client -> file of its data
        self._waiting: deque[_Request] = deque()
        self._children: list[_Child] = []
        self._place: dict[str, _Child] = {}  # task key -> the process its conversation lives in
        self._files: dict[str, str] = {}  # what a published task needs: file by file's role
        self._deadline: Deadline | None = None
        self._up = self._down = 0
        self._compute = 0.0
        self._since = time.perf_counter()

    def __enter__(self) -> "ProcessSession":
        return self

    def __exit__(self, *error: object) -> None:
        for child in self._children:
            child.end()
        self._folder.cleanup()

    def population(self) -> Sequence[str]:
        """All clients."""
        return self._clients.ids

    def publish(self, tasks: Sequence[Task], down: Tensors, frozen: Tensors = EMPTY, deadline_s: float | None = None) -> None:
        """Writes the message once, and queues the tasks; the deadline comes when there is nothing left to do."""
        files = {"down": self._write(down), "frozen": self._write(frozen) if len(frozen) else ""}
        self._waiting.extend(_Request(task, files) for task in tasks)
        self._down += len(tasks) * down.size_bytes
        if tasks:
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
        self._waiting.append(_Request(task, {"answer": self._write(message)}, leg))

    def retire(self, tasks: Sequence[Task]) -> None:
        """Drops what was not begun; a child forgets a conversation when its next task begins."""
        over = {task.key for task in tasks}
        self._waiting = deque(request for request in self._waiting if request.task.key not in over)
        for key in over:
            self._place.pop(key, None)

    def traffic(self) -> Traffic:
        """Bytes that would have travelled, and the time since the last call."""
        now = time.perf_counter()
        traffic = Traffic(self._up, self._down, now - self._since, self._compute)
        self._up, self._down, self._since, self._compute = 0, 0, now, 0.0
        return traffic

    # -- children

    def _dispatch(self) -> None:
        while len(self._children) < min(self._count, len(self._waiting) + sum(c.request is not None for c in self._children)):
            self._children.append(_Child(self._form, self._clients_form(), self._folder.name))
        idle = [child for child in self._children if child.request is None]
        for _ in range(len(self._waiting)):
            request = self._waiting.popleft()
            home = self._place.get(request.task.key)
            child = home if request.leg and home in idle else (idle[0] if idle and not request.leg else None)
            if child is None:
                self._waiting.append(request)
                continue
            idle.remove(child)
            self._place[request.task.key] = child
            child.begin(request, self._inputs(request))

    def _inputs(self, request: "_Request") -> dict[str, str]:
        if request.leg:
            return request.files
        memory = self._memories.load(request.task.client, request.task.since)
        return {**request.files, "memory": self._write(memory) if len(memory) else "", "data": self._stage(request.task.client)}

    def _clients_form(self) -> Any:
        """The population's canonical form where children can open it themselves, else None."""
        try:
            form = canonical(self._clients)
        except HansaError:
            return None
        return None if "$array" in json.dumps(form) or not isinstance(form, Mapping) or "$type" not in form else form

    def _stage(self, client: str) -> str:
        """The file of one client's columns, written when it is first asked; empty where children open it."""
        if self._clients_form() is not None:
            return ""
        if client not in self._staged:
            data = self._clients.open(client)
            if not isinstance(data, Dataset):
                raise DataError(
                    f"the data of '{client}' is a {type(data).__name__}, which cannot be handed to another process: give a "
                    "Dataset, or clients that are a frozen dataclass (children then open their own data), or use Local()."
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
        message = read_tensors(report["message"])
        self._up += message.size_bytes
        self._compute += report["seconds"]
        return Reply(request.task, request.leg, message, message.size_bytes, report["seconds"])


class ChildError(Exception):
    """What a worker process raised, with its traceback as text."""


class _Request:
    """One leg of one task, and the files it needs."""

    def __init__(self, task: Task, files: Mapping[str, str], leg: int = 0) -> None:
        self.task, self.files, self.leg, self.tries = task, dict(files), leg, 0


class _Child:
    """A worker process and the pipe to it."""

    def __init__(self, form: Any, clients: Any, folder: str) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        setup = json.dumps({"job": form, "clients": clients, "folder": folder}).encode()
        self.process = context.Process(target=serve, args=(theirs, setup), daemon=True)
        self.process.start()
        theirs.close()
        self.request: _Request | None = None

    def begin(self, request: _Request, files: Mapping[str, str]) -> None:
        self.request = request
        try:
            self.pipe.send_bytes(json.dumps({"task": request.task.to_json(), "leg": request.leg, **files}).encode())
        except OSError:
            pass  # it died: the pipe says so again when it is read, and the task goes to another

    def end(self) -> None:
        self.pipe.close()
        self.process.terminate()
        self.process.join()


def serve(pipe: Connection, setup: bytes) -> None:
    """A worker process: does what comes over the pipe until it is closed."""
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
    task, job, talking = Task.from_json(request["task"]), state["job"], state["talking"]
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


