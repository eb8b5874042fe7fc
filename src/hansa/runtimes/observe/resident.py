"""How much memory a run has taken at most, as the operating system counts it."""

import multiprocessing
import sys
from pathlib import Path


def peak_memory_bytes() -> int:
    """The highest resident memory so far: of this process, and of each process it started that still runs.

    Pages that processes share are counted once for each. 0 where the system does not tell (Windows).
    """
    try:
        import resource
    except ImportError:
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit + sum(
        _peak_of(child.pid) for child in multiprocessing.active_children() if child.pid is not None
    )


def _peak_of(pid: int) -> int:
    """Of another process, where /proc tells."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)
