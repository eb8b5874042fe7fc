"""Convolutions and pooling in all their forms, forward and backward, against PyTorch's."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from hansa.core.errors import SecretError
from hansa.mpc.session import Session, local


def image(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


LAYERS: dict[str, tuple[Callable[..., torch.Tensor], tuple[torch.Tensor, ...]]] = {
    "transposed": (lambda x, w: F.conv_transpose2d(x, w), (image(2, 3, 4, 5), image(3, 2, 2, 3))),
    "transposed, with all": (
        lambda x, w, b: F.conv_transpose2d(x, w, b, stride=(2, 3), padding=1, output_padding=(1, 2), dilation=(1, 2)),
        (image(2, 3, 4, 3), image(3, 2, 3, 2), image(2)),
    ),
    "transposed, wider than its steps": (
        lambda x, w: F.conv_transpose2d(x, w, output_padding=1, dilation=2),
        (image(1, 2, 3, 3), image(2, 1, 2, 2)),
    ),
    "transposed in groups": (
        lambda x, w: F.conv_transpose2d(x, w, groups=2, stride=2), (image(1, 4, 3, 3), image(4, 3, 2, 2)),
    ),
    "transposed in one dimension": (
        lambda x, w, b: F.conv_transpose1d(x, w, b, stride=2, padding=1, output_padding=1),
        (image(2, 3, 5), image(3, 2, 3), image(2)),
    ),
    "max, padded": (lambda x: F.max_pool2d(x - 5, 3, 2, 1), (image(2, 2, 7, 6),)),
    "max, rounded up": (lambda x: F.max_pool2d(x - 5, 2, 2, ceil_mode=True), (image(2, 1, 5, 7),)),
    "max, with all": (lambda x: F.max_pool2d(x, (3, 2), (2, 3), (1, 1), (2, 1), ceil_mode=True), (image(1, 2, 8, 8),)),
    "max of what waits": (lambda x: F.max_pool2d(x * 0.37 * x - 9, 3, 2, 1), (image(1, 2, 6, 6),)),
    "max of one image": (lambda x: F.max_pool2d(x, 2, padding=1), (image(2, 4, 4),)),
    "max in one dimension": (lambda x: F.max_pool1d(x, 3, 2, 1), (image(2, 2, 7),)),
    "mean, rounded up": (lambda x: F.avg_pool2d(x, 3, 2, ceil_mode=True), (image(2, 2, 6, 8),)),
    "mean, padded and rounded up": (lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True), (image(2, 2, 6, 8),)),
    "mean of what is there": (
        lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True, count_include_pad=False), (image(2, 2, 6, 8),),
    ),
    "mean by another divisor": (lambda x: F.avg_pool2d(x, 2, 1, 1, divisor_override=3), (image(2, 2, 5),)),
}  # fmt: skip


def gradients(layer: Callable[..., torch.Tensor], given: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    """The layer's result, and its gradients under weights that differ from place to place."""
    leaves = [each.clone().requires_grad_() for each in given]
    out = layer(*leaves)
    (out * (torch.arange(out.numel()).reshape(out.shape) % 5 - 1.5)).sum().backward()
    return [out.detach(), *(each.grad for each in leaves if each.grad is not None)]


def agree(layer: str, protocol: str) -> None:
    function, given = LAYERS[layer]

    def program(session: Session) -> Any:
        return session.reveal(gradients(function, tuple(session.share(each, session.names[0]) for each in given)))

    for got, wanted in zip(local(program, protocol)[0], gradients(function, given), strict=True):
        assert got.shape == wanted.shape
        assert float((got - wanted).abs().max()) <= 5e-3


@pytest.mark.parametrize("layer", LAYERS)
def test_layers_and_their_gradients_are_pytorchs(layer: str) -> None:
    agree(layer, "plain")


@pytest.mark.parametrize("protocol", ["aby3", "pond"])
@pytest.mark.parametrize("layer", ["transposed, with all", "max, padded", "mean of what is there"])
def test_and_so_they_are_on_shares(layer: str, protocol: str) -> None:
    agree(layer, protocol)


def test_three_dimensions_are_refused_with_a_remedy() -> None:
    def program(session: Session) -> None:
        x = session.share(image(1, 1, 2, 3, 3), session.names[0])
        with pytest.raises(SecretError, match="convolutions in three dimensions have no protocol: use Conv1d, Conv2d"):
            F.conv3d(x, x)

    local(program, "plain")
