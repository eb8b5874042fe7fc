"""Compression under differential privacy: no client moves the decoded total by more than the noise is measured by."""

import math

import numpy as np
import pytest

from hansa.core.algorithm import Algorithm
from hansa.core.errors import JobError
from hansa.core.model import LocalWork
from hansa.core.pipeline import Arrived, Bound, Closed, Decoding, Part, Pipeline, Setting, Signal, Stage
from hansa.core.sampling import Fixed, Stream
from hansa.core.tensors import EMPTY, Tensors, stack
from hansa.stages.clip import Clip
from hansa.stages.dither import Dither
from hansa.stages.eden import Eden
from hansa.stages.lowrank import LowRank
from hansa.stages.mask import RandomMask
from hansa.stages.mean import UniformMean
from hansa.stages.noise import Gaussian
from hansa.stages.pack import Pack
from hansa.stages.powersgd import PowerSGD
from hansa.stages.quantise import Quantise
from hansa.stages.rotate import Rotate
from hansa.stages.sign import MajorityVote, Sign
from hansa.stages.sum import Sum
from hansa.stages.ternary import Ternary
from hansa.stages.topk import TopK

SETTING = Setting(sampling=Fixed(2), algorithm=Algorithm(LocalWork(lr=1.0, epochs=1)), population=20)
PROTECTED: list[tuple[list[Stage], float]] = [  # with the most that it may cost in noise
    ([Rotate()], 1.01),
    ([Rotate(transform="fourier")], 1.01),
    ([Rotate(clip=2.0)], 1.01),
    ([Rotate(), Quantise(16)], 1.01),
    ([Rotate(clip=2.0), Quantise(2)], 2.01),
    ([Rotate(clip=3.0), Quantise(8)], 1.03),
    ([Rotate(clip=2.5), RandomMask(0.25), Quantise(2), Pack()], 5.01),
    ([RandomMask(0.25)], 4.01),
    ([RandomMask(0.25, shared=False)], 4.01),
    ([RandomMask(0.25, shared=False), Quantise(8)], 4.5),
    ([RandomMask(0.25, scaled=False)], 1.01),
    ([LowRank(4)], 5.01),
    ([LowRank(4), Rotate(clip=3.0), Quantise(8), Pack()], 5.2),
    ([Eden(1)], 1.47),
    ([Eden(2)], 1.13),
    ([Eden(4)], 1.02),
    ([Dither(1)], 1.6),
    ([Dither(4)], 1.02),
    ([Ternary()], math.sqrt(200) + 0.1),
    ([Ternary(shared=True), Pack()], math.sqrt(200) + 0.1),
    ([Sign(error_feedback=False)], 1.01),
    ([Rotate(), TopK(0.1, error_feedback=False)], 1.01),
]
every_pipeline = pytest.mark.parametrize(("stages", "cost"), PROTECTED, ids=lambda p: str(p).replace(" ", ""))


class Up(np.random.Generator):
    """Rounds everything away from zero: the worst that chance, or a client who knows the seed, can do."""

    def random(self, *size, **kwargs):  # type: ignore[no-untyped-def]
        return np.full(size[0], 1 - 2.0**-24, kwargs.get("dtype", np.float64))


def bound(*stages: Stage) -> Bound:
    value = Part(shapes={"w": ((20, 10), "float32")})
    weight = Part(shapes={"weight": ((1,), "float64")}, bits=64)
    return Pipeline(stages, Sum()).bind(Signal({"value": value, "weight": weight}), SETTING)


def declared(b: Bound) -> float:
    """What the second pass of binding gives to a stage in front of all these."""
    assert b.reducer is not None
    sensitivity = b.reducer.settle(b.signal, SETTING)
    for step in reversed(b.steps):
        sensitivity = step.settle(sensitivity)
    return sensitivity["value"]


def total(b: Bound, messages: list[Tensors]) -> np.ndarray:
    assert b.reducer is not None
    server = b.reducer.server(["a", "b"])
    next(server)
    for message in messages:
        server.send(Arrived("a", 0, b.decode_one(message, b.start())))
    with pytest.raises(StopIteration) as end:
        server.send(Closed(0, ()))
    count = len(messages)
    decoding = Decoding(count, float(count), lambda label: Stream(b"s", label))
    return np.asarray(b.decode_total(end.value.value, b.start(), decoding)[0]["value/w"], np.float64) * count


@every_pipeline
def test_no_client_whatever_its_rounding_moves_the_total_by_more_than_declared(
    stages: list[Stage], cost: float
) -> None:
    b = bound(Clip(1.0), UniformMean(), *stages)
    rng = np.random.default_rng(0)
    worst = 0.0
    for x in (
        np.full(200, 1.0), np.eye(1, 200).reshape(-1), np.linspace(0, 1, 200) ** 9, rng.standard_normal(200),
        np.full(200, 1e-9), np.where(np.arange(200) == 5, 1.0, 1e-7), np.outer(np.ones(20), np.eye(1, 10)).reshape(-1),
    ):  # fmt: skip
        value = (x / max(1.0, np.linalg.norm(x))).reshape(20, 10).astype("float32")
        contribution = Tensors({"value/w": value, "weight/weight": np.ones(1)})
        for attacker in (Up(np.random.PCG64(0)), *(np.random.default_rng(seed) for seed in range(12))):
            message, _ = b.encode(stack([contribution]), b.start(), EMPTY, [attacker])
            message = message.map(lambda a: np.array(a[0]))
            moved = total(b, [message, message]) - total(b, [message])
            worst = max(worst, float(np.linalg.norm(moved)))
    assert 0.4 < worst <= declared(b) * (1 + 1e-6)
    assert declared(b) <= cost, "and no more than that"


@every_pipeline
def test_noise_in_front_of_compression_is_measured_by_it(stages: list[Stage], cost: float) -> None:
    behind = bound(Clip(1.0), UniformMean(), *stages)
    event = bound(Clip(1.0), UniformMean(), Gaussian(1.0), *stages).events()[0]
    assert event.noise_multiplier == 1.0
    assert event.detail.endswith(f"on sensitivity {declared(behind):g}")


@pytest.mark.parametrize("stage", [RandomMask(0.25), LowRank(4), PowerSGD(2, error_feedback=False), Rotate(clip=2.0)])
def test_noise_may_stand_behind_what_is_linear(stage: Stage) -> None:
    event = bound(Clip(1.0), UniformMean(), stage, Gaussian(1.0), Quantise(16)).events()[0]
    assert event.noise_multiplier == 1.0


@pytest.mark.parametrize(
    "stage", [PowerSGD(2), PowerSGD(2, error_feedback=False), MajorityVote(0.1), Sign(), TopK(0.1)], ids=repr
)
def test_noise_in_front_of_what_has_no_bound_is_refused(stage: Stage) -> None:
    with pytest.raises(JobError, match="cannot protect 'value'"):
        bound(Clip(1.0), UniformMean(), Gaussian(1.0), stage)


@pytest.mark.parametrize("stage", [Eden(2), Dither(2), Ternary(), Ternary(shared=True), MajorityVote(0.1)], ids=repr)
def test_noise_behind_what_rounds_is_refused(stage: Stage) -> None:
    with pytest.raises(JobError, match="put Gaussian before"):
        bound(Clip(1.0), UniformMean(), stage, Gaussian(1.0))
