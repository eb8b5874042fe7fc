"""What runs promise that are watched, stopped early, killed and resumed: each round once, and the same bits."""

import csv
import dataclasses
import io
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hansa.core.checkpoint import Checkpoint
from hansa.core.errors import ConfigError, MissingExtra
from hansa.core.job import Evaluation, Job
from hansa.core.pipeline import Pipeline
from hansa.core.train import Record
from hansa.runtimes.local import train
from hansa.runtimes.memory import MemoryMemories, MemoryStore
from hansa.runtimes.observe import (
    CsvLog,
    EarlyStopping,
    MLflow,
    Observer,
    ParquetLog,
    Progress,
    StopTraining,
    TensorBoard,
)
from hansa.runtimes.observe.metric import metric_of
from hansa.runtimes.observe.resident import peak_memory_bytes
from tests.runtimes.jobs import remembering, some_clients

pytest.importorskip("sqlalchemy")

ROUNDS = 7


class Killed(BaseException):
    """As kill -9: nothing catches it."""


def job(**changes: Any) -> Job:
    return dataclasses.replace(remembering(), rounds=ROUNDS, **changes)


def record(round: int, loss: float | None = None, **more: Any) -> Record:
    return Record(round=round, attempt=0, asked=2, counted=2, central={} if loss is None else {"loss": loss}, **more)


def kill_after(round: int) -> Any:
    def observe(record: Record) -> None:
        if record.round + 1 == round:
            raise Killed

    return observe


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


# ── observers ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_several_observers_see_every_round_and_plain_callables_are_observers() -> None:
    one: list[int] = []
    other: list[int] = []
    train(job(), some_clients(), observe=[lambda r: one.append(r.round), lambda r: other.append(r.round)])
    assert one == other == list(range(ROUNDS))


def test_an_observer_is_told_of_beginning_and_end_also_when_another_stops_the_run() -> None:
    told: list[str] = []

    class Watcher(Observer):
        def begin(self, job: Job, run: str, records: Sequence[Record]) -> None:
            told.append(f"begin {len(records)}")

        def __call__(self, record: Record) -> None:
            told.append(f"round {record.round}")

        def end(self, reason: str) -> None:
            told.append(f"end {reason}")

    def stop(record: Record) -> None:
        if record.round == 1:
            raise StopTraining("enough")

    store, memories = MemoryStore(), MemoryMemories()
    history = train(job(), some_clients(), observe=[stop, Watcher()], store=store, memories=memories)
    assert told == ["begin 0", "round 0", "round 1", "end enough"]
    assert (history.stopped, history.reason, len(history.rounds)) == (True, "enough", 2)
    del told[:]
    resumed = train(job(), some_clients(), observe=[Watcher()], store=store, memories=memories)
    assert told[:2] == ["begin 2", "round 2"]
    assert told[-1] == "end "
    assert resumed.checkpoint.state == train(job(), some_clients()).checkpoint.state
    assert not resumed.stopped


def test_what_cannot_be_called_is_no_observer() -> None:
    for wrong in (3, CsvLog):
        with pytest.raises(ConfigError, match="an observer is called with each record"):
            train(job(), some_clients(), observe=[wrong])


# ── early stopping ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("losses", "options", "stops_after"),
    [
        ([3, 2, 1, 1, 1, 0], {"patience": 2}, 5),
        ([3, 2, 1, 1, 0.9, 1, 1], {"patience": 2}, 7),
        ([3, 2, 1, 1, 0.9, 1, 1], {"patience": 2, "minimum_change": 0.5}, 5),
        ([1, 2, 3, 3, 3], {"patience": 2, "maximise": True}, 5),
        ([3, None, None, 3, None, 3], {"patience": 2}, 6),
        ([float("nan"), float("nan")], {"patience": 2}, 2),
        ([3, 2, 1], {"patience": 1}, None),
    ],
)
def test_early_stopping_counts_measurements_without_improvement(
    losses: list[float | None], options: dict[str, Any], stops_after: int | None
) -> None:
    stopping = EarlyStopping("loss", **options)
    stopped = None
    for round, loss in enumerate(losses):
        try:
            stopping(record(round, loss))
        except StopTraining as stop:
            assert f"up to round {round + 1}" in str(stop)
            stopped = round + 1
            break
    assert stopped == stops_after


def test_early_stopping_knows_from_the_name_or_the_job_whether_more_is_better() -> None:
    def stops(metric: str, maximise: bool, values: list[float]) -> bool:
        stopping = EarlyStopping(metric, patience=2)
        stopping.begin(job(evaluation=Evaluation(central=lambda _: {}, best="score", maximise=maximise)), "run", [])
        rounds = [dataclasses.replace(record(at), central={metric: value}) for at, value in enumerate(values)]
        try:
            for each in rounds:
                stopping(each)
        except StopTraining:
            return True
        return False

    rising, falling = [1.0, 2.0, 3.0, 4.0], [4.0, 3.0, 2.0, 1.0]
    assert (stops("accuracy", False, rising), stops("accuracy", False, falling)) == (False, True)
    assert (stops("test_loss", True, rising), stops("test_loss", True, falling)) == (True, False)
    for maximise in (True, False):  # of the job's own best metric
        assert (stops("score", maximise, rising), stops("score", maximise, falling)) == (not maximise, maximise)


def test_early_stopping_ends_a_run_and_stops_at_the_same_round_when_it_was_killed_before() -> None:
    def stopping() -> EarlyStopping:
        return EarlyStopping("train.loss", patience=2, minimum_change=1e9)

    whole = train(job(), some_clients(), observe=stopping())
    assert (whole.stopped, len(whole.rounds)) == (True, 3)
    assert "train.loss has not improved in 2 evaluations, up to round 3" in whole.reason
    store, memories = MemoryStore(), MemoryMemories()
    with pytest.raises(Killed):
        train(job(), some_clients(), observe=[stopping(), kill_after(2)], store=store, memories=memories)
    for _ in range(2):  # the second resumes a run that is stopped already
        again = train(job(), some_clients(), observe=stopping(), store=store, memories=memories)
        assert again.checkpoint.state == whole.checkpoint.state
        assert again.reason == whole.reason


def test_early_stopping_on_a_metric_that_is_not_measured_says_which_there_are() -> None:
    with pytest.raises(ConfigError, match="metric 'frob' is not measured: this job has .*train.loss"):
        train(job(), some_clients(), observe=EarlyStopping("frob", patience=1))
    with pytest.raises(ConfigError, match="patience=0"):
        EarlyStopping("loss", patience=0)


def test_a_metric_is_that_of_the_server_first() -> None:
    one = Record(round=0, attempt=0, asked=1, counted=1, train={"loss": 1}, workers={"loss": 2}, central={"loss": 3})
    assert [metric_of(one, name) for name in ("loss", "workers.loss", "train.loss", "x")] == [3, 2, 1, None]


# ── logs ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_csv_log_has_each_round_once_after_kill_and_torn_line(tmp_path: Path) -> None:
    path, store, memories = tmp_path / "rounds.csv", MemoryStore(), MemoryMemories()
    kept: dict[str, Any] = {"store": store, "memories": memories}
    with pytest.raises(Killed):
        train(job(), some_clients(), observe=[CsvLog(path), kill_after(3)], **kept)
    with open(path, "a") as file:
        file.write("4,0,3")  # a round that was never committed, torn
    train(job(), some_clients(), observe=CsvLog(path), **kept)
    rows = rows_of(path)
    assert [int(row["round"]) for row in rows] == list(range(1, ROUNDS + 1))
    assert all(int(row["peak_memory_bytes"]) > 1e6 for row in rows)
    history = train(job(), some_clients(), **kept)
    assert [float(row["train.loss"]) for row in rows] == [r.train["loss"] for r in history.rounds]


def test_csv_log_takes_a_metric_that_comes_later_and_moves_another_run_s_aside(tmp_path: Path) -> None:
    path = tmp_path / "rounds.csv"
    log = CsvLog(path)
    log.begin(job(), "r", [])
    log(record(0))
    log(record(1, 0.5))
    assert [row["central.loss"] for row in rows_of(path)] == ["", "0.5"]
    CsvLog(path).begin(job(), "s", [])
    assert rows_of(path) == []
    assert len(rows_of(tmp_path / "rounds.before.csv")) == 2
    (tmp_path / "letter.csv").write_text("dear,sir\n1,2\n")
    with pytest.raises(ConfigError, match="is no log of rounds"):
        CsvLog(tmp_path / "letter.csv").begin(job(), "r", [])
    with pytest.raises(ConfigError, match="there is no folder"):
        CsvLog(tmp_path / "no" / "rounds.csv")


def test_parquet_log_has_each_round_once_and_fills_in_what_a_kill_lost(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    path, kept = tmp_path / "rounds.parquet", {"store": MemoryStore(), "memories": MemoryMemories()}
    log = ParquetLog(path, every=2)
    log.end = lambda reason: None  # type: ignore[method-assign]  # killed: nothing is written at the end
    with pytest.raises(Killed):
        train(job(), some_clients(), observe=[log, kill_after(3)], **kept)
    assert parquet.read_table(path).column("round").to_pylist() == [1, 2]
    history = train(job(), some_clients(), observe=ParquetLog(path), **kept)
    table = parquet.read_table(path)
    assert table.column("round").to_pylist() == list(range(1, ROUNDS + 1))
    assert table.column("train.loss").to_pylist() == [r.train["loss"] for r in history.rounds]
    path.write_text("no table")
    with pytest.raises(ConfigError, match="is no log of rounds"):
        ParquetLog(path).begin(job(), "r", [])


def test_tensorboard_reads_what_was_logged_each_round_once(tmp_path: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    kept: dict[str, Any] = {"store": MemoryStore(), "memories": MemoryMemories()}
    with pytest.raises(Killed):
        train(job(), some_clients(), observe=[TensorBoard(tmp_path), kill_after(3)], checkpoint_every=2, **kept)
    history = train(job(), some_clients(), observe=TensorBoard(tmp_path), **kept)
    found = reader.EventAccumulator(str(tmp_path)).Reload()
    losses = found.Scalars("train/loss")
    assert [event.step for event in losses] == list(range(1, ROUNDS + 1))
    np.testing.assert_allclose([event.value for event in losses], [r.train["loss"] for r in history.rounds], rtol=1e-6)
    assert found.Scalars("run/peak_memory_bytes")[0].value > 1e6


class FakeMlflow:
    """As much of MLflow's client as is called; tests/runtimes runs without the library."""

    def __init__(self) -> None:
        self.runs: dict[str, SimpleNamespace] = {}
        self.entities = SimpleNamespace(
            Param=lambda key, value: (key, value), Metric=lambda *fields: SimpleNamespace(fields=fields, step=fields[3])
        )

    def MlflowClient(self, tracking_uri: str | None) -> "FakeMlflow":
        return self

    def get_experiment_by_name(self, name: str) -> Any:
        return SimpleNamespace(experiment_id="1") if self.runs else None

    def create_experiment(self, name: str) -> str:
        return "1"

    def search_runs(self, experiments: list[str], filter_string: str, max_results: int) -> list[Any]:
        return [run for run in self.runs.values() if f"'{run.tag}'" in filter_string]

    def create_run(self, experiment: str, tags: dict[str, str], run_name: str) -> Any:
        made = SimpleNamespace(
            tag=tags["hansa.run"], info=SimpleNamespace(run_id="m"), params=[], metrics=[], status=""
        )
        self.runs["m"] = made
        return made

    def get_metric_history(self, run: str, name: str) -> list[Any]:
        return [metric for metric in self.runs[run].metrics if metric.fields[0] == name]

    def log_batch(self, run: str, params: Sequence[Any] = (), metrics: Sequence[Any] = ()) -> None:
        assert len(params) <= 100
        self.runs[run].params += params
        self.runs[run].metrics += metrics

    def update_run(self, run: str, status: str) -> None:
        self.runs[run].status = status

    def set_tag(self, run: str, key: str, value: str) -> None:
        self.runs[run].reason = value

    def set_terminated(self, run: str, status: str) -> None:
        self.runs[run].status = status


def test_mlflow_gets_each_round_once_in_one_run(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeMlflow()
    monkeypatch.setitem(sys.modules, "mlflow", fake)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "mlflow.entities", fake.entities)  # type: ignore[arg-type]
    kept: dict[str, Any] = {"store": MemoryStore(), "memories": MemoryMemories()}
    with pytest.raises(Killed):
        train(job(), some_clients(), observe=[MLflow(), kill_after(3)], **kept)
    assert fake.runs["m"].status == "KILLED"
    train(job(), some_clients(), observe=MLflow(), **kept)
    assert [metric.step for metric in fake.get_metric_history("m", "train.loss")] == list(range(1, ROUNDS + 1))
    assert {("rounds", str(ROUNDS)), ("algorithm.work.lr", "0.05")} <= set(fake.runs["m"].params)
    assert fake.runs["m"].status == "FINISHED"


@pytest.mark.filterwarnings("ignore")  # MLflow's own
def test_the_real_mlflow_gets_each_round_once(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("alembic")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    kept: dict[str, Any] = {"store": MemoryStore(), "memories": MemoryMemories()}
    with pytest.raises(Killed):
        train(job(), some_clients(), observe=[MLflow(uri=uri), kill_after(3)], **kept)
    train(job(), some_clients(), observe=MLflow(uri=uri), **kept)
    client = mlflow.MlflowClient(tracking_uri=uri)
    (run,) = client.search_runs([client.get_experiment_by_name("hansa").experiment_id])
    assert [m.step for m in client.get_metric_history(run.info.run_id, "train.loss")] == list(range(1, ROUNDS + 1))


@pytest.mark.parametrize(
    ("make", "library", "extra"),
    [
        (lambda: MLflow(), "mlflow", "tracking"),
        (lambda: TensorBoard("x"), "tensorboard", "tracking"),
        (lambda: ParquetLog("x.parquet"), "pyarrow", "data"),
        (lambda: Progress(), "rich", "cli"),
    ],
)
def test_a_library_that_is_missing_is_named_with_its_extra(
    make: Any, library: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)  # type: ignore[arg-type]
    with pytest.raises(MissingExtra, match=rf"needs {library}.*hansa\[{extra}\]"):
        make()


def test_progress_shows_rounds_time_left_metrics_and_the_reason() -> None:
    rich = pytest.importorskip("rich.console")
    text = io.StringIO()
    shown = rich.Console(file=text, width=120, force_terminal=True)
    stopping = EarlyStopping("train.loss", patience=2, minimum_change=1e9)
    train(job(), some_clients(), observe=[Progress(shown), stopping])
    assert f"3/{ROUNDS}" in text.getvalue()
    assert "left" in text.getvalue()
    assert "loss" in text.getvalue()
    assert "stopped: train.loss has not improved" in text.getvalue()


def test_memory_is_at_least_what_this_process_holds() -> None:
    before = peak_memory_bytes()
    ballast = np.ones(8_000_000)
    assert 1e7 < before <= peak_memory_bytes()
    assert peak_memory_bytes() >= ballast.nbytes


# ── checkpoints ──────────────────────────────────────────────────────────────────────────────────────────────────────


class Counting(MemoryStore):
    """Says which rounds were committed, and dies as a machine does: what was not committed is gone."""

    def __init__(self) -> None:
        super().__init__()
        self.commits: list[tuple[int, int]] = []
        self.dead = False

    def commit_rounds(self, checkpoint: Checkpoint, records: Any, best: bool) -> None:
        if self.dead:
            raise Killed
        self.commits.append((checkpoint.round, len(records)))
        super().commit_rounds(checkpoint, records, best)


def test_checkpoints_come_every_n_rounds_and_at_the_end() -> None:
    store = Counting()
    history = train(job(), some_clients(), store=store, checkpoint_every=3)
    assert store.commits == [(3, 3), (6, 3), (7, 1)]
    assert len(history.rounds) == ROUNDS


@pytest.mark.parametrize("killed", [1, 2, 3, 4, 5, 6, 7])
@pytest.mark.parametrize("place", ["memory", "disk"])
def test_killed_between_checkpoints_a_run_ends_with_the_same_bits_and_memories(
    killed: int, place: str, tmp_path: Path
) -> None:
    from hansa.app.simulate import ClientMemories
    from hansa.runtimes.checkpoints import EveryRounds

    def opened() -> Any:
        return kept if place == "memory" else ClientMemories(tmp_path)  # as a new process would

    whole = train(job(), some_clients())
    store, kept = Counting(), MemoryMemories()

    def kill(record: Record) -> None:
        if record.round + 1 == killed:
            store.dead = True
            raise Killed

    with pytest.raises(Killed):
        train(job(), some_clients(), store=store, memories=opened(), checkpoint_every=3, observe=kill)
    assert len(store.records()) == killed // 3 * 3
    store.dead = False
    again = train(job(), some_clients(), store=store, memories=opened(), checkpoint_every=3)
    assert again.checkpoint.state == whole.checkpoint.state
    assert [r.train for r in again.rounds] == [r.train for r in whole.rounds]
    assert EveryRounds(store, opened(), 3).load() == again.checkpoint


def test_an_interrupted_run_keeps_the_rounds_since_its_checkpoint(tmp_path: Path) -> None:
    from hansa.runtimes.store import SqlStore

    with closing(SqlStore(tmp_path / "state")) as whole:
        store = whole.run(whole.add_run(name="j", bundle="", submitter=""))
        with pytest.raises(Killed):
            train(job(), some_clients(), store=store, checkpoint_every=100, observe=kill_after(2))
        assert store.load().round == 2  # type: ignore[union-attr]
        assert [one["round"] for one in store.records()] == [0, 1]


def test_the_best_round_is_kept_where_it_lies_between_checkpoints() -> None:
    from hansa.runtimes.checkpoints import EveryRounds

    store = Counting()
    history = train(job(), some_clients())
    every = EveryRounds(store, MemoryMemories(), 5)
    for round in range(1, 6):
        state = dataclasses.replace(history.checkpoint, round=round, memories={})
        every.commit(state, record(round - 1).to_json(), best=round in (1, 3))
    assert store.commits == [(3, 3), (5, 2)]
    assert store.best() is not None
    assert (store.best().round, every.best().round) == (3, 3)  # type: ignore[union-attr]
    assert len(every.records()) == 5


def test_a_round_that_was_charged_for_is_committed_at_once() -> None:
    pytest.importorskip("dp_accounting")
    from hansa.adapters.numpy import LinearModel
    from hansa.algorithms.fedavg import FedAvg
    from hansa.core.model import LocalWork
    from hansa.stages.clip import Clip
    from hansa.stages.mean import UniformMean
    from hansa.stages.noise import Gaussian
    from hansa.stages.sum import Sum

    pipeline = Pipeline([Clip(1.0), UniformMean(), Gaussian(0.5)], Sum())
    private = Job(
        model=LinearModel(inputs=5),
        algorithm=FedAvg(LocalWork(lr=0.1, epochs=1)),
        pipeline=pipeline,
        cohort=3,
        rounds=4,
    )
    store = Counting()
    train(private, some_clients(), store=store, checkpoint_every=3)
    assert [count for _, count in store.commits] == [1] * private.rounds


def test_a_store_that_cannot_commit_several_rounds_is_refused() -> None:
    class Plain(MemoryStore):
        commit_rounds = None  # type: ignore[assignment]

    with pytest.raises(ConfigError, match="Plain commits one round at a time"):
        train(job(), some_clients(), store=Plain(), checkpoint_every=2)
    with pytest.raises(ConfigError, match="checkpoint_every=0"):
        train(job(), some_clients(), store=MemoryStore(), checkpoint_every=0)
