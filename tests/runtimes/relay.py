"""A relay between one worker and its server that ends TLS on both sides: it has all that leaves the worker, in clear.

It needs the worker's identity as well as the server's, which is what TLS keeps from everybody else.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

from hansa.crypto.identity import Identity
from hansa.runtimes.grpc.tls import channel_options, client_credentials, grpc, server_credentials, server_options


class Relay:
    """Listens at `address` as the server, and speaks to it as the worker.

    Args:
      target: HOST:PORT of the server.
      server, worker: identity files.
      mangle: makes of each message of the worker's stream those that are sent on.
    """

    def __init__(
        self, target: str, server: Path, worker: Path, mangle: Callable[[bytes], list[bytes]] = lambda data: [data]
    ) -> None:
        self.up: list[bytes] = []  # all that left the worker: messages, pieces of bulk, headers of calls
        self._mangle, self._turn = mangle, threading.Lock()
        self._far = grpc.secure_channel(target, client_credentials(Identity.load(worker)), options=channel_options())
        self._near = grpc.server(futures.ThreadPoolExecutor(16), options=server_options())
        relay = self

        class Handlers(grpc.GenericRpcHandler):
            def service(self, details: Any) -> Any:
                return grpc.stream_stream_rpc_method_handler(relay._carried(details.method))

        self._near.add_generic_rpc_handlers((Handlers(),))
        port = self._near.add_secure_port("127.0.0.1:0", server_credentials(Identity.load(server)))
        self.address = f"127.0.0.1:{port}"
        self._near.start()

    def _carried(self, method: str) -> Callable[[Iterator[bytes], Any], Iterator[bytes]]:
        def carry(requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
            metadata = [(key, value) for key, value in context.invocation_metadata() if key.startswith("hansa-")]
            self._note(*(value for _, value in metadata))
            call = self._far.stream_stream(method)(self._sent(method, requests), metadata=metadata)
            context.add_callback(call.cancel)
            try:
                context.send_initial_metadata(
                    [(key, value) for key, value in call.initial_metadata() if key.startswith("hansa-")]
                )
                yield from call
            except grpc.RpcError as error:
                context.set_trailing_metadata(tuple(error.trailing_metadata() or ()))
                context.abort(error.code(), error.details())

        return carry

    def _sent(self, method: str, requests: Iterator[bytes]) -> Iterator[bytes]:
        try:
            for data in requests:
                self._note(data)
                yield from self._mangle(data) if method.endswith("/Work") else [data]
        except grpc.RpcError:
            pass

    def _note(self, *content: bytes | str) -> None:
        with self._turn:
            self.up += [piece.encode() if isinstance(piece, str) else bytes(piece) for piece in content]

    def __enter__(self) -> "Relay":
        return self

    def __exit__(self, *_: object) -> None:
        self._near.stop(None)
        self._far.close()
