"""Everything is killed, cut, garbled and filled up, for real; the run ends with the bits of an undisturbed one."""

import os
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hansa.app.enrol import Authority
from hansa.core.errors import HansaError, Refused, Unreachable
from hansa.crypto.identity import Identity
from hansa.runtimes.grpc.client import Client
from tests.runtimes.federation import SRC, Federation, data_of, write_job
from tests.runtimes.proxy import Proxy
from tests.runtimes.test_deploy import local_state, same_bits

BIG = 600_000  # coordinates: 2.4 MB, ten pieces
STEPS = [
    "after-publish",
    "first-reply",
    "mid-fold",
    "before-commit",
    "mid-commit",
    "after-commit",
    "after-retire",
    "before-charge",
    "after-charge",
]


def ends_like_the_local_one(federation: Federation, run: str, job: Path) -> dict:
    status = federation.wait(run)
    assert status["state"] == "done", f"{status}\n{federation.output}"
    with federation.client() as client:
        assert same_bits(client.model(run), local_state(job, federation.names))
        records = [event["record"] for event in client.watch(run) if "record" in event]
    assert [record["round"] for record in records] == list(range(status["rounds"])), "each round is committed once"
    assert all(record["counted"] == record["asked"] for record in records), "nothing is lost, nothing is counted twice"
    return status


QUICK = ("mid-fold", "mid-commit", "after-commit")  # the others differ less, and are in the whole suite


@pytest.mark.parametrize(
    "step",
    [pytest.param(s, marks=[] if s in QUICK else [pytest.mark.slow]) for s in STEPS if "charge" not in s],
)
def test_a_server_killed_at_any_step_goes_on_with_the_same_bits(step: str, tmp_path: Path) -> None:
    job = write_job(tmp_path / "job", cohort=2, rounds=4, size=BIG)
    with Federation(tmp_path) as federation:
        federation.start_server(failpoint=f"{step}:{2 if step in ('first-reply', 'mid-fold') else 3}")
        federation.start_workers(data_of(job))
        run = federation.submit(job)
        assert federation.server is not None
        assert federation.server.popen.wait(30) == -9, federation.output
        federation.server.end()
        left = {path.name for path in (tmp_path / "state" / "spool").iterdir()}
        federation.start_server()
        assert not left & {path.name for path in (tmp_path / "state" / "spool").iterdir()}
        ends_like_the_local_one(federation, run, job)


@pytest.mark.slow
@pytest.mark.parametrize("step", ["before-charge", "after-charge"])
def test_a_server_killed_around_a_charge_never_opens_the_same_noise_twice(step: str, tmp_path: Path) -> None:
    """Noise is the operating system's: the model differs, but every attempt that may have been seen stays charged."""
    pytest.importorskip("hansa.stages.noise")
    imports = ("stages.clip import Clip", "stages.noise import Gaussian", "algorithms.fedavg import FedAvg")
    more = "\n".join(f"from hansa.{line}" for line in imports)
    job = write_job(tmp_path / "job", cohort=2, rounds=4, more=more)
    text = job.read_text().replace("Pipeline([UniformMean()]", "Pipeline([Clip(1.0), UniformMean(), Gaussian(1.0)]")
    job.write_text(text.replace("algorithm=Remembering(", "algorithm=FedAvg("))
    with Federation(tmp_path) as federation:
        federation.start_server(failpoint=f"{step}:3")
        federation.start_workers(data_of(job))
        run = federation.submit(job)
        assert federation.server is not None
        assert federation.server.popen.wait(30) == -9, federation.output
        federation.server.end()
        federation.start_server()
        assert federation.wait(run)["state"] == "done", federation.output
        with federation.client() as client:
            ledger = client.model(run).ledger
        charged = [(entry.round, entry.attempt) for entry in ledger]
        assert len(set(charged)) == len(charged) == (5 if step == "after-charge" else 4)


@pytest.mark.parametrize("step", ["mid-training", "mid-upload"])
def test_a_worker_killed_at_work_is_waited_for_and_gets_its_task_again(step: str, tmp_path: Path) -> None:
    job = write_job(tmp_path / "job", cohort=2, rounds=4, size=BIG, sleep=0.02)
    data = data_of(job)
    with Federation(tmp_path) as federation:
        federation.start_server()
        federation.start_worker("w0", data.format(name="w0"))
        worker = federation.start_worker(
            "w1", data.format(name="w1"), failpoint="mid-upload:2" if step == "mid-upload" else ""
        )
        run = federation.submit(job)
        if step == "mid-training":
            worker.wait_for("is loaded")
            worker.kill()
        else:
            assert worker.popen.wait(30) == -9, federation.output
        worker.end()
        assert federation.server is not None
        federation.server.wait_for("w1 left")
        federation.start_worker("w1", data.format(name="w1"))
        ends_like_the_local_one(federation, run, job)


@pytest.mark.slow
def test_an_executor_that_is_killed_fails_the_round_and_says_how(tmp_path: Path) -> None:
    job = write_job(tmp_path / "job", cohort=1, rounds=4, sleep=0.05)
    with Federation(tmp_path, workers=1) as federation:
        federation.start_server()
        federation.start_worker("w0", data_of(job).format(name="w0"), failpoint="mid-training:3")
        run = federation.submit(job)
        status = federation.wait(run)
        assert status["state"] == "failed" and "signal 9" in status["reason"], status
        assert status["round"] == 2
        with federation.client() as client:
            client.resume(run)
            federation.workers["w0"].end()
            federation.start_worker("w0", data_of(job).format(name="w0"))
        ends_like_the_local_one(federation, run, job)


@pytest.mark.slow
def test_everything_killed_at_once_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    job = write_job(tmp_path / "job", cohort=2, rounds=12, size=BIG, sleep=0.02)
    with Federation(tmp_path) as federation:
        federation.start_server()
        federation.start_workers(data_of(job))
        run = federation.submit(job)
        with federation.client() as client:
            for event in client.watch(run):
                if "record" in event and event["record"]["round"] >= 3:
                    break
        assert federation.server is not None
        everyone = [federation.server, *federation.workers.values()]
        for process in everyone:
            process.popen.kill()
        for process in everyone:
            process.end()
        federation.start_server()
        federation.start_workers(data_of(job))
        ends_like_the_local_one(federation, run, job)


def test_a_cut_transfer_goes_on_where_it_was(tmp_path: Path) -> None:
    job = write_job(tmp_path / "job", cohort=2, rounds=3, size=BIG)
    with Federation(tmp_path) as federation:
        federation.start_server()
        proxy = Proxy(federation.address, cut_after=3_000_000, cuts=4)
        for name in federation.names:
            federation.start_worker(name, data_of(job).format(name=name), server=proxy.address)
        run = federation.submit(job)
        ends_like_the_local_one(federation, run, job)
        assert proxy.cuts_left == 0
        assert "it goes on" in federation.output
        # 2 workers × 3 rounds × 2.4 MB each way, and not much more: what had arrived was not sent again.
        assert proxy.up + proxy.down < 2 * 2 * 3 * 2.4e6 + 4 * 2.5e6
        proxy.close()


def test_a_full_disk_stops_the_run_and_loses_nothing(tmp_path: Path) -> None:
    """The limit on the size of one file stands for the disk's: the second job's uploads do not fit."""
    small, large = (write_job(tmp_path / n, cohort=2, rounds=3, size=s) for n, s in (("small", 3), ("large", BIG)))
    with Federation(tmp_path) as federation:
        federation.start_server(limit=2_000_000)
        federation.start_workers(data_of(small))
        first = federation.submit(small)
        ends_like_the_local_one(federation, first, small)
        second = federation.submit(large)
        status = federation.wait(second)
        assert status["state"] == "failed"
        assert "free space" in status["reason"] and "spool" in status["reason"], status
        assert federation.server is not None
        federation.server.end()
        federation.start_server()
        ends_like_the_local_one(federation, first, small)
        with federation.client() as client:
            client.resume(second)
        ends_like_the_local_one(federation, second, large)


def test_a_foreign_certificate_is_refused_and_both_sides_say_why(tmp_path: Path) -> None:
    job = write_job(tmp_path / "job", cohort=1)
    with Federation(tmp_path, workers=1) as federation:
        federation.start_server()
        other = Authority.create(tmp_path / "other", "elsewhere")
        foreign = other.issue("w0", "worker")
        home = tmp_path / "authority" / "members" / "w0.pem"
        # A stranger that trusts our server, but whom our authority did not enrol.
        mixed = foreign.read_bytes()
        home_authority = (tmp_path / "authority" / "authority.pem").read_bytes()
        with pytest.raises(HansaError, match="did not issue"):
            Identity.parse(mixed.replace((tmp_path / "other" / "authority.pem").read_bytes(), home_authority))
        home.write_bytes(mixed)
        worker = federation.start_worker("w0", data_of(job).format(name="w0"))
        worker.wait_for("not to be trusted")  # its own authority did not issue the server's certificate
        assert raw_tls(federation.address, foreign, home_authority) == "closed"
        assert federation.server is not None
        federation.server.wait_for("refused a peer in the TLS handshake: its certificate is not one of this federation")


def raw_tls(address: str, member: Path, authority: bytes, **options: object) -> str:
    """What the server says to a TLS client with this identity: a reason, or ''."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for name, value in options.items():
        setattr(context, name, value)
    context.set_alpn_protocols(["h2"])
    context.load_verify_locations(cadata=authority.decode())
    context.load_cert_chain(member)
    host, _, port = address.rpartition(":")
    try:
        with (
            socket.create_connection((host, int(port)), 5) as plain,
            context.wrap_socket(plain, server_hostname=host) as tls,
        ):
            tls.settimeout(5)
            tls.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            return "" if tls.recv(100) else "closed"
    except ssl.SSLError as error:
        return str(error.reason)
    except ConnectionError:
        return "closed"


def test_tls_1_2_and_plain_connections_are_refused(tmp_path: Path) -> None:
    with Federation(tmp_path, workers=1) as federation:
        address = federation.start_server()
        member = federation.identity("w0")
        assert member is not None
        authority = (tmp_path / "authority" / "authority.pem").read_bytes()
        assert raw_tls(address, member, authority) == ""
        assert raw_tls(address, member, authority, minimum_version=ssl.TLSVersion.TLSv1_3) == ""
        refused = raw_tls(address, member, authority, maximum_version=ssl.TLSVersion.TLSv1_2)
        assert refused == "UNEXPECTED_EOF_WHILE_READING", "the server ends the handshake"
        assert federation.server is not None
        federation.server.wait_for("it does not speak TLS 1.3")
        with Client(address, insecure=True, timeout_s=3) as client, pytest.raises((Unreachable, Refused)):
            client.runs()


def test_a_revoked_worker_and_a_wrong_role_are_refused_with_the_reason(tmp_path: Path) -> None:
    job = write_job(tmp_path / "job", cohort=1)
    with Federation(tmp_path) as federation:
        federation.start_server()
        federation.start_worker("w0", data_of(job).format(name="w0"))
        assert federation.server is not None
        federation.server.wait_for("w0 connected")
        federation.authority.revoke("w0")
        federation.authority.revoke("w1")
        worker = federation.start_worker("w1", data_of(job).format(name="w1"))
        worker.wait_for("is revoked")
        federation.server.wait_for("identity 'w1' is revoked")
        federation.workers["w0"].wait_for("is revoked")  # it was connected already
        alice, elsewhere = str(federation.identity("alice")), str(tmp_path / "x")
        code = f"""
from hansa.crypto.identity import Identity
from hansa.runtimes.grpc.worker import Worker
Worker({federation.address!r}, {elsewhere!r}, data="x.csv", identity=Identity.load({alice!r}))
"""
        done = subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(SRC)}, capture_output=True, text=True
        )
        assert "enrolled as submitter" in done.stderr


@pytest.mark.slow
def test_a_quorum_lets_a_round_go_on_without_a_worker_whose_lease_ran_out(tmp_path: Path) -> None:
    more = "from hansa.core.sampling import Fixed"
    job = write_job(tmp_path / "job", cohort=2, rounds=3, more=more)
    job.write_text(
        job.read_text().replace("cohort=2", "sampling=Fixed(2, quorum=1)").replace("Remembering(", "Algorithm(")
    )
    with Federation(tmp_path) as federation:
        federation.start_server(ping_s=1)
        federation.start_workers(data_of(job))
        assert federation.server is not None
        federation.server.wait_for("w1 connected")
        federation.server.wait_for("w0 connected")
        federation.workers["w1"].kill()
        run = federation.submit(job, workers=0)
        status = federation.wait(run, 90)
        assert status["state"] == "done", federation.output
        assert "lease ran out" in status["last"]["dropped"]["w1"]


def test_a_server_says_for_whom_it_waits(tmp_path: Path) -> None:
    job = write_job(tmp_path / "job", cohort=2, rounds=2)
    with Federation(tmp_path) as federation:
        federation.start_server()
        federation.start_worker("w0", data_of(job).format(name="w0"))
        run = federation.submit(job)
        assert federation.server is not None
        federation.server.wait_for("waiting for workers: 1 of 2 workers have connected")
        with federation.client() as client:
            assert "1 of 2" in client.status(run)["waiting"]
        federation.start_worker("w1", data_of(job).format(name="w1"), failpoint="")
        assert federation.wait(run)["state"] == "done"
        federation.workers["w1"].kill()
        second = federation.submit(job)
        federation.server.wait_for("waiting for w1", 15)
        with federation.client() as client:
            assert "last seen" in client.status(second)["waiting"]
            assert client.stop(second)["state"] == "stopped"


@pytest.mark.slow
def test_after_an_absence_of_the_server_all_workers_are_back_within_seconds(tmp_path: Path) -> None:
    job = write_job(tmp_path / "job", cohort=2)
    with Federation(tmp_path) as federation:
        federation.start_server()
        federation.start_workers(data_of(job))
        assert federation.server is not None
        federation.server.wait_for("w1 connected")
        federation.server.kill()
        federation.server.end()
        time.sleep(15)
        began = time.monotonic()
        federation.start_server()
        served = time.monotonic()
        federation.server.wait_for("w0 connected")
        federation.server.wait_for("w1 connected")
        # A pause that were doubled for as long as the server is away would be of 16 seconds by now.
        assert time.monotonic() - served < 5, (served - began, time.monotonic() - served)
