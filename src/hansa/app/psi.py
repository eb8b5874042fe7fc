"""`hansa psi`: each owner's rows of the people whom all owners share, in one order, from one command at each.

What each party learns is said and has to be accepted. A run that was killed goes on when all start it again with the
same command: entries and finished buckets are kept beside the result until it is written.
"""

import hashlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from hansa.app.terminal import console, emit, hint, say, settings, size, span
from hansa.core.errors import ConfigError, IdentityError
from hansa.crypto.identity import Identity
from hansa.runtimes.mesh import Parties, TlsMesh
from hansa.vertical.psi import Audit, Keys
from hansa.vertical.psi.files import CsvTable, write_aligned
from hansa.vertical.psi.intersect import coordinate, intersect

_SESSION = hashlib.sha256(b"hansa psi").digest()


def psi(
    *, me: str | None, parties: Path, identity: Path | None, data: Path | None, key: Sequence[str], out: Path | None,
    normalise: Sequence[str], duplicates: str, protocol: str, coordinator: str, learns: Sequence[str] | None, cap: int,
    bucket_keys: int, yes: bool, audit: Path, runs: int, workers: int | None, wait_s: float,
) -> None:  # fmt: skip
    """Runs one party's side: an owner's, or the coordinator's."""
    keys, file = Keys(key, normalise, duplicates), _identity(me, identity)
    known = Parties.read(parties)
    if coordinator and Identity.load(file).name == coordinator:
        with TlsMesh(file, known, _SESSION, wait_s=wait_s) as mesh:
            accepted = yes or _asked
            coordinate(mesh, keys, protocol=protocol, learns=learns, cap=cap, accept=accepted, bucket_keys=bucket_keys)
        say("done: the owners have their result")
        return
    if data is None or out is None:
        raise ConfigError("an owner gives its table and where its shared rows go: --data FILE.CSV --out FILE.CSV.")
    table = CsvTable.open(data)
    if not out.absolute().parent.is_dir():
        raise ConfigError(f"--out={out}: its folder does not exist.")
    began = time.monotonic()
    with TlsMesh(file, known, _SESSION, wait_s=wait_s) as mesh, _Bar() as bar:
        found = intersect(
            mesh, lambda: table.keys(keys.columns), keys, protocol=protocol, learns=learns, coordinator=coordinator,
            cap=cap, accept=yes or _asked, audit=Audit(audit, runs=runs),
            folder=out.absolute().with_name(f".{out.name}.psi"), bucket_keys=bucket_keys, workers=workers,
            progress=bar.told,
        )  # fmt: skip
        took = time.monotonic() - began
        sent = sum(mesh.counters.sent_bytes.values())
    if found is None:
        emit("psi", me=mesh.me, seconds=took, sent_bytes=sent)
        say(f"done in {span(took)}, {size(sent)} sent; by agreement '{mesh.me}' does not learn the result")
        return
    write_aligned(table, found, out, owner=mesh.me, key=keys.columns)
    found.forget()
    emit(
        "psi", me=mesh.me, rows=len(found), alignment=found.alignment.hex(), out=str(out), seconds=took, sent_bytes=sent
    )
    say(f"{len(found):,} rows are shared: {out}, alignment {found.alignment.hex()[:16]}…, the same at every owner")
    say(f"{span(took)}, {size(sent)} sent")


def _identity(me: str | None, identity: Path | None) -> Path:
    if me is None and identity is None:
        raise ConfigError("say who this is: --me NAME, with NAME.pem here, or --identity FILE.pem.")
    file = identity or Path(f"{me}.pem")
    name = Identity.load(file).name
    if me is not None and name != me:
        raise IdentityError(f"{file} is the identity of '{name}', not of '{me}': give the file of '{me}'.")
    return file


def _asked(statement: str) -> bool:
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
