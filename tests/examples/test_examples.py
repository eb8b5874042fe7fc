"""Every script in examples/ runs, and prints a number."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
HELPERS = {"iris/data.py", "iris/job.py", "model_owner/job.py"}  # loaded by others, and by `hansa`
FEDERATIONS = {
    "iris/flower_style/pt_server.py",
    "iris/flower_style/pt_client.py",
    "model_owner/run.py",
}  # test_flower.py and test_model_owner.py start them
PAPERS = {path.relative_to(EXAMPLES).as_posix() for path in (EXAMPLES / "papers").glob("*.py")}  # see test_papers.py
CREDIT = {path.relative_to(EXAMPLES).as_posix() for path in (EXAMPLES / "credit").glob("*.py")}  # see test_credit.py
SECRET = {path.relative_to(EXAMPLES).as_posix() for path in (EXAMPLES / "secret").glob("*.py")}  # see test_secret.py
SCRIPTS = sorted(
    {path.relative_to(EXAMPLES).as_posix() for path in EXAMPLES.rglob("*.py")}
    - HELPERS
    - FEDERATIONS
    - PAPERS
    - SECRET
    - CREDIT
)


@pytest.mark.parametrize("script", SCRIPTS)
def test_example_runs_and_prints_a_number(script: str) -> None:
    environment = {**os.environ, "HANSA_ROUNDS": "2", "MPLBACKEND": "agg", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / script)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"\d", done.stdout), f"{script} printed {done.stdout!r}"


def test_no_example_names_a_path_of_this_machine() -> None:
    for path in EXAMPLES.rglob("*"):
        if path.suffix in (".py", ".md", ".toml"):
            assert not re.search(r"/(home|root|tmp|work)/", path.read_text(encoding="utf-8")), path
