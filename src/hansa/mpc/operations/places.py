"""Numbers taken from places and put there: of public places part by part, of secret ones by their one-hot codes.

A secret place costs a comparison for each number along its dimension, so that nobody learns which it was. One that is
none of them takes 0 and puts nothing, where PyTorch would say so. Places that are named twice are put as PyTorch warns:
of public ones one of the values, of secret ones their sum.
"""

from typing import Any

import torch

from hansa.core.errors import SecretError
from hansa.mpc import functions
from hansa.mpc.fixed import Fixed
from hansa.mpc.operations.arithmetic import product_of_matrices
from hansa.mpc.operations.wrap import bounded, engine_of, number, secret
from hansa.mpc.secret import SecretTensor, handles, program_line

aten = torch.ops.aten


@handles(aten.gather.default)
def gather(x: Any, dim: int, index: Any, *, sparse_grad: bool = False) -> SecretTensor:
    """The numbers at some places along a dimension."""
    engine = engine_of(x, index)
    if not isinstance(index, SecretTensor):
        places = engine.placed(index)
        return secret(number(x, engine).map(lambda part: part.gather(dim, places)), x.dtype)
    if not index.dim():
        return secret(number(x, engine).map(lambda part: part.reshape(())), x.dtype)
    hot = _hot(index, dim, x.shape[dim])
    table = number(x, engine).map(lambda part: _narrowed(part, index.shape, dim).movedim(dim, -1)[..., None])
    found = hot.bilinear(table, product_of_matrices)
    return secret(found.map(lambda part: part[..., 0].movedim(-1, dim)), x.dtype)


@handles(aten.scatter.src, aten.scatter.value)
def scatter(x: Any, dim: int, index: Any, values: Any) -> SecretTensor:
    """Numbers put at some places along a dimension."""
    engine = engine_of(x, index, values)
    if not x.dim():
        return secret(number(values, engine).map(lambda part: part.reshape(())), x.dtype)
    into, given = number(bounded(x), engine), _values(values, index, engine)
    if not isinstance(index, SecretTensor):
        return secret(put(into, _positions(x, dim, index), given), x.dtype)
    hot = _hot(index, dim, x.shape[dim])
    count = hot.map(lambda part: part.sum(-2))
    if not isinstance(values, torch.Tensor) and index.shape[dim] > 1:
        count = (1 - count * 2).negative()  # the same number twice is the number
        moved = count * float(values)
    else:
        moved = _collected(hot, given, dim)
    spread, taken = (_widened(each, x, dim) for each in (moved, count))
    return secret(into - into * taken + spread, x.dtype)


@handles(aten.scatter_add.default)
def scatter_add(x: Any, dim: int, index: Any, values: Any) -> SecretTensor:
    """Numbers added at some places along a dimension."""
    engine = engine_of(x, index, values)
    if not x.dim():
        return secret(number(x, engine) + number(values, engine).map(lambda part: part.reshape(())), x.dtype)
    into, given = number(x, engine), _values(values, index, engine)
    if not isinstance(index, SecretTensor):
        return secret(put(into, _positions(x, dim, index), given, accumulate=True), x.dtype)
    hot = _hot(index, dim, x.shape[dim])
    return secret(into + _widened(_collected(hot, given, dim), x, dim), x.dtype)


@handles(aten.put.default)
def put_flat(x: Any, index: Any, values: Any, accumulate: bool = False) -> SecretTensor:
    """Numbers put at public places of the flattened tensor."""
    if isinstance(index, SecretTensor):
        raise SecretError(f"'put' takes public places{program_line()}: use scatter, which takes secret ones.")
    engine = engine_of(x, values)
    return secret(put(number(x, engine), index, number(values, engine), accumulate=accumulate), x.dtype)


def put(into: Fixed, positions: torch.Tensor, values: Fixed, *, accumulate: bool = False) -> Fixed:
    """Numbers at public places.

    Args:
      into: any shape.
      positions: places of the flattened tensor, of any shape.
      values: that of the places, or one that is spread over it.
      accumulate: adds them, also where a place is named twice.
    """
    engine, shape = into.engine, into.shape
    flat = engine.placed(positions.reshape(-1))
    spread = values.map(lambda part: part.expand(positions.shape).reshape(-1))

    def placed(part: torch.Tensor) -> torch.Tensor:
        out = part.new_zeros(shape.numel())
        return (out.index_add(0, flat, part) if accumulate else out.index_copy(0, flat, part)).reshape(shape)

    if accumulate:
        return into + spread.map(placed)
    kept = torch.ones(shape.numel(), dtype=torch.int64, device=flat.device).index_fill(0, flat, 0).reshape(shape)
    result: Fixed = into * kept + spread.map(placed)
    return result


def _values(values: Any, index: torch.Tensor, engine: Any) -> Fixed:
    """Those that are put: the index says how many."""
    given = number(bounded(values), engine)
    if not given.shape:
        return given.map(lambda part: part.expand(index.shape))
    return given.map(lambda part: part[tuple(slice(size) for size in index.shape)])


def _positions(x: torch.Tensor, dim: int, index: torch.Tensor) -> torch.Tensor:
    """Where in the flattened tensor an index along a dimension points."""
    return torch.arange(x.numel(), device=index.device).reshape(x.shape).gather(dim, index)


def one_hot(index: SecretTensor, size: int) -> Fixed:
    """1 at each index, 0 elsewhere, along a new last dimension; compared once for each size and kept."""
    kept = f"one of {size}"
    if (known := index.value.cached.get(kept)) is None:
        spread = index.value.map(lambda part: part[..., None].expand(*part.shape, size))
        known = functions.equal(spread, Fixed.constant(index.value.engine, torch.arange(size)))
        index.value.cached[kept] = known
    return known


def _hot(index: SecretTensor, dim: int, size: int) -> Fixed:
    """Shape (…, places, size), the indexed dimension being the last but one."""
    return one_hot(index, size).map(lambda part: part.movedim(dim % index.dim(), -2))


def _collected(hot: Fixed, values: Fixed, dim: int) -> Fixed:
    """At each place the sum of what is put there, the dimension being the last."""
    given = values.map(lambda part: part.movedim(dim, -1)[..., None, :])
    return given.bilinear(hot, product_of_matrices).map(lambda part: part[..., 0, :])


def _narrowed(part: torch.Tensor, shape: torch.Size, dim: int) -> torch.Tensor:
    """What an index of such a shape can reach along a dimension."""
    axis = dim % part.dim()
    return part[tuple(slice(None) if at == axis else slice(size) for at, size in enumerate(shape))]


def _widened(x: Fixed, like: torch.Tensor, dim: int) -> Fixed:
    """Back in the shape of the tensor that an index reaches a part of, with zeros elsewhere."""
    axis = dim % like.dim()

    def wide(part: torch.Tensor) -> torch.Tensor:
        moved = part.movedim(-1, axis)
        out = moved.new_zeros(like.shape)
        out[tuple(slice(size) for size in moved.shape)] = moved
        return out

    return x.map(wide)
