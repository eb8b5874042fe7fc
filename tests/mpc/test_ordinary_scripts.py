"""What ordinary scripts write, with its gradients, is what PyTorch computes in the clear; what is not is an error."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from hansa.core.errors import SecretError
from hansa.mpc.session import Session, local


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + len(shape)))


LOGITS, CLASSES = drawn(4, 3), torch.tensor([0, 2, 1, 2])
WEIGHTS, ANSWERS = torch.tensor([1.0, 2.0, 0.5]), torch.tensor([0.0, 1, 1, 0])
PIXELS = torch.tensor([[[0, 1], [2, 1]], [[1, 1], [0, 2]]])
ROWS = torch.tensor([[0, 3, 1], [2, 2, 4]])

Case = tuple[Callable[..., Any], tuple[torch.Tensor, ...]]
LOSSES: dict[str, Case] = {
    "weighted classes": (lambda x, y: F.cross_entropy(x, y, weight=WEIGHTS), (LOGITS, CLASSES)),
    "weighted, summed": (lambda x, y: F.cross_entropy(x, y, weight=WEIGHTS, reduction="sum"), (LOGITS, CLASSES)),
    "weighted, each": (lambda x, y: F.cross_entropy(x, y, weight=WEIGHTS, reduction="none"), (LOGITS, CLASSES)),
    "a class ignored": (lambda x, y: F.cross_entropy(x, y, ignore_index=2), (LOGITS, CLASSES)),
    "public classes, weighted": (
        lambda x: F.cross_entropy(x, CLASSES, weight=WEIGHTS, label_smoothing=0.1), (LOGITS,),
    ),
    "public classes, of which one is left out": (
        lambda x: F.cross_entropy(x, torch.tensor([0, -100, 1, 2])), (LOGITS,),
    ),
    "one example": (lambda x, y: F.cross_entropy(x, y), (LOGITS[0], CLASSES[1])),
    "each pixel": (lambda x, y: F.cross_entropy(x, y), (drawn(2, 3, 2, 2), PIXELS)),
    "each pixel, weighted": (lambda x, y: F.cross_entropy(x, y, weight=WEIGHTS), (drawn(2, 3, 2, 2), PIXELS)),
    "one target of two numbers of classes": (
        lambda x, z, y: F.cross_entropy(x, y) + F.cross_entropy(z, y), (LOGITS, drawn(4, 5), CLASSES),
    ),
    "heavier positives": (
        lambda x, y: F.binary_cross_entropy_with_logits(x, y, pos_weight=torch.tensor([3.0])), (drawn(4), ANSWERS),
    ),
    "heavier positives, weighted": (
        lambda x, y: F.binary_cross_entropy_with_logits(x, y, torch.tensor([1.0, 2, 3, 1]), pos_weight=WEIGHTS[1]),
        (drawn(4), ANSWERS),
    ),
    "a row of padding": (lambda w, i: F.embedding(i, w, padding_idx=2), (drawn(5, 3), ROWS)),
    "a row of padding, public index": (lambda w: F.embedding(ROWS, w, padding_idx=2), (drawn(5, 3),)),
    "one index of two tables": (lambda v, w, i: F.embedding(i, v) + F.embedding(i, w), (drawn(5, 3), drawn(7, 3), ROWS)),
}  # fmt: skip


def gradients(function: Callable[..., Any], given: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    """The results, and the gradients of the floats under weights that differ from place to place."""
    leaves = [each.clone().requires_grad_(each.is_floating_point()) for each in given]
    found = function(*leaves)
    outs = list(found) if isinstance(found, list | tuple) else [found]
    steps = [out for out in outs if out.requires_grad]
    sum((out * (torch.arange(out.numel()).reshape(out.shape) % 5 - 1.5)).sum() for out in steps).backward()  # type: ignore[union-attr]
    return [*(out.detach() for out in outs), *(each.grad for each in leaves if each.grad is not None)]


def agree(case: Case, protocol: str = "plain", within: float = 5e-3) -> None:
    function, given = case

    def program(session: Session) -> Any:
        return session.reveal(gradients(function, tuple(session.share(each, session.names[0]) for each in given)))

    wanted = gradients(function, given)
    got = local(program, protocol)[0]
    assert len(got) == len(wanted)
    for ours, theirs in zip(got, wanted, strict=True):
        assert ours.shape == theirs.shape
        assert ours.dtype == theirs.dtype
        assert float((ours.double() - theirs.double()).abs().max()) <= within


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_and_look_ups_take_every_argument(loss: str) -> None:
    agree(LOSSES[loss])


@pytest.mark.parametrize("loss", ["weighted classes", "a class ignored", "each pixel, weighted", "heavier positives"])
def test_and_so_they_do_on_shares(loss: str) -> None:
    agree(LOSSES[loss], "aby3", within=2e-2)


def test_a_public_class_that_is_none_is_an_error() -> None:
    def program(session: Session) -> None:
        x = session.share(LOGITS, session.names[0])
        with pytest.raises(IndexError, match="a target is none of 3 classes, nor ignore_index=-100"):
            F.cross_entropy(x, torch.tensor([0, 3, 1, 2]))

    local(program, "plain")


def test_gradients_by_frequency_are_refused() -> None:
    def program(session: Session) -> None:
        table = session.share(drawn(5, 3), session.names[0]).requires_grad_()
        with pytest.raises(SecretError, match="scale_grad_by_freq=True has no protocol"):
            F.embedding(ROWS, table, scale_grad_by_freq=True).sum().backward()

    local(program, "plain")
