"""`hansa psi`: two owners as processes over mutual TLS, from their CSV files to one order of rows."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("coincurve")

from typer.testing import CliRunner

from hansa.app.cli import app
from hansa.app.enrol import Authority
from hansa.runtimes.mesh.parties import free_ports
from hansa.vertical.psi.files import read_aligned

NAMES = ("bank", "registry", "shop")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    authority = Authority.create(tmp_path / "authority", "test")
    lines = []
    for name, port in zip(NAMES, free_ports(len(NAMES)), strict=True):
        authority.issue(name, "party", hosts=["127.0.0.1"]).rename(tmp_path / f"{name}.pem")
        lines.append(f'[[party]]\nname = "{name}"\naddress = "127.0.0.1:{port}"\n')
    (tmp_path / "three.toml").write_text("\n".join(lines))
    (tmp_path / "parties.toml").write_text(lines[0] + lines[2])
    (tmp_path / "bank.csv").write_text("id,age\n" + "".join(f"p{at},{at}\n" for at in range(40)))
    (tmp_path / "shop.csv").write_text("customer,spent\n" + "".join(f" P{at} ,{at}\n" for at in range(90, 19, -1)))
    return tmp_path


def start(folder: Path, name: str, *options: str) -> "subprocess.Popen[str]":
    key = "id" if name == "bank" else "customer"
    words = ["--me", name, "--data", f"{name}.csv", "--key", key, "--out", f"{name}-aligned.csv", "--wait", "20"]
    command = [sys.executable, "-m", "hansa", "--format", "json", "psi", *words, "--audit", f"{name}.jsonl", *options]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_owners_end_with_one_order_and_its_proof(folder: Path) -> None:
    ends = [
        (each, *each.communicate(timeout=60)) for each in [start(folder, name, "--yes") for name in ("bank", "shop")]
    ]
    said = []
    for process, out, err in ends:
        assert process.returncode == 0, err
        assert "what each party learns" in err
        said.append(json.loads(out))
    assert [each["rows"] for each in said] == [20, 20] and said[0]["alignment"] == said[1]["alignment"]
    bank, shop = (read_aligned(folder / f"{name}-aligned.csv") for name in ("bank", "shop"))
    assert bank["age"].tolist() == shop["spent"].tolist() and sorted(bank["age"]) == list(range(20, 40))
    assert bank.alignment == shop.alignment and bank.names == ("age",)
    assert len((folder / "bank.jsonl").read_text().splitlines()) == 2
    assert not list(folder.glob(".*.psi")), "the run's folder was left"


def test_what_is_not_accepted_ends_clearly_on_both_sides(folder: Path) -> None:
    bank, shop = start(folder, "bank"), start(folder, "shop", "--yes")
    (_, refused), (_, lost) = bank.communicate(timeout=60), shop.communicate(timeout=60)
    assert bank.returncode == 23 and "was not accepted, and nothing was sent" in refused
    assert (shop.returncode == 24 and "'bank' failed: PolicyError" in lost) or "'bank' was lost" in lost
    assert not (folder / "shop-aligned.csv").exists()


def test_a_coordinator_takes_part_without_a_table(folder: Path) -> None:
    options = ["--yes", "--parties", "three.toml", "--protocol", "coordinator", "--coordinator", "registry"]
    running = [start(folder, name, *options) for name in ("bank", "shop")]
    words = ["--me", "registry", "--key", "any", "--wait", "20", *options]
    command = [sys.executable, "-m", "hansa", "psi", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "the owners have their result" in done.stdout, done.stderr
    rows = [json.loads(process.communicate(timeout=60)[0])["rows"] for process in running]
    assert rows == [20, 20]
    assert "how many keys each group of owners shares, but not which" in done.stderr


def test_owners_go_on_after_one_was_killed(folder: Path) -> None:
    (folder / "bank.csv").write_text("id,age\n" + "".join(f"p{at},{at}\n" for at in range(1600)))
    (folder / "shop.csv").write_text("customer,spent\n" + "".join(f"p{at},{at}\n" for at in range(1000, 2300)))
    options = ["--yes", "--bucket-keys", "50", "--workers", "1"]
    bank, shop = (start(folder, name, *options) for name in ("bank", "shop"))
    done = folder / ".shop-aligned.csv.psi" / "done-002.bin"
    until = time.monotonic() + 60
    while not done.exists() and time.monotonic() < until:
        time.sleep(0.01)
    shop.kill()
    shop.communicate()
    _, lost = bank.communicate(timeout=60)
    assert bank.returncode == 24 and "'shop' was lost" in lost
    assert done.exists() and not (folder / "bank-aligned.csv").exists(), "no partial result"
    ends = [(each, *each.communicate(timeout=120)) for each in [start(folder, name, *options) for name in NAMES[::2]]]
    assert [process.returncode for process, _, _ in ends] == [0, 0], ends
    bank_table, shop_table = (read_aligned(folder / f"{name}-aligned.csv") for name in NAMES[::2])
    assert bank_table["age"].tolist() == shop_table["spent"].tolist()
    assert sorted(bank_table["age"]) == list(range(1000, 1600)) and bank_table.alignment == shop_table.alignment
    lines = [json.loads(line) for line in (folder / "bank.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["began", "ended", "began", "ended"]
    assert len({line["run"] for line in lines}) == 1, "it began anew"


def run(folder: Path, **options: list[str]) -> dict[str, dict[str, object]]:
    """What each owner's command said at its end; each with its own options, and all of `both`."""
    both = options.pop("both")
    running = {name: start(folder, name, "--yes", *both, *own) for name, own in options.items()}
    ends = {name: (process, *process.communicate(timeout=60)) for name, process in running.items()}
    assert [process.returncode for process, _, _ in ends.values()] == [0, 0], ends
    assert all("what each party learns" in err for _, _, err in ends.values())
    return {name: json.loads(out) for name, (_, out, _) in ends.items()}


def test_the_size_alone_is_told_to_one_owner_exactly_or_with_noise(folder: Path) -> None:
    said = run(folder, both=["--find", "size", "--learns", "bank"], bank=[], shop=[])
    assert said["bank"]["shared"] == 20 and "shared" not in said["shop"]
    noisy = run(folder, both=["--find", "size", "--learns", "bank", "--epsilon", "1"], bank=[], shop=[])
    assert isinstance(noisy["bank"]["shared"], int) and abs(noisy["bank"]["shared"] - 20) <= 25
    assert noisy["bank"]["epsilon"] == noisy["shop"]["epsilon"] == 1 and noisy["shop"]["delta"] == 1e-9
    events = [json.loads(line) for line in (folder / "shop.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events] == ["began", "ended"] * 2
    assert not (folder / "bank-aligned.csv").exists()


def test_a_sum_over_shared_people_goes_to_the_owner_of_the_values(folder: Path) -> None:
    said = run(folder, both=["--find", "sum", "--learns", "shop"], bank=[], shop=["--values", "spent"])
    assert said["shop"]["sum"] == sum(range(20, 40)) and said["bank"]["sum"] is None
    assert said["shop"]["shared"] == said["bank"]["shared"] == 20
    ends = [
        (each, each.communicate(timeout=60)[1])
        for each in (
            start(folder, "bank", "--yes", "--find", "sum", "--learns", "shop", "--least", "21"),
            start(folder, "shop", "--yes", "--find", "sum", "--learns", "shop", "--least", "21", "--values", "spent"),
        )
    ]
    assert all(process.returncode and "a sum is shown from 21 on" in err for process, err in ends), ends
    assert json.loads((folder / "shop.jsonl").read_text().splitlines()[-1])["error"] == "DataError"


@pytest.mark.parametrize("find", ["size", "sum", "unbalanced"])
def test_what_is_less_than_rows_goes_on_after_an_owner_was_killed(folder: Path, find: str) -> None:
    (folder / "bank.csv").write_text("id,age\n" + "".join(f"p{at},{at}\n" for at in range(2000)))
    (folder / "shop.csv").write_text("customer,spent\n" + "".join(f"p{at},1\n" for at in range(1000, 3000)))
    both = ["--find", find, "--learns", "shop", "--workers", "1"]
    if find == "unbalanced":  # as many buckets as the others: its size is not to be chosen
        (folder / "shop.csv").write_text("customer,spent\n" + "".join(f"p{at},1\n" for at in range(1000, 34_000)))
    own = {"bank": list[str](), "shop": list[str]()}
    if find == "unbalanced":
        own, kept = {"bank": ["--prepared", "large"], "shop": ["--prepared", "tags"]}, ".shop-aligned.csv.psi"
    elif find == "size":
        both, kept = [*both, "--bucket-keys", "100"], ".shop.csv.psi-size"
    else:
        both, own["shop"], kept = [*both, "--bucket-keys", "100"], ["--values", "spent"], ".bank.csv.psi-sum"
    done = folder / kept / "done-001.bin"
    running = {name: start(folder, name, "--yes", *both, *more) for name, more in own.items()}
    until = time.monotonic() + 60
    while not done.exists() and time.monotonic() < until:
        time.sleep(0.005)
    running["shop"].kill()
    running["shop"].communicate()
    _, lost = running["bank"].communicate(timeout=60)
    assert running["bank"].returncode == 24 and "'shop' was lost" in lost
    assert done.exists()
    said = run(folder, both=both, **own)["shop"]
    assert said["rows" if find == "unbalanced" else "shared"] == 1000
    assert said.get("sum", 1000) == 1000
    lines = [json.loads(line) for line in (folder / "bank.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["began", "ended", "began", "ended"]
    assert len({line["run"] for line in lines}) == 1, "it began anew"
    assert not list(folder.glob(".*psi*")) and not list(folder.glob("large/run-*"))


def test_a_small_table_is_looked_up_in_a_large_one_that_was_prepared_once(folder: Path) -> None:
    both = ["--find", "unbalanced", "--learns", "shop", "--cap", "100"]
    kept = ["--prepared", "tags"]
    said = run(folder, both=both, bank=["--prepared", "large"], shop=kept)
    assert said["shop"]["rows"] == 20 and "rows" not in said["bank"]
    lines = (folder / "shop-aligned.csv").read_text().splitlines()
    assert lines == ["customer,spent", *(f" P{at} ,{at}" for at in range(39, 19, -1))]
    (folder / "bank.csv").unlink()  # what was prepared answers again, and its tags are at the shop
    words = ["--me", "bank", "--key", "id", "--wait", "20", "--yes", "--prepared", "large", *both]
    bank = subprocess.Popen([sys.executable, "-m", "hansa", "psi", *words], cwd=folder, stderr=subprocess.PIPE)
    shop = start(folder, "shop", "--yes", *both, *kept)
    again, (_, err) = json.loads(shop.communicate(timeout=60)[0]), bank.communicate(timeout=60)
    assert bank.returncode == 0 and again["rows"] == 20, err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--find", "names"], "--find names does not exist: choose rows, unbalanced, size, sum."),
        (["--find", "size"], "shows its result to one owner: --learns NAME"),
        (["--find", "sum", "--learns", "bank", "--epsilon", "1"], "--epsilon belongs to --find size"),
        (["--find", "size", "--learns", "bank", "--protocol", "fast"], "--protocol belongs to --find rows"),
        (["--least", "3"], "--least belongs to --find sum, not to --find rows"),
        (["--find", "size", "--learns", "bank", "--delta", "1e-6"], "--delta goes with --epsilon"),
        (["--find", "unbalanced", "--learns", "shop"], "--prepared FOLDER"),
        (["--find", "rows", "--cap", "0"], "--cap 0: allow at least one"),
    ],
)
def test_options_that_say_nothing_here_are_refused(
    folder: Path, options: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    given = ["--me", "bank", "--data", "bank.csv", "--key", "id", "--out", "o.csv", "--wait", "1", "--yes", *options]
    done = CliRunner().invoke(app, ["psi", *given])
    assert message in " ".join(done.output.split()) and done.exit_code
