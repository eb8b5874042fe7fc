"""Folders and files that commands are told to write, looked at before the work begins."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from hansa.core.errors import ConfigError, MissingExtra

if TYPE_CHECKING:
    from hansa.runtimes.store import SqlStore


def check_folder(path: Path | None, option: str) -> None:
    """ConfigError unless the folder of what is to be made, if anything is, is there."""
    if path is not None and not path.absolute().parent.is_dir():
        raise ConfigError(f"{option} {path}: there is no folder {path.parent}; make it first.")


def check_file(path: Path | None, option: str) -> None:
    """ConfigError unless a file, if one is to be written, has a folder to lie in, and is none itself."""
    check_folder(path, option)
    if path is not None and path.is_dir():
        raise ConfigError(f"{option} {path} is a folder: name a file in it.")


def check_files(path: Path | None, option: str) -> None:
    """ConfigError unless a folder for several files, if they are to be written, is there or can be made."""
    if path is not None:
        nearest = next(place for place in (path, *path.absolute().parents) if place.exists())
        if not nearest.is_dir():
            raise ConfigError(f"{option} {path} cannot be used ({nearest} is a file): choose another folder.")


@contextmanager
def state_in(folder: Path, who: str, *, beside: bool = False) -> "Iterator[SqlStore]":
    """A state, made if it is missing; `beside` a server that may be using it.

    Args:
      folder: of the state.
      who: the option or command that needs it, for errors.
    """
    try:
        from hansa.runtimes.store import SqlStore
    except ImportError as error:
        raise MissingExtra(who, error.name or "sqlalchemy", "store") from None
    with closing(SqlStore(folder, beside=beside)) as store:
        yield store
