"""The API of Flower 0.17: parameters of any layout come back, settings are checked, and the tutorial's scripts run."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("grpc")
pytest.importorskip("sqlalchemy")

import hansa.app.flower as fl
from hansa.app.enrol import Authority
from hansa.app.flower import bridge
from hansa.core.errors import ConfigError, TrainingFailed
from hansa.runtimes.mesh.parties import free_ports

SCRIPTS = Path(__file__).resolve().parents[2] / "examples" / "iris" / "flower_style"
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry),
}
MINE = '''
import sys
import numpy as np
import hansa.app.flower as fl

class Mean(fl.client.NumPyClient):
    """Moves a vector and a number halfway to its own."""

    def __init__(self, target, examples):
        self.target, self.examples = target, examples

    def get_parameters(self):
        return [np.zeros((2, 3), "float32"), np.float64(7)]

    def fit(self, parameters, config):
        matrix, number = parameters
        if self.target < 0:
            raise RuntimeError("this client is broken")
        assert matrix.dtype == np.float32 and matrix.shape == (2, 3) and number.shape == ()
        return [matrix + (self.target - matrix) / 2, number + (self.target - number) / 2], self.examples, {}

    def evaluate(self, parameters, config):
        return float(abs(parameters[1] - self.target)), self.examples, {"accuracy": 0.5}

fl.client.start_numpy_client(sys.argv[1], client=Mean(float(sys.argv[2]), int(sys.argv[3])))
'''


@pytest.mark.parametrize(
    "weights",
    [
        np.arange(5, dtype="float32"),
        [np.ones((2, 3)), np.zeros(4, "float32")],
        [np.float64(3)],
        [np.zeros((0, 2), "float16")],
    ],
)
def test_a_layout_is_read_back_as_it_was_written(weights: fl.common.Weights) -> None:
    layout, flat = bridge.read(bridge.written(weights))
    assert flat == isinstance(weights, np.ndarray)
    assert layout == tuple((array.shape, array.dtype.name) for array in bridge.arrays_of(weights))
    again = bridge.weights_of(bridge.tensors_of(weights), flat)
    for mine, theirs in zip(bridge.arrays_of(again), bridge.arrays_of(weights), strict=True):
        assert mine.tobytes() == theirs.tobytes()
        assert mine.flags.writeable


@pytest.mark.parametrize("weights", [[], [np.arange(3)], [np.zeros((1,) * 9)]])
def test_parameters_that_cannot_travel_are_named(weights: fl.common.Weights) -> None:
    with pytest.raises(ConfigError, match="get_parameters"):
        bridge.written(weights)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"fraction_fit": 2.0}, "between 0 and 1"),
        ({"min_fit_clients": 3}, "raise the second"),
        ({"on_fit_config_fn": print}, "no configuration is sent"),
    ],
)
def test_a_strategy_that_cannot_be_is_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        fl.server.strategy.FedAvg(**settings)  # type: ignore[arg-type]


def test_an_unknown_key_of_the_configuration_is_refused() -> None:
    with pytest.raises(ConfigError, match="num_rounds is what there is"):
        fl.server.start_server("127.0.0.1:0", config={"rounds": 3})


def test_the_submitted_jobs_have_no_fault() -> None:
    layout = (((2, 3), "float32"), ((), "float64"))
    bridge.asking_layout().check(2)
    bridge.asking_first(layout, False).check(2)
    bridge.training(layout, False, 3, 2, True, 0).check(2)


def started(folder: Path, *arguments: str, **environment: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, *arguments], cwd=folder, env={**ENVIRONMENT, **environment}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def ended(process: "subprocess.Popen[str]") -> tuple[int, str]:
    try:
        told, _ = process.communicate(timeout=240)
    finally:
        process.kill()
    return process.returncode, told


@pytest.mark.slow
@pytest.mark.parametrize("secure", [False, True], ids=["insecure", "identities"])
def test_two_clients_average_by_their_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, secure: bool) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    address = f"localhost:{free_ports(1)[0]}"
    own: list[dict[str, str]] = [{}, {}]
    if secure:
        authority = Authority.create(tmp_path / "authority", "flowers")
        monkeypatch.setenv("HANSA_IDENTITY", str(authority.issue("hub", "server", hosts=["localhost"])))
        monkeypatch.setenv("HANSA_SUBMITTER", str(authority.issue("carol", "submitter")))
        for place, name in enumerate(("ann", "ben")):
            identity = str(authority.issue(name, "worker"))
            own[place] = {"HANSA_IDENTITY": identity, "HANSA_ALLOW": "signer:carol"}
    clients = [
        started(tmp_path, "mine.py", address, target, examples, **mine)
        for (target, examples), mine in zip((("1", "30"), ("5", "10")), own, strict=True)
    ]
    try:
        history = fl.server.start_server(address, config={"num_rounds": 3}, strategy=fl.server.strategy.FedAvg())
    finally:
        told = [ended(client) for client in clients]
    assert [code for code, _ in told] == [0, 0], told
    # each round moves halfway to the mean target (30·1 + 10·5)/40 = 2
    assert history.parameters is not None
    matrix, number = history.parameters
    np.testing.assert_allclose(matrix, np.full((2, 3), 2 * (1 - 0.5**3)), rtol=1e-6)
    np.testing.assert_allclose(number, 2 + 5 * 0.5**3, rtol=1e-6)
    assert [at for at, _ in history.losses_distributed] == [1, 2, 3]
    assert history.metrics_distributed["accuracy"][-1] == (3, 0.5)


@pytest.mark.slow
def test_a_client_that_raises_ends_with_its_own_error_and_the_server_says_whose(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    address = f"localhost:{free_ports(1)[0]}"
    clients = [started(tmp_path, "mine.py", address, target, "10") for target in ("1", "-1")]
    try:
        with pytest.raises(TrainingFailed, match="this client is broken"):
            fl.server.start_server(address, config={"num_rounds": 2})
    finally:
        told = [ended(client) for client in clients]
    assert told[1][0] == 1
    assert "RuntimeError: this client is broken" in told[1][1]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_tutorials_scripts_run_with_one_import_changed(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("sklearn")
    for name in ("pt_server.py", "pt_client.py"):
        text = (SCRIPTS / name).read_text(encoding="utf-8")
        assert "8080" in text
        (tmp_path / name).write_text(text.replace("8080", str(PORT)), encoding="utf-8")
    processes = [
        started(tmp_path, "pt_server.py", "-r", "40"),
        started(tmp_path, "pt_client.py", "-s", "alice"),
        started(tmp_path, "pt_client.py", "-s", "bob"),
    ]
    told = [ended(process) for process in processes]
    assert [code for code, _ in told] == [0, 0, 0], told
    right = [round(float(share) * 30) for share in re.findall(r"round \d+ of 40: .*accuracy (\d\.\d+)", told[0][1])]
    assert len(right) == 40
    assert max(right) >= 28


PORT = free_ports(1)[0]
