"""Secure sums in a federation of real processes: what leaves a worker, what a server has on disk, what faults do."""

import re
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hansa.core.data import Clients
from hansa.core.tensors import Tensors
from hansa.data.files import load
from hansa.runtimes.grpc.wire import parse_one, pb
from hansa.runtimes.jobfile import load_job
from hansa.runtimes.local import train
from hansa.stages import secure_sum
from tests.runtimes.federation import Federation, data_of, write_job
from tests.runtimes.relay import Relay
from tests.runtimes.test_deploy import local_state, same_bits

MORE = """
from hansa.algorithms.fedavg import FedAvg
from hansa.core.sampling import Fixed
from hansa.stages.clip import Clip
from hansa.stages.quantise import Quantise
from hansa.stages.secure_sum import SecureSum
"""
STAGES = "[Clip(1.0), UniformMean(), Quantise(bits=16)]"


def write_secure(folder: Path, cohort: str = "cohort=3", **options: Any) -> Path:
    """The suite's job file with a secure sum."""
    job = write_job(folder, more=MORE, **options)
    text = job.read_text().replace("[UniformMean()], Sum()", f"{STAGES}, SecureSum()").replace("cohort=2", cohort)
    job.write_text(text)
    return job


def contributions(job: Path, names: list[str], monkeypatch: pytest.MonkeyPatch) -> dict[str, list[list[bytes]]]:
    """For each client and round, what its update is before it is masked, in every form that it takes."""
    seen: dict[str, list[list[bytes]]] = {name: [] for name in names}
    whole = secure_sum._Bound.worker

    def watched(self: Any, message: Tensors, seat: Any) -> Any:
        runs = self.layout.encode(message)
        forms = [np.ascontiguousarray(array).tobytes() for array in message.values()]
        forms += [run.tobytes() for run in runs] + [self.layout.fields.pack(runs).tobytes()]
        seen[seat.name].append(forms)
        return whole(self, message, seat)

    with monkeypatch.context() as patch:
        patch.setattr(secure_sum._Bound, "worker", watched)
        train(load_job(job), Clients.of({name: load(data_of(job).format(name=name)) for name in names}))
    return seen


def windows(content: bytes) -> np.ndarray:
    """Every run of eight bytes as a number, but for those that could be anybody's: mostly 0 or 255, as padding is."""
    raw = np.frombuffer(content, np.uint8)
    telling = np.cumsum(np.concatenate([[0], (raw != 0) & (raw != 255)]))
    whole = np.flatnonzero(telling[8:] - telling[:-8] >= 5)
    return np.lib.stride_tricks.sliding_window_view(raw, 8)[whole].view("<u8").reshape(-1)


def found(secret: list[bytes], public: np.ndarray) -> int:
    """How many windows of the secrets are among public ones, which are sorted."""
    sought = np.concatenate([windows(form) for form in secret])
    places = np.searchsorted(public, sought).clip(max=len(public) - 1)
    return int((public[places] == sought).sum())


def test_no_window_of_an_update_leaves_its_worker_or_lies_on_the_servers_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The vector is larger than a message, so that it goes through Push and the spool; the server is killed once."""
    job = write_secure(tmp_path / "job", rounds=2, size=120_000)
    job.write_text(job.read_text().replace("return Fit(", NOISE + "return Fit("))
    with Federation(tmp_path, workers=3) as federation:
        members = tmp_path / "authority" / "members"
        federation.start_server(failpoint="before-charge")
        for name in ("w1", "w2"):
            federation.start_worker(name, data_of(job).format(name=name))
        with Relay(federation.address, members / "server.pem", members / "w0.pem") as relay:
            federation.start_worker("w0", data_of(job).format(name="w0"), server=relay.address)
            run = federation.submit(job)
            assert federation.server is not None
            assert federation.server.popen.wait(120) == -9, federation.output
            spooled = [path.read_bytes() for path in (tmp_path / "state" / "spool").iterdir()]
            federation.server.end()
            federation.start_server()
            status = federation.wait(run, 120)
            assert status["state"] == "done", f"{status}\n{federation.output}"
            captured = b"|".join(relay.up)
        with federation.client() as client:
            model = client.model(run)
    reference = local_state(job, federation.names)
    assert model.state == reference.state, "the sum is exact"
    assert [(entry.round, entry.attempt) for entry in model.ledger] == [(0, 0), (0, 1), (1, 0)], "void, and charged"

    updates = contributions(job, federation.names, monkeypatch)
    assert [len(rounds) for rounds in updates.values()] == [2, 2, 2]
    packed = updates["w0"][0][-1]
    left, kept = np.sort(windows(captured)), np.sort(windows(b"|".join(spooled + files(tmp_path / "state"))))
    assert len(spooled) >= 2 and min(map(len, spooled)) >= len(packed) and len(captured) > 3 * len(packed)
    assert found([packed], np.sort(windows(b"x" + packed))) > 100_000, "the search finds what is there"
    for name, rounds in updates.items():
        for forms in rounds:
            assert found(forms, kept) == 0
            assert name != "w0" or found(forms, left) == 0


def files(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in folder.rglob("*") if path.is_file()]


# Training that moves every coordinate, so that an update is no run of zeros.
NOISE = """w += np.float32(0.001) * rng.standard_normal(len(w)).astype("float32")
        """


def test_doubled_late_and_replayed_legs_change_nothing(tmp_path: Path) -> None:
    job = write_secure(tmp_path / "job", rounds=3)
    earlier: list[bytes] = []

    def mangle(data: bytes) -> list[bytes]:
        """Each answer twice, and before it one of an earlier leg, round or attempt."""
        if parse_one(pb.FromWorker, data)[0] != "answer":
            return [data]
        old = earlier[len(earlier) // 2 :][:1]
        earlier.append(data)
        return [*old, data, data]

    with Federation(tmp_path, workers=3) as federation:
        members = tmp_path / "authority" / "members"
        federation.start_server()
        for name in ("w1", "w2"):
            federation.start_worker(name, data_of(job).format(name=name))
        with Relay(federation.address, members / "server.pem", members / "w0.pem", mangle) as relay:
            federation.start_worker("w0", data_of(job).format(name="w0"), server=relay.address)
            run = federation.submit(job)
            assert federation.wait(run)["state"] == "done", federation.output
        with federation.client() as client:
            assert same_bits(client.model(run), local_state(job, federation.names))
            late = sum(event["record"]["late"] for event in client.watch(run) if "record" in event)
    assert late >= 2 * 5 * 2, "they were counted as such"


def test_below_its_threshold_a_secure_round_is_void_and_says_that_nothing_was_revealed(tmp_path: Path) -> None:
    """Two of four are killed after they masked; with a quorum of two the round loop would go on, the secret may not."""
    job = write_secure(tmp_path / "job", "sampling=Fixed(4, quorum=2, deadline_s=8), attempts=1", rounds=1)
    with Federation(tmp_path, workers=4) as federation:
        federation.start_server()
        for name in federation.names:
            failpoint = "leg-3" if name in ("w0", "w1") else ""
            federation.start_worker(name, data_of(job).format(name=name), failpoint=failpoint)
        status = federation.wait(federation.submit(job), 120)
        assert status["state"] == "failed", federation.output
        assert "nothing of this round was revealed" in status["reason"], status
        with sqlite3.connect(tmp_path / "state" / "hansa.db") as database:
            assert database.execute("select count(*) from checkpoints").fetchone() == (0,)


def test_a_sum_with_a_helper_that_dies_is_void_and_done_again_with_its_successor(tmp_path: Path) -> None:
    job = write_secure(tmp_path / "job", rounds=2)
    job.write_text(job.read_text().replace("SecureSum()", "MpcSum(helpers=('w3',))").replace(MORE, MORE + MPC))
    with Federation(tmp_path, workers=4) as federation:
        federation.start_server()
        for name in ("w0", "w1", "w2"):
            federation.start_worker(name, data_of(job).format(name=name))
        federation.start_worker("w3", None, failpoint="leg-2")
        run = federation.submit(job, workers=3)
        assert federation.workers["w3"].popen.wait(60) == -9, federation.output
        federation.workers["w3"].end()
        assert federation.server is not None
        federation.server.wait_for("waiting for w3 (last seen", 40)
        federation.start_worker("w3", None)
        assert federation.wait(run)["state"] == "done", federation.output
        with federation.client() as client:
            assert same_bits(client.model(run), local_state(job, ["w0", "w1", "w2"]))
            records = [event["record"] for event in client.watch(run) if "record" in event]
    assert [(record["attempt"], record["asked"]) for record in records] == [(1, 3), (0, 3)]
    assert "w3: it was restarted in the middle" in records[0]["void"][0]


MPC = """
from hansa.stages.mpc_sum import MpcSum
"""


def test_what_a_job_prints_and_its_errors_say_stays_at_a_worker_that_hides_its_update(tmp_path: Path) -> None:
    job = write_secure(tmp_path / "job", rounds=1)
    broken = "who = 'Jane' + ' Doe'; print('of', who)\n        raise ValueError('ward 7: ' + who)\n        w = params"
    job.write_text(job.read_text().replace("w = params", broken, 1))
    with Federation(tmp_path, workers=3) as federation:
        federation.start_server()
        federation.start_workers(data_of(job))
        run = federation.submit(job)
        status = federation.wait(run)
        assert status["state"] == "failed" and "Jane Doe" not in status["reason"]
        assert "job.py" in status["reason"] and "ValueError, whose words are in the worker's log" in status["reason"]
        with federation.client() as client:
            lines = [line["text"] for line in client.logs(run)]
        assert not any("Jane Doe" in line for line in lines), lines
        assert federation.server is not None and "Jane Doe" not in federation.server.output
        failed = re.search(r"(w\d): the job's code failed", status["reason"])
        assert failed is not None, status["reason"]
        for text in ("of Jane Doe", "ValueError: ward 7: Jane Doe"):
            federation.workers[failed[1]].wait_for(f"the job prints: {text}")


def test_a_federation_without_identities_refuses_a_secure_sum(tmp_path: Path) -> None:
    job = write_secure(tmp_path / "job", rounds=1)
    with Federation(tmp_path, workers=3, secure=False) as federation:
        federation.start_server()
        federation.start_workers(data_of(job))
        status = federation.wait(federation.submit(job))
        assert status["state"] == "failed" and "knows no identities" in status["reason"], status


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("gone", [0.0, 0.2, 0.4])
def test_of_twenty_workers_some_are_killed_in_every_leg_and_the_sum_is_that_of_those_that_masked(
    gone: float, tmp_path: Path
) -> None:
    """As many die when they are asked to share, to mask, to agree and to unmask; the last two kinds are in the sum."""
    sampling = "sampling=Fixed(20, quorum=12, deadline_s=40), attempts=1"
    job = write_secure(tmp_path / "job", sampling, rounds=1)
    job.write_text(job.read_text().replace("SecureSum()", "SecureSum(0.55)"))
    with Federation(tmp_path, workers=20) as federation:
        federation.start_server()
        dying = {name: 1 + at % 4 for at, name in enumerate(federation.names[: round(gone * 20)])}
        for name in federation.names:
            failpoint = f"leg-{dying[name]}" if name in dying else ""
            federation.start_worker(name, data_of(job).format(name=name), failpoint=failpoint)
        status = federation.wait(federation.submit(job), 400)
        assert status["state"] == "done", federation.output
        masked = [name for name in federation.names if dying.get(name, 9) > 2]
        assert status["last"]["counted"] == len(masked) == 20 - len(dying) // 2
        assert set(status["last"]["dropped"]) == set(federation.names) - set(masked)
        with federation.client() as client:
            model = client.model(status["run"])
    job.write_text(job.read_text().replace(sampling, f"cohort={len(masked)}"))
    assert model.state == local_state(job, masked).state
