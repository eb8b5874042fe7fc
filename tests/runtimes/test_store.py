"""The server's state: whole commits, truths about runs, and nothing lost when a disk is full."""

import os
import sqlite3
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sql

from hansa.core.checkpoint import Checkpoint
from hansa.core.errors import ConfigError, CorruptFile, NotFound, StateMismatch, StorageFull
from hansa.core.ledger import Event
from hansa.core.tensors import Tensors
from hansa.runtimes import schema
from hansa.runtimes.store import SMALL, RunStore, SqlStore


def checkpoint(run: str, round: int, size: int = 10) -> Checkpoint:
    state = Tensors.join(model=Tensors({"w": np.full(size, round, "float32")}))
    return Checkpoint(run=run, fingerprint="f", round=round, state=state)


@pytest.fixture
def store(tmp_path: Path):
    made = SqlStore(tmp_path / "state")
    yield made
    made.close()


def begun(store: SqlStore) -> tuple[str, RunStore]:
    run = store.add_run(name="job", bundle="b" * 64, submitter="alice")
    return run, store.run(run)


@pytest.mark.parametrize("size", [10, SMALL])  # in the database, and as a file
def test_a_commit_is_what_is_loaded_after_a_restart(tmp_path: Path, size: int) -> None:
    store = SqlStore(tmp_path / "state")
    run, state = begun(store)
    assert state.load() is None and state.best() is None and list(state.records()) == []
    state.charge(0, 0, ["a", "b"], [Event(mechanism="gaussian", noise_multiplier=1.0)])
    for round in range(4):
        state.commit(checkpoint(run, round + 1, size), {"round": round}, best=round == 1)
    secret = state.secret()
    store.close()
    again = SqlStore(tmp_path / "state")
    state = again.run(run)
    last, best = state.load(), state.best()
    assert last is not None and best is not None
    assert last.state == checkpoint(run, 4, size).state and best.state == checkpoint(run, 2, size).state
    assert [record["round"] for record in state.records()] == [0, 1, 2, 3]
    assert [(entry.round, entry.attempt) for entry in state.charges()] == [(0, 0)]
    assert state.secret() == secret and len(secret) == 32
    files = list((tmp_path / "state" / "blobs").rglob("*.ckpt"))
    assert len(files) == (0 if size == 10 else 2), "the last and the best, and no other"
    again.close()


def test_two_runs_share_a_database_and_nothing_else(store: SqlStore) -> None:
    (a, first), (b, second) = begun(store), begun(store)
    first.commit(checkpoint(a, 1), {"round": 0}, best=False)
    assert second.load() is None and list(second.records()) == [] and first.secret() != second.secret()
    assert [row["id"] for row in store.runs()] == [a, b]
    assert store.find(a[:10])["id"] == a
    with pytest.raises(NotFound, match="names 0 runs"):
        store.find("zz")
    with pytest.raises(NotFound, match="names 0 runs"):
        store.find("")


def test_a_round_is_never_committed_twice(store: SqlStore) -> None:
    run, state = begun(store)
    state.commit(checkpoint(run, 1), {"round": 0}, best=False)
    with pytest.raises(sql.exc.IntegrityError):
        state.commit(checkpoint(run, 1), {"round": 0}, best=False)
    assert len(state.records()) == 1


def test_another_job_cannot_go_on_with_a_run(store: SqlStore) -> None:
    run, _ = begun(store)
    store.describe(run, name="n", fingerprint="f" * 64, rounds=3)
    store.describe(run, name="n", fingerprint="f" * 64, rounds=5)
    with pytest.raises(StateMismatch, match="begun with the fingerprint ffffffffffff"):
        store.describe(run, name="n", fingerprint="e" * 64, rounds=3)
    assert store.find(run)["rounds"] == 5


def test_a_full_disk_leaves_the_last_round(store: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    run, state = begun(store)
    state.commit(checkpoint(run, 1, SMALL), {"round": 0}, best=False)

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(StorageFull, match="No space left.*free space"):
            state.commit(checkpoint(run, 2, SMALL), {"round": 1}, best=False)
    last = state.load()
    assert last is not None and last.round == 1 and len(state.records()) == 1
    assert len(list((store.folder / "blobs" / run).iterdir())) == 1, "nothing half-written is left"


def test_a_full_database_leaves_the_last_round(store: SqlStore) -> None:
    run, state = begun(store)
    state.commit(checkpoint(run, 1), {"round": 0}, best=False)
    with store._begin() as connection:
        pages = connection.execute(sql.text("PRAGMA page_count")).scalar()
        connection.execute(sql.text(f"PRAGMA max_page_count={pages}"))

    def fill() -> None:
        for round in range(1, 50):
            state.commit(checkpoint(run, round + 1, 100_000), {"round": round}, best=False)

    with pytest.raises(StorageFull, match="full"):
        fill()
    last = state.load()
    assert last is not None and last.round == len(state.records())


def test_an_old_schema_is_migrated_step_by_step_and_a_newer_one_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SqlStore(tmp_path / "state")
    run, state = begun(store)
    state.commit(checkpoint(run, 1), {"round": 0}, best=False)
    store.close()

    def second(connection: sql.Connection) -> None:
        connection.execute(sql.text("ALTER TABLE members ADD COLUMN note TEXT"))

    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, second))
    store = SqlStore(tmp_path / "state")
    kept = store.run(run).load()
    assert kept is not None and kept.round == 1
    store.close()
    with sqlite3.connect(tmp_path / "state" / "hansa.db") as raw:
        assert raw.execute("SELECT version FROM schema_version").fetchall() == [(len(schema.MIGRATIONS),)]
        assert "note" in [row[1] for row in raw.execute("PRAGMA table_info(members)")]
    raw.close()
    monkeypatch.undo()
    with pytest.raises(StateMismatch, match="newer Hansa"):
        SqlStore(tmp_path / "state")


def test_commits_reach_the_disk(store: SqlStore) -> None:
    with store._begin() as connection:
        assert connection.execute(sql.text("PRAGMA synchronous")).scalar() == 2
        assert connection.execute(sql.text("PRAGMA journal_mode")).scalar() == "wal"


def test_blobs_of_an_unknown_kind_are_refused_and_the_folder_let_go(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"blobs at nope://x cannot be kept \(.*\): give a URL that fsspec knows"):
        SqlStore(tmp_path / "state", blobs="nope://user:word@x")
    SqlStore(tmp_path / "state").close()


def test_checkpoints_may_lie_behind_a_url(tmp_path: Path) -> None:
    store = SqlStore(tmp_path / "state", blobs=f"file://{tmp_path}/elsewhere")
    run, state = begun(store)
    state.commit(checkpoint(run, 1, SMALL), {"round": 0}, best=True)
    state.commit(checkpoint(run, 2, SMALL), {"round": 1}, best=False)
    state.commit(checkpoint(run, 3, SMALL), {"round": 2}, best=False)
    last, best = state.load(), state.best()
    assert last is not None and best is not None and (last.round, best.round) == (3, 1)
    assert len(list((tmp_path / "elsewhere" / run).iterdir())) == 2
    for path in (tmp_path / "elsewhere" / run).iterdir():
        path.unlink()
    with pytest.raises(CorruptFile, match="backup"):
        state.load()
    store.close()


def test_members_are_kept_with_their_times(store: SqlStore) -> None:
    store.seen({"w1": "worker", "alice": "submitter"})
    store.seen({"w1": "worker"})
    alice, w1 = store.members()
    assert (alice["name"], w1["name"]) == ("alice", "w1")
    assert w1["last_seen"] >= w1["first_seen"] > 0


def test_a_database_url_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="URL"):
        SqlStore(tmp_path / "state", database="no url at all")
