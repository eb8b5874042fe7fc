"""Vectors of integers modulo 2ᵐ: masks from keys, added in place, and packed to m bits on the wire.

A mask is AES-128 in counter mode under a key that serves once. Whatever is done to a vector is done to one piece after
another, so that nothing leaves the cache: many masks to one piece, rather than one mask to many pieces.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from hansa.core.errors import ConfigError, ProtocolError

KEY_BYTES = 16
_PIECE = 1 << 17  # bytes of a vector; as many zeros, and as many of a mask, lie beside them
_ZEROS = bytes(_PIECE)
_STREAMS = 128  # masks that are added to a piece while it is there
_ROWS = 1 << 12  # of eight residues each, packed at once


def words(bits: int) -> np.dtype:
    """The unsigned integers that hold residues modulo 2^bits."""
    if not 1 <= bits <= 64:
        raise ConfigError(f"a modulus of {bits} bits: 1 to 64 are possible.")
    return np.dtype(np.uint32 if bits <= 32 else np.uint64)


def add_mask(vectors: list[np.ndarray], key: bytes, sign: int = 1) -> None:
    """Adds, or subtracts, one key's mask: see `add_masks`."""
    add_masks(vectors, [(key, sign)])


def add_masks(vectors: Sequence[np.ndarray], masks: Sequence[tuple[bytes, int]]) -> None:
    """Adds the masks of keys with sign 1, and subtracts those with sign −1, to vectors of uint32 or uint64, in place.

    They wrap at their own width, of which every smaller power of two divides: reduce when all is added.
    """
    buffer = np.empty(_PIECE + 15, np.uint8)
    for first in range(0, len(masks), _STREAMS):
        streams = [
            (Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor(), np.add if sign > 0 else np.subtract)
            for key, sign in masks[first : first + _STREAMS]
        ]
        for vector in vectors:
            step = _PIECE // vector.itemsize
            for at in range(0, len(vector), step):
                piece = vector[at : at + step]
                zeros, mask = memoryview(_ZEROS)[: piece.nbytes], buffer[: piece.nbytes].view(vector.dtype)
                for stream, combine in streams:
                    stream.update_into(zeros, buffer.data)
                    combine(piece, mask, out=piece)


def pack(vector: np.ndarray, bits: int) -> np.ndarray:
    """Residues modulo 2^bits, each in so many bits, the lowest first: uint8."""
    if bits in (32, 64) and vector.itemsize * 8 == bits:
        return vector.view(np.uint8)
    out = np.empty(-(-len(vector) // 8) * bits, np.uint8)
    for start in range(0, len(vector), 8 * _ROWS):
        piece = vector[start : start + 8 * _ROWS]
        rows = -(-len(piece) // 8)
        padded = np.zeros(8 * rows, words(bits))
        padded[: len(piece)] = piece
        at = start // 8 * bits
        out[at : at + rows * bits] = _joined(_paired(padded, bits), rows, bits)
    return out[: packed_bytes(len(vector), bits)]


def unpack(packed: np.ndarray, bits: int, count: int) -> np.ndarray:
    """The opposite of `pack`: `count` residues; ProtocolError if the bytes are not so many."""
    if len(packed) != packed_bytes(count, bits) or packed.dtype != np.uint8:
        raise ProtocolError(f"{len(packed)} bytes are no {count} residues of {bits} bits.")
    dtype = words(bits)
    if bits == dtype.itemsize * 8:
        return packed.view(dtype)
    out = np.empty(-(-count // 8) * 8, dtype)
    for start in range(0, count, 8 * _ROWS):
        piece = packed[start // 8 * bits : (start // 8 + _ROWS) * bits]
        rows = min(_ROWS, -(-(count - start) // 8))
        out[start : start + 8 * rows] = _unpaired(_cut(piece, rows, bits), bits)
    return out[:count]


def add_packed(total: np.ndarray, packed: np.ndarray, bits: int) -> None:
    """Adds packed residues to `total`, in place and modulo 2^bits alone: what is above `bits` in it means nothing.

    Raises:
      ProtocolError: the bytes are not as many residues as `total` has.
    """
    count, dtype = len(total), words(bits)
    if len(packed) != packed_bytes(count, bits) or packed.dtype != np.uint8:
        raise ProtocolError(f"{len(packed)} bytes are no {count} residues of {bits} bits.")
    rows = 0
    if bits + 7 <= 8 * dtype.itemsize:
        # Each residue lies in one unaligned word: shifted, its lowest bits are right, and no carry goes downwards.
        last = 7 * bits // 8 + dtype.itemsize
        rows = min(count // 8, max(0, (len(packed) - last) // bits + 1))
    for first in range(0, rows, _ROWS * 4):
        some = min(_ROWS * 4, rows - first)
        table, shifted = total[8 * first : 8 * (first + some)].reshape(some, 8), np.empty(some, dtype)
        for at in range(8):
            byte, shift = divmod(at * bits, 8)
            word = np.ndarray((some,), dtype.newbyteorder("<"), packed.data, first * bits + byte, (bits,))
            np.right_shift(word, dtype.type(shift), out=shifted)
            table[:, at] += shifted
    total[8 * rows :] += unpack(packed[rows * bits :], bits, count - 8 * rows)


def packed_bytes(count: int, bits: int) -> int:
    """What `pack` gives for so many residues."""
    return -(-count * bits // 8)


# Eight residues fill `bits` bytes. Two of at most 32 bits make one item of 64, so that half as many are shifted.


def _paired(residues: np.ndarray, bits: int) -> np.ndarray:
    """Whole rows of residues as items of at most 64 bits, the lowest first."""
    if bits > 32:
        return residues & np.uint64((1 << bits) - 1)
    both = residues.astype("<u4", copy=False).view("<u8")
    low = np.uint64((1 << bits) - 1)
    high = both >> np.uint64(32 - bits)
    high &= low << np.uint64(bits)
    high |= both & low
    return high


def _unpaired(items: np.ndarray, bits: int) -> np.ndarray:
    """The opposite of `_paired`."""
    if bits > 32:
        return items
    low = np.uint64((1 << bits) - 1)
    both = items << np.uint64(32 - bits)
    both &= low << np.uint64(32)
    both |= items & low
    return both.view("<u4")


def _overlaps(bits: int) -> Iterator[tuple[int, int, int]]:
    """Which item lies in which word of 64 bits of a row, and by how much to the left."""
    width = 2 * bits if bits <= 32 else bits
    for item in range(8 * bits // width):
        start = item * width
        for word in range(start // 64, -(-(start + width) // 64)):
            yield item, word, start - 64 * word


def _joined(items: np.ndarray, rows: int, bits: int) -> np.ndarray:
    """Items as bytes: shape (rows·bits,)."""
    table = items.reshape(rows, -1)
    words_of_row = [np.zeros(rows, "<u8") for _ in range(-(-bits // 8))]
    for item, word, shift in _overlaps(bits):
        words_of_row[word] |= _shifted(table[:, item], shift)
    if bits < 8:
        return words_of_row[0].view(np.uint8).reshape(rows, 8)[:, :bits].reshape(-1)
    out = np.empty(rows * bits + 8, np.uint8)
    for word in reversed(range(len(words_of_row))):  # the last one runs into the next row, whose first is written later
        np.ndarray((rows,), "<u8", out.data, 8 * word, (bits,))[:] = words_of_row[word]
    return out[: rows * bits]


def _cut(packed: np.ndarray, rows: int, bits: int) -> np.ndarray:
    """The opposite of `_joined`."""
    padded = np.zeros(rows * bits + 8, np.uint8)
    padded[: len(packed)] = packed
    words_of_row = [np.ndarray((rows,), "<u8", padded.data, 8 * word, (bits,)).copy() for word in range(-(-bits // 8))]
    width = 2 * bits if bits <= 32 else bits
    table = np.zeros((rows, 8 * bits // width), np.uint64)
    for item, word, shift in _overlaps(bits):
        table[:, item] |= _shifted(words_of_row[word], -shift)
    table &= np.uint64((1 << width) - 1)
    return table.reshape(-1)


def _shifted(numbers: np.ndarray, left: int) -> np.ndarray:
    moved: np.ndarray = numbers << np.uint64(left) if left >= 0 else numbers >> np.uint64(-left)
    return moved
