"""PyTorch's fused operations are off while a session runs: no protocol has them, and each is a sum of what one has.

They are switches of the process: of several sessions, as those of parties that are threads, the last one that ends
puts them back as the first one found them.
"""

import threading
from collections.abc import Callable
from typing import Any

import torch

_lock = threading.Lock()
_sessions = 0
_found: list[Any] = []

# how each is read, and how it is set
_SWITCHES: tuple[tuple[Callable[[], Any], Callable[[Any], Any]], ...] = (
    (lambda: torch.backends.mkldnn.enabled, lambda on: torch.backends.mkldnn.set_flags(on)),  # recurrent layers
    (lambda: torch.backends.cudnn.enabled, lambda on: torch.backends.cudnn.set_flags(on)),  # on GPUs
    (torch.backends.cuda.flash_sdp_enabled, torch.backends.cuda.enable_flash_sdp),  # attention, on processors, too
    (torch.backends.cuda.mem_efficient_sdp_enabled, torch.backends.cuda.enable_mem_efficient_sdp),
    (torch.backends.cuda.cudnn_sdp_enabled, torch.backends.cuda.enable_cudnn_sdp),
    (torch.backends.mha.get_fastpath_enabled, torch.backends.mha.set_fastpath_enabled),  # and transformers
)


def take_apart() -> None:
    """A session begins."""
    global _sessions
    with _lock:
        if not _sessions:
            _found[:] = [read() for read, _ in _SWITCHES]
            for _, switch in _SWITCHES:
                switch(False)
        _sessions += 1


def put_back() -> None:
    """A session ends."""
    global _sessions
    with _lock:
        _sessions -= 1
        if not _sessions:
            for (_, switch), found in zip(_SWITCHES, _found, strict=True):
                switch(found)
