"""A deployed federation of real processes over mutual TLS: the bits of the local runtime, and nothing left behind."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import hansa
from hansa.core.checkpoint import Checkpoint
from hansa.core.data import Clients
from hansa.core.errors import BundleError, ConfigError, NotFound, Unreachable
from hansa.data.files import load
from hansa.runtimes.bundle import pack
from hansa.runtimes.grpc.client import Client
from hansa.runtimes.grpc.server import Server
from hansa.runtimes.jobfile import load_job
from hansa.runtimes.local import train
from tests.runtimes.federation import SRC, Federation, data_of, write_job
from tests.runtimes.proxy import Proxy


def local_state(job: Path, names: list[str]) -> Checkpoint:
    clients = Clients.of({name: load(data_of(job).format(name=name)) for name in names})
    return train(load_job(job), clients).checkpoint


def same_bits(a: Checkpoint, b: Checkpoint) -> bool:
    return a.state == b.state and a.round == b.round and a.memories == b.memories


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory):
    """A server and three workers that several tests share."""
    folder = tmp_path_factory.mktemp("federation")
    job = write_job(folder / "job", cohort=2)
    with Federation(folder, workers=3) as running:
        running.start_server()
        running.start_workers(data_of(job))
        yield running


def test_a_deployed_run_has_the_bits_of_the_local_one(federation: Federation, tmp_path: Path) -> None:
    job = write_job(tmp_path / "job", cohort=2, rounds=6, options=", evaluation=Evaluation(workers=2, every=2)")
    run = federation.submit(job)
    assert federation.wait(run)["state"] == "done", federation.output
    with federation.client() as client:
        deployed = client.model(run)
        events = list(client.watch(run))
        lines = [line["text"] for line in client.logs(run)]
        assert client.healthy()
        assert {member["name"] for member in client.members()} >= {"w0", "w1", "w2"}
        assert run in [row["run"] for row in client.runs()]
        with pytest.raises(NotFound, match="no best model"):
            client.model(run, best=True)
    assert same_bits(deployed, local_state(job, federation.names))
    assert [event["record"]["round"] for event in events if "record" in event] == list(range(6))
    assert events[-1]["status"]["state"] == "done"
    assert any("round 5: 2 of 2 workers" in line for line in lines)


def test_content_over_the_message_limit_travels_in_pieces(federation: Federation, tmp_path: Path) -> None:
    job = write_job(tmp_path / "job", cohort=3, rounds=3, size=600_000)  # 2.4 MB; a message may have 1 MB
    run = federation.submit(job)
    assert federation.wait(run)["state"] == "done", federation.output
    with federation.client() as client:
        assert same_bits(client.model(run), local_state(job, federation.names))


def test_two_runs_share_the_workers(federation: Federation, tmp_path: Path) -> None:
    jobs = [write_job(tmp_path / name, cohort=3, rounds=rounds, sleep=0.02) for name, rounds in (("a", 12), ("b", 9))]
    runs = [federation.submit(job) for job in jobs]
    for run, job in zip(runs, jobs, strict=True):
        assert federation.wait(run)["state"] == "done", federation.output
        with federation.client() as client:
            assert same_bits(client.model(run), local_state(job, federation.names))


def test_no_update_is_ever_in_clear_on_the_server(federation: Federation, tmp_path: Path) -> None:
    """Row I8: uploads are sealed while they wait for the slowest worker, and gone after their round."""
    job = write_job(tmp_path / "job", cohort=3, rounds=1, size=600_000)
    marked = """w[3:] = params["w"][3:] + np.float32(data["x"].sum())
        if abs(data["x"].sum() - SLOW) < 1e-3:
            time.sleep(2)
        return Fit("""
    totals = {name: load(data_of(job).format(name=name))["x"].sum() for name in federation.names}
    marked = marked.replace("SLOW", repr(float(totals["w2"])))
    job.write_text(job.read_text().replace("return Fit(", marked, 1))
    run = federation.submit(job)
    state = federation.folder / "state"
    until = time.monotonic() + 20
    while sum(path.stat().st_size > 2_400_000 for path in (state / "spool").iterdir()) < 2:
        assert time.monotonic() < until, federation.output
        time.sleep(0.02)
    start = load_job(job).model.init(7)["w"][3:]
    marks = {name: (start + np.float32(total) - start)[:16].tobytes() for name, total in totals.items()}

    def found() -> list[Path]:
        files = {path: path.read_bytes() for path in state.rglob("*") if path.is_file()}
        return [path for path, content in files.items() if any(mark in content for mark in marks.values())]

    assert found() == [], "while uploads wait"
    assert federation.wait(run)["state"] == "done", federation.output
    assert list((state / "spool").iterdir()) == []
    assert found() == [], "after the round"


def test_counters_are_those_of_the_sockets(federation: Federation, tmp_path: Path) -> None:
    proxy = Proxy(federation.address)
    job = write_job(tmp_path / "job", cohort=3, rounds=4, size=400_000)
    for name in federation.names:
        federation.workers[name].end()
        federation.start_worker(name, data_of(job).format(name=name), server=proxy.address)
    federation.server.wait_for("w2 connected")
    run = federation.submit(job)
    assert federation.wait(run)["state"] == "done", federation.output
    with federation.client() as client:
        records = [event["record"] for event in client.watch(run) if "record" in event]
    for counted, carried in (
        (sum(r["up_bytes"] for r in records), proxy.up),
        (sum(r["down_bytes"] for r in records), proxy.down),
    ):
        assert abs(counted - carried) < 0.01 * carried, (counted, carried)
    proxy.cut()
    for name in federation.names:
        federation.workers[name].end()
        federation.start_worker(name, data_of(job).format(name=name))
    proxy.close()


PRIVATE = """
import hansa
from mymodel import Line

job = hansa.Job(
    model=Line(3), algorithm=hansa.FedAvg(hansa.LocalWork(lr=0.1, epochs=1, batch_size=4)), cohort=3, rounds=3,
    pipeline=hansa.Pipeline([hansa.Clip(1.0), hansa.UniformMean(), hansa.Gaussian(2.0)], hansa.Sum()),
    epsilon={epsilon}, delta=1e-3,
)
"""


def test_a_private_run_says_what_it_cost_and_keeps_its_budget(federation: Federation, tmp_path: Path) -> None:
    pytest.importorskip("dp_accounting")
    job = write_job(tmp_path / "job")
    (job.parent / "mymodel.py").write_text(job.read_text().split("@dataclass(frozen=True)\nclass Remembering")[0])
    job.write_text(PRIVATE.format(epsilon=50.0))
    run = federation.submit(job)
    assert federation.wait(run)["state"] == "done", federation.output
    with federation.client() as client:
        spent = [event["privacy"] for event in client.watch(run) if "privacy" in event][-1]
    cost = hansa.privacy.epsilon(load_job(job), population=3, delta=spent["delta"])
    assert spent["epsilon"] == pytest.approx(cost.epsilon)
    job.write_text(PRIVATE.format(epsilon=0.1))
    refused = federation.wait(federation.submit(job))
    assert refused["state"] == "failed"
    assert "more rounds would bring ε to" in refused["reason"] and "beyond epsilon=0.1" in refused["reason"]


def test_a_job_that_raises_fails_its_run_alone_and_names_the_line(federation: Federation, tmp_path: Path) -> None:
    job = write_job(tmp_path / "job", cohort=3)
    job.write_text(
        job.read_text().replace(
            "w = params", "print('about to fail'); raise ValueError('no such ward')\n        w = params"
        )
    )
    run = federation.submit(job)
    status = federation.wait(run)
    assert status["state"] == "failed"
    assert "ValueError: no such ward" in status["reason"] and "job.py" in status["reason"]
    with federation.client() as client:
        lines = list(client.logs(run))
    assert any(line["source"] in federation.names and line["text"] == "about to fail" for line in lines)


def test_a_job_that_kills_its_process_fails_its_run_and_not_the_worker(federation: Federation, tmp_path: Path) -> None:
    job = write_job(tmp_path / "job", cohort=3)
    good = job.read_text()
    job.write_text(good.replace("w = params", "import os; os._exit(3)\n        w = params"))
    status = federation.wait(federation.submit(job))
    assert status["state"] == "failed"
    assert "exit code 3" in status["reason"]
    job.write_text(good)
    assert federation.wait(federation.submit(job))["state"] == "done"


def test_a_run_is_stopped_and_resumed_with_the_same_bits(federation: Federation, tmp_path: Path) -> None:
    job = write_job(tmp_path / "job", cohort=3, rounds=30, sleep=0.03)
    run = federation.submit(job)
    with federation.client() as client:
        for event in client.watch(run):
            if "record" in event and event["record"]["round"] >= 2:
                break
        stopped = client.stop(run)
        assert stopped["state"] == "stopped" and "alice" in stopped["reason"]
        assert 3 <= stopped["round"] < 30
        assert client.resume(run)["state"] in ("stopped", "submitted", "running")
        assert list(client.watch(run))[-1]["status"]["state"] == "done"
        assert same_bits(client.model(run), local_state(job, federation.names))


def test_an_unsigned_job_and_a_job_of_a_stranger_are_refused(federation: Federation, tmp_path: Path) -> None:
    job = write_job(tmp_path / "job")
    with federation.client() as client, pytest.raises(BundleError, match="unsigned"):
        client.submit(pack(job, None, None))


def test_a_policy_that_does_not_allow_the_signer_says_so(tmp_path: Path) -> None:
    job = write_job(tmp_path / "job", cohort=1)
    with Federation(tmp_path, workers=1) as federation:
        federation.start_server()
        federation.start_worker("w0", data_of(job).format(name="w0"), policy=["signer:bob"])
        status = federation.wait(federation.submit(job))
        assert status["state"] == "failed" and "PolicyError" in status["reason"] and "--allow" in status["reason"]
        assert not (tmp_path / "w0" / "runs" / status["run"] / "code").exists(), "nothing was unpacked"


def test_one_folder_has_one_server(tmp_path: Path) -> None:
    server = Server(tmp_path / "state", insecure=True)
    server.start()
    try:
        with pytest.raises(Exception, match="in use by another server"):
            Server(tmp_path / "state", insecure=True)
    finally:
        server.stop()


def test_without_identities_only_this_machine_is_served(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="insecure"):
        Server(tmp_path / "state", listen="0.0.0.0:0", insecure=True)
    with pytest.raises(ConfigError, match="hansa enrol"):
        Server(tmp_path / "state")
    with pytest.raises(ConfigError, match="127.0.0.1"):
        Client("example.org:1", insecure=True)


def test_an_insecure_federation_trains_too(tmp_path: Path) -> None:
    job = write_job(tmp_path / "job", cohort=2, rounds=3)
    with Federation(tmp_path, secure=False) as federation:
        federation.start_server()
        federation.start_workers(data_of(job))
        run = federation.submit(job)
        assert federation.wait(run)["state"] == "done", federation.output
        with federation.client() as client:
            assert same_bits(client.model(run), local_state(job, federation.names))


def test_a_worker_needs_neither_sqlalchemy_nor_torch() -> None:
    code = (
        "import sys, hansa.runtimes.grpc.worker, hansa.runtimes.grpc.executor; "
        "print([m for m in ('torch', 'sqlalchemy', 'typer') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(SRC)}, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_nobody_answers_is_said_so(tmp_path: Path) -> None:
    with (
        Client("127.0.0.1:1", insecure=True, timeout_s=2) as client,
        pytest.raises(Unreachable, match="nobody answers"),
    ):
        client.runs()
