"""A worker's end of its executor: one process for each run, started when its first task comes, and again if it died."""

import asyncio
import collections
import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hansa.core.pipeline import Seat
from hansa.runtimes.grpc.executor import frame
from hansa.runtimes.grpc.seat import answered
from hansa.runtimes.grpc.wire import REASON

LOG = logging.getLogger("hansa.worker")
_LINES = 50  # of output a second that go to the run's log


class Crashed(Exception):
    """The executor died; says how, with the last lines it wrote unless they stay here."""


class Hands:
    """A running executor. `ask` says something to it and waits for its answer, one at a time.

    What a job prints may be an example's own content. It goes to the run's log where the server sees each contribution
    anyway, and to this worker's log where the job promises to hide them; until `decide` says which, it waits.
    """

    @classmethod
    async def start(cls, folder: Path, device: str, log: Callable[[str], None]) -> "Hands":
        """Starts one that works in `folder`; what it prints goes to `log`, line by line, if it may leave."""
        mine, its = socket.socketpair()
        environment = {name: value for name, value in os.environ.items() if name not in ("GRPC_SSL_CIPHER_SUITES",)}
        if device:
            environment["HANSA_DEVICE"] = device
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "hansa.runtimes.grpc.executor", str(its.fileno()),
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, pass_fds=[its.fileno()],
                env=environment, limit=64 << 10,
            )  # fmt: skip
        finally:
            its.close()
        mine.setblocking(False)
        reader, writer = await asyncio.open_connection(sock=mine, limit=1 << 20)
        return cls(process, reader, writer, log)

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        log: Callable[[str], None],
    ) -> None:
        self._process, self._reader, self._writer, self._log = process, reader, writer, log
        self._last: collections.deque[str] = collections.deque(maxlen=12)
        self._hides: bool | None = None
        self._waiting: list[str] = []
        self._printing = asyncio.create_task(self._print())

    def decide(self, hides: bool) -> None:
        """Says, once the job is known, whether what it prints stays here."""
        self._hides = hides
        for text in self._waiting:
            self._tell(text)
        self._waiting.clear()

    def _tell(self, text: str) -> None:
        if self._hides is None:
            self._waiting.append(text)
        elif self._hides:
            LOG.info("the job prints: %s", text)
        else:
            self._log(text)

    @property
    def alive(self) -> bool:
        """Whether it can be asked."""
        return self._process.returncode is None

    async def ask(
        self, header: dict[str, Any], raw: bytes = b"", seat: Seat | None = None
    ) -> tuple[dict[str, Any], bytes]:
        """Says something and waits for what comes of it.

        Args:
          header, raw: what is said.
          seat: answers what the executor asks meanwhile, in a thread, since it may wait for a disk.

        Raises:
          Crashed: the process died of it.
        """
        try:
            while True:
                self._writer.write(frame(header, raw))
                await self._writer.drain()
                answer, content = await self._heard()
                if answer["did"] != "seat" or seat is None:
                    return answer, content
                header, raw = await asyncio.to_thread(answered, seat, answer, content)
        except (asyncio.IncompleteReadError, ConnectionError):
            code = await self._process.wait()
            await asyncio.wait([self._printing], timeout=1)
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            if self._hides is None:
                self.decide(True)
            said = "its last words are in the worker's log" if self._hides else " | ".join(self._last)[-1500:]
            raise Crashed(f"the job's process died ({how}){f': {said}' if said else ''}") from None

    async def _heard(self) -> tuple[dict[str, Any], bytes]:
        length = int.from_bytes(await self._reader.readexactly(4), "little")
        answer = json.loads(await self._reader.readexactly(length))
        return answer, await self._reader.readexactly(answer.get("size", 0))

    def forget(self, keys: list[str]) -> None:
        """Lets go of conversations that nobody waits for."""
        if self.alive:
            self._writer.write(frame({"do": "forget", "keys": keys}))

    def end(self) -> None:
        """Ends the process."""
        self._writer.close()
        if self.alive:
            self._process.kill()

    async def _print(self) -> None:
        """Hands on what the job prints; a flood is cut, and said to be."""
        assert self._process.stdout is not None
        clock = asyncio.get_running_loop().time
        second, count = 0.0, 0
        while True:
            try:
                line = await self._process.stdout.readline()
            except ValueError:
                continue  # a line longer than the limit
            if not line:
                return
            text = line.decode(errors="replace").rstrip()[:REASON]
            self._last.append(text)
            if clock() - second > 1.0:
                second, count = clock(), 0
            count += 1
            if count <= _LINES:
                self._tell(text)
            elif count == _LINES + 1:
                self._tell("… more lines within a second are left out")
