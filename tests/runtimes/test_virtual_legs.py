"""Conversations of several legs in simulated time: the bits of Local, and drop-outs at any leg."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from hansa.core.job import Evaluation, Job
from hansa.core.pipeline import Arrived, Closed, Pipeline, Reducer, Seat, Server, Worker
from hansa.core.sampling import Fixed
from hansa.core.tensors import Tensors
from hansa.runtimes.local import train
from hansa.runtimes.virtual.fleet import Fleet
from hansa.runtimes.virtual.runtime import Virtual
from hansa.stages.mean import UniformMean
from tests.runtimes.jobs import plain, some_clients


@dataclass(frozen=True)
class Acknowledged(Reducer):
    """A sum of those that, told how many had answered, said so again."""

    legs: ClassVar[int] = 2

    def worker(self, message: Tensors, seat: Seat) -> Worker:
        told = yield message
        yield Tensors({"ack": told["count"]})

    def server(self, cohort: Sequence[str], seat: Seat) -> Server:
        given: dict[str, Tensors] = {}
        answers: Mapping[str, Tensors] | None = None
        for leg in range(2):
            while isinstance(event := (yield answers), Arrived):
                answers = None
                if leg == 0:
                    given[event.client] = event.message
            assert isinstance(event, Closed)
            answers = {client: Tensors({"count": [float(len(given))]}) for client in event.survivors}
        first, *others = given.values()
        return sum(others, first)


def job(clients: int, quorum: int | None = None) -> Job:
    pipeline, sampling = Pipeline([UniformMean()], Acknowledged()), Fixed(clients, quorum=quorum)
    return replace(
        plain(), pipeline=pipeline, cohort=None, sampling=sampling, evaluation=Evaluation(workers=None), attempts=20
    )


def test_a_conversation_gives_the_bits_and_bytes_of_the_local_runtime() -> None:
    local, virtual = train(job(4), some_clients()), Virtual(Fleet.tiers(6, seed=1)).run(job(4), some_clients())
    assert virtual.checkpoint.state == local.checkpoint.state
    assert [r.up_bytes for r in virtual.rounds] == [r.up_bytes for r in local.rounds]
    assert virtual.tally.replies == virtual.tally.published == virtual.tally.computed
    one = replace(job(4), pipeline=Pipeline([UniformMean()], plain().pipeline.reducer))
    assert virtual.seconds > Virtual(Fleet.tiers(6, seed=1)).run(one, some_clients()).seconds


def test_devices_drop_out_of_either_leg_and_each_task_still_ends_once() -> None:
    history = Virtual(Fleet.tiers(12, seed=1).with_(dropout=0.3), seed=3).run(job(12, quorum=2), some_clients(12))
    tally = history.tally
    assert tally.published == tally.replies + tally.failures + tally.late + tally.withdrawn
    assert tally.computed > tally.replies  # some answered the first leg and left in the second
    assert all(why == "its device dropped out" for r in history.rounds for c, why in r.dropped.items())
