"""The tables of a server's state, and how those of an older Hansa become today's."""

from pathlib import Path

import sqlalchemy as sql

from hansa.core.errors import StateMismatch
from hansa.runtimes.budget import EVERYONE

_meta = sql.MetaData()
VERSION = sql.Table("schema_version", _meta, sql.Column("version", sql.Integer, nullable=False))
RUNS = sql.Table(
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
CHECKPOINTS = sql.Table(
    "checkpoints", _meta,
    sql.Column("run", sql.String(32), primary_key=True),
    sql.Column("which", sql.String(8), primary_key=True),  # last or best
    sql.Column("round", sql.Integer, nullable=False),
    sql.Column("data", sql.LargeBinary),
    sql.Column("blob", sql.Text),
)  # fmt: skip
CHARGES = sql.Table(
    "charges", _meta,
    sql.Column("id", sql.Integer, primary_key=True, autoincrement=True),
    sql.Column("run", sql.String(32), nullable=False, index=True),
    sql.Column("round", sql.Integer, nullable=False),
    sql.Column("attempt", sql.Integer, nullable=False),
    sql.Column("survivors", sql.Text, nullable=False),
    sql.Column("events", sql.Text, nullable=False),
)  # fmt: skip
RECORDS = sql.Table(
    "records", _meta,
    sql.Column("run", sql.String(32), primary_key=True),
    sql.Column("round", sql.Integer, primary_key=True, autoincrement=False),
    sql.Column("record", sql.Text, nullable=False),
)  # fmt: skip
MEMBERS = sql.Table(
    "members", _meta,
    sql.Column("name", sql.String(64), primary_key=True),
    sql.Column("role", sql.String(16), nullable=False),
    sql.Column("first_seen", sql.Float, nullable=False),
    sql.Column("last_seen", sql.Float, nullable=False),
)  # fmt: skip

BUDGETS = sql.Table(
    "budgets", _meta,
    sql.Column("population", sql.String(64), primary_key=True),
    sql.Column("epsilon", sql.Float, nullable=False),
    sql.Column("delta", sql.Float, nullable=False),
)  # fmt: skip
PLANS = sql.Table(
    "plans", _meta,
    sql.Column("run", sql.String(32), primary_key=True),
    sql.Column("population", sql.String(64), nullable=False, index=True),
    sql.Column("rounds", sql.Integer, nullable=False),
    sql.Column("events", sql.Text, nullable=False),
)  # fmt: skip


def _first(connection: sql.Connection) -> None:
    _meta.create_all(connection, tables=[RUNS, CHECKPOINTS, CHARGES, RECORDS, MEMBERS])


def _second(connection: sql.Connection) -> None:
    _meta.create_all(connection, tables=[BUDGETS, PLANS])
    # Runs from before there were plans: what they were charged counts against the budget of everyone.
    charged = sql.select(CHARGES.c.run, sql.func.max(CHARGES.c.round).label("last"), CHARGES.c.events)
    runs = connection.execute(charged.group_by(CHARGES.c.run)).all()
    rows = [{"run": run.run, "population": EVERYONE, "rounds": run.last + 1, "events": run.events} for run in runs]
    if rows:
        connection.execute(PLANS.insert(), rows)


# One step for each version of the schema, in order, never changed once released: step i leads from version i to i + 1.
MIGRATIONS = (_first, _second)


def migrate(connection: sql.Connection, folder: Path, beside: bool) -> None:
    """Makes the tables, or those of an older Hansa today's; `beside` a server it changes nothing.

    Raises:
      StateMismatch: a newer Hansa wrote the folder; or an older one did, and its server has to convert it.
    """
    _meta.create_all(connection, tables=[VERSION])
    version = connection.execute(sql.select(VERSION.c.version)).scalar()
    if version is None:
        version = 0
        connection.execute(VERSION.insert().values(version=0))
    if version > len(MIGRATIONS):
        raise StateMismatch(
            f"{folder} was written by a newer Hansa (schema {version}, this one knows {len(MIGRATIONS)}): "
            "install that one."
        )
    if beside and version < len(MIGRATIONS):
        raise StateMismatch(f"{folder} was written by an older Hansa: start its server once, to convert it.")
    for step in MIGRATIONS[version:]:
        step(connection)
    connection.execute(VERSION.update().values(version=len(MIGRATIONS)))
