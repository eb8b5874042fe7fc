"""Uploads on their way in: files in the spool folder, sealed with a key that only this process has.

A single update is never on disk in clear, and none outlives its round: files are deleted when their task is retired, a
crash takes the key with it, and the next start empties the folder. Sealing is AES-128-CTR under a fresh nonce for each
file: it hides, and TLS and the tag over the whole say that what was written is what was sent.
"""

import asyncio
import errno
import os
import secrets
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from hansa.core.errors import ProtocolError, StorageFull
from hansa.runtimes.grpc.wire import CHUNK, Tag

_PLACES = 3  # transfers at a time: more are not faster, and cost memory
_SLICE_S = 10.0
_SLOW = 64 << 10  # bytes a second below which a transfer goes on, but keeps nobody else waiting


class Spool:
    """A folder of uploads and the key that seals them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = os.urandom(16)

    def open(self, size: int, name: bytes, tag: bytes) -> "Upload":
        """A new upload of content that its sender named so."""
        return Upload(self._folder / secrets.token_hex(12), self._key, size, name, tag)


class Upload:
    """One upload: written in order by one thread, read by another once it is whole.

    `received` is the offset from which a transfer that was cut goes on.
    """

    def __init__(self, path: Path, key: bytes, size: int, name: bytes, tag: bytes) -> None:
        self.size, self.name, self.tag = size, name, tag
        self.received = 0
        self._path, self._key = path, key
        self._nonce = int.from_bytes(os.urandom(16), "big")
        self._seal = self._cipher(0).encryptor()
        self._tag = Tag(name)
        self._sealed = bytearray(CHUNK + 16)
        self._scratch = memoryview(bytearray(CHUNK))
        self._turn = threading.Lock()
        self._file: int | None = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)

    def write(self, chunk: bytes) -> None:
        """Takes the next bytes.

        Raises:
          ProtocolError: they are more than were announced.
          StorageFull: there is no space for them.
        """
        if self.received + len(chunk) > self.size or len(chunk) > CHUNK:
            raise ProtocolError(
                f"an upload of {self.size} bytes goes on after its end, or in pieces over {CHUNK} bytes."
            )
        with self._turn:
            if self._file is None:
                return  # retired meanwhile: nobody waits for it any more
            count = self._seal.update_into(chunk, self._sealed)
            view = memoryview(self._sealed)[:count]
            try:
                while view:
                    view = view[os.write(self._file, view) :]
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                    raise
                raise StorageFull(
                    f"the spool cannot take an upload of {self.size} bytes ({error.strerror}): "
                    "free space in the state folder, and resume the run."
                ) from None
            self._tag.update(chunk)
            self.received += len(chunk)

    def whole(self) -> bool:
        """Whether all bytes are here and are those that were sent; asked once."""
        return self.received == self.size and self._tag.value() == self.tag

    def read(self, offset: int, length: int) -> memoryview:
        """Bytes in clear, for `open_stored`."""
        start = offset & ~15
        assert self._file is not None, "an upload is not read after its task was retired"
        # A round reads every byte of every upload twice, so: not zeroed, and in pieces that stay in the core's cache.
        size = offset - start + length
        clear = np.empty(size + 15, np.uint8).data  # the library wants room for a block beyond
        cipher, sealed = self._cipher(start >> 4).decryptor(), self._scratch
        for at in range(0, size, CHUNK):
            piece = sealed[: min(CHUNK, size - at)]
            count = os.preadv(self._file, [piece], start + at)
            assert count == len(piece), "an upload is read within its size"
            cipher.update_into(piece, clear[at:])
        return clear.toreadonly()[offset - start : size]

    def close(self) -> None:
        """Deletes it."""
        with self._turn:
            if self._file is not None:
                os.close(self._file)
                self._file = None
                self._path.unlink(missing_ok=True)

    def _cipher(self, block: int) -> Cipher[modes.CTR]:
        nonce = (self._nonce + block) % (1 << 128)
        return Cipher(algorithms.AES(self._key), modes.CTR(nonce.to_bytes(16, "big")))


class Place:
    """A transfer's right to go on; `moved` is told how it goes."""

    def __init__(self, free: asyncio.Semaphore) -> None:
        self._free = free
        self._moved = 0
        self._held = True
        self._timer = asyncio.get_running_loop().call_later(_SLICE_S, self._look)

    def moved(self, count: int) -> None:
        """So many bytes went."""
        self._moved += count

    def leave(self) -> None:
        """Lets the next one in; doing it again does nothing."""
        self._timer.cancel()
        if self._held:
            self._held = False
            self._free.release()

    def _look(self) -> None:
        if self._moved < _SLOW * _SLICE_S:
            self.leave()
            return
        self._moved = 0
        self._timer = asyncio.get_running_loop().call_later(_SLICE_S, self._look)


class Places:
    """Three transfers at a time, both ways together. A slow one goes on beside them, and cannot hold a place."""

    def __init__(self) -> None:
        self._free = asyncio.Semaphore(_PLACES)

    @asynccontextmanager
    async def one(self) -> AsyncIterator[Place]:
        """Waits for a place, first come first served."""
        await self._free.acquire()
        place = Place(self._free)
        try:
            yield place
        finally:
            place.leave()
