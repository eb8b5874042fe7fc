"""`hansa demo`: a server and three hospitals on this machine, from enrolment to a report, in about a minute.

cases     who holds what, by a rule fixed beforehand
job/      what alice submits
league    the processes
checks    what is tried on them
arms      what each alone and a pool of all cases reach
report    report.html
"""

import argparse
import contextlib
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from hansa.app.demo import cases, checks, league
from hansa.app.demo.arms import ARMS, CAVEATS, Table, compare, spread, wins
from hansa.app.demo.report import WORDS, Findings, page
from hansa.app.folder import check_file
from hansa.app.show import Rounds
from hansa.app.terminal import say, size
from hansa.core.data import Clients
from hansa.core.errors import ConfigError, TrainingFailed
from hansa.core.job import Job
from hansa.core.tensors import Tensors
from hansa.core.train import Record
from hansa.crypto.identity import Identity
from hansa.runtimes.bundle import pack
from hansa.runtimes.grpc.client import Client
from hansa.runtimes.jobfile import load_job
from hansa.runtimes.local import train

SEEDS = 5


def run(arguments: Sequence[str] = ()) -> None:
    """The whole demo.

    Args:
      arguments: `--keep DIR` keeps the federation's folder (else a temporary one), `--report FILE` (default
        report.html), `--seeds N` (default 5).

    Raises:
      ConfigError: the folder to keep is not empty.
      TrainingFailed: a process ended, the run failed, or the local runtime gave other bits.
    """
    options = _options(arguments)
    with _folder(options.keep) as folder:
        findings = _findings(folder, options.seeds)
    report = options.report.absolute()
    report.write_text(page(findings), encoding="utf-8")
    _tell(findings)
    say(f"\nThe curves, and all this with pictures: {report}")
    if options.keep is not None:
        say(f"The federation’s folder, with every command’s log: {options.keep}")
    if not findings.same_bits:
        raise TrainingFailed("the federation and the local runtime gave different bits: please report this.")
    failed = [check for check in findings.checks if not check.passed]
    if failed:
        raise TrainingFailed(f"{failed[0].what}: this was tried, and seen was: {failed[0].seen}. Please report this.")


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="hansa demo", description=__doc__.partition("\n")[0])
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the federation's folder here")
    parser.add_argument(
        "--report", type=Path, metavar="FILE", default=Path("report.html"), help="where to write the report"
    )
    parser.add_argument("--seeds", type=int, metavar="N", default=SEEDS, help="how many seeds to compare")
    options = parser.parse_args(list(arguments))
    if options.seeds < 1:
        raise ConfigError(f"--seeds {options.seeds}: at least 1 is needed.")
    check_file(options.report, "--report")
    return options


@contextlib.contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="hansa-demo-") as temporary:
            yield Path(temporary)
        return
    if keep.exists() and (not keep.is_dir() or any(keep.iterdir())):
        raise ConfigError(f"--keep {keep}: it is there and not empty, choose a new folder.")
    keep.mkdir(parents=True, exist_ok=True)
    yield keep.absolute()


def _findings(folder: Path, seeds: int) -> Findings:
    """Founds the federation, trains, checks, compares."""
    clock = {"start": time.monotonic()}
    job = load_job(league.JOB / "job.py")
    say(f"The rule, fixed beforehand: {cases.RULE}")
    parts, test = cases.cut(job.seed)
    holdings = {name: _diagnoses(part["y"]) for name, part in [*parts.items(), ("test set (server)", test)]}
    for name, (benign, malignant) in holdings.items():
        total = benign + malignant
        say(f"  {name:<18} {total:>4} cases, {malignant:>3} malignant ({malignant / total:.0%})")
    say("Enrolling an authority, a server, three hospitals and a submitter …")
    place = league.found(folder, job.seed)
    say(f"Starting a server and three hospitals on {place.address}, as processes of their own, over mutual TLS 1.3 …")
    with league.running(place) as client:
        identity = Identity.load(place.submitter)
        bundle = pack(place.job, None, identity)
        say(f"{identity.name} signs and submits the job {bundle.hash[:12]} …")
        clock["submit"] = time.monotonic()
        name = client.submit(bundle, workers=len(cases.SHARES))
        records = _watched(client, name, job)
        clock["trained"] = time.monotonic()
        learnt = client.model(name).state.part("model")
        members = [member["name"] for member in client.members() if member["role"] == "worker"]
        say(f"Took part: {', '.join(sorted(members))}. Knocking at the server’s door, and searching what it keeps …")
        tried = [*checks.connections(place.address, place.submitter), *_kept(place, list(parts))]
    for check in tried:
        say(f"  {'✓' if check.passed else '✗'} {check.what}: {check.seen}")
    say("The same job in this process …")
    same = learnt == _local(job)
    say(f"  {'✓ equal to the last bit' if same else '✗ DIFFERENT'}: {learnt.count} parameters, federated and local")
    say(f"What each hospital alone would have reached, and a pool of all cases, over {seeds} seeds …")
    table = compare(job, range(job.seed, job.seed + seeds))
    return Findings(
        records=records, holdings=holdings, raw_bytes=sum(place.cases(name).stat().st_size for name in parts),
        table=table, checks=tried, run=name, job_hash=bundle.hash, signer=identity.name, parameters=learnt.count,
        same_bits=same, training_s=clock["trained"] - clock["submit"], total_s=time.monotonic() - clock["start"],
    )  # fmt: skip


def _watched(client: Client, name: str, job: Job) -> list[Record]:
    """Shows the rounds as they come, and gives them; TrainingFailed with the server's reason."""
    records: list[Record] = []
    status: dict[str, object] = {}
    with Rounds(job.name, job.rounds) as shown:
        for event in client.watch(name):
            if "record" in event:
                records.append(Record.from_json(event["record"]))
                shown.add(event["record"])
            elif "status" in event:
                status = event["status"]
                shown.waiting(str(status.get("waiting") or ""))
    if status.get("state") != "done":
        raise TrainingFailed(f"run {name} ended as {status.get('state')}: {status.get('reason')}")
    return records


def _kept(place: league.League, hospitals: Sequence[str]) -> list[checks.Check]:
    """What the server's folder holds after the run."""
    files = [path for path in place.state.rglob("*") if path.is_file()]
    raw = [cases.read(place.cases(name), scale=scale) for name in hospitals for scale in (False, True)]
    updates = [path for path in (place.state / "spool").rglob("*") if path.is_file()]
    gone = checks.Check("no hospital's update outlived its round", not updates, f"{len(updates)} files in the spool")
    return [checks.rows_in(raw, files), gone]


def _local(job: Job) -> Tensors:
    parts = {name: cases.scaled(part) for name, part in cases.cut(job.seed)[0].items()}
    return train(job, Clients.of(parts)).checkpoint.state.part("model")


def _diagnoses(y: np.ndarray) -> tuple[int, int]:
    malignant = int(y.sum())
    return len(y) - malignant, malignant


def _tell(findings: Findings) -> None:
    """The figures, for a terminal."""
    table: Table = findings.table
    say(f"\nAccuracy on the held-out test set, median (range) of {len(table)} seeds, and log loss:")
    for arm in ARMS:
        middle, low, high = spread(table, arm)
        loss, best, worst = spread(table, arm, "loss")
        say(f"  {WORDS[arm]:<24} {middle:6.1%}  ({low:.1%} – {high:.1%})    {loss:.3f}  ({best:.3f} – {worst:.3f})")
    for hospital in cases.SHARES:
        more, equal, fewer = wins(table, hospital)
        say(f"  together against {WORDS[hospital]}: better in {more} seeds, equal in {equal}, worse in {fewer}")
    say("What is not comparable:")
    for caveat in CAVEATS:
        say(f"  - {caveat}")
    up, down = sum(r.up_bytes for r in findings.records), sum(r.down_bytes for r in findings.records)
    say(
        f"Sent in {len(findings.records)} rounds: {size(up)} up (differences of {findings.parameters} parameters) and "
        f"{size(down)} down; the hospitals’ files of {size(findings.raw_bytes)} stayed where they are."
    )
    say(f"Training took {findings.training_s:.1f} s, everything {findings.total_s:.1f} s.")


if __name__ == "__main__":
    run(sys.argv[1:])
