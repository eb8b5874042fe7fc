"""Vectors of integers modulo 2ᵐ: masks from keys, added in place, and packed to m bits on the wire.

A mask is AES-128 in counter mode under a key that serves once. It is made and added in pieces that stay in the cache.
"""

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from hansa.core.errors import ConfigError, ProtocolError

KEY_BYTES = 16
_PIECE = 1 << 18
_ZEROS = bytes(_PIECE)


def words(bits: int) -> np.dtype:
    """The unsigned integers that hold residues modulo 2^bits."""
    if not 1 <= bits <= 64:
        raise ConfigError(f"a modulus of {bits} bits: 1 to 64 are possible.")
    return np.dtype(np.uint32 if bits <= 32 else np.uint64)


def add_mask(vectors: list[np.ndarray], key: bytes, sign: int = 1) -> None:
    """Adds, or subtracts, one key's mask to vectors of uint32 or uint64, in place.

    They wrap at their own width, of which every smaller power of two divides: reduce when all is added.
    """
    stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
    buffer = np.empty(_PIECE + 15, np.uint8)
    combine = np.add if sign > 0 else np.subtract
    for vector in vectors:
        step = _PIECE // vector.itemsize
        for at in range(0, len(vector), step):
            piece = vector[at : at + step]
            stream.update_into(memoryview(_ZEROS)[: piece.nbytes], buffer.data)
            combine(piece, buffer[: piece.nbytes].view(vector.dtype), out=piece)


def pack(vector: np.ndarray, bits: int) -> np.ndarray:
    """Residues modulo 2^bits, each in so many bits, the lowest first: uint8."""
    if bits in (32, 64) and vector.itemsize * 8 == bits:
        return vector.view(np.uint8)
    rows = _rows(vector)
    out = np.zeros((len(rows), bits), np.uint8)
    for column in range(8):
        value = rows[:, column] & np.uint64((1 << bits) - 1)
        start = column * bits
        for place in range(start // 8, (start + bits + 7) // 8):
            shift = place * 8 - start
            moved = value >> np.uint64(shift) if shift >= 0 else value << np.uint64(-shift)
            out[:, place] |= moved.astype(np.uint8)
    return out.reshape(-1)[: packed_bytes(len(vector), bits)]


def unpack(packed: np.ndarray, bits: int, count: int) -> np.ndarray:
    """The opposite of `pack`: `count` residues; ProtocolError if the bytes are not so many."""
    if len(packed) != packed_bytes(count, bits) or packed.dtype != np.uint8:
        raise ProtocolError(f"{len(packed)} bytes are no {count} residues of {bits} bits.")
    dtype = words(bits)
    if bits == dtype.itemsize * 8:
        return packed.view(dtype)
    whole = np.zeros((-(-count // 8), bits), np.uint8)
    whole.reshape(-1)[: len(packed)] = packed
    out = np.zeros((len(whole), 8), np.uint64)
    for column in range(8):
        start = column * bits
        for place in range(start // 8, (start + bits + 7) // 8):
            shift, byte = place * 8 - start, whole[:, place].astype(np.uint64)
            out[:, column] |= byte << np.uint64(shift) if shift >= 0 else byte >> np.uint64(-shift)
    out &= np.uint64((1 << bits) - 1)
    return out.reshape(-1)[:count].astype(dtype)


def packed_bytes(count: int, bits: int) -> int:
    """What `pack` gives for so many residues."""
    return -(-count * bits // 8)


def _rows(vector: np.ndarray) -> np.ndarray:
    """Eight residues a row."""
    padded = np.zeros(-(-len(vector) // 8) * 8, np.uint64)
    padded[: len(vector)] = vector
    return padded.reshape(-1, 8)
