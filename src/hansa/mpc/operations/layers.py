"""Convolutions, pooling and embeddings."""

from collections.abc import Sequence
from typing import Any

import torch

from hansa.core.errors import SecretError
from hansa.mpc import functions
from hansa.mpc.fixed import Fixed
from hansa.mpc.operations.wrap import engine_of, number, secret
from hansa.mpc.ring import columns, conv2d, fold, matmul
from hansa.mpc.secret import SecretTensor, handles

aten = torch.ops.aten


@handles(aten.convolution.default)
def convolution(
    x: Any, weight: Any, bias: Any, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int],
    transposed: bool, output_padding: Sequence[int], groups: int,
) -> SecretTensor:  # fmt: skip
    """In two dimensions; in one as two of which one is 1."""
    if transposed or weight.dim() not in (3, 4):
        raise SecretError(
            "transposed convolutions and those in three dimensions have no protocol: use Conv1d or Conv2d."
        )
    engine = engine_of(x, weight)
    flat = weight.dim() == 3
    a, b = number(x, engine), number(weight, engine)
    if flat:
        a, b = (each.map(lambda part: part[:, :, None]) for each in (a, b))
    how = _how(flat, stride, padding, dilation)
    out = a.bilinear(b, lambda u, v: _conv(u, v, *how, groups))
    if flat:
        out = out.map(lambda part: part[:, :, 0])
    if bias is not None:
        out = out + number(bias, engine).map(lambda part: part.view(1, -1, *([1] * (1 if flat else 2))))
    return secret(out)


@handles(aten.convolution_backward.default)
def convolution_backward(
    grad: Any, x: Any, weight: Any, bias_sizes: Any, stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int], transposed: bool, output_padding: Sequence[int], groups: int, mask: Sequence[bool],
) -> tuple[Any, Any, Any]:  # fmt: skip
    """With respect to the image, the kernel and the bias."""
    engine = engine_of(grad, x, weight)
    flat = weight.dim() == 3
    g, a, b = (number(each, engine) for each in (grad, x, weight))
    if flat:
        g, a, b = (each.map(lambda part: part[:, :, None]) for each in (g, a, b))
    stride_, padding_, dilation_ = _how(flat, stride, padding, dilation)
    kernel, size = tuple(b.shape[2:]), tuple(a.shape[2:])
    by_image = by_kernel = by_bias = None
    if mask[0]:

        def image(gradient: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
            n, _, height, width = gradient.shape
            pieces = []
            for group in range(groups):
                filters = w.shape[0] // groups
                part = gradient[:, group * filters : (group + 1) * filters].permute(0, 2, 3, 1).reshape(-1, filters)
                matrix = w[group * filters : (group + 1) * filters].reshape(filters, -1)
                windows = _mm(part.contiguous(), matrix.contiguous()).reshape(n, height, width, w.shape[1], *kernel)
                pieces.append(windows.permute(0, 3, 4, 5, 1, 2))
            return fold(torch.cat(pieces, 1), size, stride_, padding_, dilation_)

        by_image = g.bilinear(b, image)
    if mask[1]:

        def weights(gradient: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
            windows = columns(image, kernel, stride_, padding_, dilation_)
            n, channels, _, _, height, width = windows.shape
            pieces = []
            for group in range(groups):
                filters, inputs = gradient.shape[1] // groups, channels // groups
                left = gradient[:, group * filters : (group + 1) * filters].permute(1, 0, 2, 3).reshape(filters, -1)
                part = windows[:, group * inputs : (group + 1) * inputs]
                right = part.permute(0, 4, 5, 1, 2, 3).reshape(n * height * width, -1)
                pieces.append(_mm(left.contiguous(), right).reshape(filters, inputs, *kernel))
            return torch.cat(pieces)

        by_kernel = g.bilinear(a, weights)
    if mask[2]:
        by_bias = g.map(lambda part: part.sum((0, 2, 3)))
    if flat:
        by_image, by_kernel = (each and each.map(lambda part: part[:, :, 0]) for each in (by_image, by_kernel))
    return tuple(None if each is None else secret(each) for each in (by_image, by_kernel, by_bias))  # type: ignore[return-value]


@handles(aten.max_pool2d_with_indices.default)
def max_pool2d(
    x: SecretTensor, kernel: Sequence[int], stride: Sequence[int] = (), padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,), ceil_mode: bool = False,
) -> tuple[SecretTensor, SecretTensor]:  # fmt: skip
    """The largest of each window, by a tournament; which it was serves the backward pass."""
    if any(padding) or ceil_mode:
        raise SecretError("max_pool2d with padding or ceil_mode has no protocol: pad with a constant first.")
    size, step, gap = _pairs(kernel, stride or kernel, dilation)
    windows = x.value.map(lambda part: _last_window(columns(part, size, step, (0, 0), gap)))
    value, hot = functions.maximum(windows, hot=x.requires_grad or torch.is_grad_enabled())
    places = Fixed.constant(x.value.engine, torch.zeros(value.shape, dtype=torch.int64))
    places.cached["hot"] = hot
    return secret(value), secret(places, torch.int64)


@handles(aten.max_pool2d_with_indices_backward.default)
def max_pool2d_backward(
    grad: Any, x: SecretTensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int], ceil_mode: bool, indices: SecretTensor,
) -> SecretTensor:  # fmt: skip
    """The gradient, where the largest was."""
    size, step, gap = _pairs(kernel, stride or kernel, dilation)
    spread = number(grad, x.value.engine).map(lambda part: part[..., None]) * indices.value.cached["hot"]

    def back(part: torch.Tensor) -> torch.Tensor:
        n, c, height, width, _ = part.shape
        windows = part.reshape(n, c, height, width, *size).permute(0, 1, 4, 5, 2, 3)
        return fold(windows, tuple(x.shape[2:]), step, (0, 0), gap)

    return secret(spread.map(back))


@handles(aten.avg_pool2d.default)
def avg_pool2d(
    x: SecretTensor, kernel: Sequence[int], stride: Sequence[int] = (), padding: Sequence[int] = (0,),
    ceil_mode: bool = False, count_include_pad: bool = True, divisor_override: int | None = None,
) -> SecretTensor:  # fmt: skip
    """The mean of each window."""
    size, step, pad = _pairs(kernel, stride or kernel, padding)
    if ceil_mode or (any(pad) and not count_include_pad):
        raise SecretError("avg_pool2d with ceil_mode or count_include_pad=False has no protocol: pad first.")
    summed = x.value.map(lambda part: columns(part, size, step, pad).sum((2, 3)))
    return secret(summed * (1 / (divisor_override or size[0] * size[1])))


@handles(aten.avg_pool2d_backward.default)
def avg_pool2d_backward(
    grad: Any, x: SecretTensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], ceil_mode: bool,
    count_include_pad: bool, divisor_override: int | None,
) -> SecretTensor:  # fmt: skip
    """The gradient, spread evenly."""
    size, step, pad = _pairs(kernel, stride or kernel, padding)

    def back(part: torch.Tensor) -> torch.Tensor:
        windows = part[:, :, None, None].expand(-1, -1, *size, -1, -1)
        return fold(windows, tuple(x.shape[2:]), step, pad)

    scaled = number(grad, x.value.engine) * (1 / (divisor_override or size[0] * size[1]))
    return secret(scaled.map(back))


@handles(aten._adaptive_avg_pool2d.default)
def adaptive_avg_pool2d(x: SecretTensor, size: Sequence[int]) -> SecretTensor:
    """Where the windows are of equal size."""
    if any(have % want for have, want in zip(x.shape[2:], size, strict=True)):
        raise SecretError(f"adaptive_avg_pool2d of {tuple(x.shape[2:])} to {tuple(size)} has windows of unequal size.")
    return avg_pool2d(x, [have // want for have, want in zip(x.shape[2:], size, strict=True)])


@handles(aten.embedding.default)
def embedding(weight: Any, index: Any, *_: Any, **__: Any) -> SecretTensor:
    """Rows of a table: by a public index for nothing, by a secret one as a product with its one-hot code."""
    engine = engine_of(weight, index)
    table = number(weight, engine)
    if not isinstance(index, SecretTensor):
        return secret(table.map(lambda part: part[index]))
    hot = _hot(index, weight.shape[0])
    return secret(hot.bilinear(table, _mm_last))


@handles(aten.embedding_dense_backward.default)
def embedding_backward(grad: Any, index: Any, rows: int, *_: Any) -> SecretTensor:
    """Gradients added into the rows that were looked up."""
    engine = engine_of(grad, index)
    given = number(grad, engine).map(lambda part: part.reshape(-1, part.shape[-1]))
    if isinstance(index, SecretTensor):
        hot = _hot(index, rows).map(lambda part: part.reshape(-1, rows).t())
        return secret(hot.bilinear(given, _mm))
    flat = index.reshape(-1)
    return secret(given.map(lambda part: part.new_zeros(rows, part.shape[-1]).index_add_(0, flat, part)))


def _hot(index: SecretTensor, rows: int) -> Fixed:
    if (known := index.value.cached.get("hot rows")) is None:
        spread = index.value.map(lambda part: part[..., None].expand(*part.shape, rows))
        known = functions.equal(spread, Fixed.constant(index.value.engine, torch.arange(rows)))
        index.value.cached["hot rows"] = known
    return known


def _mm_last(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return _mm(a.reshape(-1, a.shape[-1]), b).reshape(*a.shape[:-1], b.shape[-1])


def _mm(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return matmul(a, b) if a.dtype == torch.int64 and b.dtype == torch.int64 else a.double() @ b.double()


def _conv(a: torch.Tensor, b: torch.Tensor, *how: Any) -> torch.Tensor:
    return conv2d(a, b, *how) if a.dtype == torch.int64 and b.dtype == torch.int64 else torch.nn.functional.conv2d(
        a.double(), b.double(), None, *how
    )  # fmt: skip


def _last_window(windows: torch.Tensor) -> torch.Tensor:
    n, c, kh, kw, height, width = windows.shape
    return windows.permute(0, 1, 4, 5, 2, 3).reshape(n, c, height, width, kh * kw)


def _pairs(*given: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Each as (vertical, horizontal); one number stands for both."""
    return tuple((each[0], each[-1]) for each in given)


def _how(
    flat: bool, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """In one dimension the images have a height of 1, along which nothing moves."""
    if flat:
        return (1, stride[0]), (0, padding[0]), (1, dilation[0])
    return (stride[0], stride[-1]), (padding[0], padding[-1]), (dilation[0], dilation[-1])
