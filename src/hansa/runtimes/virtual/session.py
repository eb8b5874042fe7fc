"""A session whose happenings are ordered by simulated time.

    publish ─► the device is there and idle ─► download ─► compute ─► upload ─► Reply
       │                                       └── it drops out, or its hours end ─► Failure
       └─────────────── deadline_s of simulated time, for each leg ───────────────► Deadline

How long a task takes is known when it is published, from what is declared; what it answers is computed, by the runtime
inside, only when the round loop is about to be given it. An answer that comes after its round is never computed: it
arrives empty, since the loop only counts it. Helpers of a reducer are no devices: they are there, and take no time.
"""

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from hansa.core.errors import ConfigError
from hansa.core.job import Job
from hansa.core.pipeline import Seat
from hansa.core.runtime import Deadline, Failure, Happening, Reply, Session, Stop, Task, Traffic
from hansa.core.sampling import Stream
from hansa.core.tensors import EMPTY, Tensors
from hansa.runtimes.virtual.workload import Workload
from hansa.runtimes.virtual.world import Errand, World

NOWHERE = -1  # the device of a helper


@dataclass
class Tally:
    """How tasks ended; each published one in exactly one of the four ways.

    Args:
      published: tasks offered to devices.
      replies: whole answers given to the round loop.
      failures: drop-outs, hours that ended, and work that raised.
      late: begun, but their round was over before they answered; never computed.
      withdrawn: their round was over before their device took them up.
      computed: tasks that were really done.
      staleness: versions by which the model of a training answer was old -> how many.
      picked: device -> training tasks it was given.
    """

    published: int = 0
    replies: int = 0
    failures: int = 0
    late: int = 0
    withdrawn: int = 0
    computed: int = 0
    staleness: Counter[int] = field(default_factory=Counter)
    picked: Counter[int] = field(default_factory=Counter)


@dataclass(frozen=True)
class Due:
    """The deadline of one leg of a conversation."""

    context: bytes
    leg: int
    deadline: Deadline


class VirtualSession(Session):
    """One run in simulated time.

    Args:
      job: whose sampling says how many answers may count.
      ids: enrolled clients, sorted.
      inside: the session that really does the work.
      workload: what tasks cost.
      world: clock and devices; shared where several runs share a fleet.
      seed: of drop-outs and jitter.
      notice_s: seconds until the server notices that a device left.
      needs_gb: devices with less memory are not in the population.
      ask_available: whether only devices that are there are in the population.
    """

    def __init__(
        self, job: Job, ids: Sequence[str], inside: Session, workload: Workload, world: World, *, seed: int = 0,
        notice_s: float = 0.0, needs_gb: float = 0.0, ask_available: bool = False,
    ) -> None:  # fmt: skip
        self.tally = Tally()
        self.world, self.inside, self.workload = world, inside, workload
        self._job, self._seed, self._notice_s = job, seed, notice_s
        self._ask_available = ask_available
        self._legs = job.pipeline.reducer.legs if job.pipeline.reducer is not None else 1
        places = world.fleet.places(ids)
        able = np.flatnonzero(world.fleet.columns["memory_gb"][places] >= needs_gb)
        if not len(able):
            raise ConfigError(f"needs_gb={needs_gb}: no device of the fleet has as much memory.")
        self._ids: Sequence[str] = ids if len(able) == len(ids) else [ids[at] for at in able.tolist()]
        self._places = places[able]
        self._index: dict[str, int] = {}
        self._live: dict[str, Errand] = {}  # published tasks that have not ended
        self._talking: dict[str, Errand] = {}  # those whose conversation has more legs
        self._results: dict[str, Reply | Failure] = {}
        self._timed: dict[bytes, tuple[int, float]] = {}  # by context: the leg that is collected, and its deadline_s
        self._wanted = self._version = 0
        self._frozen_at: set[tuple[int, str]] = set()
        self._up = self._down = 0
        self._compute_s = 0.0
        self._since = world.now

    def population(self) -> Sequence[str]:
        """Clients whose device has the memory; with `ask_available` those that are there, waiting until enough are."""
        if not self._ask_available:
            return self._ids
        needed = min(len(self._ids), self._job.who.expected(len(self._ids)) * (1 + self._job.who.over_select))
        fleet, limit = self.world.fleet, self.world.now + self.world.fleet.period_s
        while self.world.now <= limit:
            there = np.flatnonzero(fleet.available(self.world.now)[self._places])
            if len(there) >= max(1, needed):
                return [self._ids[at] for at in there.tolist()]
            self.world.now = fleet.next_arrival(self.world.now)
        raise ConfigError(f"at no hour are {math.ceil(needed)} devices there: lower cohort, or widen their hours.")

    def publish(
        self, tasks: Sequence[Task], down: Tensors, frozen: Tensors = EMPTY, deadline_s: float | None = None
    ) -> None:
        """Decides when each device will have answered, or left."""
        for task in tasks:
            errand = self._errand(task, down, frozen)
            self._live[task.key] = errand
            self.world.occupy(errand)
            self.world.announce(errand.end + (self._notice_s if errand.reason else 0.0), self, errand)
            self.tally.published += 1
            self._down += down.size_bytes
            if task.kind == "train" and task.role == "worker":
                self.tally.picked[errand.device] += 1
                self._version = task.version
        if tasks:
            flying = sum(errand.task.kind == tasks[0].kind for errand in self._live.values())
            self._wanted = self._job.who.enough(flying) if tasks[0].kind == "train" else len(tasks)
        if tasks and deadline_s is not None:
            self._time(tasks[0], 0, deadline_s)

    def next(self) -> Happening:
        """What happens next in simulated time; an answer is computed now."""
        while (what := self.world.next(self)) is not None:
            if isinstance(what, Stop):
                return what
            if isinstance(what, Errand):
                self.world.release(what)
                happening = self._late(what) if what.over else self._ended(what)
                if happening is not None:
                    return happening
            elif self._timed.get(what.context, (-1,))[0] == what.leg and self._waits(what.context):
                deadline: Deadline = what.deadline
                return deadline
        raise ConfigError("nothing will happen any more, and the round is not over: lower its quorum.")

    def send(self, task: Task, leg: int, message: Tensors) -> None:
        """Announces the client's next message for when it has travelled; its size is known, for it is computed now."""
        before = self._talking[task.key]
        wire, size, now = self.world.fleet, message.size_bytes, self.world.now
        if (timed := self._timed.get(task.context)) is not None and timed[0] < leg:
            self._time(task, leg, timed[1])
        errand = Errand(task, before.device, now, now, leg=leg)
        self._down += size
        leaves, share = self._fate(task, leg)
        if leaves:
            errand.reason = "its device dropped out"
        else:
            self.inside.send(task, leg, message)
            errand.answer = self._result(task.key)
        if task.role == "worker":
            up = errand.answer.size_bytes if isinstance(errand.answer, Reply) else 0
            parts = wire.seconds(before.device, down_bytes=size, examples=0, steps=0, up_bytes=up)
            errand.end = now + float(sum(parts)) * share
        self._live[task.key] = errand
        self.world.announce(errand.end + (self._notice_s if errand.reason else 0.0), self, errand)

    def retire(self, tasks: Sequence[Task]) -> None:
        """Begun tasks run on and will be late; others are withdrawn from their devices."""
        for task in tasks:
            self._timed.pop(task.context, None)
            self._talking.pop(task.key, None)
            self._results.pop(task.key, None)
            errand = self._live.pop(task.key, None)
            if errand is None:
                continue
            errand.over, errand.down, errand.frozen = True, EMPTY, EMPTY
            if errand.begin > self.world.now:
                errand.reason = "withdrawn"
                self.tally.withdrawn += 1
                self.world.release(errand)
            else:
                self.tally.late += 1
        self.inside.retire(tasks)

    def seat(self, task: Task) -> Seat:
        """That of the runtime inside, in which the conversation lives."""
        return self.inside.seat(task)

    def traffic(self) -> Traffic:
        """Bytes, simulated seconds, and seconds that devices computed, late ones among them."""
        traffic = Traffic(self._up, self._down, self.world.now - self._since, self._compute_s)
        self._up, self._down, self._compute_s, self._since = 0, 0, 0.0, self.world.now
        return traffic

    def _time(self, task: Task, leg: int, deadline_s: float) -> None:
        """From now on there is this leg's deadline; that of the leg before is over."""
        self._timed[task.context] = leg, deadline_s
        due = Due(task.context, leg, Deadline(task.kind, task.round, task.attempt))
        self.world.announce(self.world.now + deadline_s, self, due)

    def _waits(self, context: bytes) -> bool:
        return any(errand.task.context == context for errand in self._live.values())

    # -- a task's course

    def _device(self, client: str) -> int:
        if client not in self._index:
            self._index[client] = int(self._places[bisect_left(self._ids, client)])
        return self._index[client]

    def _fate(self, task: Task, leg: int) -> tuple[bool, float]:
        """Whether the device leaves in this leg, and after which share of it. Each leg is as likely as another."""
        if task.role == "helper":
            return False, 1.0
        probability = float(self.world.fleet.columns["dropout"][self._device(task.client)])
        if not probability:
            return False, 1.0
        draws = self._draws(task)
        leaves = draws[0] < probability
        here = leaves and int(draws[1] * self._legs) == leg
        return here, float(draws[2]) if here else 1.0

    def _draws(self, task: Task) -> np.ndarray:
        return np.random.default_rng(Stream("virtual", self._seed, task.key).seed()).random(3)

    def _errand(self, task: Task, down: Tensors, frozen: Tensors) -> Errand:
        if task.role == "helper":
            return Errand(task, NOWHERE, self.world.now, self.world.now, down=down, frozen=frozen)
        fleet, device = self.world.fleet, self._device(task.client)
        down_bytes = down.size_bytes
        if task.frozen and (device, task.frozen) not in self._frozen_at:
            self._frozen_at.add((device, task.frozen))
            down_bytes += frozen.size_bytes
        examples, steps = self.workload.work(task.kind, self.workload.examples(task.client))
        up_bytes = self.workload.up_bytes(task.kind)
        download, compute, upload = fleet.seconds(
            device, down_bytes=down_bytes, examples=examples, steps=steps, up_bytes=up_bytes
        )
        if (jitter := float(fleet.columns["jitter"][device])) > 0:
            rng = np.random.default_rng(Stream("jitter", self._seed, task.key).seed())
            compute *= math.exp(jitter * rng.standard_normal())
        begin = fleet.ready(device, self.world.free_at(device))
        leaves, share = self._fate(task, 0)
        end, reason = begin + float(download + compute + upload) * share, "its device dropped out" if leaves else ""
        if (over := fleet.leaves(device, begin)) < end:
            end, reason = over, "its device's hours ended"
        compute = min(float(compute), max(0.0, end - begin - float(download)))
        return Errand(task, device, begin, end, compute, reason, up_bytes, down, frozen)

    def _late(self, errand: Errand) -> Happening | None:
        """What comes of a task whose round is over."""
        if errand.reason == "withdrawn":
            return None
        self._compute_s += errand.compute_s
        if errand.reason:
            return None
        self._up += round(errand.up_bytes)
        return Reply(errand.task, errand.leg, EMPTY, round(errand.up_bytes), errand.end - errand.begin)

    def _ended(self, errand: Errand) -> Happening:
        key = errand.task.key
        self._compute_s += errand.compute_s
        del self._live[key]
        self._talking.pop(key, None)
        if errand.reason:
            self.tally.failures += 1
            return Failure(errand.task, errand.reason, gone=True)
        happening = errand.answer or self._computed(errand)
        if isinstance(happening, Failure):
            self.tally.failures += 1
            return happening
        self._up += happening.size_bytes
        if errand.leg < self._legs - 1:
            self._talking[key] = errand
            self._live[key] = errand  # it goes on, unless it is retired first
        else:
            self.tally.replies += 1
        if errand.leg == 0 and errand.task.kind == "train":
            self.tally.staleness[self._version - errand.task.version] += 1
        errand.down = errand.frozen = EMPTY
        self._wanted -= 1
        return Reply(errand.task, errand.leg, happening.message, happening.size_bytes, errand.end - errand.begin)

    # -- the real work

    def _computed(self, errand: Errand) -> Reply | Failure:
        """Has the work done inside, with that of the next tasks whose answers this round still wants."""
        if not errand.asked:
            ahead = [
                other
                for other in self.world.in_order(self)
                if isinstance(other, Errand) and not (other.over or other.reason or other.asked or other.leg)
            ]
            for other in [errand, *ahead[: max(0, self._wanted - 1)]]:
                other.asked = True
                self.inside.publish([other.task], other.down, other.frozen)
        return self._result(errand.task.key)

    def _result(self, key: str) -> Reply | Failure:
        while key not in self._results:
            happening = self.inside.next()
            if isinstance(happening, Reply | Failure):
                self.tally.computed += isinstance(happening, Reply) and happening.leg == 0
                self._results[happening.task.key] = happening
        return self._results.pop(key)
