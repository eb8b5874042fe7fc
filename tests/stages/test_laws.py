"""The law of every stage and reducer: a whole pipeline equals its plaintext reference within its declared error."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from hansa.core import tensors
from hansa.core.algorithm import Algorithm
from hansa.core.model import LocalWork
from hansa.core.pipeline import Arrived, Bound, Closed, Decoding, Part, Pipeline, Reducer, Setting, Signal, Stage
from hansa.core.round import Round
from hansa.core.runtime import Reply, Task
from hansa.core.sampling import Fixed, Stream
from hansa.core.tensors import EMPTY, Tensors, stack
from hansa.stages.adaptive_clip import AdaptiveClip
from hansa.stages.centre import Centre
from hansa.stages.centred_clipping import CentredClipping
from hansa.stages.clip import Clip
from hansa.stages.correlated_noise import MatrixNoise, TreeNoise
from hansa.stages.dither import Dither
from hansa.stages.eden import Eden
from hansa.stages.geometric_median import GeometricMedian
from hansa.stages.laplace import Laplace
from hansa.stages.mask import RandomMask
from hansa.stages.mean import UniformMean, WeightedMean
from hansa.stages.measure import Measure
from hansa.stages.median import Median
from hansa.stages.noise import Gaussian
from hansa.stages.norm_bound import NormBound
from hansa.stages.pack import Pack
from hansa.stages.quantise import Quantise
from hansa.stages.rotate import Rotate, Rotation
from hansa.stages.sign import MajorityVote, Sign
from hansa.stages.sum import Sum
from hansa.stages.ternary import Ternary
from hansa.stages.topk import TopK
from hansa.stages.zeroing import Zeroing

SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "small": {"w": (3, 4), "b": (4,)},
    "one": {"w": (1,)},
    "scalar": {"s": (), "w": (2,)},
    "empty": {"e": (0, 3), "w": (5,)},
    "large": {"w": (70_001,), "v": (3, 11)},
}
Values = list[dict[str, np.ndarray]]


# ── plaintext references, in float64 and in one line each


def clipped(x: dict[str, np.ndarray], bound: float) -> dict[str, np.ndarray]:
    norm = np.sqrt(sum((a**2).sum() for a in x.values()))
    return {name: a * min(1.0, bound / norm) if norm else a for name, a in x.items()}


def largest(x: dict[str, np.ndarray], fraction: float) -> dict[str, np.ndarray]:
    kept = {}
    for name, a in x.items():
        k = min(a.size, max(1, int(np.ceil(a.size * fraction))))
        flat, chosen = a.reshape(-1), np.zeros(a.size)
        chosen[sorted(range(a.size), key=lambda i, flat=flat: (-abs(flat[i]), i))[:k]] = 1
        kept[name] = (flat * chosen).reshape(a.shape)
    return kept


def mean(xs: Values, weights: Sequence[float]) -> dict[str, np.ndarray]:
    return {n: sum(w * x[n] for x, w in zip(xs, weights, strict=True)) / sum(weights) for n in xs[0]}


def geometric_median(xs: Values, weights: Sequence[float]) -> dict[str, np.ndarray]:
    points = np.stack([np.concatenate([a.reshape(-1) for a in x.values()]) for x in xs])
    v = np.median(points, axis=0)
    for _ in range(200):  # Weiszfeld's iterations as they stand in books
        pulls = 1 / np.maximum(np.linalg.norm(points - v, axis=1), 1e-12)
        before, v = v, pulls @ points / pulls.sum()
        if np.linalg.norm(v - before) < 1e-9:
            break
    found, at = {}, 0
    for name, a in xs[0].items():
        found[name], at = v[at : at + a.size].reshape(a.shape), at + a.size
    return found


def as_vector(x: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([x[name].reshape(-1) for name in sorted(x)])


def as_tensors(vector: np.ndarray, like: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    found, at = {}, 0
    for name in sorted(like):
        found[name], at = vector[at : at + like[name].size].reshape(like[name].shape), at + like[name].size
    return found


def masked(vector: np.ndarray, fraction: float) -> np.ndarray:
    k = int(np.ceil(len(vector) * fraction))
    words = np.random.PCG64(Stream("mask", "value", 0, 0).seed()).random_raw(-(-len(vector) // 2))
    keys = np.stack([words & 0xFFFFFFFF, words >> 32], axis=1).reshape(-1)[: len(vector)]
    kept = np.zeros(len(vector))
    kept[np.argsort(keys, kind="stable")[:k]] = len(vector) / k
    return vector * kept


def rotated_and_cut(x: dict[str, np.ndarray], clip: float, fraction: float = 1.0) -> dict[str, np.ndarray]:
    vector = as_vector(clipped(x, 1.0))
    rotation = Rotation(len(vector), Stream("rotate", "value", 0, 0).seed())
    limit = clip / np.sqrt(len(vector))
    return as_tensors(rotation.undo(masked(np.clip(rotation.apply(vector), -limit, limit), fraction)), x)


def signs(x: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: np.where(a >= 0, 1, -1) * (np.abs(a).mean() if a.size else 0.0) for name, a in x.items()}


def median(xs: Values, weights: Sequence[float]) -> dict[str, np.ndarray]:
    return {n: np.median([x[n] for x in xs], axis=0) for n in xs[0]}


@dataclass(frozen=True)
class Case:
    stages: Sequence[Stage]
    reducer: Reducer
    reference: Callable[[Values, Sequence[float]], dict[str, np.ndarray]]
    noise: float = 0.0
    spread: bool = False  # behind a rotation: an error of every coordinate may come back in one of them

    @property
    def name(self) -> str:
        inside = [f"{type(s).__name__}{getattr(s, 'bits', '')}" for s in (*self.stages, self.reducer)]
        return "-".join(inside)


def clip_mean(xs: Values, weights: Sequence[float]) -> dict[str, np.ndarray]:
    return mean([clipped(x, 1.0) for x in xs], [1.0] * len(xs))


CASES = [
    Case([UniformMean()], Sum(), lambda xs, ws: mean(xs, [1.0] * len(xs))),
    Case([WeightedMean()], Sum(), mean),
    Case([WeightedMean(max_weight=3.0)], Sum(), lambda xs, ws: mean(xs, [min(w, 3.0) for w in ws])),
    Case([Clip(1.0), UniformMean()], Sum(), clip_mean),
    *(Case([Clip(1.0), UniformMean(), Quantise(bits)], Sum(), clip_mean) for bits in (2, 8, 9, 16, 20, 32)),
    Case(
        [Clip(1.0), WeightedMean(max_weight=3.0), Quantise(12)],
        Sum(),
        lambda xs, ws: mean([clipped(x, 1.0) for x in xs], [min(w, 3.0) for w in ws]),
    ),
    Case([AdaptiveClip(1.0), UniformMean()], Sum(), clip_mean),
    Case([AdaptiveClip(1.0), UniformMean(), Quantise(12)], Sum(), clip_mean),
    Case([Clip(1.0), UniformMean(), Gaussian(1e-7)], Sum(), clip_mean, noise=1e-6),
    Case([Clip(1.0), UniformMean(), Laplace(1e-10)], Sum(), clip_mean, noise=1e-6),
    Case([Clip(1.0), UniformMean(), MatrixNoise(1e-7, rounds=3)], Sum(), clip_mean, noise=1e-6),
    Case([Clip(1.0), UniformMean(), TreeNoise(1e-7, rounds=3), Quantise(20)], Sum(), clip_mean, noise=1e-6),
    Case([Zeroing(100.0), Clip(1.0), UniformMean()], Sum(), clip_mean),
    Case([Measure("raw"), Clip(1.0), Measure(), UniformMean(), Quantise(12)], Sum(), clip_mean),
    Case([AdaptiveClip(1.0), UniformMean(), Gaussian(1e-7), Quantise(20)], Sum(), clip_mean, noise=1e-6),
    Case([UniformMean(), TopK(0.3)], Sum(), lambda xs, ws: mean([largest(x, 0.3) for x in xs], [1.0] * len(xs))),
    Case(
        [Clip(1.0), UniformMean(), TopK(0.3, error_feedback=False), Quantise(14)],
        Sum(),
        lambda xs, ws: mean([largest(clipped(x, 1.0), 0.3) for x in xs], [1.0] * len(xs)),
    ),
    Case([UniformMean()], Median(), median),
    Case([Clip(1.0), UniformMean(), Quantise(16)], Median(), lambda xs, ws: median([clipped(x, 1.0) for x in xs], ws)),
    Case([UniformMean()], GeometricMedian(), geometric_median, noise=3e-4),
    Case([UniformMean()], CentredClipping(1e9, iterations=3), lambda xs, ws: mean(xs, [1.0] * len(xs))),
    Case([UniformMean(), Centre()], Sum(), lambda xs, ws: mean(xs, [1.0] * len(xs))),
    Case([UniformMean()], NormBound(1.0), clip_mean, noise=2e-6),
    Case([Clip(1.0), UniformMean(), Quantise(12)], NormBound(), clip_mean),
    Case([UniformMean(), Rotate()], Sum(), lambda xs, ws: mean(xs, [1.0] * len(xs))),
    Case([WeightedMean(), Rotate(seed=3)], Sum(), mean),
    Case([WeightedMean(), Rotate(transform="fourier")], Sum(), mean),
    Case([Clip(1.0), UniformMean(), Rotate(transform="fourier"), Quantise(16)], Sum(), clip_mean, spread=True),
    Case(
        [Clip(1.0), UniformMean(), Rotate(clip=2.0)],
        Sum(),
        lambda xs, ws: mean([rotated_and_cut(x, 2.0) for x in xs], [1.0] * len(xs)),
    ),
    Case([AdaptiveClip(1.0), UniformMean(), Rotate(), Quantise(16)], Sum(), clip_mean, spread=True),
    Case(
        [Clip(1.0), UniformMean(), Rotate(clip=2.5), RandomMask(0.25), Quantise(8), Pack()],
        Sum(),
        lambda xs, ws: mean([rotated_and_cut(x, 2.5, 0.25) for x in xs], [1.0] * len(xs)),
        spread=True,
    ),
    *(Case([Clip(1.0), UniformMean(), Quantise(bits), Pack()], Sum(), clip_mean) for bits in (2, 3, 7, 12, 20, 32)),
    Case(
        [UniformMean(), RandomMask(0.4)],
        Sum(),
        lambda xs, ws: mean([as_tensors(masked(as_vector(x), 0.4), x) for x in xs], [1.0] * len(xs)),
    ),
    *(Case([Clip(1.0), UniformMean(), Eden(bits)], Sum(), clip_mean) for bits in (1, 4)),
    *(Case([Clip(1.0), UniformMean(), Dither(bits)], Sum(), clip_mean) for bits in (1.5, 4)),
    Case([Clip(1.0), UniformMean(), Ternary()], Sum(), clip_mean),
    Case([Clip(1.0), UniformMean(), Ternary(shared=True), Pack()], Sum(), clip_mean),
    Case([UniformMean(), Sign()], Sum(), lambda xs, ws: mean([signs(x) for x in xs], [1.0] * len(xs))),
    Case(
        [UniformMean(), Sign(error_feedback=False)],
        Median(),
        lambda xs, ws: median([signs(x) for x in xs], ws),
    ),
    Case(
        [UniformMean(), MajorityVote(0.5)],
        Sum(),
        lambda xs, ws: {n: 0.5 * np.sign(sum(np.sign(x[n]) for x in xs)) for n in xs[0]},
    ),
    Case(
        [UniformMean(), TopK(0.3, error_feedback=False)],
        Median(),
        lambda xs, ws: median([largest(x, 0.3) for x in xs], ws),
    ),
]
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
every_shape = pytest.mark.parametrize("shapes", SHAPES)
every_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])


# ── one round by hand


def signal(shapes: dict[str, tuple[int, ...]], dtype: str) -> Signal:
    parts = {
        "value": Part(shapes={name: (shape, dtype) for name, shape in shapes.items()}),
        "weight": Part(shapes={"weight": ((1,), "float64")}, bits=64),
        "metric": Part(shapes={"loss": ((2,), "float64")}, bits=64),
    }
    return Signal({**parts, "value": Part(shapes=parts["value"].shapes, bits=8 * np.dtype(dtype).itemsize)})


def bound(case: Case, shapes: dict[str, tuple[int, ...]], dtype: str, cohort: int) -> Bound:
    setting = Setting(sampling=Fixed(cohort), algorithm=Algorithm(LocalWork(lr=1.0, epochs=1)), population=cohort)
    return Pipeline(case.stages, case.reducer).bind(signal(shapes, dtype), setting)


def contribution(shapes: dict[str, tuple[int, ...]], dtype: str, seed: int) -> Tensors:
    rng = np.random.default_rng(seed)
    value = {
        name: np.asarray(rng.standard_normal(shape) * 10.0 ** rng.integers(-3, 2), dtype)
        for name, shape in shapes.items()
    }
    weight, metric = np.array([1.0 + seed % 7]), np.array([float(seed), 1.0])
    return Tensors.join(value=Tensors(value), weight=Tensors({"weight": weight}), metric=Tensors({"loss": metric}))


def rng_of(seed: int) -> np.random.Generator:
    return np.random.default_rng(1000 + seed)


def encoded(bound: Bound, x: Tensors, seed: int) -> Tensors:
    message, _ = bound.encode(stack([x]), bound.start(), EMPTY, [rng_of(seed)])
    message = message.map(lambda a: np.array(a[0]))
    bound.admit(message, f"client {seed}")
    return message


def reduced(bound: Bound, messages: Sequence[Tensors]) -> Tensors:
    assert bound.reducer is not None
    names = tuple(f"c{i}" for i in range(len(messages)))
    server = bound.reducer.server(names)
    next(server)
    for name, message in zip(names, messages, strict=True):
        server.send(Arrived(name, 0, bound.decode_one(message, bound.start())))
    with pytest.raises(StopIteration) as end:
        server.send(Closed(0, names))
    total = end.value.value
    assert isinstance(total, Tensors)
    return total


def decoded(bound: Bound, total: Tensors, count: int) -> Tensors:
    decoding = Decoding(count, float(count), lambda label: Stream(b"a secret of tests", label))
    return bound.decode_total(total, bound.start(), decoding)[0]


def holds(case: Case, bound: Bound, xs: Sequence[Tensors], messages: Sequence[Tensors]) -> None:
    result = decoded(bound, reduced(bound, messages), len(xs)).part("value")
    values = [{name: np.asarray(a, np.float64) for name, a in x.part("value").items()} for x in xs]
    expected = case.reference(values, [float(x["weight/weight"][0]) for x in xs])
    reach = max(1.0, *(float(np.abs(a).max(initial=0.0)) for x in values for a in x.values()))
    allowed = sum(step.error.get("value", 0.0) for step in bound.steps)
    allowed = allowed * (np.sqrt(sum(a.size for a in values[0].values())) if case.spread else 1.0) + case.noise
    allowed += reach * (1e-12 if next(iter(result.shapes.values()))[1] == "float64" else 1e-5)
    assert set(result) == set(expected)
    for name in expected:
        assert result.shapes[name] == (xs[0].shapes[f"value/{name}"]), "shape and dtype come back"
        np.testing.assert_allclose(np.asarray(result[name], np.float64), expected[name], rtol=0, atol=allowed)


@every_case
@every_shape
@every_dtype
def test_pipeline_equals_its_plaintext_reference_within_the_declared_error(case: Case, shapes: str, dtype: str) -> None:
    b = bound(case, SHAPES[shapes], dtype, 5)
    xs = [contribution(SHAPES[shapes], dtype, seed) for seed in range(5)]
    holds(case, b, xs, [encoded(b, x, seed) for seed, x in enumerate(xs)])


@every_case
def test_decode_of_encode_gives_one_contribution_back(case: Case) -> None:
    b = bound(case, SHAPES["small"], "float64", 1)
    x = contribution(SHAPES["small"], "float64", 3)
    holds(case, b, [x], [encoded(b, x, 3)])


@every_case
def test_drop_outs_leave_the_reference_of_those_who_stayed(case: Case) -> None:
    b = bound(case, SHAPES["small"], "float32", 9)
    xs = [contribution(SHAPES["small"], "float32", seed) for seed in (0, 4, 7)]
    holds(case, b, xs, [encoded(b, x, seed) for seed, x in enumerate(xs)])


@every_case
@every_shape
def test_stacked_clients_are_encoded_as_each_by_itself_bit_for_bit(case: Case, shapes: str) -> None:
    b = bound(case, SHAPES[shapes], "float32", 3)
    xs = [contribution(SHAPES[shapes], "float32", seed) for seed in range(3)]
    together, _ = b.encode(stack(xs), b.start(), EMPTY, [rng_of(seed) for seed in range(3)])
    for seed, x in enumerate(xs):
        alone = encoded(b, x, seed)
        assert together.map(lambda a, i=seed: np.array(a[i])) == alone


@every_case
@every_shape
def test_declared_bits_are_the_bytes_of_the_message(case: Case, shapes: str) -> None:
    b = bound(case, SHAPES[shapes], "float32", 3)
    message = encoded(b, contribution(SHAPES[shapes], "float32", 1), 1)
    assert b.bits() == pytest.approx(8 * message.size_bytes, rel=0.01)


@every_case
def test_total_reduced_block_by_block_is_the_same_bits(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    b = bound(case, SHAPES["small"], "float32", 4)
    messages = [encoded(b, contribution(SHAPES["small"], "float32", seed), seed) for seed in range(4)]
    whole = reduced(b, messages)
    monkeypatch.setattr(tensors, "BLOCK", 3)
    assert reduced(b, messages) == whole


@every_case
def test_total_is_the_same_bits_whatever_the_order_of_arrival(case: Case) -> None:
    b = bound(case, SHAPES["small"], "float32", 4)
    messages = [encoded(b, contribution(SHAPES["small"], "float32", seed), seed) for seed in range(4)]
    tasks = [
        Task(run="r", fingerprint="f", kind="train", version=0, round=0, attempt=0, client=f"c{i}", position=i)
        for i in range(4)
    ]
    totals = []
    for order in itertools.islice(itertools.permutations(range(4)), 0, 24, 5):
        leg, released = Round(tasks, 4, 4), []
        for i in order:
            leg.on(Reply(tasks[i], 0, messages[i]))
            released += [reply.message for reply in leg.ready()]
        totals.append(reduced(b, released))
    assert all(total == totals[0] for total in totals)


@pytest.mark.parametrize("reducer", [Sum(), Median(), GeometricMedian(), CentredClipping(1.0), NormBound(1.0)])
def test_metrics_are_added_up_exactly(reducer: Reducer) -> None:
    b = bound(Case([UniformMean()], reducer, mean), SHAPES["small"], "float32", 5)
    messages = [encoded(b, contribution(SHAPES["small"], "float32", seed), seed) for seed in range(5)]
    assert decoded(b, reduced(b, messages), 5)["metric/loss"].tolist() == [10.0, 5.0]


def test_totals_of_integers_can_be_reduced_again() -> None:
    case = next(case for case in CASES if case.name == "Clip-UniformMean-Quantise8-Sum")
    b = bound(case, SHAPES["small"], "float32", 4)
    messages = [encoded(b, contribution(SHAPES["small"], "float32", seed), seed) for seed in range(4)]
    halves = [reduced(b, messages[:2]), reduced(b, messages[2:])]
    assert reduced(b, halves).part("value") == reduced(b, messages).part("value")


@settings(max_examples=60, deadline=None)
@given(
    bits=st.integers(2, 32),
    values=st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=20),
    seeds=st.lists(st.integers(0, 2**32), min_size=1, max_size=5),
)
def test_quantised_sum_is_exact_and_within_one_step_a_client(bits: int, values: list[float], seeds: list[int]) -> None:
    n = len(seeds)
    case = Case([Clip(1.0), UniformMean(), Quantise(bits)], Sum(), clip_mean)
    b = bound(case, {"w": (len(values),)}, "float64", n)
    x = contribution({"w": (len(values),)}, "float64", 0).updated({"value/w": np.array(values)})
    messages = [
        b.encode(stack([x]), b.start(), EMPTY, [np.random.default_rng(s)])[0].map(lambda a: a[0]) for s in seeds
    ]
    total = reduced(b, messages)
    assert total["value/w"].dtype == np.int64
    assert total["value/w"].tolist() == [sum(int(m["value/w"][i]) for m in messages) for i in range(len(values))]
    holds(case, b, [x] * n, messages)
