"""The processes runtime: one worker process a core, the same bits as the local runtime.

    parent   round loop ── PoolSession ──► idle process: {"task", names of files} as JSON over a pipe
    child    Performer: perform(...) ──► its message as a file in a private folder (shared memory where there is one)

Only JSON and safetensors files pass between them, never a pickled object; see `pool`, which schedules.
"""

import json
import multiprocessing
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing.connection import Connection, wait
from typing import Any

from hansa.core.data import Clients
from hansa.core.errors import ConfigError, require
from hansa.core.job import Job
from hansa.core.runtime import Memories, Runtime
from hansa.core.tensors import EMPTY, Tensors
from hansa.runtimes.allocator import keep_freed_memory
from hansa.runtimes.history import History
from hansa.runtimes.pool import COHORT, DEVICE, HELD_BYTES, Member, Performer, PoolSession, Report
from hansa.runtimes.shared import Spare, Spares, borrow_tensors, read_tensors, write_tensors
from hansa.runtimes.simulation import simulate

SPARES, MAPPINGS = 16, 256  # files for each process: some messages wait for their turn; each holds a file descriptor


@dataclass(frozen=True)
class Processes(Runtime):
    """Trains in several processes of this machine.

    Args:
      count: how many; None for one on each of `devices`, or without them for one a core.
      cohort: clients whose data a process opens and hands to the model together, where it trains many at once
        (`TorchModel(loop="cohort")`); others are trained one at a time. A number of its own, not a share of the round,
        so that the result does not depend on `count`. A GPU wants hundreds.
      devices: where models train that leave it to their process (`TorchModel(device="cuda")`), as `("cuda:0",
        "cuda:1")`: processes take them in turn, and one that replaces another takes over its device. What is trained
        comes back through shared memory, to be added up in this process in the order of tasks.
    """

    count: int | None = None
    cohort: int = COHORT
    devices: Sequence[str] = ()

    def __post_init__(self) -> None:
        devices = self.devices
        if isinstance(devices, str) or not all(isinstance(one, str) and one for one in devices):
            raise ConfigError(f'devices={devices!r}: give a sequence of names, as ("cuda:0", "cuda:1").')
        object.__setattr__(self, "devices", tuple(devices))
        if self.count is not None and self.count < 1:
            raise ConfigError(f"count={self.count}: at least one process is needed.")
        require(self.cohort >= 1, f"cohort={self.cohort}: at least one client is trained at a time.")

    @property
    def workers(self) -> int:
        """How many processes there are."""
        return self.count or len(self.devices) or os.cpu_count() or 1

    def run(self, job: Job, clients: Clients, **options: Any) -> History:
        """Trains to the end, or from the store's last committed round; options as those of `simulate`."""

        def opened(job: Job, clients: Clients, memories: Memories) -> "closing[ProcessSession]":
            return closing(ProcessSession(job, clients, memories, self.workers, self.cohort, self.devices))

        return simulate(opened, job, clients, **options)


class ProcessSession(PoolSession[str]):
    """Hands each task to an idle process; a handle is the path of a safetensors file.

    Args:
      job, clients, memories, count, cohort: as those of every pool.
      devices: of the processes, in turn.

    Raises:
      ConfigError: there are devices, and the job's model names one of its own.
    """

    def __init__(
        self, job: Job, clients: Clients, memories: Memories, count: int, cohort: int = 1, devices: Sequence[str] = ()
    ) -> None:
        own = getattr(job.model, "device", None)
        if devices and own not in (None, "cuda"):
            raise ConfigError(
                f"devices={tuple(devices)} of the processes, but the model says device='{own}': leave it to them by "
                "device='cuda'."
            )
        super().__init__(job, clients, memories, count, cohort)
        self._devices = tuple(devices)
        shared = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self._folder = tempfile.TemporaryDirectory(prefix="hansa-", dir=shared)
        self._spares = Spares(min(SPARES * count, MAPPINGS), HELD_BYTES)

    def close(self) -> None:
        """Ends the processes and deletes the folder."""
        super().close()
        self._folder.cleanup()

    def _start(self) -> "_Child":
        taken = [member.device for member in self._members if isinstance(member, _Child)]
        device = min(self._devices, key=taken.count, default="")
        return _Child({**self._setup, "folder": self._folder.name}, self._spares, device)

    def _write(self, tensors: Tensors) -> str:
        spare = self._spares.pop()
        return write_tensors(tensors, self._folder.name, spare.path if spare is not None else "")

    def _delete(self, handle: str) -> None:
        children = (member for member in self._members if isinstance(member, _Child) and member.request)
        if any(handle in child.reads for child in children):  # for a task that is over
            os.unlink(handle)
        else:
            self._spares.add(handle)

    def _hear(self) -> tuple[Member[str], Report | str]:
        busy = {member.pipe: member for member in self._members if isinstance(member, _Child) and member.request}
        child = busy[wait(list(busy))[0]]  # type: ignore[index]
        try:
            said = json.loads(child.pipe.recv_bytes())
        except (EOFError, OSError):
            child.end()
            return child, f"exit code {child.process.exitcode}"
        return child, Report.of(said, child.given)


class _Child(Member[str]):
    """A worker process and the pipe to it.

    Args:
      setup: what it is told when it starts.
      spares: of which it is lent one for each message.
      device: where its models train; if empty, as this process's environment says.
    """

    def __init__(self, setup: Mapping[str, Any], spares: Spares, device: str = "") -> None:
        super().__init__()
        self._spares, self.device = spares, device
        self._lent: Spare | None = None
        self.reads: Collection[str] = ()  # the files of its last task
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(
            target=serve, args=(theirs, json.dumps({**setup, "device": device}).encode()), daemon=True
        )
        self.process.start()
        theirs.close()

    def begin(self, asked: Mapping[str, Any], inputs: Mapping[str, str]) -> None:
        self.reads = inputs.values()
        with suppress(OSError):  # it died: the pipe says so again when it is read, and the task goes to another
            if self._lent is not None:  # it was not written to: the task failed
                self._spares.add(*self._lent)
            self._lent = self._spares.pop()
            spare = self._lent.path if self._lent is not None else ""
            self.pipe.send_bytes(json.dumps({**asked, "inputs": inputs, "spare": spare}).encode())

    def given(self, path: str) -> Tensors:
        """What it wrote, which nobody else reads."""
        mapping, self._lent = self._lent.mapping if self._lent is not None else None, None
        return borrow_tensors(path, mapping, self._spares.add)

    def end(self) -> None:
        self.pipe.close()
        self.process.terminate()
        self.process.join()


def serve(pipe: Connection, setup: bytes) -> None:
    """A worker process: does what comes over the pipe until it is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which then ends its children
    keep_freed_memory()
    given = json.loads(setup)
    if given["device"]:
        os.environ[DEVICE] = given["device"]
    performer = Performer(given["job"], given["clients"])
    same = lru_cache(maxsize=2)(read_tensors)  # the model, and what of it is frozen: many tasks read them
    with suppress(EOFError, OSError, KeyboardInterrupt):  # the parent has closed the pipe, or is dead
        while True:
            asked = json.loads(pipe.recv_bytes())
            pipe.send_bytes(json.dumps(_done(performer, asked, given["folder"], same)).encode())
    parent = multiprocessing.parent_process()
    if parent is not None and not parent.is_alive():  # it cannot delete its folder, which is memory
        shutil.rmtree(given["folder"], ignore_errors=True)


def _done(
    performer: Performer, asked: Mapping[str, Any], folder: str, same: Callable[[str], Tensors]
) -> dict[str, Any]:
    """What the performer says, whose message goes into the pages that were lent for it."""
    paths, lent = asked["inputs"], [asked["spare"]]

    def read(name: str) -> Tensors:
        if name not in paths:
            return EMPTY
        return (same if name in ("down", "frozen") else read_tensors)(paths[name])

    def write(tensors: Tensors) -> str:
        return write_tensors(tensors, folder, lent.pop() if lent else "")

    return performer.step(asked, read, write)
