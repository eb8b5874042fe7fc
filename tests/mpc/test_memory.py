"""A party's process keeps the memory of tensors that it has freed."""

import os
import platform
import resource
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import torch
from hansa.mpc.memory import keep
kept = keep() if sys.argv[1] == "kept" else True
def work():
    for _ in range(20):
        [torch.ones(1 << 19, dtype=torch.int64) for _ in range(8)]
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(int(kept), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library: its memory is left as it is")
def test_the_pages_of_tensors_are_fetched_once() -> None:
    def faults(how: str) -> int:
        settings = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
        shown = subprocess.run(
            [sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True, env=settings
        ).stdout
        done, count = map(int, shown.split())
        assert done
        return count

    page = resource.getpagesize()
    once = (8 << 22) // page  # the pages of all tensors that live at a time
    assert faults("kept") < once
    assert faults("given back") > 10 * once
