"""A network saved without its source: a TorchScript archive, named by its hash.

`torch.jit.load` reads such an archive with a reader of its own, in C++: Python's pickle is not involved and no Python
code runs. The program inside is still a program (it can use up memory or time, as any network can), so a worker loads
only the file whose SHA-256 the job names, and the job is signed.
"""

import hashlib
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hansa.core.errors import ConfigError, CorruptFile

PROGRAMS = "HANSA_PROGRAMS"  # environment variable: a folder in which workers look for archives by their file name


@dataclass(frozen=True)
class Program:
    """A callable that gives the saved network; canonical by the name of its file and its SHA-256.

    Args:
      file: the path as the job's author wrote it. Where there is no such file, one of the same name is looked for in
        the folder that the environment variable HANSA_PROGRAMS names.
      sha256: of the archive, in hexadecimal.
    """

    file: str
    sha256: str

    def __call__(self) -> Any:
        """The network, with the weights it was saved with.

        Raises:
          ConfigError: there is no such file.
          CorruptFile: it is another file than the one named, or no TorchScript archive.
        """
        path = self._path()
        found = digest(path)
        if found != self.sha256:
            raise CorruptFile(f"'{path}' has the SHA-256 {found[:12]}…, not {self.sha256[:12]}…: fetch the right file.")
        try:
            with warnings.catch_warnings():
                # PyTorch points to torch.export, whose archives cannot switch between training and evaluation.
                warnings.filterwarnings("ignore", message=".*torch.jit.load", category=DeprecationWarning)
                return torch.jit.load(str(path), map_location="cpu")
        except RuntimeError as error:
            first = str(error).strip().splitlines()[0]
            raise CorruptFile(f"'{path}' is no TorchScript archive ({first}): save it by torch.jit.save.") from None

    def _path(self) -> Path:
        folder = os.environ.get(PROGRAMS)
        choices = [Path(self.file), *([Path(folder) / Path(self.file).name] if folder else [])]
        for path in choices:
            if path.is_file():
                return path
        raise ConfigError(f"no file '{self.file}' here: bring it, or set {PROGRAMS} to the folder that has it.")


def digest(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file; ConfigError if it is not there."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ConfigError(f"'{os.fspath(path)}' cannot be read: {error.strerror}.") from None
