"""Worker processes keep the memory that they free."""

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource
import numpy as np
from hansa.runtimes.allocator import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        np.empty(48 << 20, np.uint8).fill(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

without, kept = faults(), keep_freed_memory()
faults()
print(without, kept, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
def test_freed_memory_is_used_again_and_not_asked_for_anew() -> None:
    said = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True).stdout.split()
    before, kept, after = said
    assert kept == "True"
    assert int(before) > 100, "fresh pages every time, of 2 MiB at most"
    assert int(after) < 10, "none of them fresh"
