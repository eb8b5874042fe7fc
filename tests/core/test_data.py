"""Data sets and clients."""

import numpy as np
import pytest

from hansa.core.data import Clients, Dataset, load
from hansa.core.errors import DataError, NotFound


def test_columns_share_their_first_axis() -> None:
    with pytest.raises(DataError, match=r"one row for each example, but their lengths are \{'x': 2, 'y': 3\}"):
        Dataset(x=[1, 2], y=[1, 2, 3])
    with pytest.raises(DataError, match=r"lengths are \{'x': -1\}"):
        Dataset(x=1)
    with pytest.raises(DataError, match=r"needs at least one column, as in Dataset\(x=inputs"):
        Dataset()


def test_rows_are_taken_by_index_or_mask_in_order() -> None:
    data = Dataset(x=np.arange(4), y=np.arange(4) * 10)
    assert data.take([2, 0])["y"].tolist() == [20, 0]
    assert data.take(data["x"] > 1)["x"].tolist() == [2, 3]
    assert len(data.take([])) == 0


def test_an_unknown_column_lists_those_there_are() -> None:
    with pytest.raises(DataError, match=r"no column 'z': this Dataset has \['x', 'y'\]"):
        Dataset(x=[1], y=[2])["z"]


def test_clients_are_sorted_and_opened_one_at_a_time() -> None:
    opened = []

    def loader(name: str):
        return lambda: opened.append(name) or Dataset(x=[1])

    clients = Clients.of({"b": loader("b"), "a": loader("a"), "c": Dataset(x=[1, 2])})
    assert list(clients) == ["a", "b", "c"]
    assert len(clients) == 3
    assert opened == []
    assert len(clients["a"]) == 1
    assert opened == ["a"]


def test_a_client_that_is_not_there_is_named() -> None:
    with pytest.raises(NotFound, match=r"no client 'z' among 1 \(the first is 'a'\)"):
        Clients.of({"a": Dataset(x=[1])}).open("z")
    with pytest.raises(DataError, match="there are no clients: give at least one"):
        Clients.of({})


def test_a_loader_that_gives_no_data_is_named() -> None:
    def forgetful() -> None:
        return None

    with pytest.raises(DataError, match=r"forgetful returned NoneType, which has no length"):
        load(forgetful)
