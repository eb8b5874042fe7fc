"""Convolutions modulo 2⁶⁴ as matrix products of unfolded images."""

import torch

from hansa.mpc.protocol import Ring
from hansa.mpc.ring.products import matmul

Pair = tuple[int, int]


def columns(x: Ring, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair = (1, 1)) -> Ring:
    """Every window of an image as a column.

    Args:
      x: shape (N, C, H, W), any integer dtype.
      kernel, stride, padding, dilation: (vertical, horizontal).

    Returns:
      Shape (N, C, kernel height, kernel width, H', W'): a view where nothing is padded.
    """
    if any(padding):
        x = torch.nn.functional.pad(x, (padding[1], padding[1], padding[0], padding[0]))
    n, c, height, width = x.shape
    out = [
        (size - d * (k - 1) - 1) // s + 1
        for size, k, s, d in zip((height, width), kernel, stride, dilation, strict=True)
    ]
    steps = x.stride()
    return x.as_strided(
        (n, c, *kernel, *out),
        (
            steps[0],
            steps[1],
            steps[2] * dilation[0],
            steps[3] * dilation[1],
            steps[2] * stride[0],
            steps[3] * stride[1],
        ),
        x.storage_offset(),
    )


def fold(windows: Ring, size: Pair, stride: Pair, padding: Pair, dilation: Pair = (1, 1)) -> Ring:
    """The transpose of `columns`: windows of shape (N, C, kh, kw, H', W') summed where they overlap, (N, C, *size)."""
    n, c, kh, kw, height, width = windows.shape
    out = windows.new_zeros((n, c, size[0] + 2 * padding[0], size[1] + 2 * padding[1]))
    for i in range(kh):
        for j in range(kw):
            top, left = i * dilation[0], j * dilation[1]
            out[:, :, top : top + stride[0] * height : stride[0], left : left + stride[1] * width : stride[1]] += (
                windows[:, :, i, j]
            )
    return out[:, :, padding[0] : padding[0] + size[0], padding[1] : padding[1] + size[1]]


def conv2d(x: Ring, weight: Ring, stride: Pair, padding: Pair, dilation: Pair = (1, 1), groups: int = 1) -> Ring:
    """A cross-correlation as `torch.nn.functional.conv2d`: x (N, C, H, W), weight (O, C / groups, kh, kw)."""
    windows = columns(x, (weight.shape[2], weight.shape[3]), stride, padding, dilation)
    n, _, kh, kw, height, width = windows.shape
    outs = []
    for group in range(groups):
        channels, filters = x.shape[1] // groups, weight.shape[0] // groups
        part = windows[:, group * channels : (group + 1) * channels]
        rows = part.permute(0, 4, 5, 1, 2, 3).reshape(n * height * width, channels * kh * kw)
        kernel = weight[group * filters : (group + 1) * filters].reshape(filters, -1).t().contiguous()
        outs.append(matmul(rows, kernel).reshape(n, height, width, filters).permute(0, 3, 1, 2))
    return (outs[0] if groups == 1 else torch.cat(outs, 1)).contiguous()
