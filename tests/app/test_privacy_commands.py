"""`hansa privacy`: what is planned, foretold, spent and allowed, for people and for machines."""

import json
from contextlib import closing
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hansa.app.cli import app

pytest.importorskip("dp_accounting")
JOB = """
import numpy as np
import hansa

rng = np.random.default_rng(0)
clients = hansa.Clients.of({f"c{i:02d}": hansa.Dataset(x=rng.standard_normal((5, 4)).astype("float32"),
                                                     y=rng.integers(0, 2, 5)) for i in range(40)})
job = hansa.Job(
    model=hansa.LogisticModel(4, 2),
    algorithm=hansa.FedAvg(hansa.LocalWork(lr=0.1, epochs=1)),
    pipeline=hansa.Pipeline([hansa.Clip(1.0), hansa.UniformMean(), hansa.NOISE], hansa.Sum()),
    sampling=hansa.Poisson(0.5), rounds=4)
"""


def said(*words: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, list(words))
    assert done.exit_code == code, done.output
    return done.output


def facts(*words: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in said("--format", "json", *words).splitlines() if line.startswith("{")]


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "job.py"
    path.write_text(JOB.replace("NOISE", "Gaussian(1.0)"))
    return path


def test_plan_says_cohort_and_noise(tmp_path: Path) -> None:
    asked = ["privacy", "plan", "--epsilon", "2", "--delta", "1e-5", "--clients", "3383", "--rounds", "100"]
    out = said(*asked)
    assert out.startswith("To get (2, 1e-05)-DP, use 120 clients with noise multiplier 1.2.\n")
    assert "sampling=hansa.Poisson(120 / 3383), hansa.Gaussian(1.2)" in out
    found = facts(*asked, "--cohort", "120")[0]
    assert found["event"] == "plan" and found["cohort"] == 120 and 1.19 < float(str(found["noise_multiplier"])) < 1.2


def test_plan_draws_a_picture_and_warns_of_delta(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    picture = tmp_path / "plan.svg"
    out = said(
        "privacy", "plan", "--epsilon", "5", "--delta", "0.02", "--clients", "50", "--rounds", "2", "--cohort", "10",
        "--plot", str(picture),
    )  # fmt: skip
    assert picture.read_text().startswith("<?xml") and f"picture written to {picture}" in out
    assert "not below 1 / 50" in out


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (["--epsilon", "0", "--delta", "1e-5"], "epsilon=0.0"),
        (["--epsilon", "1", "--delta", "1"], "delta=1.0"),
        (["--epsilon", "1", "--delta", "1e-5", "--by", "guess"], "by='guess'"),
        (["--epsilon", "1", "--delta", "1e-5", "--plot", "x.txt"], "--plot x.txt"),
        (["--epsilon", "1", "--delta", "1e-5", "--plot", "nowhere/x.png"], "no folder nowhere"),
    ],
)
def test_bad_plans_are_refused(words: list[str], remedy: str) -> None:
    assert remedy in said("privacy", "plan", "--clients", "100", "--rounds", "10", *words, code=11)


def test_epsilon_is_said_against_models_and_server(job: Path) -> None:
    out = said("privacy", "epsilon", str(job))
    assert "against those who see the models: ε = " in out and "after 1 rounds" in out
    assert "against the server itself: ε = ∞" in out and "use DistributedGaussian" in out
    job.write_text(JOB.replace("NOISE", "LocalGaussian(3.0)"))
    local = facts("privacy", "epsilon", str(job), "--delta", "1e-6", "--set", "rounds=2")
    assert [found["against"] for found in local] == ["models", "server"]
    assert local[0]["epsilon"] == local[1]["epsilon"] is not None
    assert "each seen alone" in str(local[0]["relation"])


def test_ledger_and_budget_of_a_state(job: Path, tmp_path: Path) -> None:
    state = str(tmp_path / "state")
    assert "holds no state" in said("privacy", "ledger", "--state", state, code=19)
    said("simulate", str(job), "--state", state)
    out = said("privacy", "budget", "--state", state, "--epsilon", "20", "--delta", "1e-4")
    assert "may be charged ε = 20 at δ = 0.0001" in out
    run, together = facts("privacy", "ledger", "--state", state)
    assert run["releases"] == together["releases"] == 4
    assert run["epsilon"] == together["epsilon"] and together["budget"] == 20.0 and run["delta"] == 1e-4
    assert "ε = 20" in said("privacy", "budget", "--state", state, "--epsilon", "3")
    said("simulate", str(job), "--state", state, "--resume", "--set", "rounds=50", code=27)
    assert "delta=2.0" in said("privacy", "budget", "--state", state, "--epsilon", "3", "--delta", "2", code=11)


def test_ledger_can_be_read_while_a_server_has_the_folder(job: Path, tmp_path: Path) -> None:
    from hansa.runtimes.store import SqlStore

    with closing(SqlStore(tmp_path / "state")) as store:
        assert "no run has begun here" in said("privacy", "ledger", "--state", str(tmp_path / "state"))
        said("privacy", "budget", "--state", str(tmp_path / "state"), "--epsilon", "1")
        assert store.budget() is not None


def test_runs_without_noise_are_named_and_not_in_the_sum(job: Path, tmp_path: Path) -> None:
    job.write_text(JOB.replace(", hansa.NOISE", ""))
    said("simulate", str(job), "--state", str(tmp_path / "state"))
    out = said("privacy", "ledger", "--state", str(tmp_path / "state"))
    assert "none: exact" in out and "no ε covers them" in out
