"""One job, every runtime, the same bits: a row for each runtime, a job for each way that something could differ.

A new runtime is one more row in `RUNTIMES`.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hansa.core.checkpoint import Checkpoint
from hansa.core.data import Clients
from hansa.core.runtime import Runtime
from hansa.data.files import load
from hansa.runtimes.jobfile import load_job
from hansa.runtimes.local import Local, train
from hansa.runtimes.processes import Processes
from hansa.runtimes.virtual.fleet import Fleet
from hansa.runtimes.virtual.runtime import Virtual
from tests.runtimes.federation import Federation

NAMES = ["w0", "w1", "w2"]

DATA = """
import numpy as np

import hansa


def rows(name):
    rng = np.random.default_rng(int(name[1:]))
    x = rng.normal(size=(20 + 7 * int(name[1:]), 6)).astype("float32")
    return hansa.Dataset(x=x, y=(x.sum(1) > 0).astype("int64"))


def w0():
    return rows("w0")


def w1():
    return rows("w1")


def w2():
    return rows("w2")


WORK = hansa.LocalWork(lr=0.1, epochs=2, batch_size=8, momentum=0.5)
MODEL = hansa.MLPModel((6, 5, 2))
"""

PLAIN = "pipeline=hansa.Pipeline([hansa.WeightedMean()], hansa.Sum()), cohort=2, rounds=4, seed=5"
JOBS = {
    "averaging": f"""
job = hansa.Job(
    model=MODEL, algorithm=hansa.FedAvg(WORK), {PLAIN}, evaluation=hansa.Evaluation(workers=3, every=2, best="loss")
)
""",
    "memory": """
job = hansa.Job(
    model=MODEL, algorithm=hansa.Scaffold(hansa.LocalWork(lr=0.1, epochs=1, batch_size=8)), cohort=2, rounds=5, seed=6,
    pipeline=hansa.Pipeline([hansa.UniformMean()], hansa.Sum()),
)
""",
    "stages": """
job = hansa.Job(
    model=MODEL, algorithm=hansa.FedAdam(WORK, server_lr=0.05), cohort=3, rounds=4, seed=7,
    pipeline=hansa.Pipeline([hansa.AdaptiveClip(0.5), hansa.UniformMean(), hansa.Quantise(bits=8)], hansa.Sum()),
    down=hansa.Pipeline([hansa.Quantise(bits=12)]),
)
""",
    "selection": """
job = hansa.Job(
    model=MODEL, algorithm=hansa.FedProx(WORK, mu=0.1), cohort=3, rounds=4, seed=8,
    pipeline=hansa.Pipeline([hansa.UniformMean(), hansa.TopK(0.3)], hansa.Sum()),
)
""",
    "compression": """
STAGES = [hansa.Clip(1.0), hansa.UniformMean(), hansa.Rotate(clip=3.0), hansa.RandomMask(0.5), hansa.Quantise(2)]
job = hansa.Job(
    model=MODEL, algorithm=hansa.FedAvg(WORK), cohort=2, rounds=4, seed=10,
    pipeline=hansa.Pipeline([*STAGES, hansa.Pack()], hansa.Sum()),
    down=hansa.Pipeline([hansa.Rotate(), hansa.Quantise(8), hansa.Pack()]),
)
""",
    "low rank": """
job = hansa.Job(
    model=MODEL, algorithm=hansa.FedAvg(WORK), cohort=2, rounds=4, seed=11,
    pipeline=hansa.Pipeline([hansa.UniformMean(), hansa.PowerSGD(1)], hansa.Sum()),
    down=hansa.Pipeline([hansa.Eden(8)]),
)
""",
    "secure": """
job = hansa.Job(
    model=MODEL, algorithm=hansa.FedAvg(WORK), cohort=3, rounds=3, seed=10,
    pipeline=hansa.Pipeline([hansa.Clip(1.0), hansa.UniformMean(), hansa.Quantise(bits=16)], hansa.SecureSum()),
    evaluation=hansa.Evaluation(workers=3, every=2),
)
""",
    "median": """
job = hansa.Job(
    model=MODEL, algorithm=hansa.FedAvg(WORK), cohort=3, rounds=3, seed=9,
    pipeline=hansa.Pipeline([hansa.UniformMean()], hansa.Median()),
)
""",
    "torch": f"""
import torch.nn.functional as F
from torch import nn


def net():
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2))


job = hansa.Job(
    model=hansa.TorchModel(net, F.cross_entropy, private=("4.*",)), algorithm=hansa.FedAvg(WORK), {PLAIN}
)
""",
}  # fmt: skip

Run = Callable[[Path], Checkpoint]


def simulated(runtime: Runtime) -> Run:
    def run(job: Path) -> Checkpoint:
        clients = Clients.of({name: load(f"{job}:{name}") for name in NAMES})
        return train(load_job(job), clients, runtime=runtime).checkpoint

    return run


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """A server and three workers over mutual TLS, which run one job after another."""
    folder = tmp_path_factory.mktemp("equality")
    data = folder / "data"
    data.mkdir()
    (data / "job.py").write_text(DATA + JOBS["averaging"])
    with Federation(folder, workers=3) as federation:
        federation.start_server()
        federation.start_workers(f"{data / 'job.py'}:{{name}}")

        def run(job: Path) -> Checkpoint:
            number = federation.submit(job)
            assert federation.wait(number)["state"] == "done", federation.output
            with federation.client() as client:
                return client.model(number)

        yield run


@pytest.fixture(scope="module")
def on_ray() -> Iterator[Run]:
    """Two workers of a private Ray, which serves one job after another."""
    pytest.importorskip("ray")
    from hansa.runtimes.ray import Ray
    from hansa.runtimes.ray_cluster import connected

    with connected(None, processors=2, store_bytes=100 << 20):
        yield simulated(Ray())


RUNTIMES = ["processes", "virtual", "grpc", pytest.param("ray", marks=pytest.mark.slow)]


@pytest.mark.parametrize("name", JOBS)
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_every_runtime_gives_the_bits_of_the_local_one(
    runtime: str, name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if name == "torch":
        pytest.importorskip("torch")
    job = tmp_path / "job.py"
    job.write_text(DATA + JOBS[name])
    runs: dict[str, Callable[[], Run]] = {
        "processes": lambda: simulated(Processes(2)),
        "virtual": lambda: simulated(Virtual(Fleet.homogeneous(3))),
        "grpc": lambda: request.getfixturevalue("deployed"),
        "ray": lambda: request.getfixturevalue("on_ray"),
    }
    reference, other = simulated(Local())(job), runs[runtime]()(job)
    assert other.state == reference.state
    assert other.pipeline == reference.pipeline
    assert other.memories == reference.memories
    assert other.best == reference.best
