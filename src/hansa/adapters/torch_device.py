"""Where a model trains: the processor, or one GPU; and what keeps its numbers there apart from all that went before.

device=    what is taken
None       HANSA_DEVICE, else the processor
cuda       the GPU that HANSA_DEVICE names, else PyTorch's current one: in a pool each process is told its own
cuda:N     that one
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from hansa.core.errors import ConfigError

DEVICE = "HANSA_DEVICE"  # environment variable: where this process trains
_NAME = re.compile(r"cpu|cuda(:\d+)?")


def wanted(asked: str | None) -> str:
    """The device's name, whether it is here or not: whoever hands out work need not have what workers have.

    Args:
      asked: as the model says.

    Raises:
      ConfigError: it is no device.
    """
    told = os.environ.get(DEVICE, "")
    name = told if asked is None or (asked == "cuda" and told.startswith("cuda")) else asked
    if not name or name == "cpu":
        return "cpu"
    if not _NAME.fullmatch(name):
        raise ConfigError(f"device='{name}': it is written as 'cpu', 'cuda' or 'cuda:0'.")
    return name


def chosen(asked: str | None) -> str:
    """The whole name, `cpu` or `cuda:N`, of a device that is here.

    Raises:
      ConfigError: it is no device, or not here.
    """
    name = wanted(asked)
    if name == "cpu":
        return name
    count = torch.cuda.device_count()
    if not count:
        raise ConfigError(f"device='{name}' is not available: {_absent()}, or train on the CPU by device='cpu'.")
    own = torch.cuda.current_device() if torch.cuda.is_initialized() else 0  # asking would take memory on it
    at = int(name[5:]) if ":" in name else own
    if at >= count:
        raise ConfigError(
            f"device='{name}' is not available: PyTorch sees {count} of them here, the last is 'cuda:{count - 1}'."
        )
    return f"cuda:{at}"


def _absent() -> str:
    if torch.version.cuda is None and torch.version.hip is None:
        return f"this PyTorch ({torch.__version__}) is built without CUDA; install a build that has it"
    return f"PyTorch {torch.__version__} sees no GPU here; look at `nvidia-smi` and CUDA_VISIBLE_DEVICES"


@contextmanager
def working_on(device: str, threads: int) -> Iterator[None]:
    """PyTorch as training wants it, inside, and as it was, outside.

    On a GPU: what a library makes for itself is made there; convolutions and products of float32 are of float32, not
    of the 10 bits of TF32; and cuDNN takes algorithms that give the same bits each time.
    """
    before = torch.get_num_threads()
    if before != threads:
        torch.set_num_threads(threads)
    try:
        if device.startswith("cuda"):
            with torch.cuda.device(device), _exact():
                yield
        else:
            yield
    finally:
        if before != threads:
            torch.set_num_threads(before)


@contextmanager
def _exact() -> Iterator[None]:
    cudnn, before = torch.backends.cudnn, torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with cudnn.flags(enabled=cudnn.enabled, benchmark=False, deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def seeded(seed: int, device: str) -> Iterator[None]:
    """PyTorch's random state, of the processor and of a device, seeded inside and as before outside."""
    there = [torch.device(device)] if device.startswith("cuda") else []
    with torch.random.fork_rng(devices=there):
        torch.random.default_generator.manual_seed(seed)
        for one in there:
            with torch.cuda.device(one):
                torch.cuda.manual_seed(seed)
        yield


def on_device(column: Any, device: str) -> Any:
    """A NumPy array as a tensor of its own there; its way is through pinned memory, which is several times as fast."""
    pinned = device.startswith("cuda")
    staged = torch.empty(column.shape, dtype=torch.from_numpy(column[:0].copy()).dtype, pin_memory=pinned)
    staged.numpy()[...] = column
    return staged.to(device, non_blocking=pinned)  # pinned memory is not used anew before it has been read


def memory_bytes(device: str) -> int:
    """What clients trained together may need: half of a GPU, or a quarter of what this process may use here.

    Of a GPU that others use too it is less: nine tenths of what is free now.
    """
    if device.startswith("cuda"):
        free, whole = torch.cuda.mem_get_info(device)
        own = torch.cuda.memory_reserved(device)  # ours already, whether it is in use or not
        return int(min(whole // 2, (free + own) * 9 // 10))
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")  # a container's
    text = limit.read_text().strip() if limit.is_file() else "max"
    return min(whole, int(text) if text.isdigit() else whole) // 4


def hardware(device: str) -> str:
    """What computes there, by its name."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device
