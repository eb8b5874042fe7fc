"""What people see of a run: a table that fits, names who is missing, and is plain where nobody looks."""

import json
import os
import pty
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from hansa.app.show import Rounds, columns, dropped, heading, metrics_of, summary, void
from hansa.app.terminal import moment, number, size, span

RECORD: dict[str, Any] = {
    "round": 1, "attempt": 0, "asked": 3, "counted": 2, "dropped": {"clinic-7": "its lease ran out"}, "late": 0,
    "train": {"accuracy": 0.75, "loss": 0.5}, "central": {"loss": None}, "workers": {}, "up_bytes": 1_234_567,
    "down_bytes": 980, "seconds": 0.0123, "compute_seconds": 0.01,
}  # fmt: skip


def test_a_round_is_one_plain_line_outside_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with Rounds("job", 50) as rounds:
        rounds.add(RECORD)
    assert capsys.readouterr().out == (
        "round 2/50  train loss 0.5000  train accuracy 0.7500  test loss –  clients 2/3  up 1.23 MB  down 980 B  "
        "12 ms  dropped: clinic-7 (its lease ran out)\n"
    )
    assert rounds.done == 2


def test_metrics_have_the_name_of_whose_they_are_and_loss_comes_first() -> None:
    assert list(metrics_of(RECORD)) == ["train loss", "train accuracy", "test loss"]
    assert summary(RECORD) == "train loss 0.5000, train accuracy 0.7500, test loss –"


def test_many_dropped_clients_are_counted_and_few_are_named() -> None:
    assert dropped({str(i): "gone" for i in range(9)}) == "0 (gone), 1 (gone), 2 (gone) and 6 more"


def test_void_attempts_are_told_with_the_last_reason() -> None:
    assert void(()) == ""
    assert void(("2 are left", "1 is left")) == "after 2 attempts that came to nothing (1 is left)"


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_the_table_fits_its_terminal(width: int) -> None:
    cells = [
        "round",
        "train loss",
        "train accuracy",
        "test loss",
        "test accuracy",
        "clients",
        "up",
        "down",
        "time",
        "ε",
    ]
    found = columns(cells, cells, 3, width)
    above, below = heading(found)
    assert len(below) - len("  dropped") <= width
    assert {"round", "test loss", "test accuracy", "clients", "ε"} <= set(found)
    assert below.split()[:1] == ["round"]
    assert len(above) <= len(below)


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (size(0), "0 B"), (size(999), "999 B"), (size(1_500), "1.5 kB"), (size(2.5e9), "2.5 GB"), (size(9e13), "90 TB"),
        (span(0.0012), "1.2 ms"), (span(0.25), "250 ms"), (span(59), "59.0 s"), (span(61), "1 min 1 s"),
        (span(7260), "2 h 1 min"),
        (number(None), "–"), (number(float("nan")), "–"), (number(0.12345), "0.1235"), (number(1e-9), "1e-09"),
        (number(123456.0), "1.23e+05"),
        (moment(""), ""), (moment("2026-01-02T03:04:05+00:00"), "2026-01-02 03:04:05"),
    ],
)  # fmt: skip
def test_numbers_are_short(shown: str, text: str) -> None:
    assert shown == text


@pytest.mark.slow
def test_a_terminal_gets_a_table_with_a_bar_that_is_gone_at_the_end(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "hansa", "new", "t"], cwd=tmp_path, check=True, capture_output=True)
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30"}
    command = [sys.executable, "-m", "hansa", "simulate", "t/job.py", "--set", "rounds=30"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=theirs, stderr=theirs, stdin=theirs, env=environment)
    os.close(theirs)
    pieces: list[bytes] = []

    def read() -> None:
        try:
            while piece := os.read(ours, 65536):
                pieces.append(piece)
        except OSError:  # Linux: the other side is closed
            pass

    reader = threading.Thread(target=read)
    reader.start()
    assert process.wait(60) == 0
    reader.join(10)
    os.close(ours)
    said = b"".join(pieces).decode()
    assert "round     loss  accuracy" in said
    assert "30/30  " in said
    assert "━" in said and "left" in said
    assert "━" not in said.rpartition("30 rounds with 10 clients")[2]
    assert "30 rounds with 10 clients" in said


def test_records_of_a_run_are_json_where_machines_read(capsys: pytest.CaptureFixture[str]) -> None:
    from hansa.app.terminal import settings

    settings.format = "json"
    try:
        with Rounds("job", None, epsilon=lambda rounds: rounds / 2) as rounds:
            rounds.add(RECORD)
    finally:
        settings.format = "text"
    told = json.loads(capsys.readouterr().out)
    assert (told["event"], told["round"], told["epsilon"]) == ("round", 1, 1.0)
