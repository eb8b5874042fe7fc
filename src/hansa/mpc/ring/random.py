"""Ring elements from a key: AES-128 in counter mode, every word given out once.

Two parties that hold the same key and ask for the same sizes in the same order draw the same values without a message.
Small draws are cut from a block that is drawn at once: the cipher takes longer to be called than to fill them.
"""

import math

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from hansa.core.errors import ConfigError
from hansa.mpc.ring.words import Words

KEY_BYTES = 16
_BLOCK = 1 << 14
_SMALL = 1 << 12
_ALIGNED = 16


class Prg:
    """A stream of uniform tensors from a secret key.

    Args:
      key: 16 bytes that never serve another stream.
    """

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise ConfigError(f"a key of {len(key)} bytes: AES-128 takes {KEY_BYTES}.")
        self._stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
        self._zeros = memoryview(bytes(1 << 16))
        self._block, self._used = np.empty(0, np.uint8), 0

    def draw(self, shape: tuple[int, ...] | torch.Size, dtype: torch.dtype = torch.int64) -> torch.Tensor:
        """Uniform over all values of an integer dtype."""
        words = self._bytes(math.prod(shape) * dtype.itemsize)
        return torch.from_numpy(words).view(dtype).reshape(tuple(shape))

    def draw_like(self, words: Words) -> Words:
        """Uniform, of the same shape, dtype and kind; on a tensor's device, to which they are copied."""
        if isinstance(words, torch.Tensor):
            drawn = self.draw(words.shape, words.dtype)
            return drawn if words.is_cpu else drawn.to(words.device)
        return self._bytes(words.nbytes).view(words.dtype).reshape(words.shape)

    def _bytes(self, size: int) -> np.ndarray:
        if not 0 < size <= _SMALL:
            return self._fresh(size)
        at, end = self._used, self._used + size
        if end > len(self._block):
            self._block, at, end = self._fresh(_BLOCK), 0, size
        self._used = end + -end % _ALIGNED
        return self._block[at:end]

    def _fresh(self, size: int) -> np.ndarray:
        if len(self._zeros) < size:
            self._zeros = memoryview(bytes(size))
        out = np.empty(size + 15, np.uint8)
        self._stream.update_into(self._zeros[:size], out.data)
        return out[:size]

    def __repr__(self) -> str:
        return "Prg()"
