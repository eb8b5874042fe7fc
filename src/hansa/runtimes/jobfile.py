"""A job file: an ordinary Python file that defines `job`, and for simulations `clients`.

    job = hansa.Job(...)                                    what every runtime runs
    clients = hansa.data.partition(...)                     or a function clients(n), for `hansa simulate --clients N`

It is imported as a module named after its stem, with its folder first on the path, wherever it runs: `job.py` here and
in a worker's unpacked bundle is the module `job`, so that `job:net` in a canonical form means the same function on both
sides. Settings given when it was submitted travel beside it, as `job.settings.json`, and are applied wherever it is
loaded. One job file at a time is loaded in a process; loading another forgets the modules of the one before.
"""

import importlib.machinery
import importlib.util
import inspect
import json
import os
import re
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from hansa.core.data import Clients
from hansa.core.errors import ConfigError, HansaError, MissingExtra, NotFound
from hansa.core.job import Job
from hansa.runtimes.overrides import override

_EXTRAS = {"torch": "torch", "jax": "jax", "keras": "keras", "sklearn": "sklearn", "pyarrow": "data", "fsspec": "data"}
_INSTALLED_AS = {
    "PIL": "pillow",
    "cv2": "opencv-python",
    "yaml": "pyyaml",
    "skimage": "scikit-image",
    "bs4": "beautifulsoup4",
}


class MissingLibrary(MissingExtra):
    """A library that a job file imports itself, and that no extra of ours would bring."""

    def __init__(self, where: str, library: str) -> None:
        name = _INSTALLED_AS.get(library, library)
        HansaError.__init__(
            self,
            f"{where} needs {library}, which is not installed: {sys.executable} -m pip install {name} "
            f"(or put {library}.py beside the job file)",
        )


def load_job(path: str | os.PathLike[str], settings: Mapping[str, str] | None = None) -> Job:
    """The job that a file defines, with some of its fields changed from text.

    Args:
      path: a Python file; see the top of this page.
      settings: as in `override`: `{"rounds": "50", "algorithm.work.lr": "0.1"}`.

    Raises:
      NotFound: there is no such file.
      ConfigError: it is no Python file, it raised, it defines no `job`, or a setting names no field.
      MissingExtra: it imports what is not installed; the message says what to install.
      HansaError: whatever Hansa itself refused while the file ran, with a note of the line.
    """
    return job_of(load_module(path), settings)


def settings_file(path: Path) -> Path:
    """Where the settings that travel with a job file are: `job.settings.json` for `job.py`."""
    return path.with_name(f"{path.stem}.settings.json")


def _settings(module: ModuleType) -> dict[str, str]:
    """What travelled with a loaded file."""
    path = settings_file(Path(module.__file__ or module.__name__))
    if not path.is_file():
        return {}
    try:
        given = json.loads(path.read_bytes())
        if not isinstance(given, dict) or not all(isinstance(value, str) for value in given.values()):
            raise ValueError("not a mapping of names to texts")
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path.name} cannot be read ({error}): submit the job again with --set.") from None
    return given


def job_of(module: ModuleType, settings: Mapping[str, str] | None = None) -> Job:
    """The `job` of a loaded file, with settings; ConfigError if it has none."""
    name = Path(module.__file__ or module.__name__).name
    job = getattr(module, "job", None)
    if isinstance(job, Job):
        return override(job, {**_settings(module), **(settings or {})})
    others = sorted(key for key, value in vars(module).items() if isinstance(value, Job))
    if job is None and others:
        raise ConfigError(
            f"{name} defines no `job`, but a Job named `{others[0]}`: rename it, or add job = {others[0]}."
        )
    if job is None:
        raise ConfigError(f"{name} defines no `job`: end it with job = hansa.Job(...), as `hansa new` writes it.")
    if callable(job):
        raise ConfigError(f"`job` in {name} is a function, and a Job is expected: call it, job = job().")
    raise ConfigError(f"`job` in {name} is of type {type(job).__name__}, and a Job is expected: job = hansa.Job(...).")


def clients_of(module: ModuleType, count: int | None = None) -> Clients:
    """The simulated clients of a loaded file.

    Args:
      module: what `load_module` gave.
      count: how many, for a file whose `clients` is a function of that number; None takes the function's default.

    Raises:
      ConfigError: there is no `clients`, it is of another kind, or it takes no number and one was given.
    """
    name = Path(module.__file__ or module.__name__).name
    given = getattr(module, "clients", None)
    if given is None:
        raise ConfigError(
            f"{name} defines no `clients`, which a simulation needs: add clients = hansa.data.partition(...), or a "
            "function clients(n) for `--clients N`."
        )
    if callable(given) and not isinstance(given, Clients):
        given = _call(given, name, count, Path(module.__file__ or "."))
    elif count is not None and count != len(given):
        raise ConfigError(
            f"--clients {count}, but `clients` in {name} is fixed at {len(given)}: write def clients(n): ..."
        )
    if isinstance(given, Mapping):
        return Clients.of(given)
    if not isinstance(given, Clients):
        raise ConfigError(
            f"`clients` in {name} is of type {type(given).__name__}: give hansa.Clients, or a mapping of names to data."
        )
    return given


def _call(function: Any, name: str, count: int | None, path: Path) -> Any:
    """`clients(n)`, or `clients()` where no number was given and none is needed."""
    parameters = list(inspect.signature(function).parameters.values())
    if count is not None and not parameters:
        raise ConfigError(f"--clients {count}, but `clients` in {name} takes no number: write def clients(n): ...")
    if count is None and parameters and parameters[0].default is inspect.Parameter.empty:
        raise ConfigError(f"`clients({parameters[0].name})` in {name} needs a number: give --clients N.")
    if count is not None and count < 1:
        raise ConfigError(f"--clients {count}: at least 1 is needed.")
    with explained(path):
        return function() if count is None else function(count)


@contextmanager
def explained(file: Path) -> Iterator[None]:
    """Turns what a user's own code raises into one sentence with its line; Hansa's own errors get it as a note."""
    try:
        yield
    except HansaError as error:
        _note(error, file)
        raise
    except Exception as error:
        raise _failed(error, file) from error


def load_module(path: str | os.PathLike[str]) -> ModuleType:
    """Runs a job file and gives its module; errors as in `load_job`."""
    file = Path(path).absolute()
    if not file.exists():
        raise NotFound(f"there is no job file '{path}': check the path, or make one with `hansa new NAME`.")
    if file.suffix != ".py" or not file.is_file():
        raise ConfigError(f"'{path}' is not a Python file: give the .py file that defines `job`.")
    name, folder = file.stem, str(file.parent)
    if "." in name:
        raise ConfigError(
            f"'{file.name}' has a dot in its name and cannot be imported: rename it to {name.replace('.', '_')}.py."
        )
    _forget()
    before = sys.modules.get(name)
    if name in sys.stdlib_module_names:
        raise ConfigError(f"'{file.name}' has the name of a module of Python's own library: rename the job file.")
    taken = str(getattr(before, "__file__", "")) if before is not None else _installed(name)
    if taken and Path(taken).absolute() != file:
        raise ConfigError(f"'{file.name}' has the name of another module ({taken}): rename the job file.")
    sys.path.insert(0, folder)
    _Loaded.folder = folder
    loader = _FromSource(name, str(file))
    spec = importlib.util.spec_from_loader(name, loader, origin=str(file))
    assert spec is not None
    spec.has_location = True
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    importlib.invalidate_caches()
    without_bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # a job's folder stays as it is
    try:
        with explained(file):
            loader.exec_module(module)
    except BaseException as error:
        sys.modules.pop(name, None)
        if isinstance(error, SystemExit):
            raise ConfigError(f"{file.name} ended the program ({error}): take sys.exit out of it.") from error
        raise
    finally:
        sys.dont_write_bytecode = without_bytecode
    return module


def _installed(name: str) -> str:
    """Where a library of this name is installed; empty if none is."""
    spec = importlib.util.find_spec(name)
    origin = str(spec.origin or "") if spec is not None else ""
    return origin if "site-packages" in origin else ""


class _Loaded:
    """The folder of the job file that was loaded last."""

    folder = ""


class _FromSource(importlib.machinery.SourceFileLoader):
    """Always compiles: a file changed within the second would else run as it was before."""

    def get_code(self, fullname: str) -> CodeType | None:
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


def _forget() -> None:
    """Forgets the modules of the job file loaded before, so that its neighbours are not taken for the next one's."""
    folder = _Loaded.folder
    if not folder:
        return
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if file and Path(file).is_relative_to(folder) and name.split(".")[0] not in ("hansa", "__main__"):
            beside = Path(file).relative_to(folder).parts[0]
            if beside.removesuffix(".py") == name.split(".")[0]:  # imported from this folder, not from a venv below it
                del sys.modules[name]
    if folder in sys.path:
        sys.path.remove(folder)
    _Loaded.folder = ""


def _failed(error: Exception, file: Path) -> HansaError:
    """What a user's own exception becomes: one sentence with the user's own line."""
    if isinstance(error, SyntaxError):
        where = f"{Path(error.filename or file.name).name}, line {error.lineno}"
        return ConfigError(f"{where} is no valid Python ({error.msg}): {(error.text or '').strip()}")
    where, line = _place(error, file)
    if isinstance(error, ModuleNotFoundError) and error.name:
        library = error.name.split(".")[0]
        if library == "hansa":
            return ConfigError(f"{where}: {error}. This Hansa has no module '{error.name}': check its name.")
        if library in _EXTRAS:
            return MissingExtra(where, library, _EXTRAS[library])
        return MissingLibrary(where, library)
    said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return ConfigError(
        f"{where} raised {said}{f'  in  {line}' if line else ''} (`--verbose` shows the whole traceback)"
    )


def _note(error: HansaError, file: Path) -> None:
    where, line = _place(error, file)
    if re.search(r"line \d+", where):
        error.add_note(f"{where}: {line}")


def _place(error: BaseException, file: Path) -> tuple[str, str]:
    """The last line of the user's own files that was running, as "job.py, line 3" and its text."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).is_relative_to(file.parent)
        and not {"site-packages", "hansa"} & set(Path(frame.filename).parts[len(file.parent.parts) :])
    ]
    if not frames:
        return file.name, ""
    last = frames[-1]
    return f"{Path(last.filename).relative_to(file.parent)}, line {last.lineno}", (last.line or "").strip()
