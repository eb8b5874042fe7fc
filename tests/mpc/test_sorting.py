"""aby3's sort: a shuffle that nobody knows, and opened comparisons that say nothing of what is sorted."""

from collections.abc import Callable
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from tests.mpc.test_transcripts import NAMES, N, chi_square, listen

from hansa.core.errors import SecretError
from hansa.mpc import Session, local
from hansa.mpc.aby3 import Aby3
from hansa.mpc.aby3.sorting import quicksort
from hansa.mpc.protocol import Protocol, Share
from hansa.mpc.report import Report
from hansa.mpc.statistics import auc, median
from hansa.runtimes.mesh.local import LocalMesh, together

ROWS = 1200
DATA = {
    "ties": torch.full((ROWS, 3), 7),
    "ascending": torch.arange(3).expand(ROWS, 3).contiguous(),
    "descending": torch.tensor([2**61, 0, -(2**61)]).expand(ROWS, 3).contiguous(),
    "a tie and another": torch.tensor([5, 9, 5]).expand(ROWS, 3).contiguous(),
}


def play(x: torch.Tensor, run: Callable[[Aby3, Share], Any]) -> list[Any]:
    def party(mesh: LocalMesh) -> Any:
        mine = Aby3(mesh)
        return run(mine, mine.input(x if mesh.me == "a" else None, x.shape, "a"))

    return together(LocalMesh.of(NAMES), party)


@pytest.mark.parametrize("shape", [(0,), (1,), (2,), (31,), (32,), (33,), (3, 100), (0, 40), (2, 2, 50)])
@pytest.mark.parametrize("descending", [False, True])
def test_a_sort_is_pytorchs_with_ties_and_the_largest_numbers(shape: tuple[int, ...], descending: bool) -> None:
    torch.manual_seed(1)
    x = torch.randint(-3, 4, shape) * (2**61 // 3)

    def program(session: Session) -> Any:
        return session.reveal(session.share(x, "party-1").sort(-1, descending=descending))

    values, places = local(program)[0]
    assert torch.equal(values, x.sort(-1, descending=descending).values)
    assert torch.equal(torch.gather(x, -1, places), values)
    assert torch.equal(places.sort(-1).values, torch.arange(shape[-1]).expand(shape))


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_few_numbers_are_sorted_so_as_well(size: int) -> None:
    x = torch.tensor([*permutations(range(size))])
    opened = play(x, lambda mine, share: [mine.open(each) for each in mine.sorted([share, share.times(10)])])
    for values, carried in opened:
        assert torch.equal(values, torch.arange(size).expand(x.shape)) and torch.equal(carried, values * 10)


@pytest.mark.parametrize("first", [0, 1, 2, None])
def test_a_shuffle_and_each_pass_of_it_gives_every_order_alike_often(first: int | None) -> None:
    x = torch.arange(3).expand(6000, 3).contiguous()

    def run(mine: Aby3, share: Share) -> Any:
        bits = mine.constant_bits(x)
        pair = mine.shuffle([share, bits]) if first is None else mine._permuted([share, bits], first)
        return [mine.open(each) for each in pair]

    (numbers, bits), *others = play(x, run)
    assert torch.equal(numbers, bits) and all(torch.equal(numbers, other[0]) for other in others)
    _, counts = np.unique(numbers.numpy() @ np.array([9, 3, 1]), return_counts=True)
    assert len(counts) == 6 and ((counts - 1000) ** 2 / 1000).sum() < 30  # five degrees of freedom: p < 2e-5


@pytest.mark.parametrize("data", DATA)
def test_opened_comparisons_are_those_of_a_random_order_whatever_is_sorted(
    data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[torch.Tensor] = []
    real = Aby3.open

    def listening(self: Aby3, share: Share, to: Any = None) -> Any:
        opened = real(self, share, to)
        if self.mesh.me == "b":
            heard.append(opened)  # type: ignore[arg-type]
        return opened

    monkeypatch.setattr(Aby3, "open", listening)
    play(DATA[data], lambda mine, share: mine.sorted([share]))
    first, second = heard
    assert bool((first | 1 == 1).all()) and bool((second | 1 == 1).all()), "more than a bit was opened"
    # Of three elements in random order the first is the least, or the largest, in a third of all cases.
    found = np.bincount((first.reshape(-1, 2) @ torch.tensor([2, 1], dtype=torch.int8)).numpy(), minlength=4)
    expected = ROWS * np.array([2, 1, 1, 2]) / 6
    assert ((found - expected) ** 2 / expected).sum() < 25  # three degrees of freedom: p < 2e-5
    smaller, count = int(second.sum()), len(second)
    assert len(second) == found[0] + found[3] and abs(smaller - count / 2) < 4.5 * (count / 4) ** 0.5


@pytest.mark.parametrize("value", [0, -1, 0x0123456789AB])
@pytest.mark.parametrize("operation", ["shuffle", "below"])
def test_every_party_receives_uniform_bytes(operation: str, value: int) -> None:
    def run(protocol: Protocol, x: Share) -> None:
        assert isinstance(protocol, Aby3)
        if operation == "shuffle":
            protocol.shuffle(
                [x.map(lambda part: part.reshape(1, -1)), protocol.constant_bits(torch.full((1, N), value))]
            )
        else:
            words = protocol.constant_bits(torch.full((2, N), value))
            protocol.below(words, words)

    for heard in listen("aby3", value, run):
        assert len(heard) > 256 * 20 and 255 - 6.5 * 22.6 < chi_square(heard) < 255 + 6.5 * 22.6


@pytest.mark.parametrize("operation", ["shuffle", "below"])
def test_measured_costs_are_the_declared_ones(operation: str) -> None:
    def run(mine: Aby3, x: Share) -> tuple[int, int, Any]:
        words = mine.constant_bits(torch.zeros(2, N, dtype=torch.int64))
        sent, rounds = sum(mine.mesh.counters.sent_bytes.values()), mine.mesh.counters.rounds
        if operation == "shuffle":
            mine.shuffle([x.map(lambda part: part.reshape(1, -1))])
        else:
            mine.below(words, words)
        counters = mine.mesh.counters
        return sum(counters.sent_bytes.values()) - sent, counters.rounds - rounds, mine.cost(operation, N)

    for sent, rounds, declared in play(torch.zeros(N, dtype=torch.int64), run):
        assert sent == declared.bytes_each and rounds <= declared.rounds


def test_a_sort_opens_what_its_report_says_and_costs_what_it_declares(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[int] = []
    real = Aby3.open

    def counted(self: Aby3, share: Share, to: Any = None) -> Any:
        if self.mesh.me == "party-0":
            opened.append(share.shape.numel())
        return real(self, share, to)

    monkeypatch.setattr(Aby3, "open", counted)
    size = 1000

    def program(session: Session) -> Report:
        x = session.share(torch.randn(size), "party-0")
        median(x)
        x[:20].sort()  # by the network, which opens nothing
        auc(x, session.share((torch.rand(size) < 0.5).float(), "party-1"))
        return session.report()

    report, *others = local(program)
    assert len(report.orders) == 2 and sum(report.orders) == sum(opened) and not report.revealed
    assert all(other.orders == report.orders for other in others)
    assert Report.from_json(report.to_json()) == report
    assert f"opened to all, in a sort: {report.orders[0]} comparisons of shuffled elements" in str(report)
    for sorts, count in zip((1, 2), report.orders, strict=True):  # auc sorts twice, side by side
        expected = sorts * 2 * ((size + 1) * sum(1 / k for k in range(1, size + 1)) - 2 * size)
        assert 0.8 * expected < count < 1.3 * expected
    line = report.lines["sort"]
    assert line.calls == 2 and line.elements == 3 * size
    bits, shuffle, below = 112, 4 * 16, 57 + 1  # the last with the opening
    assert line.sent_bytes <= line.elements * (bits + shuffle) + below * sum(report.orders)
    assert line.rounds <= 2 * (8 + 3) + 9 * len(opened)


def test_other_protocols_open_nothing_and_the_checked_one_refuses() -> None:
    def program(session: Session) -> Any:
        values = session.share(torch.arange(40.0).flip(0), "party-0").sort().values
        return session.report().orders, session.reveal(values)

    for protocol in ("plain", "pond", "two_party"):
        orders, values = local(program, protocol)[0]
        assert orders == () and torch.allclose(values, torch.arange(40.0), atol=1e-3)
    with pytest.raises(SecretError, match="malicious"):
        local(program, security="malicious")


def test_quicksort_orders_every_row_in_few_steps() -> None:
    values = np.random.default_rng(3).permuted(np.tile(np.arange(500), (4, 1)), axis=1)
    steps = 0

    def smaller(left: np.ndarray, right: np.ndarray) -> np.ndarray:
        nonlocal steps
        steps += 1
        return np.asarray(values.ravel()[left] < values.ravel()[right])

    order = quicksort(4, 500, smaller)
    assert (values.ravel()[order].reshape(4, 500) == np.arange(500)).all() and steps < 45
