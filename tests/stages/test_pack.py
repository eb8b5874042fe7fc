"""Packed integers: lossless, as many bits as the grid has, and nothing from a peer but integers of the grid."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from hansa.core.errors import UpdateRejected
from hansa.stages.pack import pack, pack_bits, packed_size, unpack, unpack_bits


@settings(max_examples=100, deadline=None)
@given(levels=st.integers(1, 2**31 - 1) | st.sampled_from([1, 3, 7, 127]), data=st.data())
def test_integers_come_back(levels: int, data: st.DataObject) -> None:
    values = data.draw(st.lists(st.integers(-levels, levels), max_size=60))
    packed = pack(np.array(values, np.int32), levels)
    assert packed.dtype == np.uint8 and len(packed) == packed_size(len(values), levels)
    assert unpack(packed, len(values), levels, "w").tolist() == values


@pytest.mark.parametrize(
    ("levels", "bits"), [(1, 1.6), (3, 3), (7, 4), (127, 8), (2047, 12), ((1 << 19) - 1, 20), ((1 << 31) - 1, 32)]
)
def test_bits_on_the_wire_are_those_of_the_grid(levels: int, bits: float) -> None:
    assert 8 * packed_size(1_000_000, levels) / 1_000_000 == pytest.approx(bits, rel=1e-4)


def test_extremes_of_a_narrow_type_do_not_wrap() -> None:
    values = np.array([-127, 127, 0, -1], np.int8)
    assert unpack(pack(values, 127), 4, 127, "w").tolist() == values.tolist()


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 8), st.lists(st.integers(0, 255), max_size=40))
def test_planes_of_bits_come_back(bits: int, values: list[int]) -> None:
    numbers = np.array(values, np.uint8) & ((1 << bits) - 1)
    assert unpack_bits(pack_bits(numbers, bits), len(numbers), bits).tolist() == numbers.tolist()


@pytest.mark.parametrize(
    ("packed", "levels", "said"),
    [
        ([243], 1, "above 242"),
        ([0, 0], 1, "has 2 bytes, not 1"),
        ([0b1000_0000] * 3, 3, "the integer 4 on a grid of 3 levels"),
        ([0, 0], 3, "has 2 bytes, not 3"),
    ],
)
def test_bytes_that_are_no_integers_of_the_grid_are_rejected(packed: list[int], levels: int, said: str) -> None:
    with pytest.raises(UpdateRejected, match=said):
        unpack(np.array(packed, np.uint8), 5, levels, "value/w")
