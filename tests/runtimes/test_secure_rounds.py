"""Conversations over the wire: signed by enrolled members, carried through deaths on either side, never held twice."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hansa.core.errors import TrainingFailed
from hansa.core.pipeline import Pipeline, Seat
from hansa.core.runtime import Deadline, Failure, Task
from hansa.core.tensors import Tensors
from hansa.crypto.identity import Identity
from hansa.runtimes.bundle import pack
from hansa.runtimes.grpc.session import GrpcSession
from hansa.runtimes.grpc.spool import Spool
from hansa.runtimes.jobfile import load_job
from hansa.stages.mean import UniformMean
from tests.runtimes.federation import Federation, data_of, write_job
from tests.runtimes.jobs import plain
from tests.runtimes.legs import Signed, packed
from tests.runtimes.lying import LyingServer
from tests.runtimes.test_deploy import local_state, same_bits
from tests.runtimes.test_secure_sum import write_secure

LEGS = (Path(__file__).parent / "legs.py").read_text()


def write_talk(folder: Path, reducer: str = "Signed()", **options: Any) -> Path:
    """A job file whose reducer is the one of five legs, copied beside it."""
    job = write_job(folder, more="from legs import Signed\nfrom hansa.core.sampling import Fixed", **options)
    (folder / "legs.py").write_text(LEGS)
    job.write_text(job.read_text().replace("Sum())", f"{reducer})"))
    return job


def test_a_signed_conversation_with_a_helper_has_the_bits_of_the_local_one(tmp_path: Path) -> None:
    job = write_talk(tmp_path / "job", "Signed(helpers=('w2',))", cohort=2, rounds=4)
    with Federation(tmp_path, workers=3) as federation:
        federation.start_server()
        for name in ("w0", "w1"):
            federation.start_worker(name, data_of(job).format(name=name))
        run = federation.submit(job, workers=2)
        assert federation.server is not None
        federation.server.wait_for("waiting for workers: helper w2 has not connected yet")
        federation.start_worker("w2", None)
        status = federation.wait(run)
        assert status["state"] == "done", federation.output
        with federation.client() as client:
            assert same_bits(client.model(run), local_state(job, ["w0", "w1"]))
            assert {member["name"]: member["role"] for member in client.members()}["w2"] == "helper"
            assert len(client.model(run).ledger) == 4
        assert not (tmp_path / "w2" / "runs" / run / "memory").exists()
        federation.workers["w2"].wait_for("is loaded, with no data, to help")


# Where a server can be killed, and whether the attempt had begun: then it is void and stays charged.
BEFORE = ["after-publish", "first-reply", "reply-0"]
WITHIN = [
    *("send-1", "reply-1", "send-2", "reply-2", "send-3", "reply-3", "before-charge", "after-charge", "send-4"),
    *("reply-4", "before-commit", "mid-commit"),
]
AFTER = ["after-commit", "after-retire"]


@pytest.mark.parametrize(
    ("steps", "secure"),
    [
        (["first-reply", "send-1", "after-charge", "mid-commit"], False),
        pytest.param(BEFORE + WITHIN + AFTER, True, marks=pytest.mark.slow),
    ],
    ids=["some", "all"],
)
def test_a_server_killed_at_any_step_never_begins_the_same_attempt_again(
    steps: list[str], secure: bool, tmp_path: Path
) -> None:
    """One run, in which the server is killed at each step in turn, ends with the model of an undisturbed one."""
    write, workers = (write_secure, 3) if secure else (write_talk, 2)
    job = write(tmp_path / "job", cohort=f"cohort={workers}" if secure else workers, rounds=4)  # type: ignore[operator]
    with Federation(tmp_path, workers=workers) as federation:
        federation.start_server(failpoint=steps[0])
        federation.start_workers(data_of(job))
        run = federation.submit(job)
        for step in [*steps[1:], ""]:
            assert federation.server is not None
            assert federation.server.popen.wait(60) == -9, federation.output
            federation.server.end()
            federation.start_server(failpoint=step)
        status = federation.wait(run, 120)
        assert status["state"] == "done", f"{status}\n{federation.output}"
        with federation.client() as client:
            model = client.model(run)
            records = [event["record"] for event in client.watch(run) if "record" in event]
    assert same_bits(model, local_state(job, federation.names))
    charged = [(entry.round, entry.attempt) for entry in model.ledger]
    assert len(set(charged)) == len(charged) == 4 + len([step for step in steps if step in WITHIN])
    assert all((record["round"], record["attempt"]) in charged for record in records)
    assert all(record["counted"] == workers for record in records)


def test_a_worker_killed_in_any_leg_voids_the_attempt_and_takes_part_in_the_next(tmp_path: Path) -> None:
    job = write_talk(tmp_path / "job", cohort=2, rounds=3)
    data = data_of(job).format(name="w1")
    with Federation(tmp_path) as federation:
        federation.start_server()
        federation.start_worker("w0", data_of(job).format(name="w0"))
        federation.start_worker("w1", data, failpoint="leg-1")
        run = federation.submit(job)
        for step in ("leg-2", "leg-3", "leg-4", ""):
            assert federation.workers["w1"].popen.wait(60) == -9, federation.output
            federation.workers["w1"].end()
            federation.start_worker("w1", data, failpoint=step)
        status = federation.wait(run, 120)
        assert status["state"] == "done", f"{status}\n{federation.output}"
        with federation.client() as client:
            assert same_bits(client.model(run), local_state(job, federation.names))
            lines = [line["text"] for line in client.logs(run)]
            attempts = sum(event["record"]["attempt"] for event in client.watch(run) if "record" in event)
    for leg in (2, 3, 4, 5):
        assert any(f"leg {leg} of 5: it was restarted in the middle" in line for line in lines), lines
    assert attempts == 4


def test_with_a_quorum_who_leaves_after_the_counted_leg_is_counted_all_the_same(tmp_path: Path) -> None:
    job = write_talk(tmp_path / "job", cohort=2, rounds=1)
    job.write_text(job.read_text().replace("cohort=2", "sampling=Fixed(2, quorum=1, deadline_s=8)"))
    with Federation(tmp_path) as federation:
        federation.start_server()
        federation.start_worker("w0", data_of(job).format(name="w0"))
        federation.start_worker("w1", data_of(job).format(name="w1"), failpoint="leg-4")
        run = federation.submit(job)
        status = federation.wait(run)
        assert status["state"] == "done", federation.output
        assert status["last"]["counted"] == 2 and status["last"]["dropped"] == {}
        with federation.client() as client:
            model, whole = client.model(run), local_state(job, federation.names)
            assert model.state == whole.state
            assert set(model.memories) == {"w0"}, "w1 keeps the memory of its last whole task"
            assert any("w1 did not answer in round 1, leg 5 of 5" in line["text"] for line in client.logs(run))


class Clock:
    """An event loop that does at once what it is asked to do soon, and remembers what it is asked to do later."""

    def __init__(self) -> None:
        self.later: list[tuple[float, Any, Any]] = []

    def call_soon_threadsafe(self, call: Any, *args: Any) -> None:
        call(*args)

    def call_later(self, seconds: float, call: Any, *args: Any) -> "Clock":
        self.later.append((seconds, call, args))
        return self

    def cancel(self) -> None:
        """A timer may be over when it is cancelled: its call is kept, to be made all the same."""


def test_a_deadline_that_comes_while_its_leg_closes_does_not_close_the_next(tmp_path: Path) -> None:
    clock, begun = Clock(), list[Task]()
    made = replace(plain(), pipeline=Pipeline([UniformMean()], Signed()))
    session = GrpcSession(
        "r", made, bundle=None, members=Nobody(), spool=Spool(tmp_path), loop=clock,  # type: ignore[arg-type]
        workers=0, log=[].append, seat=lambda task: Seat("server", task.context), begins=begun.append,
    )  # fmt: skip
    tasks = [
        Task(
            run="r",
            fingerprint="f",
            kind="train",
            version=0,
            round=0,
            attempt=0,
            client=name,
            position=at,
            population=6,
        )
        for at, name in enumerate(("a", "b"))
    ]
    down = made.algorithm.send(made.algorithm.init(made.model.init(1)))
    session.publish(tasks, down, deadline_s=30)
    for task in tasks:
        session.send(task, 1, Tensors({"word": np.ones(1)}))
    assert begun == tasks[:1], "noted once, before anybody hears of the second leg"
    assert [seconds for seconds, _, _ in clock.later] == [30, 30], "each leg has a deadline of its own"
    for _, call, args in clock.later:
        call(*args)
    session.fail(tasks[0], "so that there is more to hear", gone=True)
    assert isinstance(session.next(), Deadline)
    assert isinstance(session.next(), Failure), "the first leg's deadline was too late to be one"
    session.retire(tasks)


class Unspeakable:
    """A federation with a worker that cannot be spoken to."""

    name = "a"

    def link(self, name: str) -> "Unspeakable":
        return self

    def say(self, message: bytes) -> None:
        raise MemoryError("no room for an offer")


def test_what_fails_in_the_event_loop_ends_the_run_that_would_wait_for_ever(tmp_path: Path) -> None:
    made, loop = replace(plain(), pipeline=Pipeline([UniformMean()], Signed())), asyncio.new_event_loop()
    session = GrpcSession(
        "r", made, bundle=None, members=Unspeakable(), spool=Spool(tmp_path), loop=loop,  # type: ignore[arg-type]
        workers=0, log=[].append, seat=lambda task: Seat("server", task.context), begins=[].append,
    )  # fmt: skip
    task = Task(
        run="r", fingerprint="f", kind="train", version=0, round=0, attempt=0, client="a", position=0, population=6
    )
    session.publish([task], made.algorithm.send(made.algorithm.init(made.model.init(1))))
    loop.call_soon(loop.stop)
    loop.run_forever()
    loop.close()
    assert not session._queue.empty(), "else the round loop waits for an answer that nobody was asked for"
    with pytest.raises(TrainingFailed, match="cannot speak to its workers: MemoryError: no room for an offer"):
        session.next()


class Nobody:
    """A federation of which nobody is there."""

    def link(self, name: str) -> None:
        return None


def test_a_server_that_lies_about_who_is_alive_gets_one_answer_for_each_attempt(tmp_path: Path) -> None:
    """Also from a worker that was killed and started again: its record is on disk."""
    job = write_talk(tmp_path / "job", cohort=2, rounds=3)
    with Federation(tmp_path) as federation:
        members = tmp_path / "authority" / "members"
        bundle = pack(job, None, Identity.load(members / "alice.pem"))
        made = load_job(job)
        down = made.algorithm.send(made.algorithm.init(made.model.init(made.seed)))
        down = down.updated(Tensors.join(pipeline=made.bind(2).start()))
        fingerprint = made.fingerprint(bundle.hash)
        honest, lie = {"w0": "alive", "w1": "alive"}, {"w0": "alive"}

        def task(attempt: int) -> Task:
            return Task(
                run="r", fingerprint=fingerprint, kind="train", version=0, round=0, attempt=attempt, client="w0",
                position=0, population=2,
            )  # fmt: skip

        def begin() -> None:
            federation.start_worker("w0", data_of(job).format(name="w0"))
            assert liar.connected.acquire(timeout=60)

        def talks(attempt: int, alive: dict[str, str]) -> list[str]:
            """What the worker says in each leg of one conversation."""
            said = [liar.offer(task(attempt), down)]
            for leg, word in enumerate(({}, {}, alive, {}), start=1):
                if said[-1][0] == "answer":
                    said.append(liar.next(task(attempt), leg, packed(word)))
            return [what if what == "answer" else message.reason for what, message in said]

        with LyingServer(members / "server.pem", bundle) as liar:
            federation.address = liar.address
            begin()
            assert talks(0, honest) == ["answer"] * 5
            assert liar.next(task(0), 3, packed(lie)) == liar.next(task(0), 3, packed(honest)), "given again, no other"
            assert "SecretRoundVoid: the server asks for the same attempt" in talks(0, lie)[1]
            federation.workers["w0"].kill()
            federation.workers["w0"].end()
            begin()
            assert "SecretRoundVoid: the server asks for the same attempt" in talks(0, lie)[1]
            assert "SecretRoundVoid" in talks(0, honest)[1], "nor as before: its keys are new"
            assert talks(1, lie) == ["answer"] * 5, "a new attempt is another conversation"
