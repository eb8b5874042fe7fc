"""The round loop, the same for every runtime.

    draw clients ─► publish tasks ─► collect answers, leg by leg, in task order ─► reduce ─► decode ─► apply ─► commit

It blocks only in `Session.next`, and is durable only through `Store`: killed anywhere, it goes on from the last
committed round. What a secret or noisy total releases is charged to the ledger before it is opened; if a crash follows,
that attempt is void and stays charged, and the next one has new noise.
"""

import functools
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from hansa.core.algorithm import Aggregate
from hansa.core.checkpoint import Checkpoint, dump
from hansa.core.data import load
from hansa.core.errors import HansaError, SecretRoundVoid, StateMismatch, TrainingFailed, UpdateRejected
from hansa.core.job import Job
from hansa.core.ledger import EXACT, Ledger
from hansa.core.model import Metrics, Role, value
from hansa.core.pipeline import Arrived, Bound, Closed, Decoding, Server
from hansa.core.round import Phase, Round
from hansa.core.runtime import Deadline, Failure, Happening, Session, Stop, Store, Task
from hansa.core.sampling import Fixed, Sampling, Stream
from hansa.core.tensors import EMPTY, Tensors, stack


@dataclass(frozen=True, kw_only=True)
class Record:
    """What is known of one committed round.

    Args:
      round, attempt: which; attempts before this one were void.
      asked, counted: clients asked, and those whose contribution is in the model.
      dropped: client to the reason why it is not.
      late: answers that came after the round, or twice; never added.
      void: why each attempt before this one was, as far as this process saw them.
      train: metrics of local training, averaged over examples.
      central, workers: metrics of this round's evaluation, on the server's data and on the workers'.
      each: metrics of every evaluating client, where the job asks for them.
      up_bytes, down_bytes, seconds, compute_seconds: as the runtime counted them.
    """

    round: int
    attempt: int
    asked: int
    counted: int
    dropped: Mapping[str, str] = field(default_factory=dict)
    late: int = 0
    void: Sequence[str] = ()
    train: Mapping[str, float] = field(default_factory=dict)
    central: Mapping[str, float] = field(default_factory=dict)
    workers: Mapping[str, float] = field(default_factory=dict)
    each: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
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
        return Record(**{**fields, **metrics, "void": tuple(fields.get("void", ()))})


@dataclass(frozen=True)
class Outcome:
    """What a run ends with: its last committed checkpoint, all records, and whether it was stopped before its end."""

    checkpoint: Checkpoint
    records: tuple[Record, ...]
    stopped: bool = False


Observe = Callable[[Record], None]


def train(
    job: Job,
    session: Session,
    store: Store,
    *,
    run: str,
    fingerprint: str | None = None,
    observe: Observe | None = None,
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
    return _Loop(
        job, session, store, run, fingerprint or job.fingerprint(), observe or (lambda record: None)
    ).to_the_end()


def query(job: Job, session: Session, store: Store, *, run: str, fingerprint: str | None = None) -> dict[str, float]:
    """Asks every client the job's query, once, and gives the answers averaged over examples.

    Raises:
      JobError: the job has faults, all listed.
      TrainingFailed: fewer clients answered than the quorum (all, if there is none).
    """
    return _Loop(job, session, store, run, fingerprint or job.fingerprint(), lambda record: None).answer()


class _Void(Exception):
    """An attempt came to nothing."""

    def __init__(self, round: Round, why: str = "") -> None:
        super().__init__(why or round.why())
        self.round = round


class _Stopped(Exception):
    """The operator ended the run."""


class _Loop:
    def __init__(self, job: Job, session: Session, store: Store, run: str, fingerprint: str, observe: Observe) -> None:
        self.job, self.session, self.store, self.observe = job, session, store, observe
        self.flying: dict[str, Task] = {}  # by task key: training tasks out, of this version and older ones
        self.backlog: list[Happening] = []  # what happened to them while a round of another kind was collected
        self.late, self.seen = 0, 0
        self.each: dict[str, dict[str, float]] = {}
        population = self._population()
        job.check(len(population))
        params = job.model.init(job.seed)
        self.frozen, self.unsent = (
            job.model.named(params, Role.FROZEN),
            job.model.named(params, Role.FROZEN, Role.PRIVATE),
        )
        self.frozen_hash = hashlib.sha256(dump(self.frozen)).hexdigest() if len(self.frozen) else ""
        self.ledger = Ledger(tuple(store.charges()))
        self.checkpoint = store.load() or Checkpoint(
            run=run, fingerprint=fingerprint, round=0, plan=job.model.plan(),
            state=job.algorithm.init(job.model.named(params, Role.TRAINABLE, Role.BUFFER)),
            pipeline=job.bind(len(population)).start(),
        )  # fmt: skip
        if (begun := self.checkpoint.fingerprint) != fingerprint:
            raise StateMismatch(
                f"run {self.checkpoint.run} was begun by another job (fingerprint {begun[:12]}, this one is "
                f"{fingerprint[:12]}): give the job it began with, or another state folder."
            )

    def to_the_end(self) -> Outcome:
        stopped = False
        try:
            while self.checkpoint.round < self.job.rounds:
                self._round()
        except _Stopped:
            stopped = True
        finally:
            self.session.retire(tuple(self.flying.values()))
        return Outcome(self.checkpoint, tuple(Record.from_json(record) for record in self.store.records()), stopped)

    def _population(self) -> list[str]:
        """Who may be sampled: everybody but the reducer's helpers."""
        reducer = self.job.pipeline.reducer
        helpers = set(reducer.helpers) if reducer is not None else set()
        return [name for name in self.session.population() if name not in helpers]

    def answer(self) -> dict[str, float]:
        population = self._population()
        try:
            return self._ask("query", self.checkpoint, population, 0, len(population))
        except (_Void, _Stopped) as end:
            raise TrainingFailed(f"the query was not answered: {end}. Mend what failed, or set a quorum.") from None

    # -- a round

    def _round(self) -> None:
        """One committed round, however many attempts it takes."""
        at, first = self.checkpoint.round, self.ledger.attempts(self.checkpoint.round)
        voids: list[str] = []
        for attempt in range(first, first + self.job.attempts):
            try:
                return self._attempt(attempt, tuple(voids))
            except _Void as void:
                voids.append(str(void))
                for failure in void.round.dropped.values():
                    if not failure.gone:
                        remedy = "Mend what failed and run the same command again, or set a quorum."
                        raise TrainingFailed(f"round {at}: {void}. {remedy}") from failure.error
        raise TrainingFailed(
            f"round {at} was void {self.job.attempts} times, the last one because of {voids[-1]}: "
            "lower the quorum, or lengthen the deadline."
        )

    def _attempt(self, attempt: int, void: Sequence[str]) -> None:
        now, who, population = self.checkpoint, self.job.who, self._population()
        bound, self.late, outdated = self.job.bind(len(population)), 0, self._outdated()
        tasks = self._tasks("train", attempt, population, who)
        self.flying.update({task.key: task for task in tasks})
        collected = sorted(self.flying.values(), key=lambda task: (task.version, task.attempt, task.position))
        down = self.job.algorithm.send(now.state)
        self._publish(tasks, down.updated(Tensors.join(pipeline=now.pipeline)), len(population))
        try:
            total, survivors, finished, dropped = self._reduce(bound, who, collected, now.pipeline, attempt)
        except _Void:
            self._retire(tuple(self.flying.values()))
            raise
        expected, secret = who.expected(len(population)), self.store.secret()
        decoding = Decoding(
            len(survivors), expected, lambda label: Stream(secret, label, now.round, attempt),
            lambda label: Stream(secret, "run", label),
        )  # fmt: skip
        total, pipeline = bound.decode_total(total, now.pipeline, decoding)
        aggregate, metrics = _aggregate(total, len(survivors), len(population)), _metrics(total)
        del total
        state = self.job.algorithm.apply(now.state, aggregate)
        counted = set(survivors)
        self._retire([task for task in collected if not who.max_staleness or task in counted or task.client in dropped])
        memories = {**now.memories, **{task.client: task.memory for task in finished}} if self.job.remembers else {}
        after = replace(now, round=now.round + 1, state=state, pipeline=pipeline, memories=memories)
        record = Record(
            round=now.round, attempt=attempt, asked=len(_workers(collected)), counted=len(survivors), late=self.late,
            dropped={**outdated, **dropped}, void=void, train=metrics,
        )  # fmt: skip
        self._commit(after, *self._evaluated(after, record, population, attempt))

    def _commit(self, after: Checkpoint, record: Record, best: float | None) -> None:
        after = replace(after, ledger=self.ledger)  # an evaluation has added to it, too
        record = replace(record, **vars(self.session.traffic()))
        if best is not None:
            after = replace(after, best=(after.round, best))
        self.store.commit(after, record.to_json(), best is not None)
        self.checkpoint = after
        self.observe(record)

    def _outdated(self) -> dict[str, str]:
        """Gives up tasks whose model has become too old, and says why."""
        most = self.job.who.max_staleness
        old = [task for task in self.flying.values() if self.checkpoint.round - task.version > most]
        self._retire(old)
        return {task.client: f"its model was more than max_staleness={most} versions old" for task in old}

    def _tasks(self, kind: str, attempt: int, population: Sequence[str], who: Sampling) -> list[Task]:
        now, busy = self.checkpoint, {task.client for task in self.flying.values()} if kind == "train" else set()
        stream = Stream("sample", self.job.seed, kind, now.round, attempt)
        if kind == "train" and self.job.bind(len(population)).events():
            # A sample that claims amplification must be unpredictable to workers, who know the job's seed.
            stream = Stream(self.store.secret(), "sample", now.round, attempt)
        drawn = list(who.at(now.round).draw(population, stream, busy))
        assert self.job.pipeline.reducer is not None
        helpers = list(self.job.pipeline.reducer.helpers) if drawn else []
        return [
            Task(
                run=now.run, fingerprint=now.fingerprint, kind=kind, version=now.round, round=now.round,
                attempt=attempt, client=name, position=position, since=now.memories.get(name, ""),
                frozen=self.frozen_hash, population=len(population),
                role="worker" if position < len(drawn) else "helper",
            )
            for position, name in enumerate(drawn + helpers)
        ]  # fmt: skip

    def _publish(self, tasks: Sequence[Task], down: Tensors, population: int) -> None:
        bound = self.job.bind(population, "down")
        if bound.steps:
            rng = np.random.default_rng(Stream("down", self.job.seed, self.checkpoint.round).seed())
            encoded, _ = bound.encode(stack([down.without("pipeline")]), bound.start(), EMPTY, [rng])
            down = encoded.map(lambda a: a[0]).updated(Tensors.join(pipeline=down.part("pipeline")))
        if tasks:
            self.session.publish(tasks, down, self.frozen, self.job.who.deadline_s)

    def _retire(self, tasks: Sequence[Task]) -> None:
        self.session.retire(tasks)
        for task in tasks:
            self.flying.pop(task.key, None)

    # -- collecting and reducing

    def _reduce(
        self, bound: Bound, who: Sampling, tasks: Sequence[Task], state: Tensors, attempt: int
    ) -> tuple[Tensors, tuple[Task, ...], tuple[Task, ...], dict[str, str]]:
        """The undecoded total, whose contributions are in it, who of them stayed to the end, and why others are not."""
        if not tasks and who.quorum is None:  # Poisson sampling drew nobody: an empty total is noised like any other
            self._charge(bound, "train", attempt, ())
            return Tensors({name: np.zeros(*shape) for name, shape in bound.summed.items()}), (), (), {}
        reducer, survivors, dropped = bound.reducer, tuple(tasks), dict[str, str]()
        assert reducer is not None
        server, counted = (
            reducer.server([task.client for task in _workers(tasks)], self.session.seat(tasks[0])),
            survivors,
        )
        next(server)
        for leg in range(reducer.legs):
            asked = len(_workers(survivors))
            helping = len(survivors) - asked  # helpers are waited for beside the workers that are enough
            enough = helping + (who.enough(asked) if leg == 0 else asked)
            collecting = Round(survivors, enough if who.quorum is None else helping + who.quorum, enough, leg)
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
            if leg == reducer.counted:
                counted = _workers(survivors)
            if leg == max(0, reducer.legs - 2):
                self._charge(bound, tasks[0].kind, attempt, counted)
            try:
                answers = server.send(Closed(leg, tuple(task.client for task in survivors)))
            except StopIteration as end:
                for task in counted:
                    dropped.pop(task.client, None)
                return end.value, counted, _workers(survivors), dropped
            except SecretRoundVoid as reason:
                raise _Void(collecting, str(reason)) from None
            for task in survivors:
                if isinstance(answers, Mapping) and task.client in answers:
                    self.session.send(task, leg + 1, answers[task.client])
        raise AssertionError(f"{type(reducer).__name__} gave no total after its {reducer.legs} legs")

    def _charge(self, bound: Bound, kind: str, attempt: int, survivors: Sequence[Task]) -> None:
        """Before a total is opened: for whom it will be, and what it releases."""
        assert bound.reducer is not None
        round = self.checkpoint.round - (kind == "evaluate")  # of the round whose model it is
        # A total that was hidden is released, too, when it is opened: without noise it has no ε, and is on record.
        if events := bound.events() or ((EXACT,) if bound.reducer.legs > 1 else ()):
            self.store.charge(round, attempt, [task.client for task in survivors], events)
            self.ledger = self.ledger.add(round, attempt, events)

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

    def _feed(self, collecting: Round, bound: Bound, state: Tensors, server: Server) -> None:
        """Gives the reducer what can be added now."""
        assert bound.reducer is not None
        for reply in collecting.ready():
            message = reply.message
            try:
                if collecting.leg == bound.reducer.counted and reply.task.role == "worker":
                    bound.admit(message, reply.task.client)
                    if broken := message.first_not_finite():
                        raise UpdateRejected(f"NaN or infinity in '{broken}'")
                    message = bound.decode_one(message, state)
            except HansaError as error:
                collecting.reject(Failure(reply.task, f"its update was rejected: {error}", error=error))
                continue
            if self.job.evaluation.each and reply.task.kind == "evaluate":
                self._keep(reply.task.client, _metrics(message))
            staleness = self.checkpoint.round - reply.task.version
            discount = self.job.algorithm.discount(staleness) if reply.task.kind == "train" else 1.0
            if isinstance(reason := server.send(Arrived(reply.task.client, collecting.leg, message, discount)), str):
                collecting.reject(Failure(reply.task, f"its message was rejected: {reason}"))

    def _keep(self, client: str, metrics: dict[str, float]) -> None:
        """Of the clients' own metrics a uniform sample, in one pass (algorithm R, Vitter 1985)."""
        most, self.seen = self.job.evaluation.each, self.seen + 1
        if most is not True and self.seen > most:
            if (place := Stream("each", self.job.seed, self.checkpoint.round, self.seen).below(self.seen)) >= most:
                return
            del self.each[list(self.each)[place]]
        self.each[client] = metrics

    # -- evaluation

    @functools.cached_property
    def _held_out(self) -> Any:
        data = self.job.evaluation.data
        return load(data) if callable(data) else data

    def _evaluated(
        self, after: Checkpoint, record: Record, population: Sequence[str], attempt: int
    ) -> tuple[Record, float | None]:
        """The record with this round's evaluation, and the metric if it is the best so far."""
        how, central, workers = self.job.evaluation, dict[str, float](), dict[str, float]()
        if (after.round % how.every) and after.round != self.job.rounds:
            return record, None
        params = after.state.part("model").updated(self.unsent)
        if how.data is not None:
            central.update(value(self.job.model.evaluate(params, self._held_out)))
        if how.central is not None:
            central.update(_numbers(how.central(self.job.model, params)))
        if how.workers != 0:
            asked = max(1, round(self.job.who.expected(len(population)))) if how.workers is None else how.workers
            try:
                self.each, self.seen = {}, 0
                workers = self._ask("evaluate", after, population, attempt, asked)
            except _Void as void:
                record = replace(record, dropped={**record.dropped, "evaluation": str(void)})
        record = replace(record, central=central, workers=workers, each=self.each if how.each else {})
        metric = {**workers, **central}.get(how.best or "", math.nan)
        better = after.best is None or (metric > after.best[1] if how.maximise else metric < after.best[1])
        return record, metric if better and not math.isnan(metric) else None

    def _ask(
        self, kind: str, after: Checkpoint, population: Sequence[str], attempt: int, cohort: int
    ) -> dict[str, float]:
        """A round of metrics alone, through the same reducer."""
        cohort, quorum = min(cohort, len(population)), self.job.who.quorum
        who = Fixed(cohort, quorum=None if quorum is None else min(quorum, cohort))
        before, self.checkpoint = self.checkpoint, after
        tasks = self._tasks(kind, attempt, population, who)
        try:
            self._publish(tasks, self.job.algorithm.send(after.state), len(population))
            return _metrics(self._reduce(self.job.bind(len(population), kind), who, tasks, EMPTY, attempt)[0])
        finally:
            self.session.retire(tasks)
            self.checkpoint = before


def _workers(tasks: Sequence[Task]) -> tuple[Task, ...]:
    return tuple(task for task in tasks if task.role == "worker")


def _aggregate(total: Tensors, count: int, population: int) -> Aggregate:
    weight = total.part("weight")
    return Aggregate(
        mean=total.part("value"), buffers=total.part("buffers"), count=count, population=population,
        side={part: total.part(part) for part in total.parts if part not in ("value", "buffers", "weight", "metric")},
        weight=float(weight["weight"][0]) if len(weight) else float(count),
    )  # fmt: skip


def _metrics(total: Tensors) -> dict[str, float]:
    metric = total.part("metric")
    return value({name: (float(metric[name][0]), float(metric[name][1])) for name in metric})


def _numbers(metrics: Metrics | Mapping[str, float]) -> dict[str, float]:
    """Metrics of a callable, which may give plain numbers or (numerator, denominator)."""
    return {
        name: value({name: given})[name] if isinstance(given, tuple) else float(given)
        for name, given in metrics.items()
    }
