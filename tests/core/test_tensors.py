"""Named arrays: order, parts, arithmetic, and what is refused."""

import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra import numpy as hnp

from hansa.core.errors import TensorMismatch
from hansa.core.tensors import BLOCK, EMPTY, Tensors, mismatch, squares, stack


def test_names_are_always_in_sorted_order() -> None:
    assert list(Tensors({"b": [1.0], "a": [2.0], "a/c": [3.0]})) == ["a", "a/c", "b"]


def test_arrays_are_kept_and_lists_are_read() -> None:
    given = np.ones(3, "float32")
    tensors = Tensors({"w": given, "b": [0, 1]})
    assert tensors["w"] is given
    assert tensors.shapes == {"b": ((2,), "int64"), "w": ((3,), "float32")}
    assert (tensors.count, tensors.size_bytes) == (5, 28)


@pytest.mark.parametrize(
    "array", ["text", np.array([object()]), np.ones(2, ">f4"), np.ones(2, complex), np.ones(2, np.longdouble)]
)
def test_what_is_no_native_number_is_refused_by_name(array: object) -> None:
    with pytest.raises(TensorMismatch, match=r"'w' is of type .*: tensors are native floats, integers or booleans"):
        Tensors({"w": array})


def test_trees_meet_only_with_equal_names_and_shapes() -> None:
    with pytest.raises(TensorMismatch, match=r"the other lacks \['b'\] and has the unknown \['c'\]"):
        Tensors({"a": [1.0], "b": [1.0]}) + Tensors({"a": [1.0], "c": [1.0]})
    with pytest.raises(TensorMismatch, match=r"'a' has shape \(2,\) in the other, not \(1,\)"):
        Tensors({"a": [1.0]}) - Tensors({"a": [1.0, 2.0]})
    with pytest.raises(TensorMismatch, match=r"'a' is int64 in it, not float64"):
        mismatch(Tensors({"a": [1.0]}).shapes, Tensors({"a": [1]}).shapes, "it", dtypes=True)


def test_arithmetic_changes_neither_side() -> None:
    a, b = Tensors({"w": [1.0, 2.0]}), Tensors({"w": [3.0, 5.0]})
    found = [(a + b)["w"], (b - a)["w"], (a * 2.0)["w"], (2.0 * a)["w"], (b / 2.0)["w"], a.zeros()["w"]]
    assert [array.tolist() for array in found] == [[4, 7], [2, 3], [2, 4], [2, 4], [1.5, 2.5], [0, 0]]
    assert (a["w"].tolist(), b["w"].tolist()) == ([1, 2], [3, 5])


def test_parts_join_and_come_apart() -> None:
    whole = Tensors.join(model=Tensors({"a/w": [1.0]}), control=Tensors({"w": [2.0]}), nothing=EMPTY)
    assert list(whole) == ["control/w", "model/a/w"]
    assert whole.parts == ("control", "model")
    assert whole.part("model") == Tensors({"a/w": [1.0]})
    assert whole.without("model") == Tensors({"control/w": [2.0]})
    assert whole.only(["control/w", "elsewhere"]) == whole.without("model")
    assert whole.part("mod") == EMPTY


def test_equality_is_of_bits_so_nan_equals_nan_and_zeros_differ_by_sign() -> None:
    assert Tensors({"w": [np.nan]}) == Tensors({"w": [np.nan]})
    assert Tensors({"w": [0.0]}) != Tensors({"w": [-0.0]})
    assert Tensors({"w": np.zeros(1, "float32")}) != Tensors({"w": np.zeros(1, "int32")})


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_the_first_tensor_that_is_not_finite_is_named(bad: float, dtype: str) -> None:
    tensors = Tensors({"a": np.ones(3, dtype), "b": np.array([1, bad], dtype), "c": np.array([bad], dtype), "n": [1]})
    assert tensors.first_not_finite() == "b"
    assert tensors.only("an").first_not_finite() is None


def test_large_finite_numbers_are_finite() -> None:
    assert Tensors({"w": np.full(9, np.finfo("float32").max, "float32")}).first_not_finite() is None


def test_blocks_cover_an_array_once_and_in_order() -> None:
    array = np.arange(2 * BLOCK + 3, dtype="float32").reshape(1, -1)
    pieces = list(Tensors({"w": array}).blocks("w"))
    assert [len(piece) for _, piece in pieces] == [BLOCK, BLOCK, 3]
    assert np.array_equal(np.concatenate([piece for _, piece in pieces]), array.reshape(-1))


@given(hnp.arrays("float32", st.integers(0, 50), elements=st.floats(-1e3, 1e3, width=32)))
def test_the_norm_is_that_of_float64(array: np.ndarray) -> None:
    assert Tensors({"w": array}).norm() == pytest.approx(float(np.linalg.norm(array.astype(float))), rel=1e-12)
    assert float(squares(array)) >= 0


def test_stacking_one_tree_is_a_view_and_several_get_a_leading_axis() -> None:
    one = Tensors({"w": np.ones((2, 3))})
    assert np.shares_memory(stack([one])["w"], one["w"])
    assert stack([one, one * 2.0])["w"].shape == (2, 2, 3)
