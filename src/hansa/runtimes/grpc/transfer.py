"""Bulk from a worker's side: whole files, in raw chunks, going on where they were after a cut."""

import asyncio
import hashlib
import logging
import os
from collections.abc import AsyncGenerator
from contextlib import aclosing
from io import RawIOBase
from pathlib import Path
from typing import Any

from hansa.core.errors import ProtocolError
from hansa.runtimes.failpoint import failpoint
from hansa.runtimes.grpc.tls import grpc
from hansa.runtimes.grpc.wire import CHUNK, SERVICE, Tag, pb

LOG = logging.getLogger("hansa.worker")
_CUT = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL)
_TRIES = 3  # of content that arrives damaged
_PAUSE_S = 0.05  # before a stream that was cut is begun again


async def pull(channel: Any, metadata: Any, run: str, payload: Any, path: Path) -> None:
    """Fetches content into a file, which is there whole or not at all.

    Raises:
      ProtocolError: it is longer than announced, or not what its name and tag say.
      AioRpcError: the server does not offer it any more.
    """
    part = path.with_name(path.name + ".part")
    hashed = len(payload.name) == 32
    check: Any = hashlib.sha256() if hashed else Tag(payload.name)
    with open(part, "wb", buffering=0) as file:
        async with aclosing(_chunks(channel, metadata, run, payload)) as chunks:
            async for chunk in chunks:
                os.write(file.fileno(), chunk)
                check.update(chunk)
    if (check.digest() if hashed else check.value()) != (payload.name if hashed else payload.tag):
        part.unlink()
        raise ProtocolError("content arrived that is not what its name says.")
    part.replace(path)


async def _chunks(channel: Any, metadata: Any, run: str, payload: Any) -> AsyncGenerator[bytes, None]:
    """All of some content; after a cut it goes on where it was."""
    call, received = channel.unary_stream(f"/{SERVICE}/Pull"), 0
    while received < payload.size:
        asked, before = pb.PullRequest(run=run, name=payload.name, offset=received), received
        stream = call(asked.SerializeToString(), metadata=metadata, wait_for_ready=True)
        try:
            while (chunk := await stream.read()) is not grpc.aio.EOF:
                received += len(chunk)
                if received > payload.size:
                    raise ProtocolError(f"it sends more than the {payload.size} bytes it announced.")
                yield chunk
            if received == before:
                raise await _ended(stream)
        except grpc.aio.AioRpcError as error:
            if error.code() not in _CUT:
                raise
            cut = "a transfer was cut after %d of %d bytes (%s): it goes on there"
            LOG.info(cut, received, payload.size, error.details())
            await asyncio.sleep(_PAUSE_S)
        finally:
            stream.cancel()


async def _ended(stream: Any) -> Exception:
    """What a stream ended with that gave nothing."""
    initial, trailing = await stream.initial_metadata(), await stream.trailing_metadata()
    error: Exception = grpc.aio.AioRpcError(await stream.code(), initial, trailing, await stream.details())
    return error


async def push(channel: Any, metadata: Any, answer: Any, path: Path) -> None:
    """Sends a file as the content of an answer; returns when the server has it whole, or does not want it any more.

    Raises:
      AioRpcError: the server refuses it.
    """
    header = (*metadata, ("hansa-answer-bin", answer.SerializeToString()))
    call, damaged = channel.stream_unary(f"/{SERVICE}/Push"), 0
    with open(path, "rb", buffering=0) as file:
        while True:
            stream = call(metadata=header, wait_for_ready=True)
            try:
                # The server says where to begin once it has a place for us; without an offset it wants nothing.
                offset = dict(await stream.initial_metadata() or ()).get("hansa-offset")
                if offset is not None:
                    file.seek(int(offset))
                    await _write(stream, file)
                await stream
                return
            except asyncio.InvalidStateError:
                await asyncio.sleep(_PAUSE_S)  # the stream ended while we wrote: ask it why
            except grpc.aio.AioRpcError as error:
                named = dict(error.trailing_metadata() or ()).get("hansa-error")
                if named == "ProtocolError" and damaged < _TRIES:
                    damaged += 1
                elif error.code() not in _CUT:
                    raise
                LOG.info("an upload was cut (%s): it goes on", error.details())
                await asyncio.sleep(_PAUSE_S)
            finally:
                stream.cancel()


async def _write(stream: Any, file: RawIOBase) -> None:
    """The rest of a file, in chunks."""
    sent = 0
    while chunk := file.read(CHUNK):
        await stream.write(chunk)
        sent += 1
        if sent == 3:
            failpoint("mid-upload")
    await stream.done_writing()
