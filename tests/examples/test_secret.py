"""The programs of examples/secret run as parties, and learn on shares what they learn in the clear."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "secret"


def run(script: str, *options: str, protocol: str = "plain") -> str:
    command = [sys.executable, "-m", "hansa", "mpc", "local", str(FOLDER / script), *options, "--quick"]
    given = [*command[:5], "--protocol", protocol, *command[5:]]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "160"}
    done = subprocess.run(given, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def difference(output: str) -> float:
    """Of the scores on shares and in the clear."""
    found = re.search(r"([-\d.]+) +([-\d.]+) +([-+][\d.]+)$", output, re.MULTILINE)
    assert found is not None, output
    return float(found[2]) - float(found[1])


@pytest.mark.parametrize(
    ("script", "options", "within"),
    [
        ("housing.py", ["--epochs", "3"], 2e-3),
        pytest.param("mnist_logistic.py", ["--halves"], 0.01, marks=pytest.mark.slow),
        pytest.param("mnist_mlp.py", ["--rows", "512", "--epochs", "1"], 0.02, marks=pytest.mark.slow),
        pytest.param("gru.py", [], 0.03, marks=pytest.mark.slow),
        pytest.param("factorisation_machine.py", ["--epochs", "2"], 0.01, marks=pytest.mark.slow),
    ],
)
def test_a_program_learns_on_shares_what_it_learns_in_the_clear(script: str, options: list[str], within: float) -> None:
    assert abs(difference(run(script, *options))) <= within


@pytest.mark.slow
def test_lenet_learns_on_shares_what_it_learns_in_the_clear() -> None:
    assert abs(difference(run("lenet.py", "--rows", "128"))) <= 0.03


@pytest.mark.slow
def test_three_processes_learn_the_same_prices(tmp_path: Path) -> None:
    assert abs(difference(run("housing.py", "--epochs", "1", protocol="aby3"))) <= 2e-3


def test_a_client_gets_answers_and_the_server_none() -> None:
    output = run("prediction_service.py", protocol="aby3")
    assert "3 requests, " in output and output.count("requests") == 1
    assert "revealed to party-0" in output and "revealed to party-2" not in output
