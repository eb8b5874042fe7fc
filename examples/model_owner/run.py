"""A model owner learns from five data owners and sees no update: secure aggregation, with each player a process.

    pip install 'hansa[data,deploy,cryptography]'
    python examples/model_owner/run.py [--keep FOLDER]

Enrols everybody, starts the model owner's server, two helpers and five data owners over mutual TLS, submits `job.py`,
and prints what each data owner reaches alone, what all reach together, and who saw what. HANSA_ROUNDS=2 shortens it.
"""

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from job import HELPERS, OWNERS, held_out, holdings, job

import hansa
from hansa.app.enrol import Authority
from hansa.app.jobs import packed
from hansa.core.train import Record
from hansa.crypto.identity import Identity
from hansa.privacy.disclosure import who_sees_what
from hansa.runtimes.grpc.client import Client

HERE = Path(__file__).parent
ROUNDS = int(os.environ.get("HANSA_ROUNDS", job.rounds))
OWNER = "model-owner"


def main(folder: Path) -> None:
    """The whole story, in a folder that has one for each player."""
    data = holdings()
    address = f"127.0.0.1:{free_port()}"
    commands = enrol(folder, data, address)
    print(f"players, each a process: the {OWNER}, {', '.join([*HELPERS, *data])}")
    identity = Identity.load(folder / OWNER / "model-owner.pem")
    with playing(folder, commands), Client(address, identity=identity) as client:
        wait_for(client, folder)
        records, learnt = train(client, identity)

    print(f"\n{'who learns':18} {'digits':>7} {'accuracy':>9}")
    for name, own in data.items():
        print(f"{name + ' alone':18} {len(own):7} {alone(own):9.3f}")
    together = records[-1].central["accuracy"]
    print(f"{'together':18} {sum(map(len, data.values())):7} {together:9.3f}   after {len(records)} rounds")

    print("\nwho saw what")
    for who, what in who_sees_what(job, OWNERS).items():
        print(f"  {who}: {what}")
    each = records[-1].up_bytes / OWNERS
    print(f"\nin each round {each:,.0f} bytes left a data owner, of which {4 * learnt.count:,} would be a plain update")
    plain = replace(job, rounds=len(records), pipeline=replace(job.pipeline, reducer=hansa.Sum()))
    same = hansa.train(plain, hansa.Clients.of(data)).params == learnt
    print(f"the mean is exact: the model has {'the bits' if same else 'OTHER BITS THAN that'} of a plain sum's")
    if not same:
        raise SystemExit("please report it.")


def enrol(folder: Path, data: dict[str, hansa.Dataset], address: str) -> dict[str, list[str]]:
    """A folder for each player with its identity, and its data if it has any; and what each is started with."""
    authority = Authority.create(folder / "authority", "model owner and data owners")

    def member(player: str, name: str, role: str, hosts: tuple[str, ...] = ()) -> None:
        (folder / player).mkdir(mode=0o700, exist_ok=True)
        authority.issue(name, role, hosts=hosts).rename(folder / player / f"{name}.pem")

    member(OWNER, "server", "server", ("127.0.0.1",))
    member(OWNER, OWNER, "submitter")
    commands = {OWNER: ["server", "--state", "state", "--bind", address, "--identity", "server.pem"]}
    for name in (*HELPERS, *data):
        member(name, name, "worker")
        joins = ["worker", "--server", address, "--identity", f"{name}.pem", "--state", "state"]
        commands[name] = [
            *joins,
            "--allow",
            f"signer:{OWNER}",
            *(["--data", "own.npz"] if name in data else ["--helper"]),
        ]
    for name, own in data.items():
        np.savez(folder / name / "own.npz", **own.columns)
    return commands


@contextlib.contextmanager
def playing(folder: Path, commands: dict[str, list[str]]) -> Iterator[None]:
    """Starts every player in its folder, and ends all of them on leaving."""
    paths = os.pathsep.join(entry for entry in sys.path if entry)
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    running: list[subprocess.Popen[bytes]] = []
    try:
        for name, arguments in commands.items():
            with (folder / name / "log").open("wb") as log:
                command = [sys.executable, "-m", "hansa.app.cli", *arguments]
                running.append(subprocess.Popen(command, cwd=folder / name, env=environment, stdout=log, stderr=log))
        yield
    finally:
        for process in reversed(running):
            process.send_signal(signal.SIGTERM)
        for process in running:
            process.wait(20)


def wait_for(client: Client, folder: Path, patience_s: float = 60.0) -> None:
    """Until the model owner's server answers."""
    until = time.monotonic() + patience_s
    while not client.healthy():
        if time.monotonic() > until:
            raise SystemExit(
                f"no answer from the server; its last words: {(folder / OWNER / 'log').read_text()[-500:]}"
            )
        time.sleep(0.1)


def train(client: Client, identity: Identity) -> tuple[list[Record], hansa.Tensors]:
    """Submits the job as the model owner, and gives its rounds and the model."""
    run = client.submit(packed(HERE / "job.py", {"rounds": str(ROUNDS)}, identity), workers=OWNERS)
    events = list(client.watch(run))
    status = next(event["status"] for event in reversed(events) if "status" in event)
    if status["state"] != "done":
        raise SystemExit(f"the run ended as {status['state']}: {status['reason']}")
    records = [Record.from_json(event["record"]) for event in events if "record" in event]
    return records, client.model(run).state.part("model")


def alone(own: hansa.Dataset) -> float:
    """The accuracy of one data owner's own model, after as many passes over its data."""
    solo = hansa.Job(
        model=job.model, algorithm=job.algorithm, pipeline=hansa.Pipeline([hansa.UniformMean()], hansa.Sum()),
        cohort=1, rounds=ROUNDS, evaluation=hansa.Evaluation(data=held_out, every=ROUNDS), seed=job.seed,
    )  # fmt: skip
    return hansa.train(solo, hansa.Clients.of({"own": own})).rounds[-1].central["accuracy"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep every player's folder, with its log, here")
    keep = parser.parse_args().keep
    with contextlib.nullcontext(keep) if keep else tempfile.TemporaryDirectory(prefix="hansa-") as place:
        root = Path(place).absolute()
        root.mkdir(parents=True, exist_ok=True)
        main(root)
