"""Where shares live: the processor, or a GPU.

Keys, random words and messages stay with the processor: words are drawn there, and what is sent is copied to it just
before. So a party's messages are the same bytes wherever it computes.
"""

import torch

from hansa.core.errors import ConfigError
from hansa.mpc.protocol import Protocol
from hansa.mpc.ring.products import kernel_on


def usable(device: str | torch.device, protocol: type[Protocol]) -> torch.device:
    """The device that was named, with its number.

    Args:
      device: `cpu`, `cuda` (PyTorch's current one) or `cuda:N`.
      protocol: that shall compute there.

    Raises:
      ConfigError: the protocol does not compute there, there is no such device, or its products are not exact.
    """
    try:
        wanted = torch.device(device)
    except RuntimeError:
        wanted = None
    if wanted is None or wanted.type not in ("cpu", "cuda"):
        raise ConfigError(f"device='{device}': choose 'cpu', 'cuda' or 'cuda:N', as in 'cuda:0'.")
    if wanted.type not in protocol.devices:
        raise ConfigError(
            f"device='{device}': '{protocol.name}' computes on the processor alone; choose device='cpu', or another "
            "protocol (semi-honest aby3 and plain run on a GPU)."
        )
    if wanted.type == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError(
            f"device='{device}': PyTorch {torch.__version__} finds no GPU here; install a build with CUDA and its "
            "driver, or choose device='cpu'."
        )
    count = torch.cuda.device_count()
    at = torch.cuda.current_device() if wanted.index is None else wanted.index
    if at >= count:
        raise ConfigError(f"device='{device}': this machine has {count} GPU(s), the last is 'cuda:{count - 1}'.")
    found = torch.device("cuda", at)
    kernel_on(found)
    return found
