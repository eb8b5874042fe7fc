"""The process in which a worker runs one run's code: it has the data and the job, but no key and no connection.

    worker ◄── socketpair: frames ──► executor          python -m hansa.runtimes.grpc.executor FD

A frame is 4 bytes (length of the header, little-endian), a header in JSON, and `size` raw bytes where the header has
`size`. Content too large for a frame is a file in the run's folder, named in the header. Nothing is ever unpickled.

    {"do": "load", entry, bundle, data, folder}      → {"did": "load", fingerprint, hides} or {"did": "failed" …}
    {"do": "perform", task, down, frozen}            → {"did": "message", key, leg, seconds, name, tag, size | file}
    {"do": "answer", key, leg, message}              → the same, or {"did": "failed", key, reason, gone, hides}
    {"do": "forget", keys}

In the middle of a task the executor may ask for what needs keys: see `seat`.
"""

import hashlib
import json
import mmap
import os
import secrets
import socket
import sys
import time
import traceback
from collections import deque
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hansa.core.checkpoint import Buffer, buffers, open_bytes
from hansa.core.errors import CorruptFile, DataError, HansaError, PolicyError, SecretRoundVoid, StateMismatch
from hansa.core.job import Job
from hansa.core.pipeline import Seat
from hansa.core.runtime import Task
from hansa.core.tensors import EMPTY, Tensors
from hansa.core.worker import perform
from hansa.data.files import load as load_data
from hansa.privacy.disclosure import hides_workers
from hansa.runtimes.failpoint import failpoint
from hansa.runtimes.forms import task_of
from hansa.runtimes.grpc.seat import DistantSeat
from hansa.runtimes.grpc.wire import INLINE, Tag
from hansa.runtimes.jobfile import load_job


class Frames:
    """Frames over a blocking socket."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._file = sock.makefile("rb", buffering=1 << 18)

    def read(self) -> tuple[dict[str, Any], bytes] | None:
        """The next frame, or None at the end."""
        start = self._file.read(4)
        if len(start) < 4:
            return None
        header = json.loads(self._file.read(int.from_bytes(start, "little")))
        return header, self._file.read(header.get("size", 0))

    def write(self, header: dict[str, Any], raw: Buffer = b"") -> None:
        """Sends one."""
        self._socket.sendall(frame(header, raw))


def frame(header: dict[str, Any], raw: Buffer = b"") -> bytes:
    """A frame's bytes."""
    text = json.dumps({**header, "size": len(raw)} if len(raw) else header).encode()
    return b"".join((len(text).to_bytes(4, "little"), text, raw))


class DiskMemories:
    """What this run's clients remember between tasks: a file for each counted task, and for the last one tried."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._loaded: dict[str, str] = {}  # client -> file of the memory its last task began with

    def load(self, client: str, since: str) -> Tensors:
        """The memory saved under `since`; it stays until another was saved and this one is not asked for any more."""
        self._loaded[client] = f"{since}.safetensors"
        if not since:
            return EMPTY
        path = self._folder / client / f"{since}.safetensors"
        if not path.exists():
            raise CorruptFile(
                f"'{client}' has no memory of round {since}, which the server counted: its folder was lost or changed; "
                "restore it, or submit the job again."
            )
        return open_bytes(path.read_bytes())[0]

    def save(self, client: str, name: str, memory: Tensors) -> None:
        """Keeps a memory, on disk when this returns, beside the one its task began with; older ones are deleted."""
        path = self._folder / client / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        beside = path.with_suffix(".partial")
        with open(beside, "wb") as file:
            for piece in buffers(memory):
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
        for other in path.parent.glob("*.safetensors"):
            if other.name not in (path.name, self._loaded.get(client)):
                other.unlink()


@dataclass(frozen=True)
class Conversation:
    """A task that is being done."""

    task: Task
    seat: Seat
    steps: Generator[Tensors, Tensors | None, Tensors]
    id: bytes = field(default_factory=lambda: os.urandom(16))  # of no other, though it were of the same attempt


class Executor:
    """Does what the worker says, one thing at a time."""

    def __init__(self, frames: Frames) -> None:
        self._frames = frames
        self._later: deque[tuple[dict[str, Any], bytes]] = deque()  # said while we waited for an answer
        self._job: Job
        self._data: Any
        self._memories: DiskMemories
        self._folder: Path
        self._fingerprint = ""
        self._hides = False
        self._talking: dict[str, Conversation] = {}
        self._frozen: tuple[str, Tensors] = ("", EMPTY)

    def run(self) -> None:
        """Until the worker hangs up."""
        while (got := self._later.popleft() if self._later else self._frames.read()) is not None:
            header, raw = got
            what = header.pop("do")
            try:
                getattr(self, f"_{what}")(raw=raw, **header)
            except Exception as error:
                key = header.get("key") or (header.get("task") and task_of(header["task"]).key)
                self._talking.pop(str(key), None)
                if not isinstance(error, HansaError):
                    traceback.print_exc()
                    sys.stderr.flush()
                gone = isinstance(error, SecretRoundVoid)  # it refused this attempt, and takes part in another
                said = {"reason": _reason(error, self._hides), "gone": gone, "hides": self._hides}
                self._frames.write({"did": "failed", "key": key, **said})

    def _ask(self, header: dict[str, Any], raw: bytes) -> tuple[dict[str, Any], bytes]:
        """Asks the worker in the middle of a task; what else it says meanwhile is done afterwards."""
        self._frames.write(header, raw)
        while (got := self._frames.read()) is not None:
            if got[0]["do"] == "seat":
                return got
            self._later.append(got)
        raise SystemExit  # it hung up

    def _load(self, raw: bytes, entry: str, bundle: str, data: str | None, folder: str) -> None:
        self._folder = Path(folder)
        self._memories = DiskMemories(self._folder / "memory")
        self._job = load_job(entry)
        self._fingerprint, self._hides = self._job.fingerprint(bundle), hides_workers(self._job)
        self._data = load_data(data) if data is not None else None
        examples = len(self._data) if data is not None else 0
        self._frames.write(
            {"did": "load", "fingerprint": self._fingerprint, "examples": examples, "hides": self._hides}
        )

    def _perform(self, raw: bytes, task: dict[str, Any], down: str, frozen: str, size: int = 0) -> None:
        asked = task_of(task)
        if asked.fingerprint != self._fingerprint:
            raise StateMismatch(
                f"the task has the fingerprint {asked.fingerprint[:12]}, the job here {self._fingerprint[:12]}: "
                "install the same version of Hansa on both sides."
            )
        self._check_role(asked)
        failpoint("mid-training")
        helps = asked.role == "helper"
        data, memory = ((), EMPTY) if helps else (self._data, self._memories.load(asked.client, asked.since))
        seat = DistantSeat(asked.client, asked.context, self._ask)
        began = time.perf_counter()
        steps = perform(self._job, asked, self._opened(down, raw), data, memory, self._frozen_of(asked, frozen), seat)
        talk = self._talking[asked.key] = Conversation(asked, seat, steps)
        self._say(talk, 0, next(steps), time.perf_counter() - began)

    def _check_role(self, task: Task) -> None:
        """A helper is whom the job names, whatever the server says; and who has no data is asked for none."""
        reducer = self._job.pipeline.reducer
        helpers = reducer.helpers if reducer is not None else ()
        if (task.role == "helper") != (task.client in helpers):
            raise PolicyError(
                f"'{task.client}' was asked as a {task.role}, but the helpers that the job names are: "
                f"{', '.join(helpers) or 'nobody'}."
            )
        if task.role != "helper" and self._data is None:
            raise DataError(f"'{task.client}' helps without data: start it with --data to take part in this job.")

    def _answer(self, raw: bytes, key: str, leg: int, message: str, size: int = 0) -> None:
        talk = self._talking[key]
        began = time.perf_counter()
        if (
            leg == 1
        ):  # whatever the reducer, nobody takes part twice in one attempt: not with other parties or other keys
            talk.seat.once("conversation", talk.id)
        self._say(talk, leg, talk.steps.send(self._opened(message, raw)), time.perf_counter() - began)

    def _forget(self, raw: bytes, keys: list[str]) -> None:
        for key in keys:
            self._talking.pop(key, None)

    def _say(self, talk: Conversation, leg: int, message: Tensors, seconds: float) -> None:
        """Sends a message; with the last one the conversation is over, and its memory safe before anybody counts it."""
        task, reducer = talk.task, self._job.pipeline.reducer
        assert reducer is not None
        if leg == reducer.legs - 1:
            try:
                self._talking.pop(task.key).steps.send(None)
            except StopIteration as end:
                # A file that is synced costs milliseconds.
                if task.kind == "train" and task.role != "helper" and self._job.remembers:
                    self._memories.save(task.client, task.memory, end.value)
        pieces = buffers(message)
        length = sum(map(len, pieces))
        header = {"did": "message", "key": task.key, "leg": leg, "seconds": seconds}
        if length <= INLINE:
            self._frames.write(header, b"".join(pieces))
            return
        path, name = self._folder / "bulk" / f"{secrets.token_hex(8)}.up", os.urandom(28)
        tag = Tag(name)
        with open(path, "wb", buffering=0) as file:
            for piece in pieces:
                view = memoryview(piece)
                for at in range(0, len(view), 1 << 20):
                    block = view[at : at + (1 << 20)]
                    tag.update(block)
                    file.write(block)
        self._frames.write(
            {**header, "file": path.name, "length": length, "name": name.hex(), "tag": tag.value().hex()}
        )

    def _opened(self, file: str, raw: bytes) -> Tensors:
        """Content that came in the frame, or lies in a file of the run's folder."""
        return open_bytes(raw if not file else _mapped(self._folder / "bulk" / file))[0]

    def _frozen_of(self, task: Task, file: str) -> Tensors:
        if not task.frozen:
            return EMPTY
        if self._frozen[0] != task.frozen:
            content = _mapped(self._folder / "bulk" / file)
            if hashlib.sha256(content).hexdigest() != task.frozen:
                raise CorruptFile(
                    f"the frozen tensors are not those of the hash {task.frozen[:12]}: ask for them again."
                )
            self._frozen = task.frozen, open_bytes(content)[0]
        return self._frozen[1]


def _mapped(path: Path) -> Buffer:
    with open(path, "rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _reason(error: Exception, hides: bool) -> str:
    """The sentence for the server: of our errors their own words, of others the lines of the job that failed.

    Where the job hides what workers hold, only the kind of a foreign error: what it says may be an example's content.
    """
    name = type(error).__name__
    if isinstance(error, HansaError):
        return f"{name}: {error}"
    if hides:
        lines = "".join(traceback.format_tb(error.__traceback__)[-5:]).strip()
        return f"the job's code failed: {lines[-1400:]}\n{name}, whose words are in the worker's log"
    return "the job's code failed: " + "".join(traceback.format_exception(error)[-6:]).strip()[-1500:]


def main() -> None:
    """The process: its one argument is the number of the socket it inherited."""
    sock = socket.socket(fileno=int(sys.argv[1]))
    os.set_inheritable(sock.fileno(), False)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    Executor(Frames(sock)).run()


if __name__ == "__main__":
    main()
