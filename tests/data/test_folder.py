"""One file for each client."""

import numpy as np
import pytest

from hansa.core.errors import DataError, NotFound
from hansa.core.job import canonical
from hansa.data import Folder, pack
from hansa.runtimes.forms import rebuild


@pytest.fixture
def people(tmp_path):
    for number, name in enumerate(("eve", "ann", "bob"), start=1):
        lines = [f"{number},{row},{row % 2}" for row in range(number)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["age,weight,outcome", *lines]))
    return tmp_path


def test_every_file_is_a_client(people, tmp_path_factory):
    clients = Folder(people, "*.csv", target="outcome", features=("weight", "age"))
    assert list(clients) == ["ann", "bob", "eve"]
    assert clients.open("bob")["x"].tolist() == [[0, 3], [1, 3], [2, 3]] and clients.open("ann")["y"].tolist() == [0, 1]
    other = rebuild(canonical(clients))
    assert other == clients and np.array_equal(other.open("bob")["x"], clients.open("bob")["x"])
    assert list(pack(clients, tmp_path_factory.mktemp("packed") / "all").sizes()) == [2, 3, 1]
    with pytest.raises(NotFound, match="no client 'cleo'"):
        clients.open("cleo")


def test_arrays_are_read_as_they_are(tmp_path):
    np.savez(tmp_path / "ann.npz", x=np.zeros((2, 4, 4), "float32"), y=np.array([0, 1]))
    assert Folder(tmp_path).open("ann")["x"].shape == (2, 4, 4)


def test_files_that_cannot_be_clients_are_refused(people):
    with pytest.raises(DataError, match="no file in .* matches '\\*.parquet'"):
        Folder(people, "*.parquet")
    (people / "load.py").write_text("raise SystemExit")
    with pytest.raises(DataError, match="'load.py' in .* ends in none of .csv, .parquet, .npz"):
        Folder(people)
    (people / "load.py").unlink()
    np.savez(people / "ann.npz", x=np.zeros(1))
    with pytest.raises(DataError, match="'ann.*' in .* has another file's name"):
        Folder(people)
