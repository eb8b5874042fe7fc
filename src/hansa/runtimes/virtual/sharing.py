"""Several jobs on one population: each device does one task at a time, and a scheduler says which devices a job gets.

    shared = Shared({"faces": job_a, "voices": job_b}, clients, fleet, Bayesian())
    result = shared.run()
    result.makespan_s, result.unfairness["faces"], result.histories["voices"]

Every job runs through the round loop as it is, in a thread of its own; only one thread runs at a time, the one to which
the next thing in simulated time happens, so that a run has one course.
"""

import heapq
import math
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from hansa.core.data import Clients
from hansa.core.errors import ConfigError
from hansa.core.job import SPEED, Job
from hansa.core.runtime import Memories, Session, Stop
from hansa.core.sampling import Fixed, Stream
from hansa.core.tensors import EMPTY, Tensors
from hansa.core.train import Record
from hansa.runtimes.local import LocalSession
from hansa.runtimes.simulation import simulate
from hansa.runtimes.virtual.fleet import HOUR_S, Fleet
from hansa.runtimes.virtual.runtime import VirtualHistory
from hansa.runtimes.virtual.schedulers import Scheduler, Trial, View
from hansa.runtimes.virtual.session import VirtualSession
from hansa.runtimes.virtual.workload import Workload
from hansa.runtimes.virtual.world import World

PATIENCE_H = 48  # of simulated time for as many idle devices as a job wants; then it takes those there are


@dataclass(frozen=True)
class SharedResult:
    """What several jobs on one fleet ended with.

    Args:
      histories: by the name of the job.
      finished_s: when each job had committed its last round.
      unfairness: variance, over devices, of how often each job picked them.
      learnt: what each job's scheduler has learnt; empty tensors where it does not learn.
    """

    histories: Mapping[str, VirtualHistory]
    finished_s: Mapping[str, float]
    unfairness: Mapping[str, float]
    learnt: Mapping[str, Tensors] = field(default_factory=dict, repr=False)

    @property
    def makespan_s(self) -> float:
        """When the last job was done."""
        return max(self.finished_s.values())


@dataclass(frozen=True)
class Shared:
    """Jobs that train at the same time on the same devices.

    Args:
      jobs: by name; each samples a fixed number of clients (`cohort=n`, or `Fixed`).
      clients: the data of every device, or by name of the job; then with the same ids for all.
      fleet: the devices.
      scheduler: picks a job's devices for a round among those that are idle and there.
      seed: of the scheduler's draws, drop-outs and jitter.
      learnt: by name of the job, what its scheduler goes on from: `SharedResult.learnt` of an earlier run.

    Raises:
      ConfigError: no jobs, a job that samples otherwise, clients with other ids, fewer devices than clients, or
        `learnt` that is no job's or not this scheduler's.
    """

    jobs: Mapping[str, Job]
    clients: Clients | Mapping[str, Clients]
    fleet: Fleet
    scheduler: Scheduler
    seed: int = field(default=0, kw_only=True)
    learnt: Mapping[str, Tensors] = field(default_factory=dict, kw_only=True, repr=False)

    def __post_init__(self) -> None:
        if not self.jobs:
            raise ConfigError("no jobs: give at least one, by name.")
        for name, job in self.jobs.items():
            if not isinstance(job.who, Fixed):
                raise ConfigError(f"job '{name}' samples with {type(job.who).__name__}: use cohort=n, or Fixed.")
        if not isinstance(self.clients, Clients):
            if missing := sorted(set(self.jobs) - set(self.clients)):
                raise ConfigError(f"no clients for {missing}: give the data of each job, by its name.")
            ids = [list(self.clients[name].ids) for name in self.jobs]
            if any(other != ids[0] for other in ids):
                raise ConfigError("the jobs' clients have different ids: every device has data for every job.")
        self.fleet.places(self._of(next(iter(self.jobs))).ids)
        if unknown := sorted(set(self.learnt) - set(self.jobs)):
            raise ConfigError(f"learnt for {unknown}: the jobs are {', '.join(self.jobs)}.")
        for name in self.learnt:
            self.scheduler.for_job(self.learnt[name])

    def run(self) -> SharedResult:
        """Trains all jobs to their ends; the first error of any of them ends all, and is raised."""
        world = SharedWorld(self.fleet, list(self.jobs))
        turns = {name: _Turn(self, name, world) for name in self.jobs}
        threads = [threading.Thread(target=world.live, args=(name, turns[name].run), name=name) for name in self.jobs]
        for thread in threads:
            thread.start()
        world.begin()
        try:
            for thread in threads:
                thread.join()
        except BaseException as error:  # as Ctrl-C: the others end at what happens to them next
            world.error = error
            for thread in threads:
                thread.join()
        if world.error is not None:
            raise world.error
        return SharedResult(
            {name: turn.history for name, turn in turns.items()},
            {name: turn.finished_s for name, turn in turns.items()},
            {name: float(turn.counts.var()) for name, turn in turns.items()},
            {name: turn.scheduler.learnt() for name, turn in turns.items()},
        )

    def _of(self, name: str) -> Clients:
        return self.clients if isinstance(self.clients, Clients) else self.clients[name]


@dataclass(frozen=True)
class Planned(Fixed):
    """A sampling whose clients are picked by a scheduler, so that speed, not chance, decides who is in."""

    planner: Callable[[Sequence[str], int, Set[str]], list[str]] | None = field(
        default=None, kw_only=True, metadata=SPEED, compare=False, repr=False
    )

    @property
    def random_membership(self) -> bool:
        """Never: there is no privacy amplification."""
        return False

    def draw(self, population: Sequence[str], stream: Stream, busy: Set[str] = frozenset()) -> list[str]:
        """As many as `Fixed` draws, picked by the scheduler."""
        wanted = min(len(population), math.ceil(self.clients * (1 + self.over_select))) - len(busy)
        if self.planner is None:
            raise ConfigError("Planned has no scheduler: jobs that share a fleet are run by Shared.")
        return self.planner(population, wanted, busy) if wanted > 0 else []


class SharedWorld(World):
    """A clock that hands the turn to the thread to which something happens next."""

    def __init__(self, fleet: Fleet, names: Sequence[str]) -> None:
        super().__init__(fleet)
        self.error: BaseException | None = None
        self._gates = {name: threading.Semaphore(0) for name in names}
        self._alive = list(names)
        self._owners: dict[Any, str] = {name: name for name in names}  # sessions and names -> name
        self._kept: dict[str, deque[Any]] = {name: deque() for name in names}
        for name in names:
            self.announce(0.0, name, "begin")

    def begin(self) -> None:
        """Gives the first turn."""
        self._gates[self._alive[0]].release()

    def live(self, name: str, run: Callable[[], None]) -> None:
        """A thread's whole life: waits for its first turn, runs, and hands the turn on."""
        self._gates[name].acquire()
        try:
            self._next_of(name)
            if self.error is None:
                run()
        except BaseException as error:
            self.error = self.error or error
        self._alive.remove(name)
        self._coming = [entry for entry in self._coming if self._owners[entry[2]] != name]
        heapq.heapify(self._coming)
        if self._alive:
            self._gates[self._whose()].release()

    def joins(self, session: VirtualSession, name: str) -> None:
        """What happens to this session happens in the thread of that name."""
        self._owners[session] = name

    def next(self, owner: Any) -> Any:
        """What happens to `owner` next; others have had their turns before."""
        name = self._owners[owner]
        return self._kept[name].popleft() if self._kept[name] else self._next_of(name)

    def sleep(self, name: str, until: float) -> None:
        """Lets simulated time pass; what happens to this thread meanwhile is kept for its session."""
        self.announce(until, name, "wake")
        while (what := self._next_of(name)) != "wake":
            if what is None or isinstance(what, Stop):
                raise ConfigError("another job on this fleet ended in an error.")
            self._kept[name].append(what)

    def _whose(self) -> str:
        """Whose turn it is: the thread of the next happening; the first one alive if nothing will happen."""
        return self._owners[self._coming[0][2]] if self._coming else self._alive[0]

    def _next_of(self, name: str) -> Any:
        while True:
            if self.error is not None:
                return Stop("another job on this fleet ended in an error")
            turn = self._whose()
            if turn == name:
                return self._take() if self._coming else None
            self._gates[turn].release()
            self._gates[name].acquire()


class _Turn:
    """One job among the others: its picks, and its run."""

    def __init__(self, shared: Shared, name: str, world: SharedWorld) -> None:
        self._shared, self._name, self._world = shared, name, world
        self._clients = shared._of(name)
        job = shared.jobs[name]
        given = {f.name: getattr(job.who, f.name) for f in fields(Fixed)}
        self.job = replace(job, cohort=None, sampling=Planned(**given, planner=self._plan))
        self._places = world.fleet.places(self._clients.ids)
        self._index = {int(device): at for at, device in enumerate(self._places)}
        self._enrolled = np.zeros(len(world.fleet), bool)
        self._enrolled[self._places] = True
        self.counts = np.zeros(len(world.fleet), np.int64)
        self.scheduler = shared.scheduler.for_job(shared.learnt.get(name, EMPTY))
        self._trials: list[Trial] = []
        self._planned: tuple[np.ndarray, float] | None = None
        self.finished_s = 0.0
        self._expect()

    def run(self) -> None:
        """To the end, through the round loop."""
        sessions: list[VirtualSession] = []

        def opened(job: Job, clients: Clients, memories: Memories) -> AbstractContextManager[Session]:
            inside = LocalSession(job, clients, memories)
            seed = Stream("shared", self._shared.seed, self._name).word()
            session = VirtualSession(job, clients.ids, inside, self._workload, self._world, seed=seed)
            self._world.joins(session, self._name)
            sessions.append(session)
            return nullcontext(session)

        history = simulate(opened, self.job, self._clients, observe=self._observe)
        self.history = VirtualHistory.of(history, sessions[0].tally)
        self.counts = self.counts[self._places]

    def _expect(self) -> None:
        """Expected seconds of one task on each device."""
        self._workload = work = Workload(self.job, self._clients, len(self._clients))
        examples, steps = work.work("train", work.all_examples(self._clients.ids))
        parts = self._world.fleet.seconds(
            self._places, down_bytes=work.down_bytes(), examples=examples, steps=steps, up_bytes=work.up_bytes("train")
        )
        columns = np.full((3, len(self._world.fleet)), math.inf)
        columns[:, self._places] = (sum(parts), parts[1], parts[2])
        self._parts = (columns[0], columns[1], columns[2])

    def _observe(self, record: Record) -> None:
        self.finished_s = self._world.now
        if self._planned is not None:
            plan, asked_at = self._planned
            variance = float(self.counts[self._places].var())
            self._trials.append(Trial(plan, variance, self._world.now - asked_at))
            self.scheduler.observe(self._trials[-1])

    def _plan(self, population: Sequence[str], wanted: int, busy: Set[str]) -> list[str]:
        free = self._wait(wanted)
        view = View(wanted, free, *self._parts, counts=self.counts, trials=tuple(self._trials))
        stream = Stream("schedule", self._shared.seed, self._name, int(self.counts.sum()), len(self._trials))
        plan = np.asarray(self.scheduler.pick(view, np.random.default_rng(stream.seed())), np.int64)
        scheduler = type(self._shared.scheduler).__name__
        if not (0 < len(plan) <= wanted and len(set(plan.tolist())) == len(plan) and np.isin(plan, free).all()):
            raise ConfigError(
                f"{scheduler} picked {plan.tolist()}: 1 to {wanted} different ones of the free are needed."
            )
        self.counts[plan] += 1
        self._planned = (np.sort(plan), self._world.now)
        return [population[at] for at in sorted(self._index[device] for device in plan.tolist())]

    def _wait(self, wanted: int) -> np.ndarray:
        """Idle devices that are there; waits until there are enough."""
        world, enough = self._world, self._world.now + PATIENCE_H * HOUR_S
        limit = max(enough, world.now + world.fleet.period_s)
        while True:
            busy = world.busy()
            idle = world.fleet.available(world.now) & self._enrolled
            idle[list(busy)] = False
            free = np.flatnonzero(idle)
            if len(free) >= wanted or (len(free) and world.now >= enough):
                return free
            if world.now >= limit:
                raise ConfigError("no device was idle for days of simulated time: add devices or widen their hours.")
            until = [world.fleet.next_arrival(world.now), *busy.values()]
            world.sleep(self._name, min(until + [enough] * (world.now < enough)))
