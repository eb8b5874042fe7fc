"""Conversations of several legs in the runtimes of one machine: seats, helpers, drop-outs, a deadline for each leg."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from hansa.core.errors import SecretRoundVoid, TrainingFailed
from hansa.core.job import Evaluation, Job
from hansa.core.ledger import EXACT
from hansa.core.model import Role
from hansa.core.pipeline import Pipeline
from hansa.core.runtime import Runtime
from hansa.core.sampling import Fixed
from hansa.core.train import Record
from hansa.runtimes.local import Local, LocalSession, train
from hansa.runtimes.memory import MemoryMemories
from hansa.runtimes.processes import Processes
from hansa.runtimes.virtual.fleet import Fleet
from hansa.runtimes.virtual.runtime import Virtual
from hansa.stages import secure_sum
from hansa.stages.clip import Clip
from hansa.stages.mean import UniformMean
from hansa.stages.quantise import Quantise
from hansa.stages.secure_sum import SecureSum
from hansa.stages.sum import Sum
from tests.runtimes.jobs import Regression, plain, remembering, some_clients
from tests.runtimes.legs import Signed

RUNTIMES: dict[str, Callable[[], Runtime]] = {
    "local": Local,
    "processes": lambda: Processes(2),
    "virtual": lambda: Virtual(Fleet.tiers(6, seed=1)),
}


def job(reducer: Signed, **changes: object) -> Job:
    made = replace(plain(), pipeline=Pipeline([UniformMean()], reducer), evaluation=Evaluation(workers=None, every=2))
    return replace(made, **changes)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_parties_that_sign_and_a_helper_without_data_give_the_plain_sum(runtime: str) -> None:
    clients = some_clients()
    sums = train(job(Sum(), evaluation=Evaluation()), clients)  # type: ignore[arg-type]
    talks = train(job(Signed(helpers=("h",)), evaluation=Evaluation()), clients, runtime=RUNTIMES[runtime]())
    assert talks.checkpoint.state == sums.checkpoint.state
    assert [(r.asked, r.counted, r.dropped) for r in talks.rounds] == [(4, 4, {})] * 5, "helpers are nobody's sample"
    assert [entry.event for entry in talks.checkpoint.ledger] == [EXACT] * 5, "what was opened is on record"


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_memory_and_evaluation_go_through_a_conversation_as_well(runtime: str) -> None:
    made = replace(remembering(), pipeline=Pipeline([UniformMean()], Signed(helpers=("h",))))
    made = replace(made, evaluation=Evaluation(workers=2, every=2))
    reference, other = train(made, some_clients()), train(made, some_clients(), runtime=RUNTIMES[runtime]())
    assert other.checkpoint.state == reference.checkpoint.state
    assert other.checkpoint.memories == reference.checkpoint.memories
    assert "h" not in other.checkpoint.memories
    assert [r.workers for r in other.rounds] == [r.workers for r in reference.rounds]


def test_evaluation_through_a_conversation_counts_as_no_attempt_at_the_next_round() -> None:
    """Else the next cohort would be drawn otherwise than with a plain sum, and the record tell of void attempts."""
    sums, talks = (train(job(reducer, rounds=4), some_clients()) for reducer in (Sum(), Signed()))  # type: ignore[arg-type]
    assert talks.checkpoint.state == sums.checkpoint.state
    assert [(r.attempt, r.workers) for r in talks.rounds] == [(0, r.workers) for r in sums.rounds]
    assert [(entry.round, entry.attempt) for entry in talks.checkpoint.ledger] == [(r, 0) for r in (0, 1, 1, 2, 3, 3)]


def test_below_its_threshold_a_round_is_void_and_says_so() -> None:
    fleet = Fleet.tiers(12, seed=1).with_(dropout=0.9)
    made = job(Signed(threshold=9), cohort=None, sampling=Fixed(12, quorum=1), evaluation=Evaluation(), attempts=3)
    with pytest.raises(TrainingFailed, match=r"void 3 times.*fewer than the 9 that the secret needs.*nothing"):
        train(made, some_clients(12), runtime=Virtual(fleet))


def test_the_record_says_why_attempts_before_it_were_void() -> None:
    fleet = Fleet.tiers(12, seed=1).with_(dropout=0.3)
    made = job(Signed(threshold=9), cohort=None, sampling=Fixed(12, quorum=1), evaluation=Evaluation(), attempts=99)
    history = train(made, some_clients(12), runtime=Virtual(fleet, seed=4))
    assert any(record.void for record in history.rounds)
    for record in history.rounds:
        assert len(record.void) == record.attempt
        assert all("fewer than the 9 that the secret needs" in why for why in record.void)
        assert Record.from_json(json.loads(json.dumps(record.to_json()))) == record


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.2, 0.4])
def test_who_drops_out_before_the_counted_leg_is_named_and_who_drops_out_later_is_counted(rate: float) -> None:
    fleet = Fleet.tiers(12, seed=1).with_(dropout=rate)
    made = job(Signed(), cohort=None, sampling=Fixed(12, quorum=2), evaluation=Evaluation(), rounds=20)
    history = train(made, some_clients(12), runtime=Virtual(fleet, seed=2))
    for record in history.rounds:
        assert record.counted + len(record.dropped) == record.asked == 12
        assert set(record.dropped.values()) <= {"its device dropped out"}
    left, all_tasks = sum(len(record.dropped) for record in history.rounds), 12 * 20
    assert history.tally.failures >= left  # type: ignore[attr-defined]
    if rate:
        # Three of five legs come before a contribution counts, so three fifths of the drop-outs are not counted.
        assert left == pytest.approx(0.6 * rate * all_tasks, abs=4 * np.sqrt(rate * all_tasks))
        assert history.tally.failures > left, "some left after they were counted"  # type: ignore[attr-defined]


@pytest.mark.parametrize("rate", [0.0, 0.15, 0.4])
def test_whoever_drops_out_a_secure_sum_is_exact_or_its_round_is_void(
    rate: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of twelve devices, each with this chance to leave in a leg of its own."""
    sent: dict[bytes, dict[str, list[np.ndarray]]] = {}
    totals: list[list[np.ndarray]] = []
    worker, decode = secure_sum._Bound.worker, secure_sum.Layout.decode

    def watched(self: Any, message: Any, seat: Any) -> Any:
        sent.setdefault(seat.context, {})[seat.name] = self.layout.encode(message)
        return worker(self, message, seat)

    def opened(self: Any, runs: Any) -> Any:
        totals.append([run.copy() for run in runs])
        return decode(self, runs)

    monkeypatch.setattr(secure_sum._Bound, "worker", watched)
    monkeypatch.setattr(secure_sum.Layout, "decode", opened)
    fleet = Fleet.tiers(12, seed=1).with_(dropout=rate)
    made = replace(
        job(Signed(), cohort=None, sampling=Fixed(12, quorum=2), evaluation=Evaluation(), rounds=4, attempts=500),
        pipeline=Pipeline([Clip(1.0), UniformMean(), Quantise(bits=12)], SecureSum(threshold=0.6)),
        model=WithoutBuffers(),
    )
    history = train(made, some_clients(12), runtime=Virtual(fleet, seed=3))
    layout = made.bind(12).reducer.layout  # type: ignore[union-attr]
    contexts = [f"{history.checkpoint.run}/train/{r.round}.{r.attempt}".encode() for r in history.rounds]
    for record, total, context in zip(history.rounds, totals, contexts, strict=True):
        counted = [runs for name, runs in sent[context].items() if name not in record.dropped]
        assert len(counted) == record.counted
        for run, bits, each in zip(total, layout.fields.bits, zip(*counted, strict=True), strict=True):
            assert np.array_equal(run, sum(each) & run.dtype.type((1 << bits) - 1))
    if rate:
        assert any(record.dropped for record in history.rounds)


@dataclass(frozen=True)
class WithoutBuffers(Regression):
    """A secure sum takes no buffers."""

    def roles(self) -> dict[str, Role]:
        return {name: role for name, role in super().roles().items() if name != "seen"}


def test_a_deadline_is_that_of_one_leg() -> None:
    """Five legs that each take most of the deadline end in time; one that takes longer does not."""
    alike = Fleet.homogeneous(4).with_(latency_s=1.0, examples_per_s=1e9, up_bytes_per_s=1e9, down_bytes_per_s=1e9)
    made = job(Signed(), cohort=None, sampling=Fixed(4, quorum=2, deadline_s=2.5), evaluation=Evaluation(), rounds=2)
    history = train(made, some_clients(4), runtime=Virtual(alike))
    assert [record.counted for record in history.rounds] == [4, 4]
    assert all(record.seconds == pytest.approx(5 * 2.0, rel=0.01) for record in history.rounds)
    slow = replace(made, sampling=Fixed(4, quorum=2, deadline_s=1.5), attempts=1)
    with pytest.raises(TrainingFailed, match="no answer"):
        train(slow, some_clients(4), runtime=Virtual(alike))


def test_each_run_of_a_simulation_has_a_secret_of_its_own_which_no_job_shows() -> None:
    made = job(Signed())
    one, other = (LocalSession(made, some_clients(), MemoryMemories()) for _ in range(2))
    assert one._secret != other._secret
    assert one._secret.hex() not in repr(made) + repr(vars(one)["_job"])


def test_a_party_that_is_asked_twice_with_other_lists_reveals_nothing() -> None:
    """The reducer's own check, on a seat of a simulation; over gRPC it holds after a restart (test_secure_rounds)."""
    from hansa.crypto.seats import SimulatedSeat
    from tests.runtimes.legs import packed

    seat = SimulatedSeat("a", b"run/train/0.0", b"\3" * 32)
    for alive in ({"a": "alive", "b": "alive"}, {"a": "alive"}):
        talk = Signed().worker(packed({}), seat)
        next(talk)
        talk.send(packed({}))
        talk.send(packed({}))
        if len(alive) == 2:
            talk.send(packed(alive))
        else:
            with pytest.raises(SecretRoundVoid, match="again, with other parties"):
                talk.send(packed(alive))
