"""Memory that stays with a party's process.

A party works on tensors of the same few sizes again and again. The C library gives back the memory of several large
ones that are freed together, and the system clears every page before it gives it again: a tenth to a fifth of the time
of a comparison of 10⁵ to 10⁶ numbers.
"""

import ctypes
from contextlib import suppress

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # glibc's <malloc.h>
_LARGEST = 1 << 26


def keep() -> bool:
    """Has freed memory kept for the next tensor, for as long as the process lives; beyond 64 MiB it is given back.

    Returns:
      Whether the C library does so: glibc does, others are left as they are.
    """
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        return bool(library.mallopt(_TRIM_THRESHOLD, 2**31 - 1) and library.mallopt(_MMAP_THRESHOLD, _LARGEST))
    return False
