"""Convolutions, pooling and embeddings."""

from collections.abc import Sequence
from typing import Any

import torch

from hansa.core.errors import SecretError
from hansa.mpc import functions
from hansa.mpc.fixed import Fixed
from hansa.mpc.operations.arithmetic import var_mean
from hansa.mpc.operations.places import one_hot
from hansa.mpc.operations.wrap import engine_of, number, secret
from hansa.mpc.ring import columns, conv2d, fold, matmul
from hansa.mpc.ring.convolution import Pair
from hansa.mpc.secret import SecretTensor, handles, program_line

aten = torch.ops.aten


@handles(aten.convolution.default)
def convolution(
    x: Any, weight: Any, bias: Any, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int],
    transposed: bool, output_padding: Sequence[int], groups: int,
) -> SecretTensor:  # fmt: skip
    """In two dimensions, also transposed; in one as two of which one is 1."""
    if weight.dim() not in (3, 4):
        raise SecretError("convolutions in three dimensions have no protocol: use Conv1d, Conv2d or their transposes.")
    engine = engine_of(x, weight)
    flat = weight.dim() == 3
    a, b = number(x, engine), number(weight, engine)
    if flat:
        a, b = (each.map(lambda part: part[:, :, None]) for each in (a, b))
    how = _how(flat, stride, padding, dilation)
    if transposed:
        size = _grown(a.shape[2:], b.shape[2:], how, (0, *output_padding) if flat else tuple(output_padding))
        out = a.bilinear(b, lambda u, v: _spread(u, v, size, how, groups))
    else:
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
    """With respect to the image, the kernel and the bias; a transposed one is its own gradient's gradient."""
    engine = engine_of(grad, x, weight)
    flat = weight.dim() == 3
    g, a, b = (number(each, engine) for each in (grad, x, weight))
    if flat:
        g, a, b = (each.map(lambda part: part[:, :, None]) for each in (g, a, b))
    how = _how(flat, stride, padding, dilation)
    kernel, size = tuple(b.shape[2:]), tuple(a.shape[2:])
    by_image = by_kernel = by_bias = None
    if mask[0] and transposed:
        by_image = g.bilinear(b, lambda u, v: _conv(u, v, *how, groups)[:, :, : size[0], : size[1]])
    elif mask[0]:
        by_image = g.bilinear(b, lambda u, v: _spread(u, v, (size[0], size[1]), how, groups))
    if mask[1]:
        left, right = (a, g) if transposed else (g, a)
        by_kernel = left.bilinear(right, lambda u, v: _kernel(u, v, (kernel[0], kernel[1]), how, groups))
    if mask[2]:
        by_bias = g.map(lambda part: part.sum((0, 2, 3)))
    if flat:
        by_image, by_kernel = (each and each.map(lambda part: part[:, :, 0]) for each in (by_image, by_kernel))
    return tuple(None if each is None else secret(each) for each in (by_image, by_kernel, by_bias))  # type: ignore[return-value]


def _spread(values: torch.Tensor, weight: torch.Tensor, size: Pair, how: tuple[Pair, Pair, Pair], groups: int) -> Any:
    """Each number times the kernel, added where the kernel lies: a convolution's gradient for its image."""
    n, _, height, width = values.shape
    filters, kernel = weight.shape[0] // groups, (weight.shape[2], weight.shape[3])
    pieces = []
    for group in range(groups):
        part = values[:, group * filters : (group + 1) * filters].permute(0, 2, 3, 1).reshape(-1, filters)
        matrix = weight[group * filters : (group + 1) * filters].reshape(filters, -1)
        windows = _mm(part.contiguous(), matrix.contiguous()).reshape(n, height, width, weight.shape[1], *kernel)
        pieces.append(windows.permute(0, 3, 4, 5, 1, 2))
    return fold(torch.cat(pieces, 1), size, *how)


def _kernel(values: torch.Tensor, image: torch.Tensor, kernel: Pair, how: tuple[Pair, Pair, Pair], groups: int) -> Any:
    """Each number times the window that it belongs to, added up: a convolution's gradient for its kernel."""
    height, width = values.shape[2:]
    windows = columns(image, kernel, *how)[..., :height, :width]
    n, channels = windows.shape[:2]
    filters, inputs = values.shape[1] // groups, channels // groups
    pieces = []
    for group in range(groups):
        left = values[:, group * filters : (group + 1) * filters].permute(1, 0, 2, 3).reshape(filters, -1)
        part = windows[:, group * inputs : (group + 1) * inputs]
        right = part.permute(0, 4, 5, 1, 2, 3).reshape(n * height * width, -1)
        pieces.append(_mm(left.contiguous(), right).reshape(filters, inputs, *kernel))
    return torch.cat(pieces)


_LEAST = -(2.0**45)  # less than any number by more than nothing, and the difference still has its sign in the ring


@handles(aten.max_pool2d_with_indices.default)
def max_pool2d(
    x: SecretTensor, kernel: Sequence[int], stride: Sequence[int] = (), padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,), ceil_mode: bool = False,
) -> tuple[SecretTensor, SecretTensor]:  # fmt: skip
    """The largest of each window, by a tournament; which it was serves the backward pass."""
    size, step, pad, gap = _pairs(kernel, stride or kernel, padding, dilation)
    frame = _frame(x, size, step, pad, gap, ceil_mode)
    windows = x.value.map(lambda part: _last_window(_windows(part, frame, size, step, gap)))
    if any(each > 0 for each in frame):
        inside = _last_window(_windows(torch.ones(1, 1, *x.shape[-2:]), frame, size, step, gap))
        windows.share()  # at home, where the ring has room
        windows = windows + (1 - inside) * _LEAST
    value, hot = functions.maximum(windows, hot=x.requires_grad or torch.is_grad_enabled())
    value = value.map(lambda part: part.reshape(*x.shape[:-2], *part.shape[-2:]))
    places = Fixed.constant(x.value.engine, torch.zeros(value.shape, dtype=torch.int64))
    places.cached["hot"] = hot
    return secret(value), secret(places, torch.int64)


@handles(aten.max_pool2d_with_indices_backward.default)
def max_pool2d_backward(
    grad: Any, x: SecretTensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int], ceil_mode: bool, indices: SecretTensor,
) -> SecretTensor:  # fmt: skip
    """The gradient, where the largest was."""
    size, step, pad, gap = _pairs(kernel, stride or kernel, padding, dilation)
    frame = _frame(x, size, step, pad, gap, ceil_mode)
    given = number(grad, x.value.engine).map(lambda part: part.reshape(-1, *part.shape[-3:])[..., None])
    spread = given * indices.value.cached["hot"]

    def back(part: torch.Tensor) -> torch.Tensor:
        n, c, height, width, _ = part.shape
        windows = part.reshape(n, c, height, width, *size).permute(0, 1, 4, 5, 2, 3)
        return _unframed(windows, x, frame, step, gap)

    return secret(spread.map(back))


@handles(aten.avg_pool2d.default)
def avg_pool2d(
    x: SecretTensor, kernel: Sequence[int], stride: Sequence[int] = (), padding: Sequence[int] = (0,),
    ceil_mode: bool = False, count_include_pad: bool = True, divisor_override: int | None = None,
) -> SecretTensor:  # fmt: skip
    """The mean of each window."""
    size, step, pad = _pairs(kernel, stride or kernel, padding)
    frame = _frame(x, size, step, pad, (1, 1), ceil_mode)
    summed = x.value.map(lambda part: _windows(part, frame, size, step, (1, 1)).sum((2, 3)))
    shares = _shares(x, frame, size, step, pad, ceil_mode, count_include_pad, divisor_override)
    return secret((summed * shares).map(lambda part: part.reshape(*x.shape[:-2], *part.shape[-2:])))


@handles(aten.avg_pool2d_backward.default)
def avg_pool2d_backward(
    grad: Any, x: SecretTensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], ceil_mode: bool,
    count_include_pad: bool, divisor_override: int | None,
) -> SecretTensor:  # fmt: skip
    """The gradient, spread evenly."""
    size, step, pad = _pairs(kernel, stride or kernel, padding)
    frame = _frame(x, size, step, pad, (1, 1), ceil_mode)

    def back(part: torch.Tensor) -> torch.Tensor:
        part = part.reshape(-1, *part.shape[-3:])
        windows = part[:, :, None, None].expand(-1, -1, *size, -1, -1)
        return _unframed(windows, x, frame, step, (1, 1))

    shares = _shares(x, frame, size, step, pad, ceil_mode, count_include_pad, divisor_override)
    return secret((number(grad, x.value.engine) * shares).map(back))


Frame = tuple[int, int, int, int]


def _frame(x: SecretTensor, size: Pair, step: Pair, pad: Pair, gap: Pair, ceil_mode: bool) -> Frame:
    """What is added left, right, above and below so that the windows cover it to the row; negative: left out."""
    image = torch.empty(1, *x.shape[-2:], device="meta")
    out = torch.nn.functional.max_pool2d(image, size, step, pad, gap, ceil_mode).shape[1:]
    ends = [(out[at] - 1) * step[at] + gap[at] * (size[at] - 1) + 1 - pad[at] - x.shape[at - 2] for at in (0, 1)]
    return pad[1], ends[1], pad[0], ends[0]


def _windows(part: torch.Tensor, frame: Frame, size: Pair, step: Pair, gap: Pair) -> torch.Tensor:
    image = part.reshape(-1, *part.shape[-3:])
    return columns(torch.nn.functional.pad(image, frame) if any(frame) else image, size, step, (0, 0), gap)


def _unframed(windows: torch.Tensor, x: SecretTensor, frame: Frame, step: Pair, gap: Pair) -> torch.Tensor:
    """The transpose of `_windows`."""
    height, width = x.shape[-2] + frame[2] + frame[3], x.shape[-1] + frame[0] + frame[1]
    image = fold(windows, (height, width), step, (0, 0), gap)
    return torch.nn.functional.pad(image, [-each for each in frame]).reshape(x.shape)


def _shares(x: SecretTensor, frame: Frame, size: Pair, step: Pair, pad: Pair, *how: Any) -> float | torch.Tensor:
    """1 / what each window's sum is divided by: its size, less what PyTorch does not count at the border."""
    ones = torch.ones(1, 1, *x.shape[-2:], dtype=torch.float64)
    counted = _windows(ones, frame, size, step, (1, 1)).sum((2, 3))
    shares = torch.nn.functional.avg_pool2d(ones, size, step, pad, *how) / counted
    first = float(shares.flatten()[0])
    return first if bool((shares == first).all()) else shares


@handles(aten._adaptive_avg_pool2d.default)
def adaptive_avg_pool2d(x: SecretTensor, size: Sequence[int]) -> SecretTensor:
    """Windows of equal size as `avg_pool2d`, others as public means of rows, then of columns."""
    if _uneven(x, size):
        rows, columns = _means(x, size)
        return secret((x.value.bilinear(columns, _by_last)).bilinear(rows, _by_last_but_one))
    return avg_pool2d(x, [have // want for have, want in zip(x.shape[-2:], size, strict=True)])


@handles(aten._adaptive_avg_pool2d_backward.default)
def adaptive_avg_pool2d_backward(grad: Any, x: SecretTensor) -> SecretTensor:
    """Each mean's gradient, spread over its window."""
    if _uneven(x, grad.shape[-2:]):
        rows, columns = (each.map(lambda part: part.t()) for each in _means(x, grad.shape[-2:]))
        given = number(grad, x.value.engine)
        return secret((given.bilinear(columns, _by_last)).bilinear(rows, _by_last_but_one))
    size = [have // want for have, want in zip(x.shape[-2:], grad.shape[-2:], strict=True)]
    return avg_pool2d_backward(grad, x, size, size, (0,), False, True, None)


def _uneven(x: SecretTensor, size: Sequence[int]) -> bool:
    return any(have % want for have, want in zip(x.shape[-2:], size, strict=True))


def _means(x: SecretTensor, size: Sequence[int]) -> tuple[Fixed, Fixed]:
    """Public matrices that take the means of rows and of columns, (results, numbers) each."""
    pool = torch.nn.functional.adaptive_avg_pool1d
    rows, columns = (
        Fixed.constant(x.value.engine, pool(torch.eye(have, dtype=torch.float64)[None], want)[0].t().contiguous())
        for have, want in zip(x.shape[-2:], size, strict=True)
    )
    return rows, columns


def _by_last(image: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    return _mm_last(image, matrix.t().contiguous())


def _by_last_but_one(image: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    return _by_last(image.transpose(-1, -2), matrix).transpose(-1, -2)


@handles(aten.adaptive_max_pool2d.default)
def adaptive_max_pool2d(x: SecretTensor, size: Sequence[int]) -> tuple[SecretTensor, SecretTensor]:
    """Where the windows are of equal size."""
    if _uneven(x, size):
        raise SecretError(
            f"adaptive_max_pool2d of {tuple(x.shape[-2:])} to {tuple(size)} has windows of unequal size"
            f"{program_line()}: choose a size that divides the image, or adaptive_avg_pool2d."
        )
    return max_pool2d(x, [have // want for have, want in zip(x.shape[-2:], size, strict=True)])


@handles(aten.adaptive_max_pool2d_backward.default)
def adaptive_max_pool2d_backward(grad: Any, x: SecretTensor, indices: SecretTensor) -> SecretTensor:
    """The gradient, where the largest was."""
    size = [have // want for have, want in zip(x.shape[-2:], grad.shape[-2:], strict=True)]
    return max_pool2d_backward(grad, x, size, size, (0,), (1,), False, indices)


@handles(aten.upsample_nearest2d_backward.default)
def upsample_nearest2d_backward(
    grad: Any, output_size: Sequence[int], input_size: Sequence[int], *scales: float | None
) -> SecretTensor:
    """The gradients of all pixels that were made of one."""
    height, width = input_size[-2:]
    pixels = torch.arange(height * width, dtype=torch.float64).reshape(1, 1, height, width)
    source = aten.upsample_nearest2d.default(pixels, output_size, *scales).long().reshape(-1)
    flat = grad.value.engine.placed(source)

    def back(part: torch.Tensor) -> torch.Tensor:
        given = part.reshape(*input_size[:2], -1)
        return given.new_zeros(*input_size[:2], height * width).index_add_(2, flat, given).reshape(tuple(input_size))

    return secret(grad.value.map(back))


@handles(aten.upsample_bilinear2d_backward.default)
def upsample_bilinear2d_backward(
    grad: Any, output_size: Sequence[int], input_size: Sequence[int], align: bool, *scales: float | None
) -> SecretTensor:
    """The transposes of the public matrices that stretch rows and columns."""
    rows, columns = (
        Fixed.constant(
            grad.value.engine,
            aten.upsample_linear1d.default(torch.eye(have, dtype=torch.float64)[None], [want], align, scale)[0],
        )
        for have, want, scale in zip(input_size[-2:], output_size, scales or (None, None), strict=True)
    )
    return secret((grad.value.bilinear(columns, _by_last)).bilinear(rows, _by_last_but_one))


@handles(aten.native_group_norm.default)
def native_group_norm(
    x: SecretTensor, weight: Any, bias: Any, examples: int, channels: int, pixels: int, groups: int, eps: float
) -> tuple[SecretTensor, SecretTensor, SecretTensor]:
    """Of each group of channels, less its mean, over its deviation; and both, the latter inverted."""
    grouped = x.reshape(examples, groups, -1)
    variance, mean = var_mean(grouped, [2], correction=0, keepdim=True)
    inverse: Any = torch.rsqrt(variance + eps)
    out: Any = ((grouped - mean) * inverse).reshape(x.shape)
    along = (1, channels, *[1] * (x.dim() - 2))
    out = out if weight is None else out * weight.reshape(along)
    return out if bias is None else out + bias.reshape(along), mean.squeeze(2), inverse.squeeze(2)


@handles(aten._trilinear.default)
def trilinear(
    x: Any, weight: Any, y: Any, first: Sequence[int], second: Sequence[int], third: Sequence[int],
    summed: Sequence[int], unroll: int = 1,
) -> SecretTensor:  # fmt: skip
    """The sum of products of three, each with dimensions of 1 where the others have more: what `nn.Bilinear` is."""
    spread = []
    for each, dims in ((x, first), (weight, second), (y, third)):
        for dim in sorted(dims):
            each = each.unsqueeze(dim)
        spread.append(each)
    return (spread[0] * spread[1] * spread[2]).sum(list(summed))  # type: ignore[no-any-return]


@handles(aten.embedding.default)
def embedding(weight: Any, index: Any, *_: Any, **__: Any) -> SecretTensor:
    """Rows of a table: by a public index for nothing, by a secret one as a product with its one-hot code."""
    engine = engine_of(weight, index)
    table = number(weight, engine)
    if not isinstance(index, SecretTensor):
        return secret(table.map(lambda part: part[index]))
    hot = one_hot(index, weight.shape[0])
    return secret(hot.bilinear(table, _mm_last))


@handles(aten.embedding_dense_backward.default)
def embedding_backward(grad: Any, index: Any, rows: int, padding: int = -1, by_frequency: bool = False) -> SecretTensor:
    """Gradients added into the rows that were looked up; none into the one of padding."""
    if by_frequency:
        raise SecretError(
            "embedding with scale_grad_by_freq=True has no protocol: leave it out, which adds the gradients up."
        )
    engine = engine_of(grad, index)
    given = number(grad, engine).map(lambda part: part.reshape(-1, part.shape[-1]))
    if isinstance(index, SecretTensor):
        hot = one_hot(index, rows).map(lambda part: part.reshape(-1, rows).t())
        into = hot.bilinear(given, _mm)
    else:
        flat = engine.placed(index.reshape(-1))
        into = given.map(lambda part: part.new_zeros(rows, part.shape[-1]).index_add_(0, flat, part))
    if padding < 0:
        return secret(into)
    return secret(into * (torch.arange(rows) != padding).to(torch.int64)[:, None])


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


def _pairs(*given: Sequence[int]) -> tuple[Pair, ...]:
    """Each as (vertical, horizontal); one number stands for both."""
    return tuple((each[0], each[-1]) for each in given)


def _grown(size: Sequence[int], kernel: Sequence[int], how: tuple[Pair, Pair, Pair], more: Sequence[int]) -> Pair:
    """The size of a transposed convolution's result."""
    height, width = (
        (size[at] - 1) * how[0][at] - 2 * how[1][at] + how[2][at] * (kernel[at] - 1) + more[at % len(more)] + 1
        for at in (0, 1)
    )
    return height, width


def _how(flat: bool, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]) -> tuple[Pair, Pair, Pair]:
    """In one dimension the images have a height of 1, along which nothing moves."""
    if flat:
        return (1, stride[0]), (0, padding[0]), (1, dilation[0])
    return (stride[0], stride[-1]), (padding[0], padding[-1]), (dilation[0], dilation[-1])
