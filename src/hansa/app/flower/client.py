"""`NumPyClient`, and the worker that calls it: its executor is a thread of this process, where the client lives.

Everything else is the worker that `hansa worker` starts: it dials out, says who it is, and sends what is said.
"""

import asyncio
import logging
import os
import secrets
import socket
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hansa.app.flower.bridge import here
from hansa.app.flower.weights import Config, Weights

if TYPE_CHECKING:
    from hansa.runtimes.grpc.hands import Hands

LOG = logging.getLogger("hansa.flower")


class NumPyClient:
    """One party, as Flower 0.17 knows it: subclass it and give `get_parameters`, `fit` and `evaluate`.

    Parameters are a list of float arrays, or one flat array. It may be a `torch.nn.Module` at the same time.
    """

    def get_parameters(self) -> Weights:
        """The parameters as they are now."""
        raise NotImplementedError("give get_parameters()")

    def set_parameters(self, parameters: Weights) -> None:
        """Takes parameters over; called by your own `fit` and `evaluate` alone."""
        raise NotImplementedError("give set_parameters(parameters)")

    def fit(self, parameters: Weights, config: Config) -> tuple[Weights, int, Config]:
        """Trains from `parameters` on this party's data: the new ones, the number of examples, and metrics."""
        raise NotImplementedError("give fit(parameters, config)")

    def evaluate(self, parameters: Weights, config: Config) -> tuple[float, int, Config]:
        """Loss, number of examples, and metrics, of which `accuracy` is averaged."""
        raise NotImplementedError("give evaluate(parameters, config)")


def start_numpy_client(server_address: str, client: Any, **ignored: Any) -> None:
    """Takes part until the server ends; waits for it if it is not there yet.

    Args:
      server_address: HOST:PORT.
      client: a NumPyClient, or anything with its methods.
      ignored: settings of Flower's own transport.

    Raises:
      ConfigError: no identity (see the top of this package), and the server is not on this machine.
      Exception: whatever the client's own methods raised.
    """
    from hansa.crypto.identity import Identity
    from hansa.runtimes.policy import Policy

    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
    LOG.setLevel(logging.INFO)
    here.client, here.fault = client, None
    options: dict[str, Any] = {"insecure": True, "name": f"client-{os.getpid()}-{secrets.token_hex(3)}"}
    if "HANSA_IDENTITY" in os.environ:
        rules = os.environ.get("HANSA_ALLOW", "").replace(",", " ").split()
        options = {"identity": Identity.load(os.environ["HANSA_IDENTITY"]), "policy": Policy.parse(rules)}
    else:
        LOG.warning("no HANSA_IDENTITY: no TLS and no identities, so the server can only be on this machine")
    with tempfile.TemporaryDirectory(prefix="hansa-flower-") as folder:
        asyncio.run(_until_the_end(server_address, Path(folder), options))
    if here.fault is not None:
        raise here.fault


async def _until_the_end(server: str, folder: Path, options: dict[str, Any]) -> None:
    from hansa.runtimes.grpc.tls import grpc
    from hansa.runtimes.grpc.worker import Worker

    class OneVisit(Worker):
        """A worker that takes part once: it waits for the server, and ends when the server does."""

        start_hands = staticmethod(_start_thread)

        async def _connect_again_and_again(self) -> None:
            while not self._connected:
                try:
                    await self._stream()
                except grpc.aio.AioRpcError as error:
                    if error.code() != grpc.StatusCode.UNAVAILABLE and not self._connected:
                        raise
            raise asyncio.CancelledError  # the way in which a worker ends

    worker = OneVisit(server, folder, data="hansa.app.flower.bridge:data", **options)
    try:
        await worker.run()
    except asyncio.CancelledError:
        LOG.info("%s: the server ended", worker.name)
    except grpc.aio.AioRpcError as error:
        from hansa.runtimes.grpc.client import error_of

        raise error_of(error, server, options.get("identity")) from None


async def _start_thread(folder: Path, device: str, log: Callable[[str], None]) -> "Hands":
    """The worker's end of an executor that runs in a thread of this process."""
    from hansa.runtimes.grpc.hands import Hands

    mine, its = socket.socketpair()
    mine.setblocking(False)
    reader, writer = await asyncio.open_connection(sock=mine, limit=1 << 20)
    return Hands(_Thread(its), reader, writer, log)  # type: ignore[arg-type]


class _Thread:
    """A thread with as much of a process's face as `Hands` looks at."""

    def __init__(self, its: socket.socket) -> None:
        self._socket = its
        self._thread = threading.Thread(target=self._run, name="executor", daemon=True)
        self._thread.start()
        self.stdout = asyncio.StreamReader()
        self.stdout.feed_eof()  # what the client prints goes where it always goes

    @property
    def returncode(self) -> int | None:
        """None while it runs."""
        return None if self._thread.is_alive() else 0

    async def wait(self) -> int:
        """Until it has ended."""
        await asyncio.to_thread(self._thread.join)
        return 0

    def kill(self) -> None:
        """Nothing to do: it ends when the worker hangs up."""

    def _run(self) -> None:
        from hansa.runtimes.grpc.executor import Executor, Frames

        with self._socket:
            Executor(Frames(self._socket)).run()
