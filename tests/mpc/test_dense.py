"""A dense layer that is one operation gives what PyTorch's own, taken apart, gives: values, gradients, and theirs."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hansa.mpc.session import Session, local

_X = torch.linspace(-2, 2, 15).reshape(5, 3)
_WEIGHTS = {"weight": torch.linspace(-1, 1, 12).reshape(4, 3), "bias": torch.tensor([0.5, -0.25, 1.0, 0.0])}


def _layer(bias: bool = True) -> nn.Linear:
    layer = nn.Linear(3, 4, bias)
    layer.load_state_dict({name: value for name, value in _WEIGHTS.items() if bias or name == "weight"})
    return layer


def _learnt(layer: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    out = layer(x)
    (out * out).sum().backward()
    return [out.detach(), *([x.grad] if x.grad is not None else []), *(p.grad for p in layer.parameters())]


@pytest.mark.parametrize("protocol", ["plain", "aby3", "pond", "two_party"])
@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients_are_those_of_the_layer_in_the_clear(protocol: str, bias: bool) -> None:
    layers = iter([_layer(bias) for _ in range(3)])

    def program(session: Session) -> list[torch.Tensor]:
        layer, x = session.share_module(next(layers)), session.share(_X, session.names[0]).requires_grad_()
        return session.reveal(_learnt(layer, x))

    for opened, right in zip(
        local(program, protocol)[0], _learnt(_layer(bias), _X.clone().requires_grad_()), strict=True
    ):
        assert opened.shape == right.shape and (opened - right).abs().max() < 5e-3


@pytest.mark.parametrize("shape", [(3,), (2, 5, 3)])
@pytest.mark.parametrize("secret", [True, False])
def test_inputs_may_be_public_and_of_any_rank(shape: tuple[int, ...], secret: bool) -> None:
    layer, x = _layer(), torch.linspace(-1, 1, torch.Size(shape).numel()).reshape(shape)
    layers = iter([_layer() for _ in range(3)])

    def program(session: Session) -> list[torch.Tensor]:
        given = session.share(x, session.names[0]) if secret else x
        return session.reveal(_learnt(session.share_module(next(layers)), given))

    for opened, right in zip(local(program)[0], _learnt(layer, x), strict=True):
        assert opened.shape == right.shape and (opened - right).abs().max() < 5e-3


def test_gradients_have_gradients() -> None:
    layers = iter([_layer() for _ in range(3)])

    def penalty(layer: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
        (slope,) = torch.autograd.grad((layer(x) ** 2).sum(), x, create_graph=True)
        (slope * slope).sum().backward()
        return [p.grad for p in layer.parameters()]

    def program(session: Session) -> list[torch.Tensor]:
        x = session.share(_X / 4, session.names[0]).requires_grad_()
        return session.reveal(penalty(session.share_module(next(layers)), x))

    for opened, right in zip(local(program)[0], penalty(_layer(), (_X / 4).requires_grad_()), strict=True):
        assert (opened - right).abs().max() < 2e-2 * max(1.0, float(right.abs().max()))


class _Twice(nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(input)


@pytest.mark.parametrize("make", [lambda: nn.Linear(3, 4), lambda: _Twice(3, 4)])
def test_it_is_an_ordinary_layer_in_all_else(make: Callable[[], nn.Linear]) -> None:
    layers = iter([make() for _ in range(3)])

    def program(session: Session) -> tuple[bool, str, list[str], float]:
        before = next(layers)
        x, right, text = session.share(_X, session.names[0]), before(_X).detach(), repr(before)
        layer = session.share_module(before)
        error = float((session.reveal(layer(x).detach()) - right).abs().max())
        assert isinstance(layer, nn.Linear)
        return repr(layer) == text, type(layer).__name__, list(layer.state_dict()), error

    same, name, names, error = local(program)[0]
    assert same and names == ["weight", "bias"] and error < 5e-3
    assert name == ("_Twice" if make().__class__ is _Twice else "Linear")


def test_a_weight_that_is_public_again_computes_as_always() -> None:
    layers = iter([_layer() for _ in range(3)])

    def program(session: Session) -> float:
        layer = session.share_module(next(layers))
        layer.weight, layer.bias = (nn.Parameter(each.clone()) for each in _WEIGHTS.values())
        return float((layer(_X) - F.linear(_X, *_WEIGHTS.values())).detach().abs().max())

    assert local(program)[0] == 0
