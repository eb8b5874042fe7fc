"""`hansa answer`: a process at each owner over mutual TLS, answers at the asker alone, defaults while one is away."""

import csv
import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("gmpy2")
pytest.importorskip("coincurve")
pytest.importorskip("torch")

from typer.testing import CliRunner

from hansa import mpc
from hansa.algorithms.trees import Boosted
from hansa.app.cli import app
from hansa.app.enrol import Authority
from hansa.core.errors import ConfigError, CorruptFile, NotFound
from hansa.runtimes.mesh.local import LocalMesh, together
from hansa.vertical import AlignedTable, Glm
from hansa.vertical.boosting import EncryptedBoosting, predict
from hansa.vertical.saved import load_part, save_part

NAMES = ("bank", "shop")
IDS = {"bank": ["ann", "bob", "eve", "max"], "shop": ["EVE ", "ann", "bob", "zoe"]}


def learnt(folder: Path) -> dict[str, float]:
    """Trains trees over both owners' columns, saves their parts, and gives the chances of the people both know."""
    r = np.random.default_rng(0)
    x, y = r.normal(size=(120, 2)), np.zeros(120)
    y[x.sum(1) > 0] = 1
    boosting = EncryptedBoosting(labels_at="bank", trees=3, depth=2, bins=8)
    values = {"bank": dict(zip(IDS["bank"], (-1.0, 0.1, 1.0, 2.0), strict=True))}
    values["shop"] = {"eve": 1.0, "ann": -1.0, "bob": 0.2, "zoe": 3.0}

    def play(mesh: LocalMesh) -> Any:
        at = NAMES.index(mesh.me)
        table = AlignedTable(mesh.me, {"x" if at else "z": x[:, at]})
        part = boosting.fit(mesh, table, y if not at else None)
        save_part(part, folder / f"{mesh.me}-part.json")
        people = [values[mesh.me][name] for name in ("ann", "bob", "eve")]
        return predict(mesh, part, AlignedTable(mesh.me, {"x" if at else "z": people}))

    chances = together(LocalMesh.of(NAMES), play)[0]
    for owner, column in zip(NAMES, "zx", strict=True):
        rows = [f"{name},{values[owner][name.strip().lower()]}\n" for name in IDS[owner]]
        (folder / f"{owner}.csv").write_text(f"id,{column}\n" + "".join(rows))
    return dict(zip(("ann", "bob", "eve"), chances.tolist(), strict=True))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    authority = Authority.create(tmp_path / "authority", "test")
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in NAMES]
    lines = []
    for name, each in zip(NAMES, sockets, strict=True):
        authority.issue(name, "party", hosts=["127.0.0.1"]).rename(tmp_path / f"{name}.pem")
        lines.append(f'[[party]]\nname = "{name}"\naddress = "127.0.0.1:{each.getsockname()[1]}"\n')
        each.close()
    (tmp_path / "parties.toml").write_text("\n".join(lines))
    return tmp_path


def start(folder: Path, name: str, *options: str) -> "subprocess.Popen[str]":
    given = ["--me", name, "--asker", "bank", "--data", f"{name}.csv", "--yes", *options]
    given += [] if "--model" in options else ["--model", f"{name}-part.json"]
    command = [sys.executable, "-m", "hansa", "--format", "json", "answer", *given]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def running() -> Iterator[list["subprocess.Popen[str]"]]:
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        process.kill()
        process.communicate()


def test_a_list_of_people_is_answered_at_the_asker_alone(folder: Path, running: list["subprocess.Popen[str]"]) -> None:
    chances = learnt(folder)
    (folder / "who.txt").write_text("eve\n Ann\nmax\nzoe\n")
    running += [
        start(folder, "shop", "--once"),
        start(folder, "bank", "--default", "0.5", "--ids", "who.txt", "--out", "answers.csv"),
    ]
    (shop_said, shop_err), (_, bank_err) = (process.communicate(timeout=60) for process in running)
    assert [process.returncode for process in running] == [0, 0], (shop_err, bank_err)
    rows = list(csv.DictReader((folder / "answers.csv").read_text().splitlines()))
    assert [row["id"] for row in rows] == ["eve", " Ann", "max", "zoe"]
    assert [float(row["value"]) for row in rows] == pytest.approx([chances["eve"], chances["ann"], 0.5, 0.5])
    assert [row["joint"] for row in rows] == ["True", "True", "False", "False"]
    assert "'shop' does not know" in rows[2]["reason"] and "'bank' does not know" in rows[3]["reason"]
    assert "which people are asked about, and when" in shop_err and "which people are asked about" in bank_err
    assert json.loads(shop_said.splitlines()[-1])["people"] == 2
    assert not any(f"{chance:.6g}" in shop_said + shop_err for chance in chances.values())


def asked(address: str, body: bytes) -> tuple[int, Any]:
    try:
        with urllib.request.urlopen(urllib.request.Request(f"http://{address}/predict", body), timeout=60) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_by_http_a_killed_owner_is_a_default_and_one_that_is_back_answers(
    folder: Path, running: list["subprocess.Popen[str]"]
) -> None:
    pytest.importorskip("starlette")
    pytest.importorskip("uvicorn")
    chances = learnt(folder)
    bank, shop = start(folder, "bank", "--default", "null", "--serve", "127.0.0.1:0"), start(folder, "shop")
    running += [bank, shop]
    assert bank.stdout is not None
    address = json.loads(bank.stdout.readline())["address"]
    wanted = json.dumps({"ids": ["eve", "zoe"]}).encode()
    status, body = asked(address, wanted)
    assert status == 200 and body["answers"][0]["value"] == pytest.approx(chances["eve"])
    assert body["answers"][1] == {**body["answers"][1], "id": "zoe", "value": None, "joint": False}
    assert asked(address, b'{"ids": [7]}')[0] == asked(address, b"[]")[0] == 400
    shop.kill()
    shop.wait()
    lost = asked(address, wanted)[1]["answers"]
    assert [each["joint"] for each in lost] == [False, False] and "an owner is lost" in lost[0]["reason"]
    running.append(start(folder, "shop"))
    until = time.monotonic() + 60
    back = lost
    while not back[0]["joint"] and time.monotonic() < until:
        with suppress(OSError):
            back = asked(address, wanted)[1]["answers"]
    assert back[0]["value"] == pytest.approx(chances["eve"])


def test_a_python_file_gives_any_other_model(folder: Path, running: list["subprocess.Popen[str]"]) -> None:
    (folder / "sum.py").write_text(
        "import numpy as np\n"
        "def part(mesh):\n"
        "    def predict(table):\n"
        "        if mesh.me == 'shop':\n"
        "            return mesh.send('bank', 'x', [table['x'].tobytes()])\n"
        "        return table['x'] + np.frombuffer(mesh.recv('shop', 'x')[0])\n"
        "    return predict\n"
    )
    for name, rows in (("bank", "a,1\nb,2\n"), ("shop", "b,20\na,10\n")):
        (folder / f"{name}.csv").write_text("id,x\n" + rows)
    (folder / "who.txt").write_text("b\na\n")
    model = ["--model", "sum.py"]
    running += [
        start(folder, "shop", "--once", *model),
        start(folder, "bank", "--default", "0", "--ids", "who.txt", *model),
    ]
    said, err = running[1].communicate(timeout=60)
    answers = [json.loads(line) for line in said.splitlines()]
    assert [each["value"] for each in answers] == [22.0, 11.0], err


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("shop", ["--default", "1"], "--default belong to 'bank', who asks"),
        ("bank", ["--default", "1"], "exactly one of --ids FILE"),
        ("bank", ["--ids", "who.txt"], "--default VALUE"),
        ("bank", ["--ids", "who.txt", "--default", "x y"], "is no JSON"),
        ("bank", ["--ids", "who.txt", "--default", "1", "--once"], "belong to those who serve"),
        ("shop", ["--key", "name"], "has no column 'name' of ids"),
        ("shop", ["--asker", "club"], "'club' is not among the parties"),
        ("shop", ["--model", "none.json"], "none.json does not exist"),
    ],
)
def test_what_does_not_fit_is_refused(
    folder: Path, name: str, options: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    (folder / "people.csv").write_text("id,x\na,1\n")
    save_part(Boosted("squared"), folder / "part.json")
    given = ["--me", name, "--asker", "bank", "--model", "part.json", "--data", "people.csv", "--yes", *options]
    done = CliRunner().invoke(app, ["answer", *given])
    assert message in " ".join(done.output.split()) and done.exit_code


def test_parts_of_linear_models_predict_after_they_were_saved(tmp_path: Path) -> None:
    r = np.random.default_rng(0)
    x = r.normal(size=(60, 2))
    y = np.where(x @ [1.0, -2.0] + 0.3 * r.normal(size=60) > 0, "yes", "no")

    def play(session: mpc.Session) -> Any:
        at = session.names.index(session.me)
        table = None if at == 1 else AlignedTable(session.me, {"x": x[:, at // 2], **({} if at else {"y": y})})
        fitted = Glm(solver="newton", epochs=4, l2=0.1).fit(session, table, None if at else "y")
        path = tmp_path / f"{session.me}.json"
        save_part(fitted, path, protocol="aby3")
        again = load_part(path)
        assert path.stat().st_mode & 0o077 == 0
        with pytest.raises(ConfigError, match="predicts on shares"):
            save_part(fitted, path)
        assert again.protocol == "aby3" and str(again.model) == str(fitted)
        return fitted.predict(session, table), again.over(session.mesh)(table)

    before, after = mpc.local(play)[0]
    assert np.abs(before - after).max() < 1e-3


def test_other_files_are_no_parts(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="save_part"):
        load_part(tmp_path / "part.json")
    for text in ("", "[]", "{}", '{"kind": "cake", "protocol": ""}', '{"kind": "boosted trees", "protocol": 3}',
                 '{"kind": "generalised linear model", "protocol": "aby3", "model": {"mean": [1]}}'):  # fmt: skip
        (tmp_path / "part.json").write_text(text)
        with pytest.raises(CorruptFile, match="is no part of a model"):
            load_part(tmp_path / "part.json")
