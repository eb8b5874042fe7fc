"""The README's example and the tutorial run as they are printed, and print what the pages say."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {
    **os.environ,
    "MPLBACKEND": "agg",
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry),
}
README, TUTORIAL = ROOT / "README.md", ROOT / "docs" / "tutorial.md"


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def run(*command: str, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, *command], cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def figures(text: str) -> list[str]:
    """The metrics of a text, without times and bytes."""
    return re.findall(r"(?:loss|accuracy) \d+\.\d+", text)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("sklearn")
    pytest.importorskip("typer")
    made = tmp_path_factory.mktemp("digits")
    for name, code in zip(("data.py", "job.py", "curve.py"), blocks(TUTORIAL, "python"), strict=True):
        (made / name).write_text(code, encoding="utf-8")
    return made


def test_tutorial_simulates_and_prints_the_figures_of_the_page(folder: Path) -> None:
    told = run("-m", "hansa.app.cli", "simulate", "job.py", "--out", "model.safetensors", cwd=folder).splitlines()
    page = TUTORIAL.read_text(encoding="utf-8")
    for line in (told[0], told[1], told[19], told[20]):
        assert figures(line)
        assert any(figures(line) == figures(printed) for printed in page.splitlines()), line


def test_tutorials_curve_prints_what_the_page_says(folder: Path) -> None:
    pytest.importorskip("matplotlib")
    told = run("curve.py", cwd=folder)
    assert told.strip() in TUTORIAL.read_text(encoding="utf-8")
    assert (folder / "curve.png").stat().st_size > 1000


def test_every_command_of_the_pages_exists() -> None:
    cli = pytest.importorskip("typer.main").get_command(__import__("hansa.app.cli", fromlist=["app"]).app)
    for page in (README, TUTORIAL, ROOT / "examples" / "iris" / "README.md"):
        for line in re.findall(r"^\$ hansa (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE):
            for words in (part.split("#")[0].split() for part in line.split("&& hansa ")):
                command = cli
                while words and hasattr(command, "commands"):
                    assert words[0] in command.commands, f"{page.name}: hansa {line}"
                    command = command.commands[words.pop(0)]
                known = {option for parameter in command.params for option in parameter.opts}
                asked = {word for word in words if word.startswith("--")}
                assert asked <= known | {"--help", "--format"}, f"{page.name}: hansa {line}"


def test_readme_is_short_enough_to_be_read() -> None:
    words = re.sub(r"```.*?```", "", README.read_text(encoding="utf-8"), flags=re.DOTALL).split()
    assert 400 <= len(words) <= 700


@pytest.mark.slow
def test_readmes_example_prints_what_the_page_says(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    (example,) = blocks(README, "python")
    (tmp_path / "example.py").write_text(example, encoding="utf-8")
    assert run("example.py", cwd=tmp_path).strip() in README.read_text(encoding="utf-8")
    assert len(example.splitlines()) < 26
    assert (tmp_path / "model.safetensors").exists()
