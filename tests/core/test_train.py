"""The round loop against scripted runtimes: drop-outs, deadlines, crashes, evaluation, charges, queries."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from hansa.core.algorithm import Algorithm
from hansa.core.checkpoint import Checkpoint
from hansa.core.data import Dataset
from hansa.core.errors import JobError, StateMismatch, TrainingFailed
from hansa.core.job import Evaluation, Job
from hansa.core.ledger import Event
from hansa.core.model import LocalWork
from hansa.core.pipeline import Pipeline, Stage, Step
from hansa.core.sampling import Fixed, Poisson
from hansa.core.tensors import Tensors
from hansa.core.train import Outcome, Record, query, train
from hansa.runtimes.memory import MemoryMemories, MemoryStore
from hansa.stages.mean import UniformMean, WeightedMean
from hansa.stages.sum import Sum
from hansa.testing.fake_runtime import Crash, CrashingStore, FakeSession
from hansa.testing.models import Line, points

WORK = LocalWork(lr=0.1, epochs=2, batch_size=4)
CLIENTS = {name: points(n, 5 + 3 * n) for n, name in enumerate("abcde")}


class Averaging(Algorithm):
    """The defaults."""


class Remembering(Algorithm):
    """Counts at each worker how often its training was counted; the count goes up as a side value."""

    keeps_memory = True

    def sides(self, params):
        return {"visits": Tensors({"n": np.zeros(1)})}

    def train(self, model, down, memory, data, rng):
        visits = memory.only(["n"])["n"] + 1 if len(memory) else np.ones(1)
        update = super().train(model, down, memory, data, rng)
        return replace(update, side={"visits": Tensors({"n": visits})}, memory=Tensors({"n": visits}))

    def init(self, params):
        return Tensors.join(model=params, visits=Tensors({"n": np.zeros(1)}))

    def apply(self, state, aggregate):
        state = super().apply(state, aggregate)
        return state.updated(Tensors.join(visits=aggregate.side["visits"]))


class Stale(Algorithm):
    """Halves an update for each version it is late."""

    def discount(self, staleness: int) -> float:
        return 0.5**staleness


@dataclass(frozen=True)
class Noisy(Stage):
    """Releases something, and adds 1 to it for each attempt's secret word."""

    def bind(self, signal, setting):
        class Bound(Step):
            def events(self):
                return (Event(mechanism="gaussian", noise_multiplier=1.0),)

            def decode_total(self, total, state, round):
                noise = round.secret("noise").word() / 2**64
                return total.updated({name: total[name] + noise for name in total if name.startswith("value/")}), state

        return Bound(signal)


def job(**settings: Any) -> Job:
    base: dict[str, Any] = {
        "model": Line(), "algorithm": Averaging(WORK), "pipeline": Pipeline([WeightedMean()], Sum()), "rounds": 3,
        **({} if "sampling" in settings else {"cohort": 3}),
    }  # fmt: skip
    return Job(**{**base, **settings})


def run(job: Job, behave=lambda task: "reply", clients=None, store=None, **options: Any) -> tuple[Outcome, FakeSession]:
    session = FakeSession(job, CLIENTS if clients is None else clients, behave, **options)
    return train(job, session, MemoryStore() if store is None else store, run="r"), session


def by(**words: str):
    """A script: client to word, or `client_round` or `client_round_attempt` to word, for training tasks."""

    def behave(task) -> str:
        names = (task.client, f"{task.client}_{task.round}", f"{task.client}_{task.round}_{task.attempt}")
        found = [words[name] for name in names if name in words] if task.kind == "train" else []
        return found[-1] if found else "reply"

    return behave


ALL = Fixed(5, quorum=2, deadline_s=9.0)


# -- who is counted, and why not


def test_an_undisturbed_run_counts_everybody_asked() -> None:
    outcome, session = run(job())
    assert [(record.asked, record.counted, dict(record.dropped)) for record in outcome.records] == [(3, 3, {})] * 3
    assert outcome.checkpoint.round == 3
    assert not outcome.stopped
    assert [len({task.client for task in session.published if task.round == n}) for n in range(3)] == [3, 3, 3]
    assert {task.key for task in session.retired} == {task.key for task in session.published}


def test_drop_outs_are_named_with_their_reasons() -> None:
    outcome, _ = run(job(sampling=ALL, rounds=1), by(a="gone", b="silent", c="nan"))
    record = outcome.records[0]
    assert record.counted == 2
    assert record.dropped["a"] == "gone by script"
    assert record.dropped["b"] == "no answer in time"
    assert record.dropped["c"] == "its update was rejected: NaN or infinity in 'metric/loss'"


def test_a_round_without_its_drop_outs_equals_one_that_never_asked_them() -> None:
    found, _ = run(job(sampling=ALL, rounds=1), by(a="gone", b="silent"))
    plain, _ = run(job(cohort=3, rounds=1), clients={name: CLIENTS[name] for name in "cde"})
    assert found.checkpoint.state == plain.checkpoint.state


def test_duplicates_late_and_foreign_answers_are_counted_and_never_added() -> None:
    plain, _ = run(job(sampling=ALL), by(e_0="silent"))
    found, _ = run(job(sampling=ALL), by(a="twice", b="foreign", e_0="late"))
    assert found.checkpoint.state == plain.checkpoint.state
    assert found.records[0].late == 2  # a's second, b's foreign
    assert found.records[1].late == 3  # and e's, of the round before


def test_over_selection_takes_the_first_and_drops_the_rest() -> None:
    outcome, session = run(job(sampling=Fixed(3, over_select=0.5), rounds=1))
    assert (outcome.records[0].asked, outcome.records[0].counted) == (5, 3)
    assert len(session.messages) == 3
    assert outcome.records[0].dropped == {"d": "no answer in time", "e": "no answer in time"}


def test_a_void_attempt_changes_nothing_and_the_next_one_counts() -> None:
    def behave(task) -> str:
        return "gone" if (task.round, task.attempt) == (1, 0) and task.position > 0 else "reply"

    sampling = Fixed(3, quorum=3, deadline_s=1.0)
    outcome, session = run(job(sampling=sampling, algorithm=Remembering(WORK)), behave)
    assert [record.attempt for record in outcome.records] == [0, 1, 0]
    assert {task.attempt for task in session.published if task.round == 1} == {0, 1}


def test_a_run_of_void_attempts_ends_with_a_remedy_and_the_last_state() -> None:
    store = MemoryStore()
    with pytest.raises(
        TrainingFailed,
        match=r"round 1 was void 4 times, .* of .*a: gone by script.*: lower the quorum, or lengthen the deadline",
    ):
        run(job(cohort=5, attempts=4), by(a_1="gone"), store=store)
    assert store.load().round == 1


def test_a_client_whose_work_fails_ends_the_run_by_name() -> None:
    with pytest.raises(
        TrainingFailed,
        match=r"round 0: b: fail by script.*Mend what failed and run the same command again, or set a quorum",
    ) as failed:
        run(job(cohort=5), by(b="fail"))
    assert isinstance(failed.value.__cause__, ValueError)


def test_a_client_whose_work_fails_is_dropped_where_a_quorum_allows_it() -> None:
    outcome, _ = run(job(sampling=ALL), by(b="fail"))
    assert all(record.dropped == {"b": "fail by script"} for record in outcome.records)


def test_a_nan_update_without_quorum_ends_the_run_and_leaves_the_state() -> None:
    store = MemoryStore()
    with pytest.raises(TrainingFailed, match=r"c: its update was rejected: NaN or infinity"):
        run(job(cohort=5), by(c_1="nan"), store=store)
    assert store.load().round == 1


def test_an_operators_stop_keeps_the_last_committed_round() -> None:
    outcome, session = run(job(cohort=5), by(d_2="stop"))
    assert outcome.stopped
    assert (outcome.checkpoint.round, len(outcome.records)) == (2, 2)
    assert {task.key for task in session.retired} == {task.key for task in session.published}


def test_a_job_with_faults_asks_nobody() -> None:
    session = FakeSession(job(cohort=9), CLIENTS)
    with pytest.raises(JobError, match=r"cohort=9 > 5 clients: lower cohort or add clients"):
        train(session.job, session, MemoryStore(), run="r")
    assert session.published == []


# -- Poisson sampling


def test_poisson_counts_its_whole_sample_also_beyond_the_expected_size() -> None:
    outcome, _ = run(job(sampling=Poisson(probability=0.5), rounds=12, pipeline=Pipeline([UniformMean()], Sum())))
    assert all(record.counted == record.asked for record in outcome.records)
    assert max(record.counted for record in outcome.records) > 2.5


def test_poisson_that_draws_nobody_is_a_round_like_any_other() -> None:
    found = job(sampling=Poisson(probability=0.1), rounds=12, pipeline=Pipeline([UniformMean(), Noisy()], Sum()))
    store = MemoryStore()
    outcome, _ = run(found, store=store)
    empty = [record for record in outcome.records if record.asked == 0]
    assert empty
    assert {record.counted for record in empty} == {0}
    assert len(store.charges()) == 12  # nobody's round is noised and charged as well


# -- buffered, asynchronous rounds


ASYNC = {"algorithm": Stale(WORK), "pipeline": Pipeline([UniformMean()], Sum())}


def test_an_asynchronous_round_closes_with_the_quorum_and_keeps_the_others_flying() -> None:
    outcome, session = run(job(sampling=Fixed(4, quorum=2, max_staleness=3), rounds=4, **ASYNC))
    assert [record.counted for record in outcome.records] == [2] * 4
    assert [record.asked for record in outcome.records] == [4] * 4
    assert len({task.key for task in session.published}) == len(session.published) == 4 + 3 * 2
    assert all(record.dropped == {} for record in outcome.records)


def test_a_stale_update_is_discounted_by_its_age() -> None:
    clients = {name: Dataset(x=[0.0], y=[1.0]) for name in "ab"}  # b moves by 0.1 (1 - b) at each answer

    def behave(task) -> str:
        return "slow:2" if task.client == "b" else "reply"

    found = job(
        sampling=Fixed(2, quorum=1, max_staleness=3),
        rounds=3,
        model=Line(),
        **{**ASYNC, "algorithm": Stale(LocalWork(lr=0.1, steps=1))},
    )
    outcome, session = run(found, behave, clients)
    # Round 0 and 1 are a's: 0.1, then 0.19. Round 2 is a's or b's, whoever answers first: b, published first, from
    # version 0 and two versions old: 0.19 + 0.1 · 0.25.
    assert outcome.checkpoint.state["model/b"] == pytest.approx([0.19 + 0.025])
    assert [task.client for task in session.published] == ["a", "b", "a", "a"]


def test_a_task_older_than_max_staleness_is_given_up_and_its_answer_only_counted_as_late() -> None:
    def behave(task) -> str:
        return "slow:4" if (task.client, task.round) == ("e", 0) else "reply"

    outcome, session = run(job(sampling=Fixed(5, quorum=2, max_staleness=2), rounds=7, **ASYNC), behave)
    reasons = [record.dropped.get("e") for record in outcome.records]
    assert "its model was more than max_staleness=2 versions old" in reasons
    first = next(task for task in session.published if task.client == "e")
    assert first in session.retired
    assert sum(record.late for record in outcome.records) == 1


def test_training_answers_that_come_during_an_evaluation_wait_for_their_round() -> None:
    found = job(sampling=Fixed(4, quorum=2, max_staleness=3), rounds=5, evaluation=Evaluation(workers=3), **ASYNC)
    outcome, _ = run(found)
    assert [record.counted for record in outcome.records] == [2] * 5
    assert all(record.workers["loss"] > 0 for record in outcome.records)
    assert sum(record.late for record in outcome.records) == 0


# -- crashes


def evaluated(**settings: Any) -> Job:
    return job(
        algorithm=Remembering(WORK), model=Line(given=(("b", "private"),)), rounds=4,
        evaluation=Evaluation(workers=3, best="loss"), **settings,
    )  # fmt: skip


def test_killed_at_any_commit_the_run_ends_with_the_same_bits() -> None:
    plain, _ = run(evaluated(), store=CrashingStore())
    for at in range(1, 5):
        for after in (False, True):
            store, memories = CrashingStore(at, after), MemoryMemories()
            with pytest.raises(Crash):
                run(evaluated(), store=store, memories=memories)
            store.at = 0
            found, _ = run(evaluated(), store=store, memories=memories)
            assert found == plain, (at, after)


@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_killed_between_any_two_answers_the_run_ends_with_the_same_bits(kind: str) -> None:
    # Above all in an evaluation: workers were already asked with the memory of a round that was never committed.
    plain, _ = run(evaluated(), store=CrashingStore())
    for n in range(12):
        store, memories, at = CrashingStore(), MemoryMemories(), iter(range(100))

        def behave(task, at=at, n=n) -> str:
            return "crash" if task.kind == kind and next(at) == n else "reply"

        with pytest.raises(Crash):
            run(evaluated(), behave, store=store, memories=memories)
        found, _ = run(evaluated(), store=store, memories=memories)
        assert found == plain, n


def test_a_finished_run_is_not_run_again_and_a_longer_one_goes_on() -> None:
    store = MemoryStore()
    run(job(rounds=2), store=store)
    again, session = run(job(rounds=2), store=store)
    assert (again.checkpoint.round, session.published) == (2, [])
    longer, _ = run(job(rounds=4), store=store)
    assert longer.checkpoint == run(job(rounds=4))[0].checkpoint


def test_a_job_that_changed_under_its_state_is_refused() -> None:
    store = MemoryStore()
    run(job(), store=store)
    with pytest.raises(
        StateMismatch, match=r"run r was begun by another job \(fingerprint \w{12}, this one is \w{12}\): give the job"
    ):
        run(job(seed=5), store=store)
    assert store.load().round == 3


# -- charges


NOISY = {"pipeline": Pipeline([UniformMean(), Noisy()], Sum())}


def test_a_release_is_charged_before_it_is_opened_and_stays_charged() -> None:
    store = CrashingStore(at=3, after=True)  # charge, commit, charge †
    with pytest.raises(Crash):
        run(job(**NOISY), store=store)
    assert store.log == ["charge", "commit", "charge"]
    store.at = 0
    outcome, _ = run(job(**NOISY), store=store)
    # The attempt whose total may have been opened is void and stays; the next one has a number, so a noise, of its own.
    assert [(entry.round, entry.attempt) for entry in store.charges()] == [(0, 0), (1, 0), (1, 1), (2, 0)]
    assert outcome.checkpoint.ledger.entries == tuple(store.charges())
    assert [record.attempt for record in outcome.records] == [0, 1, 0]


def test_a_crash_before_the_charge_charges_nothing() -> None:
    store = CrashingStore(at=3)
    with pytest.raises(Crash):
        run(job(**NOISY), store=store)
    store.at = 0
    outcome, _ = run(job(**NOISY), store=store)
    assert [(entry.round, entry.attempt) for entry in store.charges()] == [(0, 0), (1, 0), (2, 0)]
    assert outcome.checkpoint.ledger.entries == tuple(store.charges())


def test_a_void_attempt_before_the_total_charges_nothing() -> None:
    sampling, store = Fixed(5, quorum=4, deadline_s=1.0), MemoryStore()
    run(job(sampling=sampling, **NOISY), by(a_1_0="gone", b_1_0="gone"), store=store)
    assert [(entry.round, entry.attempt) for entry in store.charges()] == [(0, 0), (1, 1), (2, 0)]


def test_a_sample_that_claims_amplification_does_not_follow_from_the_job() -> None:
    cohorts = set()
    for _ in range(8):
        _, session = run(job(rounds=3, **NOISY))
        cohorts.add(tuple(task.client for task in session.published))
    assert len(cohorts) > 1


# -- evaluation


def test_the_model_is_evaluated_on_the_servers_data_every_n_rounds_and_at_the_end() -> None:
    asked = []

    def central(model, params):
        asked.append(params)
        return {"accuracy": (1, 4), "size": 7}

    how = Evaluation(data=points(9, 30), central=central, every=2)
    outcome, _ = run(job(rounds=5, evaluation=how))
    assert [bool(record.central) for record in outcome.records] == [False, True, False, True, True]
    assert outcome.records[1].central.keys() == {"loss", "accuracy", "size"}
    assert (outcome.records[1].central["accuracy"], outcome.records[1].central["size"]) == (0.25, 7.0)
    assert len(asked) == 3
    assert outcome.records[-1].central["loss"] < outcome.records[1].central["loss"]


def test_the_servers_data_is_loaded_once() -> None:
    loads = []

    def loader() -> Dataset:
        loads.append(1)
        return points(9, 30)

    run(job(evaluation=Evaluation(data=loader)))
    assert len(loads) == 1


def test_workers_evaluate_their_own_data_through_the_same_reducer() -> None:
    outcome, session = run(job(evaluation=Evaluation(workers=4)))
    evaluations = [task for task in session.published if task.kind == "evaluate"]
    assert len(evaluations) == 12
    assert [task.version for task in evaluations[::4]] == [1, 2, 3]  # of the model after the round
    params, total, count = outcome.checkpoint.state.part("model"), 0.0, 0.0
    for task in evaluations[-4:]:
        top, bottom = Line().evaluate(params, CLIENTS[task.client])["loss"]
        total, count = total + top, count + bottom
    assert outcome.records[-1].workers["loss"] == pytest.approx(total / count)


def test_clients_own_metrics_are_recorded_only_where_they_are_asked_for() -> None:
    outcome, session = run(job(evaluation=Evaluation(workers=4, each=True)))
    params, last = outcome.checkpoint.state.part("model"), outcome.records[-1]
    asked = [task.client for task in session.published if task.kind == "evaluate"][-4:]
    assert sorted(last.each) == sorted(asked)
    for client in asked:
        top, bottom = Line().evaluate(params, CLIENTS[client])["loss"]
        assert last.each[client]["loss"] == pytest.approx(top / bottom)
    assert run(job(evaluation=Evaluation(workers=4)))[0].records[-1].each == {}
    with pytest.raises(JobError, match="each=True needs evaluation on workers and a reducer that sees each"):
        job(evaluation=Evaluation(each=True)).check()


def test_a_sample_of_clients_own_metrics_is_uniform_and_no_larger_than_asked_for() -> None:
    kept = dict.fromkeys(CLIENTS, 0)
    for seed in range(300):
        outcome, _ = run(job(rounds=1, seed=seed, evaluation=Evaluation(workers=5, each=2)))
        last = outcome.records[-1].each
        assert len(last) == 2
        for name in last:
            kept[name] += 1
    # 600 of 5: each 120 times, with a standard deviation of √(300·0.4·0.6) = 8.5
    assert all(abs(count - 120) < 4.5 * 8.5 for count in kept.values()), kept
    everybody = run(job(evaluation=Evaluation(workers=3, each=7)))[0].records[-1].each
    assert len(everybody) == 3


def test_an_evaluation_that_fails_is_noted_and_the_round_counts() -> None:
    def behave(task) -> str:
        return "gone" if task.kind == "evaluate" and task.version == 1 else "reply"

    outcome, _ = run(job(evaluation=Evaluation(workers=2)), behave)
    assert outcome.records[0].workers == {}
    assert "gone by script" in outcome.records[0].dropped["evaluation"]
    assert outcome.records[1].workers["loss"] > 0
    assert outcome.checkpoint.round == 3


def test_a_quorum_larger_than_the_evaluation_does_not_void_it() -> None:
    outcome, _ = run(job(sampling=Fixed(5, quorum=4), evaluation=Evaluation(workers=2)))
    assert all(record.workers for record in outcome.records)


@pytest.mark.parametrize(("maximise", "best"), [(False, 2), (True, 3)])
def test_the_best_model_is_kept(maximise: bool, best: int) -> None:
    seen = iter([0.5, 0.2, 0.9, 0.4])
    store = CrashingStore()
    how = Evaluation(central=lambda model, params: {"score": next(seen)}, best="score", maximise=maximise)
    outcome, _ = run(job(rounds=4, evaluation=how), store=store)
    kept: Checkpoint = store.best()
    assert kept.round == best
    assert outcome.checkpoint.best == (best, 0.9 if maximise else 0.2)
    assert kept.state == run(job(rounds=best))[0].checkpoint.state


def test_a_metric_that_is_nan_is_never_the_best() -> None:
    store = MemoryStore()
    run(job(evaluation=Evaluation(central=lambda model, params: {"score": float("nan")}, best="score")), store=store)
    assert store.best() is None


# -- roles, populations, downwards


def test_a_private_tensor_never_travels_and_is_remembered_by_its_worker() -> None:
    outcome, session = run(
        job(model=Line(given=(("b", "private"),)), cohort=5, evaluation=Evaluation(data=points(1, 9), workers=2))
    )
    travelled = {name for message in session.messages + session.downs for name in message}
    assert not any(name.endswith("/b") for name in travelled)
    assert "model/b" not in outcome.checkpoint.state
    assert outcome.checkpoint.memories == dict.fromkeys("abcde", "2.0")
    assert outcome.records[-1].central["loss"] > 0


def test_a_frozen_tensor_is_named_by_its_hash_and_not_in_the_messages() -> None:
    outcome, session = run(job(model=Line(given=(("b", "frozen"),))))
    assert not any(name.endswith("/b") for message in session.messages + session.downs for name in message)
    assert {len(task.frozen) for task in session.published} == {64}
    assert "model/b" not in outcome.checkpoint.state


def test_a_population_may_change_between_rounds() -> None:
    clients = {name: CLIENTS[name] for name in "abc"}
    session = FakeSession(job(rounds=4), clients)

    def observe(record: Record) -> None:
        if record.round == 0:
            clients.update(CLIENTS)
        elif record.round == 2:
            for name in "abcd":
                del clients[name]

    outcome = train(session.job, session, MemoryStore(), run="r", observe=observe)
    assert [record.asked for record in outcome.records] == [3, 3, 3, 1]
    assert [task.population for task in session.published][-1] == 1


def test_memory_moves_on_only_with_the_counted_task() -> None:
    # a answers round 1 too late; its visits are 1 (round 0), 2 (round 2), and so on: round 1's training is forgotten.
    found = job(
        algorithm=Remembering(WORK),
        sampling=Fixed(5, quorum=4, deadline_s=1.0),
        pipeline=Pipeline([UniformMean()], Sum()),
    )
    outcome, _ = run(found, by(a_1="late"))
    assert outcome.checkpoint.state["visits/n"] == pytest.approx([(2 + 4 * 3) / 5])
    assert outcome.checkpoint.memories["a"] == "2.0"


def test_the_observer_sees_each_committed_record_in_order() -> None:
    seen: list[Record] = []
    session = FakeSession(job(), CLIENTS)
    outcome = train(session.job, session, MemoryStore(), run="r", observe=seen.append)
    assert tuple(seen) == outcome.records
    assert [Record.from_json(record.to_json()) for record in seen] == seen


def test_a_metric_that_is_no_number_becomes_null_in_json() -> None:
    record = Record(round=0, attempt=0, asked=1, counted=1, train={"loss": float("inf")})
    assert record.to_json()["train"] == {"loss": None}


# -- queries


def ask(behave=lambda task: "reply", **settings: Any) -> dict[str, float]:
    found = job(
        query=lambda data: {"age": (float(len(data)) * 10, len(data))},
        answers={"age": 120.0},
        max_examples=50,
        **settings,
    )
    session = FakeSession(found, CLIENTS, behave)
    return query(found, session, MemoryStore(), run="r")


def test_a_query_asks_everybody_once_and_averages() -> None:
    assert ask() == {"age": pytest.approx(10.0)}


def test_a_query_without_all_its_answers_names_who_failed() -> None:
    with pytest.raises(
        TrainingFailed, match=r"the query was not answered: b: gone by script.*Mend what failed, or set a quorum"
    ):
        ask(lambda task: "gone" if task.client == "b" else "reply")
    assert ask(lambda task: "gone" if task.client == "b" else "reply", sampling=ALL) == {"age": pytest.approx(10.0)}


def test_a_query_that_is_stopped_says_so() -> None:
    with pytest.raises(TrainingFailed, match=r"the query was not answered: the test wants it"):
        ask(lambda task: "stop")
