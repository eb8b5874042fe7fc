"""Bytes that are on disk when a write returns: checkpoints, in a folder or at an fsspec URL, and signed jobs."""

import errno
import os
import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy.exc import DatabaseError, DBAPIError, OperationalError

from hansa.core.checkpoint import Buffer
from hansa.core.errors import ConfigError, CorruptFile, MissingExtra, StorageFull


class Blobs:
    """Files by name in a folder, or in what an fsspec URL names."""

    def __init__(self, place: str) -> None:
        self._folder: Path | None = None
        if "://" not in place:
            self._folder = Path(place)
            self._folder.mkdir(exist_ok=True, mode=0o700)
            return
        shown = re.sub("//.*@", "//", place)
        try:
            import fsspec
        except ImportError:
            raise MissingExtra(f"blobs at {shown}", "fsspec", "store") from None
        try:
            self._files, self._root = fsspec.core.url_to_fs(place)
        except (ImportError, ValueError, OSError) as error:
            raise ConfigError(f"blobs at {shown} cannot be kept ({error}): give a URL that fsspec knows.") from None

    def write(self, name: str, pieces: Sequence[Buffer]) -> None:
        """All pieces under a name; StorageFull if there is no space."""
        with full_disk(f"checkpoint {name}"):
            if self._folder is not None:
                (self._folder / name).parent.mkdir(exist_ok=True, mode=0o700)
                write_durably(self._folder / name, pieces)
                return
            self._files.makedirs(f"{self._root}/{name.rpartition('/')[0]}", exist_ok=True)
            with self._files.open(f"{self._root}/{name}", "wb") as file:
                for piece in pieces:
                    file.write(piece)

    def read(self, name: str) -> bytes:
        """What `write` wrote; CorruptFile if it cannot be read."""
        try:
            if self._folder is not None:
                return (self._folder / name).read_bytes()
            return bytes(self._files.cat_file(f"{self._root}/{name}"))
        except OSError as error:
            raise CorruptFile(
                f"checkpoint {name} cannot be read ({error.strerror or error}): restore it from a backup."
            ) from None

    def delete(self, name: str) -> None:
        """Best effort: what is not referred to any more costs space, no more."""
        try:
            if self._folder is not None:
                (self._folder / name).unlink()
            else:
                self._files.rm_file(f"{self._root}/{name}")
        except OSError:
            pass


def write_durably(path: Path, pieces: Sequence[Buffer]) -> None:
    """Writes a file that is on disk, name and content, when this returns; a failure leaves nothing."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    file = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        try:
            for piece in pieces:
                view = memoryview(piece)
                while view:
                    view = view[os.write(file, view[: 8 << 20]) :]
            os.fsync(file)
        finally:
            os.close(file)
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def full_disk(what: str) -> Iterator[None]:
    """Names a full disk, quota or limit as what it is."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise StorageFull(
            f"{what} cannot be written ({error.strerror}): free space and resume; what was committed is there."
        ) from None
    except (OperationalError, DatabaseError) as error:
        text = str(error.orig).lower() if isinstance(error, DBAPIError) else str(error).lower()
        if not any(sign in text for sign in ("full", "disk i/o", "no space", "quota")):
            raise
        raise StorageFull(
            f"{what} cannot be written (the database says: {error.orig}): free space and resume."
        ) from None
