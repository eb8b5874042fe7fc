"""Processes carry the same job to the same bits, and survive the death of one of them."""

import os
import resource
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hansa.algorithms.fedavg import FedAvg
from hansa.core.data import Clients, Dataset
from hansa.core.errors import BudgetExceeded, ConfigError, DataError, JobError, TrainingFailed
from hansa.core.job import Job
from hansa.core.model import Fit, LocalWork, Role
from hansa.core.pipeline import Pipeline
from hansa.core.runtime import Task
from hansa.core.tensors import Tensors
from hansa.runtimes.local import train
from hansa.runtimes.memory import MemoryMemories
from hansa.runtimes.processes import SPARES, Processes, ProcessSession
from hansa.runtimes.shared import read_tensors
from hansa.stages.clip import Clip
from hansa.stages.mean import UniformMean
from hansa.stages.noise import Gaussian
from hansa.stages.sum import Sum
from tests.runtimes.jobs import JOBS, Regression, plain, remembering, some_clients
from tests.runtimes.test_virtual_legs import job as talk


@pytest.mark.parametrize("make", JOBS.values(), ids=JOBS)
def test_processes_give_the_same_bits_as_the_local_runtime(make: Callable[[], Job]) -> None:
    local = train(make(), some_clients())
    spread = train(make(), some_clients(), runtime=Processes(2))
    assert spread.checkpoint.state == local.checkpoint.state
    assert [r.train for r in spread.rounds] == [r.train for r in local.rounds]
    assert [r.workers for r in spread.rounds] == [r.workers for r in local.rounds]


@dataclass(frozen=True)
class NumberedClients(Clients):
    """Clients that a child can open by itself, since their canonical form says all."""

    count: int = 4

    @property
    def ids(self) -> list[str]:
        return [f"{i:03}" for i in range(self.count)]

    def open(self, client: str) -> Dataset:
        rng = np.random.default_rng(int(client))
        return Dataset(x=rng.normal(size=(9, 5)).astype("float32"), y=rng.normal(size=9).astype("float32"))


def test_clients_with_a_canonical_form_are_opened_in_the_children() -> None:
    local, spread = train(plain(), NumberedClients()), train(plain(), NumberedClients(), runtime=Processes(2))
    assert spread.checkpoint.state == local.checkpoint.state


@dataclass(frozen=True)
class DiesOnce(Regression):
    """Kills its own process the first time that client-2 trains."""

    flag: str = ""

    def fit(self, params: Tensors, data: Any, work: LocalWork, rng: np.random.Generator) -> Fit:
        if len(data) == 18 and not os.path.exists(self.flag):
            open(self.flag, "w").close()
            os.abort()
        return super().fit(params, data, work, rng)


def test_a_process_that_dies_is_replaced_and_its_task_done_again(tmp_path: Any) -> None:
    job = replace(plain(), model=DiesOnce(flag=str(tmp_path / "died")), cohort=6, sampling=None)
    spread = train(job, some_clients(), runtime=Processes(2))
    assert os.path.exists(tmp_path / "died")
    undisturbed = train(job, some_clients())
    assert spread.checkpoint.state == undisturbed.checkpoint.state


@dataclass(frozen=True)
class Dies(Regression):
    """Kills its process whenever client-2 trains."""

    def fit(self, params: Tensors, data: Any, work: LocalWork, rng: np.random.Generator) -> Fit:
        return super().fit(params, data, work, rng) if len(data) != 18 else os._exit(3)


def test_a_task_that_kills_every_process_ends_the_run_with_the_name_of_its_client() -> None:
    job = replace(plain(), model=Dies(), cohort=6, sampling=None)
    with pytest.raises(TrainingFailed, match=r"client-2: 3 workers died while they did its task.*exit code 3"):
        train(job, some_clients(), runtime=Processes(2))


def test_more_conversations_than_processes_go_on_where_they_began() -> None:
    local, spread = train(talk(6), some_clients()), train(talk(6), some_clients(), runtime=Processes(2))
    assert spread.checkpoint.state == local.checkpoint.state
    assert [r.up_bytes for r in spread.rounds] == [r.up_bytes for r in local.rounds]


@dataclass(frozen=True)
class NoBuffer(Regression):
    def roles(self) -> dict[str, Role]:
        return {**super().roles(), "seen": Role.FROZEN}


@dataclass(frozen=True)
class Raises(Regression):
    def fit(self, params: Tensors, data: Any, work: LocalWork, rng: np.random.Generator) -> Fit:
        raise ZeroDivisionError("no such luck")


def test_an_error_in_a_child_names_the_client_and_the_reason() -> None:
    with pytest.raises(TrainingFailed, match=r"client-\d: ZeroDivisionError: no such luck"):
        train(replace(plain(), model=Raises()), some_clients(), runtime=Processes(1))


def test_a_model_that_only_lives_in_this_process_is_refused_with_the_remedy() -> None:
    class Hidden(Regression):
        pass

    with pytest.raises(
        JobError, match=r"job.model is '.*<locals>.*', which lives in this process alone: define it at the top"
    ):
        train(replace(plain(), model=Hidden()), some_clients(), runtime=Processes(1))


def test_data_that_cannot_be_handed_over_is_refused_with_the_remedy() -> None:
    clients = Clients.of({f"c{i}": [1, 2, 3] for i in range(4)})
    with pytest.raises(DataError, match="is a list, which cannot be handed to another process"):
        train(plain(), clients, runtime=Processes(1))


@dataclass(frozen=True)
class SizedClients(NumberedClients):
    def sizes(self) -> list[int]:
        return [9, 90, 1, 40]


def test_the_longest_task_goes_first_by_examples_and_then_by_measured_time() -> None:
    clients = SizedClients()
    with closing(ProcessSession(plain(), clients, MemoryMemories(), 1)) as session:
        assert sorted(clients.ids, key=session._expected_s) == ["002", "000", "003", "001"]
        session._learn("001", 1e-4)
        assert max(clients.ids, key=session._expected_s) == "003", "what was measured counts more than what was counted"
    one, two = train(plain(), clients, runtime=Processes(2)), train(plain(), clients)
    assert one.checkpoint.state == two.checkpoint.state, "and the order decides no bit"


def test_a_message_stays_until_the_last_task_that_needs_it_is_over() -> None:
    tasks = [
        Task(run="r", fingerprint="f", kind="train", version=0, round=0, attempt=0, client=f"client-{i}", position=i)
        for i in range(2)
    ]
    with closing(ProcessSession(plain(), some_clients(), MemoryMemories(), 1)) as session:
        session.publish(tasks, Tensors({"model/w": [1.0]}))
        (message,) = Path(session._folder.name).iterdir()
        session.retire(tasks[1:])
        session.publish([replace(tasks[1], round=1)], Tensors({"model/w": [2.0]}))
        assert read_tensors(str(message))["model/w"] == 1, "the first task, begun on it, has yet to read it"
        session.retire(tasks[:1])
        session.publish([replace(tasks[0], round=1)], Tensors({"model/w": [3.0]}))
        assert not message.exists(), "its pages serve the next message"
        assert len(list(Path(session._folder.name).iterdir())) == 2


def test_what_a_process_still_reads_is_not_written_over() -> None:
    task = Task(run="r", fingerprint="f", kind="train", version=0, round=0, attempt=0, client="client-0", position=0)
    with closing(ProcessSession(plain(), some_clients(), MemoryMemories(), 1)) as session:
        session.publish([task], Tensors({"model/w": [1.0]}))
        (message,) = Path(session._folder.name).iterdir()
        session._dispatch()
        session.retire([task])
        assert not message.exists()
        assert session._spares.pop() is None


def test_no_processes_are_too_few() -> None:
    with pytest.raises(ConfigError, match="count=0: at least one process is needed"):
        Processes(0)


def test_files_of_a_round_are_deleted_when_it_is_over(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("os.access", lambda *args: False)
    kept: list[int] = []

    def count(record: Any) -> None:
        (folder,) = tmp_path.iterdir()
        kept.append(len(list(folder.iterdir())))

    train(replace(remembering(), rounds=20), some_clients(), runtime=Processes(1), observe=count)
    assert max(kept) <= 6 + 1 + SPARES, "the data of six clients, the frozen tensors, and files to be written over"
    assert max(kept[10:]) <= max(kept[:10]) + 2, "rounds leave none behind"


def test_messages_that_wait_for_their_turn_hold_no_file_open() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 32, before[1]))
    try:
        job = replace(remembering(), cohort=60, sampling=None, rounds=2)
        train(job, NumberedClients(60), runtime=Processes(1))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_spent_budget_is_refused_before_a_client_is_opened() -> None:
    pytest.importorskip("dp_accounting")
    job = replace(
        remembering(), algorithm=FedAvg(LocalWork(lr=0.1, steps=1)), epsilon=0.1, delta=1e-5, model=NoBuffer(),
        pipeline=Pipeline([Clip(1.0), UniformMean(), Gaussian(0.5)], Sum()),
    )  # fmt: skip

    def unopened() -> None:
        raise AssertionError("a client was opened")

    clients = Clients.of({f"c{i}": unopened for i in range(9)})
    with pytest.raises(BudgetExceeded, match="6 more rounds would bring ε to .* beyond epsilon=0.1"):
        train(job, clients, runtime=Processes(1))


def test_nothing_is_left_behind(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("os.access", lambda *args: False)
    train(plain(), some_clients(), runtime=Processes(1))
    assert not list(tmp_path.iterdir())


@dataclass(frozen=True)
class Placed(Regression):
    """Writes down where its process was told to train; `device` is left to it."""

    folder: str = ""
    device: str | None = None
    dies: bool = False

    def fit(self, params: Tensors, data: Any, work: LocalWork, rng: np.random.Generator) -> Fit:
        told = Path(self.folder, f"{os.environ.get('HANSA_DEVICE', 'none')} {os.getpid()}")
        if self.dies and not any(Path(self.folder).iterdir()):
            told.touch()
            os.abort()
        told.touch()
        return super().fit(params, data, work, rng)


def placed(folder: Path, count: int | None, devices: tuple[str, ...], dies: bool = False) -> list[str]:
    """The devices of the processes that trained, each once for each process."""
    job = replace(plain(), model=Placed(folder=str(folder), dies=dies), cohort=6, sampling=None, rounds=2)
    done = train(job, some_clients(), runtime=Processes(count, devices=devices))
    assert done.checkpoint.state == train(replace(job, model=Regression()), some_clients()).checkpoint.state
    return sorted(path.name.split()[0] for path in folder.iterdir())


def test_processes_take_devices_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HANSA_DEVICE", "cpu")
    found = placed(tmp_path, 3, ("cuda:0", "cuda:1"))
    assert set(found) <= {"cuda:0", "cuda:1"} and found.count("cuda:1") <= 1


def test_a_process_that_replaces_another_takes_over_its_device(tmp_path: Path) -> None:
    assert set(placed(tmp_path, None, ("cuda:0", "cuda:1"), dies=True)) <= {"cuda:0", "cuda:1"}
    devices = ("cuda:0", "cuda:1")
    with closing(ProcessSession(plain(), some_clients(), MemoryMemories(), 3, devices=devices)) as session:
        for _ in range(3):
            session._members.append(session._start())
        assert [vars(member)["device"] for member in session._members] == ["cuda:0", "cuda:1", "cuda:0"]
        session._members.pop(1).end()
        session._members.append(session._start())
        assert vars(session._members[-1])["device"] == "cuda:1"


def test_there_are_as_many_processes_as_devices_unless_it_is_said() -> None:
    assert Processes(devices=("cuda:0", "cuda:1", "cuda:2")).workers == 3
    assert Processes(5, devices=["cuda:0"]).workers == 5
    assert Processes().workers == os.cpu_count()


def test_devices_that_are_no_names_or_that_the_model_overrides_are_refused() -> None:
    with pytest.raises(ConfigError, match="devices='cuda:0': give a sequence of names"):
        Processes(devices="cuda:0")
    job = replace(plain(), model=Placed(device="cuda:3"))
    with pytest.raises(ConfigError, match=r"devices=\('cuda:0',\) .* device='cuda:3': leave it to them"):
        train(job, some_clients(), runtime=Processes(devices=("cuda:0",)))


KILLED = """
import os, signal, sys
from hansa.runtimes.local import train
from hansa.runtimes.processes import Processes, ProcessSession
from tests.runtimes.jobs import plain, some_clients

begin = ProcessSession.__init__

def noted(self, *given):
    begin(self, *given)
    print(self._folder.name, flush=True)

def killed(record):
    os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    ProcessSession.__init__ = noted
    train(plain(), some_clients(), runtime=Processes(2), observe=killed)
"""


def test_a_killed_parents_folder_is_deleted_by_its_processes(tmp_path: Path) -> None:
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    ended = subprocess.run([sys.executable, script], env=paths, capture_output=True, text=True)
    folder = Path(ended.stdout.strip())  # its processes hold these pipes, too: they have ended by now
    assert folder.name.startswith("hansa-") and ended.returncode == -9
    assert not folder.exists()
    assert "Traceback" not in ended.stderr
