"""Sums of ciphertexts by bin, of many columns at once, with few products.

A row's ciphertext would be multiplied into one bin of every column: rows × columns products. Rows that share their bins
in a whole group of columns are multiplied once for the group: columns are halved again and again, and before each
halving rows that cannot be told apart any more become one. Two columns of 32 bins have 1024 joint bins, so that 30,000
rows cost 31,000 products for the pair instead of 60,000; the saving grows where columns have few values or depend on
each other.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hansa.crypto.paillier import Ciphertext, PublicKey

_ZERO = 1  # an encryption of 0, which only serves where it is blinded afterwards


def bin_sums(
    key: PublicKey, ciphertexts: Sequence[Ciphertext], codes: NDArray[np.uint16], counts: Sequence[int]
) -> list[list[Ciphertext]]:
    """The product of the ciphertexts in each bin of each column.

    Args:
      key: theirs.
      ciphertexts: one for each row.
      codes: the bins, shape (rows, columns).
      counts: bins of each column.

    Returns:
      For each column as many ciphertexts as it has bins; to be blinded before they are sent.
    """
    sums: list[list[Ciphertext]] = [[_ZERO] * count for count in counts]
    few_first = sorted(range(len(counts)), key=lambda column: counts[column])
    if few_first and len(ciphertexts):
        _halve(key.square, list(ciphertexts), codes, few_first, sums)
    return sums


def _halve(
    modulus: Ciphertext, ciphertexts: list[Ciphertext], codes: NDArray[np.uint16], columns: Sequence[int],
    sums: list[list[Ciphertext]],
) -> None:  # fmt: skip
    """Merges the rows that are alike in these columns, and goes on with each half of them."""
    joint = np.zeros(len(codes), np.int64)
    for column in columns:
        joint = np.unique(joint * len(sums[column]) + codes[:, column], return_inverse=True)[1]
    kinds = int(joint.max()) + 1
    if kinds < len(codes):
        merged: list[Ciphertext] = [None] * kinds
        for value, kind in zip(ciphertexts, joint.tolist(), strict=True):
            before = merged[kind]
            merged[kind] = value if before is None else before * value % modulus
        first = np.empty(kinds, np.int64)
        first[joint] = np.arange(len(codes))
        ciphertexts, codes = merged, codes[first]
    if len(columns) == 1:
        for code, value in zip(codes[:, columns[0]].tolist(), ciphertexts, strict=True):
            sums[columns[0]][code] = value
        return
    for half in (columns[: len(columns) // 2], columns[len(columns) // 2 :]):
        _halve(modulus, ciphertexts, codes, half, sums)
