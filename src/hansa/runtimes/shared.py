"""Tensors that processes of one machine hand each other: safetensors files in a private folder, mapped by who reads.

A path stands for its content for good. The pages of a file that nobody reads any longer are written over under a new
name: shared memory that is fresh costs several times what copying into it does, and so does mapping it anew.
"""

import mmap
import os
import secrets
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hansa.core.checkpoint import buffers, open_bytes
from hansa.core.tensors import Tensors

MAPPED_BYTES = 256 << 10  # from this size on files are mapped: each mapping holds one of the process's file descriptors


class Spare(NamedTuple):
    """A file that nobody reads, and its pages if this process has them mapped."""

    path: str
    mapping: mmap.mmap | None = None


class Spares:
    """Files to be written over.

    Args:
      count, size_bytes: how many are kept, and of what size together at most; others are deleted.
    """

    def __init__(self, count: int, size_bytes: int) -> None:
        self._count, self._size_bytes = count, size_bytes
        self._spares: list[Spare] = []

    def add(self, path: str, mapping: mmap.mmap | None = None) -> None:
        """Takes a file that nobody reads any longer, or deletes it; it may be gone with its folder."""
        with suppress(FileNotFoundError):
            if len(self._spares) < min(self._count, self._size_bytes // max(1, os.stat(path).st_size)):
                self._spares.append(Spare(path, mapping))
            else:
                os.unlink(path)

    def pop(self) -> Spare | None:
        """The one that was given last, if there is any."""
        return self._spares.pop() if self._spares else None


def write_tensors(tensors: Tensors, folder: str, spare: str = "") -> str:
    """Writes a safetensors file of a random name, into the pages of a spare one if there is one, and gives its path."""
    path = os.path.join(folder, secrets.token_hex(12))
    if spare:
        os.rename(spare, path)
    with open(path, "r+b" if spare else "xb") as file:
        file.writelines(buffers(tensors))
        file.truncate()
    return path


def read_tensors(path: str) -> Tensors:
    """The tensors of a file; those of a large one are mapped into memory, and its pages live as long as the arrays."""
    return open_bytes(memoryview(_mapped(path)) if _large(path) else Path(path).read_bytes())[0]


def borrow_tensors(path: str, mapping: mmap.mmap | None, back: Callable[[str, mmap.mmap | None], None]) -> Tensors:
    """The same of a file that is to be written over.

    Args:
      path: of the file.
      mapping: of its pages, from when it had another name; None if there is none.
      back: called with the path and the mapping once none of the arrays, and no view of them, is left.
    """
    if not _large(path):
        tensors = read_tensors(path)
        back(path, None)
        return tensors
    if mapping is None or len(mapping) != os.stat(path).st_size:
        mapping = _mapped(path)
    whole = np.frombuffer(mapping, np.uint8)  # what all views hold on to
    weakref.finalize(whole, back, path, mapping).atexit = False
    return open_bytes(whole.data)[0]


def _large(path: str) -> bool:
    return os.stat(path).st_size >= MAPPED_BYTES


def _mapped(path: str) -> mmap.mmap:
    with open(path, "rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
