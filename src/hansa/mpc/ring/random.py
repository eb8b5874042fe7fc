"""Ring elements from a key: AES-128 in counter mode, every word given out once.

Two parties that hold the same key and ask for the same sizes in the same order draw the same values without a message.
"""

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from hansa.core.errors import ConfigError

KEY_BYTES = 16


class Prg:
    """A stream of uniform tensors from a secret key.

    Args:
      key: 16 bytes that never serve another stream.
    """

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise ConfigError(f"a key of {len(key)} bytes: AES-128 takes {KEY_BYTES}.")
        self._stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
        self._zeros = bytes(1 << 16)

    def draw(self, shape: tuple[int, ...] | torch.Size, dtype: torch.dtype = torch.int64) -> torch.Tensor:
        """Uniform over all values of an integer dtype."""
        count = int(np.prod(shape, dtype=np.int64))
        size = count * torch.empty((), dtype=dtype).element_size()
        if len(self._zeros) < size:
            self._zeros = bytes(size)
        out = np.empty(size + 15, np.uint8)
        self._stream.update_into(memoryview(self._zeros)[:size], out.data)
        return torch.from_numpy(out[:size]).view(dtype).reshape(tuple(shape))

    def __repr__(self) -> str:
        return "Prg()"
