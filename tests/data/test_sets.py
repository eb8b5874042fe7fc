import gzip
import importlib.util
import os
import sys

import numpy as np
import pytest

from hansa import data
from hansa.core.errors import DataError, MissingExtra, NotFound
from hansa.data.sets.shakespeare import ALPHABET, encode, parse_play, roles, windows

needs_sklearn = pytest.mark.skipif(importlib.util.find_spec("sklearn") is None, reason="scikit-learn is not installed")
needs_folder = pytest.mark.skipif(not os.environ.get("HANSA_DATA"), reason="HANSA_DATA is not set: no large data sets")


@needs_sklearn
@pytest.mark.parametrize(
    ("name", "rows", "features", "classes"),
    [("digits", 1797, 64, 10), ("iris", 150, 4, 3), ("breast_cancer", 569, 30, 2), ("wine", 178, 13, 3)],
)
def test_a_bundled_set_has_float32_features_and_whole_labels(name, rows, features, classes):
    loaded = getattr(data, name)()
    assert loaded["x"].shape == (rows, features)
    assert (loaded["x"].dtype, loaded["y"].dtype) == (np.float32, np.int64)
    assert np.unique(loaded["y"]).tolist() == list(range(classes))


@needs_sklearn
def test_diabetes_is_a_regression():
    assert data.diabetes()["y"].dtype == np.float32


@needs_sklearn
def test_digits_lie_between_0_and_1():
    assert (data.digits()["x"].min(), data.digits()["x"].max()) == (0, 1)


def test_a_missing_scikit_learn_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(MissingExtra, match=r"hansa.data.digits needs scikit-learn.*hansa\[data\]"):
        data.digits()


def test_split_keeps_every_row_once_and_repeats_by_seed():
    whole = data.Dataset(x=np.arange(101))
    train, test = data.split(whole, test=0.2, seed=3)
    assert len(test) == 20
    assert sorted([*train["x"], *test["x"]]) == list(range(101))
    assert np.array_equal(data.split(whole, test=0.2, seed=3)[1]["x"], test["x"])
    assert not np.array_equal(data.split(whole, test=0.2, seed=4)[1]["x"], test["x"])
    assert [len(part) for part in data.split(whole.take([0, 1]), test=0.01)] == [1, 1]


@pytest.mark.parametrize(("rows", "test", "message"), [(9, 0, "test=0 must"), (9, 1.5, "test=1.5"), (1, 0.5, "two")])
def test_a_split_that_leaves_a_part_empty_is_refused(rows, test, message):
    with pytest.raises(DataError, match=message):
        data.split(data.Dataset(x=np.arange(rows)), test=test)


def test_standardising_a_test_set_uses_the_training_set():
    train = data.Dataset(x=[[0.0, 5.0], [2.0, 5.0]], y=[0, 1])
    test = data.Dataset(x=[[3.0, 5.0]], y=[1])
    assert data.standardise(train)["x"].tolist() == [[-1, 0], [1, 0]]
    assert data.standardise(test, like=train)["x"].tolist() == [[2, 0]]
    assert data.standardise(test, like=train)["y"].tolist() == [1]


@pytest.mark.parametrize("loader", [data.mnist, data.shakespeare, data.tinyshakespeare])
def test_without_the_folder_the_error_says_to_set_it(loader, monkeypatch, tmp_path):
    monkeypatch.delenv("HANSA_DATA", raising=False)
    with pytest.raises(DataError, match="HANSA_DATA names, which is not set: set it"):
        loader()
    monkeypatch.setenv("HANSA_DATA", str(tmp_path))
    with pytest.raises(DataError, match=r"has no file '(mnist|shakespeare)/.*': put it there, or set HANSA_DATA"):
        loader()


@pytest.mark.parametrize(
    ("name", "loader"),
    [
        ("mnist/train-images-idx3-ubyte.gz", data.mnist),
        ("shakespeare/plays.tar.xz", data.shakespeare),
        ("shakespeare/tinyshakespeare.txt.gz", data.tinyshakespeare),
    ],
)
def test_a_damaged_file_is_refused(name, loader, monkeypatch, tmp_path):
    (tmp_path / name).parent.mkdir()
    (tmp_path / name).write_bytes(gzip.compress(b"x" * 1000)[:20])
    monkeypatch.setenv("HANSA_DATA", str(tmp_path))
    with pytest.raises(DataError, match="is not a whole .*: fetch it anew"):
        loader()


def test_a_file_with_other_content_is_not_taken_for_mnist(monkeypatch, tmp_path):
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist/train-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"x" * 1000))
    monkeypatch.setenv("HANSA_DATA", str(tmp_path))
    with pytest.raises(DataError, match="unpacks to MD5 .*, not MNIST's 6bbc9ace"):
        data.mnist()


@needs_folder
def test_mnist_has_its_published_digits():
    train, test = data.mnist(shape=(784,))
    assert np.bincount(train["y"]).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(test["y"]).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert (train["x"].shape, train["x"].dtype) == ((60_000, 784), np.float32)
    assert float(train["x"].mean()) == pytest.approx(0.1307, abs=1e-4)


@needs_folder
def test_the_published_split_of_mnist_gives_most_clients_two_digits():
    train, _ = data.mnist()
    found = data.partition(train, data.Shards(2), clients=100)
    labels = (found.counts() > 0).sum(1)
    assert found.sizes().tolist() == [600] * 100
    assert labels.max() <= 4
    assert np.median(labels) == 2


def test_an_image_of_another_size_is_refused():
    with pytest.raises(DataError, match="has 1024 pixels, but an image has 784"):
        data.mnist(shape=(32, 32))


@needs_folder
def test_shakespeare_has_a_client_for_each_role_with_two_lines():
    train, test = data.shakespeare(length=20)
    spoken = roles()
    assert len({name.split("/")[0] for name in spoken}) == 36
    assert len(train) == len(test) == sum(len(lines) >= 2 for lines in spoken.values())
    assert 1200 < len(train) < 1250
    assert sum(map(len, spoken.values())) == pytest.approx(109_698, abs=10)
    for clients in (train, test):
        romeo = clients["Romeo and Juliet/ROMEO"]
        assert romeo["x"].shape == romeo["y"].shape == (len(romeo), 20)
        assert np.array_equal(romeo["x"][:, 1:], romeo["y"][:, :-1])
    assert len(train["Romeo and Juliet/ROMEO"]) > 3 * len(test["Romeo and Juliet/ROMEO"])
    with pytest.raises(NotFound, match="no role 'Hamlet/ROMEO'"):
        train.open("Hamlet/ROMEO")


@needs_folder
def test_the_alphabet_covers_both_texts():
    text = decode(data.tinyshakespeare(length=1000)["x"].ravel())
    assert text.startswith("First Citizen:\nBefore we proceed any further, hear me speak.")
    assert len(set(text)) == 65
    spoken = "".join(line for lines in roles().values() for line in lines)
    assert set(spoken) <= set(ALPHABET)


def decode(codes):
    return "".join(ALPHABET[code] for code in codes)


def test_codes_and_characters_go_back_and_forth():
    assert decode(encode(ALPHABET)) == ALPHABET
    assert decode(encode("naïve\t€𝄞")) == "na ve   "


@pytest.mark.parametrize("characters", [1, 3, 4, 5, 8, 9, 100])
def test_windows_cover_the_text_and_are_shifted_by_one(characters):
    text = np.arange(1, characters + 1)
    cut = windows(text, 4)
    assert cut["x"].shape == cut["y"].shape
    assert set(text[1:].tolist()) <= set(cut["y"].ravel().tolist())
    assert np.array_equal(cut["x"][:, 1:], cut["y"][:, :-1])


def test_speech_before_anyone_speaks_belongs_to_nobody():
    text = "Title\n**** ACT I ****\n     Enter all\nScene II\n     A wood\nPUCK:\n     How now.\n\n     Spirit!\n"
    assert parse_play(text) == {"PUCK": ["How now.", "Spirit!"]}


def test_roles_that_cannot_be_split_are_refused():
    with pytest.raises(DataError, match="min_lines=1 must be at least 2"):
        data.shakespeare(min_lines=1)
    with pytest.raises(DataError, match="length=0 must be at least 1"):
        data.tinyshakespeare(length=0)
