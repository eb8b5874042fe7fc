"""Pipelines that mean nothing are refused while they are bound, each with what to do instead."""

import re
from typing import Any

import numpy as np
import pytest

from hansa.core.algorithm import Algorithm
from hansa.core.errors import ConfigError, JobError
from hansa.core.job import Job
from hansa.core.model import Fit, LocalWork, Metrics, Model, Role
from hansa.core.pipeline import Part, Pipeline, Reducer, Setting, Signal, Stage
from hansa.core.sampling import Fixed, Poisson, Sampling
from hansa.core.tensors import Tensors
from hansa.stages.adaptive_clip import AdaptiveClip
from hansa.stages.clip import Clip
from hansa.stages.dither import Dither
from hansa.stages.eden import Eden
from hansa.stages.lowrank import LowRank
from hansa.stages.mask import RandomMask
from hansa.stages.mean import UniformMean, WeightedMean
from hansa.stages.median import Median
from hansa.stages.noise import Gaussian
from hansa.stages.pack import Pack
from hansa.stages.powersgd import PowerSGD
from hansa.stages.quantise import Quantise
from hansa.stages.rotate import Rotate
from hansa.stages.sign import MajorityVote, Sign
from hansa.stages.sum import Sum
from hansa.stages.ternary import Ternary
from hansa.stages.topk import TopK


class Uniform(Algorithm):
    needs_uniform = True


class Discounting(Algorithm):
    def discount(self, staleness: int) -> float:
        return 1.0 / (1 + staleness)


class Hidden(Sum):
    sees = "total"


WORK = LocalWork(lr=1.0, epochs=1)
SIGNAL = Signal(
    {
        "value": Part(shapes={"w": ((4, 4), "float32")}),
        "weight": Part(shapes={"weight": ((1,), "float64")}, bits=64),
        "metric": Part(shapes={"loss": ((2,), "float64")}, bits=64),
    }
)
BUFFERS = SIGNAL.with_(buffers=Part(shapes={"mean": ((4,), "float32")}))
PLAIN = Fixed(10)
STALE = Fixed(10, quorum=5, max_staleness=3)

WRONG: list[tuple[list[Stage], Reducer, str]] = [
    ([UniformMean(), Clip(1.0)], Sum(), "put Clip first"),
    ([WeightedMean(), Clip(1.0)], Sum(), "put Clip first"),
    ([Clip(1.0), Clip(2.0), UniformMean()], Sum(), "leave one out"),
    ([UniformMean(), UniformMean()], Sum(), "keep one mean in the pipeline"),
    ([UniformMean(), WeightedMean()], Sum(), "keep one mean in the pipeline"),
    ([WeightedMean(), UniformMean()], Sum(), "keep one mean in the pipeline"),
    ([WeightedMean(), WeightedMean()], Sum(), "keep one mean in the pipeline"),
    ([WeightedMean(), AdaptiveClip(1.0)], Sum(), "put AdaptiveClip first"),
    ([UniformMean(), Gaussian(1.0)], Sum(), "put Clip before it"),
    ([Clip(1.0), Gaussian(1.0), UniformMean()], Sum(), r"put UniformMean\(\) before it"),
    ([Clip(1.0), WeightedMean(), Gaussian(1.0)], Sum(), r"put UniformMean\(\) before it"),
    ([Clip(1.0), UniformMean(), Quantise(8), Gaussian(1.0)], Sum(), "put Gaussian before Quantise and TopK"),
    ([Clip(1.0), UniformMean(), TopK(0.1), Gaussian(1.0)], Sum(), "put Gaussian before Quantise and TopK"),
    ([Clip(1.0), UniformMean(), Gaussian(1.0), TopK(0.1)], Sum(), "without error feedback"),
    ([Clip(1.0), UniformMean(), Gaussian(1.0)], Median(), r"use Sum\(\)"),
    ([UniformMean(), Quantise(8)], Sum(), "put Clip before it"),
    ([Clip(1.0), WeightedMean(), Quantise(8)], Sum(), "max_weight"),
    ([Clip(1.0), UniformMean(), TopK(0.1), Quantise(8)], Sum(), "error feedback out"),
    ([Clip(1.0), UniformMean(), Quantise(8), Quantise(4)], Sum(), "keep one Quantise"),
    ([Clip(1.0), UniformMean(), Quantise(8), TopK(0.1)], Sum(), "put TopK before Quantise"),
    ([UniformMean(), TopK(0.1), TopK(0.5)], Sum(), "keep one TopK"),
    ([TopK(0.1), UniformMean()], Sum(), "put TopK last"),
    ([UniformMean(), TopK(0.1)], Hidden(), r"leave TopK out, or use Sum\(\)"),
    ([UniformMean(), AdaptiveClip(1.0)], Sum(), "put AdaptiveClip first"),
    ([Clip(1.0), AdaptiveClip(1.0), UniformMean()], Sum(), "keep one of them"),
    ([AdaptiveClip(1.0), UniformMean(), Gaussian(1.0, count_noise=0.1)], Sum(), "raise it above"),
    ([Clip(1.0), UniformMean(), Quantise(8), Rotate()], Sum(), "put Rotate before what rounds"),
    ([Clip(1.0), UniformMean(), Quantise(8), RandomMask(0.5)], Sum(), "put RandomMask before what rounds"),
    ([UniformMean(), RandomMask(0.5, shared=False), RandomMask(0.5)], Sum(), "keep one RandomMask"),
    ([UniformMean(), Eden(2), Dither(2)], Sum(), "put Dither before what rounds"),
    ([UniformMean(), Eden(2), Quantise(8)], Sum(), "keep one Quantise"),
    ([UniformMean(), Rotate(clip=3.0)], Sum(), "put Clip before it, or leave clip out"),
    ([UniformMean(), Rotate(), Quantise(4)], Sum(), "put Clip before it"),
    ([UniformMean(), Rotate(), PowerSGD(1)], Sum(), "makes no tensor smaller"),
    ([UniformMean(), LowRank(4)], Sum(), "lower rank, or leave it out"),
    ([UniformMean(), TopK(0.5), LowRank(1)], Sum(), "put LowRank before it"),
    ([UniformMean(), Pack()], Sum(), "put Quantise or MajorityVote before it"),
    (
        [Clip(1.0), UniformMean(), TopK(0.1, error_feedback=False), Quantise(20), Pack()],
        Sum(),
        "lower the bits of Quantise",
    ),
    ([WeightedMean(), MajorityVote(0.1)], Sum(), r"put UniformMean\(\) before it"),
    ([MajorityVote(0.1), UniformMean()], Sum(), r"put UniformMean\(\) before it"),
    ([UniformMean(), TopK(0.1), MajorityVote(0.1)], Sum(), "leave one of them out"),
    ([UniformMean(), Ternary(shared=True)], Sum(), "put Clip before it"),
    ([UniformMean(), Eden(2)], Hidden(), r"leave Eden out, or use Sum\(\)"),
    ([UniformMean(), Dither(2)], Hidden(), r"leave Dither out, or use Sum\(\)"),
    ([UniformMean(), Ternary()], Hidden(), r"leave Ternary out, or use Sum\(\)"),
    ([UniformMean(), Sign()], Hidden(), r"leave Sign out, or use Sum\(\)"),
    ([UniformMean(), RandomMask(0.5, shared=False)], Hidden(), r"leave RandomMask out, or use Sum\(\)"),
    ([Clip(1.0), UniformMean(), Quantise(4), Pack()], Hidden(), r"leave Pack out, or use Sum\(\)"),
    ([WeightedMean()], Median(), r"put UniformMean\(\) in the pipeline"),
    ([Clip(1.0)], Median(), r"put UniformMean\(\) in the pipeline"),
]


def refusal(
    stages: list[Stage],
    reducer: Reducer | None,
    sampling: Sampling = PLAIN,
    algorithm: Algorithm | None = None,
    signal: Signal = SIGNAL,
) -> str:
    setting = Setting(sampling=sampling, algorithm=algorithm or Algorithm(WORK), population=10)
    with pytest.raises(JobError) as caught:
        Pipeline(stages, reducer).bind(signal, setting)
    return str(caught.value)


@pytest.mark.parametrize(("stages", "reducer", "remedy"), WRONG)
def test_wrong_composition_is_refused_with_its_remedy(stages: list[Stage], reducer: Reducer, remedy: str) -> None:
    assert re.search(remedy, refusal(stages, reducer))


@pytest.mark.parametrize(
    ("stages", "reducer", "sampling", "algorithm", "remedy"),
    [
        ([UniformMean(), TopK(0.1)], Sum(), STALE, Algorithm(WORK), "set max_staleness=0"),
        ([AdaptiveClip(1.0), UniformMean()], Sum(), STALE, Algorithm(WORK), "set max_staleness=0"),
        ([UniformMean(), Sign()], Sum(), STALE, Algorithm(WORK), "set max_staleness=0"),
        ([UniformMean(), RandomMask(0.5)], Sum(), STALE, Algorithm(WORK), "max_staleness=0, or shared=False"),
        ([UniformMean(), LowRank(1)], Sum(), STALE, Algorithm(WORK), "set max_staleness=0"),
        ([UniformMean(), PowerSGD(1, error_feedback=False)], Sum(), STALE, Algorithm(WORK), "set max_staleness=0"),
        ([UniformMean(), MajorityVote(0.1)], Sum(), STALE, Discounting(WORK), "knows no fractions of a vote"),
        ([UniformMean()], Median(), Poisson(0.5), Algorithm(WORK), "use cohort=n instead"),
        ([UniformMean()], Median(), STALE, Discounting(WORK), r"use Sum\(\)"),
        ([UniformMean()], Hidden(), STALE, Discounting(WORK), r"use Sum\(\)"),
        ([WeightedMean()], Sum(), PLAIN, Uniform(WORK), r"use UniformMean\(\) instead"),
        ([WeightedMean()], Sum(), STALE, Discounting(WORK), r"use UniformMean\(\) instead"),
    ],
)
def test_composition_that_the_job_contradicts_is_refused(
    stages: list[Stage], reducer: Reducer, sampling: Sampling, algorithm: Algorithm, remedy: str
) -> None:
    assert re.search(remedy, refusal(stages, reducer, sampling, algorithm))


@pytest.mark.parametrize(
    "stages",
    [
        [UniformMean(), Rotate()],
        [Clip(1.0), UniformMean(), Rotate(clip=3.0), RandomMask(0.5), Quantise(2)],
        [Clip(1.0), UniformMean(), Ternary(shared=True)],
        [UniformMean(), LowRank(2)],
        [UniformMean(), PowerSGD(1)],
        [UniformMean(), MajorityVote(0.1)],
    ],
    ids=repr,
)
def test_compression_that_adds_up_goes_with_a_reducer_that_sees_only_the_total(stages: list[Stage]) -> None:
    setting = Setting(sampling=PLAIN, algorithm=Algorithm(WORK), population=10)
    parts = Pipeline(stages, Hidden()).bind(SIGNAL, setting).signal.parts
    assert all(part.additive for part in parts.values())


def test_buffers_under_noise_are_refused() -> None:
    assert "make them FROZEN" in refusal([Clip(1.0), UniformMean(), Gaussian(1.0)], Sum(), signal=BUFFERS)


def test_every_fault_of_a_pipeline_is_listed_at_once() -> None:
    said = refusal([UniformMean(), Quantise(8), Gaussian(1.0)], Sum())
    assert "Quantise finds no bound" in said and "Gaussian finds no bound" in said


def test_overflow_of_the_sum_is_refused_before_any_data() -> None:
    setting = Setting(sampling=Fixed(1 << 32), algorithm=Algorithm(WORK), population=1 << 32)
    with pytest.raises(JobError, match="may overflow: lower bits"):
        Pipeline([Clip(1.0), UniformMean(), Quantise(32)], Sum()).bind(SIGNAL, setting)


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: Gaussian(0.0), "leave Gaussian out"),
        (lambda: Gaussian(float("nan")), "finite and above 0"),
        (lambda: Gaussian(1.0, count_noise=-1.0), "count_noise=-1.0"),
        (lambda: Quantise(1), "from 2"),
        (lambda: Quantise(33), "to 32"),
        (lambda: TopK(0.0), r"lies in \(0, 1\]"),
        (lambda: TopK(1.5), r"lies in \(0, 1\]"),
        (lambda: Rotate(clip=0.0), "clip=0.0"),
        (lambda: Rotate(transform="dct"), "transform='dct': choose 'hadamard' or 'fourier'"),
        (lambda: RandomMask(0.0), r"lies in \(0, 1\]"),
        (lambda: LowRank(0), "rank=0"),
        (lambda: PowerSGD(0), "rank=0"),
        (lambda: Eden(0), "from 1 to 8"),
        (lambda: Eden(9), "from 1 to 8"),
        (lambda: Dither(0.1), "from 0.5 to 8"),
        (lambda: Ternary(clip=-1.0), "clip=-1.0"),
        (lambda: Ternary(shared=True, clip=2.5), "leave clip out"),
        (lambda: MajorityVote(0.0), "step=0.0"),
        (lambda: AdaptiveClip(-1.0), "initial=-1.0"),
        (lambda: AdaptiveClip(1.0, quantile=2.0), "quantile=2.0"),
        (lambda: AdaptiveClip(1.0, learning_rate=0.0), "learning_rate=0.0"),
        (lambda: Clip(float("inf")), "finite and above 0"),
        (lambda: WeightedMean(max_weight=0.0), "above 0"),
    ],
)
def test_setting_out_of_range_is_refused_when_it_is_built(build: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        build()


class Vector(Model):
    def init(self, seed: int) -> Tensors:
        return Tensors({"w": np.full(3, 0.5, np.float32)})

    def fit(self, params: Tensors, data: Any, work: LocalWork, rng: np.random.Generator) -> Fit:
        return Fit(params, 1)

    def evaluate(self, params: Tensors, data: Any) -> Metrics:
        return {"loss": (0.0, 1.0)}

    def roles(self) -> dict[str, Role]:
        return {}


@pytest.mark.parametrize(
    ("stage", "remedy"),
    [
        (TopK(0.1), "leave it out"),
        (TopK(0.1, error_feedback=False), "use Quantise there"),
        (RandomMask(0.5), "use Quantise there"),
        (LowRank(1), "use Quantise there"),
        (PowerSGD(1, error_feedback=False), "use Quantise there"),
        (Sign(error_feedback=False), "use Quantise there"),
        (Ternary(), "use Quantise there"),
        (MajorityVote(0.1), "leave it out of `down`"),
        (AdaptiveClip(1.0), "leave it out of `down`"),
        (Gaussian(1.0), "leave it out of `down`"),
        (UniformMean(), "leave it out of `down`"),
    ],
)
def test_stage_that_a_worker_cannot_undo_is_refused_downwards(stage: Stage, remedy: str) -> None:
    job = Job(
        model=Vector(),
        algorithm=Algorithm(WORK),
        pipeline=Pipeline([UniformMean()], Sum()),
        down=Pipeline([stage]),
        cohort=2,
    )
    with pytest.raises(JobError, match=remedy):
        job.check(2)


def test_pipeline_without_a_mean_is_refused_by_the_job() -> None:
    job = Job(model=Vector(), algorithm=Algorithm(WORK), pipeline=Pipeline([Clip(1.0)], Sum()), cohort=2)
    with pytest.raises(JobError, match=r"add UniformMean\(\) or WeightedMean\(\)"):
        job.check(2)
