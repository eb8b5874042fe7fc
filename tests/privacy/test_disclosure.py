"""Who sees what, in words that follow from the declarations."""

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
from tests.runtimes.jobs import Regression, plain

from hansa.core.job import Evaluation, Job
from hansa.core.pipeline import Pipeline, Reducer, Setting, Signal
from hansa.privacy.disclosure import who_sees_what
from hansa.stages.clip import Clip
from hansa.stages.mean import UniformMean, WeightedMean
from hansa.stages.mpc_sum import MpcSum
from hansa.stages.quantise import Quantise
from hansa.stages.secure_sum import SecureSum
from hansa.stages.sum import Sum


@dataclass(frozen=True)
class WithoutBuffers(Regression):
    """A secure sum takes no buffers."""

    def roles(self):
        return {name: role for name, role in super().roles().items() if name != "seen"}


def server(reducer: Reducer, mean: object = None, **changes: object) -> str:
    stages = [Clip(1.0), mean or UniformMean(), Quantise(bits=16)]
    made: Job = replace(plain(), model=WithoutBuffers(), pipeline=Pipeline(stages, reducer), evaluation=Evaluation())
    return who_sees_what(replace(made, **changes), 6)["the server"]


@pytest.mark.parametrize("reducer", [SecureSum(), MpcSum(helpers=("h1", "h2"))])
def test_under_a_hidden_sum_all_parts_are_named_as_sums_and_none_as_seen_alone(reducer: Reducer) -> None:
    said = server(reducer)
    assert said.startswith(
        "sums over the round's workers, and no single one, of: the update, metrics of local training"
    )
    assert "in the clear" not in said and "masked" not in said, "a message on the wire says nothing alone"
    assert f"provided that {reducer.threats[0].provided}" in said
    assert ("at least one helper does not work with it; its helpers: h1, h2" in said) == bool(reducer.helpers)


def test_helpers_are_told_apart_where_there_are_any() -> None:
    stages = [Clip(1.0), UniformMean(), Quantise(bits=16)]
    for reducer in (MpcSum(), SecureSum()):
        made = replace(plain(), model=WithoutBuffers(), pipeline=Pipeline(stages, reducer), evaluation=Evaluation())
        assert ("a helper" in who_sees_what(made, 6)) == bool(reducer.helpers)


def test_a_plain_sum_shows_each_worker_with_its_weight() -> None:
    assert server(Sum()).startswith("of each worker: the update, metrics of local training (loss)")
    job = replace(plain(), pipeline=Pipeline([WeightedMean()], Sum()), evaluation=Evaluation(workers=2))
    said = who_sees_what(job, 6)["the server"]
    assert "the weight" in said and "in rounds of evaluation, the metrics on workers' data in the same way" in said


@dataclass(frozen=True)
class HalfHidden(SecureSum):
    """A sum that sends one tensor as it is."""

    sees: ClassVar[str] = "total"

    def bind(self, signal: Signal, setting: Setting) -> Reducer | None:
        return None

    def wire(self, signal: Signal, setting: Setting) -> Signal:
        return signal.without("metric")


def test_what_travels_under_its_own_name_is_said_to_be_in_the_clear() -> None:
    assert "but of each worker, in the clear: value/seen, value/weight" in server(HalfHidden())
