"""Clients in a table of an SQLite file."""

import pickle
import sqlite3
from contextlib import closing

import numpy as np
import pytest

import hansa
from hansa.core.errors import DataError, NotFound
from hansa.core.job import canonical
from hansa.data import Database, pack
from hansa.runtimes.forms import rebuild

RNG = np.random.default_rng(0)
WHO = RNG.integers(0, 9, 60)
AGE, WEIGHT, OUTCOME = RNG.integers(20, 80, 60), RNG.normal(70, 9, 60), RNG.integers(0, 2, 60)
IMAGES = RNG.random((60, 2, 3), dtype=np.float32)
TABLE = "CREATE TABLE examples (user {kind}, age INTEGER, weight REAL, outcome INTEGER, image BLOB, note TEXT)"


def write(path, statements, rows=()):
    with closing(sqlite3.connect(path)) as database, database:
        for statement in statements:
            database.execute(statement)
        database.executemany("INSERT INTO examples VALUES (?, ?, ?, ?, ?, ?)", rows)
    return path


@pytest.fixture(params=["TEXT", "INTEGER"])
def people(tmp_path, request):
    """The file, and its ids."""
    ids = [f"ünal {k}" if request.param == "TEXT" else int(k) for k in WHO]
    columns = (ids, AGE.tolist(), WEIGHT.tolist(), OUTCOME.tolist(), [one.tobytes() for one in IMAGES], ["none"] * 60)
    index = "CREATE INDEX of_user ON examples (user)"
    path = write(tmp_path / "people.sqlite", [TABLE.format(kind=request.param), index], zip(*columns, strict=True))
    return path, np.array([str(one) for one in ids])


def test_every_client_has_its_rows_in_their_order(people):
    path, who = people
    clients = Database(path, "examples", id="user", columns=("image",), features=("age", "weight"), target="outcome",
                       arrays={"image": ("float32", (2, 3))})  # fmt: skip
    assert list(clients) == sorted(set(who))
    for client, size in zip(clients, clients.sizes(), strict=True):
        mine, data = who == client, clients.open(client)
        assert len(data) == size and set(data) == {"x", "y", "image"}
        assert np.array_equal(data["x"], np.stack([AGE[mine], WEIGHT[mine]], 1).astype("float32"))
        assert np.array_equal(data["y"], OUTCOME[mine]) and data["y"].dtype == np.int64
        assert np.array_equal(data["image"], IMAGES[mine])
    with pytest.raises(NotFound, match="no client 'nobody'"):
        clients.open("nobody")


def test_processes_open_the_file_themselves_to_the_same_bits(people):
    clients = Database(people[0], "examples", id="user", features=("age", "weight"), target="outcome")
    job = hansa.Job(
        model=hansa.LogisticModel(2, 2),
        algorithm=hansa.FedAvg(hansa.LocalWork(lr=1e-4, epochs=1, batch_size=4)),
        pipeline=hansa.Pipeline([hansa.WeightedMean()], hansa.Sum()),
        cohort=4,
        rounds=2,
    )
    assert hansa.train(job, clients).model == hansa.train(job, clients, runtime=hansa.Processes(2)).model
    for other in (rebuild(canonical(clients)), pickle.loads(pickle.dumps(clients))):
        assert other == clients and list(other) == list(clients)


def test_a_database_can_be_packed(people, tmp_path):
    clients = Database(people[0], "examples", id="user", columns=("age", "weight"))
    packed = pack(clients, tmp_path / "packed")
    assert list(packed) == list(clients)
    assert all(np.array_equal(packed.open(one)["weight"], clients.open(one)["weight"]) for one in clients)


def test_a_file_that_changed_is_refused(people):
    clients = Database(people[0], "examples", id="user", columns=("age",))
    write(people[0], ["DELETE FROM examples WHERE age < 30", "VACUUM"][:1])
    with pytest.raises(DataError, match="changed on disk since it was opened"):
        clients.open(clients.ids[0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"table": "people"}, "has no table 'people'"),
        ({"id": "owner"}, "has no column 'owner': it has"),
        ({"columns": ("height",)}, "has no column 'height': it has"),
        ({"id": "age"}, "for want of an index: run CREATE INDEX"),
        ({"table": 'x"; DROP TABLE examples; --'}, "has no table"),
    ],
)
def test_what_is_missing_is_named(people, settings, message):
    with pytest.raises(DataError, match=message):
        Database(people[0], **{"table": "examples", "id": "user", "columns": ("age",), **settings})


@pytest.mark.parametrize(
    ("column", "arrays", "message"),
    [
        ("note", {}, "holds text or BLOBs: give numbers"),
        ("image", {}, "holds text or BLOBs"),
        ("image", {"image": ("float64", (2, 3))}, "must hold BLOBs of 48 bytes"),
    ],
)
def test_cells_of_another_kind_are_refused(people, column, arrays, message):
    clients = Database(people[0], "examples", id="user", columns=(column,), arrays=arrays)
    with pytest.raises(DataError, match=message):
        clients.open(clients.ids[0])


def test_empty_cells_and_files_are_refused(tmp_path):
    index = "CREATE INDEX of_user ON examples (user)"
    path = write(tmp_path / "a.sqlite", [TABLE.format(kind="TEXT"), index])
    with pytest.raises(DataError, match="has no rows"):
        Database(path, "examples", id="user")
    write(path, [], [("ann", None, 1.0, 1, b"", "")])
    with pytest.raises(DataError, match="'age' of client 'ann'.* has empty cells"):
        Database(path, "examples", id="user", columns=("age",)).open("ann")
    write(path, [], [(None, 1, 1.0, 1, b"", "")])
    with pytest.raises(DataError, match="column 'user'.* has 1 empty cells"):
        Database(path, "examples", id="user", columns=("age",))
    (tmp_path / "b.sqlite").write_bytes(b"no database at all, but long enough to be one" * 40)
    with pytest.raises(DataError, match="cannot be read as an SQLite file"):
        Database(tmp_path / "b.sqlite", "examples", id="user")
    with pytest.raises(DataError, match="there is no file"):
        Database(tmp_path / "c.sqlite", "examples", id="user")
