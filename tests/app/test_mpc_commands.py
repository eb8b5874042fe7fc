"""`hansa mpc`: an ordinary script as all parties or one of them, and one clear error for each fault."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

pytest.importorskip("torch")
pytest.importorskip("cryptography")

from tests.runtimes.test_mesh import free_ports

from hansa.app.cli import app
from hansa.app.enrol import Authority
from hansa.core.errors import ConfigError, HansaError, Refused
from hansa.mpc import connect
from hansa.mpc.place import VARIABLE
from hansa.runtimes.mesh import Parties, Party

SUM = """
import sys
import torch
import hansa.mpc

if __name__ == "__main__":
    with hansa.mpc.connect() as session:
        x = session.share(lambda: torch.tensor([1.5, 2.5]), owner=session.names[0])
        y = session.share(lambda: torch.tensor([10.0, 20.0]), owner=session.names[-1])
        print(*sys.argv[1:], session.reveal(x * y, to=session.names[0]))
"""
DIES = SUM.replace(
    "        x =", "        if session.me == 'clinic':\n            import os\n            os._exit(9)\n        x ="
)
NAMES = ("bank", "clinic", "shop")


def said(*words: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, list(words))
    assert done.exit_code == code, done.output
    return done.output


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(VARIABLE, "")
    monkeypatch.setattr("sys.argv", list[str]())
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    path = tmp_path / "sum.py"
    path.write_text(SUM)
    return path


@pytest.fixture
def league(tmp_path: Path) -> Path:
    """Three parties' identities and their file."""
    authority = Authority.create(tmp_path / "authority", "test")
    for name in NAMES:
        authority.issue(name, "party", hosts=["127.0.0.1"]).rename(tmp_path / f"{name}.pem")
    pairs = zip(NAMES, free_ports(3), strict=True)
    tables = [f'[[party]]\nname = "{name}"\naddress = "127.0.0.1:{port}"\n' for name, port in pairs]
    (tmp_path / "parties.toml").write_text("\n".join(tables))
    return tmp_path


def test_one_party_runs_an_ordinary_script_with_its_arguments(script: Path) -> None:
    assert "--rounds 3 tensor([15., 50.])" in said("mpc", "local", "--protocol", "plain", str(script), "--rounds", "3")


def test_three_parties_are_processes_and_only_the_receiver_learns(script: Path, tmp_path: Path) -> None:
    (tmp_path / "reports").mkdir()
    words = ("mpc", "local", "--names", ",".join(NAMES), "--reports", str(tmp_path / "reports"), str(script))
    out = sorted(line for line in said(*words).splitlines() if "│" in line)
    assert [line.split("│")[0].strip() for line in out] == [*NAMES]
    assert "tensor([15., 50.])" in out[0] and "None" in out[1] and "None" in out[2]
    report = json.loads((tmp_path / "reports" / "clinic.json").read_text())
    assert report["me"] == "clinic" and report["rounds"] > 2 and set(report["sent_bytes"]) == {"bank", "shop"}


@pytest.mark.slow
def test_a_killed_party_is_named_by_every_other_one(script: Path) -> None:
    script.write_text(DIES)
    out = said("mpc", "local", "--names", ",".join(NAMES), str(script), code=9)
    for name in ("bank", "shop"):
        assert any(line.startswith(name) and "party 'clinic'" in line for line in out.splitlines()), out
    assert "error: party 'clinic' ended with code 9" in out


def test_a_script_that_raises_says_its_line(script: Path) -> None:
    script.write_text(SUM.replace("x * y", "x / undefined"))
    out = said("mpc", "local", "--protocol", "plain", str(script), code=ConfigError.exit_code)
    assert "sum.py, line 10 raised NameError: name 'undefined' is not defined" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["local", "absent.py"], "there is no script 'absent.py'"),
        (["local", "--names", "a,b", "SCRIPT"], "'aby3' is computed by 3 parties, and 2 of the file's parties compute"),
        (["local", "--protocol", "spdz", "SCRIPT"], "protocol='spdz': choose one of"),
        (["local", "--names", "a,b,c", "--parties", "p.toml", "SCRIPT"], "give one of them"),
        (["party", "--me", "bank", "--parties", "LEAGUE/parties.toml", "--identity", "LEAGUE/shop.pem", "SCRIPT"],
         "shop.pem is the identity of 'shop', not of 'bank'"),
        (["party", "--parties", "LEAGUE/parties.toml", "SCRIPT"], "say who this is: --me NAME"),
        (["party", "--me", "bank", "--identity", "LEAGUE/bank.pem", "--parties", "LEAGUE/no.toml", "SCRIPT"],
         "no.toml does not exist"),
    ],
)  # fmt: skip
def test_faults_before_anybody_is_dialled(script: Path, league: Path, words: list[str], message: str) -> None:
    given = [word.replace("SCRIPT", str(script)).replace("LEAGUE", str(league)) for word in words]
    done = CliRunner().invoke(app, ["mpc", *given])
    assert done.exit_code > 1
    assert message in done.output


def test_connect_without_a_command_says_how_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(ConfigError, match="hansa mpc local SCRIPT"):
        connect()
    with pytest.raises(ConfigError, match="needs identity="):
        connect(Parties((Party("bank", "127.0.0.1:1"),)))


def test_a_party_that_only_gives_data_is_told_how(league: Path) -> None:
    text = (league / "parties.toml").read_text()
    (league / "four.toml").write_text(text + '[[party]]\nname = "lab"\naddress = "127.0.0.1:2"\nroles = ["input"]\n')
    Authority.load(league / "authority").issue("lab", "party", hosts=["127.0.0.1"]).rename(league / "lab.pem")
    with pytest.raises(ConfigError, match="'lab' does not compute, .* gives data with `hansa mpc share`"):
        connect(league / "four.toml", identity=league / "lab.pem")


def together(league: Path, files: dict[str, Path], identities: dict[str, str]) -> list[Any]:
    """Every party's session or error, in threads, each with a file and an identity of its own."""
    results: list[Any] = [None] * len(NAMES)

    def run(at: int, name: str) -> None:
        try:
            identity = league / f"{identities.get(name, name)}.pem"
            with connect(league / "parties.toml", identity=identity, program=files[name], wait_s=6) as session:
                results[at] = session.me
        except HansaError as error:
            results[at] = error

    threads = [threading.Thread(target=run, args=pair, daemon=True) for pair in enumerate(NAMES)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return results


def test_a_different_script_is_refused_on_every_side(league: Path, script: Path) -> None:
    other = league / "other.py"
    other.write_text(SUM + "# one line more\n")
    results = together(league, {"bank": script, "clinic": script, "shop": other}, {})
    assert all(isinstance(each, HansaError) for each in results), results
    assert isinstance(results[2], Refused) and "another program" in str(results[2])
    assert any("'shop'" in str(each) for each in results[:2])


def test_the_certificate_of_another_party_ends_in_an_error_on_every_side(league: Path, script: Path) -> None:
    results = together(league, dict.fromkeys(NAMES, script), {"shop": "clinic"})
    assert all(isinstance(each, HansaError) for each in results), results
    assert any("cannot listen at" in str(each) for each in results[1:]), results
    assert "'shop'" in str(results[0])
