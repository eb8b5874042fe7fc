"""What one party receives says nothing: uniform bytes, whatever the inputs are."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from hansa.core.checkpoint import Buffer
from hansa.mpc.aby3 import Aby3
from hansa.mpc.aby3.boolean import FEW
from hansa.mpc.pond import Pond
from hansa.mpc.protocol import Protocol, Share
from hansa.mpc.two_party import TwoParty
from hansa.runtimes.mesh.local import LocalMesh, together

NAMES, N = ("a", "b", "c"), 4000
PROTOCOLS: dict[str, Callable[[LocalMesh], Protocol]] = {
    "aby3": Aby3,
    "aby3-fast": lambda mesh: Aby3(mesh, truncation="fast"),
    "pond": Pond,
    "two_party": TwoParty,
}
SECURE = ("aby3", "pond", "two_party")


class Listening(LocalMesh):
    """A mesh that keeps what it receives."""

    heard: bytearray

    def recv(self, sender: str, tag: str, deadline_s: float | None = None) -> list[Buffer]:
        buffers = super().recv(sender, tag, deadline_s)
        self.heard += b"".join(bytes(each) for each in buffers)
        return buffers


def listen(
    kind: str, value: int, run: Callable[[Protocol, Share], Any], owner: str = "a", size: int = N
) -> list[bytes]:
    """What each party receives while an operation runs on a secret that is the same number everywhere."""
    names, size = (NAMES[:2], N // 4) if kind == "two_party" else (NAMES, size)
    meshes = [Listening(mesh.me, names, mesh._links, mesh._lost) for mesh in LocalMesh.of(names)]
    x = torch.full((size,), value)

    def party(mesh: LocalMesh) -> None:
        assert isinstance(mesh, Listening)
        mesh.heard = bytearray()
        protocol = PROTOCOLS[kind](mesh)
        mesh.heard.clear()
        share = protocol.input(x if mesh.me == owner else None, x.shape, owner)
        run(protocol, share)

    together(meshes, party)
    return [bytes(mesh.heard) for mesh in meshes]


OPERATIONS: dict[str, Callable[[Protocol, Share], Any]] = {
    "input": lambda p, x: None,
    "product": lambda p, x: p.bilinear(x, x, torch.mul),
    "scaled product": lambda p, x: p.bilinear(x, x, torch.mul, 16),
    "truncate": lambda p, x: p.truncate(x, 16),
    "negative": lambda p, x: p.negative(x),
    "bits": lambda p, x: p.bits(x),
    "to arithmetic": lambda p, x: p.to_arithmetic(p.negative(x)),
}


def chi_square(heard: bytes) -> float:
    counts = np.bincount(np.frombuffer(heard, np.uint8), minlength=256)
    expected = len(heard) / 256
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("kind", SECURE)
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("value", [0, -1, 0x0123456789AB])
def test_every_party_receives_uniform_bytes(kind: str, operation: str, value: int) -> None:
    for name, heard in zip(NAMES, listen(kind, value, OPERATIONS[operation]), strict=False):
        if len(heard) >= 256 * 20:
            assert 255 - 6.5 * 22.6 < chi_square(heard) < 255 + 6.5 * 22.6, f"{name} in {operation}"


@pytest.mark.parametrize("value", [0, -1, 0x0123456789AB])
def test_many_numbers_are_compared_as_silently_as_few(value: int) -> None:
    for heard in listen("aby3", value, OPERATIONS["to arithmetic"], size=FEW + 1):
        assert 255 - 6.5 * 22.6 < chi_square(heard) < 255 + 6.5 * 22.6


@pytest.mark.parametrize("operation", ["scaled product", "truncate", "to arithmetic"])
@pytest.mark.parametrize("value", [0, 1 << 40])
def test_no_two_messages_to_a_party_say_together_what_one_does_not(operation: str, value: int) -> None:
    for heard in listen("aby3", value, OPERATIONS[operation]):
        words = np.frombuffer(heard[-(len(heard) // (8 * N)) * 8 * N :], np.int64).reshape(-1, N)
        for first, second in itertools.combinations(words, 2):
            for both in (first + second, first - second):
                assert 255 - 6.5 * 22.6 < chi_square(both.tobytes()) < 255 + 6.5 * 22.6


@pytest.mark.parametrize("value", [0, -1, 0x0123456789AB])
def test_fast_truncation_sends_a_uniform_share_that_is_shifted(value: int) -> None:
    for heard in listen("aby3-fast", value, OPERATIONS["truncate"]):
        if heard:
            low = np.frombuffer(heard, np.uint8).reshape(-1, 8)[:, :6]  # 48 of its bits are left
            assert 255 - 6.5 * 22.6 < chi_square(low.tobytes()) < 255 + 6.5 * 22.6


def test_the_test_sees_what_is_not_hidden() -> None:
    def openly(protocol: Protocol, x: Share) -> None:
        protocol.open(x.map(lambda part: part * 0))  # three zeros

    assert max(chi_square(heard) for heard in listen("aby3", 5, openly)) > 1000


@pytest.mark.parametrize("kind", SECURE)
@pytest.mark.parametrize("owner", NAMES)
def test_no_word_is_received_twice_and_none_is_the_secret(kind: str, owner: str) -> None:
    def everything(protocol: Protocol, x: Share) -> None:
        for run in OPERATIONS.values():
            run(protocol, x)

    if kind == "two_party" and owner == "c":
        return
    secret = 0x0123456789ABCDEF
    for heard in listen(kind, secret, everything, owner):
        words = np.frombuffer(heard[: len(heard) // 8 * 8], np.int64)
        assert secret not in words
        assert len(np.unique(words)) >= 0.999 * len(words)


@pytest.mark.parametrize("owner", ["a", "b"])
def test_a_dealer_hears_nothing_but_masked_shares_of_what_is_opened_to_it(owner: str) -> None:
    def run(protocol: Protocol, x: Share) -> None:
        for operation in OPERATIONS.values():
            operation(protocol, x)
        protocol.open(protocol.bilinear(x, x, torch.mul), to=["c"])

    heard = listen("pond", 3, run, owner)[2]
    assert len(heard) == 2 * 8 * N, "the two shares of the opened product, and nothing else"
    assert 255 - 6.5 * 22.6 < chi_square(heard) < 255 + 6.5 * 22.6
    assert (np.frombuffer(heard, np.int64).reshape(2, N).sum(0) == 9).all()


@pytest.mark.parametrize("kind", SECURE)
def test_two_runs_of_one_program_share_no_key(kind: str) -> None:
    first, second = (listen(kind, 7, OPERATIONS["scaled product"]) for _ in range(2))
    assert all(a != b for a, b in zip(first, second, strict=True) if a), "two runs used the same keys"
