"""`hansa audit`: what an undefended job gives away is found and shown, and what cannot be attacked is said."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.app.test_cli import hansa

import hansa as face
from hansa.app.audit import guessing, image_shape, lying, reading, refuting
from hansa.app.audit_report import Finding, Verdict, histogram, pairs, write
from hansa.core.errors import ConfigError

pytest.importorskip("matplotlib")
pytest.importorskip("dp_accounting")

JOB = """
import numpy as np
import hansa

digits = hansa.data.digits()
job = hansa.Job(
    model=hansa.LogisticModel(64, 10),
    algorithm=hansa.FedAvg(hansa.LocalWork(lr=0.5, epochs=4, batch_size=10)),
    pipeline=hansa.Pipeline([{stages}hansa.UniformMean(){noise}], hansa.Sum()),
    cohort=4, rounds=3, seed=1, name="digits",
)
clients = hansa.data.partition(digits.take(np.arange(80)), hansa.data.IID(), clients=4)
"""
PLAIN = JOB.format(stages="", noise="")
PRIVATE = JOB.format(stages="hansa.Clip(1.0), ", noise=", hansa.Gaussian(1.0)")
BROKEN = PRIVATE.replace(", hansa.Gaussian(1.0)", ", Faulty(4.0)").replace("job =", "from faulty import Faulty\njob =")
PUZZLING = PLAIN.replace("job =", """
class Mean(hansa.Model):
    def init(self, seed): return hansa.Tensors({"mean": np.zeros(1)})
    def fit(self, params, data, work, rng): return hansa.Fit(hansa.Tensors({"mean": [data["x"].mean()]}), steps=1)
    def evaluate(self, params, data): return {"loss": (float(((data["x"] - params["mean"]) ** 2).sum()), len(data))}

job =""").replace("hansa.LogisticModel(64, 10)", "Mean()")  # fmt: skip
FAULTY = (Path(__file__).parents[1] / "testing" / "attacks" / "test_guessing.py").read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.py").write_text(PLAIN)
    return tmp_path


def test_audit_has_help_with_an_example() -> None:
    done = hansa("audit", "--help")
    assert done.code == 0 and "hansa audit job.py" in done.out


def test_an_undefended_job_is_read_and_reported(folder: Path) -> None:
    done = hansa("audit", "job.py", "--shadows", "6", "--out", "found")
    assert done.code == 0, done.err
    facts = json.loads((folder / "found" / "report.json").read_text())
    verdicts = {finding["attack"]: finding["verdict"] for finding in facts["findings"]}
    assert verdicts["reading"] == "leaks" and verdicts["canaries"] == "not run"
    assert facts["findings"][0]["numbers"]["error"]["closed form of the first dense layer"] < 1e-6
    page = (folder / "found" / "report.md").read_text()
    assert "The server sees each contribution." in page and "![reading](reading.png)" in page
    assert (folder / "found" / "reading.png").stat().st_size > 1000
    assert (folder / "found" / "membership.png").stat().st_size > 1000
    assert not (folder / "found" / "canaries.png").exists()
    assert "no stage of this job adds noise" in done.out


def test_strict_fails_where_anything_leaks_and_writes_the_report_all_the_same(folder: Path) -> None:
    done = hansa("--format", "json", "audit", "job.py", "--shadows", "6", "--strict")
    assert done.code == 1 and "this job leaks" in done.err
    events = [json.loads(line) for line in done.out.splitlines()]
    assert [event["event"] for event in events] == ["finding"] * 4 + ["report"]
    assert [event["attack"] for event in events[:4]] == ["reading", "membership", "canaries", "lying server"]
    assert (folder / "audit" / "report.json").exists()


@pytest.mark.slow
def test_noise_weaker_than_it_says_ends_with_an_error(folder: Path) -> None:
    start, end = FAULTY.index("@dataclass(frozen=True)\nclass Faulty"), FAULTY.index("def test_canaries_stay_below")
    (folder / "faulty.py").write_text(FAULTY.split("# ── membership")[0] + FAULTY[start:end])
    wide = BROKEN.replace("LogisticModel(64, 10)", "MLPModel((64, 16, 10))")
    (folder / "job.py").write_text(wide)
    done = hansa("audit", "job.py", "--shadows", "6", "--canaries", "1200", "--set", "rounds=1")
    assert done.code == 1 and "proven to be less private than it says" in done.err
    assert "**broken**" in (folder / "audit" / "report.md").read_text()


@pytest.mark.parametrize(
    ("text", "options", "code", "message"),
    [
        (PUZZLING, (), 11, "no attack applies to this job"),
        (PLAIN, ("--examples", "0"), 11, "at least 1"),
        (PLAIN.replace("cohort=4", "cohort=40"), (), 10, "cohort=40 > 4 clients"),
    ],
)
def test_what_cannot_be_attacked_is_said(
    folder: Path, text: str, options: tuple[str, ...], code: int, message: str
) -> None:
    (folder / "job.py").write_text(text)
    done = hansa("audit", "job.py", *options)
    assert done.code == code and message in done.err
    assert not (folder / "audit").exists()


# ── the parts


def job(model: face.Model, work: face.LocalWork, *stages: face.Stage, reducer: face.Reducer | None = None) -> face.Job:
    pipeline = face.Pipeline([*stages, face.UniformMean()], reducer or face.Sum())
    return face.Job(model=model, algorithm=face.FedAvg(work), pipeline=pipeline, cohort=40, rounds=1, seed=1)


DIGITS = face.data.digits()
EVERYBODY = face.data.partition(DIGITS, face.data.IID(), clients=40)


def test_where_only_the_total_is_seen_the_sum_is_attacked() -> None:
    class Hidden(face.Sum):
        sees = "total"

    hidden = job(face.LogisticModel(64, 10), face.LocalWork(lr=0.1, steps=1), reducer=Hidden())
    found = reading(hidden, EVERYBODY, None, 1, 50)
    assert found.verdict == Verdict.HOLDS and "the sum of 40 clients" in found.says


def test_a_lying_server_is_tried_on_the_job_s_own_secure_sum_alone() -> None:
    model = face.LogisticModel(64, 10)
    stages = [face.Clip(1.0), face.UniformMean(), face.Quantise(16)]
    secure = replace(job(model, ADAM), pipeline=face.Pipeline(stages, face.SecureSum()))
    found = lying(secure, EVERYBODY)
    assert found.verdict == Verdict.HOLDS and found.says.startswith("of 7 lies 0 give")
    assert found.numbers["drops all but one"]["refused"] == 40
    with pytest.raises(ConfigError, match="this job ends in Sum"):
        lying(job(model, ADAM), EVERYBODY)


def test_a_network_is_read_by_gradient_matching_and_its_words_by_the_rows_that_moved() -> None:
    torch = pytest.importorskip("torch")
    from torch.nn import functional as F

    net = face.TorchModel(Convolution, loss=F.cross_entropy)
    assert torch.get_num_threads() >= 1
    found = reading(job(net, face.LocalWork(lr=0.1, epochs=1, batch_size=10)), EVERYBODY, "03", 1, 200)
    assert found.verdict == Verdict.LEAKS and "gradient matching" in found.says
    adam = reading(job(face.TorchModel(Dense, loss=F.cross_entropy), ADAM), EVERYBODY, "03", 1, 200)
    assert any("plain SGD" in reason for reason in adam.numbers["not tried"])
    texts = face.Clients.of({f"{i:02}": face.Dataset(x=np.array([[i, i + 40, 3]]), y=[i % 2]) for i in range(40)})
    words = reading(
        job(face.TorchModel(Words, loss=F.cross_entropy), face.LocalWork(lr=0.1, steps=2)), texts, "07", 1, 1
    )
    assert words.verdict == Verdict.LEAKS and "100 % of the words that occur, and 0 %" in words.says


ADAM = face.LocalWork(lr=0.1, epochs=1, optimiser="adam")


def Convolution() -> object:
    from torch import nn

    return nn.Sequential(nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))


def Dense() -> object:
    from torch import nn

    return nn.Sequential(nn.Linear(64, 10))


def Words() -> object:
    from torch import nn

    return nn.Sequential(nn.Embedding(100, 4), nn.Flatten(), nn.Linear(12, 2))


def test_regressions_and_public_jobs_are_not_guessed_about() -> None:
    line = job(face.LinearModel(64), face.LocalWork(lr=0.1, steps=1))
    with pytest.raises(face.errors.ConfigError, match="tested on classifiers"):
        guessing(line, EVERYBODY, 6)
    with pytest.raises(face.errors.ConfigError, match="no stage of this job adds noise"):
        refuting(line, EVERYBODY, 10)


def test_pictures_of_images_and_of_rows(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    assert image_shape(np.zeros((1, 3, 16, 20))) == (16, 20) and image_shape(np.zeros((1, 30))) is None
    drawings = {
        "one": pairs(rng.random((1, 64)), rng.random((1, 64)), (8, 8)),
        "colours": pairs(rng.random((3, 3, 8, 8)), rng.random((3, 3, 8, 8)), (8, 8)),
        "rows": pairs(rng.random((2, 30)), rng.random((2, 30))),
        "histogram": histogram(rng.random(20), rng.random(20)),
    }
    findings = [Finding(attack=n, verdict=Verdict.HOLDS, says="a | b", picture=d) for n, d in drawings.items()]
    page = write(tmp_path / "out", job(face.LogisticModel(64, 10), ADAM), 40, findings).read_text()
    assert "a \\| b" in page and all((tmp_path / "out" / f"{name}.png").exists() for name in drawings)
