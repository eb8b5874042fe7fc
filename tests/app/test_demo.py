"""The demo: its rule, its comparison, its page, its checks; the whole of it, with real processes, is marked slow."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from hansa.core.data import Dataset
from hansa.core.errors import ConfigError, TrainingFailed
from hansa.core.job import Job
from hansa.core.train import Record
from hansa.runtimes.jobfile import load_job

pytest.importorskip("sklearn")
pytest.importorskip("grpc")

from hansa.app import demo
from hansa.app.demo import arms, cases, checks, league, report


@pytest.fixture(scope="module")
def job() -> Job:
    return load_job(league.JOB / "job.py")


# ── who holds what ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("seed", range(1, 6))
def test_every_case_is_held_once_or_is_in_the_test_set(seed: int) -> None:
    parts, test = cases.cut(seed)
    rows = np.concatenate([part["x"] for part in (*parts.values(), test)])
    assert len(rows) == 569
    assert len(np.unique(rows, axis=0)) == 569
    assert len(test) == 114


@pytest.mark.parametrize("seed", range(1, 6))
def test_the_cut_is_what_the_rule_says(seed: int) -> None:
    parts, _ = cases.cut(seed)
    for diagnosis in (0, 1):
        total = sum(int((part["y"] == diagnosis).sum()) for part in parts.values())
        for name, shares in cases.SHARES.items():
            assert int((parts[name]["y"] == diagnosis).sum()) == pytest.approx(shares[diagnosis] * total, abs=1)


def test_hospitals_differ_in_size_and_in_their_share_of_malignant_cases() -> None:
    parts, _ = cases.cut(1)
    sizes = [len(part) for part in parts.values()]
    rates = [float(part["y"].mean()) for part in parts.values()]
    assert len(set(sizes)) == 3
    assert rates == sorted(rates)
    assert rates[2] - rates[0] > 0.5


def test_published_ranges_hold_nearly_all_values() -> None:
    parts, _ = cases.cut(1)
    x = np.concatenate([cases.scaled(part)["x"] for part in parts.values()])
    assert x.dtype == np.float32
    assert np.abs(x).max() < 1.1  # the description rounds its numbers


def test_a_hospitals_file_gives_back_the_same_bits(tmp_path: Path) -> None:
    own = cases.cut(1)[0]["hospital-b"]
    cases.write(own, tmp_path / "cases.csv")
    again = cases.read(tmp_path / "cases.csv")
    assert again["x"].tobytes() == cases.scaled(own)["x"].tobytes()
    assert again["y"].tolist() == own["y"].tolist()


# ── what they reach ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_comparison_has_every_arm_and_repeats_itself(job: Job) -> None:
    short = replace(job, rounds=2)
    table = arms.compare(short, (1, 2))
    assert {seed: tuple(scores) for seed, scores in table.items()} == {1: arms.ARMS, 2: arms.ARMS}
    assert table == arms.compare(short, (1, 2))


def test_the_pool_holds_what_all_hospitals_hold() -> None:
    parts, _ = cases.cut(2)
    pool = arms.pool(parts)
    assert len(pool) == sum(map(len, parts.values()))
    assert int(pool["y"].sum()) == sum(int(part["y"].sum()) for part in parts.values())


def test_spread_and_wins_of_a_table_made_by_hand() -> None:
    def scores(alone: float, together: float) -> dict[str, arms.Score]:
        return {"hospital-a": arms.Score(alone, 1.0), arms.TOGETHER: arms.Score(together, 0.5)}

    table = {1: scores(0.9, 0.95), 2: scores(0.8, 0.8), 3: scores(0.85, 0.7)}
    assert arms.spread(table, "hospital-a") == (0.85, 0.8, 0.9)
    assert arms.wins(table, "hospital-a") == (1, 1, 1)


# ── the page ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def findings() -> report.Findings:
    table = {
        seed: {arm: arms.Score(0.9 + 0.01 * place, 0.3 - 0.01 * seed) for place, arm in enumerate(arms.ARMS)}
        for seed in (1, 2, 3)
    }
    records = [
        Record(
            round=i,
            attempt=0,
            asked=3,
            counted=3,
            central={"loss": 1 / (i + 1), "accuracy": 0.9},
            up_bytes=9,
            down_bytes=9,
        )
        for i in range(3)
    ]
    return report.Findings(
        records=records, holdings={"hospital-a": (5, 1)}, raw_bytes=1000, table=table, run="r<1>", job_hash="0" * 64,
        checks=[checks.Check("a <script>", True, "TLSv1.3"), checks.Check("b", False, "x")], signer="alice",
        parameters=62, same_bits=True, training_s=1.0, total_s=2.0,
    )  # fmt: skip


def test_report_needs_no_other_file_and_no_network() -> None:
    page = report.page(findings())
    assert not re.search(r"""(src|href|srcset|action|data)\s*=|url\(|@import|https?:|<(script|link|img|iframe)""", page)


def test_report_escapes_what_it_is_given() -> None:
    page = report.page(findings())
    assert "r&lt;1&gt;" in page
    assert "a &lt;script&gt;" in page


def test_report_closes_every_tag() -> None:
    open_tags: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: object) -> None:
            if tag != "meta":
                open_tags.append(tag)

        def handle_startendtag(self, tag: str, attrs: object) -> None:
            pass  # <line .../> closes itself

        def handle_endtag(self, tag: str) -> None:
            assert open_tags.pop() == tag

    Reader().feed(report.page(findings()))
    assert open_tags == []


def test_report_shows_the_median_of_each_arm_and_the_failed_check() -> None:
    page = report.page(findings())
    for place, _ in enumerate(arms.ARMS):
        assert f"{0.9 + 0.01 * place:.1%}" in page
    assert "✗" in page


# ── the checks ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_patients_numbers_are_found_in_a_file_and_not_in_another(tmp_path: Path) -> None:
    data = Dataset(x=np.random.default_rng(0).normal(size=(5, 4)).astype("float32"), y=np.zeros(5, int))
    leak, clean = tmp_path / "leak", tmp_path / "clean"
    leak.write_bytes(b"abc" + data["x"][3, 1:3].tobytes() + b"def")
    clean.write_bytes(b"abc" * 100)
    assert not checks.rows_in([data], [leak]).passed
    assert checks.rows_in([data], [clean]).passed


def test_a_door_that_nobody_opens_fails_the_check(tmp_path: Path) -> None:
    from hansa.app.enrol import Authority

    identity = Authority.create(tmp_path / "authority", "league").issue("alice", "submitter")
    let_in, *_ = checks.connections("127.0.0.1:9", identity)
    assert not let_in.passed


# ── options ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_folder_that_is_not_empty_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x")
    with pytest.raises(ConfigError, match="choose a new folder"):
        demo.run(["--keep", str(tmp_path)])


def test_a_report_in_no_folder_is_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no folder .*nowhere; make it first"):
        demo.run(["--report", str(tmp_path / "nowhere" / "report.html")])


# ── the whole ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_the_demo_runs_from_enrolment_to_report_and_leaves_no_process(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    psutil = pytest.importorskip("psutil")
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    demo.run(["--keep", str(tmp_path / "league"), "--report", str(tmp_path / "report.html"), "--seeds", "1"])
    told = capsys.readouterr().out
    assert "equal to the last bit" in told
    assert "✗" not in told
    assert "TLSv1.3" in told
    assert "equal to the last bit" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert {child.pid for child in psutil.Process().children(recursive=True)} <= before
    port = re.search(r"127\.0\.0\.1:(\d+)", told)
    assert port
    assert not checks.connections(f"127.0.0.1:{port[1]}", tmp_path / "league" / "alice.pem")[0].passed


@pytest.mark.slow
def test_a_process_that_ends_early_is_named_with_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = league.found(tmp_path, 1)
    (tmp_path / "server" / "server.pem").unlink()
    with pytest.raises(TrainingFailed, match="the process of server ended with code"), league.running(place):
        pass
