"""The laws of a fleet's time: order, conservation, deadlines, hours, drop-outs, and the same bits as Local."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from hansa.algorithms.fedbuff import FedBuff
from hansa.core.data import Clients, Dataset
from hansa.core.errors import ConfigError, JobError, TrainingFailed
from hansa.core.job import Evaluation, Job
from hansa.core.model import LocalWork
from hansa.core.pipeline import Pipeline
from hansa.core.runtime import Happening
from hansa.core.sampling import Fixed
from hansa.core.tensors import Tensors
from hansa.runtimes.local import Local, train
from hansa.runtimes.memory import MemoryMemories, MemoryStore
from hansa.runtimes.processes import Processes
from hansa.runtimes.virtual import session as session_module
from hansa.runtimes.virtual.device import Device
from hansa.runtimes.virtual.fleet import Fleet
from hansa.runtimes.virtual.runtime import Virtual, VirtualHistory
from hansa.runtimes.virtual.timing import curve, seconds_to, table
from hansa.runtimes.virtual.workload import declared
from hansa.stages.mean import UniformMean
from hansa.stages.sum import Sum
from tests.runtimes.jobs import JOBS, Regression, plain, some_clients


def buffered(**sampling: Any) -> Job:
    """FedBuff: eight in flight, three of them fill the buffer."""
    given = {"quorum": 3, "max_staleness": 5, **sampling}
    return Job(
        model=Shared(),
        algorithm=FedBuff(LocalWork(lr=0.02, epochs=1, batch_size=4)),
        pipeline=Pipeline([UniformMean()], Sum()),
        sampling=Fixed(8, **given),
        rounds=12,
        seed=2,
    )


class Shared(Regression):
    """Least squares without tensors that stay at the worker: asynchronous rounds refuse memory."""

    def roles(self) -> dict[str, Any]:
        return {}


def sampled(**sampling: Any) -> Job:
    return replace(plain(), cohort=None, sampling=Fixed(4, **sampling), evaluation=Evaluation())


def run(job: Job, fleet: Fleet, clients: Clients | None = None, **options: Any) -> VirtualHistory:
    return Virtual(fleet, **options).run(job, clients or some_clients(len(fleet)))


# ── what is simulated, and what is real ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("make", JOBS.values(), ids=JOBS)
def test_a_fleet_of_equals_gives_the_bits_and_bytes_of_the_local_runtime(make: Callable[[], Job]) -> None:
    local, virtual = train(make(), some_clients()), run(make(), Fleet.homogeneous(6))
    assert virtual.checkpoint.state == local.checkpoint.state
    assert [(r.train, r.workers, r.counted) for r in virtual.rounds] == [
        (r.train, r.workers, r.counted) for r in local.rounds
    ]
    assert [(r.up_bytes, r.down_bytes) for r in virtual.rounds] == [(r.up_bytes, r.down_bytes) for r in local.rounds]


def test_speed_alone_changes_no_bit_of_a_round_that_waits_for_all() -> None:
    assert run(plain(), Fleet.tiers(6, seed=3)).checkpoint.state == train(plain(), some_clients()).checkpoint.state


@pytest.mark.parametrize("make", [plain, buffered, lambda: sampled(over_select=0.5, quorum=2)])
def test_the_runtime_inside_changes_neither_bits_nor_times(make: Callable[[], Job]) -> None:
    fleet = Fleet.lognormal(10, seed=4).with_(dropout=0.05, jitter=0.3)
    job = replace(make(), attempts=20)
    one, two = run(job, fleet, inner=Local()), run(job, fleet, inner=Processes(2))
    assert one.checkpoint.state == two.checkpoint.state
    assert [r.to_json() for r in one.rounds] == [r.to_json() for r in two.rounds]
    assert one.tally.replies == two.tally.replies


def test_the_same_seed_gives_the_same_course_and_another_seed_another() -> None:
    fleet = Fleet.tiers(10, seed=1).with_(dropout=0.2, jitter=0.5)
    first, again, other = (run(buffered(), fleet, seed=seed) for seed in (1, 1, 2))
    assert first.checkpoint.state == again.checkpoint.state and first.tally == again.tally
    assert [r.to_json() for r in first.rounds] == [r.to_json() for r in again.rounds]
    assert first.seconds != other.seconds


def test_a_run_can_be_resumed_at_its_simulated_time() -> None:
    fleet = Fleet.tiers(6, seed=2).in_time_zones(hours=(20, 20), seed=1)
    kept: dict[str, Any] = {"store": MemoryStore(), "memories": MemoryMemories()}
    whole = run(replace(plain(), attempts=9), fleet)
    job = replace(plain(), attempts=9)

    def stop(record: Any) -> None:
        if record.round == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Virtual(fleet).run(job, some_clients(), observe=stop, **kept)
    resumed = Virtual(fleet).run(job, some_clients(), **kept)
    assert resumed.checkpoint.state == whole.checkpoint.state
    assert resumed.seconds == pytest.approx(whole.seconds)


# ── time ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_round_lasts_as_long_as_its_slowest_device_computed_by_hand() -> None:
    clients = Clients.of({f"c{i}": Dataset(x=np.ones((20, 5), "float32"), y=np.ones(20, "float32")) for i in range(3)})
    job = replace(sampled(), sampling=Fixed(3), rounds=2)  # two epochs of 20 examples in steps of 4
    columns = {"examples_per_s": [10, 40, 20], "step_s": [0, 0.5, 0], "latency_s": 1.0}
    fleet = Fleet(3, {**columns, "up_bytes_per_s": math.inf, "down_bytes_per_s": math.inf})
    history = run(job, fleet, clients)
    assert [r.seconds for r in history.rounds] == pytest.approx([2 + 40 / 40 + 10 * 0.5] * 2)
    assert [r.compute_seconds for r in history.rounds] == pytest.approx([4 + 6 + 2] * 2)
    job = replace(job, sampling=Fixed(3, quorum=1, over_select=0.0, deadline_s=4.5))
    late = run(job, fleet, clients)
    assert (late.rounds[0].seconds, late.rounds[0].counted) == (4.5, 1)  # the deadline is the round's end


def test_links_cost_what_their_rates_say() -> None:
    fleet = Fleet.homogeneous(6, Device(examples_per_s=math.inf, latency_s=0, up_bytes_per_s=10, down_bytes_per_s=100))
    history = run(replace(sampled(), rounds=3), fleet)
    first = history.rounds[1]  # the frozen tensor has travelled to some in round 0, so that others take longer for it
    frozen = 4
    one = first.down_bytes / 4 / 100 + first.up_bytes / 4 / 10
    assert one <= first.seconds <= one + frozen / 100 + 1e-9


def test_happenings_come_in_the_order_of_simulated_time(monkeypatch: pytest.MonkeyPatch) -> None:
    times: list[float] = []
    told = session_module.VirtualSession.next

    def noting(self: session_module.VirtualSession) -> Happening:
        happening = told(self)
        times.append(self.world.now)
        return happening

    monkeypatch.setattr(session_module.VirtualSession, "next", noting)
    history = run(buffered(), Fleet.lognormal(12, seed=1).with_(dropout=0.1))
    assert times == sorted(times) and times[-1] == pytest.approx(history.seconds)


def test_a_device_does_one_thing_at_a_time() -> None:
    # One client is asked again while it is still at the task of a round that went on without it.
    fleet = Fleet(2, {"examples_per_s": [1, 1000], "latency_s": 0, "up_bytes_per_s": 1e9, "down_bytes_per_s": 1e9})
    job = replace(sampled(), sampling=Fixed(1, over_select=1.0), rounds=2)
    clients = Clients.of({name: Dataset(x=np.ones((10, 5), "float32"), y=np.ones(10, "float32")) for name in "ab"})
    history = run(job, fleet, clients)
    assert history.seconds == pytest.approx(0.04, rel=1e-3)  # b alone: 20 examples at 1000 a second, twice
    assert (history.tally.late, history.tally.withdrawn) == (1, 1)


@pytest.mark.parametrize("work", [LocalWork(lr=0, epochs=3, batch_size=4), LocalWork(lr=0, steps=11, batch_size=4)])
@pytest.mark.parametrize("examples", [1, 3, 4, 13, 16])
def test_declared_work_is_what_a_pass_over_the_batches_does(work: LocalWork, examples: int) -> None:
    batches = work.batches(examples, np.random.default_rng(0))
    assert declared(work, examples) == (sum(map(len, batches)), len(batches))


# ── conservation: reply, failure, late or withdrawn ──────────────────────────────────────────────────────────────────

WAYS: dict[str, Callable[[], Job]] = {
    "synchronous": lambda: sampled(quorum=1),
    "over-selected": lambda: sampled(over_select=1.0, quorum=1),
    "deadline": lambda: sampled(quorum=1, deadline_s=1.0),
    "buffered": buffered,
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("seed", [1, 2])
def test_each_published_task_ends_in_exactly_one_way(way: Callable[[], Job], seed: int) -> None:
    fleet = Fleet.lognormal(12, seed=seed).with_(dropout=0.1, jitter=0.2).in_time_zones(hours=(0, 20), seed=seed)
    tally = run(replace(way(), attempts=50), fleet).tally
    assert tally.published == tally.replies + tally.failures + tally.late + tally.withdrawn
    assert tally.replies == tally.computed  # nothing is computed that the loop is not given
    assert sum(tally.picked.values()) == tally.published


def test_what_is_late_is_counted_and_never_computed() -> None:
    opened: list[str] = []

    class Watched(Shared):
        def fit(self, params: Tensors, data: Any, work: LocalWork, rng: np.random.Generator) -> Any:
            opened.append("fit")
            return super().fit(params, data, work, rng)

    job = replace(sampled(over_select=1.0), model=Watched(), rounds=8)
    history = run(job, Fleet.lognormal(10, sigma=1.5, seed=1))
    assert len(opened) == 8 * 4 == sum(r.counted for r in history.rounds)
    assert history.tally.late > 0
    assert 0 < sum(r.late for r in history.rounds) <= history.tally.late  # some arrive after the last round


def test_over_selection_and_buffering_shorten_rounds() -> None:
    fleet = Fleet.lognormal(20, sigma=1.0, seed=5)
    alone, more, never = (
        run(job, fleet, some_clients(20))
        for job in (sampled(), sampled(over_select=1.0), buffered(quorum=1, max_staleness=50))
    )
    assert more.seconds < alone.seconds
    assert never.seconds / 12 < alone.seconds / 5


# ── deadlines, drop-outs, hours ──────────────────────────────────────────────────────────────────────────────────────


def test_a_deadline_ends_a_round_in_simulated_seconds() -> None:
    fleet = Fleet(6, {"examples_per_s": [1, 1, 1000, 1000, 1000, 1000]})
    history = run(replace(sampled(), sampling=Fixed(6, quorum=1, deadline_s=2.0)), fleet)
    first = history.rounds[0]
    assert (first.counted, first.seconds) == (4, 2.0)
    assert dict(first.dropped) == {"client-0": "no answer in time", "client-1": "no answer in time"}


def test_a_deadline_that_too_few_meet_voids_the_round() -> None:
    with pytest.raises(TrainingFailed, match="lower the quorum, or lengthen the deadline"):
        run(sampled(quorum=3, deadline_s=1.0), Fleet.homogeneous(6, Device(examples_per_s=1)))


def test_devices_drop_out_as_often_as_they_are_said_to() -> None:
    job = replace(sampled(quorum=1), sampling=Fixed(30, quorum=1), rounds=20, model=Shared())
    tally = run(job, Fleet.homogeneous(30).with_(dropout=0.3), some_clients(30)).tally
    assert tally.published == 600
    assert abs(tally.failures / 600 - 0.3) < 4 * math.sqrt(0.3 * 0.7 / 600)


def test_who_drops_out_is_named_with_the_reason() -> None:
    dropout = [1, 0, 0, 0, 0, 0]
    history = run(replace(sampled(quorum=1), sampling=Fixed(6, quorum=1)), Fleet(6, {"dropout": dropout}))
    assert {tuple(r.dropped.items()) for r in history.rounds} == {(("client-0", "its device dropped out"),)}


def test_a_drop_out_is_noticed_later_if_the_server_is_slow_to_see_it() -> None:
    job, fleet = replace(sampled(quorum=1), sampling=Fixed(6, quorum=1)), Fleet(6, {"dropout": [1, 0, 0, 0, 0, 0]})
    assert run(job, fleet, notice_s=100).seconds > 500 > run(job, fleet).seconds


@pytest.mark.parametrize(
    ("hours", "offset", "now_h", "ready_h", "leaves_h"),
    [
        ("22-6", 0, 23, 23, 30),  # over midnight
        ("22-6", 0, 3, 3, 6),
        ("22-6", 0, 6, 22, 30),
        ("22-6", 0, 12, 22, 30),
        ("22-6", 8, 12, 14, 22),  # East Asia's night begins at 14:00 UTC
        ("22-6", -8, 12, 12, 14),  # and at noon UTC it is 4 in the morning in California
        ("22-6", 5.5, 0, 0, 0.5),  # half-hour zones
        ("22-6", 5.5, 1, 16.5, 24.5),
        ("0-8,18-24", 0, 20, 20, 32),
        ("0-24", 3, 5, 5, math.inf),
    ],
)
def test_hours_over_midnight_and_in_time_zones(
    hours: str, offset: float, now_h: float, ready_h: float, leaves_h: float
) -> None:
    fleet = Fleet(2, {"hours": hours, "utc_offset_h": offset})
    ready = fleet.ready(1, now_h * 3600)
    assert (ready / 3600, fleet.leaves(1, ready) / 3600) == (ready_h, leaves_h)
    assert fleet.available(now_h * 3600).tolist() == [ready_h == now_h] * 2


def test_a_task_waits_for_its_device_to_come_and_fails_when_it_goes() -> None:
    job = replace(sampled(quorum=1), sampling=Fixed(6, quorum=1), rounds=1)
    hours = ["2-3", "0-24", "0-24", "0-24", "0-24", "0-24"]
    waits = run(job, Fleet(6, {"hours": hours}))
    assert 2 * 3600 < waits.seconds < 2 * 3600 + 60 and waits.rounds[0].counted == 6
    leaves = run(job, Fleet(6, {"hours": hours, "examples_per_s": [0.001, 100, 100, 100, 100, 100]}))
    assert leaves.seconds == 3 * 3600 and dict(leaves.rounds[0].dropped) == {"client-0": "its device's hours ended"}


def test_only_devices_that_are_there_can_be_asked_if_the_job_wants_it() -> None:
    hours = ["0-24", "12-14", "12-14", "12-14", "0-24", "0-24"]
    job, fleet = replace(sampled(), sampling=Fixed(3), rounds=3), Fleet(6, {"hours": hours})
    history = run(job, fleet, ask_available=True)
    assert history.seconds < 60 and set(history.tally.picked) == {0, 4, 5}
    waits = run(replace(job, sampling=Fixed(5)), fleet, ask_available=True)
    assert 12 * 3600 <= waits.seconds < 12 * 3600 + 60
    with pytest.raises(ConfigError, match="at no hour are 3 devices there: lower cohort, or widen their hours"):
        run(replace(job, sampling=Fixed(3)), Fleet(4, {"hours": ["1-2", "2-3", "3-4", "4-5"]}), ask_available=True)


def test_devices_with_too_little_memory_are_not_in_the_population() -> None:
    fleet = Fleet(6, {"memory_gb": [2, 8, 8, 8, 8, 2]})
    history = run(replace(sampled(), sampling=Fixed(4)), fleet, needs_gb=4)
    assert set(history.tally.picked) == {1, 2, 3, 4}
    with pytest.raises(JobError, match="cohort=5 > 4 clients"):
        run(replace(sampled(), sampling=Fixed(5)), fleet, needs_gb=4)


# ── asynchronous rounds ──────────────────────────────────────────────────────────────────────────────────────────────


def test_staleness_of_buffered_rounds_is_bounded_and_zero_for_synchronous_ones() -> None:
    fleet = Fleet.lognormal(20, sigma=1.2, seed=3)
    job = replace(buffered(max_staleness=4), rounds=40)
    history = run(job, fleet, some_clients(20))
    stale = history.tally.staleness
    assert sum(stale.values()) == sum(r.counted for r in history.rounds) == 40 * 3
    assert max(stale) <= 4 and len(stale) > 2 and stale[0] > 0
    assert any("more than max_staleness=4 versions old" in why for r in history.rounds for why in r.dropped.values())
    assert set(run(sampled(), Fleet.lognormal(6, seed=1)).tally.staleness) == {0}


def test_slower_devices_are_staler() -> None:
    speeds, job = [20.0] * 5 + [400.0] * 15, replace(buffered(max_staleness=100), rounds=40)
    history = run(job, Fleet(20, {"examples_per_s": speeds}), Equal(20))
    even = run(job, Fleet.homogeneous(20), Equal(20))
    assert max(history.tally.staleness) > max(even.tally.staleness)


class Equal(Clients):
    """Clients of one size."""

    def __init__(self, count: int) -> None:
        self._ids = [f"{i:03}" for i in range(count)]

    @property
    def ids(self) -> list[str]:
        return self._ids

    def open(self, client: str) -> Dataset:
        rng = np.random.default_rng(int(client))
        return Dataset(x=rng.normal(size=(16, 5)).astype("float32"), y=rng.normal(size=16).astype("float32"))


# ── figures and faults ───────────────────────────────────────────────────────────────────────────────────────────────


def test_seconds_to_a_target_are_those_of_the_first_round_that_reached_it() -> None:
    history = run(plain(), Fleet.tiers(6, seed=1))
    points = curve(history, "loss")
    assert len(points) == 3 and points[-1][0] == pytest.approx(history.seconds)  # of five rounds, three were evaluated
    best = min(loss for _, loss in points)
    assert seconds_to(history, "loss", best, maximise=False) == next(at for at, loss in points if loss == best)
    assert seconds_to(history, "loss", -1.0, maximise=False) is None
    assert "never" in table({"plain": history}, "loss", -1.0, maximise=False)


def test_a_curve_does_not_fall_back_on_training_between_two_evaluations() -> None:
    job = replace(plain(), evaluation=Evaluation(central=lambda model, params: {"loss": 100.0}, every=2))
    history = run(job, Fleet.tiers(6, seed=1))
    assert all("loss" in record.train for record in history.rounds)
    assert [value for _, value in curve(history, "loss")] == [100.0] * 3
    unevaluated = run(replace(job, evaluation=Evaluation()), Fleet.tiers(6, seed=1))
    assert len(curve(unevaluated, "loss")) == 5


def test_bad_settings_say_what_to_give() -> None:
    fleet = Fleet.homogeneous(3)
    with pytest.raises(ConfigError, match=r"give a Fleet, as in Virtual\(Fleet.tiers\(100\)\)"):
        Virtual(3)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"the work is done by Local\(\) or Processes\(\)"):
        Virtual(fleet, Virtual(fleet))
    with pytest.raises(ConfigError, match="notice_s=-1: it is finite and at least 0"):
        Virtual(fleet, notice_s=-1)
    with pytest.raises(ConfigError, match="6 clients, but the fleet has 3 devices: make it as large"):
        run(plain(), fleet, some_clients(6))
    with pytest.raises(ConfigError, match="needs_gb=64: no device of the fleet has as much memory"):
        run(plain(), Fleet.tiers(6), needs_gb=64)


def test_a_client_that_raises_is_named_at_its_simulated_time() -> None:
    clients = Clients.of({**{f"c{i}": some_clients()[f"client-{i}"] for i in range(3)}, "c3": Dataset(x=[], y=[])})
    with pytest.raises(TrainingFailed, match="'c3' has no examples"):
        run(plain(), Fleet.homogeneous(4), clients)
