"""Data that the owner's own Python function returns: `module.py:function` or `package.module:function`.

This runs the function. It is for what the party itself names on its own machine, never for a name that came in a
message.
"""

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from hansa.core import data
from hansa.core.errors import DataError


def load_from_code(module: str, function: str) -> Any:
    """Calls a function without arguments by its name.

    Args:
      module: a path that ends in .py, or the dotted name of a module that can be imported from here.
      function: its name in the module; dots reach into classes.

    Raises:
      DataError: there is no such file, module or function, or what it returns has no length.
    """
    found: Any = _from_file(Path(module)) if module.endswith(".py") else _imported(module)
    for name in function.split("."):
        if not hasattr(found, name):
            there = sorted(key for key, value in vars(found).items() if callable(value) and not key.startswith("_"))
            raise DataError(f"'{module}' has no function '{function}': it has {there}.")
        found = getattr(found, name)
    if not callable(found):
        raise DataError(
            f"'{module}:{function}' is a {type(found).__name__}, not a function: name one that returns data."
        )
    return data.load(found)


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise DataError(f"there is no file '{path}' to load data from: check the path.")
    name = f"hansa_data_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)  # so that the file may import its neighbours, as `python file.py` lets it
    try:
        spec.loader.exec_module(module)
    except ImportError as error:
        del sys.modules[name]
        raise DataError(f"'{path}' cannot be imported: {error}.") from error
    return module


def _imported(name: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)  # a console script does not have the working folder on its path
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise DataError(f"module '{name}' cannot be imported: {error}.") from error
