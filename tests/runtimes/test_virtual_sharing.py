"""Several jobs on one fleet: one task a device at a time, makespans, fairness, and each scheduler's own law."""

from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import pytest

from hansa.core.algorithm import Algorithm
from hansa.core.checkpoint import dump, open_bytes
from hansa.core.data import Clients, Dataset
from hansa.core.errors import ConfigError, TrainingFailed
from hansa.core.job import Job
from hansa.core.model import Fit, LocalWork
from hansa.core.pipeline import Pipeline
from hansa.core.sampling import Fixed, Poisson
from hansa.core.tensors import Tensors
from hansa.runtimes.virtual.bayesian import Bayesian
from hansa.runtimes.virtual.fleet import Fleet
from hansa.runtimes.virtual.genetic import Genetic
from hansa.runtimes.virtual.rlds import RLDS, SHAPES, Drawn, Scene, _backward, _forward
from hansa.runtimes.virtual.schedulers import FedCS, Greedy, Random, Scheduler, Trial, View
from hansa.runtimes.virtual.sharing import Planned, Shared, SharedWorld
from hansa.runtimes.virtual.world import Errand
from hansa.stages.mean import UniformMean
from hansa.stages.sum import Sum
from tests.runtimes.jobs import Regression

SCHEDULERS = [
    *(Random(), Greedy(), FedCS(deadline_s=5.0), FedCS(deadline_s=9.0, shared_link=True), Bayesian(), Genetic()),
    RLDS(practice=40),
]
names = [repr(scheduler) for scheduler in SCHEDULERS]


@dataclass(frozen=True)
class Ragged(Clients):
    count: int = 40

    @property
    def ids(self) -> list[str]:
        return [f"{i:03}" for i in range(self.count)]

    def open(self, client: str) -> Dataset:
        rng = np.random.default_rng(int(client))
        size = int(rng.integers(10, 50))
        return Dataset(x=rng.normal(size=(size, 5)).astype("float32"), y=rng.normal(size=size).astype("float32"))


def job(epochs: int, rounds: int = 8, **changes: Any) -> Job:
    made = Job(
        model=Regression(),
        algorithm=Algorithm(LocalWork(lr=0.01, epochs=epochs, batch_size=10)),
        pipeline=Pipeline([UniformMean()], Sum()),
        cohort=6,
        rounds=rounds,
        seed=epochs,
    )
    return replace(made, **changes)


def three(rounds: int = 8) -> dict[str, Job]:
    return {"light": job(1, rounds), "middle": job(2, rounds), "heavy": job(5, rounds)}


def fleet(seed: int) -> Fleet:
    return Fleet.lognormal(40, sigma=1.0, seed=seed).with_(jitter=0.2)


def test_greedy_bayesian_genetic_and_rlds_finish_three_jobs_before_random() -> None:
    """Row A4.9: makespans over fixed seeds, with a generous margin."""
    spans: dict[str, list[float]] = {}
    for seed in (1, 2, 3):
        for scheduler in (Random(), Greedy(), Bayesian(), Genetic(), RLDS()):
            result = Shared(three(), Ragged(), fleet(seed), scheduler, seed=seed).run()
            spans.setdefault(type(scheduler).__name__, []).append(result.makespan_s)
    for at in range(3):
        assert spans["Greedy"][at] < 0.7 * spans["Random"][at]
        assert spans["Bayesian"][at] < 0.7 * spans["Random"][at]
        assert spans["Genetic"][at] < 0.7 * spans["Random"][at]
        assert spans["RLDS"][at] < 0.7 * spans["Random"][at]


def test_bayesian_pays_for_fairness_with_time() -> None:
    """β moves the schedule from greedy's end to random's."""
    results = {
        beta: Shared(three(12), Ragged(), fleet(1), Bayesian(fairness=beta), seed=1).run() for beta in (0.0, 5.0)
    }
    greedy = Shared(three(12), Ragged(), fleet(1), Greedy(), seed=1).run()
    unfair = {beta: sum(result.unfairness.values()) for beta, result in results.items()}
    assert results[0.0].makespan_s < results[5.0].makespan_s
    assert unfair[5.0] < 0.5 * unfair[0.0] and unfair[5.0] < 0.5 * sum(greedy.unfairness.values())


@pytest.mark.parametrize("scheduler", SCHEDULERS, ids=names)
def test_the_same_seed_gives_the_same_schedule_and_models(scheduler: Scheduler) -> None:
    one, two = (Shared(three(4), Ragged(), fleet(3), scheduler, seed=5).run() for _ in range(2))
    assert one.finished_s == two.finished_s and one.unfairness == two.unfairness
    for name, history in one.histories.items():
        assert history.checkpoint.state == two.histories[name].checkpoint.state
        assert [r.to_json() for r in history.rounds] == [r.to_json() for r in two.histories[name].rounds]


@pytest.mark.parametrize("scheduler", SCHEDULERS, ids=names)
def test_no_device_ever_does_two_things_at_once(scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch) -> None:
    errands: list[Errand] = []
    occupy = SharedWorld.occupy

    def noting(self: SharedWorld, errand: Errand) -> None:
        assert errand.begin >= self.now
        errands.append(errand)
        occupy(self, errand)

    monkeypatch.setattr(SharedWorld, "occupy", noting)
    jobs = {**three(4), "over": job(3, 4, cohort=None, sampling=Fixed(6, quorum=3, over_select=0.5))}
    Shared(jobs, Ragged(), fleet(2).with_(dropout=0.02), scheduler, seed=1).run()
    for device in {errand.device for errand in errands}:
        mine = sorted((errand.begin, errand.end) for errand in errands if errand.device == device)
        assert all(earlier[1] <= later[0] for earlier, later in pairwise(mine))


def test_jobs_wait_for_devices_when_there_are_too_few() -> None:
    few = Shared(three(3), Ragged(7), Fleet.homogeneous(7), Random()).run()
    many = Shared(three(3), Ragged(30), Fleet.homogeneous(30), Random()).run()
    assert few.makespan_s > 1.5 * many.makespan_s
    assert all(len(history.rounds) == 3 for history in few.histories.values())


def test_a_shared_job_learns_what_its_history_says() -> None:
    result = Shared({"one": job(3, 20)}, Ragged(), fleet(1), Random()).run()
    history = result.histories["one"]
    assert history.rounds[-1].train["loss"] < history.rounds[0].train["loss"]
    assert result.makespan_s == pytest.approx(history.seconds) == result.finished_s["one"]
    assert history.tally.published == 20 * 6


def test_jobs_may_have_data_of_their_own_on_the_same_devices() -> None:
    data = {"light": Ragged(), "middle": Ragged(), "heavy": Ragged()}
    own = Shared(three(3), data, fleet(1), Greedy()).run()
    assert own.finished_s == Shared(three(3), Ragged(), fleet(1), Greedy()).run().finished_s


@dataclass(frozen=True)
class Raises(Regression):
    def fit(self, params: Tensors, data: Any, work: LocalWork, rng: np.random.Generator) -> Fit:
        raise ZeroDivisionError("no such luck")


def test_an_error_of_one_job_ends_all_and_is_raised() -> None:
    with pytest.raises(TrainingFailed, match="no such luck"):
        Shared({**three(50), "bad": job(1, model=Raises())}, Ragged(), fleet(1), Random()).run()


# ── schedulers by themselves ─────────────────────────────────────────────────────────────────────────────────────────


def view(wanted: int = 4, count: int = 30, seed: int = 0) -> View:
    rng = np.random.default_rng(seed)
    compute, upload = rng.lognormal(size=count), rng.lognormal(-1, size=count)
    free = np.flatnonzero(rng.random(count) < 0.7)
    return View(wanted, free, 0.1 + compute + upload, compute, upload, rng.integers(0, 5, count))


@pytest.mark.parametrize("scheduler", SCHEDULERS, ids=names)
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("wanted", [1, 4, 25])
def test_a_plan_holds_different_free_devices(scheduler: Scheduler, seed: int, wanted: int) -> None:
    seen = view(wanted, seed=seed)
    plan = scheduler.pick(seen, np.random.default_rng(seed))
    assert 1 <= len(plan) <= wanted and len(set(plan.tolist())) == len(plan) and np.isin(plan, seen.free).all()


def test_greedy_takes_the_fastest() -> None:
    seen = view()
    fastest = sorted(seen.free, key=lambda device: seen.seconds[device])[:4]
    assert Greedy().pick(seen, np.random.default_rng(0)).tolist() == fastest


def test_fedcs_keeps_its_deadline_and_takes_all_that_can() -> None:
    seen = view(wanted=10)
    plan = FedCS(deadline_s=2.0, candidates=100).pick(seen, np.random.default_rng(0))
    able = seen.free[seen.seconds[seen.free] <= 2.0]
    assert seen.seconds[plan].max() <= 2.0 and len(plan) == min(10, len(able))


def test_fedcs_on_a_shared_link_is_algorithm_3_by_hand() -> None:
    # Uploads wait for one another: compute 1, 1, 4 and upload 2, 3, 1, no download.
    compute, upload = np.array([1.0, 1.0, 4.0]), np.array([2.0, 3.0, 1.0])
    seen = View(3, np.arange(3), compute + upload, compute, upload, np.zeros(3, int))
    # k=0 costs 3, k=1 costs 4, k=2 costs 5: take 0, Θ=3. Then k=1: 3, k=2: 1+1=2: take 2, Θ=5. Then k=1: Θ=8.
    picked = {
        deadline: set(FedCS(deadline_s=deadline, shared_link=True).pick(seen, np.random.default_rng(0)).tolist())
        for deadline in (3.5, 5.5, 8.5)
    }
    assert picked == {3.5: {0}, 5.5: {0, 2}, 8.5: {0, 1, 2}}


def test_fedcs_asks_the_fastest_when_nobody_can_make_it() -> None:
    seen = view()
    plan = FedCS(deadline_s=1e-6, candidates=100).pick(seen, np.random.default_rng(0))
    assert plan.tolist() == [seen.free[np.argmin(seen.seconds[seen.free])]]


def test_genetic_finds_the_best_plan_of_a_fleet_small_enough_to_try_them_all() -> None:
    rng = np.random.default_rng(3)
    seconds, counts = rng.exponential(10.0, 9), rng.integers(0, 4, 9)
    view = View(3, np.arange(9), seconds, seconds, seconds, counts)

    def cost(plan: Any) -> float:
        return float(seconds[list(plan)].max())

    found = Genetic(fairness=0.0).pick(view, np.random.default_rng(0))
    assert cost(found) == min(cost(plan) for plan in combinations(range(9), 3))
    fair = Genetic(fairness=1e6).pick(view, np.random.default_rng(0))
    assert view.fairness(fair) == min(view.fairness(np.array(plan)) for plan in combinations(range(9), 3))


# ── the one that learns ───────────────────────────────────────────────────────────────────────────────────────────────


def costs(agent: Scheduler, rounds: int, seed: int = 0) -> list[float]:
    """What an agent's plans take on thirty devices, half of them free, if all goes as expected."""
    rng = np.random.default_rng(seed)
    seconds, counts, taken = rng.lognormal(size=30), np.zeros(30, np.int64), []
    for _ in range(rounds):
        free = np.sort(rng.choice(30, 15, replace=False))
        plan = agent.pick(View(4, free, seconds, seconds, seconds, counts.copy()), rng)
        counts[plan] += 1
        taken.append(float(seconds[plan].max()))
        agent.observe(Trial(np.sort(plan), float(counts.var()), taken[-1]))
    return taken


def test_practice_is_worth_more_than_half_of_a_round() -> None:
    for seed in range(3):
        raw, practised = (np.mean(costs(RLDS(practice=n).for_job(), 60, seed)) for n in (0, 300))
        assert practised < 0.6 * raw


def test_rounds_as_they_went_teach_what_practice_does_not() -> None:
    """Without any practice, and with rounds of one plan each."""
    for seed in range(3):
        taken = costs(RLDS(fairness=0.0, practice=0, lr=0.3).for_job(), 400, seed)
        assert np.mean(taken[-200:]) < 0.7 * np.mean(costs(Random(), 400, seed))


def test_rlds_pays_for_fairness_with_time() -> None:
    results = {beta: Shared(three(12), Ragged(), fleet(1), RLDS(fairness=beta), seed=1).run() for beta in (0.0, 50.0)}
    unfair = {beta: sum(result.unfairness.values()) for beta, result in results.items()}
    assert results[0.0].makespan_s < results[50.0].makespan_s
    assert unfair[50.0] < 0.5 * unfair[0.0]


def test_what_is_learnt_goes_on_to_the_same_bits_from_its_bytes() -> None:
    stayed = RLDS(practice=30).for_job()
    costs(stayed, 10)
    stored = dump(stayed.learnt())
    back = RLDS(practice=30).for_job(open_bytes(stored)[0])
    assert costs(stayed, 10, seed=1) == costs(back, 10, seed=1)
    assert dump(stayed.learnt()) == dump(back.learnt()) != stored


def test_a_second_run_goes_on_from_what_the_first_has_learnt() -> None:
    first = Shared(three(3), Ragged(), fleet(1), RLDS(practice=30), seed=1).run()
    assert first.learnt["heavy"]["steps"] == 33
    more = Shared(three(3), Ragged(), fleet(2), RLDS(practice=30), seed=1, learnt=first.learnt).run()
    assert more.learnt["heavy"]["steps"] == 36  # three rounds, and no practice
    assert not len(Shared(three(1), Ragged(), fleet(1), Greedy()).run().learnt["heavy"])


def test_slopes_are_those_of_the_probability_of_the_policys_picks() -> None:
    rng = np.random.default_rng(0)
    scores, places = rng.normal(size=6), np.array([[4, 1, 3], [0, 5, 2], [2, 3, 1]])
    drawn = Drawn(Scene(view(3, 6), np.arange(6)), places, np.array([3, 2, 0]))

    def log_p(scores: np.ndarray, row: int) -> float:
        left, total = list(range(6)), 0.0
        for at in places[row, : drawn.chosen[row]]:
            total += scores[at] - np.log(np.exp(scores[left]).sum())
            left.remove(at)
        return float(total)

    for row, slope in enumerate(drawn.slopes(scores)):
        near = [(log_p(scores + h, row) - log_p(scores - h, row)) / 2e-6 for h in 1e-6 * np.eye(6)]
        assert slope == pytest.approx(near, abs=1e-8)
    assert np.isfinite(drawn.slopes(1e4 * scores)).all()


def test_the_network_s_gradient_is_its_difference_quotient() -> None:
    rng = np.random.default_rng(0)
    weights, features, slope = rng.normal(size=112), rng.normal(size=(7, 5)), rng.normal(size=7)
    hidden = _forward(weights, features)[1]
    near = [
        (_forward(weights + h, features)[0] - _forward(weights - h, features)[0]) @ slope for h in 1e-6 * np.eye(112)
    ]
    assert _backward(weights, features, hidden, slope) == pytest.approx(np.array(near) / 2e-6, abs=1e-6)


def test_costs_are_beside_those_of_random_plans() -> None:
    seen = view(wanted=4)
    scene, rng = Scene(seen, seen.free), np.random.default_rng(0)
    plans = np.argsort(rng.random((20_000, len(seen.free))), axis=1)[:, :4]
    assert scene.slowest(plans).mean() == pytest.approx(1, rel=0.03)
    assert scene.unfairness(plans).mean() == pytest.approx(1, rel=0.03)
    exact = [seen.fairness(seen.free[plan]) for plan in plans[:5]]
    assert scene.unfairness(plans[:5]) / scene.unfairness(plans[:1]) == pytest.approx(np.array(exact) / exact[0])


def test_random_picks_each_free_device_as_often() -> None:
    seen, rng = view(), np.random.default_rng(0)
    counts = np.bincount(np.concatenate([Random().pick(seen, rng) for _ in range(2000)]), minlength=30)
    expected = 2000 * 4 / len(seen.free)
    assert (abs(counts[seen.free] - expected) < 5 * np.sqrt(expected)).all()


# ── bad input ────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Greedless(Scheduler):
    def pick(self, view: View, rng: np.random.Generator) -> np.ndarray:
        return view.free[:0]


def test_bad_settings_say_what_to_give() -> None:
    some = Fleet.homogeneous(40)
    with pytest.raises(ConfigError, match="no jobs: give at least one, by name"):
        Shared({}, Ragged(), some, Random())
    with pytest.raises(ConfigError, match=r"job 'a' samples with Poisson: use cohort=n, or Fixed"):
        Shared({"a": job(1, cohort=None, sampling=Poisson(0.1))}, Ragged(), some, Random())
    with pytest.raises(ConfigError, match=r"no clients for \['a'\]"):
        Shared({"a": job(1)}, {"b": Ragged()}, some, Random())
    with pytest.raises(ConfigError, match="the jobs' clients have different ids"):
        Shared({"a": job(1), "b": job(2)}, {"a": Ragged(9), "b": Ragged(8)}, some, Random())
    with pytest.raises(ConfigError, match="40 clients, but the fleet has 5 devices"):
        Shared({"a": job(1)}, Ragged(), Fleet.homogeneous(5), Random())
    with pytest.raises(ConfigError, match=r"Greedless picked \[\]: 1 to 6 different ones of the free are needed"):
        Shared({"a": job(1)}, Ragged(), some, Greedless()).run()
    with pytest.raises(ConfigError, match="Planned has no scheduler"):
        Planned(3).draw(["a", "b", "c"], None)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="deadline_s=0: a number of seconds above 0"):
        FedCS(0)
    with pytest.raises(ConfigError, match="fairness=-1: a finite price, at least 0"):
        Bayesian(-1)
    with pytest.raises(ConfigError, match="practice=-1: a number of rounds, at least 0"):
        RLDS(practice=-1)
    with pytest.raises(ConfigError, match="explore=1: a probability below 1"):
        RLDS(explore=1)
    with pytest.raises(ConfigError, match="learnt: Greedy does not learn; leave it out, or take RLDS"):
        Shared({"a": job(1)}, Ragged(), some, Greedy(), learnt={"a": Tensors({"w": [1.0]})})
    with pytest.raises(ConfigError, match=r"learnt for \['b'\]: the jobs are a"):
        Shared({"a": job(1)}, Ragged(), some, RLDS(), learnt={"b": Tensors({"w": [1.0]})})
    with pytest.raises(ConfigError, match=r"learnt={'w': \[1\]}: no policy of RLDS"):
        Shared({"a": job(1)}, Ragged(), some, RLDS(), learnt={"a": Tensors({"w": [1.0]})})
    with pytest.raises(ConfigError, match="learnt holds numbers that are not finite"):
        RLDS().for_job(Tensors({name: np.full(shape, np.nan) for name, shape in SHAPES.items()}))
