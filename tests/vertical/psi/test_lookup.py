"""Look-ups in a prepared set: right, twice without sending the set again, and bounded."""

import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

pytest.importorskip("coincurve")

from tests.vertical.psi.owners import Play, each, errors, goes_on, left, lost_at, names, played, seconds

from hansa.core.errors import (
    ConfigError,
    CorruptFile,
    HansaError,
    NotFound,
    PolicyError,
    ProtocolError,
    StateMismatch,
)
from hansa.crypto import curve
from hansa.runtimes.mesh.local import LocalMesh
from hansa.vertical.psi import Audit, Keys, entries, lookup
from hansa.vertical.psi.lookup import Prepared, look_up

TWO = ("register", "shop")
SMALL = {"customer": [" PERSON-0000003", "nobody", "person-0000499", "person-0000500"]}


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    return Prepared.make({"id": names(0, 500)}, Keys("id"), tmp_path / "prepared", workers=1)


def asked(prepared: Prepared, cap: int = 10, **options: Any) -> tuple[list[int], int]:
    sent = {}

    def play(mesh: LocalMesh) -> Any:
        if mesh.me == "register":
            Prepared.open(prepared.folder).answer(mesh, cap=cap, accept=True)
            sent["bytes"] = mesh.counters.sent_bytes["shop"]
            return None
        return look_up(mesh, SMALL, Keys("customer"), cap=cap, accept=True, **options)

    return each(TWO, play)["shop"].tolist(), sent["bytes"]


def test_a_client_learns_which_of_its_rows_the_set_has(prepared: Prepared) -> None:
    assert asked(prepared)[0] == [0, 2]


def test_tags_travel_once_for_each_preparation(prepared: Prepared, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    first, second = asked(prepared, kept=kept), asked(prepared, kept=kept)
    assert first[0] == second[0] == [0, 2]
    assert first[1] - second[1] == 500 * prepared.size
    Prepared.make({"id": names(4, 500)}, Keys("id"), prepared.folder, workers=1)
    assert asked(prepared, kept=kept)[0] == [2]


def test_a_client_s_cap_holds_at_both(prepared: Prepared) -> None:
    def play(mesh: LocalMesh) -> Any:
        if mesh.me == "register":
            return prepared.answer(mesh, cap=3, accept=True)
        return look_up(mesh, SMALL, Keys("customer"), cap=3, accept=True)

    for error in errors(TWO, play).values():
        assert isinstance(error, ConfigError)
        assert "'shop' would ask about 4 keys, above the agreed cap of 3" in str(error)


def test_another_normalisation_or_no_acceptance_is_refused(prepared: Prepared) -> None:
    def play(mesh: LocalMesh) -> Any:
        if mesh.me == "register":
            return prepared.answer(mesh, cap=9, accept=True)
        return look_up(mesh, SMALL, Keys("customer", normalise=()), cap=9, accept=True)

    for error in errors(TWO, play).values():
        assert "declares otherwise the normalisation of keys" in str(error)
    with pytest.raises(PolicyError):
        look_up(LocalMesh.of(TWO)[1], SMALL, Keys("customer"), cap=9)


def test_look_ups_are_limited(prepared: Prepared, tmp_path: Path) -> None:
    audit = Audit(tmp_path / "audit.jsonl", runs=1)

    def play(mesh: LocalMesh) -> Any:
        if mesh.me == "register":
            return prepared.answer(mesh, cap=9, accept=True, audit=audit)
        return look_up(mesh, SMALL, Keys("customer"), cap=9, accept=True)

    each(TWO, play)
    assert json.loads(audit.path.read_text().splitlines()[-1])["answered"] == 4
    with pytest.raises(HansaError, match="1 are allowed|is gone"):
        each(TWO, play)


def test_a_damaged_preparation_is_found(prepared: Prepared, tmp_path: Path) -> None:
    assert (prepared.folder / "secret.bin").stat().st_mode & 0o077 == 0
    tags = prepared.folder / "tags.bin"
    tags.write_bytes(tags.read_bytes()[:-1])
    with pytest.raises(CorruptFile, match="cut short"):
        Prepared.open(prepared.folder)
    (prepared.folder / "prepared.json").write_text("{}")
    with pytest.raises(CorruptFile, match="prepare the set again"):
        Prepared.open(prepared.folder)
    with pytest.raises(NotFound, match="holds no prepared set"):
        Prepared.open(tmp_path)


ASKED = {"customer": [f"person-{at:07}" for at in range(490, 530)]}


def looked(prepared: Prepared, folder: Path, table: dict[str, list[str]] = ASKED) -> Play:
    """Both sides of a look-up that can be gone on with."""
    audit = {me: Audit(folder / f"{me}.jsonl") for me in TWO}

    def play(mesh: LocalMesh) -> Any:
        if mesh.me == "register":
            return Prepared.open(prepared.folder).answer(mesh, cap=40, accept=True, audit=audit[mesh.me])
        return look_up(
            mesh, table, Keys("customer"), cap=40, accept=True, folder=folder / mesh.me, audit=audit[mesh.me]
        ).tolist()  # fmt: skip

    return play


@pytest.fixture
def small_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookup, "_PIECE", 50)
    monkeypatch.setattr(lookup, "_CHUNK", 4)


@pytest.mark.usefixtures("small_messages")
def test_a_look_up_goes_on_wherever_a_side_was_lost(prepared: Prepared, tmp_path: Path) -> None:
    goes_on(TWO, lambda folder: looked(prepared, folder), tmp_path, seconds, again=lookup._AHEAD)
    assert played(TWO, looked(prepared, tmp_path))[0]["shop"] == list(range(10))
    assert not list(prepared.folder.glob("run-*"))


@pytest.mark.usefixtures("small_messages")
def test_who_asks_about_other_keys_after_a_loss_gets_no_answer(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost_at(TWO, looked(prepared, tmp_path), "shop", "psi points", 6)
    for path in (tmp_path / "shop").glob("done-*"):
        path.unlink()
    monkeypatch.setattr("hansa.vertical.psi.state.State.check", lambda *given: None)
    ends, _ = played(TWO, looked(prepared, tmp_path, {"customer": names(100, 140)}))
    assert isinstance(ends["register"], ProtocolError) and "about other keys than before" in str(ends["register"])
    assert isinstance(ends["shop"], HansaError)


@pytest.mark.usefixtures("small_messages")
def test_a_set_is_not_prepared_anew_while_its_client_may_go_on(prepared: Prepared, tmp_path: Path) -> None:
    lost_at(TWO, looked(prepared, tmp_path), "shop", "psi points", 2)
    again = Prepared.make({"id": names(0, 500)}, Keys("id"), prepared.folder, workers=1)
    assert again.identity == prepared.identity
    with pytest.raises(StateMismatch, match="the table changed since answers"):
        Prepared.make({"id": names(1, 500)}, Keys("id"), prepared.folder, workers=1)
    assert played(TWO, looked(prepared, tmp_path))[0]["shop"] == list(range(10))
    assert Prepared.make({"id": names(1, 500)}, Keys("id"), prepared.folder, workers=1).identity != prepared.identity


@pytest.mark.usefixtures("small_messages")
def test_a_small_table_that_changed_meanwhile_is_refused(prepared: Prepared, tmp_path: Path) -> None:
    lost_at(TWO, looked(prepared, tmp_path), "shop", "psi points", 2)
    ends, _ = played(TWO, looked(prepared, tmp_path, {"customer": [*ASKED["customer"][1:], "nobody"]}))
    assert isinstance(ends["shop"], StateMismatch) and "the table changed since" in str(ends["shop"])


class Killed(Exception):
    """Stands for kill -9."""


@pytest.mark.parametrize("where", [1, 3, 8])
def test_a_preparation_goes_on_where_it_was_killed(tmp_path: Path, where: int) -> None:
    told: list[int] = []

    def progress(done: int, total: int) -> None:
        told.append(done)
        if len(told) == where:
            raise Killed

    def make(high: int) -> Prepared:
        return Prepared.make(
            {"id": names(0, high)}, Keys("id"), tmp_path / "made", bucket_keys=40, workers=1, progress=progress
        )

    with pytest.raises(Killed):
        make(300)
    with pytest.raises(NotFound):
        Prepared.open(tmp_path / "made")
    with pytest.raises(StateMismatch, match="the table changed since"):
        make(299)
    made = make(300)
    assert len(told) == 9 and told[-1] == 300, "of 8 buckets, one was done again"
    assert asked(made)[0] == [0] and left(tmp_path / "made") == []


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sets(st.integers(0, 60), min_size=1), st.sets(st.integers(0, 60), min_size=1), st.sampled_from([1, 9, 99]))
def test_a_set_prepared_in_buckets_answers_as_it_should(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, large: set[int], small: set[int],
    bucket_keys: int,
) -> None:  # fmt: skip
    monkeypatch.setattr(entries, "_HELD", 10)
    monkeypatch.setattr(lookup, "_PIECE", 7)
    monkeypatch.setattr(lookup, "_CHUNK", 3)
    folder = tmp_path_factory.mktemp("prepared")
    made = Prepared.make(
        {"id": [f"p{at}" for at in large]}, Keys("id"), folder / "large", bucket_keys=bucket_keys, workers=1
    )
    few = [f"p{at}" for at in small]

    def play(mesh: LocalMesh, own: Path | None) -> Any:
        if mesh.me == "register":
            return made.answer(mesh, cap=99, accept=lambda said: True)
        return look_up(mesh, {"id": few}, Keys("id"), cap=99, accept=lambda said: True, folder=own).tolist()

    for own in (None, folder / "shop"):
        found = each(TWO, lambda mesh, at=own: play(mesh, at))["shop"]
        assert found == [row for row, at in enumerate(small) if at in large]
    assert left(folder) == ["large"]


def test_memory_does_not_grow_with_the_large_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def toy(values: bytes, width: int, domain: bytes, secret: bytes, size: int) -> bytes:
        """No product, and quick."""
        return np.frombuffer(values, np.uint8).reshape(-1, width)[:, :size].tobytes()

    def rows(high: int) -> Iterator[dict[str, list[str]]]:
        for at in range(0, high, 1024):
            yield {"id": names(at, at + 1024)}

    def peak(high: int) -> int:
        tracemalloc.start()
        try:
            made = Prepared.make(lambda: rows(high), Keys("id"), tmp_path / str(high), bucket_keys=4096, workers=1)

            def play(mesh: LocalMesh) -> Any:
                if mesh.me == "register":
                    return made.answer(mesh, cap=10, accept=lambda said: True)
                own = tmp_path / f"shop-{high}"
                return look_up(mesh, SMALL, Keys("customer"), cap=10, accept=lambda said: True, folder=own)

            each(TWO, play)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    monkeypatch.setattr(curve, "hash_multiply_and_hash", toy)
    monkeypatch.setattr(entries, "_HELD", 10)
    monkeypatch.setattr(lookup, "_PIECE", 1024)
    few, many = peak(1 << 13), peak(1 << 16)
    assert many < 1.5 * few, (few, many)
