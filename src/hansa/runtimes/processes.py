"""The processes runtime: one worker process a core, the same bits as the local runtime.

    parent   round loop ── PoolSession ──► idle process: {"task", names of files} as JSON over a pipe
    child    Performer: perform(...) ──► its message as a file in a private folder (shared memory where there is one)

Only JSON and safetensors files pass between them, never a pickled object; see `pool`, which schedules.
"""

import json
import mmap
import multiprocessing
import os
import secrets
import signal
import tempfile
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from typing import Any

from hansa.core.checkpoint import buffers, open_bytes
from hansa.core.data import Clients
from hansa.core.errors import ConfigError, require
from hansa.core.job import Job
from hansa.core.runtime import Memories, Runtime
from hansa.core.tensors import EMPTY, Tensors
from hansa.runtimes.allocator import keep_freed_memory
from hansa.runtimes.history import History
from hansa.runtimes.pool import COHORT, Member, Performer, PoolSession, Report
from hansa.runtimes.simulation import simulate


@dataclass(frozen=True)
class Processes(Runtime):
    """Trains in several processes of this machine.

    Args:
      count: how many; None for one a core.
      cohort: clients whose data a process opens and hands to the model together, where it trains many at once
        (`TorchModel(loop="cohort")`); others are trained one at a time. A number of its own, not a share of the round,
        so that the result does not depend on `count`.
    """

    count: int | None = None
    cohort: int = COHORT

    def __post_init__(self) -> None:
        if self.count is not None and self.count < 1:
            raise ConfigError(f"count={self.count}: at least one process is needed.")
        require(self.cohort >= 1, f"cohort={self.cohort}: at least one client is trained at a time.")

    def run(self, job: Job, clients: Clients, **options: Any) -> History:
        """Trains to the end, or from the store's last committed round; options as those of `simulate`."""
        count = self.count or os.cpu_count() or 1

        def opened(job: Job, clients: Clients, memories: Memories) -> "closing[ProcessSession]":
            return closing(ProcessSession(job, clients, memories, count, self.cohort))

        return simulate(opened, job, clients, **options)


class ProcessSession(PoolSession[str]):
    """Hands each task to an idle process; a handle is the path of a safetensors file.

    Args:
      job, clients, memories, count, cohort: as those of every pool.
    """

    def __init__(self, job: Job, clients: Clients, memories: Memories, count: int, cohort: int = 1) -> None:
        super().__init__(job, clients, memories, count, cohort)
        shared = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self._folder = tempfile.TemporaryDirectory(prefix="hansa-", dir=shared)

    def close(self) -> None:
        """Ends the processes and deletes the folder."""
        super().close()
        self._folder.cleanup()

    def _start(self) -> "_Child":
        return _Child({**self._setup, "folder": self._folder.name})

    def _write(self, tensors: Tensors) -> str:
        return write_tensors(tensors, self._folder.name)

    def _delete(self, handle: str) -> None:
        os.unlink(handle)

    def _hear(self) -> tuple[Member[str], Report | str]:
        busy = {member.pipe: member for member in self._members if isinstance(member, _Child) and member.request}
        child = busy[wait(list(busy))[0]]  # type: ignore[index]
        try:
            said = json.loads(child.pipe.recv_bytes())
        except (EOFError, OSError):
            child.end()
            return child, f"exit code {child.process.exitcode}"
        return child, Report.of(said, _taken)


class _Child(Member[str]):
    """A worker process and the pipe to it."""

    def __init__(self, setup: Mapping[str, Any]) -> None:
        super().__init__()
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, json.dumps(setup).encode()), daemon=True)
        self.process.start()
        theirs.close()

    def begin(self, asked: Mapping[str, Any], inputs: Mapping[str, str]) -> None:
        with suppress(OSError):  # it died: the pipe says so again when it is read, and the task goes to another
            self.pipe.send_bytes(json.dumps({**asked, "inputs": inputs}).encode())

    def end(self) -> None:
        self.pipe.close()
        self.process.terminate()
        self.process.join()


def serve(pipe: Connection, setup: bytes) -> None:
    """A worker process: does what comes over the pipe until it is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which then ends its children
    keep_freed_memory()
    given = json.loads(setup)
    performer = Performer(given["job"], given["clients"])
    while True:
        try:
            asked = json.loads(pipe.recv_bytes())
        except (EOFError, KeyboardInterrupt):
            return
        said = performer.step(
            asked,
            read=partial(_input, asked["inputs"]),
            write=lambda tensors: write_tensors(tensors, given["folder"]),
        )
        pipe.send_bytes(json.dumps(said).encode())


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


def _input(paths: Mapping[str, str], name: str) -> Tensors:
    return read_tensors(paths[name]) if name in paths else EMPTY


def _taken(path: str) -> Tensors:
    """The same, for a message that nobody else reads: the file goes, the mapping lives as long as the arrays."""
    tensors = read_tensors(path)
    os.unlink(path)
    return tensors
