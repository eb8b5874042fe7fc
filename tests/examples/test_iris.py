"""The iris tutorial: its model, its split, and the accuracy it reports."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import hansa
from hansa.runtimes.jobfile import clients_of, load_module

pytest.importorskip("torch")
datasets = pytest.importorskip("sklearn.datasets")

JOB = Path(__file__).resolve().parents[2] / "examples" / "iris" / "job.py"
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry),
}


@pytest.fixture(scope="module")
def module() -> ModuleType:
    return load_module(JOB)


def test_model_has_the_1248_parameters_of_the_tutorial(module: ModuleType) -> None:
    shapes = module.job.model.shapes()
    assert {name: shape for name, (shape, _) in shapes.items()} == {"w_xh": (4, 32), "w_hh": (32, 32), "w_hy": (32, 3)}
    assert module.job.model.init(0).count == 1248


def test_initial_weights_are_normal_over_the_root_of_the_size(module: ModuleType) -> None:
    params = module.job.model.init(3)
    for name, size in (("w_xh", 4 * 32), ("w_hh", 32 * 32), ("w_hy", 32 * 3)):
        assert np.std(params[name]) * np.sqrt(size) == pytest.approx(1, abs=0.25)


def test_split_is_the_tutorials_own_code(module: ModuleType) -> None:
    x, y = datasets.load_iris(return_X_y=True)
    for array in (x, y):  # the tutorial shuffles both in place, each time from seed 42
        np.random.RandomState(42).shuffle(array)
    parts = module.data.cut()
    for name, rows in (("validation", slice(0, 30)), ("alice", slice(30, 90)), ("bob", slice(90, 150))):
        np.testing.assert_array_equal(parts[name]["x"], x[rows].astype(np.float32))
        np.testing.assert_array_equal(parts[name]["y"], y[rows])


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_best_of_40_rounds_is_29_of_30_and_round_20_has_at_least_28(module: ModuleType, seed: int) -> None:
    history = hansa.train(replace(module.job, seed=seed), clients_of(module))
    right = [round(record.central["accuracy"] * 30) for record in history.rounds]
    assert len(right) == 40
    assert max(right) == 29
    assert right[19] >= 28


def test_best_model_is_the_one_that_was_kept(module: ModuleType) -> None:
    history = hansa.train(module.job, clients_of(module))
    hits, of = module.job.model.evaluate(history.best_params, module.data.validation())["accuracy"]
    assert (hits, of) == (29, 30)


@pytest.mark.slow
def test_the_same_tutorial_over_grpc_gives_the_same_bits(module: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("grpc")
    pytest.importorskip("sqlalchemy")
    from hansa.app.enrol import Authority
    from hansa.crypto.identity import Identity
    from hansa.runtimes.bundle import pack
    from hansa.runtimes.grpc.client import Client
    from hansa.runtimes.grpc.server import Server

    authority = Authority.create(tmp_path / "authority", "iris")
    carol = Identity.load(authority.issue("carol", "submitter"))
    server = Server(
        tmp_path / "state", identity=Identity.load(authority.issue("server", "server", hosts=["127.0.0.1"]))
    )
    address = server.start()
    running = []
    try:
        for name in ("alice", "bob"):
            command = [sys.executable, "-m", "hansa.app.cli", "worker", "--server", address, "--allow", "signer:carol"]
            command += ["--identity", str(authority.issue(name, "worker")), "--state", str(tmp_path / name)]
            command += ["--data", f"{JOB.with_name('data.py')}:{name}"]
            running.append(subprocess.Popen(command, env=ENVIRONMENT))
        with Client(address, identity=carol) as client:
            run = client.submit(pack(JOB, None, carol), workers=2)
            records = [event["record"] for event in client.watch(run) if "record" in event]
            last, best = client.model(run), client.model(run, best=True)
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait(20)
        server.stop()
    right = [round(record["central"]["accuracy"] * 30) for record in records]
    assert max(right) == 29
    assert right[19] >= 28
    history = hansa.train(load_module(JOB).job, clients_of(module))
    assert last.state.part("model") == history.params
    assert best.state.part("model") == history.best_params
