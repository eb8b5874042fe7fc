"""Approximations: their errors over their ranges, on every protocol; and what is computed only when it is asked for."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from hansa.mpc.session import Session, local

WIDE = torch.cat((torch.linspace(-8, 8, 4001), torch.tensor([-3e4, -1e4, -900.0, 900.0, 1e4, 3e4])))


def on_shares(function: Any, x: torch.Tensor, protocol: str, **options: Any) -> torch.Tensor:
    def program(session: Session) -> Any:
        with torch.no_grad():
            return session.reveal(function(session.share(x, session.names[0])))

    result: torch.Tensor = local(program, protocol, **options)[0]
    return result


@pytest.mark.parametrize("protocol", ["plain", "aby3", "pond"])
def test_the_logistic_function_is_within_its_error_everywhere(protocol: str) -> None:
    error = on_shares(torch.sigmoid, WIDE, protocol) - torch.sigmoid(WIDE)
    assert float(error.abs().max()) < 2e-3


def test_gelu_is_within_its_error_everywhere() -> None:
    error = on_shares(F.gelu, WIDE, "plain") - F.gelu(WIDE)
    assert float((error / WIDE.abs().clamp(min=1)).abs().max()) < 2e-3


@pytest.mark.parametrize("protocol", ["aby3", "pond"])
@pytest.mark.parametrize("size", [2, 3, 10, 16, 40])
def test_the_first_of_several_largest_is_found_by_pairs_and_by_tournament(protocol: str, size: int) -> None:
    x = torch.randint(0, 4, (5, size), generator=torch.Generator().manual_seed(size)).float()

    def place(secret: Any) -> Any:
        return torch.stack((secret.max(1).values, secret.argmax(1).float()))

    value, index = on_shares(place, x, protocol)
    assert torch.equal(value, x.max(1).values)
    assert all(int(index[row]) in torch.nonzero(x[row] == x[row].max()).flatten().tolist() for row in range(5))


@pytest.mark.parametrize("loss", ["bce", "mse", "cross entropy"])
def test_a_loss_that_nobody_looks_at_is_not_computed(loss: str) -> None:
    losses: dict[str, Any] = {
        "bce": lambda x: F.binary_cross_entropy_with_logits(x, torch.ones(4, 3)),
        "mse": lambda x: F.mse_loss(x, torch.ones(4, 3)),
        "cross entropy": lambda x: F.cross_entropy(x, torch.tensor([0, 1, 2, 0])),
    }
    given = torch.linspace(-2, 2, 12).reshape(4, 3)

    def program(session: Session) -> Any:
        x = session.share(given, session.names[0]).requires_grad_()
        value = losses[loss](x)
        value.backward()
        before = session.report().lines
        trained = {name: line.calls for name, line in before.items()}
        opened = session.reveal(value.detach())
        looked = {name: line.calls for name, line in session.report().lines.items() if name != "reveal"}
        return opened, trained, looked, session.reveal(x.grad)

    opened, trained, looked, gradient = local(program, "plain")[0]
    clear = given.clone().requires_grad_()
    losses[loss](clear).backward()
    assert abs(float(opened) - float(losses[loss](given))) < 5e-3
    assert float((gradient - clear.grad).abs().max()) < 1e-3
    assert sum(looked.values()) > sum(trained.values()), "the value cost nothing when it was asked for"
