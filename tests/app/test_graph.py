"""`hansa graph`: every party has its lane and colour, and what is drawn is what the job does."""

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from typer.testing import CliRunner

import hansa
from hansa.app.cli import app
from hansa.app.graph import SERVER, Flow, dot, flow, svg
from hansa.core.errors import ConfigError

OWNER = Path(__file__).resolve().parents[2] / "examples" / "model_owner" / "job.py"
SVG = "{http://www.w3.org/2000/svg}"


def job(*stages: Any, reducer: Any = None, cohort: int = 20, **more: Any) -> hansa.Job:
    return hansa.Job(
        model=hansa.LogisticModel(64, 10), algorithm=hansa.FedAvg(hansa.LocalWork(lr=0.5, epochs=1)),
        pipeline=hansa.Pipeline(stages, reducer or hansa.Sum()), cohort=cohort, **more,
    )  # fmt: skip


def words(found: Flow, party: str) -> str:
    return " ".join(line for box in found.boxes if box.party == party for line in box.lines)


def test_every_party_of_a_job_has_a_lane_and_a_colour_of_its_own(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["graph", str(OWNER), "--out", str(tmp_path / "flow.svg")])
    assert done.exit_code == 0, done.output
    root = ElementTree.fromstring((tmp_path / "flow.svg").read_text())
    texts = ["".join(found.itertext()) for found in root.iter(f"{SVG}text")]
    for party in (SERVER, "worker 1", "worker 2", "worker 3 … 5", "helper-a", "helper-b"):
        assert party in texts
    borders = {found.get("stroke") for found in root.iter(f"{SVG}rect")} - {None}
    assert len(borders) == 6
    assert any(text.startswith("the server: sums over the round's workers") for text in texts)


def test_dot_names_each_box_once_and_arrows_only_between_boxes() -> None:
    done = CliRunner().invoke(app, ["graph", str(OWNER)])
    assert done.exit_code == 0, done.output
    boxes = re.findall(r"^    (b\d+) \[label=", done.output, re.M)
    arrows = re.findall(r"^  (b\d+) -> (b\d+)", done.output, re.M)
    assert len(boxes) == len(set(boxes)) == 12 and {end for pair in arrows for end in pair} == set(boxes)
    assert done.output.count("subgraph cluster_") == 6
    assert (
        len(re.findall(r"-> b\d+ \[style=dashed\]", done.output)) == 3 * 2 + 2
    )  # keys: to each helper, and their sums


def test_contributions_go_to_the_server_alone_and_to_no_helper() -> None:
    found = flow(job(hansa.Clip(1.0), hansa.UniformMean(), hansa.Quantise(16), reducer=hansa.MpcSum(("a", "b"))), 20)
    for arrow in found.arrows:
        to_helper = found.boxes[arrow.end].party in ("a", "b")
        assert arrow.keys == (to_helper or found.boxes[arrow.start].party in ("a", "b"))
    assert "sees the sum alone" in words(found, SERVER)
    assert "sees each contribution" in words(flow(job(hansa.UniformMean()), 20), SERVER)


def test_noise_stands_where_it_is_added() -> None:
    central = flow(job(hansa.Clip(1.0), hansa.UniformMean(), hansa.Gaussian(1.0)), 20)
    assert "Gaussian (noise)" in words(central, SERVER) and "Gaussian" not in words(central, "worker 1")
    own = flow(job(hansa.Clip(1.0), hansa.UniformMean(), hansa.LocalGaussian(1.0)), 20)
    assert "LocalGaussian" in words(own, "worker 1") and "LocalGaussian" not in words(own, SERVER)


def test_few_workers_are_drawn_one_by_one_and_stages_downwards_are_named() -> None:
    found = flow(job(hansa.UniformMean(), cohort=2, down=hansa.Pipeline([hansa.Quantise(8)])), 2)
    assert found.parties == [SERVER, "worker 1", "worker 2"] and "after Quantise" in words(found, SERVER)
    assert "decode: UniformMean" in words(found, SERVER)


def test_names_are_escaped() -> None:
    found = flow(job(hansa.UniformMean(), name='a "b" <script>&'), 20)
    assert "".join(next(ElementTree.fromstring(svg(found)).iter(f"{SVG}text")).itertext()) == 'a "b" <script>&'
    assert r'digraph "a \"b\" <script>&" {' in dot(found)


def test_another_kind_of_file_and_a_job_with_faults_are_refused(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["graph", str(OWNER), "--out", str(tmp_path / "flow.gif")])
    assert done.exit_code == ConfigError.exit_code and "end its name with .svg or .dot" in done.output
    done = CliRunner().invoke(app, ["graph", str(OWNER), "--clients", "2"])
    assert done.exit_code != 0 and "cohort" in done.output
