"""What PyTorch computes in the clear, computed on secrets: forward, backward, optimisers."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hansa.core.errors import ConfigError, DataError, SecretError
from hansa.mpc.secret import SecretTensor
from hansa.mpc.session import Session, local

MIXED = torch.tensor([5, 2, 3, 0, 4, 1])
A = torch.linspace(-3, 3, 24).reshape(4, 6)
B = torch.linspace(0.5, 4, 24).reshape(4, 6).flip(0)


def both(function: Callable[..., Any], *given: torch.Tensor, protocol: str = "plain") -> tuple[Any, Any]:
    """A function of secrets, revealed, and the same function of the values."""

    def program(session: Session) -> Any:
        return session.reveal(function(*(session.share(each, session.names[0]) for each in given)))

    with torch.no_grad():
        return local(program, protocol)[-1], function(*given)


# operation, inputs, largest error
OPERATIONS: dict[str, tuple[Callable[..., Any], tuple[torch.Tensor, ...], float]] = {
    "add": (lambda a, b: a + b, (A, B), 1e-4),
    "add a constant": (lambda a: 1.5 + a - 3, (A,), 1e-4),
    "subtract from": (lambda a: 2 - a, (A,), 1e-4),
    "multiply": (lambda a, b: a * b, (A, B), 1e-3),
    "by a public tensor": (lambda a: a * B + B * a, (A,), 1e-3),
    "by a power of two": (lambda a: a * 0.125 - a / 4, (A,), 1e-4),
    "by numbers, twice": (lambda a: a * 0.3 * 0.7 * -1.1, (A,), 1e-3),
    "divide": (lambda a, b: a / b, (A, B), 2e-3),
    "by a constant": (lambda a: a / 7, (A,), 1e-4),
    "reciprocal": (lambda b: 1 / b, (torch.tensor([-90.0, -1, 0.25, 0.3, 2, 1000]),), 1e-3),
    "power": (lambda a: a**3 + a**2, (A,), 1e-2),
    "matrix product": (lambda a, b: a @ b.t(), (A, B), 1e-3),
    "batched product": (lambda a, b: a.view(2, 2, 6) @ b.view(2, 6, 2), (A, B), 1e-3),
    "public matrix": (lambda a: a @ B.t() + (B @ a.t()).t(), (A,), 1e-3),
    "matrix by vector": (lambda a, b: a @ b[0], (A, B), 1e-3),
    "sums": (lambda a: a.sum() + a.sum(0).sum() + a.mean(1, keepdim=True), (A,), 1e-3),
    "variance": (lambda a: a.var(), (A,), 1e-2),
    "slices": (lambda a: a[1:3, ::2] + a[:2, 0:3] + a[0, 1], (A,), 1e-4),
    "index": (lambda a: a[torch.tensor([3, 0])][:, torch.tensor([1, 1])], (A,), 1e-4),
    "reshape": (lambda a: a.t().reshape(3, 8).unsqueeze(1).squeeze().flip(0), (A,), 1e-4),
    "join": (lambda a, b: torch.cat([a, b], 1).sum(0) + torch.stack([a, b]).sum(), (A, B), 1e-3),
    "split": (lambda a: a.split(2, 1)[1] + a.chunk(3, 1)[0] + a.unbind(0)[0][0], (A,), 1e-4),
    "broadcast": (lambda a, b: a[:, :1] * b[:1] + b, (A, B), 1e-3),
    "compare": (lambda a, b: (a > b, a < b, a >= b, a <= b, a == a, a != b, a > 0), (A, B), 0),
    "logic": (lambda a, b: (((a > 0) & (b > 1)), ((a > 0) | (b > 1)), ~(a > 0)), (A, B), 0),
    "where": (lambda a, b: torch.where(a > b, a, b * 2), (A, B), 1e-4),
    "where, publicly": (lambda a, b: torch.where(B > 2, a, b), (A, B), 1e-4),
    "maximum": (lambda a, b: torch.maximum(a, b) - torch.minimum(a, b), (A, B), 1e-4),
    "clamp": (lambda a: a.clamp(-1, 2), (A,), 1e-4),
    "abs and sign": (lambda a: a.abs() + a.sign(), (A,), 1e-4),
    "max": (lambda a: a.max() + a.max(1).values.sum(), (A,), 1e-4),
    "argmax": (lambda b: (b.argmax(1), b.max(0).indices, b.argmax()), (B[:, MIXED] + (B == 2).float(),), 0),
    "sort": (lambda b: (b.sort(1).values, b.flatten().sort(descending=True)), (B[:, MIXED],), 1e-4),
    "topk": (lambda b: b.flatten().topk(5), (B[:, MIXED],), 1e-4),
    "relu": (torch.relu, (A,), 1e-4),
    "leaky relu": (F.leaky_relu, (A,), 1e-4),
    "sigmoid": (torch.sigmoid, (A * 4,), 2e-3),
    "sigmoid far out": (torch.sigmoid, (A * 1000,), 2e-3),
    "tanh": (torch.tanh, (A,), 4e-3),
    "gelu": (F.gelu, (A,), 1e-2),
    "exp": (lambda a: a.exp(), (A,), 0.1),
    "log": (lambda b: b.log(), (B,), 1e-3),
    "roots": (lambda b: b.sqrt() + b.rsqrt() + b**-0.5, (B,), 2e-3),
    "softmax": (lambda a: F.softmax(a * 3, 1) + F.softmax(a - 50, 0), (A,), 5e-3),
    "log softmax": (lambda a: F.log_softmax(a, 1), (A,), 1e-2),
    "mse": (lambda a, b: F.mse_loss(a, b), (A, B), 1e-2),
    "bce": (lambda a: F.binary_cross_entropy_with_logits(a, (B > 2).float()), (A,), 5e-3),
    "cross entropy": (lambda a: F.cross_entropy(a, torch.tensor([0, 5, 2, 1])), (A,), 1e-2),
    "layer norm": (lambda a: F.layer_norm(a, (6,)), (A,), 1e-2),
    "convolution": (lambda a, b: F.conv2d(a.view(1, 1, 4, 6), b.reshape(2, 1, 3, 4), padding=1), (A, B), 1e-2),
    "convolution in one dimension": (
        lambda a, b: F.conv1d(a.view(2, 2, 6), b.reshape(4, 2, 3), stride=2, padding=1), (A, B), 1e-2,
    ),
    "grouped convolution": (
        lambda a, b: F.conv2d(a.view(1, 2, 3, 4), b[:, :4].reshape(4, 1, 2, 2), groups=2, dilation=(1, 2)),
        (A, B),
        1e-2,
    ),
    "max pooling": (lambda a: F.max_pool2d(a.view(1, 1, 4, 6), 2), (A.flip(1),), 1e-4),
    "average pooling": (lambda a: F.avg_pool2d(a.view(1, 1, 4, 6), 2, padding=1), (A,), 1e-4),
    "embedding": (lambda a: F.embedding(torch.tensor([[3, 0], [1, 1]]), a), (A,), 1e-4),
}  # fmt: skip


def close(given: Any, wanted: Any, error: float) -> None:
    if isinstance(wanted, tuple | list):
        for a, b in zip(given, wanted, strict=True):
            close(a, b, error)
        return
    assert given.shape == wanted.shape and given.dtype == wanted.dtype
    assert float((given.double() - wanted.double()).abs().max()) <= error


@pytest.mark.parametrize("operation", OPERATIONS)
def test_operations_give_what_pytorch_gives(operation: str) -> None:
    function, inputs, error = OPERATIONS[operation]
    close(*both(function, *inputs), error)


@pytest.mark.parametrize(
    "operation",
    ["add", "by a power of two", "divide", "matrix product", "compare", "where", "argmax", "sort", "relu", "sigmoid",
     "sigmoid far out",
     "gelu", "log", "roots", "softmax", "cross entropy", "convolution", "max pooling", "embedding"],
)  # fmt: skip
def test_and_so_they_do_on_the_shares_of_three_parties(operation: str) -> None:
    function, inputs, error = OPERATIONS[operation]
    close(*both(function, *inputs, protocol="aby3"), error)


class Images(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2), nn.AvgPool2d(2),
            nn.Flatten(), nn.Linear(3, 4), nn.LayerNorm(4), nn.GELU(), nn.Tanh(), nn.Linear(4, 3),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x.view(-1, 1, 4, 6)[:, :, :, :4])


class Words(nn.Module):
    def __init__(self, recurrent: type[nn.Module]) -> None:
        super().__init__()
        self.recurrent, self.head = recurrent(6, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.recurrent(x.view(-1, 4, 6))[0][:, -1])


MODELS: dict[str, tuple[Callable[[], nn.Module], float]] = {
    "linear": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(24, 3)), 2e-3),
    "mlp": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(24, 8), nn.ReLU(), nn.Linear(8, 3)), 5e-3),
    "images": (Images, 6e-2),
    "gru": (lambda: Words(nn.GRU), 3e-2),
    "lstm": (lambda: Words(nn.LSTM), 3e-2),
}
OPTIMISERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-2),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, foreach=False),
}


def trained(module: nn.Module, x: Any, y: Any, optimiser: str, steps: int) -> nn.Module:
    stepper = OPTIMISERS[optimiser](module.parameters())
    for _ in range(steps):
        stepper.zero_grad()
        F.cross_entropy(module(x), y).backward()
        stepper.step()
    return module


@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize("model", MODELS)
def test_training_gives_the_parameters_of_training_in_the_clear(model: str, optimiser: str) -> None:
    make, error = MODELS[model]
    torch.manual_seed(3)
    x, y = torch.randn(8, 4, 6), F.one_hot(torch.arange(8) % 3, 3).float()
    module = make()
    start = {name: value.clone() for name, value in module.state_dict().items()}

    def program(session: Session) -> Any:
        mine = make()
        mine.load_state_dict(start)
        owner = session.names[0]
        secret = session.share_module(mine, owner)
        assert all(isinstance(each, SecretTensor) for each in secret.parameters())
        return session.reveal(
            trained(secret, session.share(x, owner), session.share(y, owner), optimiser, 3).state_dict()
        )

    got, wanted = local(program, "plain")[0], trained(module, x, y, optimiser, 3).state_dict()
    for name in wanted:
        difference = (got[name].double() - wanted[name]).abs()
        # Adam's step has the size of its learning rate however small the gradient: a few signs are rounding's.
        assert float(difference.mean() if optimiser == "adam" else difference.max()) <= error, name


def test_a_secret_class_index_is_a_label_like_any_other() -> None:
    x, y = torch.randn(6, 3), torch.arange(6) % 3
    close(*both(lambda a, b: F.cross_entropy(a, b), x, y, protocol="aby3"), 1e-2)
    table, words = torch.randn(5, 2), torch.tensor([[4, 0], [2, 2]])
    close(*both(lambda a, b: F.embedding(b, a), table, words, protocol="aby3"), 1e-3)


@pytest.mark.parametrize(
    ("what", "opens"),
    [
        ("item", lambda x: x.sum().item()),
        ("bool", lambda x: bool(x.sum() > 0)),
        ("float", lambda x: float(x.sum())),
        ("numpy", lambda x: x.numpy()),
        ("tolist", lambda x: x.tolist()),
        ("if", lambda x: 1 if x.sum() > 0 else 0),
    ],
)
def test_reading_a_value_is_an_error_that_names_the_line(what: str, opens: Callable[[torch.Tensor], Any]) -> None:
    def program(session: Session) -> str:
        secret = session.share(A, session.names[0])
        assert "SecretTensor(shape=(4, 6)" in f"{secret!r} {secret} {secret:}"
        with pytest.raises(SecretError, match=r"would open a secret at .*test_secret_tensor.py:\d+ .*session.reveal"):
            opens(secret)
        return "refused"

    assert local(program, "plain") == ["refused"]


def test_an_operation_without_protocol_is_named_with_its_neighbours() -> None:
    def program(session: Session) -> None:
        with pytest.raises(
            SecretError, match=r"'_linalg_\w+' has no protocol on secret tensors at .*: (nearest are|write it with)"
        ):
            torch.linalg.det(session.share(torch.eye(3), session.names[0]))

    local(program, "plain")


def test_only_the_receivers_learn_what_is_revealed() -> None:
    def program(session: Session) -> Any:
        secret = session.share(lambda: A, session.names[1])
        assert session.reveal({"x": secret}, to=session.names[2])["x"] is None or session.me == session.names[2]
        with pytest.raises(ConfigError, match="'nobody'"):
            session.reveal(secret, to="nobody")
        value = session.reveal(secret, to=[session.names[0], session.names[1]])
        opened = session.report().revealed[0]
        assert opened.parties == (session.names[2],) and opened.shape == (4, 6)
        assert "revealed to" in str(session.report())
        return value

    first, second, third = local(program, "aby3")
    close(first, A, 1e-4)
    close(second, A, 1e-4)
    assert third is None


def test_bad_input_and_other_settings_are_named() -> None:
    def shares(value: torch.Tensor) -> Callable[[Session], Any]:
        return lambda session: session.share(value, session.names[0])

    with pytest.raises(DataError, match=r"the input of 'party-0', shape \(2,\), holds NaN"):
        local(shares(torch.tensor([1.0, float("nan")])), "plain")
    with pytest.raises(DataError, match="must be below 7.03687e"):
        local(shares(torch.tensor([1e15])), "plain")
    with pytest.raises(ConfigError, match="protocol='magic': choose one of"):
        local(shares(A), "magic")
    with pytest.raises(ConfigError, match="takes one argument"):
        local(lambda: None, "plain")  # type: ignore[arg-type, misc]
    with pytest.raises(ConfigError, match="'bank' is no party"):
        local(lambda session: session.share(A, "bank"), "plain")
