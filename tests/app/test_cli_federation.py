"""A whole federation through the command line alone: real processes, mutual TLS, from enrolment to predictions."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("grpc")
pytest.importorskip("sqlalchemy")
pytest.importorskip("cryptography")
pytestmark = pytest.mark.slow

HANSA = [sys.executable, "-m", "hansa"]


class Federation:
    """A folder with identities, a server and workers, all driven by commands."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: dict[str, subprocess.Popen[str]] = {}
        self.environment = {**os.environ, "HANSA_IDENTITY": "alice.pem", "OMP_NUM_THREADS": "1"}
        self.environment.pop("HANSA_SERVER", None)

    def run(self, *args: object, code: int = 0) -> list[dict[str, Any]]:
        """One command, its JSON lines; the exit code must be as expected."""
        done = self.plain(*args, "--format", "json")
        assert done.returncode == code, (args, done.stdout, done.stderr)
        return [json.loads(line) for line in done.stdout.splitlines()]

    def plain(self, *args: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*HANSA, *map(str, args)], cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=60
        )

    def start(self, name: str, *args: object, **environment: str) -> dict[str, Any]:
        """A long-running command; its first JSON line."""
        log = (self.folder / f"{name}.log").open("a")
        process = subprocess.Popen(
            [*HANSA, *map(str, args), "--format", "json"], cwd=self.folder, env={**self.environment, **environment},
            stdout=subprocess.PIPE, stderr=log, text=True,
        )  # fmt: skip
        log.close()
        self.processes[name] = process
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, (self.folder / f"{name}.log").read_text()
        return dict(json.loads(line))

    def worker(self, name: str, part: int, *allow: str) -> None:
        rules = [word for rule in allow for word in ("--allow", rule)]
        self.start(name, "worker", "--identity", f"{name}.pem", "--data", "job/data.py:load", *rules, PART=str(part))

    def end(self, name: str, how: int = signal.SIGTERM) -> int:
        process = self.processes.pop(name)
        process.send_signal(how)
        code = process.wait(20)
        assert process.stdout is not None
        process.stdout.close()
        return code


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    made = Federation(tmp_path)
    assert made.plain("new", "job").returncode == 0
    made.run("enrol", "init", "Study")
    made.run(
        "enrol", "issue", "srv", "--role", "server", "--host", "localhost", "--host", "127.0.0.1", "--out", "srv.pem"
    )
    made.run("enrol", "issue", "alice", "--role", "submitter", "--out", "alice.pem")
    for name in ("clinic-a", "clinic-b"):
        made.run("enrol", "issue", name, "--role", "worker", "--out", f"{name}.pem")
    facts = made.start("srv", "server", "--state", "state", "--bind", "127.0.0.1:0", "--identity", "srv.pem")
    assert facts["secure"] is True
    made.environment["HANSA_SERVER"] = facts["address"]
    yield made
    for name in list(made.processes):
        made.end(name, signal.SIGKILL)


def test_from_enrolment_to_predictions_with_a_changed_job_for_the_same_workers(federation: Federation) -> None:
    f = federation
    f.worker("clinic-a", 0, "signer:alice")
    f.worker("clinic-b", 1, "signer:alice")
    few = ["--set", "cohort=2", "--set", "rounds=4"]

    # Submitted, followed, fetched and used.
    events = f.run("submit", "job/job.py", *few, "--wait")
    assert events[0]["event"] == "bundle" and events[0]["signer"] == "alice"
    run = events[1]["run"]
    rounds = [event for event in events if event["event"] == "round"]
    assert [event["round"] for event in rounds] == [0, 1, 2, 3]
    assert all(event["counted"] == 2 for event in rounds)
    assert events[-1]["state"] == "done"
    watched = f.plain("watch", run[:6])
    assert watched.stdout.count("clients 2/2") == 4
    assert f"run {run[:6]} is done after 4 rounds" in watched.stdout
    assert f.run("model", run, "--out", "m.safetensors")[0]["round"] == 4
    f.run("model", run, "--out", "best.safetensors", "--best", "--job", "job/job.py")
    metrics = f.run(
        "predict", "--job", "job/job.py", "--model", "m.safetensors", "--data", "job/data.py:test", "--out", "p.csv"
    )
    assert metrics[0]["metrics"] == pytest.approx(rounds[-1]["central"], abs=1e-6)

    # Seen from outside.
    (row,) = f.run("list")
    assert (row["run"], row["state"], row["rounds"], row["submitter"]) == (run, "done", 4, "alice")
    assert f.run("status")[0]["fingerprint"] == row["fingerprint"]
    assert {row["name"] for row in f.run("members") if row["connected"]} >= {"clinic-a", "clinic-b"}
    assert any("round" in line["text"] for line in f.run("logs", run))
    assert f.run("status", "nope", code=19) == []

    # A changed job, to the same workers, in one command.
    text = (f.folder / "job" / "job.py").read_text()
    (f.folder / "job" / "job.py").write_text(text.replace("lr=0.1", "lr=0.2"))
    begun = time.monotonic()
    again = f.run("submit", "job/job.py", *few, "--wait")
    took = time.monotonic() - begun
    assert again[-1]["state"] == "done"
    assert again[0]["hash"] != events[0]["hash"]
    print(f"a changed job, from `submit` to its end after 4 rounds on 2 workers: {took:.1f} s")
    assert took < 20

    # Both ends close in order.
    assert f.end("clinic-a") == 0
    assert f.end("srv") == 0


def test_a_job_runs_only_where_its_owner_allows_it_and_its_failure_is_the_command_s(federation: Federation) -> None:
    f = federation
    f.worker("clinic-a", 0, "signer:alice")
    f.worker("clinic-b", 1, "signer:bob")
    events = f.run("submit", "job/job.py", "--set", "cohort=2", "--wait", code=17)
    assert events[-1]["state"] == "failed"
    assert "not allowed by this worker's owner" in events[-1]["reason"]
    said = f.plain("watch", events[1]["run"])
    assert said.returncode == 17
    assert "clinic-b" in said.stderr and "Traceback" not in said.stderr

    # A worker's identity submits nothing; a stranger's gets nowhere; an unsigned job is refused.
    f.environment["HANSA_IDENTITY"] = "clinic-a.pem"
    f.run("submit", "job/job.py", code=20)
    done = f.plain("list")
    assert (done.returncode, "enrolled as worker" in done.stderr) == (20, True), done.stderr
    f.run("enrol", "init", "Elsewhere", "--authority", "elsewhere")
    f.run("enrol", "issue", "alice", "--role", "submitter", "--authority", "elsewhere", "--out", "mallory.pem")
    f.environment["HANSA_IDENTITY"] = "mallory.pem"
    done = f.plain("list")
    assert (done.returncode, "federation" in done.stderr) == (24, True), done.stderr
    f.environment["HANSA_IDENTITY"] = "alice.pem"
    f.run("build", "job/job.py", "--out", "unsigned.hansa")
    (f.folder / "bare.hansa").write_bytes((f.folder / "unsigned.hansa").read_bytes())
    del f.environment["HANSA_IDENTITY"]
    f.run("build", "job/job.py", "--out", "bare.hansa")
    done = f.plain("submit", "bare.hansa", "--identity", "alice.pem")
    assert (done.returncode, "is unsigned" in done.stderr) == (22, True), done.stderr


def test_a_run_is_stopped_and_goes_on_and_logs_follow_it(federation: Federation) -> None:
    f = federation
    f.worker("clinic-a", 0, "signer:alice")
    f.worker("clinic-b", 1, "signer:alice")
    run = f.run("submit", "job/job.py", "--set", "cohort=2", "--set", "rounds=2000")[1]["run"]
    follower = subprocess.Popen(
        [*HANSA, "logs", run, "--follow", "--format", "json"],
        cwd=f.folder,
        env=f.environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert follower.stdout is not None
    seen = [json.loads(follower.stdout.readline()) for _ in range(8)]
    behind = time.time() - seen[-1]["time"]
    assert any("round" in line["text"] for line in seen)
    assert behind < 30  # the file's first lines are older; what is new is there within a second
    stopped = f.run("stop", run)[0]
    assert (stopped["state"], stopped["round"] > 0) == ("stopped", True)
    rest = follower.communicate(timeout=20)[0].splitlines()
    last = json.loads(rest[-1])
    assert "stopped" in last["text"]
    assert follower.returncode == 0
    assert f.run("watch", run)[-1]["state"] == "stopped"
    assert f.run("resume", run)[0]["run"] == run
    watching = subprocess.Popen(
        [*HANSA, "watch", run],
        cwd=f.folder,
        env=f.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert watching.stdout is not None
    while f"round {stopped['round'] + 2}/" not in watching.stdout.readline():
        pass
    watching.send_signal(signal.SIGINT)
    _, said = watching.communicate(timeout=20)
    assert watching.returncode == 130
    assert f"run {run} goes on" in said
    f.run("stop", run)
