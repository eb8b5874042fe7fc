"""One leg of one round: every row of its table, and the order in which answers are released."""

import itertools
import random
from dataclasses import replace

import pytest
from hypothesis import given, strategies as st

from hansa.core.errors import ProtocolError
from hansa.core.round import TABLE, Phase, Round, Verdict
from hansa.core.runtime import Deadline, Failure, Reply, Task
from hansa.core.tensors import Tensors

DEADLINE = Deadline("train", 0, 0)


def task(client: str, position: int = 0) -> Task:
    return Task(run="r", fingerprint="f", kind="train", version=0, round=0, attempt=0, client=client, position=position)


def reply(client: str, position: int = 0, leg: int = 0) -> Reply:
    return Reply(task(client, position), leg, Tensors({"w": [float(position)]}))


def fail(client: str, position: int = 0) -> Failure:
    return Failure(task(client, position), "it broke")


def of(clients: str, quorum: int, enough: int, leg: int = 0) -> Round:
    return Round([task(client, position) for position, client in enumerate(clients)], quorum, enough, leg)


def reached(phase: Phase) -> Round:
    """A round of a, b, c in which a has answered, in this phase."""
    round = of("abc", 1, 3)
    round.on(reply("a"))
    if phase == Phase.CLOSED:
        round.on(DEADLINE)
    elif phase == Phase.VOID:
        round.reject(fail("a"))
        round.on(fail("b", 1))
        round.on(fail("c", 2))
    assert round.phase == phase
    return round


EVENTS = {
    "reply": reply("b", 1),
    "failure": fail("b", 1),
    "deadline": DEADLINE,
    "again": reply("a"),
    "foreign": replace(reply("b", 1), task=replace(task("b", 1), attempt=1)),
}


@pytest.mark.parametrize(("phase", "event"), [row for row in TABLE if row[0] != Phase.VOID])
def test_every_row_of_the_table_holds(phase: Phase, event: str) -> None:
    round = reached(phase)
    verdict = round.on(EVENTS[event])
    assert verdict == TABLE[phase, event]
    assert sum(round.ignored.values()) == (verdict in round.ignored)
    if verdict in round.ignored:
        assert [task.client for task in round.survivors] == ["a"]


@pytest.mark.parametrize("event", ["deadline", "again", "foreign"])
def test_nothing_revives_a_void_round(event: str) -> None:
    round = reached(Phase.VOID)
    assert round.on(EVENTS[event]) == TABLE[Phase.VOID, event]
    assert round.phase == Phase.VOID


def test_a_void_round_calls_answers_late() -> None:
    round = of("abc", 3, 3)
    round.on(fail("a"))
    assert round.phase == Phase.VOID
    assert round.on(reply("b", 1)) == Verdict.LATE
    assert round.on(fail("c", 2)) == Verdict.LATE
    assert list(round.ready()) == []


def test_the_table_has_a_row_for_every_phase_and_event() -> None:
    assert set(TABLE) == set(itertools.product(Phase, EVENTS))


def test_it_closes_when_enough_are_here_and_later_ones_are_late() -> None:
    round = of("abc", 2, 2)
    assert round.on(reply("c", 2)) == Verdict.COUNT
    assert round.on(reply("a")) == Verdict.COUNT
    assert round.phase == Phase.CLOSED
    assert round.on(reply("b", 1)) == Verdict.LATE
    assert [task.client for task in round.survivors] == ["a", "c"]
    assert [task.client for task in round.outstanding] == ["b"]


@pytest.mark.parametrize(("answers", "phase"), [(1, Phase.VOID), (2, Phase.CLOSED)])
def test_the_deadline_closes_with_a_quorum_and_voids_without(answers: int, phase: Phase) -> None:
    round = of("abc", 2, 3)
    for position, client in enumerate("abc"[:answers]):
        round.on(reply(client, position))
    assert round.on(DEADLINE) == Verdict.CLOSE
    assert round.phase == phase


def test_it_is_void_as_soon_as_the_quorum_is_out_of_reach() -> None:
    round = of("abc", 2, 3)
    round.on(fail("a"))
    assert round.phase == Phase.OPEN
    round.on(fail("b", 1))
    assert round.phase == Phase.VOID
    assert round.why() == "a: it broke; b: it broke; c: no answer"


def test_it_closes_with_a_quorum_when_nobody_else_can_come() -> None:
    round = of("abc", 2, 3)
    round.on(reply("a"))
    round.on(reply("b", 1))
    assert round.phase == Phase.OPEN
    round.on(fail("c", 2))
    assert round.phase == Phase.CLOSED
    assert {client: failure.reason for client, failure in round.dropped.items()} == {"c": "it broke"}


def test_nobody_asked_is_void() -> None:
    round = of("", 1, 1)
    assert round.phase == Phase.VOID
    assert round.why() == "nobody was asked"


def test_an_answer_of_another_leg_is_a_duplicate_or_foreign() -> None:
    round = of("ab", 2, 2, leg=1)
    assert round.on(reply("a", 0, leg=0)) == Verdict.DUPLICATE
    assert round.on(reply("a", 0, leg=2)) == Verdict.FOREIGN
    assert round.on(reply("a", 0, leg=1)) == Verdict.COUNT


def test_a_client_that_dropped_out_cannot_come_back() -> None:
    round = of("abc", 1, 3)
    round.on(fail("a"))
    assert round.on(reply("a")) == Verdict.DUPLICATE
    assert round.ignored[Verdict.DUPLICATE] == 1


def test_a_rejected_answer_voids_a_closed_round_below_its_quorum() -> None:
    round = of("ab", 2, 2)
    round.on(reply("a"))
    round.on(reply("b", 1))
    round.reject(Failure(task("b", 1), "NaN"))
    assert round.phase == Phase.VOID
    with pytest.raises(ProtocolError, match="'b' has no answer to reject"):
        round.reject(Failure(task("b", 1), "NaN"))


def test_released_answers_are_not_held_in_memory() -> None:
    round = of("ab", 2, 2)
    round.on(reply("a"))
    (first,) = round.ready()
    assert len(first.message) == 1
    assert len(round._replies[first.task.key].message) == 0


@given(st.data())
def test_whatever_the_order_answers_are_released_in_task_order_and_each_once(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 7))
    clients = "abcdefg"[:size]
    quorum = data.draw(st.integers(1, size))
    round = of(clients, quorum, data.draw(st.integers(quorum, size)))
    events = [data.draw(st.sampled_from([reply, fail, None]), label=client) for client in clients]
    happenings = [make(client, n) for n, (client, make) in enumerate(zip(clients, events, strict=True)) if make]
    happenings += [happening for happening in happenings if data.draw(st.booleans())]  # some of them twice
    random.Random(data.draw(st.integers(0, 99))).shuffle(happenings)
    released, rejected = [], data.draw(st.sets(st.sampled_from(clients)))
    for happening in [*happenings, DEADLINE]:
        round.on(happening)
        for answer in round.ready():
            if answer.task.client in rejected:
                round.reject(Failure(answer.task, "NaN"))
            else:
                released.append(answer.task.client)
    assert released == sorted(set(released))
    assert round.phase != Phase.OPEN
    if round.phase == Phase.CLOSED:
        assert released == [task.client for task in round.survivors]
        assert len(released) >= quorum
