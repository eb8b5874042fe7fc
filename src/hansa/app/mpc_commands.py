"""`hansa mpc`: programs on shares, as one party or as all of them, and the files of shares around them."""

import json
import math
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from hansa.app.enrol import Authority
from hansa.app.folder import check_file, check_files
from hansa.app.party import check_known, identity_of
from hansa.app.terminal import emit, say, size, span, table
from hansa.core.errors import ConfigError, NotFound, TrainingFailed, Unreachable
from hansa.mpc.estimate import Network, estimate as estimated
from hansa.mpc.options import check_options
from hansa.mpc.place import HERE, Place
from hansa.mpc.protocols import protocol_named
from hansa.mpc.report import Report
from hansa.mpc.session import computing_parties
from hansa.runtimes.allocator import keep_freed_memory
from hansa.runtimes.jobfile import explained
from hansa.runtimes.mesh import Parties

_END_S = 5.0


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What both `local` and `party` let one choose.

    Args:
      protocol: see `hansa.mpc.Session`.
      truncation: the same.
      sigmoid: the same.
      security: the same.
      device: the same.
      wait_s: for the other parties to come.
      unsafe_debug: see `hansa.mpc.Session`; a real party refuses it.

    Raises:
      ConfigError: one of them is unknown, or does not go with another; before any party starts.
    """

    protocol: str = "aby3"
    truncation: str = "exact"
    sigmoid: str = "spline"
    security: str = "semi-honest"
    device: str = "cpu"
    wait_s: float = 60.0
    unsafe_debug: bool = False

    def __post_init__(self) -> None:
        check_options(
            self.protocol, truncation=self.truncation, sigmoid=self.sigmoid, security=self.security, device=self.device
        )
        if not 0 < self.wait_s < math.inf:
            raise ConfigError(f"--wait {self.wait_s:g}: give seconds above 0.")

    @property
    def options(self) -> dict[str, Any]:
        """Of the session."""
        return {
            "truncation": self.truncation, "sigmoid": self.sigmoid, "security": self.security, "device": self.device,
            **({"unsafe_debug": True} if self.unsafe_debug else {}),
        }  # fmt: skip

    def words(self) -> list[str]:
        """The same for another call of the command."""
        given = {"protocol": self.protocol, **self.options, "wait": f"{self.wait_s:g}"}
        debug = ["--unsafe-debug"] if given.pop("unsafe_debug", False) else []
        return [*(word for name, value in given.items() for word in (f"--{name}", value)), *debug]


# -- one party


def party(
    script: Path, arguments: Sequence[str], me: str | None, parties: Path, identity: Path | None, choices: Choices,
    report: Path | None,
) -> None:  # fmt: skip
    """`hansa mpc party`."""
    file, name = identity_of(me, identity)
    known = Parties.read(parties)
    check_known(name, known, parties)
    computing_parties(known, choices.protocol)
    _run(Place(
        script=str(script), arguments=arguments, parties=str(parties), identity=str(file), protocol=choices.protocol,
        options=choices.options, wait_s=choices.wait_s, report=None if report is None else str(report),
    ))  # fmt: skip


def _run(place: Place) -> None:
    """Runs an ordinary script as Python itself would, and explains what it raises."""
    script = Path(place.script)
    _check(script)
    place.tell()
    sys.argv = [place.script, *place.arguments]
    sys.path.insert(0, str(script.absolute().parent))
    keep_freed_memory()
    with explained(script.absolute()):
        runpy.run_path(place.script, run_name="__main__")


def _check(script: Path) -> None:
    if not script.is_file():
        raise NotFound(f"there is no script '{script}': check the path.")
    if script.suffix != ".py":
        raise ConfigError(f"'{script}' is no Python file: give the .py file that calls hansa.mpc.connect().")


# -- all parties here


def local(
    script: Path, arguments: Sequence[str], names: Sequence[str], parties: Path | None, choices: Choices,
    reports: Path | None, picture: Path | None,
) -> None:  # fmt: skip
    """`hansa mpc local`.

    Args:
      script: what all run.
      arguments: of the script.
      names: of the parties; empty for those of the file, else party-0, party-1, …
      parties: a file whose computing parties' names are taken; addresses and identities are not.
      choices: what the session is like.
      reports: a folder for each party's report.
      picture: a file for the first party's report as a picture.
    """
    if picture is not None and picture.suffix not in (".png", ".svg", ".pdf"):
        raise ConfigError(f"--picture {picture}: end its name with .png, .svg or .pdf.")
    check_file(picture, "--picture")
    check_files(reports, "--reports")
    with tempfile.TemporaryDirectory(prefix="hansa-mpc-") as made:
        folder = Path(made)
        told = _all(script, arguments, names, parties, choices, folder)
        if reports is not None:
            reports.mkdir(parents=True, exist_ok=True)
            for report in told:
                (reports / f"{report.me}.json").write_text(json.dumps(report.to_json()), encoding="utf-8")
        if picture is not None:
            told[0].picture(picture)
            say(f"picture written to {picture}")


def estimate(
    script: Path, arguments: Sequence[str], names: Sequence[str], choices: Choices, latency: str, bandwidth: str
) -> None:
    """`hansa mpc estimate`."""
    network = Network.parse(latency, bandwidth)
    with tempfile.TemporaryDirectory(prefix="hansa-mpc-") as made:
        found = estimated(_all(script, arguments, names, None, choices, Path(made), OMP_NUM_THREADS="1"), network)
    rows = [
        {"operation": name, "calls": calls, "rounds": rounds, "MB": sent / 1e6, "seconds": seconds}
        for name, calls, rounds, sent, seconds in found.operations
    ]
    table("operation", rows, ["operation", "calls", "rounds", "MB", "seconds"], "nothing was sent")
    on_network = found.seconds - found.work_s
    emit(
        "estimate", party=found.party, seconds=found.seconds, work_s=found.work_s, network_s=on_network,
        rounds=found.rounds, sent_bytes=found.sent_bytes, latency_s=network.latency_s, bits_per_s=network.bits_per_s,
    )  # fmt: skip
    say(
        f"about {span(found.seconds)}: {span(found.work_s)} of work on one core, and {span(on_network)} for "
        f"{found.rounds:,} rounds of {latency} and {size(found.sent_bytes)} at {bandwidth} (party '{found.party}')"
    )


def _all(
    script: Path, arguments: Sequence[str], names: Sequence[str], parties: Path | None, choices: Choices, folder: Path,
    **environment: str,
) -> list[Report]:  # fmt: skip
    """Runs all parties here, each a process, and gives their reports; ends as they do if one fails."""
    _check(script)
    known = _here(names, parties, choices.protocol)
    files = [folder / f"{name}.json" for name in known.names]
    if len(known.names) == 1:  # nobody to speak with: it runs in this process
        _run(Place(
            script=str(script), arguments=arguments, me=known.names[0], protocol=choices.protocol,
            options=choices.options, report=str(files[0]),
        ))  # fmt: skip
    else:
        _processes(script, arguments, known, choices, folder, environment)
    if not all(file.is_file() for file in files):
        raise ConfigError(f"{script} opened no session: call hansa.mpc.connect() in it, and leave its `with`.")
    return [Report.from_json(json.loads(file.read_text(encoding="utf-8"))) for file in files]


def _processes(
    script: Path, arguments: Sequence[str], known: Parties, choices: Choices, folder: Path,
    environment: Mapping[str, str],
) -> None:  # fmt: skip
    """A process for each party, with an identity for this run."""
    _enrol(known, folder)
    commands = {}
    for name in known.names:
        words = ["--me", name, "--parties", str(folder / "parties.toml"), "--identity", str(folder / f"{name}.pem")]
        words += [*choices.words(), "--report", str(folder / f"{name}.json"), str(script), *arguments]
        commands[name] = ["mpc", "party", *words]
    codes = _together(commands, environment)
    failed = {name: code for name, code in codes.items() if code}
    if failed:
        # Who was lost is the cause; that the others could not reach it follows from that.
        cause = min(failed, key=lambda name: (failed[name] == Unreachable.exit_code, failed[name] > 0))
        how = f"was killed by signal {-failed[cause]}" if failed[cause] < 0 else f"ended with code {failed[cause]}"
        others = [name for name in failed if name != cause]
        after = f", and {', '.join(others)} could not go on" if others else ""
        raise TrainingFailed(f"party '{cause}' {how}{after}: what each said stands above.")


def _here(names: Sequence[str], parties: Path | None, protocol: str) -> Parties:
    """Parties on this machine."""
    if names and parties is not None:
        raise ConfigError("--names and --parties both name the parties: give one of them.")
    if parties is not None:
        known = computing_parties(Parties.read(parties), protocol).names
    else:
        known = tuple(names) or tuple(f"party-{at}" for at in range(protocol_named(protocol).parties))
    return computing_parties(Parties.here(known), protocol)


def _enrol(parties: Parties, folder: Path) -> None:
    """Identities that live as long as the folder, and the file of parties."""
    authority = Authority.create(folder / "authority", HERE)
    for name in parties.names:
        authority.issue(name, "party", hosts=["127.0.0.1"]).rename(folder / f"{name}.pem")
    tables = [f'[[party]]\nname = "{each.name}"\naddress = "{each.address}"\n' for each in parties.members]
    (folder / "parties.toml").write_text("\n".join(tables), encoding="utf-8")


def _together(commands: Mapping[str, Sequence[str]], given: Mapping[str, str]) -> dict[str, int]:
    """Runs a process for each party, with its name before its lines, and gives their exit codes."""
    width = max(map(len, commands))
    shown = threading.Lock()
    cores = max(1, (os.cpu_count() or 1) // len(commands))
    environment = {"OMP_NUM_THREADS": str(cores), "PYTHONUNBUFFERED": "1", **os.environ, **given}
    processes: dict[str, subprocess.Popen[str]] = {}
    speakers: list[threading.Thread] = []
    with _ended(processes):
        for name, words in commands.items():
            processes[name] = process = subprocess.Popen(
                [sys.executable, "-m", "hansa.app.cli", *words], env=environment, text=True, errors="replace",
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )  # fmt: skip
            for heard, stream in ((process.stdout, sys.stdout), (process.stderr, sys.stderr)):
                assert heard is not None
                lead = f"{name:<{width}} │ "
                speakers.append(threading.Thread(target=_relay, args=(heard, stream, lead, shown), daemon=True))
                speakers[-1].start()
        for process in processes.values():
            process.wait()
        for speaker in speakers:
            speaker.join()
    return {name: process.returncode for name, process in processes.items()}


def _relay(heard: IO[str], stream: IO[str], lead: str, shown: threading.Lock) -> None:
    with heard:
        for line in heard:
            with shown:
                stream.write(lead + line)
                stream.flush()


@contextmanager
def _ended(processes: Mapping[str, "subprocess.Popen[str]"]) -> Iterator[None]:
    """Nothing is left running, whichever way this ends."""
    try:
        yield
    finally:
        for process in processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        until = time.monotonic() + _END_S
        for process in processes.values():
            try:
                process.wait(max(0.1, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
