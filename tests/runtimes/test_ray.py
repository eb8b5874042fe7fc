"""Ray carries the same job to the same bits, and survives the death of workers and of nodes.

The cluster is a real one of two nodes, whose raylets, object stores and actors are processes of this machine.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from hansa.core.data import Clients, Dataset
from hansa.core.errors import ConfigError, DataError, JobError, TrainingFailed, Unreachable
from hansa.core.job import Evaluation, Job
from hansa.core.model import Fit, LocalWork
from hansa.core.tensors import Tensors
from hansa.runtimes.history import History
from hansa.runtimes.local import Local, train
from hansa.runtimes.memory import MemoryMemories
from tests.runtimes.jobs import JOBS, Regression, plain, some_clients
from tests.runtimes.test_pool import Stacking
from tests.runtimes.test_virtual_legs import job as talk

ray = pytest.importorskip("ray")

from ray.cluster_utils import Cluster  # noqa: E402

from hansa.runtimes import ray as runtime  # noqa: E402
from hansa.runtimes.ray import Ray, RaySession, packed, unpacked  # noqa: E402
from hansa.runtimes.ray_cluster import connected, room  # noqa: E402

NODE = {"object_store_memory": 100 << 20, "include_dashboard": False}
ALL = {"cohort": 6, "sampling": None, "evaluation": Evaluation()}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two nodes of one CPU each; the first claims a GPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_MODE", "disabled")  # a token would be written to the home of whoever runs the tests
        cluster = Cluster(initialize_head=True, head_node_args={**NODE, "num_cpus": 1, "num_gpus": 1})
        cluster.add_node(**NODE, num_cpus=1)
        yield cluster
        cluster.shutdown()


@pytest.fixture
def on_ray(cluster: Cluster) -> Callable[..., History]:
    """Trains on the cluster."""

    def run(job: Job, clients: Clients, **settings: Any) -> History:
        return train(job, clients, runtime=Ray(cluster.address, **settings))

    return run


# -- the same bits


@pytest.mark.parametrize("make", [*JOBS.values(), lambda: talk(6)], ids=[*JOBS, "two legs"])
def test_ray_gives_the_same_bits_as_the_local_runtime(make: Callable[[], Job], on_ray: Callable[..., History]) -> None:
    local, spread = train(make(), some_clients()), on_ray(make(), some_clients())
    assert spread.checkpoint.state == local.checkpoint.state
    assert spread.checkpoint.memories == local.checkpoint.memories
    for name in ("train", "workers", "up_bytes", "down_bytes"):
        assert [getattr(r, name) for r in spread.rounds] == [getattr(r, name) for r in local.rounds]


# -- what goes to the workers


@dataclass(frozen=True)
class Mapped(Regression):
    """Insists that data and model are views of the object store, in another process than the driver's."""

    driver: int = 0
    width: int = 50_000  # of at least 100 kB, below which Ray sends a copy along

    def fit(self, params: Tensors, data: Any, work: LocalWork, rng: np.random.Generator) -> Fit:
        assert os.getpid() != self.driver
        for array in (data["x"], params["weight"]):
            assert not (array.flags.owndata or array.flags.writeable)
        return super().fit(params, data, work, rng)


def test_the_model_is_stored_once_a_round_and_each_clients_data_once_and_both_are_mapped(
    on_ray: Callable[..., History], monkeypatch: pytest.MonkeyPatch
) -> None:
    stored: list[tuple[str, ...]] = []
    put = runtime.packed
    monkeypatch.setattr(runtime, "packed", lambda tensors: (stored.append(tuple(tensors)), put(tensors))[1])
    rng = np.random.default_rng(3)
    x = rng.normal(size=(3, 8, 50_000)).astype("float32")
    clients = Clients.of({f"c{i}": Dataset(x=x[i] / 50_000, y=np.ones(8, "float32")) for i in range(3)})
    job = replace(plain(), model=Mapped(driver=os.getpid()), **{**ALL, "cohort": 3}, rounds=3)
    on_ray(job, clients)
    data, frozen, private = ("x", "y"), ("scale",), ("private/offset",)
    assert stored.count(data) == 3
    assert stored.count(frozen) == 1
    assert stored.count(private) == 2 * 3, "what each client remembers, from the second round on"
    assert len([names for names in stored if "model/weight" in names]) == 3
    assert len(stored) == 3 + 1 + 6 + 3


@dataclass(frozen=True)
class Elsewhere(Clients):
    """Clients that a worker can open by itself, and the driver may not."""

    driver: int

    @property
    def ids(self) -> list[str]:
        return [f"{i:03}" for i in range(4)]

    def open(self, client: str) -> Dataset:
        if os.getpid() == self.driver:
            raise AssertionError("the driver opened a client")
        rng = np.random.default_rng(int(client))
        return Dataset(x=rng.normal(size=(9, 5)).astype("float32"), y=rng.normal(size=9).astype("float32"))


def test_clients_with_a_canonical_form_are_opened_by_id_on_the_workers(on_ray: Callable[..., History]) -> None:
    there = on_ray(plain(), Elsewhere(os.getpid()))
    assert there.checkpoint.state == train(plain(), Elsewhere(0)).checkpoint.state


def test_actors_train_their_stacks_to_the_bits_of_the_local_runtime(on_ray: Callable[..., History]) -> None:
    job = replace(plain(), model=Stacking())
    local, alone = (train(job, some_clients(), runtime=Local(cohort=n)).checkpoint.state for n in (3, 1))
    assert on_ray(job, some_clients(), cohort=3).checkpoint.state == local != alone


def test_tensors_survive_being_packed() -> None:
    tensors = Tensors({"a": np.arange(5, dtype="float64"), "b": np.ones((2, 0), "int8"), "c": np.float32(2.5)})
    assert packed(tensors).dtype == np.uint8
    assert unpacked(packed(tensors)) == tensors


# -- deaths


@dataclass(frozen=True)
class Waits(Regression):
    """Writes its process and node down the first time that client-2 trains, and waits to be killed."""

    flag: str = ""

    def fit(self, params: Tensors, data: Any, work: LocalWork, rng: np.random.Generator) -> Fit:
        if len(data) == 18 and not os.path.exists(self.flag):
            facts = f"{os.getpid()} {ray.get_runtime_context().get_node_id()}"
            Path(f"{self.flag}.new").write_text(facts)
            os.rename(f"{self.flag}.new", self.flag)
            time.sleep(60)
            raise AssertionError("nobody came")
        return super().fit(params, data, work, rng)


@contextmanager
def killer(flag: Path, kill: Callable[[int, str], None]) -> Iterator[None]:
    """Kills what wrote the flag, once, while the run goes on."""

    def wait() -> None:
        for _ in range(600):
            if flag.exists():
                process, node = flag.read_text().split()
                return kill(int(process), node)
            time.sleep(0.05)

    thread = threading.Thread(target=wait)
    thread.start()
    yield
    thread.join()
    assert flag.exists()


@pytest.mark.parametrize(
    "make", [plain, pytest.param(lambda: talk(6), marks=pytest.mark.slow)], ids=["one leg", "two legs"]
)
def test_a_worker_killed_mid_round_is_replaced_and_its_task_done_again(
    make: Callable[[], Job], on_ray: Callable[..., History], tmp_path: Path
) -> None:
    job = replace(make(), model=Waits(flag=str(tmp_path / "flag")), **ALL)
    with killer(tmp_path / "flag", lambda process, node: os.kill(process, signal.SIGKILL)):
        spread = on_ray(job, some_clients())
    undisturbed = train(job, some_clients())
    assert spread.checkpoint.state == undisturbed.checkpoint.state
    assert [r.dropped for r in spread.rounds] == [{}] * job.rounds


@pytest.mark.slow
def test_a_node_that_is_lost_mid_round_takes_nothing_with_it(
    cluster: Cluster, on_ray: Callable[..., History], tmp_path: Path
) -> None:
    nodes = {node.node_id: node for node in (cluster.add_node(**NODE, num_cpus=2) for _ in range(2))}
    job = replace(plain(), model=Waits(flag=str(tmp_path / "flag")), **ALL)
    with killer(tmp_path / "flag", lambda _, node: cluster.remove_node(nodes.pop(node), allow_graceful=False)):
        spread = on_ray(job, some_clients(), cpus=2)
    assert len(nodes) == 1, "the workers of two CPUs were on these nodes, and one is gone"
    cluster.remove_node(*nodes.values())
    assert spread.checkpoint.state == train(job, some_clients()).checkpoint.state


@dataclass(frozen=True)
class Dies(Regression):
    """Kills its process whenever client-2 trains."""

    def fit(self, params: Tensors, data: Any, work: LocalWork, rng: np.random.Generator) -> Fit:
        return super().fit(params, data, work, rng) if len(data) != 18 else os._exit(3)


@pytest.mark.slow
def test_a_task_that_kills_every_worker_ends_the_run_with_the_name_of_its_client(
    on_ray: Callable[..., History],
) -> None:
    with pytest.raises(TrainingFailed, match="client-2: 3 workers died while they did its task.*ActorDiedError, on"):
        on_ray(replace(plain(), model=Dies(), **ALL), some_clients())


@dataclass(frozen=True)
class Raises(Regression):
    def fit(self, params: Tensors, data: Any, work: LocalWork, rng: np.random.Generator) -> Fit:
        raise ZeroDivisionError("no such luck")


def test_an_error_in_a_worker_names_the_client_and_the_reason(on_ray: Callable[..., History]) -> None:
    with pytest.raises(TrainingFailed, match=r"client-\d: ZeroDivisionError: no such luck") as caught:
        on_ray(replace(plain(), model=Raises()), some_clients(), workers=1)
    assert 'raise ZeroDivisionError("no such luck")' in str(caught.value.__cause__), "with the worker's traceback"


# -- places


@dataclass(frozen=True)
class Noted(Regression):
    """Leaves the number of its GPU and its process behind."""

    folder: str = ""

    def fit(self, params: Tensors, data: Any, work: LocalWork, rng: np.random.Generator) -> Fit:
        Path(self.folder, str(os.getpid())).write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "none"))
        time.sleep(0.2)  # so that the other worker gets something to do as well
        return super().fit(params, data, work, rng)


def test_workers_share_a_gpu_by_fraction(on_ray: Callable[..., History], tmp_path: Path) -> None:
    job = replace(plain(), model=Noted(folder=str(tmp_path)), **ALL, rounds=1)
    on_ray(job, some_clients(), workers=2, cpus=0.5, gpus=0.5)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["0", "0"]


def test_as_many_workers_fit_as_cpus_and_gpus_of_each_node_allow(cluster: Cluster) -> None:
    with connected(cluster.address, 0, 0) as grows:
        assert grows
        assert [room(1, 0), room(0.5, 0), room(0.5, 0.25), room(0.1, 0.5), room(2, 0)] == [2, 4, 2, 2, 0]
        assert Ray(cpus=2, workers=3)._count(grows=True) == 3, "which wait until there is a node with room"
        for how in (Ray(cpus=2, workers=3)._count, Ray(cpus=2)._count):
            with pytest.raises(ConfigError, match="no node has 2 CPUs and 0 GPUs for a worker, .* 2 CPUs and 1 GPUs"):
                how(grows=False)


def test_a_client_is_near_the_node_that_had_its_data(cluster: Cluster) -> None:
    with (
        connected(cluster.address, 0, 0),
        closing(RaySession(plain(), some_clients(), MemoryMemories(), Ray(), 2)) as session,
    ):
        one, other = session._start(), session._start()
        session._members += [one, other]
        while not (one.ready and other.ready):
            session._hear()
        assert one.node != other.node, "workers are spread over the nodes"
        assert session._near(one, "client-0")
        assert session._near(other, "client-0")
        session._at["client-0"] = other.node
        assert not session._near(one, "client-0")
        assert session._near(other, "client-0")


# -- refusals


def test_what_only_lives_in_this_process_is_refused_with_the_remedy(
    on_ray: Callable[..., History], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Hidden(Regression):
        pass

    with pytest.raises(JobError, match=r"job.model is '.*<locals>.*', which lives in this process alone: define it at"):
        on_ray(replace(plain(), model=Hidden()), some_clients())
    with pytest.raises(DataError, match="is a list, which cannot be handed to another process"):
        on_ray(plain(), Clients.of({f"c{i}": [1, 2, 3] for i in range(4)}))

    typed = type("Typed", (Regression,), {"__module__": "__main__", "__qualname__": "Typed"})
    prompt = ModuleType("__main__")
    prompt.Typed = typed  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "__main__", prompt)
    with pytest.raises(JobError, match="'__main__:Typed' lives in this prompt alone: put it into a file and import it"):
        on_ray(replace(plain(), model=typed()), some_clients())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"workers": 0}, "workers=0: at least one is needed"),
        ({"cpus": 0}, "cpus=0: a worker takes some"),
        ({"cpus": 1.5}, "cpus=1.5: Ray wants a fraction below 1, or a whole number"),
        ({"gpus": -1}, "gpus=-1: Ray wants"),
        ({"store_bytes": 1000}, "store_bytes=1000: Ray wants at least"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Ray(**settings)


def test_an_address_where_nobody_listens_is_unreachable_at_once() -> None:
    began = time.perf_counter()
    with pytest.raises(Unreachable, match=r"no Ray cluster takes us in at '127.0.0.1:9' .*refused.*ray start --head"):
        train(plain(), some_clients(), runtime=Ray("127.0.0.1:9"))
    assert time.perf_counter() - began < 60, "Ray itself would try for minutes"
    assert not ray.is_initialized()


def test_a_connection_of_the_users_own_is_used_and_left_alone(cluster: Cluster) -> None:
    ray.init(address=cluster.address, log_to_driver=False)
    try:
        spread = train(plain(), some_clients(), runtime=Ray(workers=1))
        assert spread.checkpoint.state == train(plain(), some_clients()).checkpoint.state
        assert ray.is_initialized()
        with pytest.raises(ConfigError, match="this process has called ray.init: leave the address out"):
            train(plain(), some_clients(), runtime=Ray(cluster.address))
    finally:
        ray.shutdown()


def test_workers_that_cannot_even_start_end_the_run_with_their_reason(
    on_ray: Callable[..., History], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Absent:
        def __init__(self, setup: str) -> None:
            raise ModuleNotFoundError("No module named 'hansa'")

        def settle(self) -> None:
            pass

    monkeypatch.setattr(runtime, "SimulationWorker", Absent)
    with pytest.raises(ConfigError, match="(?s)3 workers died before their first task, the last one.*No module named"):
        on_ray(plain(), some_clients(), workers=1)


def test_a_worker_with_another_version_is_refused() -> None:
    class Nobody:
        class settle:  # noqa: N801
            remote = staticmethod(lambda: None)

    with pytest.raises(ConfigError, match=r"node 10.0.0.2 has Hansa 0.0.0, this one .*: give all nodes the same"):
        runtime._Actor(Nobody()).settled("id", "10.0.0.2", "0.0.0", "")


# -- the private cluster, from a script that defines its own model

SCRIPT = """
import os, stat
import psutil
import hansa
from tests.runtimes.jobs import Regression, plain, some_clients
from dataclasses import dataclass, replace

@dataclass(frozen=True)
class Mine(Regression):
    pass

def look(record):
    family = psutil.Process().children(recursive=True)
    listening = {c.laddr.ip for p in family for c in p.net_connections("inet") if c.status == "LISTEN"}
    assert listening and listening <= {"127.0.0.1", "::ffff:127.0.0.1"}, listening
    (folder,) = [name for name in os.listdir("/tmp") if name.startswith("hansa-ray-") and mine(name)]
    assert stat.S_IMODE(os.stat(f"/tmp/{folder}").st_mode) == 0o700
    folders.add(folder)

def mine(name):
    return any(f"/tmp/{name}/" in " ".join(p.cmdline()) for p in psutil.Process().children(recursive=True))

folders = set()
if __name__ == "__main__":
    job, runtime = replace(plain(), model=Mine(), rounds=2), hansa.Ray(workers=2)
    local, before = hansa.train(job, some_clients()), dict(os.environ)
    spread = hansa.train(job, some_clients(), runtime=runtime, observe=look)
    assert spread.checkpoint.state == local.checkpoint.state
    assert folders and not any(os.path.exists(f"/tmp/{folder}") for folder in folders)
    assert os.environ == before
    assert not psutil.Process().children(recursive=True)
    print("the same")
else:
    assert __name__ == "__mp_main__", "a worker imports this file for the model, and does not train"
"""


@pytest.mark.slow
def test_a_private_cluster_is_quiet_listens_to_this_machine_alone_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    root = Path(__file__).parents[2]
    home = tmp_path / "home"
    home.mkdir()
    environment = {**os.environ, "PYTHONPATH": f"{root / 'src'}{os.pathsep}{root}", "HOME": str(home)}
    environment = {name: value for name, value in environment.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-W", "error", "script.py"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "the same\n", "")
    assert not list(home.iterdir())
