"""Who is connected and what runs: the part of a server that outlives every call and every round.

It belongs to the event loop; the threads of runs look in through `members` and are looked at through their sessions.
"""

import asyncio
import hashlib
import logging
import shutil
import threading
import time
from collections.abc import Callable
from typing import Any

from hansa.core.errors import BundleError, ConfigError, HansaError, MissingExtra, NotFound
from hansa.core.ledger import EXACT, Ledger
from hansa.core.pipeline import Seat
from hansa.core.runtime import Task
from hansa.core.train import Record, train
from hansa.crypto.certificate import Peer
from hansa.crypto.identity import Identity
from hansa.crypto.seats import IdentitySeat, Journal, NamelessSeat
from hansa.privacy import epsilon_of
from hansa.runtimes.bundle import Bundle
from hansa.runtimes.grpc.runlog import RunLog
from hansa.runtimes.grpc.session import GrpcSession, Stopped
from hansa.runtimes.grpc.spool import Places, Spool
from hansa.runtimes.grpc.tls import Gate
from hansa.runtimes.grpc.wire import Pieces, pb
from hansa.runtimes.jobfile import load_job
from hansa.runtimes.policy import DecisionLog, Policy
from hansa.runtimes.store import SqlStore

LOG = logging.getLogger("hansa.server")
_LOOK_S = 5.0
_loading = threading.Lock()  # one job file at a time is loaded in a process


class Bell:
    """Wakes whoever waits for news; may be rung from any thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: list[asyncio.Future[None]] = []
        self.rung = 0  # times; what a listener remembers before it looks

    def ring(self) -> None:
        """There is news."""
        self.rung += 1
        if self._waiting:
            self._loop.call_soon_threadsafe(self._wake)

    async def heard(self, rung: int, timeout_s: float) -> None:
        """Returns once it has been rung more often than that, or after the time is over."""
        if self.rung != rung:
            return
        future = self._loop.create_future()
        self._waiting.append(future)
        await asyncio.wait([future], timeout=timeout_s)
        if future in self._waiting:
            self._waiting.remove(future)

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)


class Worker:
    """A connected worker. `say` puts a message into its stream; `leave` ends it with a reason.

    Args:
      peer: who it is.
      helper: whether it has no data, and is there for jobs that name it as a helper.
    """

    def __init__(self, peer: Peer, helper: bool = False) -> None:
        self.peer, self.name = peer, peer.name
        self.role = "helper" if helper else "worker"
        self.outbox: asyncio.Queue[bytes | str] = asyncio.Queue()
        self.heard = time.monotonic()

    def say(self, message: bytes) -> None:
        """Queues a message."""
        self.outbox.put_nowait(message)

    def leave(self, reason: str) -> None:
        """Ends the connection once what is queued went out."""
        self.outbox.put_nowait(reason)


class Run:
    """A run that is going on: its thread, its session, its log."""

    def __init__(self, row: dict[str, Any], log: RunLog, bell: Bell) -> None:
        self.id: str = row["id"]
        self.row, self.log, self.bell = row, log, bell
        self.session: GrpcSession | None = None
        self.thread: threading.Thread | None = None
        self.stopping = ""
        self.sees = ""  # what the server sees of it, in words, once it is known


class Federation:
    """Everything a server knows while it runs.

    Args:
      store: its state.
      gate: who may come in.
      identity: the server's; None if insecure.
      policy: which jobs run here; None takes those of every enrolled submitter.
      loop: the server's.
      lease_s: how long a worker may be silent.
    """

    def __init__(
        self,
        store: SqlStore,
        gate: Gate,
        identity: Identity | None,
        policy: Policy | None,
        loop: asyncio.AbstractEventLoop,
        lease_s: float,
    ) -> None:
        self.store, self.gate, self.identity, self.policy, self.loop = store, gate, identity, policy, loop
        self.lease_s = lease_s
        self.places = Places()
        self.arrived = threading.Condition()
        self.runs: dict[str, Run] = {}
        self.workers: dict[str, Worker] = {}
        self._spool = Spool(store.folder / "spool")
        members = {row["name"]: row for row in store.members()}
        self._known = {name: row["role"] for name, row in members.items() if row["role"] in ("worker", "helper")}
        self._away = {
            name: time.monotonic() - max(0.0, time.time() - members[name]["last_seen"]) for name in self._known
        }
        self._new: dict[str, str] = {}
        self._writing = False
        self._ending = False
        self._bells: dict[str, Bell] = {}
        self._logs: dict[str, RunLog] = {}

    # -- life

    def start(self) -> None:
        """Goes on with every run that was going on when the server ended, however it ended."""
        for row in self.store.runs():
            if row["state"] in ("submitted", "running"):
                self.begin(row)
        self.loop.call_later(_LOOK_S, self._look)

    def end(self) -> None:
        """Ends all rounds where they are; they go on at the next start."""
        self._ending = True
        for run in list(self.runs.values()):
            if run.session is not None:
                run.session.stop("the server ends")
        for run in list(self.runs.values()):
            if run.thread is not None:
                run.thread.join(timeout=30)

    # -- members, as sessions see them

    def population(self) -> list[str]:
        """Every worker with data that ever connected, and is not revoked, sorted."""
        return sorted(name for name, role in self._known.items() if role == "worker")

    def known(self, name: str) -> bool:
        """Whether a worker of this name, with data or without, ever connected."""
        return name in self._known

    def link(self, name: str) -> Worker | None:
        """A worker's connection."""
        return self.workers.get(name)

    def away_s(self, name: str) -> float:
        """For how many seconds a worker is away; 0 if it is there."""
        return 0.0 if name in self.workers else time.monotonic() - self._away.get(name, time.monotonic())

    def absence(self, name: str) -> str:
        """The same in words."""
        if name in self.workers:
            return ""
        return f"last seen {self.away_s(name):.0f} s ago" if name in self._away else "has not connected yet"

    def entered(self, worker: Worker) -> None:
        """A worker connected; it is asked from the next round on, once that is on disk."""
        before = self.workers.get(worker.name)
        if before is not None:
            before.leave("the same identity connected again: one worker for each identity")
        self.workers[worker.name] = worker
        LOG.info("%s connected", worker.name)
        self.remember(worker.name, worker.role)
        for run in self.runs.values():
            if run.session is not None:
                run.session.connected(worker)

    def left(self, worker: Worker, why: str) -> None:
        """A worker's stream ended."""
        if self.workers.get(worker.name) is worker:
            del self.workers[worker.name]
            self._away[worker.name] = time.monotonic()
            self.remember(worker.name, worker.role)
            LOG.info("%s left: %s", worker.name, why)

    def remember(self, name: str, role: str) -> None:
        """Notes in the store that a member is here; many at once cost one transaction."""
        self._new[name] = role
        if not self._writing:
            self._writing = True
            self._task = self.loop.create_task(self._write_members())

    async def _write_members(self) -> None:
        try:
            while self._new:
                names, self._new = self._new, {}
                await asyncio.to_thread(self.store.seen, names)
                with self.arrived:
                    self._known.update(names)
                    self.arrived.notify_all()
        except HansaError as error:
            LOG.error("members cannot be noted: %s", error)
        finally:
            self._writing = False

    # -- runs

    def admit(self, content: bytes, submitter: str) -> tuple[Bundle, str]:
        """A submitted job that may run here, and whose signature it bears; blocking.

        Raises:
          BundleError, PolicyError: it may not; says why.
        """
        bundle = Bundle.open(content)
        signer: str | None = submitter
        if self.identity is not None:
            signer = bundle.verify(self.identity.authority_pem, self.gate.revoked())
        elif bundle.signature is None:
            signer = None
        if self.policy is not None:
            self.policy.decide(bundle, signer, log=DecisionLog(self.store.folder / "decisions.jsonl")).enforce()
        bundle.check_installed()
        self.store.keep_bundle(bundle.hash, content)
        return bundle, signer or submitter

    def begin(self, row: dict[str, Any]) -> Run:
        """Starts a run's thread."""
        run = Run(row, self.log_of(row["id"]), self.bell_of(row["id"]))
        self.runs[run.id] = run
        run.thread = threading.Thread(target=self._go, args=(run,), name=f"run {run.id}", daemon=True)
        run.thread.start()
        return run

    def log_of(self, run: str) -> RunLog:
        """The log of a run."""
        if run not in self._logs:
            self._logs[run] = RunLog(self.store.folder / "logs" / f"{run}.log")
        return self._logs[run]

    def bell_of(self, run: str) -> Bell:
        """What is rung when there is news of a run."""
        return self._bells.setdefault(run, Bell(self.loop))

    def say(self, run: str, source: str, text: str) -> None:
        """Adds to a run's log."""
        self.log_of(run).say(source, text)
        if source == "server":
            LOG.info("run %s: %s", run, text)
        self.bell_of(run).ring()

    def session(self, run: str) -> GrpcSession:
        """The session of a run that goes on; NotFound if there is none."""
        found = self.runs.get(run)
        if found is None or found.session is None:
            raise NotFound(f"run {run} is not going on here.")
        return found.session

    def content(self, run: str, name: bytes) -> Pieces:
        """What may be pulled under a name."""
        session = self.session(run)
        if name == session._bundle.name:
            return Pieces([self.store.bundle(self.runs[run].row["bundle"]).read_bytes()])
        pieces = session.content.get(name)
        if pieces is None:
            raise NotFound(f"content {name.hex()[:12]} of run {run} is not offered any more.")
        return pieces

    def status(self, row: dict[str, Any]) -> dict[str, Any]:
        """A run as people see it; blocking."""
        run = self.runs.get(row["id"])
        count, last = self.store.run(row["id"]).latest()
        return {
            "run": row["id"], "name": row["name"], "state": row["state"], "reason": row["reason"], "round": count,
            "rounds": row["rounds"], "submitter": row["submitter"], "created": row["created"], "bundle": row["bundle"],
            "fingerprint": row["fingerprint"], "waiting": run.session.waiting() if run and run.session else "",
            "sees": run.sees if run else "", "last": last,
        }  # fmt: skip

    def stop(self, run: str, reason: str) -> None:
        """Ends a run after its last committed round; blocking."""
        going = self.runs.get(run)
        if going is None:
            return
        going.stopping = reason
        if going.session is not None:
            going.session.stop(reason)
        if going.thread is not None:
            going.thread.join(timeout=60)

    def resume(self, row: dict[str, Any]) -> None:
        """Goes on with a run that was stopped or failed; blocking."""
        if row["id"] not in self.runs and row["state"] != "done":
            self.store.set_state(row["id"], "submitted")
            self.begin(row)

    # -- the thread of a run

    def _go(self, run: Run) -> None:
        say: Callable[[str], None] = lambda text: self.say(run.id, "server", text)  # noqa: E731
        state, reason = "failed", ""
        try:
            state = self._train(run, say)
            reason = run.stopping
        except Stopped:
            state, reason = "stopped", run.stopping
        except HansaError as error:
            reason = f"{type(error).__name__}: {error}"
        except Exception as error:
            LOG.exception("run %s failed", run.id)
            reason = f"{type(error).__name__}: {error}"
        finally:
            self._over(run, state, reason)

    def _train(self, run: Run, say: Callable[[str], None]) -> str:
        row = run.row
        path = self.store.bundle(row["bundle"])
        content = path.read_bytes()
        bundle = Bundle.open(content)
        if bundle.hash != row["bundle"]:
            raise BundleError(f"job {row['bundle'][:12]} was changed on disk: submit it again.")
        folder = self.store.folder / "jobs" / run.id
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(exist_ok=True, mode=0o700)
        with _loading:
            job = load_job(bundle.extract(folder))
        fingerprint = job.fingerprint(bundle.hash)
        self.store.describe(run.id, name=job.name, fingerprint=fingerprint, rounds=job.rounds)
        store = self.store.run(run.id)
        store.settle()
        self.store.set_state(run.id, "running")
        payload = pb.Payload(size=len(content), name=_digest(content))
        run.session = GrpcSession(
            run.id,
            job,
            bundle=payload,
            members=self,
            spool=self._spool,
            loop=self.loop,
            workers=row["workers"],
            log=say,
            seat=self._seats(run.id),
            begins=lambda task: store.begin(
                task.round - (task.kind == "evaluate"),  # as it will be charged
                task.attempt,
                job.bind(task.population, task.kind).events() or (EXACT,),
            ),
        )
        if run.stopping or self._ending:
            raise Stopped("stopped before it began")
        done = len(store.records())
        store.admit(job, len(run.session.population()))  # waits until there are enough
        say(f"job '{job.name}' {f'goes on after {done} rounds' if done else 'begins'}, of {job.rounds} rounds")

        def observe(record: Record) -> None:
            say(_sentence(record))

        outcome = train(job, run.session, store, run=run.id, fingerprint=fingerprint, observe=observe)
        return "stopped" if outcome.stopped else "done"

    def _seats(self, run: str) -> Callable[[Task], Seat]:
        """What makes the server's seat in each conversation of a run."""
        journal = Journal(self.store.folder / "said" / f"{run}.once")

        def seat(task: Task) -> Seat:
            if self.identity is None:
                return NamelessSeat("server", task.context, journal)
            return IdentitySeat(self.identity.name, task.context, journal, self.identity, self.gate.revoked)

        return seat

    def spent(self, run: str, round: int) -> dict[str, float]:
        """ε and δ of what a run released up to a round; empty if it releases nothing with noise, or none can tell.

        δ is the job's own where it names one, and 1e-5 otherwise.
        """
        entries = tuple(entry for entry in self.store.run(run).charges() if entry.round <= round)
        session = self.runs[run].session if run in self.runs else None
        delta = (session.job.delta if session is not None else None) or 1e-5
        try:
            return {"epsilon": epsilon_of(Ledger(entries), delta).epsilon, "delta": delta} if entries else {}
        except (MissingExtra, ConfigError):  # of an exact total, as that of a secure sum without noise, there is no ε
            return {}

    def _over(self, run: Run, state: str, reason: str) -> None:
        if not (self._ending and state == "stopped"):  # a server that ends leaves its runs as they are: going on
            try:
                self.store.set_state(run.id, state, reason)
            except HansaError as error:
                LOG.error("run %s is %s, which cannot be noted: %s", run.id, state, error)
            self.say(run.id, "server", f"run {state}{f': {reason}' if reason else ''}")
        self.runs.pop(run.id, None)
        shutil.rmtree(self.store.folder / "jobs" / run.id, ignore_errors=True)
        if not self._ending:
            self.loop.call_soon_threadsafe(self._tell_over, run.id)
        run.bell.ring()

    def _tell_over(self, run: str) -> None:
        data = pb.ToWorker(retire=pb.Retire(run=run, over=True)).SerializeToString()
        for worker in self.workers.values():
            worker.say(data)

    def _look(self) -> None:
        """Now and then: who is silent, who was revoked, and for whom a run waits."""
        now = time.monotonic()
        for worker in list(self.workers.values()):
            fault = self._fault(worker)
            if now - worker.heard > self.lease_s:
                fault = f"nothing heard of it for {now - worker.heard:.0f} s"
            if fault:
                worker.leave(fault)
                self.left(worker, fault)
        for run in list(self.runs.values()):
            if run.session is not None:
                run.session.expire(self.away_s, self.lease_s)
                text = run.session.waiting()
                names = text.split("(")[0]
                if text and names != run.row.get("said"):
                    self.say(run.id, "server", text)
                run.row["said"] = names
        self.loop.call_later(_LOOK_S, self._look)

    def _fault(self, worker: Worker) -> str | None:
        try:
            fault = self.gate.fault(worker.peer, ("worker",))
        except HansaError as error:
            return str(error)
        if fault and "revoked" in fault:
            with self.arrived:
                self._known.pop(worker.name, None)
        return fault


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


def _sentence(record: Record) -> str:
    """One round as a line of the log."""
    metrics = {**record.train, **record.workers, **record.central}
    shown = ", ".join(f"{name} {number:.4g}" for name, number in metrics.items())
    out = f", without {', '.join(f'{name} ({why})' for name, why in record.dropped.items())}" if record.dropped else ""
    void = "".join(f"; an attempt before was void ({why})" for why in record.void)
    counted = f"round {record.round + 1}: {record.counted} of {record.asked} workers"
    return f"{counted}{out}{f', {shown}' if shown else ''}{void}"
