"""The worker: dials the server, gets offers, has them done in an executor beside it, sends what comes of them.

    folder/                           mode 0700, one worker at a time
      decisions.jsonl                 which jobs were allowed to run here, and why
      runs/RUN/job.hansa, code/       the signed job, and its files once they are allowed
      runs/RUN/memory/CLIENT/…        what this client remembers between tasks
      runs/RUN/said.once              what it said once in secret rounds, so that it never says otherwise
      runs/RUN/bulk/…                 models and updates on their way

It keeps what it answered until the next task of the run, so that a server that comes back without it is told again, and
computes nothing twice. Whatever fails in the job's code is a `Failed` with the lines that failed; the worker goes on.
"""

import asyncio
import hashlib
import logging
import os
import shutil
import signal
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hansa import __version__
from hansa.core.errors import BundleError, ConfigError, HansaError, IdentityError, PolicyError, ProtocolError, Refused
from hansa.core.pipeline import Seat
from hansa.core.runtime import Task
from hansa.crypto.identity import Identity, Signature, verify
from hansa.crypto.seats import IdentitySeat, Journal, NamelessSeat
from hansa.runtimes.bundle import Bundle
from hansa.runtimes.failpoint import failpoint
from hansa.runtimes.folder_lock import lock_folder
from hansa.runtimes.forms import task_form
from hansa.runtimes.grpc.client import error_of
from hansa.runtimes.grpc.hands import Crashed, Hands
from hansa.runtimes.grpc.tls import (
    Gate,
    channel_options,
    check_loopback,
    client_credentials,
    diagnose,
    grpc,
    welcome_content,
)
from hansa.runtimes.grpc.transfer import pull, push
from hansa.runtimes.grpc.wire import PROTOCOL, SERVICE, checked, parse_one, pb, task_from_wire
from hansa.runtimes.policy import Ask, DecisionLog, Policy

LOG = logging.getLogger("hansa.worker")
_REFUSED_S = 5.0  # before a server that refused us is asked again


@dataclass
class Assignment:
    """One run at this worker."""

    id: str
    folder: Path
    journal: Journal
    offers: "asyncio.Queue[Any]" = field(default_factory=asyncio.Queue)
    doing: dict[str, Any] = field(default_factory=dict)  # the newest offer of each task that is not done
    retired: set[str] = field(default_factory=set)
    kept: dict[tuple[str, int], tuple[Any, Path | None]] = field(default_factory=dict)  # answers, until the next task
    hands: Hands | None = None
    loop: "asyncio.Task[None] | None" = None

    def forget(self, keys: Collection[str]) -> None:
        """Lets go of what was answered, and so of conversations."""
        for at in [at for at in self.kept if at[0] in keys]:
            _, path = self.kept.pop(at)
            if path is not None:
                path.unlink(missing_ok=True)


class Worker:
    """A worker of a federation.

    Args:
      server: HOST:PORT.
      folder: its own; made if missing. A worker that is started again with it goes on where it was.
      data: what `hansa.data.files.load` takes: `module.py:function`, a CSV or Parquet file, a URL. None for a helper,
        which has none and takes part in the jobs that name it.
      identity: of role worker. None needs `insecure` and `name`.
      insecure: no TLS and no identities; the server must be on this machine.
      name: who we say to be, if insecure.
      policy: which jobs may run here; None lets nothing run, but for `insecure`, where it lets everything run.
      ask: asks a person, for a policy with `ask`.
      revoked: the authority's revocation list.
      device: handed to the job as HANSA_DEVICE.

    Raises:
      ConfigError, IdentityError: what was given cannot be used.
    """

    start_hands = staticmethod(Hands.start)
    """What runs a job's code: a process of its own, unless a subclass says otherwise."""

    def __init__(
        self,
        server: str,
        folder: str | os.PathLike[str],
        *,
        data: str | None,
        identity: Identity | None = None,
        insecure: bool = False,
        name: str = "",
        policy: Policy | None = None,
        ask: Ask | None = None,
        revoked: Path | None = None,
        device: str = "",
    ) -> None:
        self._metadata: tuple[tuple[str, str], ...] = ()
        if identity is None:
            if not insecure or not name:
                raise ConfigError(
                    "no identity: give one made by `hansa enrol`, or --insecure and a name, for this machine alone."
                )
            check_loopback(server)
            self._metadata = (("hansa-name", name), ("hansa-role", "worker"))
        else:
            identity.check_valid()
            if identity.role != "worker":
                raise IdentityError(
                    f"identity '{identity.name}' is enrolled as {identity.role}: a worker needs the role worker."
                )
            name = identity.name
        self.name, self._server, self._folder, self._data = name, server, Path(folder).absolute(), data
        self._identity, self._policy, self._ask, self._device = identity, policy, ask, device
        self._gate = Gate(identity, revoked)
        self._gate.revoked()
        self._runs: dict[str, Assignment] = {}
        self._outbox: asyncio.Queue[bytes] = asyncio.Queue()
        self._connected = False
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise ConfigError(f"folder {self._folder} cannot be used ({error.strerror}): choose another.") from None
        self._lock = lock_folder(self._folder, "worker", "--folder")

    async def run(self) -> None:
        """Works until it is cancelled."""
        for left in self._folder.glob("runs/*/bulk/*"):
            left.unlink(missing_ok=True)
        try:
            while True:
                # A new channel for each try would begin without back-off; one channel keeps its own, about a second.
                async with self._channel() as self._open:
                    await self._connect_again_and_again()
        finally:
            for run in self._runs.values():
                if run.loop is not None:
                    run.loop.cancel()
                if run.hands is not None:
                    run.hands.end()
            self._lock.close()

    def _channel(self) -> Any:
        if self._identity is None:
            return grpc.aio.insecure_channel(self._server, options=channel_options())
        return grpc.aio.secure_channel(self._server, client_credentials(self._identity), options=channel_options())

    async def _connect_again_and_again(self) -> None:
        said = ""
        while True:
            try:
                await self._stream()
                said = "the server ended the stream"
            except grpc.aio.AioRpcError as error:
                fault = await asyncio.to_thread(error_of, error, self._server, self._identity)
                if str(fault) != said:
                    said = str(fault)
                    LOG.warning("%s", fault)
                if error.code() != grpc.StatusCode.UNAVAILABLE:
                    await asyncio.sleep(_REFUSED_S)
            except (ProtocolError, IdentityError, Refused) as fault:
                LOG.error("server %s: %s", self._server, fault)
                await asyncio.sleep(_REFUSED_S)
            finally:
                self._connected = False

    async def _stream(self) -> None:
        call = self._open.stream_stream(f"/{SERVICE}/Work")(metadata=self._metadata, wait_for_ready=True)
        waiting = asyncio.get_running_loop().call_later(3.0, lambda: asyncio.ensure_future(self._complain()))
        nonce = os.urandom(32)
        try:
            hello = pb.Hello(protocol=PROTOCOL, hansa=__version__, nonce=nonce, helper=self._data is None)
            await call.write(pb.FromWorker(hello=hello).SerializeToString())
            what, welcome = parse_one(pb.ToWorker, await self._got(call))
        finally:
            waiting.cancel()
        if what != "welcome" or welcome.protocol != PROTOCOL:
            raise ProtocolError(
                f"it greets with {what}, protocol {getattr(welcome, 'protocol', '?')}: install the same Hansa."
            )
        self._check_server(nonce, welcome.signature)
        for run in [run for run in self._runs if run not in welcome.runs]:
            self._end(run)
        self._connected = True
        LOG.info("%s is connected to %s (Hansa %s)", self.name, self._server, welcome.hansa)
        writer = asyncio.create_task(self._write(call))
        pinger = asyncio.create_task(self._ping(min(max(welcome.ping_s, 1), 3600)))
        try:
            while True:
                self._take(*parse_one(pb.ToWorker, await self._got(call)))
        finally:
            writer.cancel()
            pinger.cancel()
            call.cancel()

    async def _got(self, call: Any) -> bytes:
        data = await call.read()
        if data is grpc.aio.EOF:
            raise grpc.aio.AioRpcError(
                await call.code(), await call.initial_metadata(), await call.trailing_metadata(), await call.details()
            )
        return bytes(data)

    async def _complain(self) -> None:
        if not self._connected:
            LOG.warning(
                "no connection to %s: %s; trying on",
                self._server,
                await asyncio.to_thread(diagnose, self._server, self._identity),
            )

    def _check_server(self, nonce: bytes, signature: bytes) -> None:
        """Only a member with the role server signs our nonce; for TLS alone any with this host name would do."""
        if self._identity is not None:
            content = welcome_content(nonce, self.name)
            verify(
                Signature.load(signature),
                content,
                self._identity.authority_pem,
                role="server",
                revoked=self._gate.revoked(),
                purpose="welcome",
            )

    async def _write(self, call: Any) -> None:
        while True:
            await call.write(await self._outbox.get())

    async def _ping(self, every_s: int) -> None:
        number = 0
        while True:
            await asyncio.sleep(every_s)
            number += 1
            self._say(ping=pb.Ping(number=number))

    def _say(self, **what: Any) -> None:
        self._outbox.put_nowait(pb.FromWorker(**what).SerializeToString())

    # -- what the server says

    def _take(self, what: str, message: Any) -> None:
        if what in ("offer", "next"):
            task = task_from_wire(message.task)
            if task.client != self.name:
                raise ProtocolError(f"it offers a task of '{task.client[:64]}'.")
            run = self._assignment(task.run)
            if what == "next" or task.key not in run.doing:
                run.offers.put_nowait(message)
            if what == "offer":
                run.doing[task.key] = message  # the newest: a server that came back has new names for the same content
        elif what == "retire":
            self._retired(message)
        else:
            raise ProtocolError(f"it says {what} to a worker that is connected.")

    def _assignment(self, run: str) -> Assignment:
        if run not in self._runs:
            folder = self._folder / "runs" / run
            (folder / "bulk").mkdir(parents=True, exist_ok=True, mode=0o700)
            found = self._runs[run] = Assignment(run, folder, Journal(folder / "said.once"))
            found.loop = asyncio.create_task(self._work(found))
        return self._runs[run]

    def _retired(self, message: Any) -> None:
        run = self._runs.get(message.run)
        if run is None:
            return
        run.retired.update(key for key in message.keys if key in run.doing)
        run.forget(message.keys)
        if run.hands is not None and message.keys:
            run.hands.forget(list(message.keys))
        if message.over:
            self._end(run.id)

    def _end(self, run: str) -> None:
        """Lets go of a run: its process and its files, but not what clients remember, for it may be resumed."""
        over = self._runs.pop(run)
        if over.loop is not None:
            over.loop.cancel()
        if over.hands is not None:
            over.hands.end()
        for name in ("bulk", "code"):
            shutil.rmtree(over.folder / name, ignore_errors=True)

    # -- one run

    async def _work(self, run: Assignment) -> None:
        """Does what is offered, one thing after the other."""
        while True:
            offer = await run.offers.get()
            task, goes_on = task_from_wire(offer.task), isinstance(offer, pb.Next)
            try:
                if goes_on:
                    await self._go_on(run, task, offer)
                elif task.key not in run.retired:
                    await self._do(run, task, offer)
            except (HansaError, Crashed, OSError) as error:
                if isinstance(error, Crashed):
                    run.hands = None
                LOG.warning("run %s: %s", run.id, error)
                self._fail(run, task, offer.task, _reason(error))
            except grpc.aio.AioRpcError as error:
                LOG.warning("run %s: %s: %s", run.id, error.code().name, error.details())
                if not goes_on and run.doing[task.key] is not offer:
                    run.offers.put_nowait(run.doing[task.key])
                    continue
            if not goes_on:
                run.doing.pop(task.key)
                run.retired.discard(task.key)

    def _fail(self, run: Assignment, task: Task, asked: Any, reason: str, gone: bool = False) -> None:
        self._say(failed=pb.Failed(task=asked, reason=reason, gone=gone))
        run.forget([task.key])

    async def _do(self, run: Assignment, task: Task, offer: Any) -> None:
        """A task from its beginning; again, if a server that came back begins an attempt anew in which we went on."""
        kept = run.kept.get((task.key, 0))
        if kept is not None and kept[0].task == offer.task and (task.key, 1) not in run.kept:
            await self._send(run, *kept)
            return
        run.forget({kept for kept, _ in run.kept})
        if run.hands is None or not run.hands.alive:
            run.hands = await self._prepared(run, offer)
        frozen = ""
        if task.frozen:
            frozen = f"frozen-{offer.frozen.name.hex()}"
            if not (run.folder / "bulk" / frozen).exists():
                await self._pull(run, offer.frozen, run.folder / "bulk" / frozen)
        down = checked(offer.down)
        file = "" if down.inline else down.name.hex()
        if file and not (run.folder / "bulk" / file).exists():
            await self._pull(run, down, run.folder / "bulk" / file)
        header = {"do": "perform", "task": task_form(task), "down": file, "frozen": frozen}
        said = await run.hands.ask(header, down.inline, self._seat(run, task))
        if file:
            (run.folder / "bulk" / file).unlink(missing_ok=True)
        await self._say_done(run, task, offer.task, said)

    async def _go_on(self, run: Assignment, task: Task, word: Any) -> None:
        """The next leg of a reducer's conversation, or its answer again."""
        if (kept := run.kept.get((task.key, word.leg))) is not None:
            await self._send(run, *kept)
            return
        before = run.kept.get((task.key, word.leg - 1))
        if before is None or before[0].task != word.task or run.hands is None:
            self._fail(run, task, word.task, "it was restarted in the middle of a round of several legs", gone=True)
            return
        failpoint(f"leg-{word.leg}")
        content = checked(word.message)
        file = "" if content.inline else content.name.hex()
        if file:
            await self._pull(run, content, run.folder / "bulk" / file)
        header = {"do": "answer", "key": task.key, "leg": word.leg, "message": file}
        said = await run.hands.ask(header, content.inline, self._seat(run, task))
        if file:
            (run.folder / "bulk" / file).unlink(missing_ok=True)
        await self._say_done(run, task, word.task, said)

    async def _say_done(self, run: Assignment, task: Task, asked: Any, said: tuple[dict[str, Any], bytes]) -> None:
        header, raw = said
        if header["did"] == "failed":
            self._fail(run, task, asked, header["reason"], header["gone"])
            return
        path = run.folder / "bulk" / header["file"] if "file" in header else None
        if path is None:
            payload = pb.Payload(size=len(raw), inline=raw)
        else:
            payload = pb.Payload(
                size=header["length"], name=bytes.fromhex(header["name"]), tag=bytes.fromhex(header["tag"])
            )
        answer = pb.Answer(task=asked, leg=header["leg"], message=payload, seconds=header["seconds"])
        run.kept[task.key, header["leg"]] = answer, path
        await self._send(run, answer, path)

    def _seat(self, run: Assignment, task: Task) -> Seat:
        """Whatever the job's code asks for in a task, it is answered as of that task alone."""
        if self._identity is None:
            return NamelessSeat(self.name, task.context, run.journal)
        return IdentitySeat(self.name, task.context, run.journal, self._identity, self._gate.revoked)

    async def _send(self, run: Assignment, answer: Any, path: Path | None) -> None:
        if path is None:
            self._say(answer=answer)
        elif path.exists():
            await push(self._open, self._metadata, answer, path)

    async def _pull(self, run: Assignment, payload: Any, path: Path) -> None:
        await pull(self._open, self._metadata, run.id, checked(payload, inline=False), path)

    async def _prepared(self, run: Assignment, offer: Any) -> Hands:
        """An executor that has loaded the job and our data; nothing of the job is unpacked before it is allowed."""
        path = run.folder / "job.hansa"
        if not path.exists() or hashlib.sha256(path.read_bytes()).digest() != offer.bundle.name:
            await self._pull(run, offer.bundle, path)
        bundle = await asyncio.to_thread(self._allowed, path)
        shutil.rmtree(run.folder / "code", ignore_errors=True)
        entry = await asyncio.to_thread(bundle.extract, run.folder / "code")

        def log(text: str) -> None:
            if self._connected:
                self._say(log=pb.Log(run=run.id, text=text))

        hands = await self.start_hands(run.folder, self._device, log)
        header, _ = await hands.ask(
            {"do": "load", "entry": str(entry), "bundle": bundle.hash, "data": self._data, "folder": str(run.folder)}
        )
        hands.decide(header["hides"])
        if header["did"] == "failed":
            hands.end()
            raise Refused(header["reason"])
        examples = "no data, to help" if self._data is None else f"{header['examples']} examples"
        LOG.info("run %s: job %s is loaded, with %s", run.id, bundle.hash[:12], examples)
        return hands

    def _allowed(self, path: Path) -> Bundle:
        """The job, if its signature holds and the owner's policy lets it run; blocking."""
        bundle = Bundle.open(path.read_bytes())
        signer = None
        if self._identity is not None:
            signer = bundle.verify(self._identity.authority_pem, self._gate.revoked())
        policy = self._policy if self._policy is not None or self._identity is None else Policy()
        if policy is not None:
            policy.decide(bundle, signer, log=DecisionLog(self._folder / "decisions.jsonl"), ask=self._ask).enforce()
        bundle.check_installed()
        return bundle


def _reason(error: Exception) -> str:
    kinds: Collection[type[Exception]] = (PolicyError, BundleError)
    return f"{type(error).__name__}: {error}" if type(error) in kinds else str(error)


def work(
    server: str, folder: str | os.PathLike[str], *, ready: Callable[[], None] | None = None, **options: Any
) -> None:
    """Runs a worker in this process until SIGINT or SIGTERM; the arguments are those of `Worker`."""

    async def main() -> None:
        worker = Worker(server, folder, **options)
        task = asyncio.create_task(worker.run())
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        if ready is not None:
            ready()
        try:
            await task
        except asyncio.CancelledError:
            LOG.info("%s ends after %.0f s of processor time", worker.name, time.process_time())

    asyncio.run(main())
