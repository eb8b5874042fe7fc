"""Where a server's state is durable: one SQL database for all runs, and a place for large checkpoints.

    state/                       one server at a time (`lock`)
      hansa.db                   SQLite (WAL, synchronous=FULL), unless another database is given by URL
      blobs/RUN/ROUND-….ckpt     checkpoints over 1 MB, unless another place is given as an fsspec URL
      bundles/HASH.hansa         the signed jobs
      logs/RUN.log               what the run's log says
      said/RUN.once              what the server said once in secret rounds
      spool/                     uploads of the current round, sealed; emptied at start

A commit is one transaction: it is there whole after it returned, or not at all. A small checkpoint lies in the
database, so that a round costs one fsync; a large one is a file, on disk before the transaction that names it.
"""

import json
import os
import secrets
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sql

from hansa.core.checkpoint import Buffer, Checkpoint
from hansa.core.errors import ConfigError, CorruptFile, MissingExtra, NotFound, StateMismatch
from hansa.core.job import Job
from hansa.core.ledger import Entry, Event
from hansa.core.runtime import Store
from hansa.runtimes.blobs import Blobs, full_disk, write_durably
from hansa.runtimes.budget import EVERYONE, Budget, admit
from hansa.runtimes.failpoint import failpoint
from hansa.runtimes.folder_lock import lock_folder
from hansa.runtimes.schema import BUDGETS, CHARGES, CHECKPOINTS, MEMBERS, PLANS, RECORDS, RUNS, migrate

SMALL = 1 << 20  # checkpoints up to this size lie in the database
STATES = ("submitted", "running", "stopped", "failed", "done")

# Made once: to build a statement costs as much as to execute it, and these run in every round.
_RECORD = RECORDS.insert()
_REPLACE = (
    CHECKPOINTS.update()
    .where((CHECKPOINTS.c.run == sql.bindparam("mine")) & (CHECKPOINTS.c.which == sql.bindparam("place")))
    .values(round=sql.bindparam("round"), data=sql.bindparam("data"), blob=sql.bindparam("blob"))
)


class SqlStore:
    """A server's state.

    Args:
      folder: made if it is missing; its parent must be there.
      database: an SQLAlchemy URL, as `postgresql+psycopg://user@host/name`; None for SQLite in the folder.
      blobs: an fsspec URL or a path for large checkpoints; None for the folder.
      beside: opens a folder that a server may be using, to read, and to set budgets; it must be there.

    Raises:
      StateMismatch: another server uses the folder, or a newer Hansa wrote it.
      ConfigError: the folder or the database cannot be used.
    """

    def __init__(
        self, folder: str | os.PathLike[str], *, database: str | None = None, blobs: str | None = None,
        beside: bool = False,
    ) -> None:  # fmt: skip
        self.folder = Path(folder)
        if beside and database is None and not (self.folder / "hansa.db").exists():
            raise NotFound(f"{self.folder} holds no state: give the folder of a server or a simulation.")
        self._lock = None if beside else self._taken()
        self._turn = threading.RLock()  # SQLite has one writer: our threads take turns instead of being refused
        try:
            self._blobs = Blobs(blobs or str(self.folder / "blobs"))
            self._engine = _engine(database or f"sqlite:///{self.folder.absolute() / 'hansa.db'}")
            with self._begin() as connection:
                migrate(connection, self.folder, beside)
        except BaseException:
            self.close()
            raise

    def _taken(self) -> Any:
        """Makes the folder, and keeps other servers out of it."""
        try:
            self.folder.mkdir(exist_ok=True, mode=0o700)
            for name in ("bundles", "logs", "said", "spool"):
                (self.folder / name).mkdir(exist_ok=True, mode=0o700)
            lock = lock_folder(self.folder, "server", "--state")
        except OSError as error:
            raise ConfigError(
                f"state folder {self.folder} cannot be used ({error.strerror}): choose another with --state."
            ) from None
        for left in (self.folder / "spool").iterdir():
            left.unlink()
        return lock

    def close(self) -> None:
        """Lets another server have the folder."""
        if hasattr(self, "_engine"):
            self._engine.dispose()
        if self._lock is not None:
            self._lock.close()

    # -- runs

    def add_run(
        self, *, name: str, bundle: str, submitter: str, workers: int = 0, fingerprint: str = "", rounds: int = 0
    ) -> str:
        """A new run in state `submitted`, with a secret of its own; its id."""
        run = secrets.token_hex(6)
        with self._begin() as connection:
            connection.execute(RUNS.insert().values(
                id=run, name=name, bundle=bundle, fingerprint=fingerprint, submitter=submitter, state="submitted",
                reason="", created=time.time(), workers=workers, rounds=rounds, secret=os.urandom(32),
            ))  # fmt: skip
        return run

    def runs(self) -> list[dict[str, Any]]:
        """All runs, oldest first, without their secrets."""
        with self._begin() as connection:
            found = connection.execute(sql.select(RUNS).order_by(RUNS.c.created)).mappings().all()
        return [{name: value for name, value in row.items() if name != "secret"} for row in found]

    def find(self, run: str) -> dict[str, Any]:
        """The one run whose id begins with `run`; NotFound if there is none, or more than one."""
        found = [row for row in self.runs() if row["id"].startswith(run)] if run else []
        if len(found) != 1:
            there = ", ".join(row["id"] for row in self.runs()[-5:]) or "none"
            raise NotFound(f"run '{run}' names {len(found)} runs: the latest are {there}.")
        return found[0]

    def set_state(self, run: str, state: str, reason: str = "") -> None:
        """What has become of a run, in one word, and why."""
        assert state in STATES
        with self._begin() as connection:
            connection.execute(RUNS.update().where(RUNS.c.id == run).values(state=state, reason=reason))

    def describe(self, run: str, *, name: str, fingerprint: str, rounds: int) -> None:
        """What is known of a run once its job was loaded.

        Raises:
          StateMismatch: the run was begun by another job.
        """
        before = self.find(run)["fingerprint"]
        if before and before != fingerprint:
            raise StateMismatch(
                f"run {run} was begun with the fingerprint {before[:12]}, and its job has {fingerprint[:12]} now: "
                "install the version of Hansa it began with, or submit the job again."
            )
        with self._begin() as connection:
            values = {"name": name, "fingerprint": fingerprint, "rounds": rounds}
            connection.execute(RUNS.update().where(RUNS.c.id == run).values(**values))

    def run(self, run: str) -> "RunStore":
        """One run's state, as the round loop wants it."""
        return RunStore(self, self.find(run)["id"])

    # -- jobs

    def keep_bundle(self, name: str, content: bytes) -> Path:
        """Keeps a signed job under its hash."""
        path = self.folder / "bundles" / f"{name}.hansa"
        with full_disk(f"job {name[:12]}"):
            write_durably(path, [content])
        return path

    def bundle(self, name: str) -> Path:
        """Where a job lies."""
        path = self.folder / "bundles" / f"{name}.hansa"
        if not path.exists():
            raise CorruptFile(f"job {name[:12]} is not in {path.parent}: put its archive there again.")
        return path

    # -- members

    def seen(self, names: Mapping[str, str]) -> None:
        """Members (name to role) that are connected now."""
        now = time.time()
        with self._begin() as connection:
            for name, role in names.items():
                changed = connection.execute(
                    MEMBERS.update().where(MEMBERS.c.name == name).values(role=role, last_seen=now)
                )
                if not changed.rowcount:
                    connection.execute(MEMBERS.insert().values(name=name, role=role, first_seen=now, last_seen=now))

    def members(self) -> list[dict[str, Any]]:
        """Everybody who ever connected, by name."""
        with self._begin() as connection:
            return [dict(row) for row in connection.execute(sql.select(MEMBERS).order_by(MEMBERS.c.name)).mappings()]

    # -- budgets

    def set_budget(self, budget: Budget) -> None:
        """Gives a population a budget, in place of the one it had."""
        row = vars(budget)
        with self._begin() as connection:
            mine = BUDGETS.c.population == budget.population
            if not connection.execute(BUDGETS.update().where(mine).values(**row)).rowcount:
                connection.execute(BUDGETS.insert().values(**row))

    def budget(self, population: str = EVERYONE) -> Budget | None:
        """A population's budget, if it has one."""
        with self._begin() as connection:
            row = connection.execute(sql.select(BUDGETS).where(BUDGETS.c.population == population)).mappings().first()
        return None if row is None else Budget(**row)

    def plan(self, run: str, population: str, rounds: int, events: Sequence[Event]) -> None:
        """Keeps what each round of a run will release, and about whom."""
        text = json.dumps([vars(event) for event in events])
        with self._begin() as connection:
            connection.execute(PLANS.delete().where(PLANS.c.run == run))
            connection.execute(PLANS.insert().values(run=run, population=population, rounds=rounds, events=text))

    def plans(self, population: str | None = None) -> list[dict[str, Any]]:
        """The plans of all runs about a population (of every one, if None), in the order of the runs' creation."""
        query = sql.select(PLANS).join(RUNS, RUNS.c.id == PLANS.c.run).order_by(RUNS.c.created)
        if population is not None:
            query = query.where(PLANS.c.population == population)
        with self._begin() as connection:
            rows = connection.execute(query).mappings().all()
        return [{**row, "events": tuple(Event(**event) for event in json.loads(row["events"]))} for row in rows]

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keeps all other threads of this process out of the state."""
        with self._turn:
            yield

    # -- inside

    @contextmanager
    def _begin(self) -> Iterator[sql.Connection]:
        """One transaction."""
        with self._turn, full_disk("the state"), self._engine.begin() as connection:
            yield connection


class RunStore(Store):
    """One run's state: `SqlStore.run` makes it."""

    def __init__(self, whole: SqlStore, run: str) -> None:
        self._whole, self._run = whole, run
        # What this process has read or written is not read again: nobody else writes while it holds the folder.
        self._records: list[Mapping[str, Any]] | None = None
        self._entries: list[Entry] | None = None
        self._secret: bytes | None = None
        self._blobs: dict[str, str | None] | None = None

    def secret(self) -> bytes:
        """Drawn from the operating system when the run was submitted."""
        if self._secret is None:
            self._secret = self._read_secret()
        return self._secret

    def _read_secret(self) -> bytes:
        with self._whole._begin() as connection:
            return bytes(connection.execute(sql.select(RUNS.c.secret).where(RUNS.c.id == self._run)).scalar_one())

    def admit(self, job: Job, people: int, population: str = EVERYONE) -> None:
        """Lets the run begin or go on if its own budget, and its population's, allow: see `budget.admit`."""
        admit(self._whole, self._run, job, people, population)

    def load(self) -> Checkpoint | None:
        """The last committed checkpoint."""
        return self._checkpoint("last")

    def best(self) -> Checkpoint | None:
        """The best one."""
        return self._checkpoint("best")

    def begin(self, round: int, attempt: int, events: Sequence[Event]) -> None:
        """Notes that the conversation of an attempt goes beyond its first leg, and what it may release."""
        with self._whole._begin() as connection:
            connection.execute(CHARGES.delete().where(self._begun))
            connection.execute(CHARGES.insert().values(**self._charged(round, attempt, None, events)))

    def settle(self) -> None:
        """Charges the attempt that had begun when the last process ended, if it was not charged or followed by another.

        Its clients answered under its number, and will not do so again: it is void, and the next one has another.
        """
        with self._whole._begin() as connection:
            connection.execute(CHARGES.update().where(self._begun).values(survivors="[]"))

    def charge(self, round: int, attempt: int, survivors: Sequence[str], events: Sequence[Event]) -> None:
        """Appends to the ledger, before what it charges for is opened."""
        failpoint("before-charge")
        with self._whole._begin() as connection:
            connection.execute(CHARGES.delete().where(self._begun))
            connection.execute(CHARGES.insert().values(**self._charged(round, attempt, survivors, events)))
        if self._entries is not None:
            self._entries += [Entry(round, attempt, event) for event in events]
        failpoint("after-charge")

    @property
    def _begun(self) -> sql.ColumnElement[bool]:
        """The row of an attempt that began and was not charged."""
        return (CHARGES.c.run == self._run) & (CHARGES.c.survivors == "null")

    def _charged(
        self, round: int, attempt: int, survivors: Sequence[str] | None, events: Sequence[Event]
    ) -> dict[str, Any]:
        return {
            "run": self._run, "round": round, "attempt": attempt,
            "survivors": json.dumps(survivors if survivors is None else list(survivors)),
            "events": json.dumps([vars(event) for event in events]),
        }  # fmt: skip

    def charges(self) -> Sequence[Entry]:
        """The ledger."""
        if self._entries is None:
            self._entries = self._read_charges()
        return tuple(self._entries)

    def _read_charges(self) -> list[Entry]:
        with self._whole._begin() as connection:
            found = connection.execute(
                sql.select(CHARGES).where((CHARGES.c.run == self._run) & ~self._begun).order_by(CHARGES.c.id)
            ).all()
        return [Entry(row.round, row.attempt, Event(**event)) for row in found for event in json.loads(row.events)]

    def commit(self, checkpoint: Checkpoint, record: Mapping[str, Any], best: bool) -> None:
        """Everything of one round, or nothing of it.

        Raises:
          StorageFull: there is no space; the round before is still there.
        """
        self.commit_rounds(checkpoint, [record], best)

    def commit_rounds(self, checkpoint: Checkpoint, records: Sequence[Mapping[str, Any]], best: bool) -> None:
        """The state after the last of these rounds and the records of all of them, or nothing; else as `commit`."""
        failpoint("before-commit")
        places, stored = ("last", "best") if best else ("last",), self._stored(checkpoint)
        failpoint("mid-commit")
        try:
            with self._whole._begin() as connection:
                before = self._blobs_of(connection)
                for which in places:
                    if which in before:
                        connection.execute(_REPLACE, {"mine": self._run, "place": which, **stored})
                    else:
                        connection.execute(CHECKPOINTS.insert(), {"run": self._run, "which": which, **stored})
                rows = [{"run": self._run, "round": one["round"], "record": json.dumps(one)} for one in records]
                connection.execute(_RECORD, rows)
        except BaseException:
            if stored["blob"] is not None:
                self._whole._blobs.delete(stored["blob"])
            raise
        self._blobs = before | dict.fromkeys(places, stored["blob"])
        if self._records is not None:
            self._records.extend(records)
        failpoint("after-commit")
        for blob in set(before.values()) - set(self._blobs.values()):
            if blob is not None:
                self._whole._blobs.delete(blob)

    def _stored(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """The columns of a checkpoint, which is written already where it is too large for them."""
        pieces = checkpoint.buffers()
        if sum(map(len, pieces)) <= SMALL:
            return {"round": checkpoint.round, "data": b"".join(pieces), "blob": None}
        blob = f"{self._run}/{checkpoint.round}-{secrets.token_hex(4)}.ckpt"
        self._whole._blobs.write(blob, pieces)
        return {"round": checkpoint.round, "data": None, "blob": blob}

    def _blobs_of(self, connection: sql.Connection) -> dict[str, str | None]:
        """Which blob has the last checkpoint and which the best; None for one that lies in the database."""
        if self._blobs is None:
            query = sql.select(CHECKPOINTS.c.which, CHECKPOINTS.c.blob).where(CHECKPOINTS.c.run == self._run)
            self._blobs = {row.which: row.blob for row in connection.execute(query)}
        return self._blobs

    def records(self) -> Sequence[Mapping[str, Any]]:
        """The records of all committed rounds, in order."""
        if self._records is None:
            query = sql.select(RECORDS.c.record).where(RECORDS.c.run == self._run).order_by(RECORDS.c.round)
            with self._whole._begin() as connection:
                self._records = [json.loads(text) for text in connection.execute(query).scalars()]
        return list(self._records)

    def latest(self) -> tuple[int, Mapping[str, Any] | None]:
        """How many rounds are committed, and the record of the last, read afresh."""
        mine = RECORDS.c.run == self._run
        with self._whole._begin() as connection:
            count = connection.execute(sql.select(sql.func.count()).select_from(RECORDS).where(mine)).scalar_one()
            query = sql.select(RECORDS.c.record).where(mine).order_by(RECORDS.c.round.desc()).limit(1)
            text = connection.execute(query).scalar()
        return count, None if text is None else json.loads(text)

    def records_from(self, start: int) -> list[Mapping[str, Any]]:
        """The records from round `start` on, read afresh."""
        mine = (RECORDS.c.run == self._run) & (RECORDS.c.round >= start)
        with self._whole._begin() as connection:
            found = connection.execute(sql.select(RECORDS.c.record).where(mine).order_by(RECORDS.c.round)).scalars()
            return [json.loads(text) for text in found]

    def raw(self, best: bool = False) -> Buffer:
        """The last or best checkpoint as the bytes of its file; NotFound if there is none."""
        found = self._bytes("best" if best else "last")
        if found is None:
            what = "no best model: name its metric, as in Evaluation(best='loss')" if best else "no committed round yet"
            raise NotFound(f"run {self._run} has {what}.")
        return found

    def _checkpoint(self, which: str) -> Checkpoint | None:
        found = self._bytes(which)
        return None if found is None else Checkpoint.load(found)

    def _bytes(self, which: str) -> Buffer | None:
        mine = (CHECKPOINTS.c.run == self._run) & (CHECKPOINTS.c.which == which)
        with self._whole._begin() as connection:
            row = connection.execute(sql.select(CHECKPOINTS.c.data, CHECKPOINTS.c.blob).where(mine)).first()
        if row is None:
            return None
        return bytes(row.data) if row.data is not None else self._whole._blobs.read(row.blob)


def _engine(url: str) -> sql.Engine:
    try:
        parsed = sql.make_url(url)
        if parsed.get_backend_name() != "sqlite":
            return sql.create_engine(parsed, pool_pre_ping=True)
        engine = sql.create_engine(parsed, connect_args={"check_same_thread": False, "timeout": 30})
    except sql.exc.ArgumentError:
        raise ConfigError(
            "the database's URL cannot be read: write it as postgresql+psycopg://user@host/name."
        ) from None
    except ImportError as error:
        raise MissingExtra("this database", str(error.name), "store") from None

    @sql.event.listens_for(engine, "connect")
    def configure(connection: Any, _: Any) -> None:
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=30000", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    return engine
