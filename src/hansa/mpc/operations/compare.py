"""Comparisons, choices, maxima and order."""

from collections.abc import Callable
from typing import Any

import torch

from hansa.core.errors import SecretError
from hansa.mpc import functions
from hansa.mpc.fixed import Fixed
from hansa.mpc.operations.wrap import bounded, engine_of, floating, number, secret
from hansa.mpc.secret import SecretTensor, handles, program_line

aten = torch.ops.aten
_BEYOND = 2.0**45  # more than any number by more than nothing, and the difference still has its sign in the ring


def _less(x: Any, y: Any) -> Fixed:
    engine = engine_of(x, y)
    return (number(bounded(x, _BEYOND), engine) - number(bounded(y, _BEYOND), engine)).negative()


@handles(aten.lt.Tensor, aten.lt.Scalar)
def lt(x: Any, y: Any) -> SecretTensor:
    """Whether x < y."""
    return secret(_less(x, y), torch.bool)


@handles(aten.gt.Tensor, aten.gt.Scalar)
def gt(x: Any, y: Any) -> SecretTensor:
    """Whether x > y."""
    return secret(_less(y, x), torch.bool)


@handles(aten.ge.Tensor, aten.ge.Scalar)
def ge(x: Any, y: Any) -> SecretTensor:
    """Whether x ≥ y."""
    return secret(1 - _less(x, y), torch.bool)


@handles(aten.le.Tensor, aten.le.Scalar)
def le(x: Any, y: Any) -> SecretTensor:
    """Whether x ≤ y."""
    return secret(1 - _less(y, x), torch.bool)


@handles(aten.eq.Tensor, aten.eq.Scalar)
def eq(x: Any, y: Any) -> SecretTensor:
    """Whether x = y, in every bit of the fraction."""
    engine = engine_of(x, y)
    return secret(functions.equal(*(number(bounded(each, _BEYOND), engine) for each in (x, y))), torch.bool)


@handles(aten.ne.Tensor, aten.ne.Scalar)
def ne(x: Any, y: Any) -> SecretTensor:
    """Whether x ≠ y."""
    return secret(1 - eq(x, y).value, torch.bool)


def _logical(combined: Callable[..., Fixed], logical: Any, *bitwise: Any) -> None:
    """Of conditions; the logical operation takes every number that is not 0 as one."""

    @handles(logical)
    def run(*given: Any) -> SecretTensor:
        engine = engine_of(*given)
        conditions = [each if each.dtype == torch.bool else each != 0 for each in given]
        return secret(combined(*(number(each, engine) for each in conditions)), torch.bool)

    @handles(*bitwise)
    def run_on_bits(*given: Any) -> SecretTensor:
        given = tuple([torch.as_tensor(each) for each in given])
        if any(each.dtype != torch.bool for each in given):
            name = bitwise[0]._schema.name.split("::")[1]
            raise SecretError(
                f"'{name}' of the bits of secret integers has no protocol{program_line()}: share the bits as booleans, "
                f"or use torch.{name.replace('bitwise', 'logical')} on conditions."
            )
        return run(*given)


_logical(lambda a: 1 - a, aten.logical_not.default, aten.bitwise_not.default)
_logical(lambda a, b: a * b, aten.logical_and.default, aten.bitwise_and.Tensor, aten.bitwise_and.Scalar)
_logical(lambda a, b: a + b - a * b, aten.logical_or.default, aten.bitwise_or.Tensor, aten.bitwise_or.Scalar)
_logical(
    lambda a, b: a + b - a * b * 2,
    *(aten.logical_xor.default, aten.bitwise_xor.Tensor, aten.bitwise_xor.Scalar),
)


@handles(aten.sign.default, aten.sgn.default)
def sign(x: SecretTensor) -> SecretTensor:
    """−1, 0 or 1."""
    return secret((-x.value).negative() - x.value.negative(), x.dtype)


@handles(aten.where.self)
def where(condition: Any, x: Any, y: Any) -> SecretTensor:
    """Element of x where the condition holds, else of y."""
    engine = engine_of(condition, x, y)
    known = condition.value.public if isinstance(condition, SecretTensor) else condition
    if known is not None:
        known = known.to(torch.bool)
        x, y = _unless_unused(x, known), _unless_unused(y, ~known)
    a, b = number(bounded(x), engine), number(bounded(y), engine)
    if known is not None:
        mask = known.to(torch.int64)
        return secret(a * mask + b * (1 - mask), floating(x, y))
    return secret(b + condition.value * (a - b), floating(x, y))


def _unless_unused(x: Any, used: torch.Tensor) -> Any:
    """What is public, with 0 where it does not count: PyTorch's own formulas have NaN there."""
    if isinstance(x, SecretTensor) or not x.is_floating_point():
        return x
    return torch.where(used.to(x.device), x, 0.0)


@handles(aten.abs.default)
def absolute(x: SecretTensor) -> SecretTensor:
    """The magnitude."""
    return secret(x.value - x.value * x.value.negative() * 2, x.dtype)


@handles(aten.clamp.default, aten.clamp.Tensor)
def clamp(x: SecretTensor, low: Any = None, high: Any = None) -> SecretTensor:
    """Between public or secret bounds."""
    out = x
    if low is not None:
        out = maximum(out, low)
    return minimum(out, high) if high is not None else out


@handles(aten.maximum.default, aten.fmax.default)
def maximum(x: Any, y: Any) -> SecretTensor:
    """The larger, element by element."""
    engine = engine_of(x, y)
    a, b = number(bounded(x), engine), number(bounded(y), engine)
    difference = a - b
    return secret(a - difference * difference.negative(), floating(x, y))


@handles(aten.minimum.default, aten.fmin.default)
def minimum(x: Any, y: Any) -> SecretTensor:
    """The smaller, element by element."""
    engine = engine_of(x, y)
    a, b = number(bounded(x), engine), number(bounded(y), engine)
    difference = a - b
    return secret(b + difference * difference.negative(), floating(x, y))


@handles(aten.amax.default)
def amax(x: SecretTensor, dim: Any = (), keepdim: bool = False) -> SecretTensor:
    """The largest along dimensions, by a tournament."""
    value, _ = functions.maximum(*_last(x, dim))
    return secret(_back(value, x, dim, keepdim), x.dtype)


@handles(aten.max.default)
def largest(x: SecretTensor) -> SecretTensor:
    """The largest of all."""
    return amax(x)


@handles(aten.max.dim)
def max_dim(x: SecretTensor, dim: int, keepdim: bool = False) -> tuple[SecretTensor, SecretTensor]:
    """The largest along a dimension, and its secret index (the first, where several are)."""
    value, hot = functions.maximum(*_last(x, [dim]), hot=True)
    assert hot is not None
    index = functions.position(hot)
    return (
        secret(_back(value, x, [dim], keepdim), x.dtype),
        secret(_back(index, x, [dim], keepdim), torch.int64),
    )


@handles(aten.amin.default)
def amin(x: SecretTensor, dim: Any = (), keepdim: bool = False) -> SecretTensor:
    """The smallest along dimensions."""
    return _negated(amax(_negated(x), dim, keepdim))


@handles(aten.min.default)
def smallest(x: SecretTensor) -> SecretTensor:
    """The smallest of all."""
    return amin(x)


@handles(aten.min.dim)
def min_dim(x: SecretTensor, dim: int, keepdim: bool = False) -> tuple[SecretTensor, SecretTensor]:
    """The smallest along a dimension, and its secret index (the first, where several are)."""
    values, places = max_dim(_negated(x), dim, keepdim)
    return _negated(values), places


@handles(aten.argmin.default)
def argmin(x: SecretTensor, dim: int | None = None, keepdim: bool = False) -> SecretTensor:
    """The secret index of the smallest."""
    return argmax(_negated(x), dim, keepdim)


@handles(aten.argmax.default)
def argmax(x: SecretTensor, dim: int | None = None, keepdim: bool = False) -> SecretTensor:
    """The secret index of the largest."""
    if dim is None:
        place = max_dim(x.reshape(-1), 0)[1]
        return place.reshape([1] * x.dim()) if keepdim else place
    return max_dim(x, dim, keepdim)[1]


@handles(aten.sort.default)
def sort(x: SecretTensor, dim: int = -1, descending: bool = False) -> tuple[SecretTensor, SecretTensor]:
    """In order along a dimension, and the secret places they came from; equal ones in any order."""
    if not x.dim():
        return secret(x.value, x.dtype), secret(Fixed.constant(x.value.engine, torch.tensor(0)), torch.int64)
    values, places = functions.sort(x.value.map(lambda part: part.movedim(dim, -1)), descending)
    return (
        secret(values.map(lambda part: part.movedim(-1, dim)), x.dtype),
        secret(places.map(lambda part: part.movedim(-1, dim)), torch.int64),
    )


@handles(aten.sort.stable)
def sort_stable(
    x: SecretTensor, *, stable: bool | None = False, dim: int = -1, descending: bool = False
) -> tuple[SecretTensor, SecretTensor]:
    """As `sort`; what is asked to be stable is refused."""
    if stable:
        raise SecretError(f"a stable sort has no protocol{program_line()}: equal numbers come in any order, by `sort`.")
    return sort(x, dim, descending)


@handles(aten.kthvalue.default)
def kthvalue(x: SecretTensor, k: int, dim: int = -1, keepdim: bool = False) -> tuple[SecretTensor, SecretTensor]:
    """The k-th smallest along a dimension, and its secret index."""
    found = [each.narrow(dim, k - 1, 1) if x.dim() else each for each in sort(x, dim)]
    values, places = found if keepdim or not x.dim() else [each.squeeze(dim) for each in found]
    return values, places


@handles(aten.median.dim)
def median_dim(x: SecretTensor, dim: int = -1, keepdim: bool = False) -> tuple[SecretTensor, SecretTensor]:
    """The lower median along a dimension, and its secret index."""
    return kthvalue(x, (x.shape[dim] + 1) // 2 if x.dim() else 1, dim, keepdim)


@handles(aten.median.default)
def median(x: SecretTensor) -> SecretTensor:
    """The lower median of all."""
    return median_dim(x.reshape(-1), 0)[0]


@handles(aten.topk.default)
def topk(
    x: SecretTensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True
) -> tuple[SecretTensor, SecretTensor]:
    """The k largest along a dimension, and their secret indices."""
    values, places = sort(x, dim, largest)
    return values.narrow(dim, 0, k), places.narrow(dim, 0, k)


def _negated(x: SecretTensor) -> SecretTensor:
    return secret(-x.value, x.dtype)


def _last(x: SecretTensor, dim: Any) -> tuple[Fixed]:
    """The dimensions to reduce as one last dimension."""
    if not x.dim():
        return (x.value.map(lambda part: part.reshape(1)),)
    dims = [each % x.dim() for each in dim] or list(range(x.dim()))
    kept = [each for each in range(x.dim()) if each not in dims]
    shape = [x.shape[each] for each in kept]
    return (x.value.map(lambda part: part.permute(*kept, *dims).reshape(*shape, -1)),)


def _back(value: Fixed, x: SecretTensor, dim: Any, keepdim: bool) -> Fixed:
    if not keepdim or not x.dim():
        return value
    dims = [each % x.dim() for each in dim] or list(range(x.dim()))
    shape = [1 if each in dims else size for each, size in enumerate(x.shape)]
    return value.map(lambda part: part.reshape(shape))
