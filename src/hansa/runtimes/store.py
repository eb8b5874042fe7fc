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

import errno
import json
import os
import re
import secrets
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sql
from sqlalchemy.exc import DatabaseError, DBAPIError, OperationalError

from hansa.core.checkpoint import Buffer, Checkpoint
from hansa.core.errors import ConfigError, CorruptFile, MissingExtra, NotFound, StateMismatch, StorageFull
from hansa.core.job import Job
from hansa.core.ledger import Entry, Event
from hansa.core.runtime import Store
from hansa.runtimes.budget import EVERYONE, Budget, admit
from hansa.runtimes.failpoint import failpoint
from hansa.runtimes.folder_lock import lock_folder

SMALL = 1 << 20  # checkpoints up to this size lie in the database
STATES = ("submitted", "running", "stopped", "failed", "done")

_meta = sql.MetaData()
_version = sql.Table("schema_version", _meta, sql.Column("version", sql.Integer, nullable=False))
_runs = sql.Table(
    "runs", _meta,
    sql.Column("id", sql.String(32), primary_key=True),
    sql.Column("name", sql.Text, nullable=False),
    sql.Column("bundle", sql.String(64), nullable=False),
    sql.Column("fingerprint", sql.String(64), nullable=False),
    sql.Column("submitter", sql.Text, nullable=False),
    sql.Column("state", sql.String(16), nullable=False),
    sql.Column("reason", sql.Text, nullable=False),
    sql.Column("created", sql.Float, nullable=False),
    sql.Column("workers", sql.Integer, nullable=False),
    sql.Column("rounds", sql.Integer, nullable=False),
    sql.Column("secret", sql.LargeBinary, nullable=False),
)  # fmt: skip
_checkpoints = sql.Table(
    "checkpoints", _meta,
    sql.Column("run", sql.String(32), primary_key=True),
    sql.Column("which", sql.String(8), primary_key=True),  # last or best
    sql.Column("round", sql.Integer, nullable=False),
    sql.Column("data", sql.LargeBinary),
    sql.Column("blob", sql.Text),
)  # fmt: skip
_charges = sql.Table(
    "charges", _meta,
    sql.Column("id", sql.Integer, primary_key=True, autoincrement=True),
    sql.Column("run", sql.String(32), nullable=False, index=True),
    sql.Column("round", sql.Integer, nullable=False),
    sql.Column("attempt", sql.Integer, nullable=False),
    sql.Column("survivors", sql.Text, nullable=False),
    sql.Column("events", sql.Text, nullable=False),
)  # fmt: skip
_records = sql.Table(
    "records", _meta,
    sql.Column("run", sql.String(32), primary_key=True),
    sql.Column("round", sql.Integer, primary_key=True, autoincrement=False),
    sql.Column("record", sql.Text, nullable=False),
)  # fmt: skip
_members = sql.Table(
    "members", _meta,
    sql.Column("name", sql.String(64), primary_key=True),
    sql.Column("role", sql.String(16), nullable=False),
    sql.Column("first_seen", sql.Float, nullable=False),
    sql.Column("last_seen", sql.Float, nullable=False),
)  # fmt: skip

_budgets = sql.Table(
    "budgets", _meta,
    sql.Column("population", sql.String(64), primary_key=True),
    sql.Column("epsilon", sql.Float, nullable=False),
    sql.Column("delta", sql.Float, nullable=False),
)  # fmt: skip
_plans = sql.Table(
    "plans", _meta,
    sql.Column("run", sql.String(32), primary_key=True),
    sql.Column("population", sql.String(64), nullable=False, index=True),
    sql.Column("rounds", sql.Integer, nullable=False),
    sql.Column("events", sql.Text, nullable=False),
)  # fmt: skip


# Made once: to build a statement costs as much as to execute it, and these run in every round.
_RECORD = _records.insert()
_REPLACE = (
    _checkpoints.update()
    .where((_checkpoints.c.run == sql.bindparam("mine")) & (_checkpoints.c.which == sql.bindparam("place")))
    .values(round=sql.bindparam("round"), data=sql.bindparam("data"), blob=sql.bindparam("blob"))
)


def _first(connection: sql.Connection) -> None:
    _meta.create_all(connection, tables=[_runs, _checkpoints, _charges, _records, _members])


def _second(connection: sql.Connection) -> None:
    _meta.create_all(connection, tables=[_budgets, _plans])
    # Runs from before there were plans: what they were charged counts against the budget of everyone.
    charged = sql.select(_charges.c.run, sql.func.max(_charges.c.round).label("last"), _charges.c.events)
    runs = connection.execute(charged.group_by(_charges.c.run)).all()
    rows = [{"run": run.run, "population": EVERYONE, "rounds": run.last + 1, "events": run.events} for run in runs]
    if rows:
        connection.execute(_plans.insert(), rows)


# One step for each version of the schema, in order, never changed once released: step i leads from version i to i + 1.
MIGRATIONS = (_first, _second)


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
        self._blobs = _Blobs(blobs or str(self.folder / "blobs"))
        self._turn = threading.RLock()  # SQLite has one writer: our threads take turns instead of being refused
        try:
            self._engine = _engine(database or f"sqlite:///{self.folder.absolute() / 'hansa.db'}")
            self._migrate(beside)
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
            connection.execute(_runs.insert().values(
                id=run, name=name, bundle=bundle, fingerprint=fingerprint, submitter=submitter, state="submitted",
                reason="", created=time.time(), workers=workers, rounds=rounds, secret=os.urandom(32),
            ))  # fmt: skip
        return run

    def runs(self) -> list[dict[str, Any]]:
        """All runs, oldest first, without their secrets."""
        with self._begin() as connection:
            found = connection.execute(sql.select(_runs).order_by(_runs.c.created)).mappings().all()
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
            connection.execute(_runs.update().where(_runs.c.id == run).values(state=state, reason=reason))

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
            connection.execute(_runs.update().where(_runs.c.id == run).values(**values))

    def run(self, run: str) -> "RunStore":
        """One run's state, as the round loop wants it."""
        return RunStore(self, self.find(run)["id"])

    # -- jobs

    def keep_bundle(self, name: str, content: bytes) -> Path:
        """Keeps a signed job under its hash."""
        path = self.folder / "bundles" / f"{name}.hansa"
        with _full_disk(f"job {name[:12]}"):
            _write(path, [content])
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
                    _members.update().where(_members.c.name == name).values(role=role, last_seen=now)
                )
                if not changed.rowcount:
                    connection.execute(_members.insert().values(name=name, role=role, first_seen=now, last_seen=now))

    def members(self) -> list[dict[str, Any]]:
        """Everybody who ever connected, by name."""
        with self._begin() as connection:
            return [dict(row) for row in connection.execute(sql.select(_members).order_by(_members.c.name)).mappings()]

    # -- budgets

    def set_budget(self, budget: Budget) -> None:
        """Gives a population a budget, in place of the one it had."""
        row = vars(budget)
        with self._begin() as connection:
            mine = _budgets.c.population == budget.population
            if not connection.execute(_budgets.update().where(mine).values(**row)).rowcount:
                connection.execute(_budgets.insert().values(**row))

    def budget(self, population: str = EVERYONE) -> Budget | None:
        """A population's budget, if it has one."""
        with self._begin() as connection:
            row = connection.execute(sql.select(_budgets).where(_budgets.c.population == population)).mappings().first()
        return None if row is None else Budget(**row)

    def plan(self, run: str, population: str, rounds: int, events: Sequence[Event]) -> None:
        """Keeps what each round of a run will release, and about whom."""
        text = json.dumps([vars(event) for event in events])
        with self._begin() as connection:
            connection.execute(_plans.delete().where(_plans.c.run == run))
            connection.execute(_plans.insert().values(run=run, population=population, rounds=rounds, events=text))

    def plans(self, population: str | None = None) -> list[dict[str, Any]]:
        """The plans of all runs about a population (of every one, if None), in the order of the runs' creation."""
        query = sql.select(_plans).join(_runs, _runs.c.id == _plans.c.run).order_by(_runs.c.created)
        if population is not None:
            query = query.where(_plans.c.population == population)
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
        with self._turn, _full_disk("the state"), self._engine.begin() as connection:
            yield connection

    def _migrate(self, beside: bool) -> None:
        with self._begin() as connection:
            _meta.create_all(connection, tables=[_version])
            version = connection.execute(sql.select(_version.c.version)).scalar()
            if version is None:
                version = 0
                connection.execute(_version.insert().values(version=0))
            if version > len(MIGRATIONS):
                raise StateMismatch(
                    f"{self.folder} was written by a newer Hansa (schema {version}, this one knows {len(MIGRATIONS)}): "
                    "install that one."
                )
            if beside and version < len(MIGRATIONS):
                raise StateMismatch(
                    f"{self.folder} was written by an older Hansa: start its server once, to convert it."
                )
            for step in MIGRATIONS[version:]:
                step(connection)
            connection.execute(_version.update().values(version=len(MIGRATIONS)))


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
            return bytes(connection.execute(sql.select(_runs.c.secret).where(_runs.c.id == self._run)).scalar_one())

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
            connection.execute(_charges.delete().where(self._begun))
            connection.execute(_charges.insert().values(**self._charged(round, attempt, None, events)))

    def settle(self) -> None:
        """Charges the attempt that had begun when the last process ended, if it was not charged or followed by another.

        Its clients answered under its number, and will not do so again: it is void, and the next one has another.
        """
        with self._whole._begin() as connection:
            connection.execute(_charges.update().where(self._begun).values(survivors="[]"))

    def charge(self, round: int, attempt: int, survivors: Sequence[str], events: Sequence[Event]) -> None:
        """Appends to the ledger, before what it charges for is opened."""
        failpoint("before-charge")
        with self._whole._begin() as connection:
            connection.execute(_charges.delete().where(self._begun))
            connection.execute(_charges.insert().values(**self._charged(round, attempt, survivors, events)))
        if self._entries is not None:
            self._entries += [Entry(round, attempt, event) for event in events]
        failpoint("after-charge")

    @property
    def _begun(self) -> sql.ColumnElement[bool]:
        """The row of an attempt that began and was not charged."""
        return (_charges.c.run == self._run) & (_charges.c.survivors == "null")

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
                sql.select(_charges).where((_charges.c.run == self._run) & ~self._begun).order_by(_charges.c.id)
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
        pieces = checkpoint.buffers()
        values: dict[str, Any] = {"round": checkpoint.round, "data": None, "blob": None}
        if sum(map(len, pieces)) <= SMALL:
            values["data"] = b"".join(pieces)
        else:
            values["blob"] = f"{self._run}/{checkpoint.round}-{secrets.token_hex(4)}.ckpt"
            self._whole._blobs.write(values["blob"], pieces)
        failpoint("mid-commit")
        try:
            with self._whole._begin() as connection:
                if self._blobs is None:
                    query = sql.select(_checkpoints.c.which, _checkpoints.c.blob).where(_checkpoints.c.run == self._run)
                    self._blobs = {row.which: row.blob for row in connection.execute(query)}
                after = {**self._blobs, **dict.fromkeys(("last", "best") if best else ("last",), values["blob"])}
                for which in ("last", "best") if best else ("last",):
                    if which in self._blobs:
                        connection.execute(_REPLACE, {"mine": self._run, "place": which, **values})
                    else:
                        connection.execute(_checkpoints.insert(), {"run": self._run, "which": which, **values})
                rows = [{"run": self._run, "round": one["round"], "record": json.dumps(one)} for one in records]
                connection.execute(_RECORD, rows)
        except BaseException:
            if values["blob"]:
                self._whole._blobs.delete(values["blob"])
            raise
        before, self._blobs = set(self._blobs.values()), after
        if self._records is not None:
            self._records.extend(records)
        failpoint("after-commit")
        for blob in before - set(after.values()):
            if blob is not None:
                self._whole._blobs.delete(blob)

    def records(self) -> Sequence[Mapping[str, Any]]:
        """The records of all committed rounds, in order."""
        if self._records is None:
            query = sql.select(_records.c.record).where(_records.c.run == self._run).order_by(_records.c.round)
            with self._whole._begin() as connection:
                self._records = [json.loads(text) for text in connection.execute(query).scalars()]
        return list(self._records)

    def latest(self) -> tuple[int, Mapping[str, Any] | None]:
        """How many rounds are committed, and the record of the last, read afresh."""
        mine = _records.c.run == self._run
        with self._whole._begin() as connection:
            count = connection.execute(sql.select(sql.func.count()).select_from(_records).where(mine)).scalar_one()
            query = sql.select(_records.c.record).where(mine).order_by(_records.c.round.desc()).limit(1)
            text = connection.execute(query).scalar()
        return count, None if text is None else json.loads(text)

    def records_from(self, start: int) -> list[Mapping[str, Any]]:
        """The records from round `start` on, read afresh."""
        mine = (_records.c.run == self._run) & (_records.c.round >= start)
        with self._whole._begin() as connection:
            found = connection.execute(sql.select(_records.c.record).where(mine).order_by(_records.c.round)).scalars()
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
        mine = (_checkpoints.c.run == self._run) & (_checkpoints.c.which == which)
        with self._whole._begin() as connection:
            row = connection.execute(sql.select(_checkpoints.c.data, _checkpoints.c.blob).where(mine)).first()
        if row is None:
            return None
        return bytes(row.data) if row.data is not None else self._whole._blobs.read(row.blob)


class _Blobs:
    """Files by name in a folder, or in what an fsspec URL names."""

    def __init__(self, place: str) -> None:
        self._folder: Path | None = None
        if "://" not in place:
            self._folder = Path(place)
            self._folder.mkdir(exist_ok=True, mode=0o700)
            return
        try:
            import fsspec
        except ImportError:
            raise MissingExtra(f"blobs at {re.sub('//.*@', '//', place)}", "fsspec", "store") from None
        self._files, self._root = fsspec.core.url_to_fs(place)

    def write(self, name: str, pieces: Sequence[Buffer]) -> None:
        with _full_disk(f"checkpoint {name}"):
            if self._folder is not None:
                (self._folder / name).parent.mkdir(exist_ok=True, mode=0o700)
                _write(self._folder / name, pieces)
                return
            self._files.makedirs(f"{self._root}/{name.rpartition('/')[0]}", exist_ok=True)
            with self._files.open(f"{self._root}/{name}", "wb") as file:
                for piece in pieces:
                    file.write(piece)

    def read(self, name: str) -> bytes:
        try:
            if self._folder is not None:
                return (self._folder / name).read_bytes()
            return bytes(self._files.cat_file(f"{self._root}/{name}"))
        except OSError as error:
            raise CorruptFile(
                f"checkpoint {name} cannot be read ({error.strerror or error}): restore it from a backup."
            ) from None

    def delete(self, name: str) -> None:
        try:
            if self._folder is not None:
                (self._folder / name).unlink()
            else:
                self._files.rm_file(f"{self._root}/{name}")
        except OSError:
            pass  # it is not referred to any more: it costs space, no more


def _write(path: Path, pieces: Sequence[Buffer]) -> None:
    """Writes a file that is on disk, name and content, when this returns; a failure leaves nothing."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    file = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        try:
            for piece in pieces:
                view = memoryview(piece)
                while view:
                    view = view[os.write(file, view[: 8 << 20]) :]
            os.fsync(file)
        finally:
            os.close(file)
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def _full_disk(what: str) -> Iterator[None]:
    """Names a full disk, quota or limit as what it is."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise StorageFull(
            f"{what} cannot be written ({error.strerror}): free space and resume; what was committed is there."
        ) from None
    except (OperationalError, DatabaseError) as error:
        text = str(error.orig).lower() if isinstance(error, DBAPIError) else str(error).lower()
        if not any(sign in text for sign in ("full", "disk i/o", "no space", "quota")):
            raise
        raise StorageFull(
            f"{what} cannot be written (the database says: {error.orig}): free space and resume."
        ) from None


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
