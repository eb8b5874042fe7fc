"""What a session says of itself: its report, its picture, its progress, and what it would take on a network."""

import io
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hansa.core.errors import ConfigError, SecretError
from hansa.core.runtime import Counters
from hansa.mpc import Session, local
from hansa.mpc.estimate import Network, estimate
from hansa.mpc.progress import bar
from hansa.mpc.report import Line, Report


def program(session: Session) -> Report:
    first, second, third = session.names
    x = session.share(torch.ones(6, 2), owner=first)
    y = session.share(torch.ones(6, 1), owner=second)
    model = session.share_module(nn.Linear(2, 1), owner=third)
    for _ in session.progress(range(2)):
        loss = F.mse_loss(model(x), y)
    session.reveal(loss.detach())
    session.reveal(model.weight.detach(), to=first)
    return session.report()


@pytest.fixture(scope="module")
def reports() -> list[Report]:
    return local(program)


def test_a_report_says_who_gave_what_and_who_learnt_what(reports: list[Report]) -> None:
    for report in reports:
        assert [each.parties[0] for each in report.shared] == ["party-0", "party-1", "party-2", "party-2"]
        assert [(each.parties, each.shape) for each in report.revealed] == [
            (report.parties, ()), (("party-0",), (1, 2)),
        ]  # fmt: skip
        assert set(report.sent_bytes) == set(report.parties) - {report.me}
        assert sum(line.sent_bytes for line in report.lines.values()) <= sum(report.sent_bytes.values())
        assert 0 < sum(line.rounds for line in report.lines.values()) <= report.rounds
        assert "revealed to party-0: shape (1, 2)" in str(report)


def test_what_is_debugged_is_opened_to_all_and_in_the_report(caplog: pytest.LogCaptureFixture) -> None:
    def debugging(session: Session) -> tuple[object, Report]:
        x = session.share(torch.tensor([1.0, -2.0]), owner=session.names[0])
        opened = session.debug({"x": x, "sum": x.sum()})
        return [value.tolist() for value in opened.values()], session.report()

    for opened, report in local(debugging, unsafe_debug=True):
        assert opened == [[1.0, -2.0], -1.0]
        assert [(each.parties, each.shape) for each in report.revealed] == [
            (report.parties, (2,)),
            (report.parties, ()),
        ]
    warned = [each.getMessage() for each in caplog.records if (each.name, each.levelname) == ("hansa.mpc", "WARNING")]
    assert len(warned) == 3 and all("test_report.py" in each and "shape (2,), ()" in each for each in warned)
    with pytest.raises(SecretError, match="works under `hansa mpc local --unsafe-debug` alone"):
        local(debugging)


def test_rounds_are_counted_under_one_name_each(reports: list[Report]) -> None:
    for report in reports:  # the loss, a product, is truncated when it is revealed
        assert report.lines["reveal"].rounds <= report.lines["reveal"].calls
        assert sum(line.rounds for line in report.lines.values()) <= report.rounds


def test_a_report_travels_as_json(reports: list[Report]) -> None:
    assert Report.from_json(json.loads(json.dumps(reports[0].to_json()))) == reports[0]
    for wrong in ({}, {"lines": 3}, {**reports[0].to_json(), "shared": [1]}):
        with pytest.raises(ConfigError, match="no report of a session"):
            Report.from_json(wrong)


def test_the_picture_names_the_parties_and_has_a_colour_for_each(reports: list[Report], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    reports[0].picture(tmp_path / "flow.svg")
    text = (tmp_path / "flow.svg").read_text()
    for colour in ("#0072b2", "#e69f00", "#009e73"):
        assert colour in text
    for said in ("party-0", "party-1", "party-2", "everybody", "6 × 2", "truncate"):
        assert f"<!-- {said} -->" in text, said
    reports[0].picture(tmp_path / "flow.png")
    assert (tmp_path / "flow.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ConfigError, match=r"flow\.txt: end its name"):
        reports[0].picture(tmp_path / "flow.txt")


def test_a_picture_of_many_tensors_stays_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")

    def many(session: Session) -> Report:
        for size in range(1, 20):
            session.share(torch.zeros(size, 2), owner=session.me)
        return session.report()

    local(many, "plain")[0].picture(tmp_path / "flow.svg")
    assert "and 14 other shapes" in (tmp_path / "flow.svg").read_text()


def test_progress_gives_every_step_and_counts_what_they_cost() -> None:
    console = pytest.importorskip("rich.console")
    out, counters = io.StringIO(), Counters({"b": 5}, {}, 7)
    seen = []
    for step in bar([1, 2, 3], counters, "training", console.Console(file=out, force_terminal=True, width=120)):
        seen.append(step)
        counters.rounds += 10
        counters.sent_bytes["b"] += 2_000_000
    assert seen == [1, 2, 3]
    assert "training" in out.getvalue() and "3/3" in out.getvalue() and "30 rounds, 6.00 MB sent" in out.getvalue()


def made(me: str, busy: float, rounds: int, sent: int) -> Report:
    return Report(
        me=me, parties=("a", "b"), protocol="aby3", lines={"truncate": Line(4, 0, 1.0, rounds - 3, sent - 200)},
        sent_bytes={"x": sent}, rounds=rounds, seconds=99.0, busy_seconds=busy,
    )  # fmt: skip


def test_an_estimate_follows_its_formula_for_the_slowest_party() -> None:
    network = Network.parse("40ms", "100Mbps")
    assert network == Network(0.04, 1e8)
    found = estimate([made("a", 0.5, 100, 1_000_000), made("b", 0.25, 110, 500_000)], network)
    assert found.party == "b"
    assert found.seconds == pytest.approx(0.25 + 110 * 0.04 + 8 * 500_000 / 1e8)
    assert [line[0] for line in found.operations] == ["truncate", "beginning"]
    assert found.operations[0][4] == pytest.approx(107 * 0.04 + 8 * 499_800 / 1e8)
    assert sum(line[4] for line in found.operations) + found.work_s == pytest.approx(found.seconds)
    fast = estimate([made("a", 0.5, 100, 1_000_000), made("b", 0.25, 110, 500_000)], Network(0.0, 1e12))
    assert fast.party == "a" and fast.seconds == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize(
    ("latency", "bandwidth", "message"),
    [("40", "1Gbps", "latency='40'"), ("4ms", "fast", "bandwidth='fast'"), ("4ms", "0Mbps", "bandwidth='0Mbps'"),
     ("-4ms", "1Gbps", "latency='-4ms'"), ("4ms", "1GB", "unit of bps, kbps, Mbps, Gbps")],
)  # fmt: skip
def test_a_network_that_is_no_network_is_refused(latency: str, bandwidth: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Network.parse(latency, bandwidth)


def test_a_data_loader_shuffles_secret_rows_alike_at_all_parties() -> None:
    def batches(session: Session) -> list[tuple[torch.Tensor, torch.Tensor]]:
        x = session.share(torch.arange(20.0).reshape(10, 2), owner=session.names[0])
        y = session.share(torch.arange(10), owner=session.names[1])
        loader = DataLoader(TensorDataset(x, y), batch_size=4, shuffle=True, generator=session.generator)
        return [tuple(session.reveal([a, b])) for _ in range(2) for a, b in loader]

    found = local(batches)[0]
    assert [len(a) for a, _ in found] == [4, 4, 2] * 2
    for a, b in found:
        assert torch.equal(a, torch.stack([2.0 * b, 2.0 * b + 1], 1))
    orders = [torch.cat([b for _, b in found[at : at + 3]]).tolist() for at in (0, 3)]
    assert sorted(orders[0]) == sorted(orders[1]) == [*range(10)] and orders[0] != orders[1]
