"""One run on the server: `GrpcSession`, which the round loop blocks in and the event loop feeds.

    round loop (a thread for each run)                         event loop (one thread)
      publish ── tasks, content by name ─────────────────────►  offers to those connected, and again to who reconnects
      next ◄──── queue: Reply, Failure, Deadline, Stop ───────  answers inline, or uploads that became whole
      send ───── the server's word in a conversation ────────►  said to those connected, and again to who reconnects
      retire ─── uploads deleted, names forgotten ───────────►

Nothing polls: the round loop sleeps in the queue, the event loop in its selector.
"""

import asyncio
import math
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from hansa.core.checkpoint import buffers, open_bytes, open_stored
from hansa.core.errors import CorruptFile, HansaError, ProtocolError, TrainingFailed
from hansa.core.job import Job
from hansa.core.pipeline import Seat
from hansa.core.runtime import Deadline, Failure, Happening, Reply, Session, Stop, Task, Traffic
from hansa.core.tensors import EMPTY, Tensors
from hansa.runtimes.failpoint import failpoint
from hansa.runtimes.grpc.spool import Spool, Upload
from hansa.runtimes.grpc.wire import INLINE, Pieces, carried, checked, pb, task_to_wire

_SAY_S = 5.0  # how often to say for whom we wait
_SHARE = 64 << 10  # bytes for each party in what is no contribution: keys, signatures, shares, a scheme's key
_LATE = 1000  # answers to tasks that are over, told to the round loop for its count; a flood of them is not


class Stopped(HansaError):
    """The run was ended while it waited for workers."""


class Link(Protocol):
    """A connected worker, as a session sees it."""

    name: str

    def say(self, message: bytes) -> None:
        """Sends a message."""


class Members(Protocol):
    """Who is there, as a session sees it."""

    arrived: threading.Condition

    def population(self) -> list[str]:
        """Everybody who may be asked, sorted."""

    def link(self, name: str) -> Link | None:
        """The connection of a worker, if there is one."""

    def absence(self, name: str) -> str:
        """Since when a worker is away, in words; empty if it is there."""

    def known(self, name: str) -> bool:
        """Whether a member of this name ever connected, with data or to help."""


@dataclass
class Leg:
    """Where a conversation stands: the same leg for all its tasks, each with a deadline of its own."""

    deadline_s: float | None
    number: int = 0
    timer: asyncio.TimerHandle | None = None

    def disarm(self) -> None:
        """No deadline from now on; in the event loop."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


@dataclass(frozen=True)
class Due:
    """The deadline of one leg has come."""

    context: bytes
    leg: int
    deadline: Deadline


@dataclass
class Flying:
    """A task that was published and not retired.

    `limits` are the bytes of the largest honest messages: a contribution, and what is none.
    """

    task: Task
    down: Any  # Payload
    frozen: Any  # Payload or None
    limits: tuple[int, int]
    leg: int = 0
    next: Any = None  # the Payload of the server's answer, from leg 1 on
    answered: bool = False
    upload: Upload | None = None
    uploads: list[Upload] = field(default_factory=list)
    since: float = field(default_factory=time.monotonic)


class GrpcSession(Session):
    """One run on the server.

    Args:
      run: its id.
      job: what runs.
      bundle: Payload of the signed job.
      members: who is there.
      spool: where uploads go.
      loop: of the server.
      workers: how many must have connected, beyond what the cohort needs.
      log: takes what is to be said of this run.
      seat: gives the server's seat in the conversation of a task.
      begins: called before the conversation of a task goes beyond its first leg, with that task.
    """

    def __init__(
        self, run: str, job: Job, *, bundle: Any, members: Members, spool: Spool, loop: asyncio.AbstractEventLoop,
        workers: int, log: Callable[[str], None], seat: Callable[[Task], Seat], begins: Callable[[Task], None],
    ) -> None:  # fmt: skip
        self.run, self.job = run, job
        self.content: dict[bytes, Pieces] = {}  # by name: what may be pulled
        self._bundle, self._members, self._spool, self._loop = bundle, members, spool, loop
        self._workers, self._log, self._seat, self._begins = workers, log, seat, begins
        assert job.pipeline.reducer is not None
        self._reducer = job.pipeline.reducer
        self._queue: queue.SimpleQueue[Happening | Due] = queue.SimpleQueue()
        self._flying: dict[str, Flying] = {}
        self._legs: dict[bytes, Leg] = {}  # by the context of a conversation
        self._limits: dict[str, int] = {}
        self._stopped = False
        self._broken: HansaError | None = None
        self._missing = ""
        self._up = self._down = 0
        self._compute = 0.0
        self._began = time.monotonic()
        self._late = 0
        self._replies = 0

    # -- the round loop's side

    def population(self) -> Sequence[str]:
        """Everybody who ever connected; waits, and says so, while they are too few for the job."""
        with self._members.arrived:
            while True:
                helpers = self._reducer.helpers
                names = [name for name in self._members.population() if name not in helpers]
                fault = next(self.job.who.faults(len(names)), "") if names else "no worker has connected yet"
                if len(names) < self._workers:
                    fault = f"{len(names)} of {self._workers} workers have connected"
                if absent := [name for name in helpers if not self._members.known(name)]:
                    fault = fault or f"helper {', '.join(absent)} has not connected yet"
                if self._stopped:
                    raise Stopped("stopped while it waited for workers")
                if not fault:
                    self._missing = ""
                    return names
                if fault != self._missing:
                    self._missing = fault
                    self._log(f"waiting for workers: {fault}")
                self._members.arrived.wait()

    def publish(
        self, tasks: Sequence[Task], down: Tensors, frozen: Tensors = EMPTY, deadline_s: float | None = None
    ) -> None:
        """Offers tasks to those connected; others get them when they connect."""
        if not tasks:
            return
        first = tasks[0]
        down_payload = self._offered(down)
        frozen_payload = None
        if first.frozen:
            name = bytes.fromhex(first.frozen)
            pieces = self.content.setdefault(name, Pieces(buffers(frozen)))
            frozen_payload = pb.Payload(size=pieces.size, name=name)
        flying = [Flying(task, down_payload, frozen_payload, self._limit(task, len(tasks))) for task in tasks]
        for one in flying:
            self._flying[one.task.key] = one
        self._legs[first.context] = Leg(deadline_s)
        self._soon(self._offer, flying)
        failpoint("after-publish")

    def next(self) -> Happening:
        """What happened next."""
        while True:
            happening = self._queue.get()
            if self._broken is not None:
                raise self._broken
            if isinstance(happening, Due):
                conversation = self._legs.get(happening.context)
                if conversation is None or conversation.number != happening.leg:
                    continue  # it came while its leg was closed
                return happening.deadline
            if isinstance(happening, Reply):
                self._replies += 1
                failpoint("first-reply")
                if self._replies == 2:
                    failpoint("mid-fold")
            return happening

    def send(self, task: Task, leg: int, message: Tensors) -> None:
        """The server's answer in a conversation."""
        conversation, flying = self._legs[task.context], self._flying[task.key]
        if conversation.number < leg:
            if leg == 1:
                self._begins(task)
            conversation.number = leg
            self._soon(self._arm, task, conversation)
        if flying.next is not None:
            self.content.pop(bytes(flying.next.name), None)  # of the leg before, which this worker has answered
        flying.next, flying.leg, flying.answered = self._offered(message), leg, False
        flying.since = time.monotonic()
        self._soon(self._say_next, flying)
        failpoint(f"send-{leg}")

    def seat(self, task: Task) -> Seat:
        """With the server's own keys, where it has an identity."""
        return self._seat(task)

    def retire(self, tasks: Sequence[Task]) -> None:
        """Deletes their uploads and forgets what was offered to them alone."""
        gone = [self._flying.pop(task.key) for task in tasks if task.key in self._flying]
        for one in gone:
            for upload in one.uploads:
                upload.close()
        self._forget()
        left = {one.task.context for one in self._flying.values()}
        over = [self._legs.pop(context) for context in set(self._legs) - left]
        unfinished = [one for one in gone if not (one.answered and one.leg == self._reducer.legs - 1)]
        for one in unfinished:
            if not one.answered and one.leg > self._reducer.counted:  # the record names only those that do not count
                self._log(f"{one.task.client} did not answer in round {one.task.round + 1}{self._where(one)}")
        if unfinished or any(conversation.timer is not None for conversation in over):
            self._soon(self._retired, unfinished, over)
        failpoint("after-retire")

    def _forget(self) -> None:
        """Content that no task needs any more, but what is named by its hash: it is asked for in other rounds, too."""
        payloads = (each for one in self._flying.values() for each in (one.down, one.frozen, one.next))
        used = {bytes(payload.name) for payload in payloads if payload is not None}
        for name in [name for name in self.content if name not in used and len(name) != 32]:
            del self.content[name]

    def traffic(self) -> Traffic:
        """Bytes as they were on the sockets (within 1 % where content is more than a few kilobytes), and seconds."""
        now = time.monotonic()
        traffic = Traffic(self._up, self._down, now - self._began, self._compute)
        self._up = self._down = 0
        self._compute, self._began, self._replies = 0.0, now, 0
        return traffic

    def _soon(self, work: Callable[..., None], *given: Any) -> None:
        """Has the event loop do something; what that raises ends the run, which would wait for ever."""
        self._loop.call_soon_threadsafe(self._done, work, *given)

    def _done(self, work: Callable[..., None], *given: Any) -> None:
        try:
            work(*given)
        except Exception as error:
            self.breaks(TrainingFailed(f"the server cannot speak to its workers: {type(error).__name__}: {error}."))

    def _offered(self, tensors: Tensors) -> Any:
        pieces = Pieces(buffers(tensors))
        if pieces.size <= INLINE:
            return pb.Payload(size=pieces.size, inline=b"".join(pieces.chunks()))
        name = os.urandom(28)
        self.content[name] = pieces
        return pb.Payload(size=pieces.size, name=name, tag=pieces.tag(name))

    def _limit(self, task: Task, parties: int) -> tuple[int, int]:
        """No honest message is larger: a contribution, and what is said in other legs or by helpers."""
        if task.kind not in self._limits:
            shapes = self.job.bind(task.population, task.kind).signal.shapes
            sizes = (math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in shapes.values())
            self._limits[task.kind] = sum(sizes) + 256 * len(shapes) + INLINE
        return self._limits[task.kind], self._limits[task.kind] + _SHARE * parties

    # -- the event loop's side

    def stop(self, reason: str) -> None:
        """Ends the run after its last committed round; from any thread."""
        self._stopped = True
        self._queue.put(Stop(reason))
        with self._members.arrived:
            self._members.arrived.notify_all()

    def breaks(self, fault: HansaError) -> None:
        """Ends the run with an error that is the server's own, as a full disk is."""
        self._broken = fault
        self._queue.put(Stop(str(fault)))

    def connected(self, link: Link) -> None:
        """A worker is here (again): it gets what it owes."""
        for one in list(self._flying.values()):
            if one.task.client == link.name and not one.answered:
                if one.leg:
                    self._say_next(one)
                else:
                    self._tell(link, one)

    def wanted(self, task: Task, leg: int) -> Flying | None:
        """The task that an answer is for, if it is still waited for; else the answer is counted as late or doubled."""
        one = self._flying.get(task.key)
        if one is not None and one.task == task and one.leg == leg and not one.answered:
            return one
        self._late += 1
        if self._late < _LATE:
            self._queue.put(Reply(task, leg, EMPTY))
        return None

    def answer(self, task: Task, answer: Any, size: int) -> None:
        """An answer came inline."""
        self._up += size
        one = self.wanted(task, answer.leg)
        if one is not None:
            content = checked(answer.message, inline=True).inline
            self._whole(one, answer, lambda: open_bytes(content)[0])

    def upload(self, one: Flying, answer: Any) -> Upload:
        """Where an upload goes, or goes on.

        Raises:
          ProtocolError: it is larger than any message of this kind.
        """
        payload = checked(answer.message, inline=False)
        contributes = answer.leg == self._reducer.counted and one.task.role == "worker"
        limit = one.limits[0 if contributes else 1]
        if payload.size > limit:
            fault = ProtocolError(
                f"'{one.task.client}' wants to send {payload.size} bytes, and no such message has more than {limit}."
            )
            self.fail(one.task, str(fault), gone=False)
            raise fault
        if one.upload is None or (one.upload.name, one.upload.size) != (payload.name, payload.size):
            one.upload = self._spool.open(payload.size, bytes(payload.name), bytes(payload.tag))
            one.uploads.append(one.upload)
        return one.upload

    def uploaded(self, one: Flying, answer: Any) -> bool:
        """An upload came to its end; False if its bytes are not those that were sent, and it has to begin again."""
        upload = one.upload
        assert upload is not None
        if not upload.whole():
            upload.close()
            one.upload = None
            return False
        if self.wanted(one.task, answer.leg) is not None:
            self._whole(one, answer, lambda: open_stored(upload.read, upload.size)[0])
            one.upload = None
        return True

    def fail(self, task: Task, reason: str, gone: bool) -> None:
        """A worker gave up on a task."""
        one = self._flying.get(task.key)
        if one is not None and one.task == task and not one.answered:
            one.answered = True
            self._log(f"{task.client} failed in round {task.round + 1}{self._where(one)}: {reason}")
            self._queue.put(Failure(task, reason, gone))

    def moved(self, *, up: int = 0, down: int = 0) -> None:
        """Bytes of bulk went."""
        self._up += up
        self._down += down

    def outstanding(self) -> list[Flying]:
        """Tasks that are waited for."""
        return [one for one in list(self._flying.values()) if not one.answered]

    def waiting(self) -> str:
        """For whom the run waits, in words; empty if it does not."""
        if self._missing:
            return f"waiting for workers: {self._missing}"
        slow = [one for one in self.outstanding() if time.monotonic() - one.since > _SAY_S]
        if not slow:
            return ""
        named = []
        for one in slow[:5]:
            absence = self._members.absence(one.task.client)
            working = f"at work for {time.monotonic() - one.since:.0f} s"
            named.append(f"{one.task.client} ({absence or working})")
        return f"waiting for {', '.join(named)}{f' and {len(slow) - 5} more' if len(slow) > 5 else ''}"

    def _where(self, one: Flying) -> str:
        return f", leg {one.leg + 1} of {self._reducer.legs}" if self._reducer.legs > 1 else ""

    def expire(self, away_s: Callable[[str], float], lease_s: float) -> None:
        """Where a quorum lets a round go on without somebody, a worker that is away longer than its lease is out."""
        if self.job.who.quorum is None:
            return  # everybody is needed, so everybody is waited for
        for one in self.outstanding():
            away = away_s(one.task.client)
            if away > lease_s:
                self.fail(one.task, f"its lease ran out: away for {away:.0f} s", gone=True)

    def _offer(self, flying: Sequence[Flying]) -> None:
        for one in flying:
            link = self._members.link(one.task.client)
            if link is not None and one.task.key in self._flying:
                self._tell(link, one)
        first = flying[0].task
        if (conversation := self._legs.get(first.context)) is not None:
            self._arm(first, conversation)

    def _arm(self, task: Task, conversation: Leg) -> None:
        """Sets the deadline of the leg that begins now, by the event loop's clock, which nobody can set."""
        conversation.disarm()
        if conversation.deadline_s is None or self._legs.get(task.context) is not conversation:
            return
        due = Due(task.context, conversation.number, Deadline(task.kind, task.round, task.attempt))
        conversation.timer = self._loop.call_later(conversation.deadline_s, self._queue.put, due)

    def _tell(self, link: Link, one: Flying) -> None:
        offer = pb.Offer(task=task_to_wire(one.task), down=one.down, frozen=one.frozen, bundle=self._bundle)
        self._say(link, pb.ToWorker(offer=offer))

    def _say_next(self, one: Flying) -> None:
        link = self._members.link(one.task.client)
        if link is not None:
            word = pb.Next(task=task_to_wire(one.task), leg=one.leg, message=one.next)
            self._say(link, pb.ToWorker(next=word))

    def _say(self, link: Link, message: Any) -> None:
        data = message.SerializeToString()
        self._down += carried(len(data))
        link.say(data)

    def _retired(self, unfinished: Sequence[Flying], over: Sequence[Leg]) -> None:
        for conversation in over:
            conversation.disarm()
        for one in unfinished:
            link = self._members.link(one.task.client)
            if link is not None:
                self._say(link, pb.ToWorker(retire=pb.Retire(run=self.run, keys=[one.task.key])))

    def _whole(self, one: Flying, answer: Any, opened: Callable[[], Tensors]) -> None:
        seconds = answer.seconds if 0 <= answer.seconds < 1e9 else 0.0
        try:
            reply = Reply(one.task, one.leg, opened(), answer.message.size, seconds)
        except CorruptFile as error:
            self.fail(one.task, f"its message cannot be read: {error}", gone=False)
            return
        one.answered = True
        self._compute += seconds
        self._queue.put(reply)
        failpoint(f"reply-{one.leg}")
