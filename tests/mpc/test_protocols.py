"""Every operation of every protocol against the plain one, with its declared error and its declared cost."""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from hansa.core.errors import ConfigError
from hansa.mpc.aby3 import Aby3
from hansa.mpc.aby3.boolean import FEW
from hansa.mpc.plain import Plain
from hansa.mpc.pond import Pond
from hansa.mpc.protocol import Protocol, Share
from hansa.mpc.ring import matmul
from hansa.mpc.two_party import TwoParty
from hansa.runtimes.mesh.local import LocalMesh, together

NAMES = ("a", "b", "c")
PROTOCOLS: dict[str, tuple[int, Callable[[Any], Protocol]]] = {
    "plain": (1, Plain),
    "aby3": (3, Aby3),
    "aby3-fast": (3, lambda mesh: Aby3(mesh, truncation="fast")),
    "pond": (3, Pond),
    "pond-fast": (3, lambda mesh: Pond(mesh, truncation="fast")),
    "pond, another dealer": (3, lambda mesh: Pond(mesh, "a")),
    "two_party": (2, TwoParty),
    "two_party-fast": (2, lambda mesh: TwoParty(mesh, truncation="fast")),
}
N = 1000


def ring(seed: int, *shape: int, bits: int = 64) -> torch.Tensor:
    half = 2 ** (bits - 1)
    return torch.from_numpy(np.random.default_rng(seed).integers(-half, half - 1, shape, endpoint=True))


def play(kind: str, program: Callable[[Protocol, Callable[[torch.Tensor], Share]], Share]) -> torch.Tensor:
    """What all parties see when the program's result is opened; its inputs come from party `a`."""
    count, protocol = PROTOCOLS[kind]

    def party(mesh: LocalMesh) -> torch.Tensor:
        mine = protocol(mesh)

        def given(value: torch.Tensor) -> Share:
            return mine.input(value if mesh.me == "a" else None, value.shape, "a")

        opened = mine.open(program(mine, given))
        assert opened is not None
        return opened

    results = together(LocalMesh.of(NAMES[:count]), party)
    assert all(torch.equal(result, results[0]) for result in results), "the parties see different values"
    return results[0]


@pytest.mark.parametrize("kind", PROTOCOLS)
@pytest.mark.parametrize("owner", NAMES)
def test_inputs_of_every_owner_open_to_what_they_were(kind: str, owner: str) -> None:
    count, protocol = PROTOCOLS[kind]
    if owner not in NAMES[:count]:
        return
    x = ring(1, 7, 3)

    def party(mesh: LocalMesh) -> Any:
        mine = protocol(mesh)
        share = mine.input(x if mesh.me == owner else None, x.shape, owner)
        return mine.open(share), mine.open(share, to=[owner])

    for name, (everybody, one) in zip(NAMES, together(LocalMesh.of(NAMES[:count]), party), strict=False):
        assert torch.equal(everybody, x)
        assert (one is not None) == (name == owner)


OPERATIONS: dict[str, tuple[Callable[..., Share], Callable[..., torch.Tensor]]] = {
    "sum": (lambda p, x, y: x + y - p.constant(torch.full((N,), 5)), lambda x, y: x + y - 5),
    "multiple": (lambda p, x, y: (-x).times(7), lambda x, y: -7 * x),
    "product": (lambda p, x, y: p.bilinear(x, y, torch.mul), lambda x, y: x * y),
    "matrix": (
        lambda p, x, y: p.bilinear(x.map(lambda t: t.view(50, 20)), y.map(lambda t: t.view(20, 50)), matmul),
        lambda x, y: x.view(50, 20) @ y.view(20, 50),
    ),
    "negative": (lambda p, x, y: p.negative(x), lambda x, y: (x < 0).to(torch.int8)),
    "bits": (lambda p, x, y: p.bits(x), lambda x, y: x),
    "both": (lambda p, x, y: p.both(p.bits(x), p.bits(y)), lambda x, y: x & y),
    "not negative": (lambda p, x, y: p.flip(p.negative(x)), lambda x, y: (x >= 0).to(torch.int8)),
    "to arithmetic": (lambda p, x, y: p.to_arithmetic(p.negative(x)), lambda x, y: (x < 0).long()),
    "select": (lambda p, x, y: p.select(p.negative(x), y), lambda x, y: torch.where(x < 0, y, 0)),
}


@pytest.mark.parametrize("kind", PROTOCOLS)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_operations_are_exact(kind: str, operation: str) -> None:
    secret, clear = OPERATIONS[operation]
    x, y = ring(1, N), ring(2, N)
    x[:8] = torch.tensor([0, 1, -1, -(2**63), 2**63 - 1, 2**62, -(2**62), 2**31])
    assert torch.equal(play(kind, lambda p, given: secret(p, given(x), given(y))), clear(x, y))


@pytest.mark.parametrize("kind", PROTOCOLS)
@pytest.mark.parametrize("shift", [1, 16, 26, 40])
def test_truncation_is_off_by_at_most_one_unit(kind: str, shift: int) -> None:
    bits = 40 if kind.endswith("fast") else 62
    x = ring(3, 200_000, bits=bits)
    x[:4] = torch.tensor([0, -1, 2 ** (bits - 1) - 1, -(2 ** (bits - 1))])
    error = play(kind, lambda p, given: p.truncate(given(x), shift)) - (x >> shift)
    wrong = int((error.abs() > 1).sum())
    assert wrong == 0 if not kind.endswith("fast") else wrong < 5  # 2·10⁵ · 2⁻²⁴ wraps are to be expected


@pytest.mark.parametrize("kind", PROTOCOLS)
def test_products_are_scaled_back(kind: str) -> None:
    bits = 20 if kind.endswith("fast") else 30
    x, y = ring(5, N, bits=bits), ring(6, N, bits=bits)
    error = play(kind, lambda p, given: p.bilinear(given(x), given(y), torch.mul, 16)) - ((x * y) >> 16)
    assert int(error.abs().max()) <= 1


@pytest.mark.parametrize("dealer", ["c", "a"])
def test_pond_masks_a_secret_once_however_often_it_is_multiplied(dealer: str) -> None:
    x, y, size = ring(1, 50, 20), ring(2, 20, 30), 8

    def party(mesh: LocalMesh) -> list[tuple[int, Any]]:
        mine = Pond(mesh, dealer)
        a, b = (mine.input(each if mesh.me == "b" else None, each.shape, "b") for each in (x, y))
        runs: list[Callable[[], Share]] = [
            lambda: mine.bilinear(a, b, matmul),
            lambda: mine.bilinear(b.map(torch.t), a.map(torch.t), matmul),  # both again, as views
            lambda: mine.bilinear(a.times(3), a, torch.mul),
            lambda: mine.bilinear(a.map(lambda part: part[:10]), b, matmul),  # a part of it is a secret of its own
            lambda: mine.bilinear(a + a, b, matmul),
            lambda: mine.bilinear(
                b.map(lambda part: part[None].expand(2, 20, 30)), mine.constant(ring(3, 1)), torch.mul
            ),
        ]
        out = []
        for run in runs:
            before = sum(mesh.counters.sent_bytes.values())
            product = run()
            out.append((sum(mesh.counters.sent_bytes.values()) - before, mine.open(product)))
        assert mine.cost("bilinear_again", 1).bytes_each == size
        return out

    parties = together(LocalMesh.of(NAMES), party)
    server = next(out for name, out in zip(NAMES, parties, strict=True) if name != dealer)
    assert [sent for sent, _ in server] == [size * each for each in (1000 + 600, 0, 0, 200, 1000, 1)]
    wide = y.expand(2, 20, 30) * ring(3, 1)
    wanted = (x @ y, (x @ y).t(), 3 * x * x, x[:10] @ y, 2 * (x @ y), wide)
    for out in parties:
        assert all(torch.equal(got, want) for (_, got), want in zip(out, wanted, strict=True))


def test_a_mask_serves_only_what_is_linear_in_the_secret() -> None:
    """What the servers open in a long program is uniform and never opened twice."""
    heard: list[bytes] = []

    class Listening(LocalMesh):
        def recv(self, sender: str, tag: str, deadline_s: float | None = None) -> Any:
            buffers = super().recv(sender, tag, deadline_s)
            if tag == "masked" and self.me == "a":
                heard.extend(bytes(each) for each in buffers)
            return buffers

    def party(mesh: LocalMesh) -> Any:
        mine = Pond(mesh)
        x = mine.input(torch.zeros(400, dtype=torch.int64) if mesh.me == "a" else None, (400,), "a")
        y = mine.bilinear(x, x, torch.mul)
        z = mine.bilinear(mine.truncate(y, 8), x + y, torch.mul)
        return mine.open(mine.bilinear(z.map(torch.neg), y, torch.mul))

    names = NAMES
    meshes = [Listening(mesh.me, names, mesh._links, mesh._lost) for mesh in LocalMesh.of(names)]
    assert not any(opened.any() for opened in together(meshes, party))
    words = np.frombuffer(b"".join(heard), np.int64)
    assert len(heard) == 5 and len(np.unique(words)) == len(words)  # x, y's truncation, x + y, z, y


@pytest.mark.parametrize("kind", ["aby3", "aby3-fast", "pond", "pond-fast"])
@pytest.mark.parametrize(
    "operation",
    ["input", "open", "bilinear", "bilinear_shift", "truncate", "both", "negative", "bits", "to_arithmetic"],
)
def test_measured_costs_are_the_declared_ones(kind: str, operation: str) -> None:
    count, protocol = PROTOCOLS[kind]
    x, owner = ring(1, N, bits=30), NAMES[count - 1]

    def party(mesh: LocalMesh) -> tuple[int, int, Any]:
        mine = protocol(mesh)
        number, other = (mine.input(x if mesh.me == owner else None, x.shape, owner) for _ in range(2))
        bits = mine.constant_bits(x)
        run: dict[str, Callable[[], Any]] = {
            "input": lambda: mine.input(x if mesh.me == owner else None, x.shape, owner),
            "open": lambda: mine.open(number),
            "bilinear": lambda: mine.bilinear(number, other, torch.mul),
            "bilinear_shift": lambda: mine.bilinear(number, other, torch.mul, 16),
            "truncate": lambda: mine.truncate(number, 16),
            "both": lambda: mine.both(bits, bits),
            "negative": lambda: mine.negative(number),
            "bits": lambda: mine.bits(number),
            "to_arithmetic": lambda: mine.to_arithmetic(bits),
        }
        before = sum(mesh.counters.sent_bytes.values())
        received = mesh.counters.rounds
        run[operation]()
        return sum(mesh.counters.sent_bytes.values()) - before, mesh.counters.rounds - received, mine.cost(operation, N)

    results = together(LocalMesh.of(NAMES[:count]), party)
    declared = results[0][2]
    assert max(sent for sent, _, _ in results) == declared.bytes_each
    assert max(rounds for _, rounds, _ in results) <= declared.rounds


@pytest.mark.parametrize("size", [1, FEW, FEW + 1])
def test_aby3_compares_few_numbers_in_fewer_messages_and_many_with_fewer_bytes(size: int) -> None:
    x = ring(9, size)
    x[:1] = -(2**63)

    def party(mesh: LocalMesh) -> tuple[Any, Any, list[tuple[int, int]], list[Any]]:
        mine, counters = Aby3(mesh), mesh.counters
        number = mine.input(x if mesh.me == "b" else None, x.shape, "b")
        seen = [(counters.rounds, sum(counters.sent_bytes.values()))]
        bit = mine.negative(number)
        seen.append((counters.rounds, sum(counters.sent_bytes.values())))
        counted = mine.to_arithmetic(bit)
        seen.append((counters.rounds, sum(counters.sent_bytes.values())))
        spent = [(rounds - r, sent - s) for (r, s), (rounds, sent) in itertools.pairwise(seen)]
        return (
            mine.open(bit),
            mine.open(counted),
            spent,
            [mine.cost(each, size) for each in ("negative", "to_arithmetic")],
        )

    results = together(LocalMesh.of(NAMES), party)
    for bit, counted, _, _ in results:
        assert torch.equal(bit & 1, (x < 0).to(torch.int8)) and torch.equal(counted, (x < 0).to(torch.int64))
    for at, declared in enumerate(results[0][3]):
        assert max(spent[at][0] for _, _, spent, _ in results) <= declared.rounds
        assert max(spent[at][1] for _, _, spent, _ in results) == declared.bytes_each


def test_wrong_parties_and_options_are_named() -> None:
    with pytest.raises(ConfigError, match="aby3 is computed by three parties"):
        Aby3(LocalMesh.of(("a", "b"))[0])
    with pytest.raises(ConfigError, match="'plain' is one party's"):
        Plain(LocalMesh.of(("a", "b"))[0])
    with pytest.raises(ConfigError, match="two servers and a dealer"):
        Pond(LocalMesh.of(("a", "b"))[0])
    with pytest.raises(ConfigError, match="dealer='d' is no party"):
        Pond(LocalMesh.of(NAMES)[0], "d")
    with pytest.raises(ConfigError, match="two_party is computed by two parties: a, b, c are given"):
        TwoParty(LocalMesh.of(NAMES)[0])
    for protocol in (Aby3, Pond, TwoParty):
        with pytest.raises(ConfigError, match="truncation='slow'"):
            protocol(LocalMesh.of(NAMES)[0], truncation="slow")


def test_a_dealer_that_is_ahead_waits_for_the_servers() -> None:
    x = ring(1, 1 << 20)
    opened = play(
        "pond", lambda p, given: functools.reduce(lambda z, _: p.bilinear(z, z, torch.mul), range(9), given(x))
    )
    assert torch.equal(opened, x ** (1 << 9))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", ["aby3", "pond", "two_party"])
def test_exact_truncation_is_right_in_ten_million_cases_up_to_the_range(kind: str) -> None:
    for seed in range(10):
        x = ring(seed, 1_000_000, bits=62)
        error = play(kind, lambda p, given, x=x: p.truncate(given(x), 16)) - (x >> 16)  # type: ignore[misc]
        assert int(error.abs().max()) <= 1
