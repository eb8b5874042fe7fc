"""Sums, products and quotients."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from hansa.core.errors import SecretError
from hansa.mpc import functions
from hansa.mpc.fixed import MOST_BITS, Fixed
from hansa.mpc.operations.wrap import bounded, engine_of, floating, number, secret, summed_dtype
from hansa.mpc.ring import matmul
from hansa.mpc.secret import SecretTensor, handles, program_line

aten = torch.ops.aten


@handles(aten.add.Tensor, aten.add.Scalar)
def add(x: Any, y: Any, *, alpha: float = 1) -> SecretTensor:
    """The sum x + alpha·y."""
    return secret(_sum(x, y, alpha), floating(x, y))


@handles(aten.sub.Tensor, aten.sub.Scalar)
def sub(x: Any, y: Any, *, alpha: float = 1) -> SecretTensor:
    """The difference x − alpha·y."""
    return secret(_sum(x, y, -alpha), floating(x, y))


def _sum(x: Any, y: Any, alpha: float) -> Fixed:
    engine = engine_of(x, y)
    left, right, size = number(bounded(x), engine), number(bounded(y), engine), abs(alpha)
    if size != 1:
        right = right * size
    return left + right if alpha > 0 else left - right


@handles(aten.rsub.Scalar, aten.rsub.Tensor)
def rsub(x: Any, y: Any, *, alpha: float = 1) -> SecretTensor:
    """The difference y − alpha·x."""
    return sub(y, x, alpha=alpha)


@handles(aten.neg.default)
def neg(x: SecretTensor) -> SecretTensor:
    """The number −x."""
    return secret(-x.value, x.dtype)


@handles(aten.mul.Tensor, aten.mul.Scalar)
def mul(x: Any, y: Any) -> SecretTensor:
    """The product, element by element."""
    engine = engine_of(x, y)
    a, b = number(x, engine), number(y, engine)
    if a.home > engine.bits and a.public is None and b.public is not None and b.public.numel() == 1:
        return secret(_finely(a, float(b.public)), floating(x, y))
    return secret(a * b, floating(x, y))


def _finely(x: Fixed, factor: float) -> Fixed:
    """A moment's product with a number such as 0.999, of which 16 bits would be wrong by a hundredth of what is left.

    The factor is split in two, and the lower one multiplies the upper bits of the moment.
    """
    x.share()
    room = MOST_BITS - x.home
    coarse = math.floor(factor * 2.0**room) / 2.0**room
    if coarse == factor:
        return x * factor
    upper = x.rehomed(x.home - room)
    upper.share()
    return (x * coarse + upper * (factor - coarse)).rehomed(x.home)


@handles(aten.square.default)
def square(x: SecretTensor) -> SecretTensor:
    """The product with itself."""
    return mul(x, x)


@handles(aten.div.Tensor, aten.div.Scalar)
def div(x: Any, y: Any) -> SecretTensor:
    """The quotient: a public divisor's is a product, a secret one's an approximation."""
    engine = engine_of(x, y)
    divisor, dividend = number(y, engine), number(x, engine)
    if divisor.public is None and divisor.home == engine.bits and dividend.home <= engine.bits and not _unit(dividend):
        return secret(functions.signed_quotient(dividend, divisor))
    return _by_reciprocal(x, y)


def _unit(x: Fixed) -> bool:
    """Whether it is public, and multiplies the error of a reciprocal by 1 at most."""
    return x.public is not None and bool((x.public.abs() <= 1).all())


def _by_reciprocal(x: Any, y: Any) -> SecretTensor:
    """As `div`, with the error of 1/y times x: for small divisors and a longer fraction."""
    engine = engine_of(x, y)
    divisor = number(y, engine)
    inverse = (
        Fixed.constant(engine, 1.0 / divisor.public.double()) if divisor.public is not None
        else functions.reciprocal(divisor)
    )  # fmt: skip
    return secret(number(x, engine) * inverse, torch.float32)


@handles(aten.reciprocal.default)
def reciprocal(x: SecretTensor) -> SecretTensor:
    """The number 1/x."""
    return secret(functions.reciprocal(x.value))


@handles(aten.pow.Tensor_Scalar)
def power(x: SecretTensor, exponent: float) -> SecretTensor:
    """Whole powers by products; negative and half ones of the reciprocal and the root."""
    if not float(exponent * 2).is_integer():
        raise SecretError(
            f"pow(x, {exponent:g}) has no protocol{program_line()}: whole and half powers have; of others write "
            f"torch.exp({exponent:g} * torch.log(x)), for x > 0 and results from e^−16 to e^10."
        )
    base, left = x.value, int(abs(exponent))
    result = Fixed.constant(x.value.engine, torch.ones(()))
    if exponent < 0 and left:
        base = functions.reciprocal(base)
    if left != abs(exponent):
        result = functions.sqrt(x.value) if exponent > 0 else functions.rsqrt(x.value)
    while left:
        if left & 1:
            result = base if result.public is not None else result * base
        left >>= 1
        if left:
            base = base * base
    whole = exponent >= 0 and float(exponent).is_integer()
    return secret(result.map(lambda part: part.expand(x.shape)), x.dtype if whole else floating(x, exponent))


@handles(aten.pow.Scalar)
def power_of(base: float, x: SecretTensor) -> SecretTensor:
    """A public number, above 0, to a secret power, as `functions.exp`."""
    if base <= 0:
        raise SecretError(f"pow({base:g}, x) of a secret x has no protocol{program_line()}: numbers above 0 have.")
    return secret(functions.exp(x.value * math.log(base)))


@handles(aten.exp2.default)
def exp2(x: SecretTensor) -> SecretTensor:
    """Two to the power of x."""
    return power_of(2, x)


@handles(aten.prod.default)
def product(x: SecretTensor, *, dtype: torch.dtype | None = None) -> SecretTensor:
    """Of all, by halves."""
    return product_dim(x.reshape(-1), 0, dtype=dtype)


@handles(aten.prod.dim_int)
def product_dim(x: SecretTensor, dim: int, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> SecretTensor:
    """Along a dimension, by halves."""
    value = x.value.map(lambda part: part.movedim(dim, -1))
    if not x.shape[dim]:
        value = Fixed.constant(value.engine, torch.ones(*value.shape[:-1], 1))
    while (size := value.shape[-1]) > 1:
        half = size // 2
        a, b, rest = (
            value.map(lambda part, at=at: part[..., at])  # type: ignore[misc]
            for at in (slice(0, half), slice(half, 2 * half), slice(2 * half, None))
        )
        value = (a * b).join([rest], lambda parts: torch.cat(parts, -1)) if size % 2 else a * b
    return secret(value.map(lambda part: part.movedim(-1, dim) if keepdim else part[..., 0]), dtype or summed_dtype(x))


@handles(aten.cumprod.default)
def cumprod(x: SecretTensor, dim: int, *, dtype: torch.dtype | None = None) -> SecretTensor:
    """The products of the first, the first two, …: in as many steps as the length has bits."""
    value = x.value.map(lambda part: part.movedim(dim, -1))
    distance = 1
    while distance < value.shape[-1]:
        kept, low, high = (
            value.map(lambda part, at=at: part[..., at])  # type: ignore[misc]
            for at in (slice(0, distance), slice(0, -distance), slice(distance, None))
        )
        value = kept.join([low * high], lambda parts: torch.cat(parts, -1))
        distance *= 2
    return secret(value.map(lambda part: part.movedim(-1, dim)), dtype or summed_dtype(x))


@handles(aten.mm.default, aten.bmm.default, aten.mv.default, aten.dot.default, aten.matmul.default)
def mm(x: Any, y: Any) -> SecretTensor:
    """The product of matrices."""
    engine = engine_of(x, y)
    a, b = number(x, engine), number(y, engine)
    left, right = a.shape, b.shape
    a = a.map(lambda part: part[None]) if len(left) == 1 else a
    b = b.map(lambda part: part[:, None]) if len(right) == 1 else b
    product = a.bilinear(b, product_of_matrices)
    if len(left) == 1:
        product = product.map(lambda part: part[..., 0, :])
    if len(right) == 1:
        product = product.map(lambda part: part[..., 0])
    return secret(product)


@handles(aten.addmm.default, aten.addmv.default, aten.baddbmm.default)
def addmm(bias: Any, x: Any, y: Any, *, beta: float = 1, alpha: float = 1) -> SecretTensor:
    """The sum beta·bias + alpha·x·y."""
    product = mm(x, y)
    return add(mul(bias, beta) if beta != 1 else bias, mul(product, alpha) if alpha != 1 else product)


@handles(aten.sum.default, aten.sum.dim_IntList)
def total(
    x: SecretTensor, dim: Sequence[int] | None = None, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> SecretTensor:
    """The sum over some dimensions, or all."""
    dims = list(range(x.dim())) if not dim else list(dim)
    summed = x.value.map(lambda part: part.sum(dims, keepdim=keepdim) if dims else part)
    return secret(summed, dtype or summed_dtype(x))


@handles(aten.mean.default, aten.mean.dim)
def mean(x: SecretTensor, dim: Sequence[int] | None = None, keepdim: bool = False, **_: Any) -> SecretTensor:
    """The sum over the public count."""
    summed = total(x, dim, keepdim)
    return secret(summed.value * (summed.numel() / x.numel()))


@handles(aten.var.correction)
def variance(
    x: SecretTensor, dim: Sequence[int] | None = None, *, correction: float | None = 1, keepdim: bool = False
) -> SecretTensor:
    """The mean squared distance from the mean, over the count less the correction."""
    return var_mean(x, dim, correction=correction, keepdim=keepdim)[0]


@handles(aten.var_mean.correction)
def var_mean(
    x: SecretTensor, dim: Sequence[int] | None = None, *, correction: float | None = 1, keepdim: bool = False
) -> tuple[SecretTensor, SecretTensor]:
    """The variance and the mean."""
    dims = list(range(x.dim())) if not dim else list(dim)
    centre = mean(x, dims, keepdim=True)
    distance = sub(x, centre)
    summed = total(mul(distance, distance), dims, keepdim)
    count = x.numel() / summed.numel() - (1 if correction is None else correction)
    middle = centre if keepdim else secret(centre.value.map(lambda part: part.squeeze(dims)))
    return secret(summed.value * (1 / count)), middle


# Moments of optimisers are small: squares of gradients times 1e-3 would vanish in 16 bits of fraction.
_MOMENT, _SQUARE = 24, 30


@handles(aten.addcmul.default)
def addcmul(x: Any, a: Any, b: Any, *, value: float = 1) -> SecretTensor:
    """The sum x + value·a·b, with a longer fraction."""
    engine = engine_of(x, a, b)
    factor = number(a, engine)
    if value != 1:  # the factor has room for it, and the product has not
        factor = (factor * value).rehomed(_SQUARE)
    return secret((number(x, engine) + factor * number(b, engine)).rehomed(_SQUARE))


@handles(aten.addcdiv.default)
def addcdiv(x: Any, a: Any, b: Any, *, value: float = 1) -> SecretTensor:
    """The sum x + value·a/b."""
    quotient = _by_reciprocal(a, b)
    return add(x, mul(quotient, value) if value != 1 else quotient)


@handles(aten.lerp.Scalar)
def lerp(x: Any, y: Any, weight: float) -> SecretTensor:
    """The mean x + weight·(y − x), with a longer fraction."""
    engine = engine_of(x, y)
    a, b = number(x, engine), number(y, engine)
    return secret((a + (b - a) * weight).rehomed(_MOMENT))


@handles(aten.linear.default)
def linear(x: Any, weight: Any, bias: Any = None) -> SecretTensor:
    """A dense layer."""
    product = mm(x, weight.t() if weight.dim() == 2 else weight)
    return product if bias is None else add(product, bias)


def product_of_matrices(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Of parts, in the ring; of what is public, as floats."""
    return matmul(a, b) if a.dtype == torch.int64 and b.dtype == torch.int64 else torch.matmul(a, b)
