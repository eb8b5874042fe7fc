"""Bulk from a worker's side: whole files, in raw chunks, going on where they were after a cut."""

import asyncio
import hashlib
import logging
import mmap
import os
from pathlib import Path
from typing import Any

from hansa.core.errors import ProtocolError
from hansa.runtimes.failpoint import failpoint
from hansa.runtimes.grpc.tls import grpc
from hansa.runtimes.grpc.wire import SERVICE, Pieces, Tag, pb

LOG = logging.getLogger("hansa.worker")
_CUT = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL)
_TRIES = 3  # of content that arrives damaged


async def pull(channel: Any, metadata: Any, run: str, payload: Any, path: Path) -> None:
    """Fetches content into a file, which is there whole or not at all.

    Raises:
      ProtocolError: it is longer than announced, or not what its name and tag say.
      AioRpcError: the server does not offer it any more.
    """
    part = path.with_name(path.name + ".part")
    check: Any = hashlib.sha256() if len(payload.name) == 32 else Tag(payload.name)
    received = 0
    call = channel.unary_stream(f"/{SERVICE}/Pull")
    with open(part, "wb", buffering=0) as file:
        while received < payload.size:
            before = received
            stream = call(
                pb.PullRequest(run=run, name=payload.name, offset=received).SerializeToString(),
                metadata=metadata,
                wait_for_ready=True,
            )
            try:
                while (chunk := await stream.read()) is not grpc.aio.EOF:
                    received += len(chunk)
                    if received > payload.size:
                        raise ProtocolError(f"it sends more than the {payload.size} bytes it announced.")
                    os.write(file.fileno(), chunk)
                    check.update(chunk)
                if received < payload.size and received == before:
                    code = await stream.code()
                    if code not in _CUT:
                        raise grpc.aio.AioRpcError(
                            code,
                            await stream.initial_metadata(),
                            await stream.trailing_metadata(),
                            await stream.details(),
                        )
            except grpc.aio.AioRpcError as error:
                if error.code() not in _CUT:
                    raise
                LOG.info(
                    "a transfer was cut after %d of %d bytes (%s): it goes on there",
                    received,
                    payload.size,
                    error.details(),
                )
                await asyncio.sleep(0.05)
            finally:
                stream.cancel()
    good = check.digest() == payload.name if len(payload.name) == 32 else check.value() == payload.tag
    if not good:
        part.unlink()
        raise ProtocolError("content arrived that is not what its name says.")
    part.replace(path)


async def push(channel: Any, metadata: Any, answer: Any, path: Path) -> None:
    """Sends a file as the content of an answer; returns when the server has it whole, or does not want it any more.

    Raises:
      AioRpcError: the server refuses it.
    """
    header = (*metadata, ("hansa-answer-bin", answer.SerializeToString()))
    call = channel.stream_unary(f"/{SERVICE}/Push")
    damaged = 0
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        while True:
            stream = call(metadata=header, wait_for_ready=True)
            try:
                # The server says where to begin once it has a place for us; without an offset it wants nothing.
                offset = dict(await stream.initial_metadata() or ()).get("hansa-offset")
                if offset is not None:
                    sent = 0
                    view = memoryview(content)
                    pieces = Pieces([view])
                    try:
                        for chunk in pieces.chunks(int(offset)):
                            await stream.write(chunk)
                            sent += 1
                            if sent == 3:
                                failpoint("mid-upload")
                        await stream.done_writing()
                    finally:
                        del pieces
                        view.release()
                await stream
                return
            except asyncio.InvalidStateError:
                await asyncio.sleep(0.05)  # the stream ended while we wrote: ask it why
            except grpc.aio.AioRpcError as error:
                named = dict(error.trailing_metadata() or ()).get("hansa-error")
                if named == "ProtocolError" and damaged < _TRIES:
                    damaged += 1
                elif error.code() not in _CUT:
                    raise
                LOG.info("an upload was cut (%s): it goes on", error.details())
                await asyncio.sleep(0.05)
            finally:
                stream.cancel()
