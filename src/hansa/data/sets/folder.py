"""The folder of larger data sets on this machine, which the environment variable HANSA_DATA names.

Nothing is ever downloaded: whoever uses MNIST or Shakespeare puts the files there.
"""

import os
from pathlib import Path

from hansa.core.errors import DataError

VARIABLE = "HANSA_DATA"


def data_file(path: str) -> Path:
    """The file `path` below HANSA_DATA.

    Raises:
      DataError: the variable is not set, or there is no such file below it.
    """
    folder = os.environ.get(VARIABLE)
    if not folder:
        raise DataError(f"'{path}' is looked for below the folder that {VARIABLE} names, which is not set: set it.")
    found = Path(folder) / path
    if not found.is_file():
        raise DataError(f"{VARIABLE}={folder} has no file '{path}': put it there, or set {VARIABLE} to where it is.")
    return found
