"""Counts and sums of sets larger than memory: as those in memory, whoever is lost on the way, and only ever one."""

import tempfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

pytest.importorskip("coincurve")
pytest.importorskip("gmpy2")

from tests.vertical.psi.owners import Play, begun, each, goes_on, left, lost_at, names, played, seconds

from hansa.core.errors import DataError, HansaError, StateMismatch
from hansa.core.sampling import Stream
from hansa.crypto import curve
from hansa.runtimes.mesh.local import LocalMesh
from hansa.vertical.psi import Audit, Keys, entries, totals
from hansa.vertical.psi.totals import cardinality, intersection_sum

TWO = ("bank", "shop")
TABLES: dict[str, dict[str, list[Any]]] = {
    "bank": {"id": names(0, 50)},
    "shop": {"id": names(30, 90), "spent": [at / 8 - 3 for at in range(60)]},
}
SUM = sum(TABLES["shop"]["spent"][:20])
ONE = {"workers": 1, "accept": lambda said: True, "bucket_keys": 8}


@pytest.fixture(autouse=True)
def small_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(totals, "_PIECE", 2)


@pytest.fixture
def on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """All but a few rows go there."""
    monkeypatch.setattr(entries, "_HELD", 10)


def count(folder: Path, **options: Any) -> Play:
    audit = {me: Audit(folder / f"{me}.jsonl") for me in TWO}
    return lambda mesh: cardinality(
        mesh, TABLES[mesh.me], Keys("id"), learner="bank", folder=folder / mesh.me, audit=audit[mesh.me],
        **{**ONE, **options},
    )  # fmt: skip


def total(folder: Path, **options: Any) -> Play:
    audit = {me: Audit(folder / f"{me}.jsonl") for me in TWO}
    return lambda mesh: intersection_sum(
        mesh, TABLES[mesh.me], Keys("id"), values="spent" if mesh.me == "shop" else None, holder="shop",
        folder=folder / mesh.me, audit=audit[mesh.me], **{"least": 2, **ONE, **options},
    )  # fmt: skip


keys = st.sets(st.integers(0, 60), min_size=1, max_size=45)


@pytest.mark.usefixtures("on_disk")
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(keys, keys, st.sampled_from([1, 7, 50]))
def test_a_count_in_buckets_is_that_in_memory(bank: set[int], shop: set[int], bucket_keys: int) -> None:
    sets = {"bank": [f"p{at}" for at in bank], "shop": [f"p{at}" for at in shop]}

    def play(mesh: LocalMesh, folder: Path | None) -> Any:
        own = None if folder is None else folder / mesh.me
        options = {**ONE, "bucket_keys": bucket_keys}
        return cardinality(mesh, {"id": sets[mesh.me]}, Keys("id"), learner="bank", folder=own, **options)

    with tempfile.TemporaryDirectory() as made:
        for folder in (None, Path(made)):
            found = each(TWO, lambda mesh, at=folder: play(mesh, at))
            assert found == {"bank": totals.Cardinality(len(bank & shop)), "shop": None}
        assert left(Path(made)) == [], "nothing of the keys stays on the disk"


@pytest.mark.usefixtures("on_disk")
@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.integers(0, 40), st.integers(-(10**9), 10**9), min_size=3), st.sampled_from([2, 9, 50]))
def test_a_sum_in_buckets_is_exact(shop: dict[int, int], bucket_keys: int) -> None:
    bank = [*range(0, 41, 2), *sorted(shop)[:2]]

    def play(mesh: LocalMesh, folder: Path) -> Any:
        of_shop = {"id": [f"p{at}" for at in shop], "spent": [value / 4 for value in shop.values()]}
        table = of_shop if mesh.me == "shop" else {"id": [f"p{at}" for at in sorted(set(bank))]}
        return intersection_sum(
            mesh, table, Keys("id"), values="spent" if mesh.me == "shop" else None, holder="shop", least=2,
            folder=folder / mesh.me, **{**ONE, "bucket_keys": bucket_keys},
        )  # fmt: skip

    shared = [value / 4 for at, value in shop.items() if at in bank]
    with tempfile.TemporaryDirectory() as made:
        found = each(TWO, lambda mesh: play(mesh, Path(made)))
    assert found == {"shop": totals.Total(len(shared), sum(shared)), "bank": totals.Total(len(shared))}


def test_a_count_goes_on_wherever_an_owner_was_lost(tmp_path: Path) -> None:
    goes_on(TWO, lambda folder: count(folder, bucket_keys=16), tmp_path, begun)


def test_a_sum_goes_on_wherever_an_owner_was_lost(tmp_path: Path) -> None:
    goes_on(TWO, lambda folder: total(folder, bucket_keys=20), tmp_path, seconds)
    assert played(TWO, total(tmp_path / "whole"))[0] == {"shop": totals.Total(20, SUM), "bank": totals.Total(20)}


def test_noise_is_drawn_once_whatever_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    honest = totals.noise_law

    class Spied:
        def __init__(self, *given: Any) -> None:
            self._law = honest(*given)

        def draw(self, stream: Stream, count: int) -> np.ndarray:
            made = self._law.draw(stream, count)
            drawn.append(int(made[0]))
            return made

    monkeypatch.setattr(totals, "noise_law", Spied)
    play = count(tmp_path, epsilon=0.02, delta=1e-3, bucket_keys=60)
    lost_at(TWO, play, "shop", "psi tags", 2)
    ends, _ = played(TWO, play)
    _, lost, resumed = drawn  # the first is of the run in which the place was looked for
    assert lost == resumed and ends["bank"].count == 20 + lost


def begun_anew(folder: Path, tag: str) -> dict[str, Any]:
    """A noisy count in which the shop was lost at its first message of this kind, and the bank then forgot the run."""
    play = count(folder, epsilon=1.0, delta=1e-3)
    lost_at(TWO, play, "shop", tag, 1)
    for path in (folder / "bank").iterdir():
        path.unlink()
    ends, _ = played(TWO, play)
    return ends


def test_another_noisy_count_is_not_begun_while_one_may_have_been_shown(tmp_path: Path) -> None:
    ends = begun_anew(tmp_path, "psi tags")
    assert isinstance(ends["shop"], StateMismatch) and "may have shown its result to 'bank'" in str(ends["shop"])
    assert not isinstance(ends["bank"], totals.Cardinality)


def test_a_noisy_count_of_which_nothing_was_shown_begins_anew(tmp_path: Path) -> None:
    ends = begun_anew(tmp_path, "psi points")
    assert isinstance(ends["bank"], totals.Cardinality)


@pytest.mark.parametrize("column", ["id", "spent"])
def test_a_table_or_a_value_that_changed_meanwhile_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, column: str
) -> None:
    lost_at(TWO, total(tmp_path), "shop", "psi points", 2)
    changed = {**TABLES["shop"], column: [*TABLES["shop"][column][:-1], "nobody" if column == "id" else 7.0]}
    monkeypatch.setitem(TABLES, "shop", changed)
    ends, _ = played(TWO, total(tmp_path))
    assert isinstance(ends["shop"], StateMismatch) and "the table changed since" in str(ends["shop"])
    assert isinstance(ends["bank"], HansaError)


def test_who_enters_other_keys_after_a_loss_has_the_result_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    play = count(tmp_path)
    lost_at(TWO, play, "bank", "psi from", 3)
    for path in (tmp_path / "bank").glob("done-*"):
        path.unlink()
    monkeypatch.setitem(TABLES, "bank", {"id": names(40, 90)})
    monkeypatch.setattr("hansa.vertical.psi.state.State.check", lambda *given: None)
    ends, _ = played(TWO, play)
    assert ends["bank"] == totals.Cardinality(20), "it learnt something of the keys that it entered later"


def test_too_few_for_a_sum_ends_the_run(tmp_path: Path) -> None:
    ends, _ = played(TWO, total(tmp_path, least=21))
    assert all(isinstance(end, DataError) and "20 keys are shared" in str(end) for end in ends.values())
    assert left(tmp_path) == []


def toy(values: bytes, width: int, domain: bytes, secret: bytes) -> bytes:
    """A group that hides nothing and is quick: exclusive or."""
    rows = np.frombuffer(values, np.uint8).reshape(-1, width)
    points = np.hstack([rows, rows, rows, rows])[:, : curve.POINT_BYTES]
    return toy_product(points.tobytes(), secret)


def toy_product(points: bytes, secret: bytes) -> bytes:
    return (np.frombuffer(points, np.uint8).reshape(-1, 64) ^ np.frombuffer(secret * 2, np.uint8)).tobytes()


def toy_tags(points: bytes, secret: bytes, domain: bytes, size: int) -> bytes:
    return np.frombuffer(toy_product(points, secret), np.uint8).reshape(-1, 64)[:, :size].tobytes()


def peak(count_: int, folder: Path) -> int:
    """Of both owners' memory, in bytes."""

    def rows(first: int) -> Iterator[dict[str, list[str]]]:
        for at in range(first, first + count_, 1024):
            yield {"id": [f"p{each}" for each in range(at, min(at + 1024, first + count_))]}

    def play(mesh: LocalMesh) -> Any:
        first = 0 if mesh.me == "bank" else count_ // 2
        options = {**ONE, "bucket_keys": 4096}
        return cardinality(mesh, lambda: rows(first), Keys("id"), learner="bank", folder=folder / mesh.me, **options)

    tracemalloc.start()
    try:
        found = each(TWO, play)
        assert found["bank"] == totals.Cardinality(count_ // 2)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.usefixtures("on_disk")
def test_memory_does_not_grow_with_the_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curve, "hash_and_multiply", toy)
    monkeypatch.setattr(curve, "multiply_and_hash", toy_tags)
    (tmp_path / "few").mkdir()
    (tmp_path / "many").mkdir()
    few, many = peak(1 << 13, tmp_path / "few"), peak(1 << 16, tmp_path / "many")
    assert many < 1.5 * few, (few, many)
