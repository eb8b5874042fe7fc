"""Views, indices and copies: no message, part by part."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from hansa.mpc.fixed import Fixed
from hansa.mpc.operations.wrap import engine_of, numbers, secret
from hansa.mpc.secret import SecretTensor, handles

aten = torch.ops.aten


def _part_by_part(operation: Any) -> None:
    @handles(operation)
    def run(x: SecretTensor, *args: Any, **kwargs: Any) -> SecretTensor:
        return secret(x.value.map(lambda part: operation(part, *args, **kwargs)), x.dtype)


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
    *(aten.tril.default, aten.triu.default, aten.gather.default, aten.cumsum.default),
):
    _part_by_part(_operation)


@handles(aten.view.default, aten._unsafe_view.default, aten.reshape.default)
def view(x: SecretTensor, shape: Sequence[int]) -> SecretTensor:
    """Another shape; parts may lie in memory otherwise than the tensor says."""
    return secret(x.value.map(lambda part: part.reshape(shape)), x.dtype)


@handles(aten.transpose_.default)
def transpose_(x: SecretTensor, first: int, second: int) -> SecretTensor:
    """Two dimensions swapped in place, as PyTorch's recurrent layers do with what they return."""
    x.value = x.value.map(lambda part: part.transpose(first, second))
    with torch._C._DisableTorchDispatch():  # the tensor's own shape
        aten.transpose_.default(x, first, second)
    return x


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
    return secret(first.join(others, lambda parts: torch.cat(parts, dim)), tensors[0].dtype)


@handles(aten.stack.default)
def stack(tensors: Sequence[Any], dim: int = 0) -> SecretTensor:
    """Along a new dimension."""
    first, *others = numbers(tensors, engine_of(tensors))
    return secret(first.join(others, lambda parts: torch.stack(parts, dim)), tensors[0].dtype)


@handles(aten.detach.default, aten.alias.default, aten.lift_fresh.default, aten.contiguous.default)
def same(x: SecretTensor, **_: Any) -> SecretTensor:
    """The same number, with what is remembered of it."""
    return secret(x.value, x.dtype)


@handles(aten.clone.default)
def clone(x: SecretTensor, **_: Any) -> SecretTensor:
    """The same number, which never changes under a tensor."""
    return secret(x.value, x.dtype)


@handles(aten.copy_.default)
def copy_(into: Any, x: Any, non_blocking: bool = False) -> Any:
    """Replaces what a secret tensor holds."""
    engine = engine_of(into, x)
    if not isinstance(into, SecretTensor):
        raise TypeError("a secret cannot be copied into a public tensor: make it secret with session.share.")
    given = x.value if isinstance(x, SecretTensor) else Fixed.constant(engine, x)
    into.value = given.map(lambda part: part.expand(into.shape))
    return into


@handles(aten._to_copy.default)
def to_copy(x: SecretTensor, *, dtype: torch.dtype | None = None, **_: Any) -> SecretTensor:
    """Another dtype: integers gain a fraction, nothing is opened."""
    wanted = dtype or x.dtype
    value = x.value
    if wanted.is_floating_point and value.home == 0:
        value = value + Fixed.constant(value.engine, torch.zeros(()))
    return secret(value, wanted)


def _filled(fill: Callable[[SecretTensor, Any], torch.Tensor], *operations: Any) -> None:
    @handles(*operations)
    def run(x: SecretTensor, *args: Any, dtype: torch.dtype | None = None, **_: Any) -> SecretTensor:
        wanted = dtype or x.dtype
        return secret(Fixed.constant(x.value.engine, fill(x, args).to(wanted)), wanted)


_filled(lambda x, _: torch.ones(x.shape), aten.ones_like.default)
_filled(lambda x, _: torch.zeros(x.shape), aten.zeros_like.default, aten.empty_like.default, aten.zero.default)
_filled(lambda x, args: torch.full(x.shape, float(args[0])), aten.full_like.default, aten.fill.Scalar)
_filled(lambda x, args: torch.zeros(args[0]), aten.new_zeros.default, aten.new_empty.default)
_filled(lambda x, args: torch.ones(args[0]), aten.new_ones.default)
_filled(lambda x, args: torch.full(args[0], float(args[1])), aten.new_full.default)


@handles(aten.slice_backward.default, aten.select_backward.default)
def _backward(grad: SecretTensor, size: Sequence[int], *args: Any) -> SecretTensor:
    operation = aten.slice_backward.default if len(args) == 4 else aten.select_backward.default
    return secret(grad.value.map(lambda part: operation(part, size, *args)), grad.dtype)


@handles(aten.is_same_size.default)
def is_same_size(x: Any, y: Any) -> bool:
    """Of shapes, which are public."""
    return bool(x.shape == y.shape)
