"""The server: workers and submitters dial it. One port, mutual TLS, an event loop in a thread of its own.

    Work    a worker's stream: offers down, answers up       role worker
    Pull    one → raw bytes: models, frozen tensors, jobs    role worker
    Push    raw bytes → one: updates                         role worker
    Submit  raw bytes → one: a signed job                    role submitter
    Ask     one → many: list, status, logs, watch, stop …    role submitter
    Model   one → raw bytes: a checkpoint                    role submitter

Who calls is what its certificate says, at every call. A peer's garbage ends its call with one `ProtocolError`, which is
logged here and told to the peer.
"""

import asyncio
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from pathlib import Path
from typing import Any

from hansa.runtimes.grpc import allocator, handshakes

handshakes.prepare()  # before anything imports gRPC

# ruff: noqa: E402
from hansa import __version__
from hansa.core.errors import ConfigError, HansaError, IdentityError, NotFound, ProtocolError, Refused, StorageFull
from hansa.crypto.certificate import Peer
from hansa.crypto.identity import Identity
from hansa.runtimes.bundle import MAX_BYTES
from hansa.runtimes.grpc.federation import Federation, Worker
from hansa.runtimes.grpc.tls import (
    Gate,
    check_loopback,
    grpc,
    server_credentials,
    server_options,
    welcome_content,
)
from hansa.runtimes.grpc.wire import (
    CHUNK,
    PROTOCOL,
    REASON,
    SERVICE,
    Pieces,
    carried,
    parse,
    parse_one,
    pb,
    task_from_wire,
)
from hansa.runtimes.policy import Policy
from hansa.runtimes.store import SqlStore

LOG = logging.getLogger("hansa.server")
_PEOPLE = ("submitter",)
_CODES = {
    IdentityError: grpc.StatusCode.PERMISSION_DENIED,
    NotFound: grpc.StatusCode.NOT_FOUND,
    ProtocolError: grpc.StatusCode.INVALID_ARGUMENT,
    StorageFull: grpc.StatusCode.RESOURCE_EXHAUSTED,
}


class Server:
    """A server of a federation.

    Args:
      state: its folder; see `runtimes/store.py`.
      listen: HOST:PORT; port 0 takes a free one, which `address` then names.
      identity: of role server. None needs `insecure`.
      insecure: no TLS and no identities, on this machine alone.
      revoked: the authority's revocation list, read again when it changes.
      policy: which jobs may run in this process; None takes those of every enrolled submitter.
      database, blobs: see `SqlStore`.
      ping_s: how often workers say that they are there; after three times as long without a word they are absent.

    Raises:
      ConfigError: insecure and reachable from elsewhere, or the port is taken.
      IdentityError: the identity is not a server's.
    """

    def __init__(
        self,
        state: str | os.PathLike[str],
        *,
        listen: str = "127.0.0.1:0",
        identity: Identity | None = None,
        insecure: bool = False,
        revoked: Path | None = None,
        policy: Policy | None = None,
        database: str | None = None,
        blobs: str | None = None,
        ping_s: int = 30,
    ) -> None:
        if identity is None:
            if not insecure:
                raise ConfigError("no identity: give one made by `hansa enrol`, or --insecure for this machine alone.")
            check_loopback(listen)
        else:
            identity.check_valid()
            if identity.role != "server":
                raise IdentityError(
                    f"identity '{identity.name}' is enrolled as {identity.role}: a server needs the role server."
                )
        self.address = ""
        self._listen, self._identity, self._ping_s = listen, identity, ping_s
        self._gate = Gate(identity, revoked)
        self._gate.revoked()
        self._policy = policy
        self._store = SqlStore(state, database=database, blobs=blobs)
        self._fault: BaseException | None = None
        self._ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop
        self._stop: asyncio.Event
        self._thread = threading.Thread(target=self._run, name="server", daemon=True)

    def start(self) -> str:
        """Serves from now on; returns the address."""
        self._thread.start()
        self._ready.wait()
        if self._fault is not None:
            self._store.close()
            raise self._fault
        return self.address

    def stop(self) -> None:
        """Ends; runs go on at the next start."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()
        self._store.close()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            self._fault = error
            LOG.exception("the server ended")
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._federation = Federation(
            self._store, self._gate, self._identity, self._policy, self._loop, 3.0 * self._ping_s
        )
        server = grpc.aio.server(options=server_options())
        server.add_generic_rpc_handlers((self._handlers(),))
        try:
            if self._identity is None:
                port = server.add_insecure_port(self._listen)
            else:
                port = server.add_secure_port(self._listen, server_credentials(self._identity))
        except RuntimeError:
            self._fault = ConfigError(
                f"cannot listen at {self._listen}: another program does, or the address is not this machine's."
            )
            return
        self._federation.start()  # first, for a worker is told at once which runs go on
        await server.start()
        self.address = f"{self._listen.rpartition(':')[0]}:{port}"
        self._ready.set()
        LOG.info("server at %s%s", self.address, "" if self._identity else ", insecure")
        await self._stop.wait()
        await asyncio.to_thread(self._federation.end)
        for worker in list(self._federation.workers.values()):
            worker.leave("the server ends")
        await server.stop(0.5)

    # -- calls

    def _handlers(self) -> Any:
        aio = grpc
        unary_stream, stream_unary = aio.unary_stream_rpc_method_handler, aio.stream_unary_rpc_method_handler
        methods = {
            "Work": aio.stream_stream_rpc_method_handler(self._guarded(("worker",), self._work)),
            "Pull": unary_stream(self._guarded(("worker",), self._pull)),
            "Push": stream_unary(self._guarded(("worker",), self._push)),
            "Submit": stream_unary(self._guarded(("submitter",), self._submit)),
            "Ask": unary_stream(self._guarded(_PEOPLE, self._ask)),
            "Model": unary_stream(self._guarded(_PEOPLE, self._model)),
        }
        handlers = {f"/{SERVICE}/{name}": handler for name, handler in methods.items()}
        handlers["/grpc.health.v1.Health/Check"] = aio.unary_unary_rpc_method_handler(_healthy)

        class Handlers(grpc.GenericRpcHandler):
            def service(self, details: Any) -> Any:
                return handlers.get(details.method)

        return Handlers()

    def _guarded(
        self, roles: Collection[str], call: Callable[[Any, Any, Peer], Awaitable[bytes | None]]
    ) -> Callable[[Any, Any], Awaitable[bytes | None]]:
        """A call that begins with who calls, and whose failures are told to the peer and logged."""

        async def guarded(request: Any, context: Any) -> bytes | None:
            who = context.peer()
            try:
                peer = self._gate.enter(context, roles)
                who = f"{peer.name} ({who})"
                return await call(request, context, peer)
            except asyncio.CancelledError:
                return None  # the peer is gone, or the server ends
            except HansaError as error:
                LOG.warning("refused %s: %s: %s", who, type(error).__name__, error)
                reason = (str(error)[:REASON] or type(error).__name__).encode("ascii", "replace").decode()
                code = next(
                    (code for kind, code in _CODES.items() if isinstance(error, kind)),
                    grpc.StatusCode.FAILED_PRECONDITION,
                )
                await context.abort(code, reason, (("hansa-error", type(error).__name__),))
            return None

        return guarded

    async def _work(self, requests: AsyncIterator[bytes], context: Any, peer: Peer) -> None:
        first = await context.read()
        what, hello = parse_one(pb.FromWorker, first) if first is not grpc.aio.EOF else ("nothing", None)
        if hello is None or what != "hello":
            raise ProtocolError(f"a worker's stream begins with hello, not with {what}.")
        if hello.protocol != PROTOCOL:
            raise Refused(
                f"'{peer.name}' speaks protocol {hello.protocol} (Hansa {hello.hansa[:20]}), this server {PROTOCOL}: "
                "install the same version."
            )
        signature = b""
        if self._identity is not None:
            signature = self._identity.sign(welcome_content(hello.nonce, peer.name), purpose="welcome").dump()
        welcome = pb.Welcome(
            runs=sorted(self._federation.runs),
            protocol=PROTOCOL,
            hansa=__version__,
            ping_s=self._ping_s,
            lease_s=3 * self._ping_s,
            signature=signature,
        )
        await context.write(pb.ToWorker(welcome=welcome).SerializeToString())
        worker = Worker(peer, helper=hello.helper)
        self._federation.entered(worker)
        writer = asyncio.create_task(self._write(worker, context))
        reader = asyncio.create_task(self._read(worker, context))
        why = "its connection ended"
        try:
            done, _ = await asyncio.wait([writer, reader], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                why = str(task.exception() or why)
                task.result()
        finally:
            writer.cancel()
            reader.cancel()
            self._federation.left(worker, why)

    async def _write(self, worker: Worker, context: Any) -> None:
        while True:
            message = await worker.outbox.get()
            if isinstance(message, str):
                raise Refused(message)
            await context.write(message)

    async def _read(self, worker: Worker, context: Any) -> None:
        federation = self._federation
        while (data := await context.read()) is not grpc.aio.EOF:
            worker.heard = self._loop.time()
            what, message = parse_one(pb.FromWorker, data)
            if what == "answer":
                task = self._own(worker.peer, message.task)
                self._session(task.run, lambda session: session.answer(task, message, carried(len(data))))  # noqa: B023
            elif what == "failed":
                task = self._own(worker.peer, message.task)
                self._session(task.run, lambda session: session.fail(task, message.reason[:REASON], message.gone))  # noqa: B023
            elif what == "ping":
                pass  # that it was heard is all
            elif what == "log":
                if message.run in federation.runs:
                    federation.say(message.run, worker.name, message.text)
            else:
                raise ProtocolError(f"'{worker.name}' said {what} twice.")

    async def _pull(self, request: bytes, context: Any, peer: Peer) -> None:
        wanted = parse(pb.PullRequest, request)
        session = self._federation.session(wanted.run)
        pieces = self._federation.content(wanted.run, bytes(wanted.name))
        if wanted.offset > pieces.size:
            raise ProtocolError(f"'{peer.name}' asks for byte {wanted.offset} of {pieces.size}.")
        async with self._federation.places.one() as place:
            for chunk in pieces.chunks(wanted.offset):
                await context.write(chunk)
                place.moved(len(chunk))
                session.moved(down=carried(len(chunk)))

    async def _push(self, requests: AsyncIterator[bytes], context: Any, peer: Peer) -> bytes:
        header = dict(context.invocation_metadata()).get("hansa-answer-bin", b"")
        answer = parse(pb.Answer, bytes(header))
        task = self._own(peer, answer.task)
        session = self._federation.session(task.run)
        async with self._federation.places.one() as place:
            one = session.wanted(task, answer.leg)
            if one is None:
                return b""  # late or doubled: counted, and nobody needs its bytes
            upload = session.upload(one, answer)
            await context.send_initial_metadata((("hansa-offset", str(upload.received)),))
            while (chunk := await context.read()) is not grpc.aio.EOF:
                try:
                    upload.write(chunk)
                except StorageFull as full:
                    session.breaks(full)
                    raise
                place.moved(len(chunk))
                session.moved(up=carried(len(chunk)))
                if one.upload is not upload:
                    break  # another stream of the same worker took over
            if upload.received < upload.size:
                raise ProtocolError(
                    f"an upload of '{peer.name}' ended after {upload.received} of {upload.size} bytes: send the rest."
                )
            if not session.uploaded(one, answer):
                raise ProtocolError(
                    f"an upload of '{peer.name}' is not what it said to be (its tag differs): send it again."
                )
        return b""

    async def _submit(self, requests: AsyncIterator[bytes], context: Any, peer: Peer) -> bytes:
        workers = str(dict(context.invocation_metadata()).get("hansa-workers", "0"))
        if not workers.isdigit() or len(workers) > 6:
            raise ProtocolError(f"workers={workers[:20]}: a number is expected.")
        content = bytearray()
        while (chunk := await context.read()) is not grpc.aio.EOF:
            content += chunk
            if len(content) > MAX_BYTES:
                raise ProtocolError(f"a job of more than {MAX_BYTES} bytes: leave data out of it.")

        def add() -> dict[str, Any]:
            bundle, signer = self._federation.admit(bytes(content), peer.name)
            run = self._store.add_run(name=bundle.entry, bundle=bundle.hash, submitter=signer, workers=int(workers))
            return self._store.find(run)

        row = await asyncio.to_thread(add)
        LOG.info("%s submitted job %s as run %s", peer.name, row["bundle"][:12], row["id"])
        self._federation.begin(row)
        return _saying({"run": row["id"]})

    async def _ask(self, request: bytes, context: Any, peer: Peer) -> None:
        question = parse(pb.Question, request)
        what = question.what
        if what == "list":
            for row in await asyncio.to_thread(self._store.runs):
                await context.write(_saying(await asyncio.to_thread(self._federation.status, row)))
        elif what == "members":
            for row in await asyncio.to_thread(self._store.members):
                await context.write(_saying({**row, "connected": row["name"] in self._federation.workers}))
        elif what in ("status", "stop", "resume", "logs", "watch"):
            row = await asyncio.to_thread(self._store.find, question.run)
            await getattr(self, f"_ask_{what}")(row, question, context, peer)
        else:
            raise ProtocolError(f"'{what[:40]}' is nothing that can be asked.")

    async def _ask_status(self, row: dict[str, Any], question: Any, context: Any, peer: Peer) -> None:
        await context.write(_saying(await asyncio.to_thread(self._federation.status, row)))

    async def _ask_stop(self, row: dict[str, Any], question: Any, context: Any, peer: Peer) -> None:
        await asyncio.to_thread(self._federation.stop, row["id"], f"stopped by {peer.name}")
        await self._ask_status(self._store.find(row["id"]), question, context, peer)

    async def _ask_resume(self, row: dict[str, Any], question: Any, context: Any, peer: Peer) -> None:
        await asyncio.to_thread(self._federation.resume, row)
        await self._ask_status(self._store.find(row["id"]), question, context, peer)

    async def _ask_logs(self, row: dict[str, Any], question: Any, context: Any, peer: Peer) -> None:
        start, log, bell = question.start, self._federation.log_of(row["id"]), self._federation.bell_of(row["id"])
        while True:
            rung = bell.rung
            over = row["id"] not in self._federation.runs
            for line in log.read(start):
                await context.write(_saying(line))
                start = line["next"]
            if over or not question.follow:
                return
            await bell.heard(rung, 30.0)

    async def _ask_watch(self, row: dict[str, Any], question: Any, context: Any, peer: Peer) -> None:
        start, said = question.start, None
        store, bell = self._store.run(row["id"]), self._federation.bell_of(row["id"])
        while True:
            rung = bell.rung
            over = row["id"] not in self._federation.runs
            records = await asyncio.to_thread(store.records_from, start)
            for record in records:
                last = record is records[-1]  # what it cost until here takes a while to work out
                spent = await asyncio.to_thread(self._federation.spent, row["id"], record["round"]) if last else None
                await context.write(_saying({"record": record, **({"privacy": spent} if spent else {})}))
                start = record["round"] + 1
            status = await asyncio.to_thread(lambda: self._federation.status(self._store.find(row["id"])))
            facts = {name: status[name] for name in ("state", "reason", "rounds", "name", "waiting")}
            if facts != said:
                said = facts
                await context.write(_saying({"status": status}))
            if over or not question.follow:
                return
            await bell.heard(rung, 5.0)  # for whom a run waits changes without a ring

    async def _model(self, request: bytes, context: Any, peer: Peer) -> None:
        wanted = parse(pb.ModelRequest, request)
        row = await asyncio.to_thread(self._store.find, wanted.run)
        pieces = Pieces([await asyncio.to_thread(self._store.run(row["id"]).raw, wanted.best)])
        await context.send_initial_metadata((("hansa-size", str(pieces.size)),))
        for chunk in pieces.chunks(min(wanted.offset, pieces.size), CHUNK):
            await context.write(chunk)

    # -- inside

    def _own(self, peer: Peer, message: Any) -> Any:
        """The task of an answer, which must be the peer's own."""
        task = task_from_wire(message)
        if task.client != peer.name:
            raise ProtocolError(
                f"'{peer.name}' answers for '{task.client[:64]}': a worker answers its own tasks alone."
            )
        return task

    def _session(self, run: str, call: Callable[[Any], None]) -> None:
        """Does something with a run's session, if the run goes on; a late answer to one that is over is no fault."""
        found = self._federation.runs.get(run)
        if found is not None and found.session is not None:
            call(found.session)


async def _healthy(request: bytes, context: Any) -> bytes:
    return b"\x08\x01"  # HealthCheckResponse(status=SERVING)


def _saying(content: dict[str, Any]) -> bytes:
    data: bytes = pb.Saying(json=json.dumps(content)).SerializeToString()
    return data


def serve(state: str | os.PathLike[str], *, ready: Callable[[str], None] | None = None, **options: Any) -> None:
    """Runs a server in this process until SIGINT or SIGTERM; the arguments are those of `Server`.

    Args:
      ready: called with the address once workers can connect.
    """
    allocator.settle()
    handshakes.listen()
    sys.setswitchinterval(0.0005)  # the event loop and the round loop take turns within a millisecond
    server = Server(state, **options)
    address = server.start()
    done = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: done.set())
    if ready is not None:
        ready(address)
    done.wait()
    server.stop()
