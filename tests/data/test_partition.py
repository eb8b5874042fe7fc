import math
import pickle
import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from hansa.core.errors import DataError, NotFound
from hansa.data import (
    IID,
    ByTime,
    Continuous,
    Dataset,
    Dirichlet,
    Distribution,
    GroupedNaturalId,
    InnerDirichlet,
    NaturalId,
    Partition,
    Pathological,
    QuantitySkew,
    Shards,
    Sizes,
    heterogeneity,
    partition,
)
from hansa.data.partitioners.size import apportion

EVERY_RULE = [
    IID(),
    Dirichlet(0.1),
    Dirichlet(0.001),
    Dirichlet(1000.0, min_examples=0),
    Dirichlet(0.5, min_examples=3),
    InnerDirichlet(0.1),
    InnerDirichlet(0.01, sizes=QuantitySkew(sigma=2.0)),
    InnerDirichlet(10.0, sizes=Sizes("linear")),
    Shards(2, uneven=True),
    Shards(1, uneven=True),
    Pathological(1),
    Pathological(2),
    QuantitySkew(0.1),
    QuantitySkew(power=1.2),
    QuantitySkew(sigma=2.0),
    Sizes("equal"),
    Sizes("linear"),
    Sizes("square"),
    Sizes("exponential"),
    Sizes(math.sqrt, min_examples=0),
    NaturalId("id"),
    NaturalId("word"),
    GroupedNaturalId("id"),
    GroupedNaturalId("word", balance="rows"),
    ByTime("time"),
    ByTime("time", by="duration"),
    Continuous("time"),
    Continuous("time", strictness=1.0),
]


def population(rows: int, classes: int = 4, seed: int = 0) -> Dataset:
    rng = np.random.default_rng(seed)
    people = rng.integers(0, 30, rows)
    return Dataset(
        x=np.arange(rows),
        y=rng.integers(0, classes, rows),
        id=people,
        word=np.array([f"who-{person}" for person in people]),
        time=rng.permutation(rows),
    )


@pytest.mark.parametrize("rule", EVERY_RULE, ids=str)
@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 300), classes=st.integers(1, 6), clients=st.integers(1, 40), seed=st.integers(0, 2**32 - 1))
def test_every_row_falls_to_exactly_one_client_or_the_request_is_refused(rule, rows, classes, clients, seed):
    dataset = population(rows, classes, seed)
    if isinstance(rule, NaturalId):
        clients = len(np.unique(dataset[rule.column]))
    try:
        found = partition(dataset, rule, clients=clients, seed=seed)
    except DataError as refusal:
        assert any(remedy in str(refusal) for remedy in ("lower", "raise", "by='rows'", "mend"))
        return
    assert len(found) == clients
    assert sorted(np.concatenate([found.rows(client) for client in found]).tolist()) == list(range(rows))
    assert sorted(np.concatenate([found[client]["x"] for client in found]).tolist()) == list(range(rows))
    assert list(found.ids) == sorted(set(found.ids))
    least = getattr(rule, "min_examples", 1)
    assert found.sizes().min() >= least
    assert found.sizes().sum() == found.counts().sum() == rows


@pytest.mark.parametrize("rule", EVERY_RULE, ids=str)
def test_a_roomy_request_is_met_and_the_same_seed_gives_the_same_partition(rule):
    dataset = population(3000)
    clients = None if isinstance(rule, NaturalId) else 8
    first, again, other = (partition(dataset, rule, clients=clients, seed=seed) for seed in (1, 1, 2))
    assert all(np.array_equal(first.rows(client), again.rows(client)) for client in first)
    if not isinstance(rule, (NaturalId, ByTime)) and getattr(rule, "strictness", 0) < 1:
        assert any(not np.array_equal(first.rows(client), other.rows(client)) for client in first)


def test_ids_are_zero_padded_so_that_sorted_order_is_numeric():
    found = partition(population(2000), IID(), clients=1000)
    assert found.ids[0] == "000"
    assert found.ids[-1] == "999"
    assert list(found) == sorted(found) == [f"{number:03d}" for number in range(1000)]
    assert "999" in found.ids
    assert "1000" not in found.ids
    assert found.ids[998:] == ["998", "999"]


@pytest.mark.parametrize("stranger", ["8", "", "1", "-1", "07", "eight", "٣"])
def test_an_unknown_client_is_not_found(stranger):
    found = partition(population(100), IID(), clients=20)
    if stranger == "07":
        assert len(found.open(stranger)) == 5
    else:
        with pytest.raises(NotFound, match=r"among 20 \(the first is '00'\)"):
            found.open(stranger)


def test_opening_a_client_gives_its_rows_of_every_column():
    found = partition(population(50), IID(), clients=5)
    data = found.open("3")
    assert np.array_equal(data["x"], found.rows("3"))
    assert set(data) == {"x", "y", "id", "word", "time"}


def test_counts_are_those_of_a_loop():
    found = partition(population(200), Dirichlet(0.3), clients=10)
    assert found.counts().tolist() == [np.bincount(found[client]["y"], minlength=4).tolist() for client in found]


def test_a_partition_survives_the_way_to_another_process():
    found = partition(population(50), NaturalId("word"))
    again = pickle.loads(pickle.dumps(found))
    assert list(again) == list(found)
    assert np.array_equal(again.counts(), found.counts())


def test_smaller_alpha_gives_clients_fewer_labels():
    dataset = population(5000, classes=10)
    for rule in (Dirichlet, InnerDirichlet):
        low, middle, high = (
            heterogeneity.summary(partition(dataset, rule(alpha), clients=20)) for alpha in (0.1, 1.0, 100.0)
        )
        assert low.entropy < middle.entropy < high.entropy
        assert low.entropy < 2.0
        assert high.entropy > 3.2


def test_dirichlet_shares_have_the_variance_of_a_dirichlet_distribution():
    # One label: shares of n clients have mean 1/n and variance (1/n)(1 - 1/n) / (n·alpha + 1).
    dataset, clients, alpha = Dataset(y=np.zeros(20_000, int)), 5, 0.7
    shares = np.array(
        [partition(dataset, Dirichlet(alpha, min_examples=0), clients, seed).sizes() for seed in range(400)]
    ) / len(dataset)
    assert shares.mean(0) == pytest.approx(np.full(clients, 0.2), abs=0.04)
    assert shares.var() == pytest.approx(0.2 * 0.8 / (clients * alpha + 1), rel=0.15)


def test_inner_dirichlet_keeps_the_given_sizes():
    found = partition(population(1000), InnerDirichlet(0.1, sizes=Sizes("linear")), clients=4)
    assert found.sizes().tolist() == [100, 200, 300, 400]


def test_two_shards_give_each_client_two_runs_of_the_rows_sorted_by_label():
    labels = np.repeat(np.arange(10), 100)
    found = partition(Dataset(y=labels), Shards(2), clients=50)
    assert found.sizes().tolist() == [20] * 50
    for client in found:
        first, second = found.rows(client).reshape(2, 10)
        assert (np.diff(first) == 1).all()
        assert (np.diff(second) == 1).all()
    assert ((found.counts() > 0).sum(1) <= 2).all()


def test_pathological_gives_every_client_exactly_its_number_of_labels():
    dataset = Dataset(y=np.arange(1000) % 10)
    for classes in (1, 2, 3, 10):
        counts = partition(dataset, Pathological(classes), clients=30).counts()
        assert ((counts > 0).sum(1) == classes).all()
        assert np.ptp((counts > 0).sum(0)) <= 1


@pytest.mark.parametrize(
    ("law", "sizes"),
    [
        ("equal", [14, 14, 14, 14]),
        ("linear", [6, 11, 17, 22]),
        ("square", [2, 7, 17, 30]),
        ("exponential", [2, 5, 13, 36]),
        ((10, 20, 25, 1), [10, 20, 25, 1]),
        (lambda client: 7 if client else 35, [35, 7, 7, 7]),
    ],
    ids=["equal", "linear", "square", "exponential", "exact", "function"],
)
def test_sizes_follow_their_law(law, sizes):
    assert partition(population(56), Sizes(law), clients=4).sizes().tolist() == sizes


@given(
    total=st.integers(0, 10_000),
    weights=st.lists(st.floats(0, 1e9), min_size=1, max_size=50).filter(lambda weights: sum(weights) > 1e-3),
    least=st.integers(0, 10),
)
def test_apportioning_hands_out_everything_and_leaves_nobody_short(total, weights, least):
    total = max(total, least * len(weights))
    sizes = apportion(total, np.array(weights), least)
    assert sizes.sum() == total
    assert sizes.min() >= least
    if least == 0:
        quotas = total * np.array(weights) / sum(weights)
        assert (np.abs(sizes - quotas) < 1 + 1e-6).all()


def test_natural_ids_name_the_clients_in_numeric_order():
    found = partition(Dataset(id=[10, 9, 100, 9]), NaturalId("id"))
    assert list(found) == ["009", "010", "100"]
    assert found.rows("009").tolist() == [1, 3]


def test_natural_ids_of_every_type_are_sorted_as_text():
    assert list(partition(Dataset(id=[-5, 3, -10]), NaturalId("id"))) == ["-10", "-5", "3"]
    assert list(partition(Dataset(id=np.array([b"b", b"a"])), NaturalId("id"))) == ["a", "b"]
    assert list(partition(Dataset(id=np.array(["ä", 7], dtype=object)), NaturalId("id"))) == ["7", "ä"]


@pytest.mark.parametrize("balance", ["ids", "rows"])
def test_grouping_cuts_no_id_in_two(balance):
    found = partition(population(500), GroupedNaturalId("id", balance=balance), clients=7)
    people = [set(found[client]["id"].tolist()) for client in found]
    assert sum(map(len, people)) == len(set.union(*people)) == 30


def test_grouping_by_rows_balances_rows():
    ids = np.repeat(np.arange(6), [50, 10, 10, 10, 10, 10])
    found = partition(Dataset(id=ids), GroupedNaturalId("id", balance="rows"), clients=2)
    assert found.sizes().tolist() == [50, 50]


def test_clients_by_time_follow_one_another():
    found = partition(population(100), ByTime("time"), clients=7)
    spans = [(found[client]["time"].min(), found[client]["time"].max()) for client in found]
    assert all(before[1] < after[0] for before, after in pairwise(spans))
    assert np.ptp(found.sizes()) <= 1


def test_stretches_of_equal_duration_follow_the_clock_not_the_rows():
    days = np.array(["2024-01-01", "2024-01-02", "2024-01-03", "2024-01-11"], dtype="M8[D]")
    found = partition(Dataset(day=days), ByTime("day", by="duration"), clients=2)
    assert found.sizes().tolist() == [3, 1]


FLAT = Dataset(x=np.zeros((10, 2)), y=np.arange(10) % 3, target=np.linspace(0.05, 1, 10), gap=[np.nan, *range(9)])


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (lambda: partition(FLAT, IID()), r"clients=100 \(the default\) need 100 rows, but there are 10: lower"),
        (lambda: partition(FLAT, IID(), clients=11), "clients=11 > 10 rows: lower clients or give more rows"),
        (lambda: partition(FLAT, IID(), clients=0), "clients=0 must be a whole number of at least 1"),
        (lambda: partition(FLAT, IID(), clients=2.5), "clients=2.5 must be a whole number"),
        (lambda: partition(FLAT, IID, clients=2), "is not a partitioner: give an instance, such as IID()"),
        (lambda: partition(FLAT.take(np.arange(0)), IID(), clients=1), "has no rows"),
        (lambda: partition(FLAT, Dirichlet(1.0, min_examples=4), clients=3), "clients=3 with min_examples=4 need 12"),
        (lambda: partition(FLAT, Dirichlet(1.0, label="z"), clients=3), "no column 'z': this Dataset has"),
        (lambda: partition(FLAT, Dirichlet(1.0, label="x"), clients=3), r"column 'x' has shape \[10, 2\]"),
        (lambda: partition(FLAT, Dirichlet(1.0, label="target"), clients=3), "'target' holds measurements, not labels"),
        (lambda: partition(FLAT, Dirichlet(1.0, label="gap"), clients=3), r"'gap' is missing \(NaN\) in 1 examples"),
        (lambda: Dirichlet(0), "alpha=0 must be a finite number above 0"),
        (lambda: Dirichlet(-1.0), "alpha=-1.0 must be"),
        (lambda: Dirichlet(math.nan), "alpha=nan must be"),
        (lambda: Dirichlet("0.3"), "alpha='0.3' must be"),
        (lambda: Dirichlet(1.0, min_examples=-1), "min_examples=-1 must be a whole number of at least 0"),
        (lambda: InnerDirichlet(0), "alpha=0 must be"),
        (lambda: InnerDirichlet(1.0, sizes=3), r"sizes=3 must be a rule for sizes"),
        (
            lambda: partition(FLAT, Shards(2), clients=3),
            "10 rows do not divide into 6 .*uneven=True.*first 6 rows",
        ),
        (lambda: partition(FLAT, Shards(6), clients=3), "need 18 rows, but there are 10: lower clients or per_client"),
        (lambda: Shards(0), "per_client=0 must be a whole number of at least 1"),
        (lambda: partition(FLAT, Pathological(4), clients=3), "classes=4 > 3 labels in column 'y': lower classes"),
        (lambda: partition(FLAT, Pathological(1), clients=2), "leave some of the 3 labels to nobody: raise"),
        (lambda: partition(FLAT, Pathological(3), clients=4), "label 1 has 3 rows for 4 clients: lower clients"),
        (lambda: QuantitySkew(), "takes exactly one of alpha, power and sigma, not none"),
        (lambda: QuantitySkew(0.5, power=1.0), "takes exactly one of alpha, power and sigma"),
        (lambda: Sizes("cubic"), "law='cubic' is unknown: use one of"),
        (lambda: Sizes(3), "law=3 must be one of"),
        (lambda: partition(FLAT, Sizes((1, 2)), clients=3), "law has 2 sizes for clients=3"),
        (lambda: partition(FLAT, Sizes(lambda client: -1), clients=3), "negative or not finite"),
        (lambda: partition(FLAT, NaturalId("hospital")), "no column 'hospital'"),
        (lambda: partition(FLAT, NaturalId("y"), clients=5), r"finds 3 clients in the data: leave clients out"),
        (lambda: partition(FLAT, GroupedNaturalId("y"), clients=5), "clients=5 > 3 ids in column 'y'"),
        (lambda: GroupedNaturalId("y", balance="luck"), "balance='luck' must be"),
        (lambda: ByTime("y", by="luck"), "by='luck' must be"),
        (lambda: partition(FLAT, ByTime("y", by="duration"), clients=5), "hold no rows .* use by='rows'"),
        (lambda: Partition(FLAT, np.arange(10), np.array([0, 4, 9])), r"must rise from 0 to len\(rows\)=10"),
        (lambda: Partition(FLAT, np.arange(10), np.array([0, 10]), ids=["a", "b"]), "2 ids were given for 1 clients"),
    ],
)
def test_an_impossible_request_names_the_value_and_the_remedy(request_, message):
    with pytest.raises(DataError, match=message):
        request_()


def test_a_million_clients_cost_their_offsets():
    dataset = Dataset(y=np.zeros(10**6, dtype=np.int8))
    tracemalloc.start()
    found = partition(dataset, IID(), clients=10**6)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 14 * 10**6
    assert peak < 64 * 10**6
    assert len(found.open("765432")) == 1


def test_given_shares_of_labels_are_met_to_the_row():
    data = Dataset(y=np.repeat([0, 1], [10, 9]))
    found = partition(data, Distribution(((1.0, 4.0), (2.0, 1.0))))
    assert found.counts().tolist() == [[2, 6], [8, 3]]
    with pytest.raises(DataError, match="shares are given for 2 labels, but column 'y' has 3"):
        partition(Dataset(y=[0, 1, 2]), Distribution(((1.0,), (1.0,))))
    with pytest.raises(DataError, match="clients=3, but shares are given for 2"):
        partition(data, Distribution(((1.0, 4.0), (2.0, 1.0))), clients=3)
    for shares in ((), ((1.0,), (1.0, 2.0)), ((0.0, 0.0),), ((-1.0, 2.0),)):
        with pytest.raises(DataError, match="^shares must be"):
            Distribution(shares)


def test_strictness_orders_clients_by_the_measurement():
    data = Dataset(age=np.random.default_rng(7).normal(50, 20, 4000))

    def spread(strictness):
        found = partition(data, Continuous("age", strictness=strictness), clients=10)
        return np.std([found[client]["age"].mean() for client in found])

    assert spread(0.0) < 3 < spread(0.5) < spread(1.0)
    strict = partition(data, Continuous("age", strictness=1.0), clients=10)
    assert all(strict[a]["age"].max() <= strict[b]["age"].min() for a, b in pairwise(strict))
    with pytest.raises(DataError, match="must lie between 0"):
        Continuous("age", strictness=2.0)
    with pytest.raises(DataError, match="must hold finite numbers"):
        partition(Dataset(age=["a", "b"]), Continuous("age"), clients=1)
