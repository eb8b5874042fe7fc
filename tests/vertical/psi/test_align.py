"""Alignment: every protocol finds exactly what is shared, in one order, and every fault ends clearly on every side."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("coincurve")

from tests.vertical.psi.owners import each, errors, names

from hansa.core.errors import ConfigError, DataError, HansaError, PolicyError, ProtocolError, StateMismatch
from hansa.runtimes.mesh.local import LocalMesh
from hansa.vertical import AlignedTable
from hansa.vertical.psi import Audit, Keys, align, ecdh, intersect
from hansa.vertical.psi.protocols import PROTOCOLS

TWO = ("bank", "shop")
ONE = {"workers": 1, "accept": True}


def tables(shared: int, only: int = 40) -> dict[str, dict[str, list[Any]]]:
    bank = names(0, shared) + names(10**6, 10**6 + only)
    shop = names(2 * 10**6, 2 * 10**6 + only + 7) + names(0, shared)[::-1]
    return {
        "bank": {"id": bank, "age": list(range(len(bank)))},
        "shop": {"customer": [name.upper() + " " for name in shop], "town": shop},
    }


def columns(me: str) -> Keys:
    return Keys("id" if me == "bank" else "customer")


def aligned(given: dict[str, dict[str, list[Any]]], **options: Any) -> dict[str, AlignedTable]:
    return each(TWO, lambda mesh: align(mesh, given[mesh.me], columns(mesh.me), **{**ONE, **options}))


@pytest.mark.parametrize("shared", [1, 5, 120])
@pytest.mark.parametrize("protocol", [name for name, made in PROTOCOLS.items() if not made.coordinated])
def test_two_owners_get_the_rows_they_share_in_one_order(protocol: str, shared: int) -> None:
    given = tables(shared)
    made = aligned(given, protocol=protocol)
    assert made["bank"].names == ("age",) and made["shop"].names == ("town",)
    people = [given["bank"]["id"][int(row)] for row in made["bank"]["age"]]
    assert people == made["shop"]["town"].tolist() and sorted(people) == names(0, shared)
    assert made["bank"].alignment == made["shop"].alignment != bytes(32)
    if shared > 100:
        assert people != sorted(people), "the order would say something about the keys"


def test_two_runs_have_different_alignments_and_orders() -> None:
    first, second = (aligned(tables(60))["bank"] for _ in range(2))
    assert first.alignment != second.alignment and first["age"].tolist() != second["age"].tolist()


def test_buckets_give_the_same_rows(tmp_path: Path) -> None:
    given = tables(300)
    made = each(
        TWO,
        lambda mesh: align(mesh, given[mesh.me], columns(mesh.me), folder=tmp_path / mesh.me, bucket_keys=50, **ONE),
    )
    people = [given["bank"]["id"][int(row)] for row in made["bank"]["age"]]
    assert people == made["shop"]["town"].tolist() and sorted(people) == names(0, 300)
    assert list(tmp_path.iterdir()) == [], "nothing of the keys stays on the disk"


def test_only_the_declared_owner_learns(tmp_path: Path) -> None:
    given = tables(30)

    def play(mesh: LocalMesh) -> Any:
        return intersect(mesh, given[mesh.me], columns(mesh.me), learns=["shop"], folder=tmp_path / mesh.me, **ONE)

    found = each(TWO, play)
    assert found["bank"] is None and not (tmp_path / "bank").exists()
    assert found["shop"] is not None and sorted(found["shop"].rows.tolist()) == list(range(47, 77))


def test_what_each_party_learns_is_said_and_has_to_be_accepted(capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[str] = []

    def refuse(said: str) -> bool:
        asked.append(said)
        return False

    for accept in (False, refuse):
        raised = errors(TWO, lambda mesh, a=accept: align(mesh, tables(3)[mesh.me], columns(mesh.me), accept=a))
        assert all(isinstance(error, PolicyError) and "nothing was sent" in str(error) for error in raised.values())
    assert "which of its own keys 'shop' has, too" in asked[0]
    assert "how many keys 'bank' enters" in capsys.readouterr().err


def test_no_shared_key_is_an_error_at_both() -> None:
    given = {"bank": {"id": ["a", "b"]}, "shop": {"customer": ["c"]}}
    for error in errors(TWO, lambda mesh: align(mesh, given[mesh.me], columns(mesh.me), **ONE)).values():
        assert isinstance(error, DataError) and "no key is shared by bank, shop" in str(error)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keys": Keys("id", normalise=())}, "declares otherwise the normalisation of keys:"),
        ({"keys": Keys(("id", "age"))}, "declares otherwise the number of columns in a key:"),
        ({"cap": 500}, "declares otherwise the cap on the number of keys:"),
        ({"learns": ["bank"]}, "declares otherwise who learns the result:"),
        ({"bucket_keys": 7}, "declares otherwise the settings"),
    ],
)
def test_different_declarations_are_named_at_both_before_anything_is_sent(change: Any, message: str) -> None:
    given = {"bank": {"id": names(0, 5), "age": names(0, 5)}, "shop": {"id": names(0, 5)}}
    sent: dict[str, int] = {}

    def play(mesh: LocalMesh) -> None:
        options: dict[str, Any] = {"keys": Keys("id"), **ONE, **(change if mesh.me == "bank" else {})}
        try:
            intersect(mesh, given[mesh.me], options.pop("keys"), **options)
        finally:
            sent[mesh.me] = sum(mesh.counters.sent_bytes.values())

    raised = errors(TWO, play)
    assert all(isinstance(error, ConfigError) and message in str(error) for error in raised.values())
    assert max(sent.values()) <= 16 * 12, "more than hashes of the terms was sent"


def test_an_oversized_or_empty_set_is_refused_at_both() -> None:
    given = {"bank": {"id": names(0, 11)}, "shop": {"id": names(0, 3)}}
    for error in errors(TWO, lambda mesh: align(mesh, given[mesh.me], Keys("id"), cap=10, **ONE)).values():
        assert isinstance(error, ConfigError) and "'bank' would enter 11 keys, above the agreed cap of 10" in str(error)
    given["shop"] = {"id": []}
    for error in errors(TWO, lambda mesh: align(mesh, given[mesh.me], Keys("id"), **ONE)).values():
        assert "'shop' has no keys to enter" in str(error)


def test_a_hostile_owner_is_found_where_that_is_cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"bank": {"id": names(0, 9)}, "shop": {"id": names(0, 9)}}

    def hears(message: str) -> None:
        raised = errors(TWO, lambda mesh: align(mesh, given[mesh.me], Keys("id"), **ONE))
        assert any(isinstance(error, ProtocolError) and message in str(error) for error in raised.values()), raised

    honest = ecdh.curve.multiply_and_hash
    with monkeypatch.context() as patch:  # answers with one tag for every key
        patch.setattr(ecdh.curve, "multiply_and_hash", lambda *a: honest(*a)[:10] * 9)
        hears("twice")
    made = ecdh.curve.hash_and_multiply
    with monkeypatch.context() as patch:
        patch.setattr(ecdh.curve, "hash_and_multiply", lambda *a: made(*a)[:-1] + b"\0")
        hears("not on the curve")
    with monkeypatch.context() as patch:
        patch.setattr(ecdh.curve, "hash_and_multiply", lambda *a: made(*a)[:-64])
        hears("where 576 belong")
    copied = ecdh.Session.exchange
    with monkeypatch.context() as patch:
        patch.setattr(ecdh.Session, "exchange", lambda self, tag, own, size: copied(self, tag, bytes(32), size))
        hears("other tags than it promised")


def test_points_on_the_wire_say_nothing_about_keys() -> None:
    """The same tables twice: no message but the terms, the sizes and the fields of frames is the same."""
    seen: list[set[bytes]] = []
    for _ in range(2):
        sent: set[bytes] = set()

        class Tapped(LocalMesh):
            def send(self, to: str, tag: str, buffers: Any, sent: set[bytes] = sent) -> None:
                if tag in ("psi points", "psi tags", "psi promise"):
                    sent.update(bytes(each)[at : at + 10] for each in buffers for at in range(0, len(each), 10))
                super().send(to, tag, buffers)

        from hansa.runtimes.mesh.local import together

        together(Tapped.of(TWO), lambda mesh: align(mesh, tables(20)[mesh.me], columns(mesh.me), **ONE))
        seen.append(sent)
    assert seen[0] and not seen[0] & seen[1]


class Killed(Exception):
    """Stands for kill -9."""


@pytest.mark.parametrize("where", [0, 2, 5])
def test_a_killed_run_goes_on_from_the_last_bucket_of_both(tmp_path: Path, where: int) -> None:
    given, done = tables(300), {"bank": 0, "shop": 0}

    def play(stop: int | None) -> Callable[[LocalMesh], AlignedTable]:
        def run(mesh: LocalMesh) -> AlignedTable:
            def told(so_far: int, total: int) -> None:
                done[mesh.me] += 1
                if stop is not None and mesh.me == "shop" and done["shop"] > stop:
                    raise Killed

            return align(
                mesh, given[mesh.me], columns(mesh.me), folder=tmp_path / mesh.me, bucket_keys=50, progress=told, **ONE
            )

        return run

    with pytest.raises((Killed, HansaError)):
        each(TWO, play(where))
    before = done["bank"]
    made = each(TWO, play(None))
    people = [given["bank"]["id"][int(row)] for row in made["bank"]["age"]]
    assert people == made["shop"]["town"].tolist() and sorted(people) == names(0, 300)
    assert made["bank"].alignment == made["shop"].alignment
    assert done["bank"] - before <= 8 - where, "finished buckets were done again"


def test_a_table_that_changed_since_the_interruption_is_refused(tmp_path: Path) -> None:
    given = tables(100)

    def killed(mesh: LocalMesh) -> None:
        def told(so_far: int, total: int) -> None:
            raise Killed

        align(mesh, given[mesh.me], columns(mesh.me), folder=tmp_path / mesh.me, progress=told, **ONE)

    with pytest.raises((Killed, HansaError)):
        each(TWO, killed)
    given["bank"]["id"][3] = "somebody else"
    with pytest.raises(StateMismatch, match="the table changed since"):
        each(TWO, lambda mesh: align(mesh, given[mesh.me], columns(mesh.me), folder=tmp_path / mesh.me, **ONE))


def test_runs_are_recorded_and_limited(tmp_path: Path) -> None:
    now = [1000.0]
    audit = {me: Audit(tmp_path / f"{me}.jsonl", runs=2, clock=lambda: now[0]) for me in TWO}

    def play(mesh: LocalMesh) -> AlignedTable:
        return align(mesh, tables(4)[mesh.me], columns(mesh.me), audit=audit[mesh.me], **ONE)

    made = each(TWO, play)
    lines = [json.loads(line) for line in (tmp_path / "bank.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["began", "ended"]
    assert lines[0]["sizes"] == {"bank": 44, "shop": 51} and lines[0]["owners"] == ["bank", "shop"]
    assert lines[1]["shared"] == 4 and lines[1]["alignment"] == made["bank"].alignment.hex()
    assert (tmp_path / "bank.jsonl").stat().st_mode & 0o077 == 0
    assert "person" not in (tmp_path / "bank.jsonl").read_text()
    each(TWO, play)
    with pytest.raises(HansaError, match="2 intersections with .* are allowed|is gone"):
        each(TWO, play)
    now[0] += 90_000
    each(TWO, play)


def test_progress_reaches_the_end() -> None:
    told: list[tuple[int, int]] = []

    def play(mesh: LocalMesh) -> AlignedTable:
        report = (lambda *a: told.append(a)) if mesh.me == "bank" else None
        return align(mesh, tables(50)[mesh.me], columns(mesh.me), progress=report, **ONE)

    each(TWO, play)
    assert told[-1] == (97, 97)


def test_all_cores_give_the_same_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hansa.vertical.psi.work.ALONE", 10)
    given = tables(60)
    made = aligned(given, workers=2)
    assert sorted(np.asarray(given["bank"]["id"])[made["bank"]["age"].astype(int)].tolist()) == names(0, 60)
