"""The round loop, the same for every runtime.

    draw clients ─► publish tasks ─► collect answers, leg by leg, in task order ─► reduce ─► decode ─► apply ─► commit

It blocks only in `Session.next` and is durable only through `Store`: killed anywhere, it goes on from the last committed
round. What a secret or noisy total releases is charged to the ledger before it is opened; if a crash follows, that
attempt is void and stays charged, and the next one has new noise.
"""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from hansa.core.algorithm import Aggregate
from hansa.core.checkpoint import Checkpoint, dump
from hansa.core.errors import HansaError, StateMismatch, TrainingFailed
from hansa.core.job import Job
from hansa.core.ledger import Ledger
from hansa.core.model import Metrics, Role, value
from hansa.core.pipeline import Arrived, Bound, Closed, Decoding
from hansa.core.round import Phase, Round, Verdict
from hansa.core.runtime import Deadline, Failure, Happening, Reply, Session, Stop, Store, Task
from hansa.core.sampling import Fixed, Stream
from hansa.core.tensors import EMPTY, Tensors, stack


@dataclass(frozen=True, kw_only=True)
class Record:
    """What is known of one committed round.

    Args:
      round, attempt: which; attempts before this one were void.
      asked, counted: clients asked, and those whose contribution is in the model.
      dropped: client to the reason why it is not.
      late: answers that came after the round, or twice; never added.
      train: metrics of local training, averaged over examples.
      central, workers: metrics of this round's evaluation, on the server's data and on the workers'.
      up_bytes, down_bytes, seconds, compute_seconds: as the runtime counted them.
    """

    round: int
    attempt: int
    asked: int
    counted: int
    dropped: Mapping[str, str] = field(default_factory=dict)
    late: int = 0
    train: Mapping[str, float] = field(default_factory=dict)
    central: Mapping[str, float] = field(default_factory=dict)
    workers: Mapping[str, float] = field(default_factory=dict)
    up_bytes: int = 0
    down_bytes: int = 0
    seconds: float = 0.0
    compute_seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """A dictionary of JSON values; metrics that are not numbers become null."""
        fields = asdict(self)
        for name in ("train", "central", "workers"):
            fields[name] = {key: number if math.isfinite(number) else None for key, number in fields[name].items()}
        return fields

    @staticmethod
    def from_json(fields: Mapping[str, Any]) -> "Record":
        """The record that `to_json` wrote."""
        metrics = {
            name: {key: math.nan if number is None else number for key, number in fields[name].items()}
            for name in ("train", "central", "workers")
        }
        return Record(**{**fields, **metrics})


@dataclass(frozen=True)
class Outcome:
    """What a run ends with: its last committed checkpoint, all records, and whether it was stopped before its end."""

    checkpoint: Checkpoint
    records: tuple[Record, ...]
    stopped: bool = False


Observe = Callable[[Record], None]


def train(
    job: Job, session: Session, store: Store, *, run: str, fingerprint: str | None = None, observe: Observe | None = None
) -> Outcome:
    """Runs a job to its end, from its last committed round if it has one.

    Args:
      job: checked here against the population, before any task is sent.
      session: the runtime's side of this run.
      store: the run's state.
      run: its random id.
      fingerprint: of the job and its archive; the job's own if None.
      observe: called with each committed record.

    Raises:
      JobError: the job has faults, all listed.
      StateMismatch: the store holds the state of another job.
      TrainingFailed: a round could not be completed; the state is that of the last committed round.
    """
    return _Loop(job, session, store, run, fingerprint or job.fingerprint(), observe or (lambda record: None)).to_the_end()


def query(job: Job, session: Session, store: Store, *, run: str, fingerprint: str | None = None) -> dict[str, float]:
    """Asks every client the job's query, once, and gives the answers averaged over examples."""
    loop = _Loop(job, session, store, run, fingerprint or job.fingerprint(), lambda record: None)
    population = session.population()
    return loop._ask("query", loop.checkpoint, population, 0, len(population))


class _Void(Exception):
    """An attempt came to nothing."""

    def __init__(self, round: Round) -> None:
        super().__init__(round.why())
        self.round = round


class _Stopped(Exception):
    """The operator ended the run."""


class _Loop:
    def __init__(self, job: Job, session: Session, store: Store, run: str, fingerprint: str, observe: Observe) -> None:
        self.job, self.session, self.store, self.run, self.observe = job, session, store, run, observe
        self.fingerprint = fingerprint
        self.flying: dict[str, Task] = {}  # by task key: training tasks out, of this version and older ones
        self.backlog: list[Happening] = []  # what happened to them while a round of another kind was collected
        self.late = 0
        population = session.population()
        job.check(len(population))
        params = job.model.init(job.seed)
        self.frozen = job.model.named(params, Role.FROZEN)
        self.frozen_hash = hashlib.sha256(dump(self.frozen)).hexdigest() if len(self.frozen) else ""
        self.checkpoint = self._resumed(store.load()) or self._first(params, population)

    def _resumed(self, saved: Checkpoint | None) -> Checkpoint | None:
        if saved is not None and saved.fingerprint != self.fingerprint:
            raise StateMismatch(
                f"run {saved.run} was begun by another job (fingerprint {saved.fingerprint[:12]}, this one is "
                f"{self.fingerprint[:12]}): give the job it began with, or another state folder."
            )
        return saved

    def _first(self, params: Tensors, population: Sequence[str]) -> Checkpoint:
        sent = self.job.model.named(params, Role.TRAINABLE, Role.BUFFER)
        return Checkpoint(
            run=self.run, fingerprint=self.fingerprint, round=0, state=self.job.algorithm.init(sent),
            pipeline=self.job.bind(len(population)).start(), plan=self.job.model.plan(),
        )  # fmt: skip

    def to_the_end(self) -> Outcome:
        stopped = False
        try:
            while self.checkpoint.round < self.job.rounds:
                self._round()
        except _Stopped:
            stopped = True
        self.session.retire(tuple(self.flying.values()))
        return Outcome(self.checkpoint, tuple(Record.from_json(record) for record in self.store.records()), stopped)

    # -- a round

    def _round(self) -> None:
        """One committed round, however many attempts it takes."""
        first, last = Ledger(tuple(self.store.charges())).attempts(self.checkpoint.round), ""
        for attempt in range(first, first + self.job.attempts):
            try:
                return self._attempt(attempt)
            except _Void as void:
                last = str(void)
                for failure in void.round.dropped.values():
                    if not failure.gone:
                        raise TrainingFailed(
                            f"round {self.checkpoint.round}: {void}. Mend what failed and run the same command again, or set a quorum."
                        ) from failure.error
        raise TrainingFailed(
            f"round {self.checkpoint.round} was void {self.job.attempts} times, the last one because of {last}: "
            "lower the quorum, or lengthen the deadline."
        )

    def _attempt(self, attempt: int) -> None:
        now, population = self.checkpoint, self.session.population()
        bound = self.job.bind(len(population))
        tasks, asked = self._tasks("train", attempt, population), len(self.flying)
        self.late = 0
        down = self.job.algorithm.send(now.state)
        self._publish(tasks, down.updated(Tensors.join(pipeline=now.pipeline)), len(population))
        self.flying.update({task.key: task for task in tasks})
        asked += len(tasks)
        collected = sorted(self.flying.values(), key=lambda task: (task.version, task.attempt, task.position))
        needed = max(1, round(self.job.who.expected(len(population)))) if tasks else len(collected)
        try:
            total, survivors, dropped = self._reduce(bound, collected, needed, now.pipeline, attempt)
        except _Void:
            self._retire(self.flying.values())
            raise
        decoding = Decoding(len(survivors), self.job.who.expected(len(population)), self._secret(attempt))
        total, pipeline = bound.decode_total(total, now.pipeline, decoding)
        aggregate = self._aggregate(total, len(survivors), len(population))
        metrics = _metrics(total)
        del total
        state = self.job.algorithm.apply(now.state, aggregate)
        done = [task for task in collected if task in set(survivors) or task.client in dropped]
        if not self.job.who.max_staleness:
            done = collected
        self._retire(done)
        remembers = self.job.algorithm.keeps_memory or any(stage.remembers for stage in self.job.pipeline.stages)
        if remembers or Role.PRIVATE in self.job.model.roles().values():
            memories = {**now.memories, **{task.client: task.memory for task in survivors}}
        else:
            memories = {}
        after = replace(
            now, round=now.round + 1, state=state, pipeline=pipeline, memories=memories, ledger=Ledger(tuple(self.store.charges()))
        )
        record = Record(
            round=now.round, attempt=attempt, asked=asked, counted=len(survivors), dropped=dropped, train=metrics, late=self.late
        )
        self._commit(after, *self._evaluated(after, record, population, attempt))

    def _commit(self, after: Checkpoint, record: Record, best: float | None) -> None:
        traffic = self.session.traffic()
        record = replace(
            record, up_bytes=traffic.up_bytes, down_bytes=traffic.down_bytes, seconds=traffic.seconds,
            compute_seconds=traffic.compute_seconds,
        )  # fmt: skip
        if best is not None:
            after = replace(after, best=(after.round, best))
        self.store.commit(after, record.to_json(), best is not None)
        self.checkpoint = after
        self.observe(record)

    def _tasks(self, kind: str, attempt: int, population: Sequence[str], cohort: int | None = None) -> list[Task]:
        now, who = self.checkpoint, self.job.who
        if kind == "train" and self.job.bind(len(population)).events():
            # A sample that claims amplification must be unpredictable to workers, who know the job's seed.
            stream = Stream(self.store.secret(), "sample", now.round, attempt)
        else:
            stream = Stream("sample", self.job.seed, kind, now.round, attempt)
        busy = {task.client for task in self.flying.values()} if kind == "train" else frozenset()
        if cohort is not None:
            who = Fixed(min(cohort, len(population)))
        names = who.draw(population, stream, busy)
        return [
            Task(
                run=self.run, fingerprint=self.fingerprint, kind=kind, version=now.round, round=now.round, attempt=attempt,
                client=name, position=position, since=now.memories.get(name, ""), frozen=self.frozen_hash,
                population=len(population),
            )  # fmt: skip
            for position, name in enumerate(names)
        ]

    def _publish(self, tasks: Sequence[Task], down: Tensors, population: int) -> None:
        bound = self.job.bind(population, "down")
        if bound.steps:
            rng = np.random.default_rng(Stream("down", self.job.seed, self.checkpoint.round).seed())
            encoded, _ = bound.encode(stack([down.without("pipeline")]), bound.start(), EMPTY, [rng])
            down = encoded.map(lambda a: a[0]).updated(Tensors.join(pipeline=down.part("pipeline")))
        self.session.publish(tasks, down, self.frozen, self.job.who.deadline_s)

    def _secret(self, attempt: int) -> Callable[[str], Stream]:
        secret, at = self.store.secret(), self.checkpoint.round
        return lambda label: Stream(secret, label, at, attempt)

    def _retire(self, tasks: Any) -> None:
        tasks = tuple(tasks)
        self.session.retire(tasks)
        for task in tasks:
            self.flying.pop(task.key, None)

    # -- collecting and reducing

    def _reduce(
        self, bound: Bound, tasks: Sequence[Task], needed: int, state: Tensors, attempt: int
    ) -> tuple[Tensors, tuple[Task, ...], dict[str, str]]:
        """The undecoded total, whose contributions are in it, and why the others' are not."""
        reducer = bound.reducer
        assert reducer is not None
        server = reducer.server([task.client for task in tasks])
        next(server)
        who, dropped = self.job.who, {}
        survivors = tuple(tasks)
        for leg in range(reducer.legs):
            quorum = who.quorum if who.quorum is not None else min(needed, len(survivors))
            enough = who.enough(len(survivors), needed) if leg == 0 else len(survivors)
            collecting = Round(survivors, quorum, enough, leg)
            while collecting.phase == Phase.OPEN:
                self._take(collecting, tasks[0].kind, attempt)
                self._feed(collecting, bound, state, server)
            self._feed(collecting, bound, state, server)
            dropped.update({client: failure.reason for client, failure in collecting.dropped.items()})
            self.late += sum(collecting.ignored.values())
            if collecting.phase == Phase.VOID:
                raise _Void(collecting)
            if not who.max_staleness:
                dropped.update({task.client: "no answer in time" for task in collecting.outstanding})
            survivors = collecting.survivors
            if leg == max(0, reducer.legs - 2) and bound.events():
                names = [task.client for task in survivors]
                self.store.charge(self.checkpoint.round, attempt, names, bound.events())
            try:
                answers = server.send(Closed(leg, tuple(task.client for task in survivors)))
            except StopIteration as end:
                return end.value, survivors, dropped
            for task in survivors:
                if answers and task.client in answers:
                    self.session.send(task, leg + 1, answers[task.client])
        raise AssertionError(f"{type(reducer).__name__} gave no total after its {reducer.legs} legs")

    def _take(self, collecting: Round, kind: str, attempt: int) -> None:
        """Gives one happening to the leg that is collected, or keeps it for the training tasks still out."""
        happening = self.backlog.pop(0) if self.backlog and kind == "train" else self.session.next()
        if isinstance(happening, Stop):
            raise _Stopped(happening.reason)
        if isinstance(happening, Deadline):
            if (happening.kind, happening.round, happening.attempt) == (kind, self.checkpoint.round, attempt):
                collecting.on(happening)
        elif happening.task.kind != kind and happening.task.key in self.flying:
            self.backlog.append(happening)
        else:
            collecting.on(happening)

    def _feed(self, collecting: Round, bound: Bound, state: Tensors, server: Any) -> None:
        """Gives the reducer what can be added now."""
        for reply in collecting.ready():
            try:
                if collecting.leg == 0:
                    bound.admit(reply.message, reply.task.client)
                broken = reply.message.first_not_finite()
                if broken:
                    raise TrainingFailed(f"NaN or infinity in '{broken}'")
                message = bound.decode_one(reply.message, state)
            except HansaError as error:
                collecting.reject(Failure(reply.task, f"its update was rejected: {error}", error=error))
                continue
            staleness = self.checkpoint.round - reply.task.version
            discount = self.job.algorithm.discount(staleness) if reply.task.kind == "train" else 1.0
            server.send(Arrived(reply.task.client, collecting.leg, message, discount))

    def _aggregate(self, total: Tensors, count: int, population: int) -> Aggregate:
        weight = total.part("weight")
        sides = [part for part in total.parts if part not in ("value", "buffers", "weight", "metric")]
        return Aggregate(
            mean=total.part("value"), buffers=total.part("buffers"), side={part: total.part(part) for part in sides},
            weight=float(weight["weight"][0]) if len(weight) else float(count), count=count, population=population,
        )  # fmt: skip

    # -- evaluation

    def _evaluated(
        self, after: Checkpoint, record: Record, population: Sequence[str], attempt: int
    ) -> tuple[Record, float | None]:
        """The record with this round's evaluation, and the metric if it is the best so far."""
        how = self.job.evaluation
        if (after.round % how.every) and after.round != self.job.rounds:
            return record, None
        central: dict[str, float] = {}
        if how.data is not None or how.central is not None:
            params = after.state.part("model").updated(self.frozen)
            if how.data is not None:
                data = how.data() if callable(how.data) else how.data
                central.update(value(self.job.model.evaluate(params, data)))
            if how.central is not None:
                central.update(_numbers(how.central(self.job.model, params)))
        workers = self._ask("evaluate", after, population, attempt, how.workers) if how.workers != 0 else {}
        record = replace(record, central=central, workers=workers)
        metric = {**workers, **central}.get(how.best or "", math.nan)
        if math.isnan(metric):
            return record, None
        better = after.best is None or (metric > after.best[1] if how.maximise else metric < after.best[1])
        return record, metric if better else None

    def _ask(
        self, kind: str, after: Checkpoint, population: Sequence[str], attempt: int, cohort: int | None
    ) -> dict[str, float]:
        """A round of metrics alone, through the same reducer; empty if it was void."""
        bound = self.job.bind(len(population), kind)
        cohort = cohort if cohort is not None else max(1, round(self.job.who.expected(len(population))))
        before, self.checkpoint = self.checkpoint, after
        try:
            tasks = self._tasks(kind, attempt, population, cohort)
            self._publish(tasks, self.job.algorithm.send(after.state), len(population))
            try:
                total, _, _ = self._reduce(bound, tasks, len(tasks), EMPTY, attempt)
            except _Void:
                return {}
            finally:
                self.session.retire(tasks)
            return _metrics(total)
        finally:
            self.checkpoint = before


def _metrics(total: Tensors) -> dict[str, float]:
    metric = total.part("metric")
    return value({name: (float(metric[name][0]), float(metric[name][1])) for name in metric})


def _numbers(metrics: Metrics | Mapping[str, float]) -> dict[str, float]:
    """Metrics of a callable, which may give plain numbers or (numerator, denominator)."""
    return {name: value({name: given})[name] if isinstance(given, tuple) else float(given) for name, given in metrics.items()}
