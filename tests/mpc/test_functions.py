"""Approximations: their errors over their ranges, on every protocol; and what is computed only when it is asked for."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from hansa.mpc.functions import reciprocal_of_at_least_one
from hansa.mpc.secret import SecretTensor
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


@pytest.mark.parametrize("protocol", ["plain", "aby3"])
@pytest.mark.parametrize(
    ("kind", "error"), [("spline", 2e-3), ("three", 0.38), ("five", 0.02), ("exact", 3e-4), ("chebyshev", 7e-3)]
)
def test_every_kind_of_sigmoid_is_within_its_error(kind: str, error: float, protocol: str) -> None:
    x = WIDE[WIDE.abs() <= 8] if kind == "chebyshev" else WIDE
    assert float((on_shares(torch.sigmoid, x, protocol, sigmoid=kind) - torch.sigmoid(x)).abs().max()) < error


def test_logistic_regression_trains_against_a_party_that_deviates() -> None:
    """A polynomial needs no comparison, which malicious security does not cover."""
    x = torch.tensor([[1.0, 2], [-1, 0.5], [2, -1], [-2, -2]])
    y = torch.tensor([[1.0], [0], [1], [0]])

    def ran(model: torch.nn.Module, rows: torch.Tensor, labels: torch.Tensor) -> Any:
        optimiser = torch.optim.SGD(model.parameters(), lr=0.5)
        for _ in range(5):
            optimiser.zero_grad()
            F.binary_cross_entropy_with_logits(model(rows), labels).backward()
            optimiser.step()
        return model.state_dict()

    start = torch.nn.Linear(2, 1)  # made once: PyTorch's generator is one for all parties, which are threads

    def program(session: Session) -> Any:
        model = session.share_module(copy.deepcopy(start))
        return session.reveal(ran(model, session.share(x, session.names[0]), session.share(y, session.names[1])))

    got = local(program, security="malicious", sigmoid="chebyshev")[0]
    wanted = ran(start, x, y)
    assert all(float((got[key] - wanted[key]).abs().max()) < 2e-2 for key in wanted)


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


@pytest.mark.parametrize("protocol", ["plain", "aby3", "pond"])
@pytest.mark.parametrize("classes", [1, 2, 10, 32, 33])
def test_softmax_is_within_its_error_for_any_logits(classes: int, protocol: str) -> None:
    draw = torch.Generator().manual_seed(classes)
    x = torch.cat([torch.randn(60, classes, generator=draw) * scale for scale in (1, 10, 1000)])
    x = torch.cat((x, torch.zeros(1, classes)))
    error = on_shares(lambda secret: torch.softmax(secret, 1), x, protocol) - torch.softmax(x, 1)
    assert float(error.abs().max()) < 1e-3


@pytest.mark.parametrize("protocol", ["plain", "aby3"])
@pytest.mark.parametrize("largest", [1, 2, 3, 10, 32, 33])
def test_reciprocals_of_a_known_range_are_within_their_error(largest: int, protocol: str) -> None:
    x = torch.linspace(1, largest, 500)
    got = on_shares(lambda secret: SecretTensor(reciprocal_of_at_least_one(secret.value, largest)), x, protocol)
    assert float(((got - 1 / x).abs() - 2.0**-15 / x).max()) < 3 * 2.0**-16


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
