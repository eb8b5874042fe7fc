"""Views, indices and copies: no message, part by part."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from hansa.core.errors import SecretError
from hansa.mpc.fixed import Engine, Fixed
from hansa.mpc.operations.places import put
from hansa.mpc.operations.wrap import bounded, engine_of, number, numbers, secret, summed_dtype
from hansa.mpc.secret import SecretTensor, dispatch, handles

aten = torch.ops.aten
_VIEWS = ("t", "transpose", "permute", "expand", "unsqueeze", "squeeze", "select")


def _part_by_part(operation: Any) -> None:
    name = operation._schema.name.split("::")[1]
    # Without torch's Python around it; a method of the tensor reads its arguments in half the time.
    call = _sliced if name == "slice" else getattr(torch.Tensor, name) if name in _VIEWS else operation._op

    @handles(operation)
    def run(x: SecretTensor, *args: Any, **kwargs: Any) -> SecretTensor:
        if not isinstance(x, SecretTensor) or _any_secret(args):
            raise SecretError(
                f"'{name}' takes public places: choose by a secret condition with torch.where, and by a secret index "
                "with torch.nn.functional.embedding(index, table)."
            )
        engine = x.value.engine
        places = args if engine.device.type == "cpu" else _placed(args, engine)
        return secret(x.value.view(lambda part: call(part, *places, **kwargs)), x.dtype)


def _sliced(
    part: torch.Tensor, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> torch.Tensor:
    # Rows, as loops over batches take them, in half the time.
    return part[start:end:step] if dim == 0 else aten.slice.Tensor._op(part, dim, start, end, step)


def _placed(args: Sequence[Any], engine: Engine) -> list[Any]:
    """Public places, where the parts are."""
    return [
        engine.placed(each) if isinstance(each, torch.Tensor)
        else _placed(each, engine) if isinstance(each, list)
        else each
        for each in args
    ]  # fmt: skip


def _any_secret(args: Sequence[Any]) -> bool:
    return any(isinstance(each, SecretTensor) or (isinstance(each, list) and _any_secret(each)) for each in args)


for _operation in (
    *(
        aten.t.default,
        aten.transpose.int,
        aten.permute.default,
        aten.expand.default,
        aten.unsqueeze.default,
        aten.squeeze.default,
        aten.squeeze.dim,
    ),
    *(aten.squeeze.dims, aten.slice.Tensor, aten.select.int, aten.index.Tensor, aten.index_select.default),
    *(aten.flip.default, aten.repeat.default, aten.unfold.default, aten.diagonal.default, aten.roll.default),
    *(aten.tril.default, aten.triu.default, aten.take.default),
):
    _part_by_part(_operation)


@handles(aten.view.default, aten._unsafe_view.default, aten.reshape.default)
def view(x: SecretTensor, shape: Sequence[int]) -> SecretTensor:
    """Another shape; parts may lie in memory otherwise than the tensor says."""
    return secret(x.value.view(lambda part: part.reshape(shape)), x.dtype)


def _in_place(operation: Any, functional: Any) -> None:
    """Of another shape in place, as PyTorch's recurrent layers give what they return."""

    @handles(operation)
    def run(x: SecretTensor, *args: Any) -> SecretTensor:
        x._cell = [x.value.map(lambda part: functional(part, *args))]
        with torch._C._DisableTorchDispatch():  # the tensor's own shape
            operation(x, *args)
        return x


for _operation, _functional in (
    *((aten.transpose_.default, aten.transpose.int), (aten.t_.default, aten.t.default)),
    *((aten.unsqueeze_.default, aten.unsqueeze.default), (aten.squeeze_.default, aten.squeeze.default)),
    *((aten.squeeze_.dim, aten.squeeze.dim), (aten.squeeze_.dims, aten.squeeze.dims)),
):
    _in_place(_operation, _functional)


def _several(operation: Any) -> None:
    @handles(operation)
    def run(x: SecretTensor, *args: Any, **kwargs: Any) -> Any:
        count = len(operation(torch.empty(x.shape, device="meta"), *args, **kwargs))
        pick: Callable[[int], Callable[[torch.Tensor], torch.Tensor]] = lambda i: (  # noqa: E731
            lambda part: operation(part, *args, **kwargs)[i]
        )
        return [secret(x.value.map(pick(i)), x.dtype) for i in range(count)]


for _operation in (
    *(aten.unbind.int, aten.split.Tensor, aten.unsafe_split.Tensor, aten.split_with_sizes.default),
    aten.chunk.default,
):
    _several(_operation)


@handles(aten.cat.default)
def cat(tensors: Sequence[Any], dim: int = 0) -> SecretTensor:
    """Along a dimension."""
    engine = engine_of(tensors)
    first, *others = numbers([each for each in tensors if each.numel() or each.dim() > 1], engine)
    return secret(first.join(others, lambda parts: torch.cat(parts, dim)), _common_dtype(tensors))


@handles(aten.stack.default)
def stack(tensors: Sequence[Any], dim: int = 0) -> SecretTensor:
    """Along a new dimension."""
    first, *others = numbers(tensors, engine_of(tensors))
    return secret(first.join(others, lambda parts: torch.stack(parts, dim)), _common_dtype(tensors))


def _common_dtype(tensors: Sequence[torch.Tensor]) -> torch.dtype:
    return functools.reduce(torch.promote_types, [each.dtype for each in tensors])


@handles(aten.cumsum.default)
def cumsum(x: SecretTensor, dim: int, *, dtype: torch.dtype | None = None) -> SecretTensor:
    """The sums of the first, the first two, …"""
    return secret(x.value.map(lambda part: part.cumsum(dim)), dtype or summed_dtype(x))


@handles(aten.constant_pad_nd.default)
def constant_pad_nd(x: SecretTensor, sizes: Sequence[int], value: float = 0) -> SecretTensor:
    """With a public number around it."""
    padded = x.value.map(lambda part: torch.nn.functional.pad(part, sizes))
    if value:
        padded = padded + torch.nn.functional.pad(torch.zeros(x.shape), sizes, value=bounded(value))
    return secret(padded, x.dtype)


@handles(aten.fill.Tensor)
def fill(x: SecretTensor, value: Any) -> SecretTensor:
    """One number everywhere."""
    return secret(number(value, x.value.engine).map(lambda part: part.expand(x.shape)), x.dtype)


@handles(aten.index_put.default)
def index_put(x: Any, index: Sequence[Any], values: Any, accumulate: bool = False) -> SecretTensor:
    """Numbers put at public places, or one number where a secret condition holds."""
    engine = engine_of(x, index, values)
    into, given = number(bounded(x), engine), number(bounded(values), engine)
    if _any_secret(index):
        condition = index[0]
        if len(index) > 1 or condition.dtype != torch.bool or condition.dim() != x.dim() or math.prod(given.shape) != 1:
            raise SecretError("a secret index is written through by torch.where(condition, value, tensor) alone.")
        return dispatch(aten.where.self, (condition, values, x))  # type: ignore[no-any-return]
    chosen = torch.arange(x.numel()).reshape(x.shape)[tuple(slice(None) if i is None else i for i in index)]
    return secret(put(into, chosen, given, accumulate=accumulate), x.dtype)


@handles(aten.detach.default, aten.alias.default, aten.lift_fresh.default, aten.contiguous.default)
def same(x: SecretTensor, **_: Any) -> SecretTensor:
    """The same number, with what is remembered of it."""
    return x.alias()


@handles(aten.clone.default)
def clone(x: SecretTensor, **_: Any) -> SecretTensor:
    """The same number, which never changes under a tensor."""
    return secret(x.value, x.dtype)


@handles(aten.copy_.default)
def copy_(into: Any, x: Any, non_blocking: bool = False) -> Any:
    """Replaces what a secret tensor holds."""
    engine = engine_of(into, x)
    if not isinstance(into, SecretTensor):
        raise SecretError("a secret cannot be copied into a public tensor: make it secret with session.share.")
    if x.dtype != into.dtype:
        x = x.to(into.dtype)
    given = number(x, engine)
    return into.write(given.map(lambda part: part.expand(into.shape)))


@handles(aten._to_copy.default)
def to_copy(
    x: SecretTensor, *, dtype: torch.dtype | None = None, device: torch.device | None = None, **_: Any
) -> SecretTensor:
    """Another dtype: integers gain a fraction, a number is True where it is not 0, nothing is opened."""
    home = x.value.engine.device
    if device is not None and device.type != home.type:
        raise SecretError(
            f"a secret stays where its session computes, on {home}, and cannot go to {device}: open the session with "
            f"device='{device}', or reveal the secret and move what is opened."
        )
    wanted = dtype or x.dtype
    value = x.value
    if wanted == torch.bool and x.dtype != torch.bool:
        return dispatch(aten.ne.Scalar, (x, 0))  # type: ignore[no-any-return]
    if not wanted.is_floating_point and value.home:
        raise SecretError(
            f"a secret of {x.dtype} as {wanted} would be rounded, which has no protocol: compare it with thresholds, "
            "or share whole numbers as integers."
        )
    if wanted.is_floating_point and value.home == 0:
        value = value + Fixed.constant(value.engine, torch.zeros(()))
    return secret(value, wanted)


_ALL_ARE_FINITE = aten.isnan.default, aten.isinf.default


def _filled(fill: Callable[[SecretTensor, Any], torch.Tensor], *operations: Any) -> None:
    @handles(*operations)
    def run(x: SecretTensor, *args: Any, dtype: torch.dtype | None = None, **_: Any) -> SecretTensor:
        wanted = torch.bool if operations[0] in _ALL_ARE_FINITE else dtype or x.dtype
        return secret(Fixed.constant(x.value.engine, fill(x, args).to(wanted)), wanted)


_filled(lambda x, _: torch.ones(x.shape), aten.ones_like.default)
_filled(lambda x, _: torch.zeros(x.shape), aten.zeros_like.default, aten.empty_like.default, aten.zero.default)
_filled(lambda x, args: torch.full(x.shape, bounded(float(args[0]))), aten.full_like.default, aten.fill.Scalar)
_filled(lambda x, _: torch.zeros(x.shape, dtype=torch.bool), *_ALL_ARE_FINITE)
_filled(
    lambda x, args: torch.zeros(args[0]),
    *(aten.new_zeros.default, aten.new_empty.default, aten.new_empty_strided.default),
)
_filled(lambda x, args: torch.ones(args[0]), aten.new_ones.default)
_filled(lambda x, args: torch.full(args[0], bounded(float(args[1]))), aten.new_full.default)


def _drawn(draw: Callable[[torch.Tensor, Sequence[Any], torch.Generator], torch.Tensor], *operations: Any) -> None:
    """Public random numbers, alike at all parties, as those of dropout."""

    @handles(*operations)
    def run(x: SecretTensor, *args: Any, dtype: torch.dtype | None = None, **_: Any) -> SecretTensor:
        engine, wanted = x.value.engine, dtype or x.dtype
        return secret(Fixed.constant(engine, draw(torch.empty(x.shape, dtype=wanted), args, engine.random)), wanted)


_drawn(
    lambda empty, args, random: empty.uniform_(*args, generator=random), aten.rand_like.default, aten.uniform.default
)
_drawn(
    lambda empty, args, random: empty.normal_(*args, generator=random),
    *(aten.randn_like.default, aten.normal_functional.default),
)
_drawn(lambda empty, args, random: empty.exponential_(*args, generator=random), aten.exponential.default)


@handles(aten.slice_backward.default, aten.select_backward.default)
def _backward(grad: SecretTensor, size: Sequence[int], *args: Any) -> SecretTensor:
    operation = aten.slice_backward.default if len(args) == 4 else aten.select_backward.default
    return secret(grad.value.map(lambda part: operation(part, size, *args)), grad.dtype)


@handles(aten.diagonal_backward.default)
def diagonal_backward(grad: SecretTensor, size: Sequence[int], *args: Any) -> SecretTensor:
    """The gradient on the diagonal."""
    return secret(grad.value.map(lambda part: aten.diagonal_backward.default(part, size, *args)), grad.dtype)


@handles(aten.is_same_size.default)
def is_same_size(x: Any, y: Any) -> bool:
    """Of shapes, which are public."""
    return bool(x.shape == y.shape)
