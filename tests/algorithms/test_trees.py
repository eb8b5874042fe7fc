"""Boosted trees on columns that are all here: against a learner that tries everything, and against XGBoost."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings as profile, strategies as st

from hansa.algorithms.trees import Boosted, Boosting, Split, fit, joined, to_xgboost
from hansa.algorithms.trees.losses import loss_of
from hansa.core.errors import ConfigError, CorruptFile, DataError, StateMismatch


def people(rows: int = 400, seed: int = 0) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Columns of numbers and text, some missing, and labels that depend on them."""
    r = np.random.default_rng(seed)
    age, income = r.normal(size=rows), r.normal(size=rows)
    town = r.choice(np.array(["a", "b", "c", "d"], object), rows)
    labels = age * income + (town == "b") - (town == "d") + 0.3 * r.normal(size=rows) > 0
    income[r.random(rows) < 0.2] = np.nan
    town[r.random(rows) < 0.1] = None
    return {"age": age, "income": income, "town": town, "constant": np.ones(rows)}, labels


def best_of_all(columns: dict[str, np.ndarray], g: np.ndarray, h: np.ndarray, l2: float) -> float:
    """The largest gain of any threshold with missing values on either side, or of any two groups of categories."""

    def gain(left: np.ndarray) -> float:
        part = [(g[side].sum(), h[side].sum()) for side in (left, ~left)]
        if not left.any() or left.all():
            return 0.0
        return float(sum(0.5 * a * a / (b + l2) for a, b in part) - 0.5 * g.sum() ** 2 / (h.sum() + l2))

    sides = []
    for values in columns.values():
        if values.dtype == object:
            found = sorted(set(values), key=str)
            for size in range(len(found)):
                for group in itertools.combinations(found, size):
                    sides.append(np.array([each in group for each in values]))
        else:
            for threshold in [*np.unique(values[~np.isnan(values)]), np.inf]:
                sides += [values < threshold, (values < threshold) | np.isnan(values)]
    return max(gain(side) for side in sides)


@profile(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(8, 60), st.sampled_from([0.0, 1.0]))
def test_the_first_split_is_the_best_of_all(seed: int, rows: int, l2: float) -> None:
    columns, labels = people(rows, seed)
    loss = loss_of("logistic", labels)
    g, h = loss.gradients(np.tile(loss.base(), (rows, 1)))
    tree = fit(columns, labels, Boosting(trees=1, depth=1, bins=256, l2=l2, min_child_weight=0)).trees[0][0]
    most = best_of_all(columns, g[:, 0], h[:, 0], l2)
    if not tree.splits:
        assert most < 1e-5
        return
    split = tree.splits[0]
    left = split.goes_left(columns[split.column])
    parts = [0.5 * g[side].sum() ** 2 / (h[side].sum() + l2) for side in (left, ~left)]
    assert sum(parts) - 0.5 * g.sum() ** 2 / (h.sum() + l2) == pytest.approx(most, rel=1e-5, abs=1e-6)
    leaves = [-0.3 * g[side].sum() / (h[side].sum() + l2) for side in (left, ~left)]
    assert [tree.leaves[1], tree.leaves[2]] == pytest.approx(leaves, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("loss", ["logistic", "squared", "softmax"])
def test_rounds_are_those_of_xgboost(loss: str) -> None:
    xgboost = pytest.importorskip("xgboost", reason="the comparison needs xgboost")
    r = np.random.default_rng(3)
    x = r.integers(0, 20, (1500, 5)).astype(float)  # so few values that both cut between all of them
    y = (x[:, 0] * x[:, 1] > 90) * 1.0 + (x[:, 2] > 12) * (loss == "softmax")
    x[r.random(x.shape) < 0.1] = np.nan
    objective = {"logistic": "binary:logistic", "squared": "reg:squarederror", "softmax": "multi:softprob"}[loss]
    # XGBoost's softmax has hessians twice ours, so half of all else, and of the step, is the same
    twice = 2 if loss == "softmax" else 1
    options = {
        "objective": objective, "max_depth": 4, "max_bin": 64, "eta": 0.3 * twice, "tree_method": "hist",
        "lambda": 1.0 * twice, "min_child_weight": 1.0 * twice, "nthread": 1,
        "base_score": 0.5 if loss == "softmax" else float(y.mean()),
    } | ({"num_class": 3} if loss == "softmax" else {})  # fmt: skip
    theirs = xgboost.train(options, xgboost.DMatrix(x, y), 8).predict(xgboost.DMatrix(x))
    columns = {f"c{at}": x[:, at] for at in range(5)}
    ours = fit(columns, y, Boosting(trees=8, depth=4, bins=64, loss=loss)).predict(columns)
    assert np.abs(ours - theirs).max() < 1e-4


def test_text_missing_values_and_new_categories_have_a_side() -> None:
    columns, labels = people()
    model = fit(columns, labels, Boosting(trees=20, depth=3))
    assert ((model.predict(columns) > 0.5) == labels).mean() > 0.85
    new = {"age": np.array([0.0, np.nan]), "income": np.array([np.nan] * 2), "town": np.array(["z", None], object)}
    assert np.isfinite(model.predict({**new, "constant": np.ones(2)})).all()


def test_columns_may_be_lists_and_arrays_of_any_type() -> None:
    labels = [0, 1, 0, 1] * 5
    small = Boosting(trees=3, depth=2, min_child_weight=0)
    told = {"n": [1, 2, 1, None] * 5, "t": ["a", None, "a", "b"] * 5}
    same = {"n": np.array([1, 2, 1, np.nan] * 5, np.float32), "t": np.array(["a", float("nan"), "a", "b"] * 5, object)}
    assert fit(told, labels, small) == fit(same, np.array(labels), small)
    texts = np.array(["a", "b"] * 10)
    assert fit({"t": texts}, labels, small).predict({"t": ["b", "a"]}).round().tolist() == [1, 0]


def test_what_was_never_missing_follows_the_larger_child() -> None:
    split = fit({"x": np.arange(10.0)}, np.arange(10) > 6, Boosting(trees=1, depth=1, min_child_weight=0)).trees[0][0]
    assert split.splits[0] == Split("x", 6.5, missing_left=True)


def test_constant_and_all_missing_columns_split_nothing() -> None:
    columns = {"c": np.ones(50), "gone": np.full(50, np.nan), "t": np.array(["a"] * 50, object)}
    labels = np.arange(50) % 2
    tree = fit(columns, labels, Boosting(trees=1)).trees[0][0]
    assert not tree.splits and tree.leaves == {0: 0.0}


def test_sampling_by_gradients_learns_almost_as_well_and_stays_the_same() -> None:
    columns, labels = people(2000)
    sampled = Boosting(trees=15, goss=(0.2, 0.2))
    model = fit(columns, labels, sampled)
    whole = fit(columns, labels, Boosting(trees=15))
    assert model == fit(columns, labels, sampled) != whole
    right = [((each.predict(columns) > 0.5) == labels).mean() for each in (model, whole)]
    assert right[1] - 0.05 < right[0] < 1


def test_early_stopping_keeps_the_best_round() -> None:
    columns, labels = people(300)
    r = np.random.default_rng(0)
    noisy = np.where(r.random(300) < 0.4, ~labels, labels)
    model = fit(columns, noisy, Boosting(trees=200, validation=0.3, patience=5))
    assert len(model) < 100 and model.losses[-1] == min(model.losses)


def test_text_form_comes_back_and_garbage_does_not() -> None:
    columns, labels = people()
    columns["gap"] = np.where(labels, np.nan, 1.0)  # split at infinity: present from missing
    model = fit(columns, labels, Boosting(trees=5))
    assert any(split.threshold == np.inf for split in model.trees[0][0].splits.values())
    assert Boosted.from_json(model.to_json()) == model
    for text in ("", "{}", '{"trees": 3}', "[]", model.to_json()[:-5]):
        with pytest.raises(CorruptFile):
            Boosted.from_json(text)


def test_what_cannot_be_learned_from_is_refused() -> None:
    columns, labels = people(20)
    with pytest.raises(DataError, match="the logistic loss takes 0 and 1"):
        fit(columns, labels + 1, Boosting())
    with pytest.raises(DataError, match="each of which occurs"):
        fit(columns, labels * 2, Boosting(loss="softmax"))
    with pytest.raises(DataError, match="19 labels for 20 rows"):
        fit(columns, labels[1:], Boosting())
    with pytest.raises(DataError, match="infinite"):
        fit({"x": np.array([1, np.inf])}, np.array([0, 1]), Boosting())
    with pytest.raises(DataError, match="300 categories"):
        fit({"x": np.array([str(at) for at in range(300)], object)}, np.zeros(300), Boosting())
    whole = fit(*people(), Boosting(trees=5))
    with pytest.raises(DataError, match=r"columns \['town'\] are missing"):
        whole.predict({name: values for name, values in columns.items() if name != "town"})
    with pytest.raises(ConfigError, match="patience needs rows"):
        Boosting(patience=2)


@pytest.mark.parametrize("loss", ["logistic", "squared", "softmax"])
def test_xgboost_predicts_the_same_from_its_file(loss: str, tmp_path: Path) -> None:
    xgboost = pytest.importorskip("xgboost", reason="the comparison needs xgboost")
    r = np.random.default_rng(5)
    x = r.normal(size=(600, 4)).astype(np.float32).astype(np.float64)
    y = (x[:, 0] > x[:, 1]) * 1.0 + (x[:, 2] > 0.3) * (loss == "softmax")
    x[r.random(x.shape) < 0.1] = np.nan
    x[y > 0, 3], x[y == 0, 3] = 7.0, np.nan  # split at infinity: present from missing
    columns = {f"c{at}": x[:, at] for at in range(4)}
    columns["unasked"] = np.ones(600)
    model = fit(columns, y, Boosting(trees=6, depth=3, loss=loss))
    (tmp_path / "model.json").write_text(to_xgboost(model, list(columns)))
    booster = xgboost.Booster()
    booster.load_model(tmp_path / "model.json")
    theirs = booster.predict(xgboost.DMatrix(np.column_stack(list(columns.values())), feature_names=list(columns)))
    assert np.abs(theirs - model.predict(columns)).max() < 1e-5


def test_what_xgboosts_file_has_no_place_for_is_refused() -> None:
    columns, labels = people()
    whole = fit(columns, labels, Boosting(trees=3))
    with pytest.raises(DataError, match="'town' is text"):
        to_xgboost(whole, list(columns))
    number = fit({"age": columns["age"]}, labels, Boosting(trees=1))
    with pytest.raises(DataError, match="not among"):
        to_xgboost(number, ["income"])
    with pytest.raises(DataError, match="part of 'shop'"):
        to_xgboost(Boosted("logistic", party="shop", owners=("bank", "shop")), ["age"])


def test_parts_of_nothing_do_not_join() -> None:
    model = fit(*people(), Boosting(trees=2))
    with pytest.raises(StateMismatch, match="do not make an ensemble"):
        joined([Boosted("logistic", model.trees, party="shop")])
