"""A party that does what it likes is caught before anything is opened; what is not covered is refused."""

import copy
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.mpc.test_transcripts import chi_square

from hansa.core.checkpoint import Buffer
from hansa.core.errors import ConfigError, ProtocolError, SecretError, Unreachable
from hansa.mpc.aby3.malicious import MaliciousAby3
from hansa.mpc.protocol import Protocol, Share
from hansa.mpc.ring import matmul, wide
from hansa.mpc.session import Session, local
from hansa.runtimes.mesh.local import LocalMesh, together

NAMES = ("a", "b", "c")
X = torch.tensor([[0, 1, -1], [2**31, -(2**31), 12345]])
BIG = torch.tensor([0, 1, -1, 2**61, -(2**61), 2**40 + 12345])


class Tampering(LocalMesh):
    """A mesh that changes one bit of one of its messages."""

    heard: bytearray
    flip: tuple[int, int] | None = None  # which message, counted from 0, and which of its bits
    sent: int = 0
    flipped: str = ""

    def send(self, to: str, tag: str, buffers: Sequence[Buffer]) -> None:
        if tag not in ("key", "input"):  # another key or another input is no deviation: it is that party's choice
            if self.flip is not None and self.sent == self.flip[0]:
                copies = [bytearray(each) for each in buffers]
                at = random.Random(self.flip[1]).randrange(len(copies))
                bit = self.flip[1] % (8 * len(copies[at]))
                copies[at][bit // 8] ^= 1 << (bit % 8)
                buffers, self.flipped = [bytes(each) for each in copies], tag
            self.sent += 1
        super().send(to, tag, buffers)

    def recv(self, sender: str, tag: str, deadline_s: float | None = None) -> list[Buffer]:
        buffers = super().recv(sender, tag, deadline_s)
        self.heard += b"".join(bytes(each) for each in buffers)
        return buffers


def play(
    program: Callable[[Protocol, Callable[[torch.Tensor], Share]], Share], flip: tuple[str, int, int] | None = None
) -> tuple[list[Any], list[Tampering]]:
    """What every party sees, or the error that it gets; and their meshes."""
    meshes = [Tampering(mesh.me, NAMES, mesh._links, mesh._lost) for mesh in LocalMesh.of(NAMES)]

    def party(mesh: LocalMesh) -> Any:
        assert isinstance(mesh, Tampering)
        mesh.heard = bytearray()
        protocol = MaliciousAby3(mesh)
        mesh.heard.clear()
        if flip is not None and flip[0] == mesh.me:
            mesh.flip = flip[1:]
        try:
            share = program(protocol, lambda value: protocol.input(value if mesh.me == "a" else None, value.shape, "a"))
            return protocol.open(share)
        except (ProtocolError, Unreachable) as error:
            mesh.leave()
            return error

    return together(meshes, party), meshes


OPERATIONS: dict[str, tuple[Callable[..., Share], torch.Tensor]] = {
    "input": (lambda p, given: given(BIG), BIG),
    "sum": (lambda p, given: given(X) - given(X).times(3) + p.constant(torch.full_like(X, -7)), -2 * X - 7),
    "product": (lambda p, given: p.bilinear(given(X), given(X), torch.mul), X * X),
    "three factors": (
        lambda p, given: p.bilinear(p.bilinear(given(X), given(X), torch.mul), given(-X >> 31), torch.mul),
        X * X * (-X >> 31),
    ),
    "matrix": (lambda p, given: p.bilinear(given(X >> 2), given(X.t().contiguous()), matmul), (X >> 2) @ X.t()),
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_arithmetic_is_exact(operation: str) -> None:
    program, wanted = OPERATIONS[operation]
    results, _ = play(program)
    assert all(torch.equal(result, wanted) for result in results), results


@pytest.mark.parametrize("shift", [1, 16, 24, 40])
def test_truncation_is_off_by_at_most_two_units(shift: int) -> None:
    generator = torch.Generator().manual_seed(shift)
    x = torch.randint(-(2**61), 2**61, (20_000,), generator=generator)
    (result, *_), _ = play(lambda p, given: p.truncate(given(x), shift))
    error = result - (x >> shift)
    assert int(error.abs().max()) <= 2
    if shift > 1:
        assert abs(float(error.double().mean()) - 0.5) < 0.1  # as rounding to the nearest


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_truncation_is_right_in_ten_million_cases_up_to_the_range() -> None:
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randint(-(2**61), 2**61, (500_000,), generator=generator)
        (result, *_), _ = play(lambda p, given, x=x: p.truncate(given(x), 16))  # type: ignore[misc]
        assert int((result - (x >> 16)).abs().max()) <= 2


SMALL = torch.tensor([[0, 1, -1], [1000, -2000, 12345]])


def circuit(protocol: Protocol, given: Callable[[torch.Tensor], Share]) -> Share:
    """Inputs, a product, a scaled matrix product, a truncation, and sums."""
    x, y = given(SMALL << 10), given(SMALL.t().contiguous() << 16)
    scaled = protocol.bilinear(x, y, matmul, 16)
    return protocol.bilinear(scaled, scaled, torch.mul, 20) + protocol.truncate(scaled, 10)


def caught(seed: int) -> bool:
    """Whether a changed bit in one message is an error at an honest party, and no honest party takes a wrong result.

    (Who lies to one party in the very last message of all leaves the other with what is right.)
    """
    choose = random.Random(seed)
    cheat, messages = choose.choice(NAMES), 15
    results, meshes = play(circuit, (cheat, choose.randrange(messages), choose.randrange(1 << 20)))
    assert any(mesh.flipped for mesh in meshes), "no message was changed"
    honest = [result for name, result in zip(NAMES, results, strict=True) if name != cheat]
    taken = [result for result in honest if not isinstance(result, Exception)]
    return len(taken) < 2 and all(right(result) for result in taken)


def right(result: torch.Tensor) -> bool:
    products = SMALL @ SMALL.t()
    # Two units of a scaled product, and those of what follows.
    return bool(((result - (products * products + products)).abs() <= 2 + (products.abs() >> 7)).all())


def test_nobody_is_caught_who_is_honest() -> None:
    results, meshes = play(circuit)
    assert all(right(result) for result in results), results
    assert min(mesh.sent for mesh in meshes) >= 15


def test_a_changed_bit_in_any_message_is_caught() -> None:
    assert all(caught(seed) for seed in range(12))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_changed_bit_is_caught_in_a_thousand_tries() -> None:
    assert sum(caught(seed) for seed in range(1000)) == 1000


def test_a_consistent_lie_about_a_share_is_caught() -> None:
    """A party that computes on with another share, instead of changing a message."""

    def lying(protocol: Protocol, given: Callable[[torch.Tensor], Share]) -> Share:
        share = given(X)
        if protocol.mesh.me == "b":
            share = type(share)((share.parts[0] ^ 1, *share.parts[1:]))
        return protocol.bilinear(share, share, torch.mul)

    results, _ = play(lying)
    assert all(isinstance(results[at], ProtocolError) for at in (0, 2)), results
    assert "deviated from the protocol" in str(results[0]) + str(results[2])


def test_what_a_party_receives_is_uniform() -> None:
    x = torch.full((4000,), 3)
    _, meshes = play(lambda p, given: p.truncate(p.bilinear(given(x), given(x), torch.mul), 16))
    for mesh in meshes:
        heard = bytes(mesh.heard[: 2 * 4000 * 18])  # inputs' shares and codes; what is opened comes after them
        assert 255 - 6.5 * 22.6 < chi_square(heard) < 255 + 6.5 * 22.6, mesh.me


def test_masks_hide_what_is_truncated() -> None:
    """What is opened has the same distribution whatever the number: its top bits are those of the mask."""

    def opened(value: int) -> np.ndarray:
        prgs = [wide.Prg(bytes([at]) * 16) for at in range(3)]
        masks = [wide.drawn(prg, torch.Size((20_000,)), 103) for prg in prgs]
        total = wide.split(torch.full((20_000,), value + (1 << 62)))
        for mask in masks:
            total = wide.added(total, mask)
        return np.stack([total[at].numpy() & 255 for at in range(3)])

    for value in (0, -(2**61), 2**61 + 5):
        for row in opened(value):
            assert 255 - 6.5 * 22.6 < chi_square(row.astype(np.uint8).tobytes()) < 255 + 6.5 * 22.6


def test_linear_regression_trains_and_comparisons_are_refused() -> None:
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(40, 3, generator=generator), torch.randn(40, 1, generator=generator)

    def train(model: Any, a: Any, b: Any) -> Any:
        optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            optimiser.zero_grad()
            F.mse_loss(model(a), b).backward()
            optimiser.step()
        return model.state_dict()

    start = torch.nn.Linear(3, 1)

    def program(session: Session) -> Any:
        a, b = session.share(x, session.names[0]), session.share(y, session.names[1])
        with pytest.raises(SecretError, match="a comparison is not covered by security='malicious'"):
            torch.relu(a)
        return session.reveal(train(session.share_module(copy.deepcopy(start), session.names[2]), a, b))

    for opened in local(program, security="malicious"):
        for name, wanted in train(copy.deepcopy(start), x, y).items():
            assert float((opened[name] - wanted).abs().max()) < 1e-3


def test_options_that_do_not_go_together_are_named() -> None:
    with pytest.raises(ConfigError, match="security='malicious' is aby3's"):
        local(lambda session: None, "pond", security="malicious")
    with pytest.raises(ConfigError, match="truncation='fast'"):
        local(lambda session: None, "aby3", security="malicious", truncation="fast")
    with pytest.raises(ConfigError, match="security='perfect'"):
        local(lambda session: None, "aby3", security="perfect")


def test_measured_costs_are_the_declared_ones() -> None:
    n = 500
    x = torch.arange(n)

    def party(mesh: LocalMesh) -> dict[str, tuple[int, int, Any]]:
        protocol = MaliciousAby3(mesh)
        measured = {}

        def measure(name: str, run: Callable[[], Any]) -> Any:
            before, rounds = sum(mesh.counters.sent_bytes.values()), mesh.counters.rounds
            result = run()
            sent = sum(mesh.counters.sent_bytes.values()) - before
            measured[name] = sent, mesh.counters.rounds - rounds, protocol.cost(name, n)
            return result

        share = measure("input", lambda: protocol.input(x if mesh.me == "a" else None, x.shape, "a"))
        measure("bilinear", lambda: protocol.bilinear(share, share, torch.mul))
        measure("bilinear_shift", lambda: protocol.bilinear(share, share, torch.mul, 8))
        measure("truncate", lambda: protocol.truncate(share, 8))
        measure("open", lambda: protocol.open(share))
        return measured

    results = together(LocalMesh.of(NAMES), party)
    for name, (_, _, declared) in results[0].items():
        assert max(each[name][0] for each in results) == declared.bytes_each, name
        assert max(each[name][1] for each in results) <= declared.rounds, name
