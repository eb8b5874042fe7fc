"""Well-known networks at a small size, and optimisers over many steps, against PyTorch in the clear."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hansa.mpc.session import Session, local


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs),
        )  # fmt: skip
        self.short = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.body(x) + self.short(x))


class Dense(nn.Module):
    def __init__(self, inputs: int, grown: int) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU(), nn.Conv2d(inputs, grown, 3, padding=1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, self.layer(x)], 1)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "lenet": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(100, 16), nn.ReLU(), nn.Linear(16, 5),
    ),
    "alexnet": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 11, 4, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2), nn.Conv2d(4, 6, 5, padding=2),
        nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(6, 5),
    ),
    "vgg": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2, 2), nn.Conv2d(4, 6, 3, padding=1),
        nn.ReLU(), nn.MaxPool2d(2, 2), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(96, 5),
    ),
    "resnet": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 7, 2, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1),
        Block(4, 4, 1), Block(4, 8, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    ),
    "densenet": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), Dense(4, 4), nn.Conv2d(8, 4, 1), nn.AvgPool2d(2), Dense(4, 2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_well_known_networks_answer_and_step_as_in_the_clear(name: str) -> None:
    torch.manual_seed(1)
    x, y = torch.randn(2, 3, 32, 32), torch.tensor([4, 0])
    clear = NETWORKS[name]()
    start = {key: value.clone() for key, value in clear.state_dict().items()}

    def ran(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> tuple[Any, Any]:
        model.eval()  # dropout draws masks that differ
        optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
        F.cross_entropy(model(images), labels).backward()
        optimiser.step()
        return model(images).detach(), model.state_dict()

    def program(session: Session) -> Any:
        mine = NETWORKS[name]()
        mine.load_state_dict(start)
        secret = session.share_module(mine)
        return session.reveal(ran(secret, session.share(x, session.names[0]), session.share(y, session.names[0])))

    (answers, weights), (wanted, learnt) = local(program, "plain")[0], ran(clear, x, y)
    assert answers.shape == (2, 5)
    assert float((answers - wanted).abs().max()) <= 2e-2
    assert all(float((weights[key].double() - value).abs().max()) <= 5e-3 for key, value in learnt.items())


OPTIMISERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, weight_decay=1e-3),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, foreach=False),
}


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_fifty_steps_end_within_a_thousandth(optimiser: str) -> None:
    torch.manual_seed(2)
    x = torch.randn(16, 4)
    y = x @ torch.tensor([[1.0], [-2], [0.5], [3]]) + 1
    clear = nn.Linear(4, 1)
    start = {key: value.clone() for key, value in clear.state_dict().items()}

    def ran(model: nn.Module, rows: torch.Tensor, wanted: torch.Tensor) -> Any:
        stepper = OPTIMISERS[optimiser](model.parameters())
        for _ in range(50):
            stepper.zero_grad()
            F.mse_loss(model(rows), wanted).backward()
            stepper.step()
        return model.state_dict()

    def program(session: Session) -> Any:
        mine = nn.Linear(4, 1)
        mine.load_state_dict(start)
        return session.reveal(ran(session.share_module(mine), session.share(x, "party-0"), session.share(y, "party-0")))

    got, wanted = local(program, "plain")[0], ran(clear, x, y)
    assert max(float((got[key] - wanted[key]).abs().max()) for key in wanted) <= 1e-3
