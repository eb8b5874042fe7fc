"""What all pools of workers share, in one process: who does what, and what is done after a death."""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from hansa.core.data import Clients, Dataset
from hansa.core.errors import TrainingFailed
from hansa.core.job import Job
from hansa.core.model import Fit
from hansa.core.runtime import Deadline, Failure, Reply, Task
from hansa.core.tensors import EMPTY, Tensors
from hansa.core.train import train as loop
from hansa.runtimes.local import Local, train
from hansa.runtimes.memory import MemoryMemories, MemoryStore
from hansa.runtimes.pool import TRIES, WINDOW, Member, Performer, PoolSession, Report
from tests.runtimes.jobs import Regression, plain, some_clients
from tests.runtimes.test_virtual_legs import job as talk


class Bench(Member[int]):
    """A worker that does what it is given when it is listened to."""

    def __init__(self, performer: Performer, place: str) -> None:
        super().__init__()
        self.performer, self.place, self.done, self.ended = performer, place, [], False

    def begin(self, asked: Mapping[str, Any], inputs: Mapping[str, int]) -> None:
        self.given = (asked, inputs)
        self.done.append(f"{asked['task']['client']}.{asked['leg']}")

    def end(self) -> None:
        self.ended = True


class Inline(PoolSession[int]):
    """A pool whose workers stand in this process, and die when told to: `dying` names "client.leg", as often."""

    def __init__(self, job: Job, clients: Clients, count: int, dying: tuple[str, ...] = (), cohort: int = 1) -> None:
        super().__init__(job, clients, MemoryMemories(), count, cohort)
        self.all: list[Bench] = []
        self.handles = itertools.count()
        self.dying, self.at, self.lying = list(dying), dict[str, str](), dict[int, Tensors]()

    def _start(self) -> Bench:
        self.all.append(Bench(Performer(self._setup["job"], self._setup["clients"]), f"node-{len(self.all) % 2}"))
        return self.all[-1]

    def _write(self, tensors: Tensors) -> int:
        handle = next(self.handles)
        self.lying[handle] = tensors
        return handle

    def _delete(self, handle: int) -> None:
        del self.lying[handle]

    def _near(self, member: Member[int], client: str) -> bool:
        return isinstance(member, Bench) and self.at.get(client, member.place) == member.place

    def _hear(self) -> tuple[Member[int], Report | str]:
        bench = next(bench for bench in self.all if bench.request is not None and not bench.ended)
        asked, inputs = bench.given
        if bench.done[-1] in self.dying:
            self.dying.remove(bench.done[-1])
            return bench, "it was told to"
        said = bench.performer.step(
            asked, lambda name: self.lying.get(inputs.get(name, -1), EMPTY), lambda tensors: tensors
        )
        return bench, Report.of(said, lambda tensors: tensors)


def trained(session: Inline, job: Job) -> Tensors:
    return loop(job, session, MemoryStore(), run="r").checkpoint.state


def tasks(count: int) -> list[Task]:
    return [
        Task(run="r", fingerprint="f", kind="train", version=0, round=0, attempt=0, client=f"client-{i}", position=i)
        for i in range(count)
    ]


@pytest.mark.parametrize("make", [plain, lambda: talk(6)], ids=["one leg", "two legs"])
@pytest.mark.parametrize("workers", [1, 2, 5])
def test_the_number_of_workers_decides_no_bit(make: Any, workers: int) -> None:
    session = Inline(make(), some_clients(), workers)
    assert trained(session, make()) == train(make(), some_clients()).checkpoint.state
    assert len(session.all) == min(workers, make().who.expected(6))
    assert len(session.lying) == 6 + 1, "the data of six clients and the frozen tensors, nothing of a round"


def test_a_conversation_goes_on_in_the_worker_where_it_began() -> None:
    session = Inline(talk(6), some_clients(), 2)
    trained(session, talk(6))
    for bench in session.all:
        begun, gone_on = ([step[:-2] for step in bench.done if step.endswith(leg)] for leg in (".0", ".1"))
        assert sorted(begun) == sorted(gone_on)
        assert bench.performer._talking == {}


def test_a_task_whose_worker_dies_is_done_by_another_to_the_same_bits() -> None:
    session = Inline(plain(), some_clients(), 2, dying=("client-2.0",) * (TRIES - 1))
    assert trained(session, plain()) == train(plain(), some_clients()).checkpoint.state
    assert [bench.ended for bench in session.all].count(True) == TRIES - 1
    assert not session.dying


def test_a_task_that_is_over_when_its_worker_dies_is_not_done_again() -> None:
    session = Inline(plain(), some_clients(), 1, dying=("client-0.0",))
    session.publish(tasks(1), Tensors({"model/weight": [0.0]}))
    session._dispatch()
    session.retire(tasks(1))
    assert isinstance(session.next(), Deadline)
    assert [bench.done for bench in session.all] == [["client-0.0"]]


def test_a_task_that_kills_every_worker_fails_by_the_name_of_its_client() -> None:
    session = Inline(plain(), some_clients(), 2, dying=("client-2.0",) * TRIES)
    with pytest.raises(TrainingFailed, match="client-2: 3 workers died while they did its task.*it was told to"):
        trained(session, plain())


def test_conversations_that_die_with_their_worker_void_the_attempt_and_the_next_one_ends_the_same() -> None:
    """One death in the middle of a leg, with another conversation waiting in the same worker."""
    session = Inline(talk(6), some_clients(), 2, dying=("client-0.1",))
    assert trained(session, talk(6)) == train(talk(6), some_clients()).checkpoint.state
    assert all(not bench.performer._talking for bench in session.all if not bench.ended), "what was void is forgotten"


def test_an_answer_to_a_conversation_whose_worker_is_gone_is_a_failure_that_may_come_back() -> None:
    session = Inline(talk(6), some_clients(), 1, dying=("client-1.0",))
    session.publish(tasks(2), Tensors({"model/weight": [0.0]}), EMPTY)
    first, *_ = tasks(2)
    said = Report(message=Tensors({"x": [1.0]}))
    session._dispatch()
    assert isinstance(session._take(session.all[0], said), Reply)
    session._dispatch()
    assert session._take(session.all[0], "it was told to") is None, "client-1 is to be done again"
    session.send(first, 1, Tensors({"count": [2.0]}))
    failure = session.next()
    assert isinstance(failure, Failure)
    assert (failure.task, failure.gone) == (first, True)


def test_a_worker_takes_first_what_is_near_and_rather_than_nothing_what_is_far() -> None:
    session = Inline(plain(), some_clients(), 1)
    session.at = {"client-0": "node-1", "client-1": "node-1", "client-2": "node-0"}
    session.publish(tasks(3), Tensors({"model/weight": [0.0]}))
    bench = session._start()
    picked = [session._pick(bench) for _ in range(4)]
    assert [request and request.task.client for request in picked] == ["client-2", "client-0", "client-1", None]


def test_nearness_reaches_no_further_than_the_window() -> None:
    session = Inline(plain(), some_clients(WINDOW + 1), 1)
    session.at = {f"client-{i}": "node-1" for i in range(WINDOW)}
    session.publish(tasks(WINDOW + 1), Tensors({"model/weight": [0.0]}))
    request = session._pick(session._start())
    assert request is not None
    assert request.task.client == "client-0"


def test_a_worker_has_its_next_task_before_what_it_gave_is_added() -> None:
    session = Inline(plain(), some_clients(), 1)
    session.publish(tasks(3), Tensors({"model/weight": [0.0]}))
    said = session.next()
    assert isinstance(said, Failure | Reply)
    (bench,) = session.all
    assert bench.done == ["client-0.0", "client-1.0"]
    assert bench.request is not None and bench.request.task.client == "client-1"


def test_the_longest_goes_first_in_a_whole_round_and_like_tasks_stay_in_their_order() -> None:
    session = Inline(plain(), some_clients(WINDOW + 2), 1)
    for client, seconds in zip(some_clients(WINDOW + 2).ids, (1.0, 1.02, 0.99, 3.0, 1.01, 9.0), strict=True):
        session._learn(client, seconds)
    session.publish(tasks(WINDOW + 2), Tensors({"model/weight": [0.0]}))
    order = [int(request.task.client[-1]) for request in session._waiting]
    assert order == [5, 3, 0, 1, 2, 4]


def test_the_data_of_a_client_is_handed_over_once() -> None:
    opened: list[str] = []

    class Counted(Clients):
        ids = some_clients().ids

        def open(self, client: str) -> Dataset:
            opened.append(client)
            return some_clients().open(client)

    trained(Inline(plain(), Counted(), 2), plain())
    assert len(opened) == len(set(opened))


# -- models that train many clients at once

GIVEN: list[int] = []  # how many, each time


@dataclass(frozen=True)
class Stacking(Regression):
    """Says that it trains many at once, to results that show who was trained together."""

    stacks = True

    def fit_cohort(self, params: Any, data: Any, work: Any, rngs: Any) -> list[Fit]:
        GIVEN.append(len(data))
        fits = [self.fit(*each) for each in zip(params, data, work, rngs, strict=True)]
        shift = np.float32(1e-3 * len(data))
        return [replace(fit, params=fit.params.updated({"weight": fit.params["weight"] + shift})) for fit in fits]


def stacked(make: Callable[[], Job]) -> Job:
    GIVEN.clear()
    return replace(make(), model=Stacking())


@pytest.mark.parametrize("make", [plain, lambda: talk(6)], ids=["one leg", "two legs"])
@pytest.mark.parametrize("workers", [1, 2, 5])
def test_stacks_are_trained_together_whatever_the_number_of_workers(make: Any, workers: int) -> None:
    local = train(stacked(make), some_clients(), runtime=Local(cohort=3)).checkpoint.state
    once = GIVEN[:]
    session = Inline(replace(make(), model=Stacking()), some_clients(), workers, cohort=3)
    assert trained(session, replace(make(), model=Stacking())) == local
    assert sorted(GIVEN) == sorted(2 * once) and max(once) == 3
    assert len(session.lying) == 6 + 1, "nothing of a round stays"


def test_a_stack_whose_worker_dies_is_trained_whole_again_to_the_same_bits() -> None:
    undisturbed = trained(Inline(stacked(plain), some_clients(), 2, cohort=3), replace(plain(), model=Stacking()))
    stacks = len(GIVEN)
    session = Inline(stacked(plain), some_clients(), 2, dying=("client-1.0", "client-2.0"), cohort=3)
    assert trained(session, replace(plain(), model=Stacking())) == undisturbed
    assert not session.dying and stacks < len(GIVEN) <= stacks + 2


def test_a_stack_that_kills_every_worker_is_taken_apart_and_the_client_is_named() -> None:
    session = Inline(stacked(plain), some_clients(), 2, dying=("client-2.0",) * 2 * TRIES, cohort=3)
    with pytest.raises(TrainingFailed, match="client-2: 3 workers died while they did its task"):
        trained(session, replace(plain(), model=Stacking()))


def test_tasks_of_a_stack_that_are_over_are_not_done() -> None:
    session = Inline(stacked(plain), some_clients(), 1, cohort=4)
    session.publish(tasks(4), Tensors({"model/weight": [0.0]}))
    session.retire(tasks(2))
    session._dispatch()
    assert session.all[0].done == ["client-2.0"]
    assert [form["client"] for form in session.all[0].given[0]["stack"]] == ["client-2", "client-3"]
    session.retire(tasks(4))
    assert not session.all[0].answers and not session._used
