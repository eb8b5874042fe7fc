"""`hansa mpc`: an ordinary script as all parties or one of them, and one clear error for each fault."""

import json
import sys
import threading
import types
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

pytest.importorskip("torch")
pytest.importorskip("cryptography")

import torch

from hansa.app.cli import app
from hansa.app.enrol import Authority
from hansa.core.checkpoint import dump, open_bytes
from hansa.core.errors import ConfigError, HansaError, Refused, SecretError, TrainingFailed
from hansa.core.tensors import Tensors
from hansa.mpc import Session, connect
from hansa.mpc.place import HERE, VARIABLE, Place, all_here
from hansa.mpc.session import code_of
from hansa.runtimes.mesh import LocalMesh, Parties, Party
from hansa.runtimes.mesh.local import together as run_together
from hansa.runtimes.mesh.parties import free_ports

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
DEBUGS = SUM.replace("        print", "        print('seen', session.debug(x))\n        print")
DIES = SUM.replace(
    "        x =",
    "        if session.me == 'clinic':\n            import os\n            os._exit(9)\n"
    "        session.share(lambda: torch.ones(2), owner='clinic')\n        x =",  # else one might end without it
)
NAMES = ("bank", "clinic", "shop")


def said(*words: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, list(words))
    assert done.exit_code == code, done.output
    return done.output


def in_threads(party: Callable[[str], Any]) -> list[Any]:
    """What each of the league's parties gives; raises what one of them raised."""
    with ThreadPoolExecutor(len(NAMES)) as pool:
        return list(pool.map(party, NAMES))


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(VARIABLE, "")
    monkeypatch.setattr("sys.argv", list[str]())
    monkeypatch.setattr("sys.path", [*sys.path])
    path = tmp_path / "sum.py"
    path.write_text(SUM)
    return path


@pytest.fixture
def league(tmp_path: Path) -> Path:
    """Three parties' identities and their file."""
    authority = Authority.create(tmp_path / "authority", "test")
    for name in NAMES:
        authority.issue(name, "party", hosts=["127.0.0.1"]).rename(tmp_path / f"{name}.pem")
    pairs = zip(NAMES, free_ports(len(NAMES)), strict=True)
    tables = [f'[[party]]\nname = "{name}"\naddress = "127.0.0.1:{port}"\n' for name, port in pairs]
    (tmp_path / "parties.toml").write_text("\n".join(tables))
    return tmp_path


def test_one_party_runs_an_ordinary_script_with_its_arguments(script: Path) -> None:
    assert "--rounds 3 tensor([15., 50.])" in said("mpc", "local", "--protocol", "plain", str(script), "--rounds", "3")


def test_three_parties_are_processes_and_only_the_receiver_learns(script: Path, tmp_path: Path) -> None:
    told = ("--reports", str(tmp_path / "reports"), "--picture", str(tmp_path / "flow.svg"))
    words = ("mpc", "local", "--names", ",".join(NAMES), *told, str(script))
    out = sorted(line for line in said(*words).splitlines() if "│" in line)
    assert [line.split("│")[0].strip() for line in out] == [*NAMES]
    assert "tensor([15., 50.])" in out[0] and "None" in out[1] and "None" in out[2]
    assert "<!-- bank -->" in (tmp_path / "flow.svg").read_text()
    report = json.loads((tmp_path / "reports" / "clinic.json").read_text())
    assert report["me"] == "clinic" and report["rounds"] > 2 and set(report["sent_bytes"]) == {"bank", "shop"}


def test_debugging_is_off_unless_asked_for(script: Path) -> None:
    script.write_text(DEBUGS)
    out = said("mpc", "local", "--protocol", "plain", str(script), code=SecretError.exit_code)
    assert "session.debug would open a secret to all parties" in out and "sum.py" in out and "seen tensor" not in out


def test_debugging_opens_to_all_parties_here_and_warns_and_reports(script: Path, tmp_path: Path) -> None:
    script.write_text(DEBUGS)
    told = ("--reports", str(tmp_path / "reports"), "--names", ",".join(NAMES), "--unsafe-debug")
    lines = said("mpc", "local", *told, str(script)).splitlines()
    for name in NAMES:
        mine = [line for line in lines if line.startswith(name)]
        assert any("seen tensor([1.5000, 2.5000])" in line for line in mine), lines
        assert any("sum.py" in line and "opened to all parties, shape (2,)" in line for line in mine), lines
        report = json.loads((tmp_path / "reports" / f"{name}.json").read_text())
        assert report["revealed"][0] == {"parties": [*NAMES], "shape": [2]}


def test_a_real_party_refuses_to_debug_with_the_flag_and_without(
    script: Path, league: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The authority's key lies beside these identities, as on an administrator's machine: it is a real one all the same.
    parties = Parties.read(league / "parties.toml")

    def party(name: str, **options: Any) -> str:
        with connect(parties, identity=league / f"{name}.pem", program=script, wait_s=60, **options) as session:
            with pytest.raises(SecretError, match=r"session\.debug would open a secret.*test_mpc_commands"):
                session.debug(session.share(torch.ones(3), owner="bank"))
            assert not session.meter.revealed
            return session.me

    assert in_threads(party) == list(NAMES)
    with pytest.raises(ConfigError, match="unsafe_debug opens secrets to all parties"):
        party("bank", unsafe_debug=True)  # at once: nobody else has come
    flags = ("--me", "bank", "--parties", str(league / "parties.toml"), "--identity", str(league / "bank.pem"))
    out = said("mpc", "party", *flags, "--unsafe-debug", str(script), code=ConfigError.exit_code)
    assert "unsafe_debug opens secrets to all parties" in " ".join(out.split())
    assert "--unsafe-debug" not in said("mpc", "party", "--help") and "--unsafe-debug" in said("mpc", "local", "--help")


def test_only_the_key_of_a_run_s_own_authority_shows_that_all_parties_are_here(league: Path, tmp_path: Path) -> None:
    assert not all_here(league / "bank.pem")  # its key is there, and it is a real federation's
    authority = Authority.create(tmp_path / "run" / "authority", HERE)
    authority.issue("bank", "party", hosts=["127.0.0.1"]).rename(tmp_path / "run" / "bank.pem")
    assert all_here(tmp_path / "run" / "bank.pem")
    other = Authority.create(tmp_path / "other" / "authority", HERE)
    key = tmp_path / "run" / "authority" / "authority.key.pem"
    key.write_bytes((other.folder / "authority.key.pem").read_bytes())
    assert not all_here(tmp_path / "run" / "bank.pem")  # a key, but not its authority's
    key.unlink()
    assert not all_here(tmp_path / "run" / "bank.pem") and not all_here(tmp_path / "nobody.pem")


def test_an_estimate_is_a_table_and_a_sentence(script: Path) -> None:
    words = ("mpc", "estimate", str(script), "--latency", "40ms", "--bandwidth", "100Mbps", "--protocol", "plain")
    out = said(*words)
    assert "operation" in out and "truncate" in out
    assert "for 0 rounds of 40ms and 0 B at 100Mbps (party 'party-0')" in out
    facts = [json.loads(line) for line in said("--format", "json", *words).splitlines() if line.startswith("{")]
    last = facts[-1]
    assert last["event"] == "estimate" and last["seconds"] == last["work_s"] + last["network_s"]


@pytest.mark.slow
def test_an_estimate_of_three_parties_counts_their_messages(script: Path) -> None:
    words = ("mpc", "estimate", str(script), "--latency", "1s", "--bandwidth", "1Gbps")
    facts = [json.loads(line) for line in said("--format", "json", *words).splitlines() if line.startswith("{")]
    last = facts[-1]
    assert last["rounds"] >= 4 and last["network_s"] == pytest.approx(last["rounds"] + last["sent_bytes"] * 8e-9)
    assert sum(row["seconds"] for row in facts[:-1]) == pytest.approx(last["network_s"])


def test_a_script_without_a_session_is_said(script: Path) -> None:
    script.write_text("print('nothing')")
    assert "opened no session" in said("mpc", "local", "--protocol", "plain", str(script), code=11)


@pytest.mark.slow
def test_a_killed_party_is_named_by_every_other_one(script: Path) -> None:
    script.write_text(DIES)
    out = said("mpc", "local", "--names", ",".join(NAMES), str(script), code=TrainingFailed.exit_code)
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
        (["local", "--protocol", "plain", "--security", "malicious", "SCRIPT"], "security='malicious' is aby3's"),
        (["local", "--sigmoid", "cubic", "SCRIPT"], "sigmoid='cubic': choose one of"),
        (["local", "--truncation", "slow", "SCRIPT"], "truncation='slow': choose 'exact' or 'fast'"),
        (["local", "--device", "tpu", "SCRIPT"], "device='tpu': choose 'cpu', 'cuda' or 'cuda:N'"),
        (["local", "--protocol", "two_party", "--device", "cuda", "SCRIPT"], "computes on the processor alone"),
        (["local", "--security", "perfect", "SCRIPT"], "security='perfect': choose 'semi-honest' or 'malicious'"),
        (["estimate", "--truncation", "slow", "SCRIPT", "--latency", "1s", "--bandwidth", "1Gbps"],
         "truncation='slow'"),
        (["party", "--me", "bank", "--sigmoid", "cubic", "--parties", "LEAGUE/parties.toml", "SCRIPT"],
         "sigmoid='cubic': choose one of"),
        (["party", "--me", "bank", "--wait", "nan", "--parties", "LEAGUE/parties.toml", "SCRIPT"],
         "--wait nan: give seconds above 0"),
        (["local", "--picture", "flow.txt", "SCRIPT"], "end its name with .png"),
        (["estimate", "SCRIPT", "--latency", "40", "--bandwidth", "1Gbps"], "latency='40'"),
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
    assert "│" not in done.output  # no party had a word


def test_connect_without_a_command_says_how_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(ConfigError, match="hansa mpc local SCRIPT"):
        connect()
    with pytest.raises(ConfigError, match="needs identity="):
        connect(Parties((Party("bank", "127.0.0.1:1"),)))


def test_who_only_gives_and_who_only_takes_use_files_alone(league: Path) -> None:
    """The lab gives, three compute, the reader takes: the session knows neither of them."""
    text = (league / "parties.toml").read_text()
    others = [f'[[party]]\nname = "{name}"\naddress = "127.0.0.1:{port}"\nroles = ["{role}"]\n'
              for name, port, role in (("lab", 2, "input"), ("reader", 3, "result"))]  # fmt: skip
    (league / "five.toml").write_text(text + "\n".join(others))
    (league / "t.csv").write_text("a,b\n1,2\n3,4\n")
    said("mpc", "share", str(league / "t.csv"), "--to", str(league / "five.toml"), "--out", str(league / "in"))
    assert sorted(path.stem for path in (league / "in").iterdir()) == [*NAMES]

    def program(mesh: LocalMesh) -> None:
        with Session(mesh) as session:
            table = session.load(str(league / "in"))
            session.save(table @ table.t(), str(league / "out"), columns=["x", "y"])  # type: ignore[union-attr]
            assert not session.report().revealed

    run_together(LocalMesh.of(NAMES), program)
    assert said("mpc", "reveal", str(league / "out")) == "x,y\n5,11\n11,25\n"


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


def test_other_arguments_are_another_program(league: Path, script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(
        "hansa.mpc.session.TlsMesh", lambda *given, **_: seen.append(given[2]) or LocalMesh.of(["a"])[0]
    )
    import torch

    session = types.SimpleNamespace(generator=torch.Generator())
    monkeypatch.setattr("hansa.mpc.session.Session", lambda *_, **__: session)
    for arguments in (["--lr", "0.1"], ["--lr", "0.2"], ["--lr", "0.1"]):
        place = Place(script=str(script), arguments=arguments, parties=str(league / "parties.toml"),
                      identity=str(league / "bank.pem"))  # fmt: skip
        monkeypatch.setenv(VARIABLE, json.dumps(asdict(place)))
        connect()
    assert seen[0] == seen[2] != seen[1]


def test_a_different_module_beside_the_script_is_another_program(
    league: Path, script: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = types.ModuleType("beside")
    module.__file__ = str(league / "beside.py")
    (league / "beside.py").write_text("layers = 3")
    alone = code_of(script)
    monkeypatch.setitem(sys.modules, "beside", module)
    first = code_of(script)
    (league / "beside.py").write_text("layers = 4")
    assert len({alone, first, code_of(script)}) == 3


def test_the_certificate_of_another_party_ends_in_an_error_on_every_side(league: Path, script: Path) -> None:
    results = together(league, dict.fromkeys(NAMES, script), {"shop": "clinic"})
    assert all(isinstance(each, HansaError) for each in results), results
    assert any("cannot listen at" in str(each) for each in results[1:]), results
    assert "'shop'" in str(results[0])


def test_a_table_is_shared_and_revealed(tmp_path: Path, league: Path) -> None:
    (tmp_path / "t.csv").write_text("age, dose,id\n31,0.5,7\n45,-1.25,8\n")
    url = f"{tmp_path}/{{party}}/t"
    out = said("mpc", "share", str(tmp_path / "t.csv"), "--to", str(league / "parties.toml"), "--out", url,
               "--columns", "dose,age")  # fmt: skip
    assert [line.rpartition("  for ")[2] for line in out.splitlines()] == [*NAMES]
    files = [f"{tmp_path}/{name}/t/{name}.safetensors" for name in NAMES]
    assert said("mpc", "reveal", *files[1:]) == "dose,age\n0.5,31\n-1.25,45\n"
    said("mpc", "reveal", files[0], files[2], "--out", str(tmp_path / "again.csv"))
    assert (tmp_path / "again.csv").read_text() == "dose,age\n0.5,31\n-1.25,45\n"
    fact = json.loads(said("--format", "json", "mpc", "reveal", *files))
    assert fact["tensors"] == {"table": [2, 2]} and fact["protocol"] == "aby3"
    assert "are too few: add that of clinic or shop" in said("mpc", "reveal", files[0], code=13)


def test_a_model_is_shared_and_revealed(tmp_path: Path, league: Path) -> None:
    model = Tensors({"w": np.array([[1.5, -2.0]], np.float32), "b": np.array([0.25], np.float32)})
    (tmp_path / "m.safetensors").write_bytes(dump(model))
    words = ("--parties", str(league / "parties.toml"), "--out", str(tmp_path / "shares"))
    said("mpc", "share", str(tmp_path / "m.safetensors"), *words, "--protocol", "pond")
    assert "b, shape (1,):\n[0.25]" in said("mpc", "reveal", str(tmp_path / "shares"))
    said("mpc", "reveal", str(tmp_path / "shares"), "--out", str(tmp_path / "again.safetensors"))
    again, _ = open_bytes((tmp_path / "again.safetensors").read_bytes())
    assert again["w"].tolist() == [[1.5, -2.0]] and again["w"].dtype == np.float32
    assert "takes them all" in said("mpc", "reveal", str(tmp_path / "shares"), "--out", "x.csv", code=11)


@pytest.mark.parametrize(
    ("name", "content", "extra", "message"),
    [
        ("t.csv", "a,b\n1,x\n", (), "row 1 of column 'b' in"),
        ("t.csv", "a,b\n1,2\n", ("--columns", "c"), "has no column 'c'"),
        ("t.csv", "", (), "its first line names the columns"),
        ("t.txt", "a", (), "give a table (.csv)"),
        ("t.npz", "a", ("--columns", "c"), "is no .csv file"),
        ("t.csv", "a\n1e15\n", (), "'table' holds the magnitude 1e+15"),
        (
            "t.csv",
            "a\n1\n",
            ("--protocol", "plain"),
            "its one file would hold the data itself; choose aby3, pond or two",
        ),
    ],
)
def test_what_cannot_be_shared_is_said(
    tmp_path: Path, league: Path, name: str, content: str, extra: tuple[str, ...], message: str
) -> None:
    (tmp_path / name).write_text(content)
    words = ["mpc", "share", str(tmp_path / name), "--to", str(league / "parties.toml"), "--out", f"{tmp_path}/s"]
    done = CliRunner().invoke(app, [*words, *extra])
    assert done.exit_code > 1 and message in done.output, done.output
    assert not (tmp_path / "s").exists()
