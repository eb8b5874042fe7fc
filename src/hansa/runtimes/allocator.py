"""How a worker process keeps the memory it frees, instead of giving it back to the system and asking for it again.

A training step allocates and frees the same megabytes over and over. glibc returns large blocks to the system when they
are freed, so that at every step the system hands out fresh pages, each of them cleared: a sixth of the time of an LSTM.
A worker process, or a party that runs a script, does nothing else; it keeps what it had at its peak until it ends.
"""

import ctypes
import platform

TRIM, MMAP = -1, -3  # of mallopt(3): M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
NEVER, LARGE = 2**31 - 1, (1 << 30, 32 << 20)  # bytes; older versions of glibc take no more than the second


def keep_freed_memory() -> bool:
    """From now on blocks up to 1 GiB come from the heap, which never shrinks; False where there is no glibc."""
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return any(mallopt(MMAP, size) for size in LARGE) and bool(mallopt(TRIM, NEVER))
