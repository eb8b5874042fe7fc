"""Which loop was measured to be the fastest, kept between runs in `plans.json` of the user's cache folder.

An entry is found again only for the same network, shapes, work, machine and version of PyTorch; what cannot be read, or
names no loop, counts as absent. It decides speed alone, so a wrong entry costs time and nothing else.
"""

import contextlib
import hashlib
import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

CACHE = "HANSA_CACHE"  # environment variable: the folder; by default `hansa` in XDG_CACHE_HOME or ~/.cache
ENTRIES = 500  # the oldest go first


def key_of(*parts: Any) -> str:
    """The name of an entry: all that decides what is fastest, the machine and PyTorch's version among it.

    Args:
      parts: of equal text for what is equal.
    """
    machine = (platform.machine(), _processor(), os.cpu_count(), torch.__version__)
    return hashlib.sha256(repr((machine, *parts)).encode()).hexdigest()[:32]


def known(key: str, choices: Sequence[str]) -> str | None:
    """The loop that was measured; None if there is none, or none of `choices`."""
    loop = _read().get(key)
    return loop if isinstance(loop, str) and loop in choices else None


def keep(key: str, loop: str) -> None:
    """Keeps a measured loop; where the folder cannot be written, the next run measures again."""
    path = _path()
    entries = {name: one for name, one in _read().items() if name != key} | {key: loop}
    text = json.dumps(dict(list(entries.items())[-ENTRIES:]), indent=1)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(f".{os.getpid()}")
        draft.write_text(text)
        draft.replace(path)


def _read() -> dict[str, Any]:
    try:
        found = json.loads(_path().read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _path() -> Path:
    folder = os.environ.get(CACHE)
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hansa"
    return (Path(folder) if folder else home) / "plans.json"


def _processor() -> str:
    """Its name; what `platform` says where Linux does not tell."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
