"""The two programs of a deployed federation that run until they are ended: its server, and a worker."""

import asyncio
import logging
import select
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hansa.app.access import Access, network
from hansa.app.address import is_loopback, split
from hansa.app.folder import check_folder
from hansa.app.terminal import emit, hint, say, settings
from hansa.core.errors import ConfigError, DataError, PolicyError

if TYPE_CHECKING:
    from hansa.runtimes.bundle import Bundle


def server(
    state: Path, bind: str, advertise: str | None, identity: Path | None, allow: Sequence[str], revoked: Path | None,
    insecure: bool, database: str | None, blobs: str | None,
) -> None:  # fmt: skip
    """Serves until SIGINT or SIGTERM."""
    host, _ = split(bind, "--bind")
    if insecure and not is_loopback(host):
        raise ConfigError(
            f"--insecure with --bind {bind}: only this machine is safe without identities; enrol instead."
        )
    if advertise is not None:
        split(advertise, "--advertise")
    check_folder(state, "--state")
    with network():
        from hansa.runtimes.grpc.server import serve
        from hansa.runtimes.policy import Policy

    _logging()
    member = Access(bind, identity, insecure).enrolled("server")

    def ready(address: str) -> None:
        dialled = advertise or address
        emit("serving", address=address, advertised=dialled, secure=member is not None, state=str(state))
        say(f"server at {address}" + ("" if member else ", without TLS or identities, for this machine alone"))
        if advertise is None and not insecure and host.strip("[]") in ("0.0.0.0", "::"):
            hint("workers dial a name of this machine that its identity was enrolled for; --advertise shows it here")
        who = "--insecure --name NAME" if member is None else "--identity NAME.pem"
        say(f"workers:    hansa worker --server {dialled} {who} --data …")
        say(f"submitters: hansa submit job.py --server {dialled} {who.removesuffix(' --name NAME')}")

    policy = Policy.parse(allow) if allow else None
    serve(
        state, ready=ready, listen=bind, identity=member, insecure=insecure, revoked=revoked, policy=policy,
        database=database, blobs=blobs,
    )  # fmt: skip
    say("server ended; its runs go on when it is started again")


def worker(
    access: Access, data: str | None, helper: bool, allow: Sequence[str], state: Path | None, device: str,
    revoked: Path | None, name: str | None,
) -> None:  # fmt: skip
    """Works until SIGINT or SIGTERM."""
    from hansa.runtimes.policy import Policy

    policy = Policy.parse(allow) if allow or not access.insecure else None
    if access.insecure and not name:
        raise ConfigError("--insecure needs --name NAME: without an identity nobody else says who this worker is.")
    if name and not access.insecure:
        raise ConfigError("--name is for --insecure alone: with an identity the name is that of its certificate.")
    if device != "cpu" and not (device == "cuda" or (device.startswith("cuda:") and device[5:].isdigit())):
        raise ConfigError(f"--device {device}: choose cpu or cuda:N, as in cuda:0.")
    if not allow:
        trying = "everything runs, since --insecure is for trying things"
        every = trying if access.insecure else "every job will be refused"
        hint(f"no --allow: {every}; --allow signer:NAME, hash:HEX or ask says which may run")
    _check_data(data, helper)
    member = access.enrolled("worker")
    own = member.name if member is not None else str(name)
    folder = state or Path(f"{own}.state")
    check_folder(folder, "--state")
    with network():
        from hansa.runtimes.grpc.worker import work
    _logging()
    emit("worker", name=own, server=access.address, state=str(folder))
    with_what = "without data, for jobs that name it as a helper" if data is None else f"with the data {data}"
    say(f"worker '{own}' {with_what}, for the server {access.address}")
    person = Person()
    work(
        access.address, folder, data=data, identity=member, insecure=access.insecure, name=own, policy=policy,
        device=device, revoked=revoked, ready=person.ready,
        ask=person.ask if policy is not None and policy.asks else None,
    )  # fmt: skip
    say("worker ended")


def _check_data(spec: str | None, helper: bool) -> None:
    """At once, where `--data` names a file that is not there; what is in it, the first job will see.

    Raises:
      ConfigError: data is given and not wanted, or wanted and not given.
      DataError: it cannot be.
    """
    if helper and spec is not None:
        raise ConfigError("--helper takes part without data: leave --data out.")
    if spec is None:
        if helper:
            return
        raise ConfigError(
            "no --data: say where your data is, as --data patients.csv; or --helper, to take part without any."
        )
    location = spec.partition("#")[0]
    if "://" in location:
        return
    code = location.rpartition(":")[0] if location.rpartition(":")[0].endswith(".py") else ""
    path = Path(code or location)
    if (code or path.suffix in (".csv", ".parquet", ".pq", ".npz", ".py")) and not path.is_file():
        raise DataError(f"--data {spec}: there is no file '{path}'; check the path.")
    if not code and ":" not in location and path.suffix not in (".csv", ".parquet", ".pq", ".npz"):
        raise DataError(
            f"--data {spec}: give module.py:function, package.module:function, or a .csv, .parquet or .npz file or URL."
        )


class Person:
    """Whoever sits at a worker's terminal, and is asked whether a job may run; one question at a time."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()

    def ready(self) -> None:
        """Called in the worker's event loop when it begins: its end ends a question that waits for an answer."""
        self._tasks = asyncio.all_tasks()

    def ask(self, bundle: "Bundle", signer: str | None) -> bool:
        """Whether a job may run here.

        Raises:
          PolicyError: nobody answered before the worker ended, or there is no terminal.
        """
        if not sys.stdin.isatty():
            raise PolicyError(
                f"job {bundle.hash[:12]} needs an answer, and this worker has no terminal to ask at: its owner may "
                f"read it with `hansa job show` and allow it: --allow hash:{bundle.hash}"
            )
        with self._turn:
            while True:
                files = f"{len(bundle.files)} files, entry {bundle.entry}"
                print(f"\njob {bundle.hash} of {signer or 'nobody known'}: {files}")
                print("may it run here, on your data?  [y]es / [N]o / [s]how its files: ", end="", flush=True)
                said = self._line().strip().lower()
                if said not in ("s", "show"):
                    return said in ("y", "yes")
                print(bundle.describe())

    def _line(self) -> str:
        while not select.select([sys.stdin], [], [], 0.2)[0]:
            if any(task.done() or task.cancelling() for task in self._tasks):
                raise PolicyError("the worker ended before anybody answered: it will ask again")
        return sys.stdin.readline()


class _ToStderr(logging.Handler):
    """Writes to standard error as it is when something is said: the server exchanges it when it begins."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr, flush=True)


def _logging() -> None:
    """Our own log on stderr: the time, who, what."""
    log = logging.getLogger("hansa")
    if not any(isinstance(handler, _ToStderr) for handler in log.handlers):
        handler = _ToStderr()
        handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s: %(message)s"))
        log.addHandler(handler)
    log.setLevel(logging.DEBUG if settings.verbose else logging.INFO)
