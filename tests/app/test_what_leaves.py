"""What leaves a worker, read off the wire: no raw data, differences and no models; and what is kept.

TLS hides all this, so the federation runs with --insecure and through a proxy that writes down every byte.
"""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

import hansa
from hansa.core.sampling import Stream
from hansa.core.tensors import Tensors
from hansa.runtimes.jobfile import load_module

pytest.importorskip("grpc")
pytest.importorskip("sqlalchemy")

from hansa.app.demo.checks import WINDOW, rows_in
from hansa.runtimes.bundle import pack
from hansa.runtimes.grpc.client import Client
from hansa.runtimes.grpc.server import Server

pytestmark = pytest.mark.slow

JOB = """
import os
import numpy as np
import hansa

def load(name):
    rng = np.random.default_rng(len(name))
    x = rng.normal(size=(40, 6)).astype("float32")
    return hansa.Dataset(x=x, y=(x[:, 0] > 0).astype(int))

def ann():
    return load("ann")

def bertha():
    return load("bertha")

job = hansa.Job(
    model=hansa.LogisticModel(6, classes=2),
    algorithm=hansa.FedAvg(hansa.LocalWork(lr=0.5, epochs=1, batch_size=8)),
    pipeline=hansa.Pipeline([hansa.UniformMean()], hansa.Sum()),
    cohort=2,
    rounds=2,
)
"""


@dataclass
class Proxy:
    """Passes bytes on and keeps a copy, by direction."""

    to: str
    up: bytearray = field(default_factory=bytearray)
    down: bytearray = field(default_factory=bytearray)

    def __enter__(self) -> "Proxy":
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets, self._threads = [self._listener], [threading.Thread(target=self._accept)]
        self._threads[0].start()
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        return self

    def __exit__(self, *_: object) -> None:
        for end in self._sockets:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for end in self._sockets:
            end.close()

    def _accept(self) -> None:
        host, _, port = self.to.rpartition(":")
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection((host, int(port)))
            self._sockets += [near, far]
            for source, sink, copy in ((near, far, self.up), (far, near, self.down)):
                self._threads.append(threading.Thread(target=self._pass, args=(source, sink, copy)))
                self._threads[-1].start()

    @staticmethod
    def _pass(source: socket.socket, sink: socket.socket, copy: bytearray) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                copy.extend(data)
                sink.sendall(data)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)


@contextmanager
def workers(server: str, folder: Path, *names: str) -> Iterator[None]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    command = [sys.executable, "-m", "hansa.app.cli", "worker", "--insecure", "--server", server]
    running = []
    try:
        for name in names:
            data = ["--name", name, "--data", f"{folder / 'owned.py'}:{name}", "--state", str(folder / name)]
            log = (folder / f"{name}.log").open("wb")
            with log:
                running.append(subprocess.Popen([*command, *data], env=environment, stdout=log, stderr=log))
        yield
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait(20)


@dataclass
class Seen:
    """What was captured, and what the same job gives in this process."""

    up: bytes
    down: bytes
    state: list[bytes]
    data: dict[str, hansa.Dataset]
    models: list[Tensors]  # before round 0, after it, after round 1
    differences: dict[str, list[Tensors]]  # of each worker, by round


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    folder = tmp_path_factory.mktemp("federation")
    for name in ("job.py", "owned.py"):
        (folder / name).write_text(JOB)
    server = Server(folder / "state", insecure=True)
    address = server.start()
    try:
        with Proxy(address) as proxy, workers(proxy.address, folder, "ann", "bertha"):
            with Client(address, insecure=True) as client:
                run = client.submit(pack(folder / "job.py", None, None), workers=2)
                statuses = [event["status"] for event in client.watch(run) if "status" in event]
                assert statuses[-1]["state"] == "done", statuses[-1]
                learnt = client.model(run).state.part("model")
            state = [path.read_bytes() for path in (folder / "state").rglob("*") if path.is_file()]
    finally:
        server.stop()
    module = load_module(folder / "job.py")
    data = {name: getattr(module, name)() for name in ("ann", "bertha")}
    clients = hansa.Clients.of(data)
    kept: list[Tensors] = [module.job.model.init(0)]
    differences: dict[str, list[Tensors]] = {name: [] for name in data}
    for at in range(2):
        for name, own in data.items():
            rng = np.random.default_rng(Stream("train", module.job.seed, "train", at, name).seed())
            fit = module.job.model.fit(kept[-1], own, module.job.algorithm.work, rng)
            differences[name].append(fit.params - kept[-1])
        kept.append(hansa.train(replace(module.job, rounds=at + 1), clients).params)
    assert kept[-1] == learnt  # the deployed run gave the same bits, so these are the tensors that travelled
    return Seen(bytes(proxy.up), bytes(proxy.down), state, data, kept, differences)


def test_the_capture_can_be_read(seen: Seen) -> None:
    assert b"value/weight" in seen.up
    assert seen.models[1]["weight"].tobytes() in seen.down


def test_no_eight_bytes_of_any_example_leave_a_worker(seen: Seen, tmp_path: Path) -> None:
    (tmp_path / "up").write_bytes(seen.up)
    (tmp_path / "leak").write_bytes(seen.up + seen.data["ann"]["x"][7, 2:4].tobytes())
    assert WINDOW == 8
    assert rows_in(seen.data.values(), [tmp_path / "up"]).passed
    assert not rows_in(seen.data.values(), [tmp_path / "leak"]).passed


def test_what_is_sent_up_is_the_difference_and_never_the_model(seen: Seen) -> None:
    for name, differences in seen.differences.items():
        for difference in differences:
            assert difference["weight"].tobytes() in seen.up, name
        trained = seen.models[1] + differences[1]
        assert trained["weight"].tobytes() not in seen.up
    assert seen.models[1]["weight"].tobytes() not in seen.up


def test_no_single_update_is_kept_at_the_server(seen: Seen) -> None:
    for difference in (d for differences in seen.differences.values() for d in differences):
        for content in seen.state:
            assert difference["weight"].tobytes() not in content
            assert difference["weight"].tobytes()[:16] not in content
    assert any(seen.models[2]["weight"].tobytes() in content for content in seen.state)  # the model is
