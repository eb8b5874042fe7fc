"""The model owner's example: every player a process, the model of a plain sum, and the picture of its job."""

import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

import hansa

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "examples" / "model_owner"
PLAYERS = ["model-owner", "helper-a", "helper-b", *(f"data-owner-{at}" for at in range(5))]


def test_each_player_is_a_process_and_the_model_is_that_of_a_plain_sum(tmp_path: Path) -> None:
    pytest.importorskip("grpc")
    pytest.importorskip("sqlalchemy")
    pytest.importorskip("sklearn")
    paths = os.pathsep.join(entry for entry in sys.path if entry)
    environment = {**os.environ, "HANSA_ROUNDS": "2", "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    done = subprocess.run(
        [sys.executable, str(FOLDER / "run.py"), "--keep", str(tmp_path)],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    logs = {name: (tmp_path / name / "log").read_text() for name in PLAYERS}
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{logs}"
    assert "server at 127.0.0.1" in logs["model-owner"]
    for name in ("helper-a", "helper-b"):
        assert "without data, for jobs that name it as a helper" in logs[name]
        assert not list((tmp_path / name).glob("*.npz"))
    accuracy = {
        who: float(share)
        for who, share in re.findall(r"^(data-owner-\d alone|together) +\d+ +(0\.\d+)", done.stdout, re.M)
    }
    assert len(accuracy) == 6 and accuracy["together"] > 0.5
    assert "and no single one, of: the update" in done.stdout and "the bits of a plain sum's" in done.stdout


def test_the_page_shows_the_picture_that_the_job_gives() -> None:
    done = subprocess.run([sys.executable, str(FOLDER / "flow.py")], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == (ROOT / "docs" / "model-owner.svg").read_text(encoding="utf-8").strip(), (
        "the job has changed: python examples/model_owner/flow.py docs/model-owner.svg"
    )
    texts = [found.text for found in ElementTree.fromstring(done.stdout).iter("{http://www.w3.org/2000/svg}text")]
    assert all(any(name in (text or "") for text in texts) for name in PLAYERS)


def test_three_owners_of_20000_digits_reach_the_plain_mean_to_the_sixteenth_bit() -> None:
    if "HANSA_DATA" not in os.environ:
        pytest.skip("HANSA_DATA is not set: no MNIST")
    train, _ = hansa.data.mnist((784,))
    clients = hansa.data.partition(train, hansa.data.IID(), clients=3, seed=1)
    assert [len(clients.open(name)) for name in clients.ids] == [20_000] * 3
    secret = hansa.Pipeline([hansa.Clip(4.0), hansa.UniformMean(), hansa.Quantise(20)], hansa.MpcSum(("s-1", "s-2")))
    plain = hansa.Pipeline([hansa.Clip(4.0), hansa.UniformMean()], hansa.Sum())
    one = partial(
        hansa.Job, model=hansa.LogisticModel(784, 10), algorithm=hansa.FedSGD(server_lr=1.0), cohort=3, rounds=1
    )
    found, wanted = (hansa.train(one(pipeline=each), clients).params for each in (secret, plain))
    assert wanted.count == 7850 and max(float(np.abs(found[name] - wanted[name]).max()) for name in wanted) <= 2**-16
    assert max(float(np.abs(wanted[name]).max()) for name in wanted) > 100 * 2**-16
