"""Exact matrix products modulo 2⁶⁴, on whatever unit of this machine is fast.

    numpy     one long row or column, and tiny products
    torch     its own int64 product: vectorised where the processor has 64-bit multiplies (AVX-512)
    float64   x = x₀ + 2²²·x₁ + 2⁴³·x₂ in signed digits of 22, 21 and 21 bits: six products of floats, exact below 2⁵³
    int8      x = Σ 256ⁱ·dᵢ in signed digits: eight products of bytes with 32-bit sums, on AMX, VNNI or tensor cores

Large products go to the fastest of the last three, which are timed once in a process, and trusted only if they give
torch's bits on random values of all sizes: `_int_mm` has overflowed silently on processors without VNNI.
"""

import functools
import time
from collections.abc import Callable

import numpy as np
import torch
from torch.overrides import handle_torch_function, has_torch_function

from hansa.core.errors import ConfigError
from hansa.mpc.protocol import Ring

_LARGE = 1 << 24  # multiplications from which splitting into digits may pay
_INT8_DEPTH = 1 << 13  # 8·K·2¹⁴ < 2³¹: half of what int32 sums hold exactly
_FLOAT_DEPTH = 1 << 9  # 3·K·2⁴³ < 2⁵³ with digits of 22 bits
_OFFSET = 0x8080808080808080 - (1 << 64)


def matmul(a: Ring, b: Ring) -> Ring:
    """The product of two matrices, or of stacks of them, modulo 2⁶⁴.

    Args:
      a: shape (..., m, k), int64.
      b: shape (..., k, n), int64, on the same device.

    Returns:
      Shape (..., m, n).
    """
    if has_torch_function((a, b)):  # a protocol that wants to see the product
        product: Ring = handle_torch_function(matmul, (a, b), a, b)
        return product
    if a.dim() > 2 or b.dim() > 2:
        return torch.matmul(a, b) if a.device.type == "cpu" else _stacked(a, b)
    m, k = a.shape
    n = b.shape[1]
    if a.device.type != "cpu":
        return kernel_on(a.device)(a, b) if min(m, k, n) >= 32 else _by_floats(a, b)
    if m * k * n < _LARGE or min(m, n) < 64:
        # torch's product of a matrix and few columns is ten times as slow as NumPy's.
        return torch.from_numpy(a.numpy() @ b.numpy()) if min(m, n) <= 8 else torch.matmul(a, b)
    return kernels()[0][1](a, b)


@functools.cache
def kernels() -> list[tuple[str, Callable[[Ring, Ring], Ring], float]]:
    """The kernels that are exact here, fastest first: (name, function, seconds for one product of 256 × 512 × 256)."""
    a, b, right = _known()
    found = []
    for name, kernel in (("torch", torch.matmul), ("int8", _by_digits), ("float64", _by_floats)):
        if _gives(kernel, a, b, right):
            found.append((name, kernel, min(_timed(kernel, a, b) for _ in range(3))))
    return sorted(found, key=lambda each: each[2])


@functools.cache
def kernel_on(device: torch.device) -> Callable[[Ring, Ring], Ring]:
    """The kernel for large products on a GPU, which has none of int64: by bytes, if they are exact there, else floats.

    Raises:
      ConfigError: neither gives the bits that the processor gives.
    """
    a, b, right = _known()
    # Floats serve small products beside the bytes, so that they have to be exact in any case.
    exact = [kernel for kernel in (_by_digits, _by_floats) if _gives(kernel, a.to(device), b.to(device), right)]
    if _by_floats not in exact:
        raise ConfigError(f"device='{device}': its float64 products are not exact; choose device='cpu'.")
    return exact[0]


def _gives(kernel: Callable[[Ring, Ring], Ring], a: Ring, b: Ring, right: Ring) -> bool:
    try:
        return bool(torch.equal(kernel(a, b).cpu(), right))
    except RuntimeError:  # this build of torch has no product of bytes
        return False


def _known() -> tuple[Ring, Ring, Ring]:
    """Two matrices of numbers of all sizes, and their product by torch on the processor."""
    random = np.random.default_rng(1)
    a, b = (torch.from_numpy(random.integers(-(2**63), 2**63 - 1, shape)) for shape in ((256, 512), (512, 256)))
    edge = torch.tensor([-(2**63), 2**63 - 1, -1, 0, 1, 2**31, -(2**43), 127 << 56])
    a[:8, :8], b[:8, :8] = edge, edge[:, None]
    return a, b, torch.matmul(a, b)


def _timed(kernel: Callable[[Ring, Ring], Ring], a: Ring, b: Ring) -> float:
    began = time.perf_counter()
    kernel(a, b)
    return time.perf_counter() - began


def _by_digits(a: Ring, b: Ring) -> Ring:
    """Laid out as [A0|…|A7] and [B7;…;B0], all pairs of digits of one weight are a single product of views."""
    if a.shape[1] > _INT8_DEPTH:
        return _split(_by_digits, a, b, _INT8_DEPTH)
    m, k = a.shape
    n = b.shape[1]
    # CUDA's product wants more than 16 rows, and multiples of 8 in the other dimensions.
    a, b = _padded(a, max(0, 17 - m), -k % 8), _padded(b, -k % 8, -n % 8)
    rows, depth, columns = a.shape[0], a.shape[1], b.shape[1]
    left = _digits(a).permute(0, 2, 1).reshape(rows, 8 * depth)
    right = torch.flip(_digits(b).permute(2, 0, 1), (0,)).reshape(8 * depth, columns)

    def weight(s: int) -> torch.Tensor:
        return torch._int_mm(left[:, : (s + 1) * depth], right[(7 - s) * depth :])

    high = weight(7)  # of weights 4 and more only 32 bits matter
    for s in (6, 5, 4):
        high.bitwise_left_shift_(8).add_(weight(s))
    out = high.to(torch.int64)
    for s in (3, 2, 1, 0):
        out.bitwise_left_shift_(8).add_(weight(s))
    return out[:m, :n]


def _by_floats(a: Ring, b: Ring) -> Ring:
    if a.shape[1] > _FLOAT_DEPTH:
        return _split(_by_floats, a, b, _FLOAT_DEPTH)
    left, right = _limbs(a), _limbs(b)
    out = (left[0] @ right[0]).to(torch.int64)
    out += ((left[0] @ right[1]) + (left[1] @ right[0])).to(torch.int64) << 22
    out += (left[1] @ right[1]).to(torch.int64) << 44
    out += ((left[0] @ right[2]) + (left[2] @ right[0])).to(torch.int64) << 43
    return out


def _split(kernel: Callable[[Ring, Ring], Ring], a: Ring, b: Ring, depth: int) -> Ring:
    pieces = range(0, a.shape[1], depth)
    return functools.reduce(torch.Tensor.add_, (kernel(a[:, at : at + depth], b[at : at + depth]) for at in pieces))


def _stacked(a: Ring, b: Ring) -> Ring:
    shape = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    pairs = zip(
        a.expand(*shape, *a.shape[-2:]).reshape(-1, *a.shape[-2:]),
        b.expand(*shape, *b.shape[-2:]).reshape(-1, *b.shape[-2:]),
        strict=True,
    )
    return torch.stack([matmul(x, y) for x, y in pairs]).reshape(*shape, a.shape[-2], b.shape[-1])


def _digits(x: Ring) -> torch.Tensor:
    """Signed digits of base 256, the lowest first: Σ dᵢ·256ⁱ = x. Shape (..., 8), int8."""
    return ((x + _OFFSET) ^ _OFFSET).contiguous().unsqueeze(-1).view(torch.int8)


def _limbs(x: Ring) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    low = ((x + (1 << 21)) & ((1 << 22) - 1)) - (1 << 21)
    rest = (x - low) >> 22
    middle = ((rest + (1 << 20)) & ((1 << 21) - 1)) - (1 << 20)
    return low.double(), middle.double(), ((rest - middle) >> 21).double()


def _padded(x: Ring, rows: int, columns: int) -> Ring:
    return torch.nn.functional.pad(x, (0, columns, 0, rows)) if rows or columns else x
