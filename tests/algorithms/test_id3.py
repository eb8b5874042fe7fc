"""ID3 by count queries: the tree of the pooled data, also under a secure sum, and Quinlan's own example."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import hansa
from hansa.algorithms.trees.id3 import DecisionTree, Id3, Id3Model, id3
from hansa.core.errors import ConfigError, DataError, TrainingFailed

# Quinlan 1986, table 1: outlook (sunny, overcast, rain), temperature (hot, mild, cool), humidity (high, normal), windy
WEATHER = np.array([
    (0, 0, 0, 0), (0, 0, 0, 1), (1, 0, 0, 0), (2, 1, 0, 0), (2, 2, 1, 0), (2, 2, 1, 1), (1, 2, 1, 1),
    (0, 1, 0, 0), (0, 2, 1, 0), (2, 1, 1, 0), (0, 1, 1, 1), (1, 1, 0, 1), (1, 0, 1, 0), (2, 1, 0, 1),
])  # fmt: skip
PLAY = np.array([0, 0, 1, 1, 1, 0, 1, 0, 1, 1, 1, 1, 1, 0])
SIZES = (3, 3, 2, 2)


def plain_id3(x: np.ndarray, y: np.ndarray, columns: list[int], values: tuple[int, ...]) -> Any:
    """The recursion of the paper: a class, or (column, a tree for each value)."""
    classes = np.bincount(y, minlength=3)
    if (classes > 0).sum() == 1 or not columns:
        return int(classes.argmax())

    def bits(labels: np.ndarray) -> float:
        share = np.bincount(labels) / max(1, len(labels))
        return -float(sum(s * np.log2(s) for s in share if s))

    left = [sum((x[:, c] == v).mean() * bits(y[x[:, c] == v]) for v in range(values[c])) for c in columns]
    column = columns[int(np.argmin(np.round(left, 9)))]
    rest = [c for c in columns if c != column]
    return column, [
        plain_id3(x[at], y[at], rest, values) if (at := x[:, column] == v).any() else int(classes.argmax())
        for v in range(values[column])
    ]


def nested(tree: DecisionTree, node: int = 0) -> Any:
    column, first = int(tree.nodes[node, 0]) - 1, int(tree.nodes[node, 1])
    if column < 0:
        return int(tree.nodes[node, 4:].argmax())
    return column, [nested(tree, first + value) for value in range(tree.values[column])]


def federated(
    x: np.ndarray, y: np.ndarray, model: Id3Model, rounds: int, stages: Any = (), reducer: Any = None, clients: int = 3
) -> hansa.History:
    parts = {f"c{at}": hansa.Dataset(x=x[at::clients], y=y[at::clients]) for at in range(clients)}
    job = hansa.Job(
        model=model, algorithm=Id3.of(model), cohort=clients, rounds=rounds,
        pipeline=hansa.Pipeline([*stages], reducer or hansa.Sum()) if stages
        else hansa.Pipeline([hansa.UniformMean()], hansa.Sum()),
    )  # fmt: skip
    return hansa.train(job, hansa.Clients.of(parts))


def test_the_weather_gives_the_tree_of_the_paper() -> None:
    model = Id3Model(SIZES, width=2)
    history = federated(WEATHER, PLAY, model, 4)
    # outlook: sunny asks for humidity, overcast plays, rain asks for wind (figure 2)
    assert nested(history.model) == (0, [(2, [0, 1]), 1, (3, [1, 0])])
    assert history.model.whole and (history.model.predict(WEATHER) == PLAY).all()
    assert history.model.text(["outlook", "temperature", "humidity", "windy"]).splitlines()[:3] == [
        "outlook?  (5, 9)", "  0: humidity?  (3, 2)", "    0: class 0  (3, 0)",
    ]  # fmt: skip
    assert history.rounds[-1].train["accuracy"] == 1


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4))
def test_counts_of_many_give_the_tree_of_the_pooled_rows(seed: int, width: int) -> None:
    r = np.random.default_rng(seed)
    values = tuple(int(each) for each in r.integers(1, 4, 4))
    x = np.column_stack([r.integers(0, each, 60) for each in values])
    y = np.where(r.random(60) < 0.3, r.integers(0, 3, 60), (x[:, 0] + x[:, 1]) % 3)
    model = Id3Model(values, classes=3, width=width)
    pooled = id3(x, y, model)
    assert nested(pooled) == plain_id3(x, y, [0, 1, 2, 3], values)
    found = federated(x, y, model, 40).model
    assert found.whole and np.array_equal(found.nodes, pooled.nodes)


def test_under_a_secure_sum_the_tree_is_the_same() -> None:
    pytest.importorskip("cryptography", reason="the secure sum needs cryptography")
    r = np.random.default_rng(3)
    x = r.integers(0, 3, (90, 3))
    y = ((x[:, 0] > x[:, 1]) ^ (r.random(90) < 0.1)).astype(int)
    model = Id3Model((3, 3, 3), width=9)
    stages = [hansa.Clip(60.0), hansa.UniformMean(), hansa.Quantise(bits=24)]
    found = federated(x, y, model, 3, stages, hansa.SecureSum()).model
    assert found.whole and np.array_equal(found.nodes, id3(x, y, model).nodes)


def test_depth_and_rounds_bound_the_tree() -> None:
    shallow = id3(WEATHER, PLAY, Id3Model(SIZES, depth=1))
    assert nested(shallow) == (0, [0, 1, 1]) and shallow.whole
    assert not federated(WEATHER, PLAY, Id3Model(SIZES), 1).model.whole
    with pytest.raises(TrainingFailed, match=r"more than 3 nodes: give Id3Model\(nodes"):
        id3(WEATHER, PLAY, Id3Model(SIZES, nodes=3))


def test_what_does_not_fit_is_refused() -> None:
    model = Id3Model(SIZES)
    for x, y, message in [
        (WEATHER[:, :2], PLAY, "rows of 4 whole numbers"),
        (WEATHER + 1, PLAY, r"column 0 of 'x' has values other than 0 to 2, as in row 3"),
        (WEATHER + 0.5, PLAY, "column 0"),
        (WEATHER, PLAY + 1, "a class of 0 to 1"),
        (WEATHER, PLAY[:3], "a class of 0 to 1"),
    ]:
        with pytest.raises(DataError, match=message):
            id3(x, y, model)
    with pytest.raises(ConfigError, match="values="):
        Id3Model(())
    clients = hansa.Clients.of({name: hansa.Dataset(x=WEATHER, y=PLAY) for name in "ab"})
    pipeline = hansa.Pipeline([hansa.UniformMean()], hansa.Sum())
    job = hansa.Job(model=model, algorithm=Id3.of(Id3Model(SIZES, classes=3)), pipeline=pipeline, cohort=2)
    with pytest.raises((ConfigError, TrainingFailed), match=r"Id3\.of"):
        hansa.train(job, clients)
