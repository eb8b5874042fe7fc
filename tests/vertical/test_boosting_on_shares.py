"""Boosted trees on shares: splits as good as in the clear, and nothing opened but what each party may know."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from hansa import mpc
from hansa.algorithms.trees import Boosted, Boosting, Split, Tree, fit
from hansa.core.errors import ConfigError
from hansa.vertical import AlignedTable
from hansa.vertical.boosting.shared import SharedBoosting, predict_shared

BANK, HELPER, SHOP = "party-0", "party-1", "party-2"
SMALL: dict[str, Any] = {"trees": 2, "depth": 2, "bins": 5}


def owners(rows: int = 150) -> tuple[dict[str, AlignedTable], np.ndarray]:
    r = np.random.default_rng(29)  # no split's gain is within 0.18 of the next one's: rounding at random decides none
    age, income = r.normal(size=(2, rows))
    town = r.choice(np.array(["a", "b"], object), rows)
    labels = (town == "a") * 1.5 + age * (income > 0) + 0.2 * r.normal(size=rows)
    income[r.random(rows) < 0.1] = np.nan
    return {
        BANK: AlignedTable("bank", {"age": age}),
        SHOP: AlignedTable("shop", {"town": town, "income": income}),
    }, labels


def train(settings: SharedBoosting, tables: dict[str, AlignedTable], labels: Any) -> list[tuple[Boosted, Any, Any]]:
    def play(session: mpc.Session) -> tuple[Boosted, Any, Any]:
        table = tables.get(session.me)
        part = settings.fit(session, table, labels if session.me == settings.labels_at else None)
        return part, predict_shared(session, part, table), session.report().revealed

    return mpc.local(play)


def questions(splits: Mapping[int, Split]) -> list[Any]:
    """What a tree asks at each level; two groups of categories may have changed sides, and their subtrees with them."""
    asked = [
        ((node + 1).bit_length(), at.column, str(at.threshold), sorted([at.left, at.right]))
        for node, at in splits.items()
    ]
    return sorted(asked)


@pytest.mark.parametrize("loss", ["logistic", "squared", "softmax"])
def test_trees_on_shares_are_those_of_the_joined_table_up_to_rounding(loss: str) -> None:
    tables, labels = owners()
    kinds = {"logistic": (labels > 0.5) * 1.0, "squared": labels, "softmax": np.digitize(labels, [0, 1]) * 1.0}
    target = kinds[loss]
    parts = train(SharedBoosting(labels_at=BANK, loss=loss, **SMALL), tables, target)
    columns = {name: table[name] for table in tables.values() for name in table.names}
    whole = fit(columns, target, Boosting(loss=loss, **SMALL))
    for at, round in enumerate(whole.trees):
        for output, tree in enumerate(round):
            splits = {node: split for part, _, _ in parts for node, split in part.trees[at][output].splits.items()}
            assert questions(splits) == questions(tree.splits)
    assert np.abs(parts[0][1] - whole.predict(columns)).max() < 0.01
    assert parts[1][1] is parts[2][1] is None


def test_each_party_is_shown_its_own_splits_alone_and_the_leaves_go_to_the_labels_owner() -> None:
    tables, labels = owners()
    parts = train(SharedBoosting(labels_at=BANK, **SMALL), tables, labels > 0.5)
    shown = {opened.parties for _, _, revealed in parts for opened in revealed}
    assert shown == {(BANK,), (SHOP,)}  # nothing was opened to all, or to the helper
    (bank, _, _), (helper, _, _), (shop, _, _) = parts
    assert all(tree == Tree() for round in helper.trees for tree in round)
    assert not any(tree.leaves or tree.owners for round in shop.trees for tree in round)
    assert all(len(tree.leaves) == 4 and not tree.owners for round in bank.trees for tree in round)
    for part, table in ((bank, tables[BANK]), (shop, tables[SHOP])):
        assert {split.column for round in part.trees for tree in round for split in tree.splits.values()} <= set(
            table.names
        )


def test_what_gains_nothing_is_not_split() -> None:
    tables, _ = owners(40)
    parts = train(SharedBoosting(labels_at=BANK, gamma=1e3, **SMALL | {"trees": 1}), tables, np.arange(40) % 2)
    assert not any(part.trees[0][0].splits for part, _, _ in parts)
    assert np.abs(parts[0][1] - 0.5).max() < 0.01


@pytest.mark.parametrize("loss", ["logistic", "squared", "softmax"])
def test_training_stops_where_the_loss_on_rows_kept_out_does_not_fall(loss: str) -> None:
    tables, labels = owners()
    kinds = {"logistic": labels > 0.5, "squared": labels, "softmax": np.digitize(labels, [0.5])}
    target = np.asarray(kinds[loss], float)
    early: dict[str, Any] = {"trees": 12, "depth": 2, "bins": 5, "learning_rate": 1.0, "validation": 0.3, "patience": 1}
    parts = train(SharedBoosting(labels_at=BANK, loss=loss, **early), tables, target)
    columns = {name: table[name] for table in tables.values() for name in table.names}
    whole = fit(columns, target, Boosting(loss=loss, **early))
    assert {len(part) for part, _, _ in parts} == {len(whole)} and len(whole) < 12
    (bank, predicted, _), others = parts[0], parts[1:]
    assert np.abs(np.array(bank.losses) - whole.losses).max() < 0.01
    assert np.abs(predicted - whole.predict(columns)).max() < 0.05
    assert not any(part.losses for part, _, _ in others)
    scalars = {opened.parties for _, _, revealed in parts for opened in revealed if not opened.shape}
    assert scalars == {(BANK,)}  # the losses, to nobody else


def test_what_shares_cannot_do_is_refused() -> None:
    with pytest.raises(ConfigError, match="no row can be dropped unless it is shown which ones have large gradients"):
        SharedBoosting(labels_at=BANK, goss=(0.1, 0.1))
    tables, labels = owners(30)
    strange = {**tables, SHOP: replace(tables[SHOP], alignment=bytes([1]) * 32)}
    with pytest.raises(ConfigError, match="not the same alignment"):
        train(SharedBoosting(labels_at=BANK, **SMALL), strange, labels > 0)
