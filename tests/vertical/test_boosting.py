"""Boosted trees over columns of several owners: the trees of the joined table, and nothing readable on the way."""

import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hansa.algorithms.trees import Boosted, Boosting, fit, joined
from hansa.core.errors import ConfigError, DataError, ProtocolError, StateMismatch, Unreachable
from hansa.runtimes.mesh.local import LocalMesh, together
from hansa.vertical import AlignedTable

pytest.importorskip("gmpy2", reason="Paillier needs gmpy2")

from hansa.crypto.paillier import PrivateKey
from hansa.vertical.boosting import EncryptedBoosting, predict
from hansa.vertical.boosting.aggregate import bin_sums

SMALL: dict[str, Any] = {"trees": 2, "depth": 2, "bins": 6, "min_child_weight": 0.1}


def owners(rows: int = 120, seed: int = 0) -> tuple[dict[str, AlignedTable], np.ndarray]:
    """Three owners of columns, text and missing values among them, and labels of three classes."""
    r = np.random.default_rng(seed)
    age, income, debt = r.normal(size=(3, rows))
    town, plan = r.choice(np.array(["a", "b", "c", "d"], object), (2, rows))
    score = age + income * (town != "c") + 0.8 * (plan == "b") - debt + 0.2 * r.normal(size=rows)
    labels = np.digitize(score, np.quantile(score, [0.4, 0.75])).astype(float)
    income[r.random(rows) < 0.2] = np.nan
    town[r.random(rows) < 0.1] = None
    held = {"bank": {"age": age}, "club": {"plan": plan, "debt": debt}, "shop": {"town": town, "income": income}}
    return {owner: AlignedTable(owner, columns) for owner, columns in held.items()}, labels


def pooled(tables: dict[str, AlignedTable]) -> dict[str, Any]:
    return {name: table[name] for table in tables.values() for name in table.names}


def plain(settings: EncryptedBoosting) -> Boosting:
    return Boosting(**{each.name: getattr(settings, each.name) for each in fields(Boosting)})


def train(
    tables: dict[str, AlignedTable], labels: Any, settings: EncryptedBoosting, **options: Any
) -> dict[str, tuple[Boosted, Any]]:
    """Every owner's part, and what it learns when all predict the training rows."""

    def play(mesh: LocalMesh) -> tuple[Boosted, Any]:
        own = labels if mesh.me == settings.labels_at else None
        part = settings.fit(mesh, tables[mesh.me], own, **options)
        return part, predict(mesh, part, tables[mesh.me])

    return dict(zip(tables, together(LocalMesh.of(list(tables)), play), strict=True))


CASES: dict[str, dict[str, Any]] = {
    "logistic": {"depth": 3},
    "squared": {"loss": "squared", "l2": 0.0, "gamma": 0.01},
    "softmax": {"loss": "softmax", "trees": 1},
    "sampled": {"goss": (0.3, 0.2)},
    "stopped early": {"trees": 4, "learning_rate": 1.0, "validation": 0.3, "patience": 1},
}


@pytest.mark.parametrize("case", CASES)
def test_the_trees_are_those_of_the_joined_table(case: str) -> None:
    tables, labels = owners()
    settings = EncryptedBoosting(labels_at="bank", **SMALL | CASES[case])
    target = labels > 0 if settings.loss == "logistic" else labels
    results = train(tables, target, settings)
    whole = fit(pooled(tables), target, plain(settings))
    together_again = joined([part for part, _ in results.values()])
    assert together_again == replace(whole, trees=together_again.trees)
    for ours, theirs in zip(together_again.trees, whole.trees, strict=True):
        assert [(tree.splits, tree.leaves) for tree in ours] == [(tree.splits, tree.leaves) for tree in theirs]
    asked = {split.column for round in whole.trees for tree in round for split in tree.splits.values()}
    assert asked - set(tables["bank"].names), "the case proves nothing"
    assert case != "logistic" or asked & {"plan", "town"}, "no text was split"
    predicted = [answer for _, answer in results.values()]
    assert (predicted[0] == whole.predict(pooled(tables))).all()
    assert predicted[1:] == [None, None]


def test_equal_columns_at_several_owners_go_to_the_first() -> None:
    x = np.tile(np.arange(8.0), 5)
    tables = {owner: AlignedTable(owner, {f"{owner}{at}": x for at in range(2)}) for owner in ("bank", "shop")}
    settings = EncryptedBoosting(labels_at="shop", **SMALL)
    parts = train(tables, (x % 4 > 1) * 1.0, settings)
    whole = fit(pooled({owner: tables[owner] for owner in ("shop", "bank")}), (x % 4 > 1) * 1.0, plain(settings))
    assert joined([part for part, _ in parts.values()]).trees[0][0].splits == whole.trees[0][0].splits
    assert {split.column for split in whole.trees[0][0].splits.values()} == {"shop0"}


def test_an_owner_of_labels_alone_needs_no_columns() -> None:
    tables, labels = owners()
    tables["bank"] = AlignedTable("bank", {"defaulted": (labels > 0) * 1.0})
    results = train(tables, "defaulted", EncryptedBoosting(labels_at="bank", **SMALL))
    assert results["bank"][0].owners == ("bank", "club", "shop")
    assert not any(tree.splits for round in results["bank"][0].trees for tree in round)
    assert ((results["bank"][1] > 0.5) == (labels > 0)).mean() > 0.7


class Listening(LocalMesh):
    """Keeps what a party sends."""

    def send(self, to: str, tag: str, buffers: Any) -> None:
        self.__dict__.setdefault("heard", []).append((to, tag, [bytes(each) for each in buffers]))
        super().send(to, tag, buffers)


def test_gradients_leave_only_as_ciphertexts_and_no_split_leaves_its_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    tables, labels = owners()
    keys: list[PrivateKey] = []
    generate = PrivateKey.generate
    monkeypatch.setattr(PrivateKey, "generate", lambda bits: keys.append(generate(bits)) or keys[0])
    meshes = Listening.of(list(tables))
    settings = EncryptedBoosting(labels_at="bank", **SMALL | {"trees": 1})
    parts = together(
        meshes, lambda mesh: settings.fit(mesh, tables[mesh.me], labels > 0 if mesh.me == "bank" else None)
    )
    said = [(json.loads(raw[0]), raw[1:]) for _, tag, raw in meshes[0].heard if tag == "boosting"]  # type: ignore[attr-defined]
    known = {"key", "begin", "gradients", "sums", "take", "follow", "end", "round", "done"}
    assert {head["what"] for head, _ in said} == known
    sent = [raw[0] for head, raw in said if head["what"] == "gradients"]
    size = keys[0].public.size_bytes
    for piece in sent[: len(sent) // 2]:
        hidden = [piece[at : at + size] for at in range(0, len(piece), size)]
        opened = keys[0].decrypt(keys[0].public.from_bytes(piece))
        assert len(set(opened)) == 2 and len(set(hidden)) == len(labels)  # two classes, and no two messages alike
    for head, raw in said:  # what is readable are facts of these names, rows, sides and the public key
        assert set(head) <= {"what", "run", "rounds", "count", "nodes"}
        if head["what"] in ("sums", "take", "end", "round", "done"):
            assert not raw
    for mesh, part in zip(meshes[1:], parts[1:], strict=True):
        for _, tag, raw in mesh.heard:  # type: ignore[attr-defined]
            if tag == "boosting":
                assert set(json.loads(raw[0])) <= {"what", "cuts", "texts", "run", "rounds"}
        for tree in part.trees[0]:
            assert not tree.leaves and not tree.owners
            assert {split.column for split in tree.splits.values()} <= set(tables[mesh.me].names)


def test_the_order_of_candidates_changes_with_each_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    from hansa.vertical.boosting import follower

    orders: list[list[int]] = []
    shuffled = follower._shuffled
    monkeypatch.setattr(follower, "_shuffled", lambda count: orders.append(shuffled(count)) or orders[-1])
    tables, labels = owners()
    two = {owner: tables[owner] for owner in ("bank", "club")}
    train(two, labels > 0, EncryptedBoosting(labels_at="bank", **SMALL | {"depth": 1, "bins": 30}))
    numbers = [order for order in orders if len(order) == 29]
    assert len(numbers) == 2 and numbers[0] != numbers[1] and sorted(numbers[0]) == list(range(29)) != numbers[0]


@pytest.mark.parametrize("lost", ["bank", "shop"])
@pytest.mark.parametrize("saved", ["before", "after"])
def test_after_a_loss_training_goes_on_from_the_last_round_of_all(
    lost: str, saved: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hansa.vertical.boosting.saved import Saved

    tables, labels = owners(40)
    two = {owner: tables[owner] for owner in ("bank", "shop")}
    settings = EncryptedBoosting(labels_at="bank", **SMALL | {"trees": 3})
    whole = train(two, labels > 0, settings)
    store, stop = Saved.store, [True]

    def crash(self: Saved, run: str, part: Boosted) -> None:
        """The party dies with its second round saved, or not yet."""
        dies = stop[0] and self.party == lost and len(part) == 2
        if not dies or saved == "after":
            store(self, run, part)
        if dies:
            raise Unreachable("power cut")

    monkeypatch.setattr(Saved, "store", crash)
    with pytest.raises(Unreachable):
        train(two, labels > 0, settings, state=tmp_path)
    stop[0] = False
    done: list[int] = []
    again = train(two, labels > 0, settings, state=tmp_path, observe=done.append)
    assert sorted(set(done))[0] in (2, 3), "it began anew"
    assert [part for part, _ in again.values()] == [part for part, _ in whole.values()]
    assert (again["bank"][1] == whole["bank"][1]).all()


def test_a_state_of_another_training_is_refused(tmp_path: Path) -> None:
    tables, labels = owners(60)
    two = {owner: tables[owner] for owner in ("bank", "shop")}
    settings = EncryptedBoosting(labels_at="bank", **SMALL | {"trees": 1})
    train(two, labels > 0, settings, state=tmp_path / "a")
    train(two, labels > 0, settings, state=tmp_path / "b")
    changed = {**two, "shop": two["shop"].with_columns({"income": np.zeros(60)})}
    for tables, target, wanted in (
        (two, labels > 0, replace(settings, depth=1)), (changed, labels > 0, settings), (two, labels > 1, settings),
    ):  # fmt: skip
        with pytest.raises(StateMismatch, match="other settings, another alignment or other data"):
            train(tables, target, wanted, state=tmp_path / "a")
    (tmp_path / "a" / "boosting-shop.json").write_bytes((tmp_path / "b" / "boosting-shop.json").read_bytes())
    with pytest.raises(StateMismatch, match="of different trainings"):
        train(two, labels > 0, settings, state=tmp_path / "a")


def test_what_does_not_fit_together_is_refused() -> None:
    tables, labels = owners(40)
    two = {owner: tables[owner] for owner in ("bank", "shop")}

    def run(
        labels_at: str = "bank", given: Any = labels > 0, tables: dict[str, AlignedTable] = two, **own: Any
    ) -> None:
        def play(mesh: LocalMesh) -> None:
            settings = EncryptedBoosting(labels_at=labels_at, **SMALL | (own if mesh.me == "shop" else {}))
            settings.fit(mesh, tables[mesh.me], given if mesh.me == "bank" else None)

        together(LocalMesh.of(["bank", "shop"]), play)

    with pytest.raises(ConfigError, match="labels_at='pub' is no party"):
        run(labels_at="pub")
    with pytest.raises(ConfigError, match="labels are given at 'shop'"):
        run(labels_at="shop")
    with pytest.raises(ConfigError, match="other settings of boosting"):
        run(depth=5)
    with pytest.raises(ConfigError, match="another alignment"):
        run(tables={**two, "shop": replace(two["shop"], alignment=bytes([7]) * 32)})
    with pytest.raises(DataError, match="39 labels for 40 rows"):
        run(given=labels[1:] > 0)


Spoil = Callable[[dict[str, Any], list[bytes]], Any]
GARBAGE: dict[str, tuple[str, Spoil]] = {
    "a row too few": ("begin", lambda head, raw: raw.__setitem__(1, raw[1][8:])),
    "half a row": ("begin", lambda head, raw: raw.__setitem__(1, raw[1][:-3])),
    "rows in another order": ("begin", lambda head, raw: raw.__setitem__(1, raw[1][8:16] + raw[1][:8] + raw[1][16:])),
    "rows of another table": ("begin", lambda head, raw: raw.__setitem__(1, raw[1][:-8] + (999).to_bytes(8, "little"))),
    "no count": ("begin", lambda head, raw: head.pop("count")),
    "half a ciphertext": ("gradients", lambda head, raw: raw.__setitem__(1, raw[1][:-1])),
    "a gradient too many": ("gradients", lambda head, raw: raw.append(raw[1][:512])),
    "a node that is not there": ("sums", lambda head, raw: "nodes" in head and head.update(nodes=[77])),
    "a node that is no number": ("sums", lambda head, raw: "nodes" in head and head.update(nodes=[["x"]])),
    "a sum too few": ("sums", lambda head, raw: raw[1:] and raw.__setitem__(1, raw[1][:-512])),
    "more sums than announced": ("sums", lambda head, raw: raw[1:] and head.update(cuts=1)),
    "sums of nothing": ("sums", lambda head, raw: raw[1:] and head.update(cuts="x")),
    "a candidate that is not there": ("take", lambda head, raw: head.update(nodes={"0": [[10**6], []]})),
    "no candidate": ("take", lambda head, raw: head.update(nodes={"0": [[], []]})),
    "a choice of nothing": ("take", lambda head, raw: head.update(nodes={"0": 5})),
    "nodes as a list": ("take", lambda head, raw: head.update(nodes=[1])),
    "no sides": ("left", lambda head, raw: raw.__setitem__(1, b"")),
    "sides of a node twice": ("follow", lambda head, raw: raw.append(b"") or head.update(nodes=[*head["nodes"], 0])),
    "sides without a node": ("follow", lambda head, raw: raw.append(b"")),
    "rounds below none": ("done", lambda head, raw: head.update(rounds=-1)),
    "an unknown message": ("end", lambda head, raw: head.update(what="?")),
    "another key": ("key", lambda head, raw: raw.__setitem__(1, b"\5" * 256)),
}


@pytest.mark.parametrize("case", GARBAGE)
def test_garbage_of_a_peer_ends_in_an_error(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tables, labels = owners(40)
    two = {owner: tables[owner] for owner in ("bank", "shop")}
    send, (what, change) = LocalMesh.send, GARBAGE[case]

    def spoil(self: LocalMesh, to: str, tag: str, buffers: Any) -> None:
        raw = [bytes(each) for each in buffers]
        if tag == "boosting":
            head = json.loads(raw[0])
            if head["what"] == what:
                change(head, raw)
            raw[0] = json.dumps(head).encode()
        send(self, to, tag, raw)

    monkeypatch.setattr(LocalMesh, "send", spoil)
    with pytest.raises(ProtocolError):
        train(two, labels > 0, EncryptedBoosting(labels_at="bank", **SMALL | {"trees": 1}))


def test_bin_sums_are_those_of_each_bin() -> None:
    key = PrivateKey.generate()
    r = np.random.default_rng(1)
    values = r.integers(-50, 50, 90).tolist()
    codes = np.column_stack([r.integers(0, 4, 90), r.integers(0, 2, 90), np.zeros(90), r.integers(0, 30, 90)])
    sums = bin_sums(key.public, key.public.encrypt(values), codes.astype(np.uint16), [4, 2, 3, 30])
    for column, count in enumerate([4, 2, 3, 30]):
        wanted = np.bincount(codes[:, column].astype(int), values, count)
        assert key.decrypt(sums[column]) == wanted.tolist()
    assert [key.decrypt(each) for each in bin_sums(key.public, [], codes[:0].astype(np.uint16), [4, 2, 3, 30])] == [
        [0] * count for count in (4, 2, 3, 30)
    ]
