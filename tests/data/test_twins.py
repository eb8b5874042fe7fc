import numpy as np
import pytest

from hansa.core.errors import DataError, NotFound
from hansa.core.job import canonical
from hansa.data import twin
from hansa.data.twins import TWINS
from hansa.runtimes.forms import rebuild

PUBLISHED = {
    "emnist": (3400, 671_585),
    "emnist_digits": (3383, 341_873),
    "gld23k": (233, 23_080),
    "cifar100": (500, 50_000),
    "celeba": (9343, 200_288),
    "gldv2": (1262, 164_172),
    "inaturalist": (9275, 120_300),
    "flair": (51_414, 429_078),
    "shakespeare": (715, 16_068),
    "stackoverflow": (342_477, 135_818_730),
    "stackoverflow_tags": (342_477, 135_818_730),
}


@pytest.mark.parametrize("name", sorted(TWINS))
def test_a_stand_in_has_as_many_clients_and_examples_as_was_published(name):
    clients = twin(name)
    sizes = clients.sizes()
    assert (len(clients), sizes.sum()) == PUBLISHED[name]
    assert sizes.min() >= 1
    assert len(set(sizes.tolist())) > 1 or name == "cifar100"


@pytest.mark.parametrize("name", sorted(TWINS))
def test_a_client_is_the_same_whoever_was_opened_before_and_in_whatever_process(name):
    one, other = twin(name, clients=12), rebuild(canonical(twin(name, clients=12)))
    assert one == other
    for client in ("03", "00"):
        one.open(client)
    a, b = one.open("07"), other.open("07")
    assert len(a) == one.sizes()[7]
    assert all(np.array_equal(a[column], b[column]) for column in a)
    assert not np.array_equal(a["x"][:1], twin(name, clients=12, seed=1).open("07")["x"][:1])
    assert not np.array_equal(a["x"][:1], twin(name, clients=12, draw=1).open("07")["x"][:1])
    with pytest.raises(NotFound, match="no client '12' among 12"):
        one.open("12")


def test_images_are_near_what_their_client_draws_for_their_class():
    clients = twin("emnist", clients=5)
    for client in clients:
        data, truth = clients.open(client), clients.truth(client).reshape(62, -1)
        assert data["x"].dtype == np.float32
        assert 0 <= data["x"].min() < data["x"].max() <= 1
        distances = ((data["x"].reshape(len(data), 1, -1) - truth) ** 2).sum(-1)
        assert (distances.argmin(1) == data["y"]).mean() > 0.99
    assert not np.allclose(clients.truth("0"), clients.truth("1")), "writers differ"


def test_a_test_set_is_drawn_from_the_same_writers():
    train, test = twin("emnist", clients=3), twin("emnist", clients=3, draw=1)
    assert np.array_equal(train.truth("2"), test.truth("2"))


def test_the_successor_is_right_as_often_as_is_said():
    clients = twin("stackoverflow", clients=20)
    pairs = [clients.open(client) for client in clients]
    hits = np.concatenate([(clients.successor[data["x"]] == data["y"]).ravel() for data in pairs])
    assert 0.295 < hits.mean() < 0.33
    assert all(np.array_equal(data["x"][:, 1:], data["y"][:, :-1]) for data in pairs)
    assert max(data["x"].max() for data in pairs) < 10_004


def test_tags_can_be_told_from_words():
    clients = twin("stackoverflow_tags", clients=5, words=1000, tags=50)
    data = clients.open("0")
    score = data["x"].reshape(len(data), -1, 50).sum(1)
    assert data["x"].shape[1:] == (1000,)
    assert set(np.unique(data["y"].sum(1))) <= {1, 2, 3}
    means = [score[data["y"] == present].mean() for present in (1, 0)]
    assert means[0] > 3 * means[1]


def test_a_client_that_prefers_a_tag_uses_its_words():
    clients = twin("stackoverflow", clients=3, alpha=0.01, predictable=0.0, topical=1.0)
    words = clients.open("1")["y"] % 500
    counted = np.bincount(words.ravel(), minlength=500) / words.size
    assert np.abs(counted - clients.truth("1")).sum() < 0.2


def test_unknown_names_and_bad_values_are_refused():
    with pytest.raises(DataError, match=r"'mnist' has no stand-in: there are \['celeba'"):
        twin("mnist")
    with pytest.raises(DataError, match="has no 'colour': it has"):
        twin("emnist", colour=3)
    with pytest.raises(DataError, match="each client needs at least one"):
        twin("emnist", clients=0)
    with pytest.raises(DataError, match="alpha must be above 0"):
        twin("emnist", alpha=0.0)
    with pytest.raises(DataError, match="at least two axes"):
        twin("emnist", clients=2, shape=(784,)).open("0")
