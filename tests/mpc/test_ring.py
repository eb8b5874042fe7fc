"""The ring's kernels against Python's integers and torch."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from hansa.core.errors import ConfigError, DataError
from hansa.mpc.ring import Prg, columns, conv2d, decode, encode, fold, kernels, matmul
from hansa.mpc.ring.products import _by_digits, _by_floats


def ring(seed: int, *shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(-(2**63), 2**63 - 1, shape))


def exact(a: torch.Tensor, b: torch.Tensor) -> np.ndarray:
    return (a.numpy().astype(object) @ b.numpy().astype(object)) % 2**64


@pytest.mark.parametrize("kernel", [_by_digits, _by_floats, matmul])
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 2), (17, 33, 9), (64, 10, 64)])
def test_products_are_those_of_unbounded_integers(kernel: object, shape: tuple[int, int, int]) -> None:
    m, k, n = shape
    a, b = ring(1, m, k), ring(2, k, n)
    a[0, 0], b[0, 0] = -(2**63), 2**63 - 1
    assert ((kernel(a, b).numpy().astype(object) % 2**64) == exact(a, b)).all()  # type: ignore[operator]


@pytest.mark.parametrize("kernel", [_by_digits, _by_floats])
def test_the_worst_digits_of_the_deepest_products_do_not_overflow(kernel: object) -> None:
    depth = 3 * (1 << 13) + 5
    for value in (-(2**63), 0x8080808080808080 - 2**64, 0x7F7F7F7F7F7F7F7F, -1):
        a, b = torch.full((17, depth), value), torch.full((depth, 8), value)
        assert torch.equal(kernel(a, b), torch.full((17, 8), (value * value * depth + 2**63) % 2**64 - 2**63))  # type: ignore[operator]


def test_every_kernel_that_is_offered_is_exact_on_large_products() -> None:
    a, b = ring(3, 300, 700), ring(4, 700, 260)
    assert {name for name, _, _ in kernels()} >= {"torch", "float64"}
    for _, kernel, _ in kernels():
        assert torch.equal(kernel(a, b), a @ b)
    assert torch.equal(matmul(a, b), a @ b)
    assert torch.equal(matmul(ring(5, 2, 4, 6), ring(6, 6, 3)), ring(5, 2, 4, 6) @ ring(6, 6, 3))


@given(
    st.integers(1, 3), st.integers(1, 2), st.integers(1, 3), st.integers(1, 2), st.integers(0, 2), st.integers(1, 2),
    st.integers(1, 2),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_convolutions_and_their_transposes(
    n: int, groups: int, kernel: int, stride: int, padding: int, dilation: int, seed: int
) -> None:
    x = torch.from_numpy(np.random.default_rng(seed).integers(-99, 99, (n, 2 * groups, 7, 8)))
    w = torch.from_numpy(np.random.default_rng(seed + 9).integers(-99, 99, (3 * groups, 2, kernel, kernel)))
    how = ((stride,) * 2, (padding,) * 2, (dilation,) * 2)
    wanted = torch.nn.functional.conv2d(x.double(), w.double(), None, *how, groups)
    assert torch.equal(conv2d(x, w, *how, groups), wanted.long())
    windows = columns(x, (kernel, kernel), *how)
    other = torch.from_numpy(np.random.default_rng(seed).integers(-99, 99, windows.shape))
    # ⟨columns(x), y⟩ = ⟨x, fold(y)⟩
    assert int((windows * other).sum()) == int((x * fold(other, (7, 8), *how)).sum())


def test_a_key_draws_each_word_once_and_the_same_at_both_holders() -> None:
    a, b = Prg(b"k" * 16), Prg(b"k" * 16)
    first, second = a.draw((5, 7)), a.draw((5, 7))
    assert torch.equal(first, b.draw((5, 7))) and torch.equal(second, b.draw((5, 7)))
    assert not torch.equal(first, second)
    small, words = a.draw((4000,), torch.int8), a.draw((100_000,))
    assert small.dtype == torch.int8 and len(small.unique()) == 256
    counts = torch.bincount(words.view(torch.uint8).long(), minlength=256).double()
    chi = float(((counts - counts.mean()) ** 2 / counts.mean()).sum())
    assert 150 < chi < 380  # 255 degrees of freedom: five standard deviations
    assert Prg(b"j" * 16).draw((1,)) != Prg(b"k" * 16).draw((1,)) and "k" not in repr(a)
    with pytest.raises(ConfigError, match="16"):
        Prg(b"short")


def test_fixed_point_rounds_to_half_a_unit_and_refuses_what_does_not_fit() -> None:
    x = torch.linspace(-1000, 1000, 4001, dtype=torch.float64)
    assert float((decode(encode(x), dtype=torch.float64) - x).abs().max()) <= 2**-17
    assert torch.equal(decode(encode(torch.tensor([3, -4])), dtype=torch.int64), torch.tensor([3, -4]))
    assert torch.equal(decode(encode(torch.tensor([True, False])), dtype=torch.bool), torch.tensor([True, False]))
    for bad, fault in (
        (torch.tensor([1.0, float("nan")]), "'income' holds NaN or infinity"),
        (torch.tensor([2.0**46]), r"'income' holds the magnitude 7.03687e\+13: with 16 fraction bits it must be below"),
        (torch.tensor([2**46]), "'income' holds 70368744177664: with 16 fraction bits"),
    ):
        with pytest.raises(DataError, match=fault):
            encode(bad, name="'income'")
