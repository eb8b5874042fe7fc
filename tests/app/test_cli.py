"""What the command line promises: each command does what it says, and each failure is a sentence with its own code."""

import io
import json
import os
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from hansa import __version__
from hansa.app.cli import app, globals_first
from hansa.app.jobs import read_settings
from hansa.core.errors import ConfigError

HANSA = [sys.executable, "-m", "hansa"]
COMMANDS = [
    *(
        "new",
        "simulate",
        "build",
        "predict",
        "demo",
        "server",
        "worker",
        "submit",
        "watch",
        "list",
        "members",
        "status",
        "audit",
        "psi",
        "threats",
    ),
    *("logs", "stop", "resume", "model", "job show", "job check", "enrol init", "enrol issue", "enrol request"),
    *("privacy plan", "privacy epsilon", "privacy ledger", "privacy budget"),
    *("enrol sign", "enrol accept", "enrol renew", "enrol revoke", "enrol list", "enrol show"),
]
PLAIN = """
import numpy as np
import hansa

def part(i):
    rng = np.random.default_rng(i)
    x = rng.normal(size=(20, 2)).astype("float32")
    return hansa.Dataset(x=x, y=(x.sum(axis=1) > 0).astype("int64"))

def test():
    return part(99)

def clients(n=4):
    return hansa.Clients.of({f"c{i}": part(i) for i in range(n)})

job = hansa.Job(
    name="plain",
    model=hansa.LogisticModel(inputs=2, classes=2),
    algorithm=hansa.FedAvg(hansa.LocalWork(lr=0.5, epochs=1)),
    pipeline=hansa.Pipeline([hansa.WeightedMean(max_weight=1000)], hansa.Sum()),
    cohort=3, rounds=3, evaluation=hansa.Evaluation(data=test, best="loss"), seed=1,
)
"""


GARBAGE = [
    *(b"", b"[]", b"{}", b'{"x": []}', b'{"x": [[1], [1, 2]]}', b'{"x": [["a", "b"]]}', b'{"x": [[NaN, 1]]}'),
    *(b'{"x": [[1, 2, 3]]}', b'{"x": 3}', b"[" * 100_000),
]


class Result(SimpleNamespace):
    code: int
    out: str
    err: str

    @property
    def events(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.out.splitlines()]


def hansa(*args: object) -> Result:
    """Runs one command in this process."""
    done = CliRunner().invoke(app, [str(arg) for arg in args], prog_name="hansa")
    assert done.exception is None or isinstance(done.exception, SystemExit), repr(done.exception)
    assert "Traceback" not in done.stderr or "--verbose" in args
    return Result(code=done.exit_code, out=done.stdout, err=done.stderr)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("HANSA_SERVER", "HANSA_IDENTITY", "HANSA_AUTHORITY", "HANSA_PASSPHRASE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.py").write_text(PLAIN)
    return tmp_path


# ── the whole ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_help_lists_every_command_and_each_has_an_example() -> None:
    said = hansa("--help").out
    for command in COMMANDS:
        assert command.split()[0] in said
        one = hansa(*command.split(), "--help")
        assert one.code == 0
        assert "hansa " + command in one.out.replace("\n", " ")
        assert "Example" in one.out


def test_help_is_quick() -> None:
    times = []
    for _ in range(3):
        before = os.times().children_user
        subprocess.run([*HANSA, "--help"], check=True, capture_output=True)
        times.append(os.times().children_user - before)
    assert min(times) < 0.5, times


def test_the_command_line_imports_no_framework_and_no_network() -> None:
    code = "import sys, hansa.app.cli; print(sorted({n.split('.')[0] for n in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert not {"torch", "sklearn", "grpc", "sqlalchemy", "cryptography", "starlette", "numpy"} & set(eval(done))


def test_version_is_the_package_s() -> None:
    assert hansa("--version").out.strip() == __version__


@pytest.mark.parametrize(
    "args", [["frob"], ["simulate"], ["simulate", "job.py", "--frob"], ["--format", "xml", "list"]]
)
def test_usage_errors_end_with_2(args: list[str]) -> None:
    assert hansa(*args).code == 2


def test_global_options_may_stand_anywhere() -> None:
    assert globals_first(["a", "--verbose", "--format=json"]) == ["--verbose", "--format=json", "a"]
    assert hansa("job", "check", "job.py", "--format", "json").events[0]["event"] == "checked"
    assert hansa("--format", "json", "job", "check", "job.py").events[0]["event"] == "checked"


def test_an_unexpected_exception_ends_with_1_and_tells_of_verbose(monkeypatch: pytest.MonkeyPatch) -> None:
    import hansa.app.jobs as jobs

    monkeypatch.setattr(jobs, "check", lambda *_: 1 / 0)
    quiet, loud = hansa("job", "check", "job.py"), hansa("job", "check", "job.py", "--verbose")
    assert (quiet.code, loud.code) == (1, 1)
    assert "error: unexpected ZeroDivisionError: division by zero (run it again with --verbose" in quiet.err
    assert "Traceback" in loud.err


def test_a_wrong_command_line_is_one_json_object_on_stderr_for_machines() -> None:
    for args in (["simulate", "job.py", "--clients", "many"], ["simulate"], ["job", "check", "job.py", "--nothing"]):
        done = hansa(*args, "--format", "json")
        facts = json.loads(done.err)
        assert (done.code, facts["error"], facts["exit_code"]) == (2, "usage", 2)
        assert any(word in facts["message"] for word in ("--clients", "JOB.PY", "--nothing"))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["threats", "Sum", "--vertical"], "--vertical prints its whole table: leave 'Sum' out"),
        (["audit", "job.py", "--iterations", "0"], "--iterations 0: at least 1"),
        (["audit", "job.py", "--shadows", "0"], "--shadows 0: at least 1"),
        (["audit", "job.py", "--canaries", "0"], "--canaries 0: at least 1"),
        (["audit", "job.py", "--out", "data.csv/x"], "--out data.csv/x cannot be used"),
        (["simulate", "job.py", "--out", "folder"], "--out folder is a folder: name a file in it"),
        (["graph", "job.py", "--out", "none/x.svg"], "--out none/x.svg: there is no folder none; make it first"),
        (["demo", "--report", "folder"], "--report folder is a folder: name a file in it"),
        (["mpc", "local", "--reports", "data.csv", "job.py"], "--reports data.csv cannot be used"),
        (["mpc", "local", "--picture", "none/x.svg", "job.py"], "--picture none/x.svg: there is no folder none"),
        (["mpc", "reveal", "x", "--out", "folder"], "--out folder is a folder: name a file in it"),
        (["simulate", "job.py", "--runtime", "processes", "--processes", "0"], "--processes 0: at least 1"),
        (["simulate", "job.py", "--set", "round=3"], "unknown key 'round': did you mean 'rounds'? Job has"),
        (["job", "show", "data.csv"], "'data.csv' is neither a job file (.py) nor an archive that `hansa build` wrote"),
        (["submit", "data.csv", "--insecure"], "'data.csv' is neither a job file (.py) nor an archive"),
        (["enrol", "init", "league", "--days", "0"], "days=0 is no validity"),
        (["build", "job.py", "--out", "none/x.hansa"], "none/x.hansa cannot be written (No such file or directory)"),
    ],
)
def test_a_wrong_option_is_named_with_its_value(folder: Path, args: list[str], message: str) -> None:
    (folder / "data.csv").write_text("a,b\n1,2\n")
    (folder / "folder").mkdir()
    done = hansa(*args)
    assert (done.code in (11, 20), len(done.err.splitlines())) == (True, 1)
    assert message in done.err


def test_an_error_is_one_json_object_on_stderr_for_machines() -> None:
    done = hansa("job", "check", "nix.py", "--format", "json")
    assert (done.code, done.out) == (19, "")
    assert json.loads(done.err)["error"] == "NotFound"
    assert json.loads(done.err)["exit_code"] == 19


def test_what_a_job_file_prints_is_not_among_the_results_for_machines(folder: Path) -> None:
    (folder / "job.py").write_text("print('hello')\n" + PLAIN)
    done = hansa("job", "check", "job.py", "--format", "json")
    assert [event["event"] for event in done.events] == ["checked"]
    assert "hello" in done.err
    assert "hello" in hansa("job", "check", "job.py").out


# ── a job ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        (None, 19, "there is no job file 'job.py'"),
        ("x = 1", 11, "job.py defines no `job`: end it with job = hansa.Job"),
        ("job = 3", 11, "`job` in job.py is of type int, and a Job is expected"),
        (PLAIN.replace("job = ", "work = "), 11, "defines no `job`, but a Job named `work`"),
        (PLAIN + "\nmade, job = job, lambda: made", 11, "is a function, and a Job is expected: call it"),
        ("x = (", 11, "job.py, line 1 is no valid Python ('(' was never closed): x = ("),
        ("x = 1\ny = x / 0", 11, "job.py, line 2 raised ZeroDivisionError: division by zero  in  y = x / 0"),
        ("import nosuchlib", 12, "job.py, line 1 needs nosuchlib, which is not installed"),
        ("import sys; sys.exit(3)", 11, "ended the program (3)"),
        (PLAIN.replace("lr=0.5", "lr=-1"), 11, "lr=-1: a learning rate is finite and not negative"),
        (PLAIN.replace("cohort=3, ", ""), 11, "who takes part in a round?"),
    ],
)
def test_a_bad_job_file_is_named_with_its_line(folder: Path, text: str | None, code: int, message: str) -> None:
    (folder / "job.py").unlink() if text is None else (folder / "job.py").write_text(text)
    done = hansa("job", "check", "job.py")
    assert done.code == code
    assert message in done.err


def test_an_error_of_hansa_in_a_job_file_has_a_note_of_the_user_s_line(folder: Path) -> None:
    (folder / "job.py").write_text(PLAIN.replace("lr=0.5", "lr=-1"))
    assert (
        "job.py, line 19: algorithm=hansa.FedAvg(hansa.LocalWork(lr=-1, epochs=1)),"
        in hansa("job", "check", "job.py").err
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("json.py", "has the name of a module of Python's own library"),
        ("a.b.py", "has a dot"),
        ("job.txt", "is not a Python"),
    ],
)
def test_a_job_file_with_a_name_that_cannot_be_imported_is_refused(folder: Path, name: str, message: str) -> None:
    (folder / name).write_text(PLAIN)
    done = hansa("job", "check", name)
    assert done.code == 11
    assert message in done.err


def test_the_job_that_is_loaded_is_the_one_on_disk(folder: Path) -> None:
    before = hansa("job", "check", "job.py", "--format", "json").events[0]["fingerprint"]
    (folder / "job.py").write_text(PLAIN.replace("lr=0.5", "lr=0.6"))  # same size, same second
    assert hansa("job", "check", "job.py", "--format", "json").events[0]["fingerprint"] != before
    assert not (folder / "__pycache__").exists()


def test_two_folders_do_not_see_each_other_s_modules(folder: Path) -> None:
    for name in ("one", "two"):
        (folder / name).mkdir()
        (folder / name / "rate.py").write_text(f"lr = {len(name)}.0 if '{name}' == 'one' else 0.25")
        (folder / name / "job.py").write_text("import rate\n" + PLAIN.replace("lr=0.5", "lr=rate.lr"))
    shown = [hansa("job", "show", f"{name}/job.py").out for name in ("one", "two")]
    assert "lr=3.0" in shown[0]
    assert "lr=0.25" in shown[1]


@pytest.mark.parametrize(
    ("setting", "code", "message"),
    [
        ("foo=1", 11, "unknown key 'foo'"),
        ("algorithm.work.foo=1", 11, "LocalWork has"),
        ("rounds=abc", 11, "rounds=abc"),
        ("rounds", 11, "--set rounds: write KEY=VALUE"),
        ("cohort=0", 11, "cohort=0"),
    ],
)
def test_a_bad_setting_is_named(setting: str, code: int, message: str) -> None:
    done = hansa("job", "check", "job.py", "--set", setting)
    assert (done.code, message in done.err) == (code, True), done.err


def test_settings_come_from_a_file_and_the_line_wins(folder: Path) -> None:
    (folder / "c.toml").write_text("rounds = 9\nname = 'other'\n[algorithm.work]\nlr = 0.25\n")
    given = read_settings(["rounds=5"], folder / "c.toml")
    assert given == {"rounds": "5", "name": "other", "algorithm.work.lr": "0.25"}
    facts = hansa("job", "show", "job.py", "--config", "c.toml", "--format", "json").events[0]
    assert (facts["rounds"], facts["name"]) == (9, "other")
    (folder / "c.toml").write_text("rounds =")
    with pytest.raises(ConfigError, match="is no TOML"):
        read_settings([], folder / "c.toml")


def test_check_lists_every_fault() -> None:
    done = hansa("job", "check", "job.py", "--clients", "2", "--set", "evaluation.best=loss")
    assert done.code == 10
    assert "cohort=3 > 2 clients: lower cohort or add clients." in done.err


def test_show_says_what_would_run_and_who_sees_what() -> None:
    said = hansa("job", "show", "job.py").out
    for part in (
        "canonical form",
        "hansa.adapters.numpy:LogisticModel(",
        "who sees what",
        "of each worker: the update, metrics of local training (loss, accuracy), the weight",
        "file    job.py",
        "hash    ",
    ):
        assert part in said
    facts = hansa("job", "show", "job.py", "--format", "json").events
    assert [event["event"] for event in facts] == ["job", "bundle"]


def test_build_is_reproducible_and_an_archive_is_shown_without_being_run(folder: Path) -> None:
    hashes = [hansa("build", "job.py", "--out", f"{i}.hansa", "--format", "json").events[0]["hash"] for i in range(2)]
    assert hashes[0] == hashes[1]
    (folder / "job.py").write_text(PLAIN + "\nopen('it-ran', 'w').close()\n")
    assert hansa("build", "job.py", "--out", "2.hansa", "--no-check").code == 0
    shown = hansa("job", "show", "2.hansa")
    assert "open('it-ran', 'w')" in shown.out
    assert not (folder / "it-ran").exists()
    assert "fingerprint" in hansa("job", "show", "0.hansa", "--load").out


def test_settings_travel_in_the_archive() -> None:
    made = hansa("build", "job.py", "--out", "s.hansa", "--set", "rounds=7", "--format", "json").events[0]
    assert "job.settings.json" in made["files"]
    facts = hansa("job", "show", "s.hansa", "--load", "--format", "json").events
    assert facts[-1]["rounds"] == 7


def test_a_job_that_lives_in_this_process_alone_is_not_packed(folder: Path) -> None:
    text = PLAIN.replace("seed=1", "query=lambda d: {}, answers={'a': 1}, seed=1")
    (folder / "job.py").write_text(text)
    done = hansa("build", "job.py", "--out", "x.hansa")
    assert done.code == 10
    assert "<lambda>" in done.err


# ── simulate, new, predict ───────────────────────────────────────────────────────────────────────────────────────────


def test_simulate_prints_a_line_for_each_round_and_writes_the_model(folder: Path) -> None:
    done = hansa("simulate", "job.py", "--out", "m.safetensors", "--best")
    assert done.code == 0
    lines = done.out.splitlines()
    assert [line.split("  ")[0] for line in lines[:3]] == ["round 1/3", "round 2/3", "round 3/3"]
    assert "train loss" in lines[0] and "test accuracy" in lines[0] and "clients 3/3" in lines[0]
    assert "3 rounds with 4 clients" in lines[3]
    assert (folder / "m.safetensors").exists()


def test_a_target_ends_the_run_and_a_farther_one_goes_on(folder: Path) -> None:
    every = [event["central"]["loss"] for event in hansa("simulate", "job.py", "--format", "json").events[1:4]]
    assert every[0] > every[1] > every[2]
    first, second = (f"loss={(a + b) / 2}" for a, b in pairwise(every))
    assert "ended early: loss reached" in hansa("simulate", "job.py", "--target", first).out
    kept = ["simulate", "job.py", "--state", "s", "--format", "json"]
    events = hansa(*kept, "--target", first).events
    assert [event["event"] for event in events] == ["started", "round", "round", "finished", "stopped"]
    assert hansa(*kept, "--target", first, "--resume").events[-1]["event"] == "stopped"
    events = hansa(*kept, "--target", second, "--resume").events
    assert [event["round"] for event in events if event["event"] == "round"] == [2]
    assert events[-2]["last"]["central"]["loss"] == every[2]


def test_stop_after_ends_a_run_that_no_longer_improves() -> None:
    still = ["--set", "algorithm.work.lr=0.0", "--set", "rounds=9"]
    done = hansa("simulate", "job.py", *still, "--stop-after", "loss=2")
    assert "3 rounds with 4 clients" in done.out
    assert "ended early: loss has not improved in 2 evaluations" in done.out


def test_simulate_for_machines_gives_json_lines_alone() -> None:
    events = hansa("simulate", "job.py", "--clients", "6", "--set", "rounds=2", "--format", "json").events
    assert [event["event"] for event in events] == ["started", "round", "round", "finished"]
    assert events[0]["clients"] == 6
    assert events[2]["counted"] == 3
    assert set(events[1]["central"]) == {"loss", "accuracy"}


def test_a_job_with_noise_shows_what_it_costs(folder: Path) -> None:
    pytest.importorskip("dp_accounting")
    noisy = "[hansa.Clip(1.0), hansa.UniformMean(), hansa.Gaussian(0.8)]"
    (folder / "job.py").write_text(PLAIN.replace("[hansa.WeightedMean(max_weight=1000)]", noisy))
    events = hansa("simulate", "job.py", "--format", "json").events
    costs = [event["epsilon"] for event in events if event["event"] == "round"]
    assert 0 < costs[0] < costs[1] < costs[2]
    assert events[-1]["event"] == "privacy" and events[-1]["epsilon"] == costs[-1]
    lines = hansa("simulate", "job.py").out.splitlines()
    assert "ε " in lines[0]
    assert "at δ = 1e-05" in lines[-1]
    said = hansa("job", "show", "job.py").out
    assert "of each worker: the update; it adds the noise itself" in said


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["--clients", "0"], 11, "--clients 0: at least 1"),
        (["--clients", "2"], 10, "cohort=3 > 2 clients"),
        (["--runtime", "cloud"], 11, "choose local, processes or ray"),
        (["--address", "10.0.0.7:6379"], 11, "add --runtime ray"),
        (["--resume"], 11, "give --state DIR"),
        (["--processes", "2"], 11, "add --runtime processes"),
        (["--best"], 11, "give --out FILE"),
        (["--target", "accuracy"], 11, "--target accuracy: give a metric and a number, as in --target accuracy=0.97"),
        (["--target", "loss=nan"], 11, "give a metric and a number"),
        (["--target", "bleu=1"], 11, "metric 'bleu' is not measured: this job has central.accuracy"),
        (["--stop-after", "loss=0"], 11, "give a whole number of evaluations, 1 or more"),
        (["--out", "no/m.st"], 11, "there is no folder no"),
        (["--state", "no/s"], 11, "there is no folder no"),
    ],
)
def test_simulate_refuses_what_cannot_be(args: list[str], code: int, message: str) -> None:
    done = hansa("simulate", "job.py", *args)
    assert (done.code, message in done.err) == (code, True), done.err


@pytest.mark.parametrize(
    ("text", "args", "message"),
    [
        (PLAIN.replace("def clients(n=4)", "def others(n=4)"), [], "defines no `clients`"),
        (PLAIN + "\nclients = clients(4)", ["--clients", "7"], "is fixed at 4"),
        (PLAIN.replace("n=4", "n"), [], "needs a number: give --clients N"),
        (PLAIN + "\nclients = 3", [], "`clients` in job.py is of type int"),
        (PLAIN + "\ndef clients(): return {'a': 1}", ["--clients", "2"], "takes no number"),
        (PLAIN + "\ndef clients(): raise ValueError('no disk')", [], "job.py, line 24 raised ValueError: no disk"),
    ],
)
def test_bad_clients_are_named(folder: Path, text: str, args: list[str], message: str) -> None:
    (folder / "job.py").write_text(text)
    done = hansa("simulate", "job.py", *args)
    assert (done.code, message in done.err) == (11, True), done.err


def test_a_simulation_goes_on_from_its_state_with_the_same_bits(folder: Path) -> None:
    pytest.importorskip("sqlalchemy")
    whole = hansa("simulate", "job.py", "--out", "whole.st", "--set", "rounds=6")
    assert whole.code == 0
    killed = """
import os, hansa.app.show as show
add = show.Rounds.add
def add_and_die(self, record):
    add(self, record)
    if record["round"] == 2:
        os.kill(os.getpid(), 9)
show.Rounds.add = add_and_die
from hansa.app.cli import main
main(["simulate", "job.py", "--state", "s", "--set", "rounds=6"])
"""
    assert subprocess.run([sys.executable, "-c", killed], capture_output=True).returncode == -9
    again = hansa("simulate", "job.py", "--state", "s", "--set", "rounds=6")
    assert again.code == 11 and "add --resume" in again.err
    other = hansa("simulate", "job.py", "--state", "s", "--set", "rounds=6", "--set", "seed=2", "--resume")
    assert other.code == 18
    done = hansa("simulate", "job.py", "--state", "s", "--set", "rounds=6", "--resume", "--out", "resumed.st")
    assert done.code == 0, done.err
    assert done.out.splitlines()[0].startswith("round 4/6")
    assert (folder / "resumed.st").read_bytes() == (folder / "whole.st").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("template", ["numpy", "torch"])
def test_what_new_makes_runs_at_once_in_both_runtimes(folder: Path, template: str) -> None:
    if template == "torch":
        pytest.importorskip("torch")
    done = subprocess.run([*HANSA, "new", "first", "--template", template], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for runtime in ("local", "processes"):
        args = [
            "simulate",
            "first/job.py",
            "--set",
            "rounds=3",
            "--runtime",
            runtime,
            "--out",
            f"{runtime}.st",
            "--format",
            "json",
        ]
        done = subprocess.run([*HANSA, *args], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout.splitlines()[-2])["event"] == "finished"
    assert (folder / "local.st").read_bytes() == (folder / "processes.st").read_bytes()


def test_new_writes_three_files_and_never_over_anything(folder: Path) -> None:
    assert hansa("new", "first").code == 0
    assert sorted(path.name for path in (folder / "first").iterdir()) == ["README.md", "data.py", "job.py"]
    assert "@NAME@" not in "".join(path.read_text() for path in (folder / "first").iterdir())
    assert hansa("new", "first").code == 11
    assert hansa("new", "se/cond", "--template", "cobol").code == 11
    assert hansa("new", "a:b").code == 11


def trained(folder: Path) -> None:
    assert hansa("simulate", "job.py", "--out", "m.st").code == 0


def test_predict_gives_what_the_model_gives_in_training(folder: Path) -> None:
    trained(folder)
    metrics = hansa("simulate", "job.py", "--format", "json").events[-1]["last"]["central"]
    done = hansa(
        "predict", "--job", "job.py", "--model", "m.st", "--data", "job.py:test", "--out", "p.csv", "--format", "json"
    )
    assert done.events[0]["metrics"] == pytest.approx(metrics)
    lines = (folder / "p.csv").read_text().splitlines()
    assert lines[0] == "prediction,score_0,score_1"
    assert len(lines) == 21
    plain = hansa("predict", "--job", "job.py", "--model", "m.st", "--data", "job.py:test")
    assert plain.out.splitlines() == lines
    assert "against y: loss" in plain.err


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["--model", "no.st", "--data", "job.py:test"], 19, "there is no model file 'no.st'"),
        (["--model", "job.py", "--data", "job.py:test"], 15, "job.py is no model file"),
        (["--model", "m.st"], 11, "exactly one of --data SPEC"),
        (["--model", "m.st", "--data", "nix.csv"], 13, "nix.csv"),
        (["--model", "m.st", "--data", "job.py:wide"], 13, "3"),
        (["--model", "m.st", "--serve", "nowhere"], 11, "--serve nowhere: write HOST:PORT"),
    ],
)
def test_predict_refuses_what_does_not_fit(folder: Path, args: list[str], code: int, message: str) -> None:
    (folder / "job.py").write_text(PLAIN + "\ndef wide(): return hansa.Dataset(x=np.zeros((2, 3)))\n")
    trained(folder)
    done = hansa("predict", "--job", "job.py", *args)
    assert (done.code, message in done.err) == (code, True), done.err


def test_predict_refuses_the_model_of_another_architecture(folder: Path) -> None:
    trained(folder)
    (folder / "job.py").write_text(PLAIN.replace("classes=2", "classes=3"))
    assert hansa("predict", "--job", "job.py", "--model", "m.st", "--data", "job.py:test").code == 14


def test_the_service_answers_as_predict_does_and_survives_garbage(folder: Path) -> None:
    pytest.importorskip("starlette")
    httpx = pytest.importorskip("httpx")
    trained(folder)
    args = [*HANSA, "predict", "--job", "job.py", "--model", "m.st", "--serve", "127.0.0.1:0", "--format", "json"]
    with subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = "http://" + json.loads(process.stdout.readline())["address"]
            with httpx.Client(base_url=url, timeout=10) as client:
                assert client.get("/health").json() == {"status": "ok", "job": "plain", "round": "3"}
                found = client.post("/predict", json={"x": [[3.0, 3.0], [-3.0, -3.0]]})
                assert found.json()["predictions"] == [1, 0]
                for bad in GARBAGE:
                    answer = client.post("/predict", content=bad)
                    assert answer.status_code == 400, bad
                    assert answer.json()["error"]
                assert client.post("/predict", content=b" " * (17 << 20)).status_code == 413
                assert client.get("/predict").status_code == 405
                taken = []
                for _ in range(200):
                    begun = time.perf_counter()
                    client.post("/predict", json={"x": [[3.0, 3.0]]})
                    taken.append(time.perf_counter() - begun)
            print(f"p50 of a prediction over HTTP: {sorted(taken)[100] * 1e3:.2f} ms")
            assert sorted(taken)[100] < 0.1
        finally:
            process.terminate()
            process.wait(10)


# ── enrolment ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_enrolment_by_issue_renew_revoke_and_list(folder: Path) -> None:
    pytest.importorskip("cryptography")
    assert hansa("enrol", "init", "Study").code == 0
    assert hansa("enrol", "init", "Study").code == 20
    done = hansa("enrol", "issue", "alice", "--role", "submitter", "--out", "alice.pem", "--format", "json")
    assert done.events[0]["role"] == "submitter"
    assert oct((folder / "alice.pem").stat().st_mode & 0o777) == "0o600"
    assert not list((folder / "authority" / "members").glob("*.pem"))
    assert hansa("enrol", "issue", "srv", "--role", "server").code == 20  # without hosts
    assert hansa("enrol", "renew", "alice.pem").code == 0
    shown = hansa("enrol", "show", "alice.pem")
    assert "alice, submitter of 'Study'" in shown.out
    assert "PRIVATE" not in shown.out
    assert hansa("enrol", "revoke", "alice").code == 0
    rows = hansa("enrol", "list", "--format", "json").events
    assert [(row["name"], row["status"]) for row in rows] == [("alice", "revoked"), ("alice", "revoked")]
    assert "revoked" in hansa("enrol", "list").out
    assert hansa("enrol", "revoke", "0xzz").code == 11
    assert hansa("enrol", "revoke", "bob").code == 20


def test_enrolment_by_request_compares_fingerprints(folder: Path) -> None:
    pytest.importorskip("cryptography")
    hansa("enrol", "init", "Study")
    asked = hansa("enrol", "request", "site", "--role", "worker", "--format", "json").events[0]
    sign = ["enrol", "sign", "site.request.pem", "--name", "site", "--role", "worker"]
    unsure = hansa(*sign)
    assert (unsure.code, "compare fingerprints" in unsure.err) == (11, True)
    wrong = hansa(*sign, "--fingerprint", "0123456789")
    assert (wrong.code, "do not sign it" in wrong.err) == (20, True)
    assert hansa(*sign, "--fingerprint", asked["fingerprint"][:4]).code == 20
    assert hansa(*sign, "--fingerprint", asked["fingerprint"][:12]).code == 0
    assert hansa("enrol", "accept", "site.pem", "authority/members/site.certificates.pem").code == 0
    assert "site, worker of 'Study'" in hansa("enrol", "show", "site.pem").out


def test_the_authority_s_passphrase_comes_from_the_environment_or_a_person(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cryptography")
    monkeypatch.setenv("HANSA_PASSPHRASE", "correct horse")
    assert hansa("enrol", "init", "Study").code == 0
    assert hansa("enrol", "list").code == 0
    monkeypatch.setenv("HANSA_PASSPHRASE", "wrong")
    assert hansa("enrol", "list").code == 20
    monkeypatch.delenv("HANSA_PASSPHRASE")
    done = hansa("enrol", "list", "--passphrase")
    assert (done.code, "no terminal" in done.err) == (11, True)


# ── a federation: what fails before anything is sent ─────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["list"], 11, "no identity: give --identity FILE.pem"),
        (["list", "--insecure", "--server", "foo"], 11, "--server foo: write HOST:PORT"),
        (["list", "--insecure", "--server", "1.2.3.4:80"], 11, "only this machine is safe"),
        (["list", "--insecure", "--server", "127.0.0.1:1"], 24, "nobody answers (Connection refused)"),
        (["list", "--identity", "no.pem"], 20, "no.pem"),
        (["list", "--identity", "no.pem", "--insecure"], 11, "give one of them"),
        (["submit", "no.py", "--insecure"], 19, "there is no job file"),
        (["submit", "job.py", "--insecure", "--set", "x=1"], 11, "unknown key 'x'"),
        (["submit", "no.hansa", "--insecure"], 22, "no.hansa"),
        (["submit", "no.hansa", "--insecure", "--set", "rounds=1"], 11, "is an archive"),
        (["worker", "--data", "no.csv", "--insecure", "--name", "a"], 13, "there is no file 'no.csv'"),
        (["worker", "--data", "no", "--insecure", "--name", "a"], 13, "give module.py:function"),
        (["worker", "--data", "job.py:test", "--insecure"], 11, "--insecure needs --name"),
        (["worker", "--data", "job.py:test", "--name", "a", "--identity", "x"], 11, "--name is for --insecure"),
        (["worker", "--data", "job.py:test", "--allow", "all"], 11, "--allow all is no rule"),
        (["worker", "--data", "job.py:test", "--insecure", "--name", "a", "--device", "tpu"], 11, "--device tpu"),
        (["worker", "--insecure", "--name", "a"], 11, "no --data: say where your data is"),
        (["worker", "--helper", "--data", "job.py:test", "--insecure", "--name", "a"], 11, "leave --data out"),
        (["server", "--state", "no/s", "--insecure"], 11, "there is no folder no"),
        (["server", "--state", "s", "--bind", "8443", "--insecure"], 11, "--bind 8443: write HOST:PORT"),
        (["server", "--state", "s", "--insecure", "--bind", "0.0.0.0:0"], 11, "insecure"),
        (["server", "--state", "s"], 11, "no identity"),
        (["model", "x", "--insecure", "--out", "no/m"], 11, "there is no folder no"),
    ],
)
def test_a_federation_s_command_fails_with_a_sentence_and_its_code(args: list[str], code: int, message: str) -> None:
    pytest.importorskip("grpc")
    done = hansa(*args)
    assert (done.code, message in done.err) == (code, True), done.err


def test_a_server_s_database_is_where_its_url_says(folder: Path) -> None:
    pytest.importorskip("grpc")
    command = [*HANSA, "server", "--state", "s", "--insecure", "--database", "postgres"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, "the database's URL cannot be read" in done.stderr) == (11, True), done.stderr


def test_hansa_toml_says_where_the_server_is(folder: Path) -> None:
    pytest.importorskip("grpc")
    (folder / "hansa.toml").write_text('server = "127.0.0.1:1"\n')
    assert "server 127.0.0.1:1: nobody answers" in hansa("list", "--insecure").err
    (folder / "hansa.toml").write_text('serverr = "127.0.0.1:1"\n')
    done = hansa("list", "--insecure")
    assert (done.code, "not 'serverr'" in done.err) == (11, True)


def test_a_person_at_the_terminal_is_shown_the_files_and_answers(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("grpc")
    from hansa.app.federation import Person
    from hansa.core.errors import PolicyError
    from hansa.runtimes.bundle import pack

    bundle = pack(folder / "job.py", None, None)
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    with pytest.raises(PolicyError, match="no terminal to ask at"):
        Person().ask(bundle, "alice")
    there, here = os.openpty()
    with open(here) as terminal:
        monkeypatch.setattr(sys, "stdin", terminal)
        for said, allowed in (("y", True), ("", False), ("what", False), ("s", True)):
            os.write(there, f"{said}\n".encode())
            if said == "s":
                os.write(there, b"yes\n")
            assert Person().ask(bundle, "alice") is allowed
        monkeypatch.undo()
    os.close(there)
    shown = capsys.readouterr().out
    assert f"job {bundle.hash} of alice: 1 files, entry job.py" in shown
    assert 'name="plain",' in shown
