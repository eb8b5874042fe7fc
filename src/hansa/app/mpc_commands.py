"""`hansa mpc`: programs on shares, as one party or as all of them, and the files of shares around them."""

import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import typer

from hansa.app.enrol import Authority
from hansa.core.errors import ConfigError, IdentityError, NotFound, Unreachable
from hansa.crypto.identity import Identity
from hansa.mpc.place import Place
from hansa.mpc.protocols import protocol_named
from hansa.mpc.session import computing_parties
from hansa.runtimes.jobfile import explained
from hansa.runtimes.mesh import Parties, Party

_END_S = 5.0


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What both `local` and `party` let one choose.

    Args:
      protocol: see `hansa.mpc.Session`.
      truncation: the same.
      sigmoid: the same.
      wait_s: for the other parties to come.
    """

    protocol: str = "aby3"
    truncation: str = "exact"
    sigmoid: str = "spline"
    wait_s: float = 60.0

    @property
    def options(self) -> dict[str, Any]:
        """Of the session."""
        return {"truncation": self.truncation, "sigmoid": self.sigmoid}

    def words(self) -> list[str]:
        """The same for another call of the command."""
        given = {"protocol": self.protocol, "truncation": self.truncation, "sigmoid": self.sigmoid}
        return [word for name, value in given.items() for word in (f"--{name}", value)] + ["--wait", f"{self.wait_s:g}"]


# -- one party


def party(
    script: Path, arguments: Sequence[str], me: str | None, parties: Path, identity: Path | None, choices: Choices,
    report: Path | None,
) -> None:  # fmt: skip
    """`hansa mpc party`."""
    if identity is None and me is None:
        raise ConfigError("say who this is: --me NAME, with NAME.pem here, or --identity FILE.pem.")
    file = identity or Path(f"{me}.pem")
    name = Identity.load(file).name
    if me is not None and name != me:
        raise IdentityError(f"{file} is the identity of '{name}', not of '{me}': give the file of '{me}'.")
    known = Parties.read(parties)
    if name not in known.names:
        raise ConfigError(f"'{name}' is not among the parties of {parties} ({', '.join(known.names)}).")
    computing_parties(known, choices.protocol)
    _run(script, arguments, Place(
        script=str(script), parties=str(parties), identity=str(file), protocol=choices.protocol,
        options=choices.options, wait_s=choices.wait_s, report=None if report is None else str(report),
    ))  # fmt: skip


def _run(script: Path, arguments: Sequence[str], place: Place) -> None:
    """Runs an ordinary script as Python itself would, and explains what it raises."""
    _check(script)
    place.tell()
    sys.argv = [str(script), *arguments]
    sys.path.insert(0, str(script.absolute().parent))
    with explained(script.absolute()):
        runpy.run_path(str(script), run_name="__main__")


def _check(script: Path) -> None:
    if not script.is_file():
        raise NotFound(f"there is no script '{script}': check the path.")
    if script.suffix != ".py":
        raise ConfigError(f"'{script}' is no Python file: give the .py file that calls hansa.mpc.connect().")


# -- all parties here


def local(
    script: Path, arguments: Sequence[str], names: Sequence[str], parties: Path | None, choices: Choices,
    reports: Path | None,
) -> None:  # fmt: skip
    """`hansa mpc local`.

    Args:
      script: what all run.
      arguments: of the script.
      names: of the parties; empty for those of the file, else party-0, party-1, …
      parties: a file whose computing parties' names are taken; addresses and identities are not.
      choices: what the session is like.
      reports: a folder for each party's report.
    """
    _check(script)
    if choices.protocol == "plain":
        report = None if reports is None else str(reports / "party-0.json")
        _run(script, arguments, Place(script=str(script), protocol="plain", options=choices.options, report=report))
        return
    known = _here(names, parties, choices.protocol)
    with tempfile.TemporaryDirectory(prefix="hansa-mpc-") as made:
        folder = Path(made)
        _enrol(known, folder)
        commands = {}
        for name in known.names:
            words = ["--me", name, "--parties", str(folder / "parties.toml"), "--identity", str(folder / f"{name}.pem")]
            told = [] if reports is None else ["--report", str(reports / f"{name}.json")]
            commands[name] = ["mpc", "party", *words, *choices.words(), *told, str(script), *arguments]
        codes = _together(commands)
    failed = {name: code for name, code in codes.items() if code}
    if failed:
        # Who was lost is the cause; that the others could not reach it follows from that.
        cause = min(failed, key=lambda name: (failed[name] == Unreachable.exit_code, failed[name] > 0))
        how = f"was killed by signal {-failed[cause]}" if failed[cause] < 0 else f"ended with code {failed[cause]}"
        others = [name for name in failed if name != cause]
        after = f", and {', '.join(others)} could not go on" if others else ""
        sys.stderr.write(f"error: party '{cause}' {how}{after}: what each said stands above\n")
        raise typer.Exit(failed[cause] if failed[cause] > 0 else Unreachable.exit_code)


def _here(names: Sequence[str], parties: Path | None, protocol: str) -> Parties:
    """Parties on this machine."""
    if names and parties is not None:
        raise ConfigError("--names and --parties both name the parties: give one of them.")
    if parties is not None:
        known = computing_parties(Parties.read(parties), protocol).names
    else:
        known = tuple(names) or tuple(f"party-{at}" for at in range(protocol_named(protocol).parties))
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in known]
        ports = [each.getsockname()[1] for each in sockets]
    made = Parties(tuple(Party(name, f"127.0.0.1:{port}") for name, port in zip(known, ports, strict=True)))
    return computing_parties(made, protocol)


def _enrol(parties: Parties, folder: Path) -> None:
    """Identities that live as long as the folder, and the file of parties."""
    authority = Authority.create(folder / "authority", "hansa mpc local")
    for name in parties.names:
        authority.issue(name, "party", hosts=["127.0.0.1"]).rename(folder / f"{name}.pem")
    tables = [f'[[party]]\nname = "{each.name}"\naddress = "{each.address}"\n' for each in parties.members]
    (folder / "parties.toml").write_text("\n".join(tables), encoding="utf-8")


def _together(commands: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Runs a process for each party, with its name before its lines, and gives their exit codes."""
    width = max(map(len, commands))
    shown = threading.Lock()
    cores = max(1, (os.cpu_count() or 1) // len(commands))
    environment = {"OMP_NUM_THREADS": str(cores), "PYTHONUNBUFFERED": "1", **os.environ}
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
