"""Encodings, scaling and what columns say about labels: equal to what the joined table gives, and no more is sent."""

import re
from typing import Any

import numpy as np
import pandas as pd
import pytest

from hansa.core.errors import ConfigError, DataError, ProtocolError
from hansa.core.runtime import Mesh
from hansa.mpc import Session
from hansa.runtimes.mesh.local import LocalMesh, together
from hansa.vertical import AlignedTable, features
from hansa.vertical.encode import Encoding, agree_categories, one_hot
from hansa.vertical.features import Binned, correlation, learns, relate
from hansa.vertical.scale import scalings, total

quiet: dict[str, Any] = {"announce": lambda _: None}
TOWNS = {
    "bank": ["Bremen", "Danzig", None, "Lübeck"],
    "shop": ["Lübeck", "Riga"],
    "clinic": ["Visby", "Lübeck", "Riga"],
}


class Spied(LocalMesh):
    """Remembers all that this party is sent."""

    def recv(self, sender: str, tag: str, deadline_s: float | None = None) -> Any:
        given = super().recv(sender, tag, deadline_s)
        self.__dict__.setdefault("seen", []).append((tag, [bytes(each) for each in given]))
        return given


# -- encodings


@pytest.mark.parametrize("owners", [("bank", "shop"), ("bank", "clinic", "shop")])
def test_owners_number_categories_alike_and_learn_whose_they_are(owners: tuple[str, ...]) -> None:
    pytest.importorskip("coincurve")
    meshes = Spied.of(owners)
    made = dict(
        zip(owners, together(meshes, lambda mesh: agree_categories(mesh, "town", TOWNS[mesh.me], **quiet)), strict=True)
    )
    union = {value for name in owners for value in TOWNS[name] if value}
    numbers: dict[str, int] = {}
    for name, encoding in made.items():
        assert encoding.size == len(union)
        for value, number in encoding.numbers.items():
            assert numbers.setdefault(value, number) == number, "two owners number a category differently"
            assert set(encoding.holders[value]) == {each for each in owners if each != name and value in TOWNS[each]}
    assert sorted(numbers.values()) == list(range(len(union)))
    sent = b"".join(part for mesh in meshes for _, parts in mesh.seen for part in parts)
    assert not any(value.encode() in sent for value in union)


def test_an_agreement_is_another_each_time_so_that_digests_cannot_be_compared() -> None:
    pytest.importorskip("coincurve")

    def digests() -> set[bytes]:
        meshes = Spied.of(["bank", "shop"])
        together(meshes, lambda mesh: agree_categories(mesh, "town", TOWNS[mesh.me], **quiet))
        raw = b"".join(parts[0] for tag, parts in meshes[0].seen if tag == "digests")
        return {raw[at : at + 16] for at in range(0, len(raw), 16)}

    assert not digests() & digests()


def test_codes_one_hot_and_what_was_not_agreed_on() -> None:
    encoding = Encoding("town", {"a": 2, "b": 0}, 4, {"a": (), "b": ()})
    values = np.array(["a", None, "b"], object)
    assert np.array_equal(encoding.codes(values), [2, np.nan, 0], equal_nan=True)
    assert encoding.one_hot(values).tolist() == [[0, 0, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0]]
    with pytest.raises(DataError, match="a category of 'town' was not agreed on") as error:
        encoding.codes(np.array(["secret"], object))
    assert "secret" not in str(error.value)


def test_agreements_on_other_terms_and_oversized_sets_are_refused() -> None:
    with pytest.raises(ConfigError, match="agrees on"):
        together(LocalMesh.of(["a", "b"]), lambda mesh: agree_categories(mesh, f"town {mesh.me}", ["x"], **quiet))
    with pytest.raises(ConfigError, match="3 categories, more than most=2"):
        together(LocalMesh.of(["a", "b"]), lambda mesh: agree_categories(mesh, "t", ["x", "y", "z"], most=2, **quiet))


def test_a_column_that_one_owner_has_alone_becomes_columns_of_zeros_and_ones() -> None:
    table = AlignedTable("bank", {"age": [1.0, 2.0, 3.0], "town": ["b", None, "a"]}, bytes([5]) * 32)
    made = one_hot(table)
    assert made.names == ("age", "town=a", "town=b") and made.alignment == table.alignment
    assert made.matrix().tolist() == [[1, 0, 1], [2, 0, 0], [3, 1, 0]]
    with pytest.raises(DataError, match="'empty' of 'bank' is all missing"):
        one_hot(AlignedTable("bank", {"empty": [None, None]}), ["empty"])


# -- scaling


def test_scaling_equals_that_of_all_rows_in_one_table() -> None:
    random = np.random.default_rng(0)
    parts = {f"p{at}": random.normal(3, [1, 40], (20 + at, 2)) for at in range(3)}
    parts["p1"][:, 0] = np.nan  # an owner without a number
    parts["p2"][3, 1] = np.nan

    def party(mesh: LocalMesh) -> Any:
        with Session(mesh, "aby3") as session:
            return scalings(session, {"a": parts[mesh.me][:, 0], "b": parts[mesh.me][:, 1]})

    results = together(LocalMesh.of(sorted(parts)), party)
    whole = pd.DataFrame(np.concatenate(list(parts.values())), columns=["a", "b"])
    for made in results:
        for name in ("a", "b"):
            column = whole[name]
            assert made[name].count == column.count()
            assert made[name].mean == pytest.approx(column.mean(), abs=1e-9)
            assert made[name].variance == pytest.approx(column.var(ddof=0), abs=1e-8)
            assert made[name].minimum == pytest.approx(column.min(), abs=2e-5)
            assert made[name].maximum == pytest.approx(column.max(), abs=2e-5)
    values = parts["p0"][:, 1]
    sklearn = pytest.importorskip("sklearn.preprocessing")
    b = whole[["b"]].dropna().to_numpy()
    standard = sklearn.StandardScaler().fit(b).transform(values[:, None])[:, 0]
    assert np.allclose(results[0]["b"].standardised(values), standard, atol=1e-4)
    assert np.allclose(
        results[0]["b"].normalised(values), sklearn.MinMaxScaler().fit(b).transform(values[:, None])[:, 0], atol=1e-4
    )
    assert np.allclose(results[0]["b"].centred(values), (values - b.mean()) / (b.max() - b.min()), atol=1e-4)


def test_a_total_is_exact_and_its_summands_are_random() -> None:
    values = {"a": [1.25, -3.0], "b": [2.5, 1e9], "c": [-0.125, 7.0]}
    runs = []
    for _ in range(2):
        meshes = Spied.of(sorted(values))
        results = together(meshes, lambda mesh: total(mesh, values[mesh.me]))
        assert results == [[3.625, 1e9 + 4.0]] * 3
        runs.append([parts[0] for tag, parts in meshes[0].seen if tag == "summands"])
    assert not set(runs[0]) & set(runs[1])


# -- labels of another owner


ROWS = 240


def columns() -> tuple[pd.DataFrame, np.ndarray]:
    random = np.random.default_rng(1)
    income = random.normal(size=ROWS)
    y = (income + random.normal(size=ROWS) > 0.3).astype(float)
    income[:25] = np.nan
    town = np.array(["a", "b", "c", "rare"], object)[random.choice(4, ROWS, p=[0.4, 0.35, 0.24, 0.01])]
    return pd.DataFrame({"income": income, "town": town}), y


def related(to: str, meshes: Any = None, **options: Any) -> dict[str, Any]:
    pytest.importorskip("gmpy2")
    frame, y = columns()
    table = AlignedTable("shop", {name: frame[name].to_numpy() for name in frame})

    def party(mesh: Mesh) -> Any:
        side: dict[str, Any] = {"labels": y} if mesh.me == "bank" else {"table": table}
        return relate(mesh, "bank", to=to, bins=6, **side, **quiet, **options)

    return dict(zip(("bank", "shop"), together(meshes or LocalMesh.of(["bank", "shop"]), party), strict=True))


def plain(frame: pd.Series, y: np.ndarray) -> dict[str, Any]:
    """What pandas says of one column of bins."""
    table = pd.DataFrame({"bin": frame, "y": y}).groupby("bin")["y"].agg(["sum", "count"])
    good, bad = table["sum"], table["count"] - table["sum"]
    woe = np.log((good / good.sum()) / (bad / bad.sum()))
    return {"woe": woe, "iv": ((good / good.sum() - bad / bad.sum()) * woe).sum(), "ratio": good / table["count"]}


def test_woe_iv_and_ratios_equal_those_of_the_joined_table_and_go_to_who_was_agreed() -> None:
    frame, y = columns()
    both = related("both")
    ours, theirs = both["shop"]["shop"], both["bank"]["shop"]
    binned = pd.Series(np.searchsorted(ours["income"].edges, frame["income"])).where(frame["income"].notna(), 99)
    wanted = plain(binned, y)
    for made in (ours["income"], theirs["0"]):
        assert np.allclose(made.woe(adjust=0), wanted["woe"], atol=1e-6)
        assert made.iv(adjust=0) == pytest.approx(wanted["iv"], abs=1e-6)
        assert np.allclose(made.positive_ratio, wanted["ratio"], atol=1e-12)
        assert made.missing and made.totals.min() >= 20
    assert theirs["0"].edges is None and theirs["1"].categories is None
    towns = plain(frame["town"].map(ours["town"].categories), y)
    assert np.allclose(ours["town"].woe(adjust=0), towns["woe"], atol=1e-6)
    assert ours["town"].categories["rare"] == max(ours["town"].categories.values())
    assert np.allclose(ours["income"].transformed(frame["income"].to_numpy(), 0), binned.map(wanted["woe"]), atol=1e-6)
    with pytest.raises(ConfigError, match="only the owner of the column knows its bins"):
        theirs["0"].transformed(frame["income"].to_numpy())
    alone = related("features")
    assert alone["bank"] == {} and np.array_equal(alone["shop"]["shop"]["town"].positives, ours["town"].positives)
    assert related("labels")["shop"] == {}


def test_ks_and_auc_of_fine_bins_equal_the_exact_ones() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    random = np.random.default_rng(2)
    score = np.round(random.normal(size=150), 1)
    y = (score + random.normal(size=150) > 0).astype(float)

    def party(mesh: LocalMesh) -> Any:
        side: dict[str, Any] = {"labels": y} if mesh.me == "bank" else {"table": AlignedTable("shop", {"score": score})}
        return relate(mesh, "bank", to="labels", bins=2047, **side, **quiet)

    pytest.importorskip("gmpy2")
    made = together(LocalMesh.of(["bank", "shop"]), party)[0]["shop"]["0"]
    assert made.auc == pytest.approx(metrics.roc_auc_score(y, score), abs=1e-9)
    low, high, _ = metrics.roc_curve(y, score, drop_intermediate=False)
    assert made.ks == pytest.approx(np.abs(high - low).max(), abs=1e-9)


def test_the_label_owner_sends_ciphertexts_alone_and_sees_masked_sums() -> None:
    meshes = Spied.of(["bank", "shop"])
    found = related("features", meshes)["shop"]["shop"]
    tags = [re.sub(r"\d+", "0", tag) for tag, _ in meshes[1].seen]
    assert set(tags) == {"terms", "key", "labels", "opened/0"}
    labels = next(parts[0] for tag, parts in meshes[1].seen if tag == "labels")
    size = len(labels) // ROWS
    assert size >= 512 and len({labels[at : at + size] for at in range(0, len(labels), size)}) == ROWS
    opened = [parts[0] for tag, parts in meshes[1].seen if tag.startswith("opened")]
    numbers = [int(each) for raw in opened for each in re.findall(r"\d+", raw.decode())]
    assert min(numbers) > 2**50 > max(found["income"].positives)  # under masks of 80 bits
    assert {re.sub(r"\d+", "0", tag) for tag, _ in meshes[0].seen} == {"terms", "columns", "masked/0"}


def test_what_is_learnt_is_said_and_small_bins_are_not_made() -> None:
    declared = learns("bank", ["shop"], "features", 20)
    assert "20 rows or more" in declared["shop"][0] and len(declared["bank"]) == 1
    assert all(
        each.totals.min() >= 50 for each in related("features", least=25)["shop"]["shop"].values() if each is None
    )
    with pytest.raises(DataError, match="25 values of a column are missing, fewer than least=40"):
        related("features", least=40)
    with pytest.raises(ConfigError, match="to='all': choose one of"):
        related("all")


def test_labels_that_are_none_and_terms_that_differ_are_refused() -> None:
    pytest.importorskip("gmpy2")

    def party(mesh: LocalMesh, labels: Any, bins: int) -> Any:
        if mesh.me == "bank":
            return relate(mesh, "bank", to="labels", labels=labels, **quiet)
        return relate(mesh, "bank", to="labels", table=AlignedTable("shop", {"a": [1.0, 2.0]}), bins=bins, **quiet)

    with pytest.raises(DataError, match="labels are 0 and 1"):
        together(LocalMesh.of(["bank", "shop"]), lambda mesh: party(mesh, np.array([1.0, 2.0]), 32))
    with pytest.raises(ConfigError, match="they must be the same"):
        together(LocalMesh.of(["bank", "shop"]), lambda mesh: party(mesh, np.array([1.0, 0.0]), 16))
    with pytest.raises(ConfigError, match="they must be the same"):
        together(LocalMesh.of(["bank", "shop"]), lambda mesh: party(mesh, np.array([1.0, 0.0, 1.0]), 32))


def test_constant_and_all_missing_columns_have_one_bin() -> None:
    made = Binned(np.array([10]), np.array([4]))
    assert made.iv() == 0 and made.auc == 0.5 and made.ks == 0
    with pytest.raises(ProtocolError, match="not between 0 and its rows"):
        features._checked(np.array([3]), [4], False, "shop")


@pytest.mark.parametrize("protocol", ["aby3", "two_party"])
def test_correlations_between_owners_equal_those_of_pandas(protocol: str) -> None:
    random = np.random.default_rng(3)
    x = random.normal(size=(60, 5)) @ random.normal(size=(5, 5)) * [1, 1e3, 1e-3, 1, 1]
    x[:, 4] = 7.0
    owners = {"bank": [0, 1], "shop": [2, 3, 4]}
    names = ["bank", "helper", "shop"] if protocol == "aby3" else ["bank", "shop"]

    def party(mesh: LocalMesh) -> Any:
        with Session(mesh, protocol) as session:
            mine = owners.get(mesh.me)
            table = None if mine is None else AlignedTable(mesh.me, {f"c{at}": x[:, at] for at in mine})
            return correlation(session, table, to="bank")

    results = together(LocalMesh.of(names), party)
    assert all(each is None for each in results[1:])
    labels, matrix = results[0]
    assert labels == [("bank", "c0"), ("bank", "c1"), ("shop", "c2"), ("shop", "c3"), ("shop", "c4")]
    assert np.allclose(matrix, pd.DataFrame(x).corr().to_numpy(), atol=1e-6, equal_nan=True)
