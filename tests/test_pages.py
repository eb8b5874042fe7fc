"""Every Python block of docs/ runs: those of a page in order, in one namespace, with what the page takes for granted.

Where several parties run a block each is a thread. A line that ends in `# at the bank`, and the lines below a comment
that begins so, are that party's alone; `# at the others` is for all but the party of the line before. What a comment
below a `print` says is printed.
"""

import functools
import re
import runpy
import sqlite3
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hansa

torch = pytest.importorskip("torch")
for _library in ("sklearn", "pyarrow", "matplotlib", "coincurve", "gmpy2", "dp_accounting", "typer", "rich"):
    pytest.importorskip(_library)

import hansa.mpc  # noqa: E402
import hansa.vertical.predict  # noqa: E402  (it asks what is a TlsMesh, which a test replaces)
from hansa.runtimes.mesh.local import LocalMesh, together  # noqa: E402
from hansa.vertical import AlignedTable, Keys, SplitLearning  # noqa: E402
from hansa.vertical.psi.files import CsvTable, write_aligned  # noqa: E402
from hansa.vertical.psi.intersect import intersect  # noqa: E402

DOCS = Path(__file__).resolve().parents[1] / "docs"
NOT_RUN = {  # a page, or one of its headings: why
    ("tutorial.md", ""): "its blocks are files, which tests/app/test_pages.py runs",
    ("cli.md", "The job file"): "an outline, with `...` for what a job is",
    ("data.md", "Tasks"): "an hour of training",
    ("design.md", "The front door"): "the README's example and the first of mpc.md, which run",
    ("ray.md", "On a cluster"): "needs a cluster; tests/runtimes/test_ray.py starts one",
}
SHORTER = {  # numbers that say how long something takes, and no more
    "boosting.md": {
        "trees=50": "trees=2",
        "trees=10, depth": "trees=2, depth",
        "trees=100": "trees=5",
        "trees=20": "trees=2",
        "rounds=20 * 4": "rounds=2 * 4",
    },
    "transfer.md": {"steps=60": "steps=2"},
}
Given = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """Who runs the blocks below a heading, and what they have by then."""

    given: Callable[[Any], Given]  # takes the mesh of a party; None where there is one party
    parties: Sequence[str] = ()
    session: bool = False  # whether the name `session` is one of `hansa.mpc`


def draw() -> np.random.Generator:
    return np.random.default_rng(0)


# -- what pages take for granted


def modules() -> Given:
    """What a reader has imported, and a small job with its clients."""
    clients = hansa.data.partition(hansa.data.digits(), hansa.data.Dirichlet(alpha=1.0), clients=20, seed=1)
    algorithm, model = hansa.FedAvg(hansa.LocalWork(lr=0.1, epochs=1)), hansa.LogisticModel(inputs=64, classes=10)
    pipeline = hansa.Pipeline([hansa.WeightedMean()], hansa.Sum())
    job = hansa.Job(model=model, algorithm=algorithm, pipeline=pipeline, cohort=4, rounds=2)
    made = {"job": job, "clients": clients, "model": model, "algorithm": algorithm}
    return {**made, **given_modules()}


def given_modules() -> Given:
    functional = torch.nn.functional
    return {
        "hansa": hansa, "np": np, "torch": torch, "nn": torch.nn, "F": functional, "functools": functools, "Path": Path
    }  # fmt: skip


def populations(_: Any) -> Given:
    """The files that the page reads."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    users, x = np.repeat(np.arange(20), 5), draw().normal(size=(100, 64)).astype(np.float32)
    columns = {"user": pa.array([f"u{user:02}" for user in users]), "y": pa.array(draw().integers(0, 10, 100))}
    pq.write_table(pa.table({**columns, "x": pa.FixedSizeListArray.from_arrays(x.ravel(), 64)}), "people.parquet")
    with sqlite3.connect("people.sqlite") as base:
        base.execute("CREATE TABLE examples (user TEXT, age REAL, weight REAL, outcome INTEGER)")
        base.execute("CREATE INDEX whose ON examples (user)")
        base.executemany("INSERT INTO examples VALUES (?, 41.0, 70.5, 1)", [("ann",), ("bob",)])
    base.close()
    with sqlite3.connect("images.sqlite") as base:
        base.execute("CREATE TABLE images (writer TEXT, x BLOB)")
        base.execute("CREATE INDEX whose ON images (writer)")
        base.execute("INSERT INTO images VALUES ('ann', ?)", [bytes(28 * 28)])
    base.close()
    return {"others": hansa.data.partition(hansa.data.digits(), hansa.data.IID(), clients=20)}


def rows(_: Any) -> Given:
    age, town = draw().uniform(18, 60, 80), draw().choice(np.array(["Bremen", "Visby"], dtype=object), 80)
    return {"age": age, "town": town, "labels": draw().integers(0, 2, 80)}


def owners_of_rows(_: Any) -> Given:
    """Five clients with two columns, a number and a part of one."""
    x, y = np.column_stack([draw().uniform(18, 60, 200), draw().uniform(size=200)]), draw().integers(0, 2, 200)
    parts = {f"{at}": hansa.Dataset(x=x[at::5], y=y[at::5].astype(np.float32)) for at in range(5)}
    return {"x": x, "clients": hansa.Clients.of(parts)}


def weather(_: Any) -> Given:
    x, y = draw().integers(0, 2, (40, 4)), draw().integers(0, 2, 40)
    return {"clients": hansa.Clients.of({f"{at}": hansa.Dataset(x=x[at::4], y=y[at::4]) for at in range(4)})}


def table_of(owner: str, count: int = 60, columns: int = 3) -> AlignedTable:
    numbers = draw().normal(size=(count, columns)) + np.arange(columns)
    return AlignedTable(owner, {f"{owner}{at}": numbers[:, at] for at in range(columns)})


def encrypted_trees(mesh: Any) -> Given:
    paid = {"paid_back": draw().integers(0, 2, 60)} if mesh.me == "bank" else {}
    mine = table_of(mesh.me)
    return {"table": AlignedTable(mesh.me, {**mine.columns, **paid}), "new_people": mine}


def shared_trees(mesh: Any) -> Given:
    table = table_of(mesh.me) if mesh.me != "helper" else None
    return {"table": table, "labels": draw().integers(0, 2, 60) if mesh.me == "bank" else None, "new_people": table}


def loaders(_: Any) -> Given:
    return {
        "load_features": lambda: draw().normal(size=(20, 13)).astype(np.float32),
        "load_labels": lambda: draw().normal(size=(20, 1)).astype(np.float32),
    }


def private(_: Any) -> Given:
    return {"job": runpy.run_path(str(DOCS.parent / "examples" / "private_digits.py"))["job"]}


def files_of_shares(mesh: Any) -> Given:
    """Written once, by the first party."""
    if mesh.me == "bank":
        parties, x = ("bank", "helper", "shop"), draw().normal(size=(8, 3))
        hansa.mpc.save_shares({"table": x}, "shares/heart", parties)
        hansa.mpc.save_shares({"table": x[:, :1]}, "shares/outcome", parties)
        hansa.mpc.save_shares(torch.nn.Linear(3, 1).state_dict(), "shares/model", parties)
    mesh.exchange("written", b"")
    return {}


def customers(mesh: Any) -> Given:
    ids = [f"{at}" for at in range(60)] if mesh.me == "bank" else [f"{at}" for at in range(20, 80)]
    table = {"id": ids, "spent": np.arange(60.0)}
    return {"ids": ids, "ages": list(range(60)), "table": table}


def counted(mesh: Any) -> Given:
    return {"table": customers(mesh)["table"]}


def halves(mesh: Any) -> Given:
    bank, labels = mesh.me == "bank", torch.from_numpy(draw().integers(0, 2, 60))
    bottom, head = torch.nn.Linear(3, 4), torch.nn.Linear(20, 2)
    table = table_of(mesh.me, columns=3 if bank else 8)
    auc = lambda outputs, y: float((outputs.argmax(1) == y).float().mean())  # noqa: E731
    return {
        "table": table, "test_table": table, "bank_bottom": bottom, "head": head, "labels": labels,
        "test_labels": labels, "auc": auc,
    }  # fmt: skip


def transferred(mesh: Any) -> Given:
    shared = table_of(mesh.me, 10)
    return {"table": shared, "more": table_of("bank", 20), "y": draw().integers(0, 2, 30), "customers": shared}


def towns(mesh: Any) -> Given:
    return {"table": {"town": np.array(["Bremen", "Visby", "Lübeck" if mesh.me == "bank" else "Danzig"], dtype=object)}}


def incomes(_: Any) -> Given:
    return {
        "y": draw().integers(0, 2, 200).astype(float),
        "table": AlignedTable("shop", {"income": draw().normal(size=200)}),
    }


def asked(mesh: Any) -> Given:
    ids = ["4711", *(f"{at}" for at in range(59))]
    plan = SplitLearning(bottoms=("bank", "shop"), top="bank")
    top = {"top": torch.nn.Linear(4, 1), "loss": torch.nn.functional.mse_loss} if mesh.me == "bank" else {}
    part = plan.part(mesh, bottom=torch.nn.Linear(3, 2), **top)
    return {"ids": ids, "table": table_of(mesh.me), "part": part, "connect": lambda: (mesh, part.predict)}


def aligned(mesh: Any) -> Given:
    """The files that `hansa psi` wrote, of both owners."""
    if mesh.me == "bank":
        together(LocalMesh.of(["bank", "shop"]), align_files)
    mesh.exchange("written", b"")
    return {}


def align_files(mesh: LocalMesh) -> None:
    own = "well_off" if mesh.me == "bank" else "spent"
    path, values = Path(f"{mesh.me}.csv"), draw().integers(0, 2, 60)
    extra = draw().normal(size=60)
    lines = [f"p{at},{values[at] if own == 'well_off' else extra[at]},{extra[at]:.3f}" for at in range(60)]
    path.write_text("\n".join([f"id,{own},{mesh.me}_age", *lines]) + "\n", encoding="utf-8")
    table = CsvTable.open(path)
    found = intersect(mesh, lambda: table.keys(["id"]), Keys("id"), accept=True)
    assert found is not None
    write_aligned(table, found, Path(f"{mesh.me}-aligned.csv"), owner=mesh.me, key=["id"])


def two_jobs(_: Any) -> Given:
    job = modules()["job"]
    return {"job_a": job, "job_b": job}


OWNERS, COMPUTING = ("bank", "shop"), ("bank", "helper", "shop")
SETTINGS = {
    ("boosting.md", "Boosted trees"): Setting(rows),
    ("boosting.md", "Columns of several owners, encrypted gradients"): Setting(encrypted_trees, OWNERS),
    ("boosting.md", "Columns of several owners, on shares"): Setting(shared_trees, COMPUTING),
    ("boosting.md", "People of several owners"): Setting(owners_of_rows),
    ("boosting.md", "One decision tree, by counts"): Setting(weather),
    ("data.md", "One data set, many clients"): Setting(populations),
    ("mpc.md", "Secret-shared learning"): Setting(loaders, COMPUTING),
    ("mpc.md", "Data and results without a session"): Setting(files_of_shares, COMPUTING),
    ("privacy.md", "Privacy: what ε says here"): Setting(private),
    ("psi.md", "Private set intersection"): Setting(customers, OWNERS),
    ("psi.md", "Counts, sums, and look-ups"): Setting(counted, OWNERS),
    ("split-learning.md", "Split learning"): Setting(halves, OWNERS),
    ("transfer.md", "Transfer: few people, few columns in common"): Setting(transferred, COMPUTING, session=True),
    ("vertical.md", "From two tables to a prediction"): Setting(aligned, COMPUTING),
    ("vertical-features.md", "Categories"): Setting(towns, OWNERS),
    ("vertical-features.md", "Columns and another owner's labels"): Setting(incomes, OWNERS),
    ("vertical-prediction.md", "Predicting together, as a service"): Setting(asked, OWNERS),
    ("virtual-time.md", "Several jobs on one fleet"): Setting(two_jobs),
}


# -- running them


def blocks(page: Path) -> list[tuple[str, str]]:
    """The Python blocks of a page, each with its heading; `…` on a line of its own stands for code of the reader's."""
    text, heading, found = page.read_text(encoding="utf-8"), "", []
    for match in re.finditer(r"^```(\w*)\n(.*?)^```|^#+ ([^\n]+)$", text, re.MULTILINE | re.DOTALL):
        heading = match[3] or heading
        if match[1] == "python":
            found.append((heading, re.sub(r"^(\s*)…$", r"\1...", match[2], flags=re.MULTILINE)))
    return found


def lines_of(code: str, me: str) -> str:
    """The lines of a block that are this party's."""
    named, kept, section, before = set(re.findall(r"# at (?:the|a) (\w+)", code)), [], "", ""
    for line in code.splitlines():
        begins, ends = re.match(r"# at the (\w+)", line), re.search(r"# at (?:the|a) (\w+)", line)
        section = begins[1] if begins else section
        whose = ends[1] if ends else section
        if whose in ("", me) or (whose == "others" and me != before) or (whose == "party" and me not in named):
            kept.append(line)
        before = whose
    return "\n".join(kept)


class OfThisThread:
    """Stands in for what opens links: each thread is a party, and has its links already."""

    def __init__(self) -> None:
        self._thread = threading.local()

    def links(self, *_: Any, **__: Any) -> Any:
        return self

    def connect(self, *_: Any, protocol: str = "aby3", **__: Any) -> Any:
        return hansa.mpc.Session(self._thread.mesh, protocol)

    def play(self, page: str, setting: Setting, codes: Sequence[str], known: dict[str, Given], mesh: LocalMesh) -> None:
        self._thread.mesh = mesh
        names = known.setdefault(mesh.me, given_modules())
        names |= {"mesh": mesh, **setting.given(mesh)}
        if setting.session:
            names["session"] = hansa.mpc.Session(mesh)
        for code in codes:
            exec(compile(lines_of(code, mesh.me), f"{page}, {mesh.me}", "exec"), names)

    def __enter__(self) -> Any:
        return self._thread.mesh

    def __exit__(self, *_: Any) -> None:
        """The mesh of threads needs no farewell."""


PAGES = sorted(page for page in DOCS.glob("*.md") if blocks(page) and (page.name, "") not in NOT_RUN)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_of_the_page_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    this = OfThisThread()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setattr(hansa.mpc, "connect", this.connect)
    monkeypatch.setattr("hansa.runtimes.mesh.TlsMesh", this.links)
    monkeypatch.setattr("hansa.runtimes.mesh.Parties.read", this.links)
    known: dict[str, Given] = {"": modules()}
    for heading, found in groupby(blocks(page), key=lambda block: block[0]):
        if (page.name, heading) in NOT_RUN:
            continue
        codes = [functools.reduce(lambda c, p: c.replace(*p), SHORTER.get(page.name, {}).items(), c) for _, c in found]
        setting = SETTINGS.get((page.name, heading), Setting(lambda _: {}))
        if setting.parties:
            together(LocalMesh.of(setting.parties), functools.partial(this.play, page.name, setting, codes, known))
            continue
        known[""].update(setting.given(None))
        for code in codes:
            exec(compile(code, f"{page.name}, {heading}", "exec"), known[""])
    told = capsys.readouterr().out
    for line in re.findall(r"^print\(.*\n# (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE):
        assert line in told


def test_what_is_said_of_pages_is_there() -> None:
    there = {(page.name, heading) for page in DOCS.glob("*.md") for heading, _ in blocks(page)}
    there |= {(page, "") for page, _ in there}
    assert {*NOT_RUN, *SETTINGS} <= there
