"""`hansa new`: a folder with a job that runs at once."""

import re
import shutil
from importlib import resources
from pathlib import Path

from hansa.app.terminal import emit, hint, say
from hansa.core.errors import ConfigError

TEMPLATES = {"numpy": "numpy", "torch": "torch"}  # name: the library its model needs
_SHARED = ("data.py", "README.md")


def scaffold(name: str, template: str) -> list[Path]:
    """Makes a folder with job.py, data.py and README.md.

    Args:
      name: of the folder, and of the job; letters, digits, `-`, `_` and `.` in its last part.
      template: one of TEMPLATES.

    Returns:
      The files written; the folder appears whole or not at all.

    Raises:
      ConfigError: the folder exists, its name cannot be used, or there is no such template.
    """
    if template not in TEMPLATES:
        raise ConfigError(f"--template {template}: choose {' or '.join(TEMPLATES)}.")
    folder = Path(name)
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", folder.name):
        raise ConfigError(f"'{name}' cannot be a job's name: use letters, digits, '-', '_' and '.'.")
    if folder.exists():
        raise ConfigError(f"'{name}' exists already: choose another name, or remove it.")
    source = resources.files("hansa.app") / "templates"
    texts = {file: (source / f"{file}.txt").read_text(encoding="utf-8") for file in _SHARED}
    texts["job.py"] = (source / template / "job.py.txt").read_text(encoding="utf-8")
    building = folder.with_name(f".{folder.name}.partial")
    try:
        building.mkdir(parents=True)
        for file, text in texts.items():
            (building / file).write_text(text.replace("@NAME@", folder.name), encoding="utf-8")
        building.rename(folder)
    except OSError as error:
        shutil.rmtree(building, ignore_errors=True)
        raise ConfigError(f"'{name}' cannot be made ({error.strerror}): choose a writable place.") from None
    written = [folder / file for file in sorted(texts)]
    emit("new", folder=str(folder), files=[str(path) for path in written])
    for path in written:
        say(str(path))
    if not _has(TEMPLATES[template]):
        hint(f"its model needs {template}, which is not installed: pip install 'hansa[{template}]'")
    say(f"run it: hansa simulate {folder / 'job.py'}")
    return written


def _has(library: str) -> bool:
    from importlib.util import find_spec

    return find_spec(library) is not None
