"""What each party learns of other owners' columns: the page is what the declarations say."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hansa.app.cli import app

for extra in ("torch", "cryptography", "gmpy2", "coincurve"):
    pytest.importorskip(extra)

vertical_threats = pytest.importorskip("hansa.app.vertical_threats")

PAGE = Path(__file__).resolve().parents[2] / "docs" / "vertical.md"


def test_the_page_has_the_table_that_the_declarations_give() -> None:
    made = PAGE.read_text(encoding="utf-8").split("--vertical` -->\n", 1)[1].split("\n<!-- end -->", 1)[0]
    assert made == vertical_threats.page(), "put what `hansa threats --vertical` prints into the page"


def test_every_algorithm_says_of_each_party_what_it_learns() -> None:
    for title, learns in vertical_threats.declarations():
        assert learns, title
        assert all(not isinstance(sentences, str) for sentences in learns.values()), title


def test_the_command_prints_the_table_and_json() -> None:
    run = CliRunner().invoke
    assert run(app, ["threats", "--vertical"]).stdout.strip() == vertical_threats.page().strip()
    lines = [json.loads(line) for line in run(app, ["threats", "--vertical", "--format", "json"]).stdout.splitlines()]
    assert any(line["algorithm"] == "Scaling" and line["party"] == "each owner" for line in lines)
