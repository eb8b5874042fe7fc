"""`hansa psi`: what several owners share, from one command at each: rows, their number, a sum over them, or a look-up.

    --find rows         each owner's rows of the people whom all share, in one order
    --find unbalanced   a small table's rows that a large one, prepared once, has, too
    --find size         how many, and never which; with noise if that is asked for
    --find sum          the sum of one owner's column over those who are shared

What each party learns is said and has to be accepted. A run that was killed goes on when all start it again with the
same command: entries and finished buckets are kept beside the result, or beside the table where nothing but a number
comes out, until it is told.
"""

import hashlib
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from hansa.app.folder import check_file
from hansa.app.party import identity_of
from hansa.app.terminal import console, emit, hint, say, settings, size, span
from hansa.core.errors import ConfigError
from hansa.core.runtime import Mesh
from hansa.runtimes.mesh import Parties, TlsMesh
from hansa.vertical.psi import Audit, Keys, Prepared, cardinality, intersection_sum, look_up
from hansa.vertical.psi.files import CsvTable, write_aligned, write_rows
from hansa.vertical.psi.intersect import BUCKET_KEYS, CAP, coordinate, intersect
from hansa.vertical.psi.lookup import QUERIES
from hansa.vertical.psi.terms import Accept
from hansa.vertical.psi.totals import DELTA, LEAST

_SESSION = hashlib.sha256(b"hansa psi").digest()


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What is to be found, beside the keys; None where it was left to the default.

    Args:
      find: `rows`, `unbalanced`, `size` or `sum`.
      protocol, coordinator: of rows.
      learns: who learns the result; of rows all owners, else one.
      cap: the most keys that an owner enters; of `unbalanced`, the owner who learns.
      bucket_keys: about how many keys are in memory; of `unbalanced`, while the large set is prepared.
      prepared: of `unbalanced`: the folder of the large set, or of its tags at the owner of the small one.
      epsilon, delta: noise on the size.
      values: the column to sum, at its owner.
      least: of fewer shared keys there is no sum.
    """

    find: str = "rows"
    protocol: str | None = None
    coordinator: str | None = None
    learns: Sequence[str] | None = None
    cap: int | None = None
    bucket_keys: int | None = None
    prepared: Path | None = None
    epsilon: float | None = None
    delta: float | None = None
    values: str | None = None
    least: int | None = None

    def __post_init__(self) -> None:
        if self.find not in _OPTIONS:
            raise ConfigError(f"--find {self.find} does not exist: choose {', '.join(_OPTIONS)}.")
        for name, value in asdict(self).items():
            owners = [find for find, options in _OPTIONS.items() if name in options]
            if value is not None and owners and self.find not in owners:
                option = name.replace("_", "-")
                raise ConfigError(f"--{option} belongs to --find {owners[0]}, not to --find {self.find}: leave it out.")
        if self.find != "rows" and len(self.learns or ()) != 1:
            raise ConfigError(f"--find {self.find} shows its result to one owner: --learns NAME, the same at both.")
        if self.cap is not None and self.cap < 1:
            raise ConfigError(f"--cap {self.cap}: allow at least one key.")
        if self.delta is not None and self.epsilon is None:
            raise ConfigError("--delta goes with --epsilon: give both, or neither.")

    @property
    def learner(self) -> str:
        """The one owner who learns the result."""
        (name,) = self.learns or ()
        return name


_OPTIONS = {
    "rows": ("protocol", "coordinator", "bucket_keys"),
    "unbalanced": ("prepared", "bucket_keys"),
    "size": ("epsilon", "delta", "bucket_keys"),
    "sum": ("values", "least", "bucket_keys"),
}


@dataclass(frozen=True, kw_only=True)
class _Side:
    """What every kind of run needs of one party."""

    wish: Wish
    keys: Keys
    data: Path | None
    out: Path | None
    accept: Accept
    audit: Audit
    workers: int | None
    link: Callable[[], TlsMesh]

    def table(self) -> CsvTable:
        if self.data is None:
            raise ConfigError("an owner gives its table: --data FILE.CSV.")
        return CsvTable.open(self.data)

    def result(self) -> Path:
        if self.out is None:
            raise ConfigError("say where the shared rows go: --out FILE.CSV.")
        check_file(self.out, "--out")
        return self.out

    def kept(self) -> Path:
        """Where a run that has no file as its result is kept."""
        table = self.table().path.absolute()
        return table.with_name(f".{table.name}.psi-{self.wish.find}")

    @property
    def bucket_keys(self) -> int:
        return BUCKET_KEYS if self.wish.bucket_keys is None else self.wish.bucket_keys

    @property
    def cap(self) -> int:
        return CAP if self.wish.cap is None else self.wish.cap


def psi(
    wish: Wish, *, me: str | None, parties: Path, identity: Path | None, data: Path | None, key: Sequence[str],
    out: Path | None, normalise: Sequence[str], duplicates: str, yes: bool, audit: Path, runs: int,
    workers: int | None, wait_s: float,
) -> None:  # fmt: skip
    """Runs one party's side: an owner's, or the coordinator's."""
    keys, (file, name), known = Keys(key, normalise, duplicates), identity_of(me, identity), Parties.read(parties)
    side = _Side(
        wish=wish, keys=keys, data=data, out=out, accept=yes or asked, audit=Audit(audit, runs=runs), workers=workers,
        link=partial(TlsMesh, file, known, _SESSION, wait_s=wait_s),
    )  # fmt: skip
    if wish.find == "unbalanced":
        _unbalanced(side, name)
    elif wish.find == "size":
        _size(side)
    elif wish.find == "sum":
        _sum(side)
    elif wish.coordinator == name:
        _coordinate(side)
    else:
        _rows(side)


def _coordinate(side: _Side) -> None:
    wish = side.wish
    with side.link() as mesh:
        coordinate(mesh, side.keys, accept=side.accept, cap=side.cap, bucket_keys=side.bucket_keys, **_of_rows(wish))
    say("done: the owners have their result")


def _rows(side: _Side) -> None:
    table, out, began = side.table(), side.result(), time.monotonic()
    with side.link() as mesh, _Bar() as bar:
        found = intersect(
            mesh, lambda: table.keys(side.keys.columns), side.keys, coordinator=side.wish.coordinator or "",
            cap=side.cap, accept=side.accept, audit=side.audit, workers=side.workers, progress=bar.told,
            folder=_beside(out), bucket_keys=side.bucket_keys, **_of_rows(side.wish),
        )  # fmt: skip
        cost = _cost(mesh, began)
    if found is None:
        _nothing(mesh.me, cost)
        return
    write_aligned(table, found, out, owner=mesh.me, key=side.keys.columns)
    found.forget()
    emit("psi", me=mesh.me, rows=len(found), alignment=found.alignment.hex(), out=str(out), **cost)
    say(f"{len(found):,} rows are shared: {out}, alignment {found.alignment.hex()[:16]}…, the same at every owner")
    _said(cost)


def _of_rows(wish: Wish) -> dict[str, Any]:
    return {"learns": wish.learns, **({} if wish.protocol is None else {"protocol": wish.protocol})}


def _beside(out: Path) -> Path:
    """Where a run is kept until its result is written."""
    return out.absolute().with_name(f".{out.name}.psi")


def _unbalanced(side: _Side, name: str) -> None:
    """The owner who learns looks its keys up in the other's prepared set."""
    cap = QUERIES if side.wish.cap is None else side.wish.cap
    if name == side.wish.learner:
        table, out, began = side.table(), side.result(), time.monotonic()
        with side.link() as mesh, _Bar() as bar:
            rows = look_up(
                mesh, lambda: table.keys(side.keys.columns), side.keys, cap=cap, accept=side.accept,
                kept=side.wish.prepared, folder=_beside(out), audit=side.audit, progress=bar.told,
            )  # fmt: skip
            cost = _cost(mesh, began)
        write_rows(table, rows, out)
        emit("psi", me=name, rows=len(rows), out=str(out), **cost)
        say(f"{len(rows):,} of your rows are there, too: {out}")
        _said(cost)
        return
    folder = side.wish.prepared
    if folder is None:
        raise ConfigError("say where the large set is prepared, and stays: --prepared FOLDER.")
    if side.data is not None:
        large = side.table()
        with _Bar() as bar:
            Prepared.make(
                lambda: large.keys(side.keys.columns), side.keys, folder, bucket_keys=side.bucket_keys,
                workers=side.workers, progress=bar.told,
            )  # fmt: skip
    made, began = Prepared.open(folder), time.monotonic()
    with side.link() as mesh:
        made.answer(mesh, cap=cap, accept=side.accept, audit=side.audit)
        cost = _cost(mesh, began)
    say(f"{made.keys:,} keys are prepared in {folder}: without --data, they answer again")
    _nothing(name, cost)


def _size(side: _Side) -> None:
    table, wish, began = side.table(), side.wish, time.monotonic()
    with side.link() as mesh, _Bar() as bar:
        found = cardinality(
            mesh, lambda: table.keys(side.keys.columns), side.keys, learner=wish.learner, epsilon=wish.epsilon,
            delta=DELTA if wish.delta is None else wish.delta, cap=side.cap, accept=side.accept, audit=side.audit,
            folder=side.kept(), bucket_keys=side.bucket_keys, workers=side.workers, progress=bar.told,
        )  # fmt: skip
        cost = _cost(mesh, began)
    noise = {"epsilon": found.epsilon, "delta": found.delta} if found is not None and found.event else {}
    if mesh.me != wish.learner or found is None:
        if noise:
            say(f"the count got noise: enter ε = {noise['epsilon']:g}, δ = {noise['delta']:g} into your ledger")
        _nothing(mesh.me, {**noise, **cost})
        return
    emit("psi", me=mesh.me, shared=found.count, **noise, **cost)
    say(f"{found.count:,} keys are shared" + (f", with noise of ε = {found.epsilon:g}" if noise else ""))
    _said(cost)


def _sum(side: _Side) -> None:
    table, wish, began = side.table(), side.wish, time.monotonic()
    columns = [*side.keys.columns, *([] if wish.values is None else [wish.values])]
    with side.link() as mesh, _Bar() as bar:
        found = intersection_sum(
            mesh, lambda: table.keys(columns), side.keys, values=wish.values, holder=wish.learner,
            least=LEAST if wish.least is None else wish.least, cap=side.cap, accept=side.accept, audit=side.audit,
            folder=side.kept(), bucket_keys=side.bucket_keys, workers=side.workers, progress=bar.told,
        )  # fmt: skip
        cost = _cost(mesh, began)
    emit("psi", me=mesh.me, shared=found.count, sum=found.total, **cost)
    total = "" if found.total is None else f", and the sum of '{wish.values}' over them is {found.total:,.6f}"
    say(f"{found.count:,} keys are shared{total}")
    _said(cost)


def _cost(mesh: Mesh, began: float) -> dict[str, Any]:
    return {"seconds": time.monotonic() - began, "sent_bytes": sum(mesh.counters.sent_bytes.values())}


def _said(cost: dict[str, Any]) -> None:
    say(f"{span(cost['seconds'])}, {size(cost['sent_bytes'])} sent")


def _nothing(me: str, cost: dict[str, Any]) -> None:
    emit("psi", me=me, **cost)
    say(f"done: by agreement '{me}' does not learn the result")
    _said(cost)


def asked(statement: str) -> bool:
    """Shows what each party learns, and asks whoever sits at the terminal."""
    print(statement, file=sys.stderr, flush=True)
    if not sys.stdin.isatty() or settings.json:
        return False
    print("Go on? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


class _Bar:
    """How far the intersection is, and its rate: a bar on terminals, else a line now and then."""

    _EVERY_S = 10.0

    def __init__(self) -> None:
        self._progress: Any = None
        self._task: Any = None
        self._began = self._said = 0.0
        self._first = 0

    def __enter__(self) -> "_Bar":
        if sys.stderr.isatty() and not settings.json:
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            self._progress = Progress(
                TextColumn("keys"), BarColumn(), TextColumn("{task.completed:,.0f} of {task.total:,.0f}"),
                TextColumn("{task.fields[rate]}"), TimeRemainingColumn(), console=console(stderr=True),
            )  # fmt: skip
        return self

    def told(self, done: int, total: int) -> None:
        """Takes how many keys are done, of how many."""
        now = time.monotonic()
        if not self._began:
            self._began, self._said, self._first = now, now, done
            if self._progress is not None:
                self._progress.start()
                self._task = self._progress.add_task("keys", total=total, rate="")
        rate = f"{(done - self._first) / (now - self._began):,.0f} keys/s" if done > self._first else ""
        if self._progress is not None:
            self._progress.update(self._task, completed=done, total=total, rate=rate)
        elif now - self._said > self._EVERY_S:
            self._said = now
            hint(f"{done:,} of {total:,} keys, {rate}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()
