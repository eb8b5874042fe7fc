"""Memory that is free goes back to the system: glibc would keep arrays of up to 32 MB for later, holes and all.

Its threshold between heap and mapping moves up to the largest block it has seen freed. A server frees small blocks all
the time and tensors once a round, so it is held between the two: blocks come from the heap, tensors are mapped.
"""

import contextlib
import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # malloc.h


def settle() -> None:
    """Sets the allocator up for a server; where there is no glibc it does nothing."""
    if not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        for option, value in ((_MMAP_THRESHOLD, 6 << 20), (_TRIM_THRESHOLD, 16 << 20), (_ARENA_MAX, 2)):
            libc.mallopt(option, value)
