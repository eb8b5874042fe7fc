import json
import os
import pickle
import sys

import numpy as np
import pytest

import hansa
from hansa.core.errors import DataError, MissingExtra, NotFound
from hansa.core.job import canonical
from hansa.core.sampling import Stream
from hansa.data import IID, Clients, Dataset, Population, pack, partition, twin
from hansa.runtimes.forms import rebuild

ROWS, PEOPLE = 300, 40
WHO = np.random.default_rng(0).integers(0, PEOPLE, ROWS)


def columns():
    rng = np.random.default_rng(1)
    return {
        "name": np.array([f"ünal {number}" for number in WHO]),
        "number": WHO * 7,
        "x": rng.random((ROWS, 3)),
        "age": rng.integers(20, 80, ROWS),
        "y": rng.integers(0, 3, ROWS),
    }


def written(folder, ending, ordered=False, **options):
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    from pyarrow import feather, parquet

    given = columns()
    given["x"] = pa.FixedSizeListArray.from_arrays(pa.array(given["x"].reshape(-1)), 3)
    table = pa.table(given)
    if ordered:
        table = table.take(pa.array(np.argsort(given["name"], kind="stable")))
    path = folder / f"people{ending}"
    if ending == ".parquet":
        parquet.write_table(table, path, row_group_size=37, **options)
    else:
        feather.write_feather(table, path, chunksize=41, **options)
    return path


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("ending", [".parquet", ".arrow", ".feather"])
@pytest.mark.parametrize("column", ["name", "number"])
@pytest.mark.parametrize("packed", [False, True])
def test_every_client_has_its_rows_in_the_order_of_the_file(tmp_path, ending, ordered, column, packed):
    people = Population(written(tmp_path, ending, ordered), id=column, columns=("x", "age", "y"))
    if packed:
        people = pack(people, tmp_path / "packed")
    given = columns()
    expected = sorted(set(given["name"])) if column == "name" else [f"{value:03d}" for value in sorted(set(WHO * 7))]
    assert list(people) == expected
    for client, size in zip(people, people.sizes(), strict=True):
        mine = given[column] == (client if column == "name" else int(client))
        data = people.open(client)
        assert len(data) == size == mine.sum()
        assert set(data) == {"x", "age", "y"}
        assert all(np.array_equal(data[name], given[name][mine]) for name in data)
    assert list(people) == expected, "opening changes nothing"


def test_rows_that_lie_together_are_views_of_the_file(tmp_path):
    people = pack(partition(Dataset(x=np.arange(60.0)), IID(), clients=6), tmp_path / "people")
    data = people.open("3")
    assert not data["x"].flags.owndata
    assert not data["x"].flags.writeable
    arrow = Population(written(tmp_path, ".arrow", ordered=True, compression="uncompressed"), id="name")
    first = arrow.ids[0]
    assert not arrow.open(first)["age"].flags.owndata


def test_features_and_target_make_x_and_y(tmp_path):
    path = written(tmp_path, ".parquet")
    people = Population(path, id="name", features=("age", "number"), target="y", columns=("x",))
    with pytest.raises(DataError, match="no column 'height': its columns are"):
        Population(path, id="name", features=("height",))
    plain = Population(path, id="name", features=("age", "number"), target="y")
    data, given = plain.open(plain.ids[0]), columns()
    mine = given["name"] == plain.ids[0]
    assert data["x"].dtype == np.float32
    assert np.array_equal(data["x"], np.stack([given["age"], given["number"]], 1)[mine])
    assert np.array_equal(data["y"], given["y"][mine])
    assert set(people.open(people.ids[0])) == {"x", "y"}


@pytest.mark.parametrize("source", ["partition", "given", "twin"])
def test_any_clients_can_be_packed(tmp_path, source):
    clients = {
        "partition": lambda: partition(Dataset(**columns()), IID(), clients=11),
        "given": lambda: Clients.of({"b": Dataset(x=[1.0]), "a": Dataset(x=np.zeros(0)), "c": Dataset(x=[2.0, 3.0])}),
        "twin": lambda: twin("shakespeare", clients=30),
    }[source]()
    people = pack(clients, tmp_path / "new" / "people")
    assert list(people) == list(clients)
    for client in clients:
        one, other = clients.open(client), people.open(client)
        assert set(one) == set(other)
        assert all(np.array_equal(one[name], other[name]) for name in one)
        assert all(one[name].dtype == other[name].dtype for name in one)


def test_a_failed_pack_leaves_nothing_and_a_second_one_does_not_overwrite(tmp_path):
    torn = Clients.of({"a": Dataset(x=[1.0]), "b": Dataset(x=[1])})
    with pytest.raises(DataError, match=r"column 'x' of 'b' is int64\[\], before it float64\[\]"):
        pack(torn, tmp_path / "people")
    assert os.listdir(tmp_path) == []
    with pytest.raises(DataError, match="no rows"):
        pack(Clients.of({"a": Dataset(x=np.zeros(0))}), tmp_path / "people")
    pack(Clients.of({"a": Dataset(x=[1.0])}), tmp_path / "people")
    with pytest.raises(DataError, match="exists"):
        pack(torn, tmp_path / "people")


@pytest.mark.parametrize("ending", ["folder", ".parquet", ".arrow"])
def test_a_file_that_changed_since_it_was_opened_is_refused(tmp_path, ending):
    path = written(tmp_path, ".arrow" if ending == "folder" else ending)
    people = Population(path, id="name")
    if ending == "folder":
        people = pack(Population(path, id="name", columns=("x", "y")), tmp_path / "people")
        path = tmp_path / "people" / "column-1.npy"
    form = canonical(people)
    again = rebuild(form)
    assert again == people
    assert list(again) == list(people)
    client = people.ids[0]
    os.utime(path, ns=(1, 1))
    with pytest.raises(DataError, match="changed on disk since it was opened"):
        people.open(client)
    with pytest.raises(DataError, match="changed on disk since it was opened"):
        rebuild(form)
    assert len(Population(people.path, id=people.id).open(client)), "it can be opened anew"
    os.remove(path)
    with pytest.raises(DataError, match="changed on disk"):
        people.open(client)


def test_a_pickled_population_is_its_path_and_settings(tmp_path):
    people = pack(twin("shakespeare", clients=200, examples=4000), tmp_path / "people")
    people.open("007")
    raw = pickle.dumps(people)
    assert len(raw) < 1000
    assert np.array_equal(pickle.loads(raw).open("007")["x"], people.open("007")["x"])


def test_worker_processes_open_the_files_themselves_and_reach_the_same_bits(tmp_path, monkeypatch):
    clients = partition(Dataset(x=np.random.default_rng(0).random((60, 4), np.float32), y=np.arange(60) % 2), IID(), 6)
    people = pack(clients, tmp_path / "people")
    job = hansa.Job(
        model=hansa.LogisticModel(4, classes=2),
        algorithm=hansa.FedAvg(hansa.LocalWork(lr=0.1, epochs=1, batch_size=5)),
        pipeline=hansa.Pipeline([hansa.UniformMean()], hansa.Sum()),
        cohort=3,
        rounds=2,
        seed=1,
    )
    here = hansa.train(job, clients)
    monkeypatch.setattr(Population, "open", lambda self, client: pytest.fail("the parent opened a client"))
    there = hansa.train(job, people, hansa.Processes(2))
    assert all(np.array_equal(here.params[name], there.params[name]) for name in here.params)


def test_a_draw_reads_a_thousand_ids_of_a_million(tmp_path):
    from hansa.data.ids import TextIds

    class Counting(TextIds):
        asked = 0

        def at(self, place):
            Counting.asked += 1
            return super().at(place)

    text = b"".join(b"%07d" % number for number in range(1_000_000))
    ids = Counting(np.frombuffer(text, np.uint8), np.arange(0, len(text) + 1, 7))
    drawn = hansa.Fixed(1000).draw(ids, Stream("a"))
    assert len(drawn) == Counting.asked == 1000
    hansa.Fixed(1000).draw(ids, Stream("b"), busy={drawn[5]})
    assert Counting.asked < 2100


def test_what_is_missing_or_unknown_is_named(tmp_path):
    path = written(tmp_path, ".parquet")
    with pytest.raises(DataError, match=r"there is no .*nobody"):
        Population(tmp_path / "nobody")
    with pytest.raises(DataError, match=r"id=None: name the column .* one of \['name', 'number'"):
        Population(path)
    with pytest.raises(DataError, match="no column 'height'"):
        Population(path, id="name", columns=("height",))
    with pytest.raises(DataError, match="holds double, not ids|fixed_size_list"):
        Population(path, id="x")
    with pytest.raises(NotFound, match="no client 'eve' among"):
        Population(path, id="name").open("eve")
    (tmp_path / "people.txt").write_text("")
    with pytest.raises(DataError, match=r"neither a folder .* nor a file that ends in \.arrow"):
        Population(tmp_path / "people.txt", id="name")
    with pytest.raises(DataError, match="is a folder, which knows its ids"):
        Population(pack(twin("shakespeare", clients=2), tmp_path / "p").path, id="name")


@pytest.mark.parametrize("ending", [".parquet", ".arrow"])
def test_a_damaged_or_empty_file_is_refused(tmp_path, ending):
    path = written(tmp_path, ending)
    whole = path.read_bytes()
    for cut in (b"", whole[:50], whole[:-30], b"x" * len(whole)):
        path.write_bytes(cut)
        with pytest.raises(DataError, match="is not a whole Arrow or Parquet file"):
            Population(path, id="name")


def test_a_damaged_folder_is_refused(tmp_path):
    people = pack(Clients.of({"a": Dataset(x=[1.0]), "b": Dataset(x=[2.0, 3.0])}), tmp_path / "people")
    index = tmp_path / "people" / "index.json"
    good, described = index.read_text(), json.loads(index.read_text())
    for change in ({"clients": 3}, {"columns": {"x": "../x.npy"}}, {"columns": {"x": "ids.npy"}}, {"columns": {}}):
        index.write_text(json.dumps({**described, **change}))
        with pytest.raises(DataError):
            Population(people.path)
    index.write_text(json.dumps({**described, "version": 2}))
    with pytest.raises(DataError, match="version 2"):
        Population(people.path)
    index.write_text(good)
    column = tmp_path / "people" / "column-0.npy"
    column.write_bytes(column.read_bytes()[:-4])
    with pytest.raises(DataError, match="not an .npy file"):
        Population(people.path)


def test_empty_cells_are_refused(tmp_path):
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    from pyarrow import parquet

    parquet.write_table(pa.table({"id": ["a", None], "x": [1, 2]}), tmp_path / "owner.parquet")
    with pytest.raises(DataError, match="every row needs an owner"):
        Population(tmp_path / "owner.parquet", id="id")
    parquet.write_table(pa.table({"id": ["a", "b"], "x": [1, None]}), tmp_path / "cell.parquet")
    with pytest.raises(DataError, match="column 'x' of .* has 1 empty cells"):
        Population(tmp_path / "cell.parquet", id="id").open("a")


def test_a_missing_pyarrow_is_named_with_its_remedy(tmp_path, monkeypatch):
    path = tmp_path / "people.parquet"
    path.write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtra, match=r"needs pyarrow.*hansa\[data\]"):
        Population(path, id="name")
