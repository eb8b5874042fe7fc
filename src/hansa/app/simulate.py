"""`hansa simulate`: a job and its simulated clients on this machine, in one process or in several, or on a cluster."""

import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from hansa.app.folder import check_file, check_folder, state_in
from hansa.app.jobs import hidden, read_settings
from hansa.app.show import Rounds, epsilon_of, summary
from hansa.app.terminal import emit, hint, number, say, span
from hansa.core.data import Clients
from hansa.core.errors import ConfigError
from hansa.core.job import Job
from hansa.core.runtime import Runtime
from hansa.core.tensors import Tensors
from hansa.core.train import Record
from hansa.runtimes.history import History
from hansa.runtimes.jobfile import clients_of, job_of, load_module
from hansa.runtimes.observe.observer import Observer

if TYPE_CHECKING:
    from hansa.runtimes.store import SqlStore


def simulate(
    job: Path,
    *,
    clients: int | None = None,
    settings: Sequence[str] = (),
    config: Path | None = None,
    runtime: str = "local",
    processes: int | None = None,
    address: str | None = None,
    state: Path | None = None,
    resume: bool = False,
    out: Path | None = None,
    best: bool = False,
    checkpoint_every: int = 1,
    log: Path | None = None,
    target: str | None = None,
    stop_after: str | None = None,
) -> None:
    """Runs `hansa simulate`; arguments are its options.

    Raises:
      HansaError: the job file, the job, the state folder or a round failed; see the classes.
    """
    how = runtime_of(runtime, processes, address)
    given = read_settings(settings, config)
    if resume and state is None:
        raise ConfigError("--resume goes on from a state: give --state DIR, the folder the run was begun with.")
    if checkpoint_every != 1 and state is None:
        raise ConfigError(f"--checkpoint-every {checkpoint_every}: checkpoints need a place, --state DIR.")
    if best and out is None:
        raise ConfigError("--best says which model to write: give --out FILE as well.")
    check_file(out, "--out")
    options: dict[str, Any] = {"checkpoint_every": checkpoint_every, "observe": [] if log is None else [log_to(log)]}
    module = load_module(job)
    loaded = job_of(module, given)
    people = clients_of(module, clients)
    loaded.check(len(people))
    options["observe"] += [*ends(target, stop_after)]
    if best and not loaded.evaluation.best:
        raise ConfigError("--best, but the job keeps none: name its metric, as in Evaluation(data=..., best='loss').")
    if state is None:
        history = _run(how, loaded, people, options, 0, None)
    else:
        history = _durable(how, loaded, people, options, state, resume)
    if out is not None:
        history.save(out, best=best)
        emit("model", path=str(out), best=best)
        say(f"model written to {out}")


def runtime_of(name: str, processes: int | None, address: str | None = None) -> Runtime:
    """What `--runtime`, `--processes` and `--address` mean."""
    if name not in ("local", "processes", "ray"):
        raise ConfigError(f"--runtime {name}: choose local, processes or ray.")
    if address is not None and name != "ray":
        raise ConfigError(f"--address {address} with --runtime {name}, which stays here: add --runtime ray.")
    if processes is not None and processes < 1:
        raise ConfigError(f"--processes {processes}: at least 1.")
    if name == "ray":
        from hansa.runtimes.ray import Ray

        return Ray(address, processes)
    if name == "processes":
        from hansa.runtimes.processes import Processes

        return Processes(processes)
    if processes is not None:
        raise ConfigError(
            f"--processes {processes} with --runtime local, which is one process: add --runtime processes."
        )
    from hansa.runtimes.local import Local

    return Local()


def log_to(path: Path) -> Observer:
    """The observer that writes a log of rounds of this kind; ConfigError if its ending is none we know."""
    from hansa.runtimes.observe.table import CsvLog, ParquetLog

    if path.suffix not in (".csv", ".parquet"):
        raise ConfigError(f"--log {path}: end its name with .csv or .parquet.")
    return CsvLog(path) if path.suffix == ".csv" else ParquetLog(path)


def ends(target: str | None, stop_after: str | None) -> Iterator[Observer]:
    """The observers that `--target` and `--stop-after` ask for; ConfigError if one of them cannot be read."""
    from hansa.runtimes.observe.early_stopping import EarlyStopping
    from hansa.runtimes.observe.target import Target

    if target is not None:
        name, value = _pair("--target", target, "accuracy=0.97")
        yield Target(name, value)
    if stop_after is not None:
        name, value = _pair("--stop-after", stop_after, "loss=5")
        if value < 1 or value != int(value):
            raise ConfigError(f"--stop-after {stop_after}: give a whole number of evaluations, 1 or more.")
        yield EarlyStopping(name, patience=int(value))


def _pair(option: str, text: str, example: str) -> tuple[str, float]:
    name, equals, number_ = text.partition("=")
    try:
        value = float(number_)
    except ValueError:
        value = math.nan
    if not (name and equals and math.isfinite(value)):
        raise ConfigError(f"{option} {text}: give a metric and a number, as in {option} {example}.")
    return name, value


def _run(how: Runtime, job: Job, people: Clients, options: dict[str, Any], done: int, state: Path | None) -> History:
    """Trains and shows it."""
    emit("started", job=job.name, clients=len(people), rounds=job.rounds, done=done, fingerprint=job.fingerprint())
    cost = epsilon_of(job, len(people))
    if cost is not None and cost(1) is None:
        hint("what the rounds cost in privacy is not shown: pip install 'hansa[dp]'")
    if sees := hidden(job, len(people)):
        say(f"deployed, the server would see {sees}")
    begun = time.perf_counter()

    def show(record: Record) -> None:
        rounds.add(record.to_json())

    with Rounds(job.name, job.rounds, done, cost) as rounds:
        try:
            history: History = how.run(job, people, **{**options, "observe": [show, *options["observe"]]})
        except KeyboardInterrupt:
            kept = "nothing of it was kept; --state DIR keeps each round" if state is None else "add --resume to go on"
            raise KeyboardInterrupt(f"interrupted after {rounds.done} of {job.rounds} rounds: {kept}") from None
    took = time.perf_counter() - begun
    last = history.rounds[-1].to_json() if history.rounds else {}
    emit("finished", rounds=len(history.rounds), seconds=took, last=last)
    said = f"{len(history.rounds) - done} rounds with {len(people)} clients in {span(took)}"
    say(f"{said}: {summary(last)}" if last else said)
    if history.stopped:
        emit("stopped", reason=history.reason)
        say(f"ended early: {history.reason}")
    spent = cost(len(history.rounds)) if cost is not None else None
    if cost is not None and spent is not None:
        emit("privacy", epsilon=spent, delta=cost.delta, rounds=len(history.rounds), population=len(people))
        say(f"what this would cost in privacy, if every client were real: ε = {number(spent)} at δ = {cost.delta:g}")
    return history


def _durable(how: Runtime, job: Job, people: Clients, options: dict[str, Any], state: Path, resume: bool) -> History:
    """The same with its state in a folder."""
    check_folder(state, "--state")
    with state_in(state, "--state") as store:
        run, done = begin(store, job, state, resume)
        options = {**options, "store": store.run(run), "memories": ClientMemories(state / "memory" / run)}
        store.set_state(run, "running")
        try:
            history = _run(how, job, people, options, done, state)
        except KeyboardInterrupt:
            store.set_state(run, "stopped", "interrupted")
            raise
        except Exception as error:
            store.set_state(run, "failed", str(error))
            raise
        store.set_state(run, *(("stopped", history.reason) if history.stopped else ("done",)))
        return history


def begin(store: "SqlStore", job: Job, state: Path, resume: bool) -> tuple[str, int]:
    """The run to go on with, or a new one; and how many of its rounds are committed."""
    runs = store.runs()
    if runs and not resume:
        raise ConfigError(
            f"--state {state} holds a run already: add --resume to go on with it, or choose another folder."
        )
    if not runs:
        if resume:
            hint(f"{state} holds no run yet: this one begins")
        fingerprint = job.fingerprint()
        return store.add_run(name=job.name, bundle="", submitter="", fingerprint=fingerprint, rounds=job.rounds), 0
    run = str(runs[-1]["id"])
    saved = store.run(run).load()
    return run, saved.round if saved is not None else 0


class ClientMemories:
    """What simulated clients remember, on disk; any text may be a client's id."""

    def __init__(self, folder: Path) -> None:
        from hansa.runtimes.grpc.executor import DiskMemories

        self._disk = DiskMemories(folder)

    def load(self, client: str, since: str) -> Tensors:
        return self._disk.load(self._name(client), since)

    def save(self, client: str, name: str, memory: Tensors) -> None:
        self._disk.save(self._name(client), name, memory)

    @staticmethod
    def _name(client: str) -> str:
        return "c-" + quote(client, safe="")
