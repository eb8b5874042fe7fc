"""Who sees what: the page is what the declarations say, and they agree with what the code does."""

import dataclasses
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hansa.app import threats
from hansa.app.cli import app
from hansa.core.pipeline import Reducer, Stage
from hansa.privacy.threats import Adversary, declared

for extra in ("cryptography", "tenseal", "constriction"):
    pytest.importorskip(extra)

PAGE = Path(__file__).resolve().parents[2] / "docs" / "threat-models.md"


def kinds(base: type) -> dict[str, type]:
    import hansa

    named = {name: getattr(hansa, name) for name in threats.mechanisms() if name != threats.RECORDS}
    return {name: kind for name, kind in named.items() if issubclass(kind, base)}


def test_the_page_has_the_table_that_the_declarations_give() -> None:
    text = PAGE.read_text(encoding="utf-8")
    made = text.split("then run it -->\n", 1)[1].split("\n<!-- end -->", 1)[0]
    assert made == threats.page(), "declarations have changed: put what `hansa threats` prints into the page"


@pytest.mark.parametrize("name", sorted(kinds(Reducer)))
def test_every_reducer_speaks_of_both_servers_of_workers_and_of_its_helpers(name: str) -> None:
    kind = kinds(Reducer)[name]
    rows = {seen.who: seen for seen in declared(kind)}
    assert {Adversary.SERVER, Adversary.LIAR, Adversary.WORKER} <= set(rows)
    hidden = kind.sees == "total"
    assert ("each worker's contribution" in rows[Adversary.SERVER].what) != hidden
    assert bool(rows[Adversary.SERVER].provided) == hidden, "what is hidden rests on something, and says on what"
    assert (Adversary.HELPER in rows) == bool(kind().helpers if hidden else ())


@pytest.mark.parametrize("name", sorted(kinds(Stage)))
def test_the_stages_that_declare_something_are_those_that_add_noise(name: str) -> None:
    """A stage whose steps release nothing to the ledger hides nothing from anybody."""
    kind = kinds(Stage)[name]
    settings = {field.name for field in dataclasses.fields(kind)}
    assert bool(declared(kind)) == bool(settings & {"noise_multiplier", "epsilon"})


def test_the_command_gives_one_mechanism_all_of_them_and_json() -> None:
    run = CliRunner().invoke
    assert run(app, ["threats"]).stdout.strip() == threats.page().strip()
    said = run(app, ["threats", "MpcSum"]).stdout
    assert "a helper: who takes part" in said and "provided that at least one helper" in said and "HeSum" not in said
    lines = [json.loads(line) for line in run(app, ["threats", "Sum", "--format", "json"]).stdout.splitlines()]
    assert {line["against"] for line in lines} == {Adversary.SERVER, Adversary.LIAR, Adversary.WORKER}
    assert "hide nothing" in run(app, ["threats", "Clip"]).stdout
    assert run(app, ["threats", "Nothing"]).exit_code == 19
