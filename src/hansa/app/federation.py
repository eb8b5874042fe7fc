"""The commands around a deployed federation: server, worker, submit, watch, list, members, status, logs, stop, model.

Where the server is and who we are comes from the options, else from HANSA_SERVER and HANSA_IDENTITY, else from a file
`hansa.toml` in the working folder:

    server = "hansa.example.org:8443"
    identity = "alice.pem"                 relative to this file
"""

import asyncio
import logging
import select
import sys
import threading
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hansa.app.address import is_loopback, split
from hansa.app.jobs import archive, contents, hidden, packed, portable, read_settings
from hansa.app.show import Rounds, metrics_of, summary
from hansa.app.terminal import emit, hint, is_live, moment, say, settings, size, table
from hansa.core import errors
from hansa.core.errors import ConfigError, HansaError, JobError, MissingExtra, NotFound, TrainingFailed

if TYPE_CHECKING:
    from hansa.crypto.identity import Identity
    from hansa.runtimes.bundle import Bundle
    from hansa.runtimes.grpc.client import Client

DEFAULT_SERVER = "127.0.0.1:8443"
OVER = ("done", "stopped", "failed")


# -- the long-running ones


def server(
    state: Path,
    bind: str,
    advertise: str | None,
    identity: Path | None,
    allow: Sequence[str],
    revoked: Path | None,
    insecure: bool,
) -> None:
    """Serves until SIGINT or SIGTERM."""
    host, _ = split(bind, "--bind")
    if insecure and not is_loopback(host):
        raise ConfigError(
            f"--insecure with --bind {bind}: only this machine is safe without identities; enrol instead."
        )
    if advertise is not None:
        split(advertise, "--advertise")
    _parent(state, "--state")
    with _grpc():
        from hansa.runtimes.grpc.server import serve
        from hansa.runtimes.policy import Policy

    _logging()
    member = _identity(identity, insecure, "server")
    if member is not None and member.role != "server":
        raise errors.IdentityError(f"'{member.name}' is enrolled as {member.role}: a server needs the role server.")

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
    serve(state, ready=ready, listen=bind, identity=member, insecure=insecure, revoked=revoked, policy=policy)
    say("server ended; its runs go on when it is started again")


def worker(
    address: str | None, identity: Path | None, data: str | None, helper: bool, allow: Sequence[str],
    state: Path | None, device: str, revoked: Path | None, insecure: bool, name: str | None,
) -> None:  # fmt: skip
    """Works until SIGINT or SIGTERM."""
    from hansa.runtimes.policy import Policy

    policy = Policy.parse(allow) if allow or not insecure else None
    server, file = _where(address, identity, insecure)
    if insecure and not name:
        raise ConfigError("--insecure needs --name NAME: without an identity nobody else says who this worker is.")
    if name and not insecure:
        raise ConfigError("--name is for --insecure alone: with an identity the name is that of its certificate.")
    if device != "cpu" and not (device == "cuda" or (device.startswith("cuda:") and device[5:].isdigit())):
        raise ConfigError(f"--device {device}: choose cpu or cuda:N, as in cuda:0.")
    if not allow:
        every = "everything runs, since --insecure is for trying things" if insecure else "every job will be refused"
        hint(f"no --allow: {every}; --allow signer:NAME, hash:HEX or ask says which may run")
    if (data is None) != helper:
        raise ConfigError(
            "--helper takes part without data: leave --data out." if helper else
            "no --data: say where your data is, as --data patients.csv; or --helper, to take part without any."
        )  # fmt: skip
    if data is not None:
        _has_data(data)
    member = _identity(file, insecure, "worker")
    if member is not None and member.role != "worker":
        raise errors.IdentityError(f"'{member.name}' is enrolled as {member.role}: a worker needs the role worker.")
    own = member.name if member is not None else str(name)
    folder = state or Path(f"{own}.state")
    _parent(folder, "--state")
    with _grpc():
        from hansa.runtimes.grpc.worker import work
    _logging()
    emit("worker", name=own, server=server, state=str(folder))
    with_what = "without data, for jobs that name it as a helper" if data is None else f"with the data {data}"
    say(f"worker '{own}' {with_what}, for the server {server}")
    person = Person()
    work(
        server, folder, data=data, identity=member, insecure=insecure, name=own, policy=policy, device=device,
        revoked=revoked, ready=person.ready,
        ask=person.ask if policy is not None and policy.asks else None,
    )  # fmt: skip
    say("worker ended")


def _has_data(spec: str) -> None:
    """DataError at once where `--data` names a file that is not there; what is in it, the first job will see."""
    location = spec.partition("#")[0]
    if "://" in location:
        return
    code = location.rpartition(":")[0] if location.rpartition(":")[0].endswith(".py") else ""
    path = Path(code or location)
    if (code or path.suffix in (".csv", ".parquet", ".pq", ".npz", ".py")) and not path.is_file():
        raise errors.DataError(f"--data {spec}: there is no file '{path}'; check the path.")
    if not code and ":" not in location and path.suffix not in (".csv", ".parquet", ".pq", ".npz"):
        raise errors.DataError(
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
            raise errors.PolicyError(
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
                raise errors.PolicyError("the worker ended before anybody answered: it will ask again")
        return sys.stdin.readline()


# -- asking a server


def submit(
    job: Path, pairs: Sequence[str], config: Path | None, wait: bool, workers: int, address: str | None,
    identity: Path | None, include: Sequence[str], checked: bool, insecure: bool,
) -> None:  # fmt: skip
    """Packs, signs, hands in, and with `wait` follows to the end."""
    from hansa.runtimes.jobfile import load_job

    given = read_settings(pairs, config)
    if workers < 0:
        raise ConfigError(f"--workers {workers}: it may not be negative.")
    where, file = _where(address, identity, insecure)
    member = _identity(file, insecure, "submitter")
    sees = ""
    if job.suffix == ".py":
        if checked:
            loaded = load_job(job, given)
            portable(loaded)
            sees = hidden(loaded)
        bundle = packed(job, given, member, include)
    elif given or include:
        raise ConfigError(
            f"{job} is an archive, whose hash fixes its content: give --set and --include to `hansa build`."
        )
    else:
        bundle = archive(job)
    contents(bundle)
    if sees:
        say(f"sees    the server: {sees}")
    with _client(where, member, insecure) as client:
        run = client.submit(bundle, workers=workers)
        emit("submitted", run=run, hash=bundle.hash, server=where)
        say(f"run     {run}")
        if wait:
            _follow(client, run, must_finish=True)
        else:
            say(f"follow it: hansa watch {run}")


def watch(run: str, address: str | None, identity: Path | None, insecure: bool) -> None:
    """Follows a run to its end."""
    with _connected(address, identity, insecure) as client:
        _follow(client, _run(client, run), must_finish=False)


def list_runs(address: str | None, identity: Path | None, insecure: bool) -> None:
    """All runs of a server."""
    with _connected(address, identity, insecure) as client:
        rows = [_row(status) for status in client.runs()]
    table(
        "run", rows, ["run", "name", "state", "rounds done", "submitter", "created", "last"],
        "no runs yet: hand one in with `hansa submit job.py`",
    )  # fmt: skip


def members(address: str | None, identity: Path | None, insecure: bool) -> None:
    """Everybody who ever connected."""
    with _connected(address, identity, insecure) as client:
        rows = client.members()
    if not settings.json:
        rows = [
            {**row, "connected": "yes" if row.get("connected") else "no", "last seen": moment(row.get("last_seen"))}
            for row in rows
        ]
    table("member", rows, ["name", "role", "connected", "last seen"], "nobody has connected yet")


def status(run: str, address: str | None, identity: Path | None, insecure: bool) -> None:
    """One run."""
    with _connected(address, identity, insecure) as client:
        _show_status(client.status(_run(client, run)))


def logs(run: str, follow: bool, address: str | None, identity: Path | None, insecure: bool) -> None:
    """A run's log."""
    with _connected(address, identity, insecure) as client:
        for line in client.logs(_run(client, run), follow=follow):
            emit("log", **line)
            say(f"{moment(line.get('time'))}  {line.get('source', '')}: {line.get('text', '')}")


def stop(run: str, address: str | None, identity: Path | None, insecure: bool) -> None:
    """Ends a run after its last committed round."""
    with _connected(address, identity, insecure) as client:
        found = client.stop(_run(client, run))
    emit("status", **found)
    goes_on = "" if found["state"] == "done" else f": `hansa resume {found['run']}` goes on with it"
    say(f"run {found['run']} is {found['state']} after {found['round']} rounds{goes_on}")


def resume(run: str, address: str | None, identity: Path | None, insecure: bool) -> None:
    """Goes on with a run that was stopped or failed."""
    with _connected(address, identity, insecure) as client:
        found = client.resume(_run(client, run))
    emit("status", **found)
    follow = "" if found["state"] == "done" else f": `hansa watch {found['run']}` follows it"
    say(f"run {found['run']} is {found['state']}, with {found['round']} rounds committed{follow}")


def model(
    run: str, out: Path, best: bool, job: Path | None, address: str | None, identity: Path | None, insecure: bool
) -> None:
    """Fetches a run's model into a safetensors file."""
    from hansa.core.checkpoint import dump
    from hansa.runtimes.jobfile import load_job

    _parent(out, "--out")
    loaded = load_job(job) if job is not None else None
    with _connected(address, identity, insecure) as client:
        facts = client.status(_run(client, run))
        checkpoint = client.model(facts["run"], best=best)
    params = checkpoint.state.part("model")
    if loaded is not None:
        from hansa.app.predict import completed

        params = completed(loaded, params, f"of run {run}")
    content = dump(params, {"job": str(facts["name"]), "run": str(facts["run"]), "round": str(checkpoint.round)})
    beside = out.with_name(out.name + ".partial")
    try:
        beside.write_bytes(content)
        beside.replace(out)
    except OSError as error:
        raise ConfigError(f"--out {out} cannot be written ({error.strerror}): choose another place.") from None
    emit(
        "model",
        run=facts["run"],
        round=checkpoint.round,
        path=str(out),
        tensors=len(params),
        bytes=len(content),
        best=best,
    )
    say(f"{'best ' * best}model of round {checkpoint.round}: {len(params)} tensors, {size(len(content))}, in {out}")


# -- showing


def _follow(client: "Client", run: str, must_finish: bool) -> None:
    """Shows a run until it is over; a failed one ends with its own error."""
    facts = client.status(run)
    total = facts.get("rounds") or None
    begun = time.monotonic()
    said = ""
    with Rounds(str(facts.get("name") or run), total) as rounds:
        try:
            for event in client.watch(run):
                if "record" in event:
                    rounds.add(event["record"], event.get("privacy"))
                if "status" in event:
                    facts = event["status"]
                    emit("status", **{key: value for key, value in facts.items() if key != "last"})
                    rounds.describe(str(facts.get("name") or run), facts.get("rounds") or None)
                    waiting = str(facts.get("waiting") or "")
                    rounds.waiting(waiting)
                    if waiting and waiting.split("(")[0] != said and not is_live():
                        hint(waiting)
                    said = waiting.split("(")[0]
        except KeyboardInterrupt:
            again = f"`hansa watch {run}` follows it again, `hansa stop {run}` ends it"
            raise KeyboardInterrupt(f"not watching any more; run {run} goes on: {again}") from None
    reason = str(facts.get("reason") or "")
    if facts["state"] == "failed":
        raise _failure(run, reason)
    last = f": {summary(rounds.shown)}" if rounds.shown else ""
    took = f" in {time.monotonic() - begun:.0f} s" if must_finish else ""
    say(f"run {run} is {facts['state']}{f' ({reason})' if reason else ''} after {facts['round']} rounds{took}{last}")
    if facts["state"] == "done":
        say(f"fetch its model: hansa model {run} --out model.safetensors")
    elif must_finish:
        raise TrainingFailed(
            f"run {run} is {facts['state']} after {facts['round']} rounds: `hansa resume {run}` goes on with it."
        )


def _failure(run: str, reason: str) -> HansaError:
    """What a run failed with, as the class that the server names."""
    name, _, words = reason.partition(": ")
    kind = getattr(errors, name, None)
    if not (isinstance(kind, type) and issubclass(kind, HansaError)):
        kind, words = TrainingFailed, reason
    if kind is JobError:
        return JobError([line.removeprefix("  - ") for line in words.splitlines()[1:]] or [words])
    if kind is MissingExtra:
        kind = TrainingFailed
    return kind(f"run {run} failed: {words or 'its log says why'} (`hansa logs {run}`)")


def _row(status: Mapping[str, Any]) -> dict[str, Any]:
    """One line of the list; all of it for machines."""
    if settings.json:
        return dict(status)
    last = status.get("last")
    return {
        **status, "rounds done": f"{status.get('round', 0)}/{status.get('rounds') or '?'}",
        "created": moment(status.get("created")),
        "last": summary(last) if last else status.get("reason") or status.get("waiting") or "",
    }  # fmt: skip


def _show_status(facts: Mapping[str, Any]) -> None:
    emit("status", **facts)
    if settings.json:
        return
    last = facts.get("last") or {}
    lines = {
        "run": facts["run"], "job": facts.get("name"), "state": facts["state"], "reason": facts.get("reason"),
        "waiting": facts.get("waiting"), "rounds": f"{facts.get('round', 0)} of {facts.get('rounds') or '?'}",
        "submitter": facts.get("submitter"), "created": moment(facts.get("created")), "job's hash": facts.get("bundle"),
        "fingerprint": facts.get("fingerprint"), "server sees": facts.get("sees"),
        "last round": summary(last) if metrics_of(last) else None,
    }  # fmt: skip
    for name, value in lines.items():
        if value not in (None, ""):
            say(f"{name:<12} {value}")


# -- reaching it


def _run(client: "Client", run: str) -> str:
    """The id given, or that of the latest run."""
    if run:
        return run
    found = client.runs()
    if not found:
        raise NotFound("the server has no runs yet: hand one in with `hansa submit job.py`.")
    return str(found[-1]["run"])


@contextmanager
def _connected(address: str | None, identity: Path | None, insecure: bool) -> Iterator["Client"]:
    where, file = _where(address, identity, insecure)
    with _client(where, _identity(file, insecure, "submitter"), insecure) as client:
        yield client


@contextmanager
def _client(where: str, member: "Identity | None", insecure: bool) -> Iterator["Client"]:
    with _grpc():
        from hansa.runtimes.grpc.client import Client
    with Client(where, identity=member, insecure=insecure) as client:
        yield client


def _where(address: str | None, identity: Path | None, insecure: bool) -> tuple[str, Path | None]:
    """The server's address and the identity's path, from the options or from hansa.toml."""
    path = Path("hansa.toml")
    given: dict[str, Any] = {}
    if path.is_file() and (address is None or identity is None):
        try:
            given = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(f"hansa.toml cannot be read: {error}.") from None
        unknown = sorted(set(given) - {"server", "identity"})
        if unknown:
            raise ConfigError(f"hansa.toml: its keys are server and identity, not '{unknown[0]}'.")
        if not all(isinstance(value, str) for value in given.values()):
            raise ConfigError('hansa.toml: server and identity are texts, as in server = "127.0.0.1:8443".')
    address = address or given.get("server") or DEFAULT_SERVER
    host, _ = split(address, "--server")
    if identity is None and "identity" in given and not insecure:
        identity = Path(given["identity"])
    if insecure and identity is not None:
        raise ConfigError("--insecure and --identity: give one of them (HANSA_IDENTITY counts as well).")
    if insecure and not is_loopback(host):
        raise ConfigError(
            f"--insecure with {address}: without identities only this machine is safe; use 127.0.0.1, or enrol."
        )
    return address, identity


def _identity(path: Path | None, insecure: bool, role: str) -> "Identity | None":
    """An identity from its file; None if insecure."""
    if path is None:
        if insecure:
            return None
        raise ConfigError(
            f"no identity: give --identity FILE.pem, made by `hansa enrol issue NAME --role {role}`; or --insecure, on "
            "this machine alone."
        )
    if insecure:
        raise ConfigError("--insecure and --identity: give one of them (HANSA_IDENTITY counts as well).")
    from hansa.crypto.identity import Identity

    return Identity.load(path)


@contextmanager
def _grpc() -> Iterator[None]:
    """Says what to install where the network's libraries are missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        library = (error.name or "").split(".")[0]
        if library in ("grpc", "google", "sqlalchemy", "cryptography"):
            raise MissingExtra(
                "a federation", {"grpc": "grpcio", "google": "protobuf"}.get(library, library), "deploy"
            ) from None
        raise


def _parent(path: Path, option: str) -> None:
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"{option} {path}: there is no folder {path.parent}; make it first.")


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
