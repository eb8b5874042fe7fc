"""Each algorithm's first steps, computed by hand; and what holds for all of them."""

import random

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import hansa.algorithms
from hansa.algorithms import (
    ALGORITHMS,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedBuff,
    FedProx,
    FedSGD,
    FedYogi,
    QFedAvg,
    Scaffold,
)
from hansa.core.algorithm import Aggregate, Algorithm
from hansa.core.data import Clients, Dataset
from hansa.core.errors import ConfigError, JobError, TensorMismatch, UpdateRejected
from hansa.core.job import Job
from hansa.core.model import Fit, LocalWork, value
from hansa.core.pipeline import Pipeline
from hansa.core.sampling import Fixed
from hansa.core.tensors import Tensors
from hansa.core.train import train as train_rounds
from hansa.runtimes.local import train
from hansa.runtimes.memory import MemoryStore
from hansa.stages.mean import UniformMean, WeightedMean
from hansa.stages.sum import Sum
from hansa.testing.fake_runtime import FakeSession
from hansa.testing.models import Line, points

RNG = np.random.default_rng(0)
STEP = LocalWork(lr=0.1, steps=1)
WEIGHTED, UNIFORM = Pipeline([WeightedMean()], Sum()), Pipeline([UniformMean()], Sum())


def settings_of(kind: type[Algorithm]) -> Algorithm:
    return kind(STEP, mu=0.1) if kind is FedProx else kind(STEP)


def mean(*numbers: float) -> Aggregate:
    return Aggregate(mean=Tensors({"w": np.array(numbers)}), weight=1.0, count=1, population=2)


def one(algorithm: Algorithm, *means: float) -> tuple[Tensors, list[float]]:
    """The state after these means, from w = 1, and w after each."""
    state, seen = algorithm.init(Tensors({"w": np.array([1.0])})), []
    for number in means:
        state = algorithm.apply(state, mean(number))
        seen.append(float(state["model/w"][0]))
    return state, seen


def run(algorithm: Algorithm, clients: dict[str, Dataset], pipeline: Pipeline, rounds: int = 1, **settings) -> Tensors:
    job = Job(
        model=settings.pop("model", Line()), algorithm=algorithm, pipeline=pipeline, rounds=rounds,
        **({"cohort": len(clients)} | settings),
    )  # fmt: skip
    return train(job, Clients.of(clients)).params


def full_gradient(data: Dataset, params: Tensors) -> dict[str, np.ndarray]:
    errors = data["x"] * params["w"] + params["b"] - data["y"]
    return {"w": np.array([(errors * data["x"]).mean()]), "b": np.array([errors.mean()])}


# -- FedAvg and FedSGD


def test_fedavg_weights_by_examples_and_uniform_mean_does_not() -> None:
    # One step of lr 0.1 from 0 on points (x, y) = (1, 1) and (1, 2): gradient of w is -y, so w becomes 0.1 and 0.2.
    # 10 examples against 90: 0.1 · 0.1 + 0.9 · 0.2 = 0.19; counted the same: 0.15.
    clients = {"a": Dataset(x=np.ones(10), y=np.ones(10)), "b": Dataset(x=np.ones(90), y=2 * np.ones(90))}
    assert run(FedAvg(STEP), clients, WEIGHTED)["w"] == pytest.approx([0.19], abs=1e-12)
    assert run(FedAvg(STEP), clients, UNIFORM)["w"] == pytest.approx([0.15], abs=1e-12)


def test_server_lr_scales_the_mean_but_not_the_buffers() -> None:
    state = Tensors({"model/w": np.array([1.0]), "model/seen": np.array([1.0])})
    aggregate = Aggregate(
        mean=Tensors({"w": [2.0]}), buffers=Tensors({"seen": [4.0]}), weight=1.0, count=1, population=1
    )
    after = FedAvg(STEP, server_lr=0.5).apply(state, aggregate)
    assert (after["model/w"].tolist(), after["model/seen"].tolist()) == ([2.0], [5.0])


@pytest.mark.parametrize(
    "algorithm", [FedSGD(server_lr=0.3), FedSGD(LocalWork(lr=0.3, steps=1)), FedAvg(LocalWork(lr=0.3, steps=1))]
)
def test_fedsgd_and_one_step_of_fedavg_equal_the_pooled_gradient(algorithm: Algorithm) -> None:
    clients = {"a": points(1, 7), "b": points(2, 30), "c": points(3, 13)}
    pooled = Dataset(**{name: np.concatenate([data[name] for data in clients.values()]) for name in ("x", "y")})
    expected = Line().init(0)
    for _ in range(5):
        gradient = full_gradient(pooled, expected)
        expected = expected.map(np.array).updated({name: expected[name] - 0.3 * gradient[name] for name in expected})
    found = run(algorithm, clients, WEIGHTED, rounds=5)
    for name in expected:
        assert found[name] == pytest.approx(expected[name], abs=1e-6)


@pytest.mark.parametrize("work", [LocalWork(lr=1.0, steps=2), LocalWork(lr=1.0, steps=1, batch_size=5)])
def test_fedsgd_refuses_more_or_less_than_one_full_gradient(work: LocalWork) -> None:
    with pytest.raises(ConfigError, match=r"FedSGD takes one gradient over all examples.*use FedAvg"):
        FedSGD(work)


# -- FedProx


def test_fedprox_without_pull_is_fedavg_bit_for_bit() -> None:
    clients, work = {"a": points(1, 20), "b": points(2, 30)}, LocalWork(lr=0.1, epochs=3, batch_size=7)
    assert run(FedProx(work, mu=0.0), clients, WEIGHTED, 3) == run(FedAvg(work), clients, WEIGHTED, 3)


def test_fedprox_pulls_towards_what_was_sent() -> None:
    # One point (1, 1), b frozen, lr 0.5, two steps from w = 0. First: gradient −1, pull 0: w = 0.5.
    # Second: gradient −0.5, pull 2 · (0.5 − 0) = 1: w = 0.5 − 0.5 · 0.5 = 0.25. (FedAvg would reach 0.75.)
    clients = {"a": Dataset(x=[1.0], y=[1.0])}
    model = Line(given=(("b", "frozen"),))
    found = run(FedProx(LocalWork(lr=0.5, steps=2), mu=2.0), clients, WEIGHTED, model=model)
    assert found["w"].tolist() == [0.25]


def test_fedprox_counts_a_stragglers_partial_work() -> None:
    # The straggler's fit stops after the first of two steps: w = 0.5 as above, and it is the whole mean.
    clients = {"a": Dataset(x=[1.0], y=[1.0])}
    model = Line(given=(("b", "frozen"),), most_steps=1)
    assert run(FedProx(LocalWork(lr=0.5, steps=2), mu=2.0), clients, WEIGHTED, model=model)["w"].tolist() == [0.5]


def test_fedprox_wants_its_pull_once_and_not_negative() -> None:
    with pytest.raises(ConfigError, match=r"mu=-1.*0 or more"):
        FedProx(STEP, mu=-1)
    with pytest.raises(ConfigError, match=r"mu=0\.1 and work\.proximal=0\.2: give the pull once"):
        FedProx(STEP.with_(proximal=0.2), mu=0.1)


# -- FedOpt: τ = 0.1 (v starts at 0.01), η = 0.5, Δ = 0.3 and then −0.4, from w = 1


def test_fedadagrad_by_hand() -> None:
    # v = 0.01 + 0.09 = 0.10, w = 1 + 0.5 · 0.3 / (√0.10 + 0.1)
    # v = 0.10 + 0.16 = 0.26, w −= 0.5 · 0.4 / (√0.26 + 0.1)
    first = 1 + 0.5 * 0.3 / (0.10**0.5 + 0.1)
    _, seen = one(FedAdagrad(STEP, server_lr=0.5, tau=0.1), 0.3, -0.4)
    assert seen == pytest.approx([first, first - 0.5 * 0.4 / (0.26**0.5 + 0.1)], abs=1e-12)


def test_fedadam_by_hand() -> None:
    # β₁ = 0.9, β₂ = 0.8. m = 0.03, v = 0.8 · 0.01 + 0.2 · 0.09 = 0.026
    # m = 0.9 · 0.03 − 0.1 · 0.4 = −0.013, v = 0.8 · 0.026 + 0.2 · 0.16 = 0.0528
    first = 1 + 0.5 * 0.03 / (0.026**0.5 + 0.1)
    state, seen = one(FedAdam(STEP, server_lr=0.5, tau=0.1, beta2=0.8), 0.3, -0.4)
    assert seen == pytest.approx([first, first - 0.5 * 0.013 / (0.0528**0.5 + 0.1)], abs=1e-12)
    assert float(state["momentum/w"][0]) == pytest.approx(-0.013)
    assert float(state["second/w"][0]) == pytest.approx(0.0528)


def test_fedyogi_by_hand() -> None:
    # v = 0.01 − 0.2 · 0.09 · sign(0.01 − 0.09) = 0.028; v = 0.028 − 0.2 · 0.16 · sign(0.028 − 0.16) = 0.06
    first = 1 + 0.5 * 0.03 / (0.028**0.5 + 0.1)
    state, seen = one(FedYogi(STEP, server_lr=0.5, tau=0.1, beta2=0.8), 0.3, -0.4)
    assert seen == pytest.approx([first, first - 0.5 * 0.013 / (0.06**0.5 + 0.1)], abs=1e-12)
    # And v falls when Δ² is smaller: 0.06 − 0.2 · 0.01 · sign(0.06 − 0.01) = 0.058.
    state = FedYogi(STEP, tau=0.1, beta2=0.8).apply(state, mean(0.1))
    assert float(state["second/w"][0]) == pytest.approx(0.058)


def test_fedavgm_by_hand() -> None:
    # β = 0.9, η = 0.5: m = 0.3, w = 1.15; m = 0.27 − 0.4 = −0.13, w = 1.085
    _, seen = one(FedAvgM(STEP, server_lr=0.5, momentum=0.9), 0.3, -0.4)
    assert seen == pytest.approx([1.15, 1.085], abs=1e-12)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: FedAdam(STEP, beta2=1.0), r"beta2=1\.0: it lies in \[0, 1\)"),
        (lambda: FedAdagrad(STEP, beta1=-0.1), r"beta1=-0\.1"),
        (lambda: FedYogi(STEP, tau=0.0), r"tau=0\.0.*above 0"),
        (lambda: FedAvgM(STEP, momentum=2.0), r"momentum=2\.0"),
        (lambda: FedBuff(STEP, exponent=-1.0), r"exponent=-1\.0.*0 or more"),
        (lambda: QFedAvg(STEP, q=-1.0), r"q=-1\.0.*0 or more"),
        (lambda: QFedAvg(STEP.with_(lr=0.0)), r"lr=0\.0 gives no smoothness.*give lipschitz"),
        (lambda: QFedAvg(STEP, lipschitz=0.0), r"lipschitz=0\.0.*above 0"),
        (lambda: Scaffold(STEP.with_(momentum=0.9)), r"momentum=0\.9.*use optimiser='sgd', momentum=0"),
        (lambda: Scaffold(STEP.with_(optimiser="adam")), r"optimiser='adam'"),
    ],
)
def test_settings_out_of_range_name_the_value_and_the_range(build, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build()


# -- SCAFFOLD


def scaffold_reference(clients, cohorts, steps, lr, server_lr):
    """Karimireddy et al., algorithm 1, option II, over plain arrays."""
    x, c = np.zeros(2), np.zeros(2)
    controls = {name: np.zeros(2) for name in clients}
    for cohort in cohorts:
        moves, changes = [], []
        for name in cohort:
            data, y = clients[name], x.copy()
            for _ in range(steps):
                errors = data["x"] * y[0] + y[1] - data["y"]
                gradient = np.array([(errors * data["x"]).mean(), errors.mean()])
                y = y - lr * (gradient - controls[name] + c)
            fresh = controls[name] - c + (x - y) / (steps * lr)
            moves.append(y - x)
            changes.append(fresh - controls[name])
            controls[name] = fresh
        x = x + server_lr * np.mean(moves, axis=0)
        c = c + len(cohort) / len(clients) * np.mean(changes, axis=0)
    return x, c


CLIENTS = {"a": points(1, 9, 1.0), "b": points(2, 9, 3.0), "c": points(3, 9, -2.0)}


def scaffold_job(**settings) -> Job:
    base = {
        "model": Line(), "algorithm": Scaffold(LocalWork(lr=0.1, steps=4), server_lr=0.8), "pipeline": UNIFORM,
        "rounds": 3, "sampling": Fixed(3, quorum=2, deadline_s=1.0),
    }  # fmt: skip
    return Job(**{**base, **settings})


def assert_equals_reference(checkpoint, cohorts) -> None:
    x, c = scaffold_reference(CLIENTS, cohorts, 4, 0.1, 0.8)
    state = checkpoint.state
    assert [state["model/w"][0], state["model/b"][0]] == pytest.approx(x, abs=1e-12)
    assert [state["control/w"][0], state["control/b"][0]] == pytest.approx(c, abs=1e-12)


def test_scaffold_equals_the_reference_when_a_client_misses_a_round() -> None:
    job = scaffold_job()
    session = FakeSession(job, CLIENTS, lambda task: "silent" if (task.client, task.round) == ("b", 1) else "reply")
    outcome = train_rounds(job, session, MemoryStore(), run="r")
    assert outcome.records[1].dropped == {"b": "no answer in time"}
    assert_equals_reference(outcome.checkpoint, ["abc", "ac", "abc"])


def test_scaffold_memory_does_not_advance_with_an_uncounted_or_void_attempt() -> None:
    # In round 1 b answers too late: its training happened, its memory was saved, and must not count. The first attempt
    # at round 2 is void since two leases run out after a has already trained.
    def behave(task) -> str:
        if (task.client, task.round) == ("b", 1):
            return "late"
        return "gone" if (task.round, task.attempt) == (2, 0) and task.client in "bc" else "reply"

    job = scaffold_job()
    outcome = train_rounds(job, FakeSession(job, CLIENTS, behave), MemoryStore(), run="r")
    assert [record.attempt for record in outcome.records] == [0, 0, 1]
    assert_equals_reference(outcome.checkpoint, ["abc", "ac", "abc"])


def test_scaffold_keeps_buffers_and_their_controls_apart() -> None:
    job = scaffold_job(model=Line(given=(("b", "buffer"),)), sampling=None, cohort=3, rounds=2)
    history = train(job, Clients.of(CLIENTS))
    assert history.checkpoint.state["control/b"].tolist() == [0.0]
    mean_of_y = np.mean([data["y"].mean() for data in CLIENTS.values()])
    assert history.params["b"] == pytest.approx([mean_of_y])


def test_scaffold_refuses_weights_and_staleness_with_a_remedy() -> None:
    with pytest.raises(JobError, match=r"Scaffold needs every client to count the same: use UniformMean\(\)"):
        scaffold_job(pipeline=WEIGHTED).check(3)
    with pytest.raises(JobError, match=r"Scaffold keeps memory at the worker.*set max_staleness=0"):
        scaffold_job(sampling=Fixed(3, quorum=2, max_staleness=1)).check(3)


def test_scaffold_refuses_a_fit_without_steps() -> None:
    down = Tensors.join(model=Line().init(0), control=Line().init(0))
    with pytest.raises(UpdateRejected, match="fit made 0 steps"):
        Scaffold(STEP).train(Line(most_steps=0), down, Tensors(), points(1, 3), RNG)


# -- FedBuff


def test_fedbuff_discounts_by_staleness_and_divides_by_the_buffer() -> None:
    # Everybody holds one point (1, y), b is frozen, lr 0.1: from w the difference is 0.1 (y − w).
    # Round 0 (w = 0): a and b (y = 1, 2) fill the buffer of 2: w = (0.1 + 0.2) / 2 = 0.15. c (y = 4) is still out.
    # Round 1: c's answer, 0.4 from version 0, counts 1/√2; a's, 0.1 (1 − 0.15) = 0.085, counts 1.
    clients = {name: Dataset(x=[1.0], y=[y]) for name, y in {"a": 1.0, "b": 2.0, "c": 4.0}.items()}
    job = Job(
        model=Line(given=(("b", "frozen"),)), algorithm=FedBuff(STEP), pipeline=UNIFORM, rounds=2,
        sampling=Fixed(3, quorum=2, max_staleness=5),
    )  # fmt: skip

    def behave(task) -> str:
        return "slow:1" if task.client == "c" else "silent" if (task.client, task.round) == ("b", 1) else "reply"

    outcome = train_rounds(job, FakeSession(job, clients, behave), MemoryStore(), run="r")
    assert [record.counted for record in outcome.records] == [2, 2]
    assert [record.asked for record in outcome.records] == [3, 3]
    expected = 0.15 + (0.4 / 2**0.5 + 0.085) / 2
    assert outcome.checkpoint.state["model/w"] == pytest.approx([expected], abs=1e-12)


def test_fedbuff_learns_in_the_local_runtime_with_fewer_answers_than_are_in_flight() -> None:
    clients = {str(i): points(i, 20) for i in range(6)}
    sampling = Fixed(5, quorum=2, max_staleness=4)
    found = run(FedBuff(LocalWork(lr=0.3, epochs=2)), clients, UNIFORM, 40, cohort=None, sampling=sampling)
    assert found["w"] == pytest.approx([2.0], abs=0.1)
    assert found["b"] == pytest.approx([1.0], abs=0.1)


def test_fedbuff_refuses_a_weighted_mean() -> None:
    with pytest.raises(JobError, match=r"FedBuff discounts stale updates over their count: use UniformMean\(\)"):
        run(FedBuff(STEP), {"a": points(1, 3)}, WEIGHTED)


# -- q-FedAvg


def test_qfedavg_with_q_0_is_fedavg_with_a_uniform_mean() -> None:
    clients, work = {"a": points(1, 10), "b": points(2, 40)}, LocalWork(lr=0.1, epochs=2, batch_size=4)
    assert run(QFedAvg(work, q=0.0), clients, UNIFORM, 4) == run(FedAvg(work), clients, UNIFORM, 4)


def test_qfedavg_by_hand() -> None:
    # One point (1, y) each, y = 1 and 2, b frozen, lr 0.1 (L = 10), from w = 0, q = 1.
    # a: F = 0.5, d = 0.1, F d = 0.05, h = 10 · 0.01 + 0.5 = 0.6
    # b: F = 2, d = 0.2, F d = 0.4, h = 10 · 0.04 + 2 = 2.4
    # w = (0.05 + 0.4) / (0.6 + 2.4) = 0.15
    clients = {"a": Dataset(x=[1.0], y=[1.0]), "b": Dataset(x=[1.0], y=[2.0])}
    found = run(QFedAvg(STEP, q=1.0), clients, UNIFORM, model=Line(given=(("b", "frozen"),)))
    assert found["w"] == pytest.approx([0.15], abs=1e-9)


def test_qfedavg_with_q_1_lowers_the_variance_of_accuracies() -> None:
    # Nine clients agree on w = 1, the tenth wants w = −1. Accuracy: the share of points predicted within 0.5.
    rng = np.random.default_rng(5)
    clients = {}
    for i in range(10):
        x = rng.normal(size=200)
        clients[str(i)] = Dataset(x=x, y=(-1.0 if i == 9 else 1.0) * x)

    def accuracies(q: float) -> list[float]:
        params = run(QFedAvg(LocalWork(lr=0.1, epochs=5), q=q), clients, UNIFORM, 60)
        return [
            float((abs(data["x"] * params["w"] + params["b"] - data["y"]) < 0.5).mean()) for data in clients.values()
        ]

    plain, fair = accuracies(0.0), accuracies(1.0)
    assert np.var(fair) < 0.8 * np.var(plain)
    assert min(fair) > min(plain)


def test_qfedavg_leaves_private_tensors_and_buffers_unscaled() -> None:
    model = Line(given=(("b", "private"),))
    update = QFedAvg(STEP, q=2.0).train(model, Tensors.join(model=model.init(0)), Tensors(), points(1, 5), RNG)
    plain = FedAvg(STEP).train(model, Tensors.join(model=model.init(0)), Tensors(), points(1, 5), RNG)
    assert update.difference["b"] == plain.difference["b"]
    assert update.difference["w"] != plain.difference["w"]


def test_qfedavg_refuses_a_model_without_a_loss() -> None:
    class Silent(Line):
        def evaluate(self, params, data):
            return {}

    with pytest.raises(UpdateRejected, match=r"loss=nan before training: q-FedAvg needs a finite metric 'loss'"):
        QFedAvg(STEP).train(Silent(), Tensors.join(model=Line().init(0)), Tensors(), points(1, 5), RNG)


# -- all of them


@pytest.mark.parametrize("kind", ALGORITHMS.values(), ids=ALGORITHMS)
def test_state_and_message_are_never_changed(kind: type[Algorithm]) -> None:
    algorithm, model = settings_of(kind), Line(given=(("b", "buffer"),))
    state = algorithm.init(model.init(0).map(lambda a: a + 1.0))
    state = Tensors({name: np.array(state[name]) for name in state})
    for name in state:
        state[name].flags.writeable = False  # any write raises
    down = algorithm.send(state)
    update = algorithm.train(model, down, Tensors(), points(1, 5), RNG)
    for _ in range(2):
        aggregate = Aggregate(
            mean=model.named(update.difference, "trainable").map(np.array), buffers=Tensors({"b": np.ones(1)}),
            side={part: tensors.map(np.array) for part, tensors in update.side.items()},
            weight=1.0, count=1, population=2,
        )  # fmt: skip
        after = algorithm.apply(state, aggregate)
        assert after.shapes == state.shapes
        assert not any(
            np.shares_memory(aggregate.mean["w"], after[name]) for name in after if not name.startswith("model/")
        )
    assert algorithm.sides(model.init(0)).keys() == update.side.keys()
    for part, tensors in algorithm.sides(model.init(0)).items():
        assert tensors.shapes == update.side[part].shapes


@pytest.mark.parametrize("kind", ALGORITHMS.values(), ids=ALGORITHMS)
def test_every_algorithm_learns_and_keeps_the_types_of_its_tensors(kind: type[Algorithm]) -> None:
    work = STEP if kind is FedSGD else LocalWork(lr=0.1, epochs=3)
    algorithm = kind(work, mu=0.1) if kind is FedProx else kind(work)
    clients = {str(i): points(i, 20) for i in range(4)}
    found = run(algorithm, clients, UNIFORM, 60)
    loss = value(Line().evaluate(found, points(9, 100)))["loss"]
    assert loss < 0.5  # of 2.5 at the start
    assert {dtype for _, dtype in found.shapes.values()} == {"float64"}


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(sorted(ALGORITHMS)), st.randoms())
def test_the_order_of_arrival_changes_no_bit(name: str, order: random.Random) -> None:
    algorithm = settings_of(ALGORITHMS[name])
    clients = {key: points(i, 5 + i) for i, key in enumerate("abcd")}
    job = Job(model=Line(), algorithm=algorithm, pipeline=UNIFORM, cohort=3, rounds=2)
    shuffled = train_rounds(job, FakeSession(job, clients, order=order), MemoryStore(), run="r")
    plain = train_rounds(job, FakeSession(job, clients), MemoryStore(), run="r")
    assert shuffled.checkpoint == plain.checkpoint


# -- by name


@pytest.mark.parametrize(
    ("spelling", "kind"), [("fedavg", FedAvg), ("fed_avg", FedAvg), ("Fed-AvgM", FedAvgM), ("SCAFFOLD", Scaffold)]
)
def test_one_call_makes_an_algorithm_by_name(spelling: str, kind: type[Algorithm]) -> None:
    assert hansa.algorithms.named(spelling, lr=0.1, epochs=2) == kind(LocalWork(lr=0.1, epochs=2))


def test_settings_of_the_algorithm_and_of_its_work_are_told_apart() -> None:
    assert hansa.algorithms.named("fedprox", work=STEP, mu=0.1) == FedProx(STEP, mu=0.1)
    # FedAvgM's own momentum is the server's; LocalWork's is reached through `work`.
    assert hansa.algorithms.named("fedavgm", lr=0.1, steps=1, momentum=0.5) == FedAvgM(STEP, momentum=0.5)
    assert hansa.algorithms.named("fedsgd", server_lr=0.2) == FedSGD(server_lr=0.2)


@pytest.mark.parametrize(
    ("names", "given", "message"),
    [
        ((), {}, r"algorithm=nothing: exactly one is needed, choose from FedAdagrad, .*Scaffold"),
        (("fedavg", "scaffold"), {}, r"algorithm=fedavg and scaffold: exactly one is needed, choose from FedAdagrad"),
        (("fedbest",), {}, r"algorithm=fedbest: it is not known, choose from FedAdagrad"),
        (("fedavg",), {"lr": 0.1, "steps": 1, "mu": 1.0}, r"mu=1\.0: FedAvg has .*server_lr"),
        (("fedavg",), {"lr": 0.1, "work": STEP}, r"work and lr: give local training once"),
        (("fedavg",), {}, r"algorithm=FedAvg: .*'work'.* Give lr, and epochs or steps"),
        (("fedavg",), {"steps": 1}, r"algorithm=FedAvg: .*'lr'"),
    ],
)
def test_unknown_names_two_names_and_unknown_settings_are_refused(names, given, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        hansa.algorithms.named(*names, **given)


def test_a_fit_that_returns_foreign_names_is_named() -> None:
    class Foreign(Line):
        def fit(self, params, data, work, rng):
            return Fit(Tensors({"v": [1.0]}), 1)

    with pytest.raises(TensorMismatch, match=r"what Foreign\.fit gave lacks \['b', 'w'\] and has the unknown \['v'\]"):
        FedAvg(STEP).train(Foreign(), Tensors.join(model=Line().init(0)), Tensors(), points(1, 3), RNG)
