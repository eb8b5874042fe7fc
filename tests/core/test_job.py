"""Jobs: every fault at once, one fingerprint everywhere, and overrides that are checked."""

import functools
import json
import math
import subprocess
import sys
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from hansa.core.algorithm import Algorithm
from hansa.core.data import Dataset
from hansa.core.errors import ConfigError, JobError
from hansa.core.job import Evaluation, Job, canonical
from hansa.core.ledger import Event
from hansa.core.model import LocalWork
from hansa.core.pipeline import Pipeline, Stage, Step
from hansa.core.sampling import Fixed, Poisson
from hansa.core.tensors import Tensors
from hansa.runtimes.forms import named, rebuild, worker_form
from hansa.runtimes.overrides import override
from hansa.stages.mean import UniformMean, WeightedMean
from hansa.stages.sum import Sum
from hansa.testing.models import Line

WORK = LocalWork(lr=0.1, epochs=1)
PIPELINE = Pipeline([WeightedMean()], Sum())


@dataclass(frozen=True)
class Averaging(Algorithm):
    """The defaults."""


@dataclass(frozen=True)
class Remembering(Algorithm):
    keeps_memory = True


@dataclass(frozen=True)
class Noting(Stage):
    """Releases, remembers, and cannot be undone alone."""

    remembers = True
    alone = False

    def bind(self, signal, setting):
        class Bound(Step):
            def events(self):
                return (Event(mechanism="gaussian", noise_multiplier=1.0),)

        return Bound(signal)


def job(**settings: Any) -> Job:
    base: dict[str, Any] = {
        "model": Line(), "algorithm": Averaging(WORK), "pipeline": PIPELINE,
        **({} if "sampling" in settings or "cohort" in settings else {"cohort": 3}),
    }  # fmt: skip
    return Job(**{**base, **settings})


def mean_age(data: Any) -> dict[str, tuple[float, float]]:
    return {"age": (1.0, float(len(data)))}


@dataclass(frozen=True)
class Holder:
    """Something that a job may hold, with anything in it."""

    thing: Any = None
    quick: int = field(default=0, metadata={"speed": True})


# -- faults


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cohort": 3, "sampling": Fixed(4)}, r"cohort=3 and sampling=Fixed.*: give one of them"),
        ({"sampling": None}, r"who takes part in a round\? Give cohort=n, or sampling=Fixed"),
        ({"rounds": -1}, r"rounds=-1: it may not be negative"),
        ({"attempts": 0}, r"attempts=0: at least one try"),
        ({"max_examples": 0}, r"max_examples=0: it is above 0"),
        ({"cohort": 0}, r"cohort=0: at least one client"),
    ],
)
def test_what_contradicts_itself_at_sight_is_refused_when_built(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        job(**settings)


@pytest.mark.parametrize(("build", "message"), [
    (lambda: Evaluation(every=0), r"every=0: rounds between evaluations are at least 1"),
    (lambda: Evaluation(workers=-1), r"workers=-1: 0 for no evaluation on workers, or how many"),
])  # fmt: skip
def test_evaluations_that_cannot_be_are_refused(build, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build()


NOISY = Pipeline([UniformMean(), Noting()], Sum())
LATE = Fixed(3, quorum=2, max_staleness=1)
FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"cohort": 30}, "cohort=30 > 12 clients: lower cohort or add clients."),
    ({"sampling": Fixed(3, quorum=4)}, "quorum=4 > cohort=3: lower quorum"),
    ({"pipeline": Pipeline([WeightedMean()])}, "the pipeline has no reducer: end it with one"),
    (
        {"pipeline": Pipeline([], Sum())},
        "no mean, so the model would move by a sum: add UniformMean() or WeightedMean()",
    ),
    ({"pipeline": Pipeline([UniformMean(), WeightedMean()], Sum())}, "keep one mean in the pipeline"),
    ({"pipeline": NOISY, "evaluation": Evaluation(workers=1)}, "evaluation on workers releases exact metrics"),
    ({"pipeline": NOISY, "model": Line(given=(("b", "buffer"),))}, "released without noise: make them FROZEN"),
    ({"pipeline": NOISY, "sampling": LATE}, "Noting keeps memory at the worker"),
    (
        {"down": Pipeline([UniformMean()])},
        "UniformMean cannot be undone by one worker on its own: leave it out of `down`",
    ),
    ({"down": Pipeline([], Sum())}, "the pipeline downwards has a reducer, but nothing is added up"),
    ({"query": mean_age}, "query without answers: name its metrics and their bounds"),
    ({"algorithm": Remembering(WORK), "sampling": LATE}, "Remembering keeps memory"),
    ({"evaluation": Evaluation(best="loss")}, "best='loss' but nothing is evaluated"),
    ({"evaluation": Evaluation(workers=1, best="acuracy")}, "best='acuracy' is no metric of the model: choose from"),
    ({"model": Line(given=(("c", "frozen"),))}, "roles for ['c'], which the model does not have: it has ['b', 'w']"),
    ({"model": Line(given=(("b", "frozen"), ("w", "private")))}, "the model has no trainable tensor"),
    ({"epsilon": 1.0}, "epsilon=1.0, delta=None: a privacy budget needs both"),
    ({"epsilon": 1.0, "delta": 1e-5}, "epsilon=1.0 but no stage adds noise: add Gaussian(1.0)"),
]


@pytest.mark.parametrize(("settings", "message"), FAULTS, ids=[message[:30] for _, message in FAULTS])
def test_check_names_each_fault_with_its_remedy(settings: dict, message: str) -> None:
    with pytest.raises(JobError) as error:
        job(**settings).check(12)
    assert any(message in fault for fault in error.value.faults), error.value.faults


def test_check_lists_every_fault_at_once() -> None:
    broken = job(
        cohort=30,
        evaluation=Evaluation(best="loss"),
        epsilon=1.0,
        query=mean_age,
        pipeline=Pipeline([UniformMean(), UniformMean()]),
    )
    with pytest.raises(JobError, match=r"the job has 6 faults:\n  - cohort=30") as error:
        broken.check(12)
    assert len(error.value.faults) == 6


def test_a_sound_job_passes_with_and_without_a_population() -> None:
    job().check()
    job().check(3)
    job(sampling=Poisson(probability=0.1)).check()


# -- canonical form and fingerprint


def test_a_job_is_rebuilt_from_its_canonical_form() -> None:
    whole = job(
        sampling=Fixed(3, quorum=2, deadline_s=1.5), down=Pipeline(), seed=7, max_examples=math.inf, query=mean_age,
        answers={"age": 120.0}, model=Line(given=(("b", "frozen"),)),
    )  # fmt: skip
    again = rebuild(json.loads(json.dumps(worker_form(whole))))
    assert again == whole
    assert again.fingerprint() == whole.fingerprint()
    assert again.model.given == (("b", "frozen"),)


def test_the_workers_form_leaves_out_what_only_the_server_uses() -> None:
    form = worker_form(job(evaluation=Evaluation(central=lambda model, params: {})))
    assert "evaluation" not in form["fields"]
    assert form["fields"]["name"] == job().name, "what changes only speed goes along"


def test_the_fingerprint_changes_with_the_mathematics() -> None:
    changed = [
        job(seed=1), job(cohort=4), job(max_examples=9.0), job(model=Line(inputs=2)), job(algorithm=Remembering(WORK)),
        job(algorithm=Averaging(WORK.with_(lr=0.2))), job(algorithm=Averaging(WORK, server_lr=0.5)),
        job(pipeline=Pipeline([UniformMean()], Sum())), job(query=mean_age, answers={"age": 1.0}),
        job(sampling=Fixed(3, deadline_s=1.0)), job(sampling=Poisson(probability=0.5)),
    ]  # fmt: skip
    prints = {found.fingerprint() for found in [job(), *changed]}
    assert len(prints) == len(changed) + 1
    assert job().fingerprint("another archive") not in prints


def test_the_fingerprint_does_not_change_with_name_attempts_rounds_or_spelling() -> None:
    same = [job(name="other"), job(attempts=3), job(rounds=99), job(sampling=Fixed(3))]
    assert {found.fingerprint() for found in same} == {job().fingerprint()}


def test_the_fingerprint_is_the_same_in_another_process() -> None:
    code = (
        "from tests.core.test_job import *\nfrom hansa.algorithms import FedAvg\n"
        "print(job(algorithm=FedAvg(WORK), answers={'b': 1.0, 'a': 2.0}).fingerprint())"
    )
    from hansa.algorithms import FedAvg

    here = job(algorithm=FedAvg(WORK), answers={"a": 2.0, "b": 1.0}).fingerprint()
    for seed in ("1", "2"):
        there = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True,
            env={"PYTHONPATH": ":".join(sys.path), "PYTHONHASHSEED": seed},
        )  # fmt: skip
        assert there.stdout.strip() == here


class Counter:
    """Callable, with a state that no name says."""

    def __call__(self, data: Any) -> None: ...

    def method(self, data: Any) -> None: ...


ALONE = "which lives in this process alone: define it at the top of a module"


@pytest.mark.parametrize(
    ("thing", "message"),
    [
        (lambda data: {}, rf"job\.query is '.*<lambda>', {ALONE}"),
        (Counter(), rf"job\.query is '.*Counter\.<instance>', {ALONE}"),
        (Counter().method, rf"job\.query is '.*Counter\.<instance>', {ALONE}"),
        (
            functools.partial(mean_age, np.ones(2)),
            r"is an array, which .* cannot carry.*: give a function that loads it",
        ),
    ],
    ids=["lambda", "instance", "method", "array"],
)
def test_what_lives_in_one_process_is_refused_with_its_place_and_a_remedy(thing: Any, message: str) -> None:
    local = job(query=thing, answers={"age": 1.0})
    local.fingerprint()  # the local runtime takes it
    with pytest.raises(JobError, match=message):
        worker_form(local)
    with pytest.raises(ConfigError, match=r"cannot be imported here|is an array"):
        rebuild(canonical(local)["fields"]["query"])


@pytest.mark.parametrize(
    "thing",
    [None, True, 3, 0.1, math.inf, "text", (1, (2.5, "a")), {"b": 1, "a": (1.0,)}, mean_age, Line, WORK, Tensors()],
    ids=lambda thing: getattr(thing, "__name__", None) or str(thing),
)  # fmt: skip
def test_the_canonical_form_keeps_values_exactly(thing: Any) -> None:
    assert rebuild(json.loads(json.dumps(canonical(thing)))) == thing


def test_partials_are_rebuilt_with_their_arguments() -> None:
    again = rebuild(json.loads(json.dumps(canonical(functools.partial(Line, inputs=4)))))
    assert again() == Line(inputs=4)


def test_arrays_are_told_apart_by_content_and_speed_is_left_out() -> None:
    prints = [
        canonical(Holder(thing))
        for thing in (np.zeros(2), np.zeros((2, 1)), np.ones(2), Dataset(x=[1]), Dataset(x=[2]))
    ]
    assert len({json.dumps(form) for form in prints}) == 5
    assert canonical(Holder(1, quick=3)) == canonical(Holder(1, quick=4))


def test_what_has_no_canonical_form_is_named() -> None:
    with pytest.raises(ConfigError, match=r"a job cannot hold a bytes: use numbers, strings, frozen dataclasses"):
        canonical(Holder(b"raw"))
    with pytest.raises(ConfigError, match=r"'nowhere\.at:all' cannot be imported here"):
        named("nowhere.at:all")
    with pytest.raises(ConfigError, match=r"'json:absent' cannot be imported here"):
        named("json:absent")


# -- overrides


def test_overrides_reach_every_depth() -> None:
    found = override(
        job(),
        {"rounds": "50", "algorithm.work.lr": "1", "algorithm.work.batch_size": "8", "name": "trial", "cohort": "5"},
    )
    assert found == job(rounds=50, algorithm=Averaging(WORK.with_(lr=1.0, batch_size=8)), name="trial", cohort=5)
    assert found.who == Fixed(5)
    assert type(found.algorithm.work.lr) is float


def test_overrides_of_the_sampling_replace_the_cohort() -> None:
    found = override(job(), {"sampling.deadline_s": "2.5"})
    assert found.who == Fixed(3, deadline_s=2.5)
    assert override(found, {"seed": "4"}).who == found.who


def test_a_tuple_is_given_as_a_list() -> None:
    assert override(job(), {"algorithm.work.betas": "[0.5, 0.6]"}).algorithm.work.betas == (0.5, 0.6)


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("round", "5", r"unknown key 'round': did you mean 'rounds'\? Job has .*rounds.*seed"),
        ("algorithm.lr", "5", r"unknown key 'algorithm\.lr': Averaging has server_lr, work"),
        ("seed.low", "5", r"unknown key 'seed\.low': int has no fields"),
        ("rounds", "many", r"rounds=many: a value of type int is expected, as in 1"),
        ("rounds", "1.5", r"rounds=1\.5: a value of type int is expected"),
        ("rounds", "true", r"rounds=true: a value of type int is expected"),
        ("algorithm", "FedAvg", r"algorithm=FedAvg: a value of type Averaging is expected"),
        ("cohort", "0", r"cohort=0: at least one client"),
        ("algorithm.work.batch_size", "x", r"algorithm\.work\.batch_size=x: "),
        ("algorithm.work.lr", "-1", r"lr=-1\.0: a learning rate"),
    ],
)
def test_an_override_that_cannot_be_names_key_value_and_what_is_expected(key: str, text: str, message: str) -> None:
    before = job()
    with pytest.raises(ConfigError, match=message):
        override(before, {key: text})
    assert before == job()


def test_a_job_is_never_changed_in_place() -> None:
    before = job()
    replace(before, sampling=None, cohort=4)
    assert before == job()
    with pytest.raises(AttributeError):
        before.rounds = 3  # type: ignore[misc]
