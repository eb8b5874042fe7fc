"""The demo's federation in one folder: an authority, a server and three hospitals, each a process of its own.

    folder/
      authority/              the federation's key; only enrolment needs it
      server/                 server.pem, state/, log
      hospital-a/ …           hospital-a.pem, cases.csv, hospital.py (its loader), state/, log
      alice.pem               the submitter
      job/job.py              what alice submits

The processes are started in sessions of their own, so that Ctrl-C reaches the demo alone, which then ends them: nothing
is left running when `running` is left, whichever way.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hansa.app.demo import cases
from hansa.app.enrol import Authority
from hansa.core.errors import TrainingFailed
from hansa.crypto.identity import Identity
from hansa.runtimes.grpc.client import Client
from hansa.runtimes.mesh.parties import free_ports

SUBMITTER = "alice"
JOB = Path(__file__).parent / "templates"
_START_S, _END_S = 60.0, 10.0

_LOADER = '''"""This hospital's own data, for `hansa worker --data hospital.py:load`; read here and nowhere else."""

from pathlib import Path

from hansa.app.demo import cases
from hansa.core.data import Dataset


def load() -> Dataset:
    return cases.read(Path(__file__).with_name("cases.csv"))
'''


@dataclass(frozen=True)
class League:
    """Where everything lies, and where the server listens."""

    folder: Path
    address: str

    @property
    def submitter(self) -> Path:
        """The identity that signs the job."""
        return self.folder / f"{SUBMITTER}.pem"

    @property
    def job(self) -> Path:
        """The job file."""
        return self.folder / "job" / "job.py"

    @property
    def state(self) -> Path:
        """All that the server keeps."""
        return self.folder / "server" / "state"

    def cases(self, hospital: str) -> Path:
        """A hospital's file."""
        return self.folder / hospital / "cases.csv"

    def commands(self) -> dict[str, list[str]]:
        """Process to the arguments of `hansa` that start it in its own folder."""
        server = ["server", "--state", "state", "--bind", self.address, "--identity", "server.pem"]
        found = {"server": server}
        for hospital in cases.SHARES:
            found[hospital] = [
                *("worker", "--server", self.address, "--identity", f"{hospital}.pem"),
                *("--data", "hospital.py:load", "--allow", f"signer:{SUBMITTER}", "--state", "state"),
            ]
        return found


def found(folder: Path, seed: int) -> League:
    """Enrols everybody and gives each hospital its cases.

    Args:
      folder: made if missing; must be empty.
      seed: of the cut.
    """
    authority = Authority.create(folder / "authority", "demo league")

    def enrol(name: str, role: str, home: Path, hosts: tuple[str, ...] = ()) -> None:
        home.mkdir(mode=0o700, exist_ok=True)
        authority.issue(name, role, hosts=hosts).rename(home / f"{name}.pem")

    enrol("server", "server", folder / "server", ("127.0.0.1", "localhost"))
    enrol(SUBMITTER, "submitter", folder)
    for hospital, own in cases.cut(seed)[0].items():
        enrol(hospital, "worker", folder / hospital)
        cases.write(own, folder / hospital / "cases.csv")
        (folder / hospital / "hospital.py").write_text(_LOADER, encoding="utf-8")
    shutil.copytree(JOB, folder / "job", ignore=shutil.ignore_patterns("__pycache__"))
    return League(folder, f"127.0.0.1:{free_ports(1)[0]}")


@contextmanager
def running(league: League) -> Iterator[Client]:
    """Starts the server and the hospitals, and ends them all on leaving; gives the submitter's connection."""
    processes: dict[str, subprocess.Popen[bytes]] = {}
    terminated = signal.signal(signal.SIGTERM, _interrupt)
    try:
        for name, arguments in league.commands().items():
            processes[name] = _start(league.folder / name, arguments)
        with Client(league.address, identity=Identity.load(league.submitter)) as client:
            _wait(league, client, processes)
            yield client
    finally:
        # A second Ctrl-C must not break this off.
        interrupted = signal.signal(signal.SIGINT, signal.SIG_IGN)
        _end(processes)
        signal.signal(signal.SIGINT, interrupted)
        signal.signal(signal.SIGTERM, terminated)


def _start(home: Path, arguments: list[str]) -> "subprocess.Popen[bytes]":
    paths = [entry for entry in sys.path if entry]  # where Hansa itself was found, installed or not
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    for name in ("HANSA_IDENTITY", "HANSA_SERVER"):
        environment.pop(name, None)
    with (home / "log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "hansa.app.cli", *arguments],
            cwd=home, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip


def _wait(league: League, client: Client, processes: "dict[str, subprocess.Popen[bytes]]") -> None:
    """Until the server answers; says whose process ended before that."""
    until = time.monotonic() + _START_S
    while not client.healthy():
        check_alive(league, processes)
        if time.monotonic() > until:
            raise TrainingFailed(f"the server did not answer within {_START_S:.0f} s: {_last_words(league, 'server')}")
        time.sleep(0.1)
    check_alive(league, processes)


def check_alive(league: League, processes: "dict[str, subprocess.Popen[bytes]]") -> None:
    """TrainingFailed with the last words of a process that has ended."""
    for name, process in processes.items():
        if process.poll() is not None:
            raise TrainingFailed(
                f"the process of {name} ended with code {process.returncode}: {_last_words(league, name)}"
            )


def _last_words(league: League, name: str) -> str:
    lines = (league.folder / name / "log").read_text(encoding="utf-8", errors="replace").split("\n")
    return " / ".join(line for line in lines[-6:] if line) or "it said nothing"


def _end(processes: "dict[str, subprocess.Popen[bytes]]") -> None:
    """Asks all to end, the hospitals first, and kills what is left with its children."""
    for process in reversed(processes.values()):
        _tell(process, signal.SIGTERM)
    until = time.monotonic() + _END_S
    for process in processes.values():
        try:
            process.wait(max(0.1, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            _tell(process, signal.SIGKILL)
            process.wait()


def _tell(process: "subprocess.Popen[bytes]", message: signal.Signals) -> None:
    try:
        os.killpg(process.pid, message)
    except ProcessLookupError:
        return


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
