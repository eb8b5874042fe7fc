"""One process for one folder: a second server or worker in it would undo what the first does."""

import os
from pathlib import Path
from typing import Any

from hansa.core.errors import StateMismatch


def lock_folder(folder: Path, what: str, option: str) -> Any:
    """Holds a folder for this process until the file it returns is closed, or the process ends, however it ends.

    Raises:
      StateMismatch: another process holds it.
    """
    file = open(folder / "lock", "a+")  # noqa: SIM115
    try:
        import fcntl
    except ImportError:  # Windows: one server a folder is then the operator's care
        return file
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.seek(0)
        holder = file.read().strip() or "unknown"
        file.close()
        raise StateMismatch(
            f"{folder} is in use by another {what} (process {holder}): stop it, or choose another folder with {option}."
        ) from None
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file
