"""What `hansa sweep` and the checkpoints of `hansa simulate` promise: every run once, also when they were killed."""

import csv
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from tests.app.test_cli import HANSA, PLAIN, hansa

from hansa.app.sweep import combinations, label
from hansa.core.errors import ConfigError

pytest.importorskip("sqlalchemy")

TWO_BY_TWO = ("--grid", "algorithm.work.lr=0.1,0.5", "--grid", "cohort=2,3")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.py").write_text(PLAIN)
    return tmp_path


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


# ── the grid ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_grid_is_all_combinations_and_brackets_hold_commas_together() -> None:
    assert combinations(["a=1,2", "b=x"]) == [{"a": "1", "b": "x"}, {"a": "2", "b": "x"}]
    assert combinations(['a=[1,2],"x,y",{"k":[1,2]}']) == [{"a": "[1,2]"}, {"a": '"x,y"'}, {"a": '{"k":[1,2]}'}]
    assert label({"a.lr": "1", "b.lr": "2", "c.x": "3"}) == "a.lr=1 b.lr=2 x=3"


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        (["lr"], "write KEY=A,B"),
        (["lr=1,,2"], "write KEY=A,B"),
        (["lr=1", "lr=2"], "given twice"),
        (["lr=1,1"], "is there twice"),
        ([], "nothing to sweep over"),
    ],
)
def test_a_wrong_grid_says_what_is_wrong(grid: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        combinations(grid)


# ── the command ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_sweep_has_help_with_an_example() -> None:
    said = hansa("sweep", "--help").out
    assert "Example" in said
    assert "hansa sweep" in said


def test_sweep_compares_all_settings_in_a_table_a_file_and_a_picture() -> None:
    pytest.importorskip("matplotlib")
    done = hansa("sweep", "job.py", *TWO_BY_TWO, "--seeds", "2", "--metric", "accuracy")
    assert done.code == 0, done.err
    assert "8/8  lr=0.5 cohort=3 seed=2: done" in done.out
    assert "best accuracy (most, median over seeds" in done.out
    rows = rows_of(Path("sweep/sweep.csv"))
    assert [(row["algorithm.work.lr"], row["cohort"], row["seed"]) for row in rows] == [
        (lr, cohort, seed) for lr in ("0.1", "0.5") for cohort in ("2", "3") for seed in ("1", "2")
    ]
    assert all(row["state"] == "done" and row["rounds"] == "3" and row["central.accuracy"] for row in rows)
    assert Path("sweep/sweep.png").stat().st_size > 10_000
    alone = hansa("simulate", "job.py", "--set", "algorithm.work.lr=0.5", "--set", "cohort=2", "--format", "json")
    last = next(event for event in alone.events if event["event"] == "finished")["last"]
    assert float(rows[4]["central.loss"]) == last["central"]["loss"]  # type: ignore[index]


def test_sweep_runs_only_what_is_new_and_nothing_of_a_changed_job(folder: Path) -> None:
    assert hansa("sweep", "job.py", "--grid", "cohort=2").code == 0
    more = hansa("sweep", "job.py", "--grid", "cohort=2,3", "--format", "json").events
    assert [event["state"] for event in more if event["event"] == "run"] == ["done", "done"]
    assert len(list(Path("sweep/runs").iterdir())) == 2
    again = hansa("sweep", "job.py", "--grid", "cohort=2,3").out
    assert again.count("was done before") == 2
    further = hansa("sweep", "job.py", "--grid", "cohort=2,3", "--set", "rounds=5").out
    assert "was done before" not in further  # goes on from round 3
    assert [row["rounds"] for row in rows_of(Path("sweep/sweep.csv"))] == ["5", "5"]
    assert len(list(Path("sweep/runs").iterdir())) == 2
    (folder / "job.py").write_text(PLAIN.replace("lr=0.5", "lr=0.25"))
    assert "was done before" not in hansa("sweep", "job.py", "--grid", "cohort=2,3").out
    assert len(list(Path("sweep/runs").iterdir())) == 4


def test_a_killed_sweep_goes_on_where_it_was_to_the_same_figures(folder: Path) -> None:
    sweep = ["sweep", "job.py", *TWO_BY_TWO, "--set", "rounds=150", "--checkpoint-every", "20"]
    process = subprocess.Popen([*HANSA, *sweep, "--out", "killed"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert "1/4" in process.stdout.readline()
    while len(list(Path("killed/runs").iterdir())) < 2:  # in the middle of the second run
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    resumed = hansa(*sweep, "--out", "killed")
    assert "1/4  lr=0.1 cohort=2 seed=1: done, was done before" in resumed.out
    assert hansa(*sweep, "--out", "whole").code == 0
    killed, whole = rows_of(Path("killed/sweep.csv")), rows_of(Path("whole/sweep.csv"))
    assert [{**row, "seconds": ""} for row in killed] == [{**row, "seconds": ""} for row in whole]


def test_a_run_that_fails_is_named_and_the_others_are_compared(folder: Path) -> None:
    (folder / "broken.py").write_text(PLAIN.replace("def test():", "def test():\n    raise OSError('gone')"))
    done = hansa("sweep", "broken.py", "--grid", "cohort=2,3")
    assert (done.code, "2 of 2 runs failed, the first (cohort=2)" in done.err, "gone" in done.err) == (17, True, True)
    wild = hansa("sweep", "job.py", "--grid", "algorithm.work.lr=0.5,1e300", "--out", "wild")
    assert wild.code == 17, wild.err
    assert "1 of 2 runs failed, the first (lr=1e300) because of" in wild.err
    assert [row["state"] for row in rows_of(Path("wild/sweep.csv"))] == ["done", "failed"]
    assert "best loss (least" in wild.out


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (("--grid", "x=1"), 11, "unknown key 'x'"),
        (("--grid", "cohort=2,30"), 10, "cohort=30"),
        (("--grid", "cohort=2", "--seeds", "0"), 11, "--seeds 0"),
        (("--grid", "cohort=2", "--checkpoint-every", "0"), 11, "--checkpoint-every 0"),
        (("--grid", "seed=1,2", "--seeds", "2"), 11, "give one of them"),
        (("--grid", "cohort=2", "--out", "no/sweep"), 11, "there is no folder no"),
        (("--grid", "cohort=2", "--metric", "frob"), 11, "--metric frob is not measured: the runs have central"),
    ],
)
def test_sweep_fails_with_a_sentence_and_its_code(args: tuple[str, ...], code: int, message: str) -> None:
    done = hansa("sweep", "job.py", *args)
    assert (done.code, message in done.err) == (code, True), done.err


# ── hansa simulate ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_simulate_checkpoints_every_n_rounds_and_resumes_after_kill_to_the_same_model(folder: Path) -> None:
    rounds = ("--set", "rounds=400")
    command = [*HANSA, "simulate", "job.py", *rounds, "--state", "s", "--checkpoint-every", "25", "--log", "rounds.csv"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("round 60/"):
            break
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    resumed = hansa(*command[len(HANSA) :], "--resume", "--out", "a.safetensors", "--format", "json")
    assert resumed.code == 0, resumed.err
    begun = resumed.events[0]["done"]
    assert isinstance(begun, int)
    assert begun >= 50
    assert begun % 25 == 0
    assert hansa("simulate", "job.py", *rounds, "--out", "b.safetensors").code == 0
    assert Path("a.safetensors").read_bytes() == Path("b.safetensors").read_bytes()
    assert [int(row["round"]) for row in rows_of(Path("rounds.csv"))] == list(range(1, 401))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--checkpoint-every", "5"), "checkpoints need a place, --state DIR"),
        (("--checkpoint-every", "0", "--state", "s"), "checkpoint_every=0"),
        (("--log", "rounds.txt"), "end its name with .csv or .parquet"),
        (("--log", "no/rounds.csv"), "there is no folder no"),
    ],
)
def test_simulate_refuses_what_cannot_be_kept(args: tuple[str, ...], message: str) -> None:
    done = hansa("simulate", "job.py", *args)
    assert (done.code, message in done.err) == (11, True), done.err
