"""Shares on a GPU: a simulated one (`simulated_gpu.py` says what that does not show), and a real one where there is."""

import copy
import json
import subprocess
import sys
from typing import Any

import pytest
import torch
from tests.mpc.test_secret_tensor import OPERATIONS

import hansa.mpc
from hansa.core.errors import ConfigError, SecretError
from hansa.mpc.ring.products import matmul
from hansa.mpc.session import Session, local

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is lent to this run: nothing here shows CUDA")
X = torch.linspace(-2, 2, 12).reshape(4, 3)


# Of every kind one: three parties that are threads take a while, and the slow tests run all.
SOME = ("multiply", "matrix product", "compare", "maximum", "sigmoid", "log", "convolution", "max pooling", "embedding")


def simulated(protocol: str, *names: str) -> dict[str, dict[str, Any]]:
    """What a process with the simulated device printed of these operations, all if none is named."""
    command = [sys.executable, "-m", "tests.mpc.simulated_gpu", protocol, *names]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    found = {line["name"]: line for line in map(json.loads, done.stdout.splitlines())}
    assert set(found) == {"products", "training", *(names or OPERATIONS)} - {"sort", "topk"}
    return found


def test_every_operation_and_a_training_give_the_same_bits_on_the_simulated_device() -> None:
    found = simulated("plain")
    assert {name: line for name, line in found.items() if line["difference"] != 0 or line["error"]} == {}


@pytest.mark.parametrize(
    ("protocol", "names"),
    [
        ("aby3", SOME),
        pytest.param("aby3", (), marks=pytest.mark.slow),
        pytest.param("pond", (), marks=pytest.mark.slow),
    ],
)
def test_shares_compute_on_the_simulated_device(protocol: str, names: tuple[str, ...]) -> None:
    # Truncation rounds at random, by a unit each time: an exponential's ten squarings make 1e-4 of it.
    found = simulated(protocol, *names)
    assert {name: line for name, line in found.items() if line["difference"] > 2e-3 or line["error"]} == {}


@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_refused_at_the_start(device: str) -> None:
    with pytest.raises(ConfigError, match=f"device='{device}': PyTorch .* finds no GPU here"):
        local(lambda session: None, "plain", device=device)


def test_a_number_beyond_the_last_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match=r"device='cuda:2': this machine has 2 GPU\(s\), the last is 'cuda:1'"):
        local(lambda session: None, "plain", device="cuda:2")


@pytest.mark.parametrize("device", ["gpu", "meta", "mps"])
def test_a_device_of_another_kind_is_refused(device: str) -> None:
    with pytest.raises(ConfigError, match=f"device='{device}': choose 'cpu', 'cuda' or 'cuda:N'"):
        local(lambda session: None, "plain", device=device)


@pytest.mark.parametrize("options", [{"protocol": "two_party"}, {"security": "malicious"}])
def test_a_protocol_of_the_processor_says_so(options: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="computes on the processor alone; choose device='cpu', or another protocol"):
        local(lambda session: None, device="cuda", **options)


def test_a_secret_says_its_device_and_goes_to_no_other() -> None:
    def program(session: Session) -> None:
        secret = session.share(X, "party-0")
        assert secret.device == torch.device("cpu") and secret.to("cpu").device == secret.device
        with pytest.raises(SecretError, match="a secret stays where its session computes, on cpu"):
            secret.to("meta")

    local(program, "plain", device="cpu")


@gpu
@pytest.mark.parametrize(
    "shapes", [((3, 5), (5, 2)), ((40, 70), (70, 33)), ((33, 9000), (9000, 35)), ((2, 3, 4), (2, 4, 5))]
)
def test_products_on_a_gpu_are_those_of_the_processor(shapes: Any) -> None:
    a, b = (torch.randint(-(2**63), 2**63 - 1, shape) for shape in shapes)
    assert torch.equal(matmul(a.cuda(), b.cuda()).cpu(), torch.matmul(a, b))


@gpu
@pytest.mark.parametrize("protocol", ["plain", "aby3", "pond"])
def test_a_training_step_on_a_gpu_is_that_of_the_processor(protocol: str) -> None:
    start = torch.nn.Linear(3, 2)

    def program(session: Session) -> Any:
        model = session.share_module(copy.deepcopy(start), owner=session.names[0])
        secret = session.share(X, session.names[0])
        torch.sigmoid(model(secret)).sum().backward()
        assert secret.device.type == session._engine.device.type
        return session.reveal(model.weight.grad)

    found = [hansa.mpc.local(program, protocol, device=device)[0] for device in ("cuda", "cpu")]
    assert found[0].is_cuda
    assert torch.allclose(found[0].cpu(), found[1], atol=1e-3)
