"""Files that trust depends on: private from their first byte on, replaced whole or not at all."""

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hansa.core.errors import ConfigError, HansaError, IdentityError, StorageFull

_MAX_BYTES = 1 << 20


def read_private(path: Path) -> bytes:
    """Reads a file that nobody but its owner can use.

    Root's own may be readable by its group (0640), as secrets mounted into containers are.

    Raises:
      IdentityError: the file is missing, or others can read or write it.
    """
    try:
        with open(path, "rb") as file:
            info = os.fstat(file.fileno())
            mode = stat.S_IMODE(info.st_mode)
            shared = mode & (0o037 if info.st_uid == 0 else 0o077)
            if shared and os.name == "posix":
                raise IdentityError(
                    f"{path} holds a private key and others can use it (mode {mode:04o}, expected 0600): "
                    f"chmod 600 {path}"
                )
            return file.read(_MAX_BYTES)
    except OSError as error:
        raise IdentityError(
            f"{path} cannot be read ({error.strerror}): give the path of a file made by `hansa enrol`"
        ) from None


def write_atomically(path: Path, content: bytes, *, mode: int) -> Path:
    """Writes a file of `mode`; a reader, or a restart after a crash, finds the old content or the new one whole.

    Raises:
      ConfigError: it cannot be written there. StorageFull: the disk is.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        try:
            with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        if os.name == "posix":  # the name itself must survive a power cut
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except OSError as error:
        raise _unwritable(path, error) from None
    return path


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the lock file `path`: one holder at a time, of all processes; it frees itself when its holder dies."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise _unwritable(path, error) from None
    with open(descriptor, "rb") as file:
        try:
            import fcntl
        except ImportError:  # Windows has no such lock: there, let one process at a time make changes
            yield
        else:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _unwritable(path: Path, error: OSError) -> HansaError:
    """What to say of a file that could not be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageFull(f"{path} cannot be written ({error.strerror}): free space there")
    return ConfigError(f"{path} cannot be written ({error.strerror}): choose a writable folder")
