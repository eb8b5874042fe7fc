"""Two parties: every kind of bilinear function is found and computed, and who holds what is hidden from the other."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.mpc.test_protocols import ring
from torch import nn

import hansa.mpc
from hansa.core.errors import ProtocolError, SecretError
from hansa.mpc.protocol import Bilinear
from hansa.mpc.ring import conv2d, matmul
from hansa.mpc.session import Session
from hansa.mpc.two_party import TwoParty, products
from hansa.runtimes.mesh.local import LocalMesh, together


def computed(x: torch.Tensor, y: torch.Tensor, op: Bilinear) -> torch.Tensor:
    def party(mesh: LocalMesh) -> Any:
        protocol = TwoParty(mesh)
        a = protocol.input(x if mesh.me == "a" else None, x.shape, "a")
        b = protocol.input(y if mesh.me == "b" else None, y.shape, "b")
        return protocol.open(protocol.bilinear(a, b, op))

    a, b = together(LocalMesh.of(("a", "b")), party)
    assert torch.equal(a, b)
    return torch.as_tensor(a)


def both_ways(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return torch.cat((matmul(u, v).flatten(), matmul(v, u).sum(1), (u.t() * v).flatten()))


FUNCTIONS: dict[str, tuple[tuple[int, ...], tuple[int, ...], Bilinear]] = {
    "numbers": ((), (), torch.mul),
    "one number and many": ((), (7,), torch.mul),
    "a row and a column": ((5, 1), (1, 4), torch.mul),
    "repeated in the middle": ((3, 1, 2), (3, 4, 2), torch.mul),
    "nothing": ((0, 3), (0, 3), torch.mul),
    "row times matrix": ((1, 6), (6, 5), matmul),
    "matrix times column": ((20, 6), (6, 1), matmul),
    "small times large": ((2, 3), (3, 9), matmul),
    "stacks": ((4, 3, 2), (4, 2, 5), torch.matmul),
    "stack times matrix": ((4, 3, 2), (2, 5), torch.matmul),
    "convolution": ((2, 3, 6, 6), (4, 3, 3, 3), lambda u, v: conv2d(u, v, (2, 1), (1, 0))),
    "several products": ((3, 4), (4, 3), both_ways),
    "operators": ((3, 4), (3, 4), lambda u, v: (u * v) + (u @ v.t()).sum()),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_bilinear_function_is_exact(name: str) -> None:
    left, right, op = FUNCTIONS[name]
    x, y = ring(1, *left), ring(2, *right)
    assert torch.equal(computed(x, y, op), op(x, y))


def test_products_larger_than_a_step_are_computed_in_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_PIECE", 1000)
    x, y = ring(1, 20, 6), ring(2, 6, 3)
    assert torch.equal(computed(x, y, matmul), matmul(x, y))


def test_an_unknown_kind_of_product_is_named() -> None:
    with pytest.raises(SecretError, match="two_party knows no product 'outer'"):
        computed(ring(1, 3), ring(2, 3), lambda u, v: torch.outer(u, v))


@pytest.mark.parametrize("shape", [(), (0,), (1,), (2, 0), (65,)])
def test_operations_take_scalars_and_nothing_at_all(shape: tuple[int, ...]) -> None:
    x = ring(1, *shape, bits=60)

    def party(mesh: LocalMesh) -> Any:
        protocol = TwoParty(mesh)
        a = protocol.input(x if mesh.me == "a" else None, x.shape, "a")
        negative = protocol.negative(a)
        results = protocol.bits(a), protocol.to_arithmetic(negative), protocol.both(negative, negative)
        return [protocol.open(each) for each in (*results, protocol.truncate(a, 3))]

    for bits, number, bit, cut in together(LocalMesh.of(("a", "b")), party):
        assert torch.equal(bits, x)
        assert torch.equal(number, (x < 0).long())
        assert torch.equal(bit, (x < 0).to(torch.int8))
        assert torch.all((cut - (x >> 3)).abs() <= 1)


def test_programs_that_differ_end_in_one_error() -> None:
    def party(mesh: LocalMesh) -> None:
        protocol = TwoParty(mesh)
        value = torch.ones(5 if mesh.me == "a" else 6, dtype=torch.int64)
        protocol.open(protocol.input(value, value.shape, mesh.me))

    with pytest.raises(ProtocolError, match=r"'[ab]' sent .* bytes as 'open' where .* belong: the programs differ"):
        together(LocalMesh.of(("a", "b")), party)


def test_a_party_that_gives_input_sends_nothing() -> None:
    def party(mesh: LocalMesh) -> int:
        protocol = TwoParty(mesh)
        before = sum(mesh.counters.sent_bytes.values())
        share = protocol.input(torch.full((1000,), 7) if mesh.me == "a" else None, (1000,), "a")
        assert len(share.parts[0].unique()) == 1000, "a share that shows the value"
        return sum(mesh.counters.sent_bytes.values()) - before

    assert together(LocalMesh.of(("a", "b")), party) == [0, 0]


def test_a_network_trains_as_in_the_clear() -> None:
    torch.manual_seed(1)
    x, y = torch.randn(20, 5), (torch.rand(20, 1) < 0.5).float()
    start = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 1))

    def program(session: Session) -> Any:
        secret = session.share_module(copy.deepcopy(start))
        a, b = session.share(x, session.names[0]), session.share(y, session.names[-1])
        optimiser = torch.optim.SGD(secret.parameters(), lr=0.5)
        for _ in range(2):
            optimiser.zero_grad()
            nn.functional.binary_cross_entropy_with_logits(secret(a), b).backward()
            optimiser.step()
        return session.reveal(secret.state_dict())

    run: Callable[[str], Any] = lambda protocol: hansa.mpc.local(program, protocol)[0]  # noqa: E731
    plain, shared = run("plain"), run("two_party")
    for name, value in plain.items():
        assert torch.allclose(shared[name], value, atol=1e-3), name


@pytest.mark.slow
def test_a_million_triples_are_products() -> None:
    count = 1_000_000
    held = {"a": (ring(1, count), ring(2, count)), "b": (ring(3, count), ring(4, count))}

    def party(mesh: LocalMesh) -> torch.Tensor:
        protocol = TwoParty(mesh)
        x, y = (protocol.held((part,)) for part in held[mesh.me])
        return protocol.bilinear(x, y, torch.mul).parts[0]

    shares = together(LocalMesh.of(("a", "b")), party)
    a, b = (held["a"][at] + held["b"][at] for at in (0, 1))
    assert torch.equal(shares[0] + shares[1], a * b)
    assert len(shares[0].unique()) == len(shares[1].unique()) == count, "a share that is not random"
