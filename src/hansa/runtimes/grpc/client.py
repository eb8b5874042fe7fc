"""What people and programs ask of a server: submit, list, status, logs, watch, stop, model. Blocking, one class.

    with Client("hansa.example.org:8443", identity=Identity.load("alice.pem")) as client:
        run = client.submit(pack("job.py", None, identity), workers=3)
        for event in client.watch(run):
            ...                                    {"record": {...}} for each round, {"status": {...}} when it changes
        checkpoint = client.model(run)

Every failure is one of Hansa's errors: what the server refused has the server's own words.
"""

import json
import time
from collections.abc import Iterator
from typing import Any, Self

from hansa.core import errors
from hansa.core.checkpoint import Checkpoint
from hansa.core.errors import CorruptFile, HansaError, JobError, Refused, Unreachable
from hansa.crypto.identity import Identity
from hansa.runtimes.bundle import Bundle
from hansa.runtimes.grpc.tls import channel_options, check_loopback, client_credentials, diagnose, grpc
from hansa.runtimes.grpc.wire import SERVICE, Pieces, parse, pb

Json = dict[str, Any]


class Client:
    """A connection to a server; opened at the first call.

    Args:
      server: HOST:PORT.
      identity: of a submitter. None needs `insecure`.
      insecure: no TLS and no identities; the server must be on this machine.
      name: who we say to be, if insecure.
      timeout_s: how long to wait for a server that does not answer.

    Raises:
      ConfigError: neither identity nor insecure, or insecure and not this machine.
    """

    def __init__(
        self,
        server: str,
        *,
        identity: Identity | None = None,
        insecure: bool = False,
        name: str = "submitter",
        timeout_s: float = 20.0,
    ) -> None:
        if identity is None and not insecure:
            raise errors.ConfigError(
                "no identity: give one made by `hansa enrol`, or --insecure for a server on this machine."
            )
        self._server, self._identity, self._timeout = server, identity, timeout_s
        self._metadata: tuple[tuple[str, str], ...] = ()
        if identity is None:
            check_loopback(server)
            self._metadata = (("hansa-name", name), ("hansa-role", "submitter"))
            self._channel = grpc.insecure_channel(server, options=channel_options())
        else:
            self._channel = grpc.secure_channel(server, client_credentials(identity), options=channel_options())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection."""
        self._channel.close()

    # -- calls

    def submit(self, bundle: Bundle | bytes, *, workers: int = 0) -> str:
        """Hands in a signed job; the same job can be handed in again, and is then another run.

        Args:
          bundle: from `pack`.
          workers: the run waits until so many workers have connected, beyond what its cohort needs.

        Returns:
          The run's id.

        Raises:
          BundleError, PolicyError: the server does not take it; says why.
        """
        content = bundle if isinstance(bundle, bytes) else bundle.dump()
        call = self._channel.stream_unary(f"/{SERVICE}/Submit")
        metadata = (*self._metadata, ("hansa-workers", str(workers)))
        reply = self._call(lambda: call(Pieces([content]).chunks(), metadata=metadata, timeout=60))
        return str(json.loads(parse(pb.Saying, reply).json)["run"])

    def runs(self) -> list[Json]:
        """All runs, oldest first, each as `status` gives it."""
        return list(self._ask("list"))

    def status(self, run: str) -> Json:
        """One run: `run`, `name`, `state` (submitted, running, stopped, failed, done), `reason`, `round`, `rounds`,
        `submitter`, `created`, `bundle`, `fingerprint`, `waiting` (for whom and how long, or empty), `sees` (what
        the server sees, in words, while the run goes on), `last` (record).
        """
        return next(iter(self._ask("status", run)))

    def logs(self, run: str, *, follow: bool = False, start: int = 0) -> Iterator[Json]:
        """Lines of a run's log: `time` (seconds since 1970), `source` (server, or a worker's name), `text`, `next`
        (to be given as `start` later). With `follow` new ones as they come, until the run is over.
        """
        return self._ask("logs", run, start=start, follow=follow)

    def watch(self, run: str, *, start: int = 0, follow: bool = True) -> Iterator[Json]:
        """`{"record": ...}` of each round from number `start` on, and `{"status": ...}` at first and when it changes;
        ends when the run is over. A server that goes away is waited for, and nothing is told twice.
        """
        while True:
            try:
                for event in self._ask("watch", run, start=start, follow=follow):
                    if "record" in event:
                        start = int(event["record"]["round"]) + 1
                    yield event
                return
            except Unreachable:
                if not follow or not self._comes_back():
                    raise

    def stop(self, run: str) -> Json:
        """Ends a run after its last committed round, and gives its status."""
        return next(iter(self._ask("stop", run)))

    def resume(self, run: str) -> Json:
        """Goes on with a run that was stopped or failed, from its last committed round."""
        return next(iter(self._ask("resume", run)))

    def members(self) -> list[Json]:
        """Everybody who ever connected: `name`, `role`, `connected`, `first_seen`, `last_seen`."""
        return list(self._ask("members"))

    def model(self, run: str, *, best: bool = False) -> Checkpoint:
        """The last (or best) committed checkpoint of a run.

        Raises:
          NotFound: no round is committed yet, or none was kept as the best.
        """
        return Checkpoint.load(memoryview(self.model_bytes(run, best=best)))

    def model_bytes(self, run: str, *, best: bool = False) -> bytearray:
        """The same as the file that it is: safetensors, with the names' part `state/model/` as the model."""
        call = self._channel.unary_stream(f"/{SERVICE}/Model")
        content = bytearray()

        def pull() -> None:
            request = pb.ModelRequest(run=run, best=best).SerializeToString()
            stream = call(request, metadata=self._metadata)
            size = dict(stream.initial_metadata()).get("hansa-size")
            for chunk in stream:
                content.extend(chunk)
            if size is None or len(content) != int(size):
                raise CorruptFile(f"the model broke off after {len(content)} bytes: ask again.")

        self._call(pull)
        return content

    def healthy(self) -> bool:
        """Whether the server serves (the standard health check of gRPC)."""
        try:
            check = self._channel.unary_unary("/grpc.health.v1.Health/Check")
            return bool(check(b"", metadata=self._metadata, timeout=5) == b"\x08\x01")
        except grpc.RpcError:
            return False

    # -- inside

    def _ask(self, what: str, run: str = "", *, start: int = 0, follow: bool = False) -> Iterator[Json]:
        call = self._channel.unary_stream(f"/{SERVICE}/Ask")
        request = pb.Question(what=what, run=run, start=start, follow=follow).SerializeToString()
        timeout = None if follow else self._timeout
        try:
            for reply in call(request, metadata=self._metadata, timeout=timeout):
                yield json.loads(parse(pb.Saying, reply).json)
        except grpc.RpcError as error:
            raise self._error(error) from None

    def _call(self, function: Any) -> Any:
        try:
            return function()
        except grpc.RpcError as error:
            raise self._error(error) from None

    def _error(self, error: Any) -> HansaError:
        return error_of(error, self._server, self._identity)

    def _comes_back(self) -> bool:
        until = time.monotonic() + 10 * self._timeout
        while time.monotonic() < until:
            try:
                grpc.channel_ready_future(self._channel).result(timeout=self._timeout)
                return True
            except grpc.FutureTimeoutError:
                continue
        return False


def error_of(error: Any, server: str, identity: Identity | None) -> HansaError:
    """What a failed call means: the server's own error, or why it cannot be reached."""
    code, details = error.code(), error.details() or ""
    named = dict(error.trailing_metadata() or ()).get("hansa-error", "")
    kind = getattr(errors, str(named), None)
    if isinstance(kind, type) and issubclass(kind, HansaError):
        return JobError(details.splitlines()) if kind is JobError else kind(details)
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
        return Unreachable(f"server {server}: {diagnose(server, identity)}. Check that it runs, and the address.")
    if code == grpc.StatusCode.UNIMPLEMENTED:
        return Refused(f"server {server} does not know this call: install the same version of Hansa on both sides.")
    return Refused(f"server {server} refused: {details or code.name}")
