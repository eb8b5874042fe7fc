"""The benchmark for a GPU runs whole where there is none, and prints a number on each line."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
SCRIPT = Path(__file__).parents[1] / "benchmarks" / "on_gpu.py"


@pytest.mark.slow
def test_it_prints_every_figure_of_a_task_on_the_processor() -> None:
    command = [sys.executable, str(SCRIPT), "T1", "--device", "cpu", "--clients", "3", "--seconds", "0.1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [line[:60].strip() for line in done.stdout.splitlines() if float(line[60:72]) > 0]
    assert rows == [
        "cpu: products of float32",
        "T1 plain loop, one client after another",
        "T1 torch.func, 3 clients",
        "T1 hansa.train, 3 clients, cohort",
        "T1 hansa.train, 3 clients, replay",
    ]
