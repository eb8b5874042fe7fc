"""A federation of real processes for tests: a server and workers that can be killed and started again."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hansa.app.enrol import Authority
from hansa.crypto.identity import Identity
from hansa.runtimes.bundle import pack
from hansa.runtimes.grpc.client import Client

SRC = Path(__file__).resolve().parents[2] / "src"

_SERVER = r"""
import json, logging, sys
from pathlib import Path
from hansa.crypto.identity import Identity
from hansa.runtimes.grpc.server import serve
o = json.loads(sys.argv[1])
logging.basicConfig(level=logging.INFO, format="%(name)s %(message)s", stream=sys.stdout)
if o.pop("limit", 0):
    import resource, signal
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
if o.get("identity"): o["identity"] = Identity.load(o["identity"])
if o.get("revoked"): o["revoked"] = Path(o["revoked"])
serve(o.pop("state"), ready=lambda address: sys.stdout.write(f"READY {address}\n") and sys.stdout.flush(), **o)
"""
_WORKER = r"""
import json, logging, sys
from pathlib import Path
from hansa.crypto.identity import Identity
from hansa.runtimes.policy import Policy
from hansa.runtimes.grpc.worker import work
o = json.loads(sys.argv[1])
logging.basicConfig(level=logging.INFO, format="%(name)s %(message)s", stream=sys.stdout)
if o.get("identity"): o["identity"] = Identity.load(o["identity"])
if o.get("policy"): o["policy"] = Policy.parse(o["policy"])
work(o.pop("server"), o.pop("folder"), ready=lambda: sys.stdout.write("READY\n") and sys.stdout.flush(), **o)
"""


class Process:
    """A program with its output gathered; `READY` on a line of its own says that it serves."""

    def __init__(self, program: str, options: dict[str, Any], failpoint: str = "", extra: tuple[str, ...] = ()) -> None:
        environment = {**os.environ, "PYTHONPATH": f"{SRC}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
        environment.pop("HANSA_FAILPOINT", None)
        environment["OMP_NUM_THREADS"] = "1"
        if failpoint:
            environment["HANSA_FAILPOINT"] = failpoint
        self.popen = subprocess.Popen(
            [sys.executable, "-c", program, json.dumps(options), *extra],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            text=True,
        )
        self.lines: list[str] = []
        self.ready = ""
        self._is_ready = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.popen.stdout is not None
        for line in self.popen.stdout:
            self.lines.append(line.rstrip())
            if line.startswith("READY"):
                self.ready = line[5:].strip()
                self._is_ready.set()
        self._is_ready.set()

    def wait_ready(self) -> str:
        assert self._is_ready.wait(30), self.output
        assert any(line.startswith("READY") for line in self.lines), self.output
        return self.ready

    @property
    def output(self) -> str:
        return "\n".join(self.lines)

    def wait_for(self, text: str, timeout_s: float = 20) -> None:
        until = time.monotonic() + timeout_s
        while text not in self.output:
            assert time.monotonic() < until, f"no '{text}' in:\n{self.output}"
            time.sleep(0.02)

    def kill(self) -> None:
        self.popen.kill()
        self.popen.wait()

    def end(self) -> None:
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGTERM)
            try:
                self.popen.wait(15)
            except subprocess.TimeoutExpired:
                self.kill()
        self._reader.join(5)
        assert self.popen.stdout is not None
        self.popen.stdout.close()


class Federation:
    """A server and its workers in a folder; everything is ended at the end of `with`."""

    def __init__(self, folder: Path, workers: int = 2, *, secure: bool = True) -> None:
        self.folder, self.secure = folder, secure
        self.names = [f"w{i}" for i in range(workers)]
        self.address = ""
        self.server: Process | None = None
        self.workers: dict[str, Process] = {}
        if secure:
            self.authority = Authority.create(folder / "authority", "test")
            self.authority.issue("server", "server", hosts=["127.0.0.1", "localhost"])
            self.authority.issue("alice", "submitter")
            for name in self.names:
                self.authority.issue(name, "worker")

    def identity(self, name: str) -> Path | None:
        return self.folder / "authority" / "members" / f"{name}.pem" if self.secure else None

    def start_server(self, failpoint: str = "", *, limit: int = 0, **options: Any) -> str:
        given: dict[str, Any] = {
            "state": str(self.folder / "state"),
            "listen": self.address or "127.0.0.1:0",
            **options,
        }
        if self.secure:
            given |= {
                "identity": str(self.identity("server")),
                "revoked": str(self.folder / "authority" / "revoked.pem"),
            }
        else:
            given["insecure"] = True
        extra = (str(limit),) if limit else ()
        self.server = Process(_SERVER, {**given, **({"limit": 1} if limit else {})}, failpoint, extra)
        self.address = self.server.wait_ready()
        return self.address

    def start_worker(
        self, name: str, data: str | None, failpoint: str = "", server: str = "", **options: Any
    ) -> Process:
        given: dict[str, Any] = {
            "server": server or self.address,
            "folder": str(self.folder / name),
            "data": data,
            **options,
        }
        if self.secure:
            given |= {"identity": str(self.identity(name)), "policy": options.get("policy", ["signer:alice"])}
        else:
            given |= {"insecure": True, "name": name}
        self.workers[name] = Process(_WORKER, given, failpoint)
        self.workers[name].wait_ready()
        return self.workers[name]

    def start_workers(self, data: str, **options: Any) -> None:
        for name in self.names:
            self.start_worker(name, data.format(name=name), **options)

    @contextlib.contextmanager
    def client(self) -> Iterator[Client]:
        path = self.identity("alice")
        identity = None if path is None else Identity.load(path)
        with Client(self.address, identity=identity, insecure=not self.secure, name="alice") as client:
            yield client

    def submit(self, job: Path, workers: int | None = None) -> str:
        path = self.identity("alice")
        bundle = pack(job, None, None if path is None else Identity.load(path))
        with self.client() as client:
            return client.submit(bundle, workers=len(self.names) if workers is None else workers)

    def wait(self, run: str, timeout_s: float = 60, poll_s: float = 0.05) -> dict[str, Any]:
        """The status of a run that is over."""
        until = time.monotonic() + timeout_s
        with self.client() as client:
            while True:
                with contextlib.suppress(Exception):
                    status = client.status(run)
                    if status["state"] in ("done", "failed", "stopped"):
                        return status
                assert time.monotonic() < until, f"run {run} does not end\n{self.output}"
                assert self.server is not None
                if self.server.popen.poll() is not None:
                    return {"state": "dead"}
                time.sleep(poll_s)

    @property
    def output(self) -> str:
        parts = {"server": self.server, **self.workers}
        return "\n".join(f"-- {name}\n{part.output}" for name, part in parts.items() if part is not None)

    def __enter__(self) -> "Federation":
        return self

    def __exit__(self, *_: object) -> None:
        for process in [*self.workers.values(), self.server]:
            if process is not None:
                process.end()


JOB = '''
from dataclasses import dataclass
import numpy as np
from hansa.core.algorithm import Algorithm, Update
from hansa.core.data import Dataset
from hansa.core.job import Evaluation, Job
from hansa.core.model import Fit, LocalWork, Model
from hansa.core.pipeline import Pipeline
from hansa.core.tensors import Tensors
from hansa.stages.mean import UniformMean
from hansa.stages.sum import Sum


@dataclass(frozen=True)
class Line(Model):
    """Least squares, by hand."""
    size: int = 3

    def init(self, seed):
        return Tensors({{"w": np.random.default_rng(seed).normal(size=self.size).astype("float32")}})

    def fit(self, params, data, work, rng):
        import time
        w = params["w"].copy()
        for rows in work.batches(len(data), rng):
            x, y = data["x"][rows], data["y"][rows]
            w[:3] -= np.float32(work.lr) * (x.T @ (x @ w[:3] - y) / len(rows)).astype("float32")
        time.sleep({sleep})
        return Fit(Tensors({{"w": w}}), 1, self.evaluate(Tensors({{"w": w}}), data))

    def evaluate(self, params, data):
        error = data["x"] @ params["w"][:3] - data["y"]
        return {{"loss": (float((error ** 2).sum()), float(len(data)))}}


@dataclass(frozen=True)
class Remembering(Algorithm):
    """Adds to each update a part of what this client's last one was, so that lost or doubled memory shows."""
    keeps_memory = True

    def train(self, model, down, memory, data, rng):
        update = super().train(model, down, memory, data, rng)
        difference = update.difference
        if len(memory):
            difference = difference + memory * 0.25
        return Update(difference=difference, weight=update.weight, metrics=update.metrics, memory=difference)


{more}
job = Job(model=Line({size}), algorithm=Remembering(LocalWork(lr=0.1, epochs=1, batch_size=4)),
          pipeline=Pipeline([UniformMean()], Sum()), cohort={cohort}, rounds={rounds}, seed=7, name="line"{options})
'''

DATA = """
import numpy as np
from hansa.core.data import Dataset

def rows(name):
    rng = np.random.default_rng([int(c) for c in name.encode()])
    x = rng.normal(size=(20, 3)).astype("float32")
    return Dataset(x=x, y=(x @ np.array([1, -2, 3], "float32")).astype("float32"))
"""


def write_job(
    folder: Path,
    *,
    cohort: int = 2,
    rounds: int = 5,
    size: int = 3,
    sleep: float = 0.0,
    options: str = "",
    more: str = "",
    names: int = 20,
) -> Path:
    """A job file, and beside it data.py with a loader for each worker."""
    folder.mkdir(exist_ok=True)
    job = folder / "job.py"
    job.write_text(JOB.format(cohort=cohort, rounds=rounds, size=size, sleep=sleep, options=options, more=more))
    loaders = "\n".join(f"def w{i}():\n    return rows('w{i}')\n" for i in range(names))
    (folder / "mydata.py").write_text(DATA + loaders)
    return job


def data_of(job: Path) -> str:
    """`--data` for each worker."""
    return f"{job.parent / 'mydata.py'}:{{name}}"
