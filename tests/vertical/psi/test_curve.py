"""The group behind private set intersection: commuting powers, points that look random, and what is refused."""

import os

import numpy as np
import pytest

from hansa.core.errors import ProtocolError

pytest.importorskip("coincurve")

from hansa.crypto import curve

P = 2**256 - 2**32 - 977


def points(raw: bytes) -> list[tuple[int, int]]:
    return [
        (int.from_bytes(raw[at : at + 32], "big"), int.from_bytes(raw[at + 32 : at + 64], "big"))
        for at in range(0, len(raw), 64)
    ]


def test_powers_commute_and_an_inverse_undoes_one() -> None:
    a, b = curve.scalar(os.urandom(32)), curve.scalar(os.urandom(32))
    values = os.urandom(16 * 20)
    once = curve.hash_and_multiply(values, 16, b"s", a)
    assert curve.multiply(once, b) == curve.multiply(curve.hash_and_multiply(values, 16, b"s", b), a)
    assert curve.multiply(curve.multiply(once, b), curve.inverse(b)) == once
    assert once != curve.hash_and_multiply(values, 16, b"t", a)


def test_hashing_reaches_the_whole_curve_and_leaves_no_bit_behind() -> None:
    one = (1).to_bytes(32, "big")
    made = points(curve.hash_and_multiply(os.urandom(16 * 4000), 16, b"s", one))
    assert all((y * y - x**3 - 7) % P == 0 for x, y in made[:50])
    assert len(set(made)) == 4000
    # Had the map missed a part of the curve, as hashing to one of a point and its twist does, a bit would be skewed.
    bits = np.unpackbits(
        np.array([list(x.to_bytes(32, "big") + y.to_bytes(32, "big")) for x, y in made], np.uint8), axis=1
    )
    assert abs(bits.mean(axis=0) - 0.5).max() < 6 * 0.5 / 4000**0.5


def test_what_is_no_point_is_refused() -> None:
    good = curve.hash_and_multiply(os.urandom(16), 16, b"s", (1).to_bytes(32, "big"))
    for bad in (bytes(64), b"\xff" * 64, good[:63] + bytes([good[63] ^ 1])):
        with pytest.raises(ProtocolError, match="not on the curve"):
            curve.multiply(good + bad, (2).to_bytes(32, "big"))
    with pytest.raises(ProtocolError, match="63 bytes are no points"):
        curve.multiply(good[:63], (2).to_bytes(32, "big"))


def test_scalars_beyond_the_order_are_refused() -> None:
    for bad in (bytes(32), b"\xff" * 32):
        with pytest.raises(ValueError, match="no scalar"):
            curve.scalar(bad)
