"""An oblivious key-value store: values that are found by their keys, in a table that looks random to all others.

    value(key) = D[p₁] ⊕ D[p₂] ⊕ D[p₃] ⊕ dense(key)          p: a place in each third of D;  dense: 64 further entries

Keys are peeled: one that alone uses some place is set last, and taken away; what cannot be peeled, a handful at most,
is solved over the dense entries. Places that nobody sets stay random. Rounds go over all keys that can be peeled.

Source: Garimella, Pinkas, Rosulek, Trieu and Yanai 2021, Oblivious Key-Value Stores and Amplification for Private Set
Intersection, https://eprint.iacr.org/2021/883
"""

import math

import numpy as np
from numpy.typing import NDArray

from hansa.core.errors import DataError, ProtocolError
from hansa.vertical.psi.cuckoo import encrypted
from hansa.vertical.psi.terms import Entropy

Words = NDArray[np.uint64]
"""Values of 16 bytes: shape (n, 2)."""

_DENSE = 64
_CORE = 24  # keys over the dense entries: 40 fewer than there are, so that 2⁻⁴⁰ bounds a failure


def table_size(keys: int) -> int:
    """Entries of a store for so many keys: 1.3 of each and a few hundred."""
    return 3 * math.ceil((1.3 * keys + 300) / 3) + _DENSE


def encode(keys: NDArray[np.uint8], values: Words, seed: bytes, entropy: Entropy) -> Words:
    """A store: shape (table_size, 2).

    Args:
      keys: of shape (n, 16), no two alike.
      values: of shape (n, 2), random to whoever does not know their keys.
      seed: 16 bytes that both sides share, chosen after the keys.
      entropy: gives secret random bytes.

    Raises:
      DataError: it fails, which chance does not explain.
    """
    size = table_size(len(keys))
    table = np.frombuffer(entropy(16 * size), np.uint64).reshape(size, 2).copy()
    places, dense = _places(keys, size, seed)
    layers, core = _peeled(places, size - _DENSE)
    if len(core) > _CORE:
        raise DataError(f"{len(core)} of {len(keys)} keys could not be stored: start again.")
    wanted = values[core] ^ np.bitwise_xor.reduce(table[places[core]], axis=1)
    _solve(table[-_DENSE:], dense[core], wanted)
    target = values ^ _of_dense(dense, table[-_DENSE:])
    for chosen, at in reversed(layers):
        table[at] = 0
        table[at] = target[chosen] ^ np.bitwise_xor.reduce(table[places[chosen]], axis=1)
    return table


def decode(keys: NDArray[np.uint8], table: Words, stored: int, seed: bytes) -> Words:
    """The values of keys: what was stored, or something random: shape (n, 2).

    Raises:
      ProtocolError: the table is not one of `stored` keys.
    """
    if table.shape != (table_size(stored), 2):
        raise ProtocolError(f"a store of shape {table.shape} is none of {stored} keys: its sender is broken.")
    places, dense = _places(keys, len(table), seed)
    found: Words = np.bitwise_xor.reduce(table[places], axis=1)
    found ^= _of_dense(dense, table[-_DENSE:])
    return found


def _places(keys: NDArray[np.uint8], size: int, seed: bytes) -> tuple[NDArray[np.int64], Words]:
    """Three places of each key, and 64 bits that choose among the dense entries."""
    third = np.uint64((size - _DENSE) // 3)
    first, second = encrypted(seed, keys), encrypted(bytes([seed[0] ^ 1]) + seed[1:], keys)
    places = np.stack([first[:, 0] % third, first[:, 1] % third + third, second[:, 0] % third + third + third], axis=1)
    return places.astype(np.int64), second[:, 1]


def _peeled(
    places: NDArray[np.int64], size: int
) -> tuple[list[tuple[NDArray[np.int64], NDArray[np.int64]]], NDArray[np.int64]]:
    """Rounds of (keys, the place that each sets), and the keys that are left."""
    flat = places.reshape(-1)
    degree = np.bincount(flat, minlength=size)
    total = np.zeros(size, np.int64)  # of the numbers of the keys at a place: if there is one, it is that one
    np.add.at(total, flat, np.repeat(np.arange(len(places)), 3))
    layers, left, look = [], np.ones(len(places), bool), np.flatnonzero(degree == 1)
    while len(look):
        keys, first = np.unique(total[look], return_index=True)
        layers.append((keys, look[first]))
        left[keys] = False
        touched = places[keys].reshape(-1)
        np.subtract.at(degree, touched, 1)
        np.subtract.at(total, touched, np.repeat(keys, 3))
        look = np.unique(touched)
        look = look[degree[look] == 1]
    return layers, np.flatnonzero(left)


def _of_dense(bits: Words, entries: Words) -> Words:
    """The sum of the dense entries that each key's bits choose, eight at a time from tables of all sums."""
    made = np.zeros((len(bits), 2), np.uint64)
    for at in range(0, _DENSE, 8):
        sums = np.zeros((1, 2), np.uint64)
        for entry in entries[at : at + 8]:
            sums = np.concatenate([sums, sums ^ entry])
        made ^= sums[(bits >> np.uint64(at)).astype(np.uint8)]
    return made


def _solve(entries: Words, bits: Words, wanted: Words) -> None:
    """Sets dense entries, in place, so that the bits' sums are the wanted values: Gauss over two elements."""
    rows = [(int(mask), value.copy()) for mask, value in zip(bits, wanted, strict=True)]
    solved: list[tuple[int, int, Words]] = []
    for mask, value in rows:
        for pivot, other, known in solved:
            if mask >> pivot & 1:
                mask, value = mask ^ other, value ^ known
        if not mask:
            raise DataError("keys could not be stored: start again.")
        solved.append((mask.bit_length() - 1, mask, value))
    for pivot, mask, value in reversed(solved):
        for at in range(_DENSE):
            if at != pivot and mask >> at & 1:
                value = value ^ entries[at]
        entries[pivot] = value
