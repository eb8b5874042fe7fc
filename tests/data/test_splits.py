import numpy as np
import pytest

from hansa.core.errors import DataError
from hansa.data import Dataset, VerticalEven, VerticalSizes, divide, merge, regroup, vertical

DATA = Dataset(x=np.arange(100), y=np.arange(100) % 3)


@pytest.mark.parametrize("parts", [{"a": 0.5, "b": 0.3, "c": 0.2}, {"a": 50, "b": 30, "c": 20}])
@pytest.mark.parametrize("seed", [None, 0, 1])
def test_parts_cover_every_row_once(parts, seed):
    found = divide(DATA, seed=seed, **parts)
    assert {name: len(part) for name, part in found.items()} == {"a": 50, "b": 30, "c": 20}
    assert sorted(merge(*found.values())["x"].tolist()) == list(range(100))
    assert (found["a"]["x"].tolist() == list(range(50))) is (seed is None)


def test_shares_that_sum_to_less_leave_rows_out():
    found = divide(DATA, train=0.5, test=0.1)
    assert (len(found["train"]), len(found["test"])) == (50, 10)
    assert not set(found["train"]["x"].tolist()) & set(found["test"]["x"].tolist())


@pytest.mark.parametrize("parts", [{}, {"a": 0}, {"a": -0.5}, {"a": 0.8, "b": 0.3}, {"a": 101}, {"a": float("nan")}])
def test_parts_that_cannot_be_are_refused(parts):
    with pytest.raises(DataError, match=r"^parts "):
        divide(DATA, **parts)


def test_merging_unlike_data_is_refused():
    with pytest.raises(DataError, match="differ in column 'y'"):
        merge(DATA, Dataset(x=[1]))
    with pytest.raises(DataError, match=r"column 'x' of data set 2 is float64\[2\], of the first int64\[\]"):
        merge(Dataset(x=[1]), Dataset(x=np.zeros((1, 2))))
    with pytest.raises(DataError, match="nothing to merge"):
        merge()


def test_parts_are_regrouped():
    found = regroup(divide(DATA, a=60, b=30, c=10), all=("a", "b", "c"), few=("c",))
    assert {name: len(part) for name, part in found.items()} == {"all": 100, "few": 10}
    with pytest.raises(DataError, match=r"no part 'd': there are \['a'\]"):
        regroup(divide(DATA, a=60), e=("d",))


TABLE = Dataset(x=np.arange(70).reshape(7, 10), y=np.arange(7), id=np.arange(7) + 100)


@pytest.mark.parametrize(
    ("rule", "sizes"),
    [
        (VerticalEven(), [4, 3, 3]),
        (VerticalSizes((5, 3, 2)), [5, 3, 2]),
        (VerticalSizes((0.6, 0.2, 0.2)), [6, 2, 2]),
    ],
)
@pytest.mark.parametrize("shuffle", [False, True])
def test_every_feature_falls_to_exactly_one_owner(rule, sizes, shuffle):
    owners = vertical(TABLE, rule, ("c", "a", "b"), shared=("id",), shuffle=shuffle)
    assert list(owners) == ["a", "b", "c"]
    assert [len(owners.features(name)) for name in ("c", "a", "b")] == sizes
    assert sorted(sum((owners.features(name) for name in owners), ())) == list(range(10))
    for name in owners:
        data = owners.open(name)
        assert np.array_equal(data["x"], TABLE["x"][:, owners.features(name)])
        assert np.array_equal(data["id"], TABLE["id"])
        assert ("y" in data) is (name == "c"), "the first has the targets"


def test_vertical_requests_that_cannot_be_met_are_refused():
    with pytest.raises(DataError, match="none of the owners"):
        vertical(TABLE, VerticalEven(), ("a", "b"), target_owner="z")
    with pytest.raises(DataError, match="leave one of 11 owners with none"):
        vertical(TABLE, VerticalEven(), 11)
    with pytest.raises(DataError, match="sum to 9: give 10 features, or shares of 1"):
        vertical(TABLE, VerticalSizes((5, 4)), 2)
    with pytest.raises(DataError, match="2 sizes were given for 3 owners"):
        vertical(TABLE, VerticalSizes((5, 5)), 3)
    with pytest.raises(DataError, match=r"\(rows, features\) is needed"):
        vertical(DATA, VerticalEven())
    with pytest.raises(DataError, match="no column 'who'"):
        vertical(TABLE, VerticalEven(), shared=("who",))


def test_many_owners_are_numbered_in_sorted_order_and_one_seed_gives_one_split():
    owners = vertical(TABLE, VerticalEven(), 10, seed=5)
    assert list(owners) == [str(number) for number in range(10)]
    assert owners.owned == vertical(TABLE, VerticalEven(), 10, seed=5).owned
    assert owners.owned != vertical(TABLE, VerticalEven(), 10, seed=6).owned
