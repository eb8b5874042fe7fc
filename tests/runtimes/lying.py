"""A server with a true identity that says to a worker whatever a test wants."""

import queue
import threading
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

from hansa.core.checkpoint import dump
from hansa.core.runtime import Task
from hansa.core.tensors import Tensors
from hansa.crypto.identity import Identity
from hansa.runtimes.bundle import Bundle
from hansa.runtimes.grpc.federation import _digest
from hansa.runtimes.grpc.tls import grpc, server_credentials, server_options, welcome_content
from hansa.runtimes.grpc.wire import PROTOCOL, SERVICE, Pieces, parse, parse_one, pb, task_to_wire


class LyingServer:
    """Serves one worker and one job.

    Args:
      identity: of role server.
      bundle: what its offers name.
    """

    def __init__(self, identity: Path, bundle: Bundle, listen: str = "127.0.0.1:0") -> None:
        self._identity, self._bundle = Identity.load(identity), bundle.dump()
        self._says: list[queue.Queue[Any]] = []  # to each connection; the last one is alive
        self.connected = threading.Semaphore(0)  # released at each
        self.heard: queue.Queue[tuple[str, Any]] = queue.Queue()
        self.bytes: list[bytes] = []  # all that came, as it came
        self._server = grpc.server(futures.ThreadPoolExecutor(8), options=server_options())
        handlers = {
            f"/{SERVICE}/Work": grpc.stream_stream_rpc_method_handler(self._work),
            f"/{SERVICE}/Pull": grpc.unary_stream_rpc_method_handler(self._pull),
        }

        class Handlers(grpc.GenericRpcHandler):
            def service(self, details: Any) -> Any:
                return handlers.get(details.method)

        self._server.add_generic_rpc_handlers((Handlers(),))
        port = self._server.add_secure_port(listen, server_credentials(self._identity))
        self.address = f"127.0.0.1:{port}"
        self._server.start()

    def _work(self, requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        _, hello = parse_one(pb.FromWorker, next(requests))
        name = context.auth_context()["x509_common_name"][0].decode()
        signature = self._identity.sign(welcome_content(hello.nonce, name), purpose="welcome").dump()
        welcome = pb.Welcome(protocol=PROTOCOL, hansa="lying", ping_s=30, lease_s=90, signature=signature)
        yield pb.ToWorker(welcome=welcome).SerializeToString()
        threading.Thread(target=self._hear, args=(requests,), daemon=True).start()
        say: queue.Queue[Any] = queue.Queue()
        self._says.append(say)
        self.connected.release()
        while (message := say.get()) is not None:
            yield message.SerializeToString()

    def _hear(self, requests: Iterator[bytes]) -> None:
        try:
            for data in requests:
                self.bytes.append(data)
                what, message = parse_one(pb.FromWorker, data)
                if what in ("answer", "failed"):
                    self.heard.put((what, message))
        except grpc.RpcError:
            pass

    def _pull(self, request: bytes, context: Any) -> Iterator[bytes]:
        yield from Pieces([self._bundle]).chunks(parse(pb.PullRequest, request).offset)

    def offer(self, task: Task, down: Tensors) -> tuple[str, Any]:
        """Has a task done, and gives what comes of it: ("answer" or "failed", its message)."""
        bundle = pb.Payload(size=len(self._bundle), name=_digest(self._bundle))
        offer = pb.Offer(task=task_to_wire(task), down=_inline(down), bundle=bundle)
        self._says[-1].put(pb.ToWorker(offer=offer))
        return self.heard.get(timeout=60)

    def next(self, task: Task, leg: int, message: Tensors) -> tuple[str, Any]:
        """The same for the next leg of its conversation."""
        self._says[-1].put(pb.ToWorker(next=pb.Next(task=task_to_wire(task), leg=leg, message=_inline(message))))
        return self.heard.get(timeout=60)

    def __enter__(self) -> "LyingServer":
        return self

    def __exit__(self, *_: object) -> None:
        for say in self._says:
            say.put(None)
        self._server.stop(None)


def _inline(tensors: Tensors) -> Any:
    content = dump(tensors)
    return pb.Payload(size=len(content), inline=content)
