import functools

import numpy as np
import pytest

from hansa.core.errors import DataError, NotFound
from hansa.core.job import canonical
from hansa.data import AtLeast, Between, ByHash, Clients, Dataset, Drawn, Mapped, Only, twin
from hansa.runtimes.forms import rebuild

PEOPLE = twin("shakespeare", clients=400, examples=4000)


def first(count, data):
    return data.take(np.arange(min(count, len(data))))


VIEWS = [
    AtLeast(PEOPLE, 10),
    ByHash(PEOPLE, share=0.3),
    Drawn(PEOPLE, 25, seed=3),
    Only(PEOPLE, ("007", "399", "012")),
    AtLeast(ByHash(PEOPLE, share=0.5), 5),
    Drawn(AtLeast(PEOPLE, 3), 10),
]


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: type(view).__name__)
def test_a_view_holds_sorted_clients_with_their_own_data_and_no_others(view):
    ids = list(view)
    assert ids == sorted(set(ids))
    assert 0 < len(ids) == len(view) < len(PEOPLE)
    assert view.sizes().tolist() == [len(view.open(client)) for client in ids]
    for client in ids[:3]:
        assert np.array_equal(view.open(client)["x"], PEOPLE.open(client)["x"])
    stranger = next(client for client in PEOPLE if client not in set(ids))
    for name in (stranger, "nobody"):
        with pytest.raises(NotFound, match=f"client '{name}'"):
            view.open(name)


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: type(view).__name__)
def test_another_process_rebuilds_the_same_view(view):
    assert list(rebuild(canonical(view))) == list(view)


def test_at_least_keeps_exactly_those_with_enough():
    sizes = PEOPLE.sizes()
    assert len(AtLeast(PEOPLE, 10)) == (sizes >= 10).sum()
    with pytest.raises(DataError, match="AtLeast leaves none of 400 clients"):
        list(AtLeast(PEOPLE, 10**6))


def test_at_least_opens_clients_that_do_not_say_their_size():
    some = Clients.of({"a": Dataset(x=[1]), "b": Dataset(x=[1, 2])})
    assert list(AtLeast(some, 2)) == ["b"]


def test_parts_by_hash_are_disjoint_cover_all_and_do_not_depend_on_who_else_is_there():
    parts = [set(ByHash(PEOPLE, share=0.25, start=start)) for start in (0, 0.25, 0.5, 0.75)]
    assert sum(map(len, parts)) == len(set().union(*parts)) == 400
    assert all(60 < len(part) < 140 for part in parts)
    fewer = set(ByHash(Drawn(PEOPLE, 100), share=0.25))
    assert fewer == parts[0] & set(Drawn(PEOPLE, 100))
    assert set(ByHash(PEOPLE, share=0.25, salt="other")) != parts[0]
    with pytest.raises(DataError, match="a part of the interval"):
        ByHash(PEOPLE, share=0.5, start=0.75)


def test_the_same_seed_draws_the_same_clients():
    assert list(Drawn(PEOPLE, 20, seed=1)) == list(Drawn(PEOPLE, 20, seed=1)) != list(Drawn(PEOPLE, 20, seed=2))
    with pytest.raises(DataError, match="count=401 must lie between 1 and the 400 clients"):
        Drawn(PEOPLE, 401)
    with pytest.raises(NotFound, match="no client 'nobody' among 400"):
        Only(PEOPLE, ("007", "nobody"))


def test_one_day_to_train_on_and_the_next_to_test_on():
    some = Clients.of({"a": Dataset(day=[1, 2, 2], x=[5, 6, 7]), "b": Dataset(day=[2, 3], x=[8, 9])})
    assert Between(some, "day", 2, 3).open("a")["x"].tolist() == [6, 7]
    assert len(Between(some, "day", 3, 4).open("a")) == 0
    assert list(AtLeast(Between(some, "day", 3, 4), 1)) == ["b"]


def test_data_is_mapped_when_it_is_opened():
    view = Mapped(PEOPLE, functools.partial(first, 2))
    assert len(view.open("007")) <= 2
    assert list(view) == list(PEOPLE)
    with pytest.raises(DataError, match="the function gave a int for '007', which has no length"):
        Mapped(PEOPLE, lambda data: 3).open("007")
