"""Codes of one contribution by itself: the error they are known for, no bias, their length, and a peer's garbage."""

import math

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy import integrate, stats

from hansa.core.algorithm import Algorithm
from hansa.core.errors import UpdateRejected
from hansa.core.model import LocalWork
from hansa.core.pipeline import Bound, Part, Pipeline, Setting, Signal, Stage
from hansa.core.sampling import Fixed
from hansa.core.tensors import EMPTY, Tensors, stack
from hansa.stages.clip import Clip
from hansa.stages.dither import Dither
from hansa.stages.eden import Eden, lloyd_max
from hansa.stages.mean import UniformMean
from hansa.stages.sign import Sign
from hansa.stages.sum import Sum
from hansa.stages.ternary import Ternary

CODES: list[Stage] = [
    Eden(1), Eden(2), Eden(3), Eden(8), Dither(0.5), Dither(1), Dither(2.5), Dither(8), Ternary(), Ternary(clip=2.5),
    Sign(error_feedback=False),
]  # fmt: skip
every_code = pytest.mark.parametrize("stage", CODES, ids=repr)


def bound(stage: Stage, size: int, *before: Stage) -> Bound:
    setting = Setting(sampling=Fixed(2), algorithm=Algorithm(LocalWork(lr=1.0, epochs=1)), population=2)
    parts = {
        "value": Part(shapes={"w": ((size,), "float32")}),
        "weight": Part(shapes={"weight": ((1,), "float64")}, bits=64),
    }
    return Pipeline([*before, UniformMean(), stage], Sum()).bind(Signal(parts), setting)


def written(b: Bound, x: np.ndarray, seed: int) -> Tensors:
    given_ = Tensors({"value/w": x.astype("float32")[None], "weight/weight": np.ones((1, 1))})
    message, _ = b.encode(given_, b.start(), EMPTY, [np.random.default_rng(seed)])
    return message.map(lambda a: a[0])


def back(b: Bound, x: np.ndarray, seed: int) -> np.ndarray:
    return np.asarray(b.decode_one(written(b, x, seed), b.start())["value/w"], np.float64)


def vectors(size: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "normal": rng.standard_normal(size),
        "heavy": rng.lognormal(0, 2, size) * rng.choice([-1, 1], size),
        "sparse": np.where(rng.random(size) < 0.01, rng.standard_normal(size), 0.0),
        "layers": np.where(np.arange(size) < 0.8 * size, 0.1, 3.0) * rng.standard_normal(size),
    }


# ── the error they are known for


@pytest.mark.parametrize(("bits", "known"), [(1, 0.571), (2, 0.133), (4, 0.0096)])
@pytest.mark.parametrize("kind", ["normal", "heavy", "sparse", "layers"])
def test_eden_errs_as_published_on_any_vector(bits: int, known: float, kind: str) -> None:
    size = 50_001
    x, b = vectors(size)[kind], bound(Eden(bits), size)
    errors = [((back(b, x, seed) - x) ** 2).sum() / (x**2).sum() for seed in range(4)]
    assert np.mean(errors) == pytest.approx(known, rel=0.03)


@pytest.mark.parametrize(("bits", "single_table", "ours"), [(1, 1.03, 0.558), (2, 0.108, 0.0986), (4, 0.0056, 0.0056)])
@pytest.mark.parametrize("kind", ["normal", "heavy", "sparse", "layers"])
def test_dither_errs_by_no_more_than_known_on_any_vector(
    bits: float, single_table: float, ours: float, kind: str
) -> None:
    size = 100_001
    x, b = vectors(size)[kind], bound(Dither(bits), size)
    errors = [((back(b, x, seed) - x) ** 2).sum() / (x**2).sum() for seed in range(3)]
    assert np.mean(errors) == pytest.approx(ours, rel=0.03)
    assert np.mean(errors) < 1.03 * single_table


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_levels_are_those_of_lloyd_and_max(bits: int) -> None:
    levels, nmse = lloyd_max(bits)
    edges = [-np.inf, *((levels[1:] + levels[:-1]) / 2), np.inf]
    squared = 0.0
    for low, high, level in zip(edges[:-1], edges[1:], levels, strict=True):
        mass = stats.norm.cdf(high) - stats.norm.cdf(low)
        mean = integrate.quad(lambda z: z * stats.norm.pdf(z), low, high)[0] / mass
        assert level == pytest.approx(mean, abs=1e-4), "the mean of its cell"
        squared += integrate.quad(lambda z, level=level: (z - level) ** 2 * stats.norm.pdf(z), low, high)[0]
    assert nmse == pytest.approx(squared / (1 - squared), rel=1e-3)


def test_one_bit_of_eden_is_drive() -> None:
    """Vargaftik et al. 2021: the scale is ‖x‖² / ‖R·x‖₁ times the sign."""
    size = 1024
    b, x = bound(Eden(1), size), vectors(size)["heavy"]
    y = back(b, x, 3)
    seed = int(written(b, x, 3)["value/:seed"][0])
    from hansa.stages.rotate import Rotation

    rotation = Rotation(size, seed)
    rotated = rotation.apply(x)
    np.testing.assert_allclose(y, rotation.undo(np.sign(rotated)) * (x @ x) / np.abs(rotated).sum(), rtol=1e-3)


# ── bias and length


@pytest.mark.parametrize("stage", [stage for stage in CODES if stage not in (CODES[-1], Ternary(clip=2.5))], ids=repr)
@pytest.mark.parametrize("kind", ["normal", "sparse"])
def test_mean_of_many_codes_is_the_vector(stage: Stage, kind: str) -> None:
    size, draws = 1000, 100
    x, b = vectors(size)[kind], bound(stage, size)
    if kind == "sparse":
        x = np.where(np.arange(size) % 8 == 3, np.random.default_rng(1).standard_normal(size), 0.0)
    codes = np.stack([back(b, x, seed) for seed in range(draws)])
    spread = ((codes - codes.mean(axis=0)) ** 2).sum(axis=1).mean()
    # The squared length of the mean's error is spread/draws where there is no bias, give or take a tenth of itself.
    assert ((codes.mean(axis=0) - x) ** 2).sum() < 1.5 * spread / draws + 1e-9 * (x @ x)
    # Along x all coordinates' biases would add up.
    assert codes.mean(axis=0) @ x == pytest.approx(x @ x, rel=4 * math.sqrt(spread / draws / size / (x @ x)) + 3e-3)


@every_code
@settings(max_examples=15, deadline=None)
@given(
    values=st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=200),
    seed=st.integers(0, 2**32),
    zeros=st.integers(0, 300),
)
def test_no_code_is_longer_than_declared(stage: Stage, values: list[float], seed: int, zeros: int) -> None:
    x = np.concatenate([values, np.zeros(zeros)])
    b = bound(stage, len(x), Clip(1e9))
    declared = b.signal.parts["value"].l2 / 1e9
    norm = np.linalg.norm(x.astype("float32").astype("float64"))
    assert np.linalg.norm(back(b, x, seed)) <= declared * norm * (1 + 1e-6) + 1e-30


@every_code
def test_zeros_come_back_as_zeros(stage: Stage) -> None:
    assert not back(bound(stage, 77), np.zeros(77), 0).any()


@pytest.mark.parametrize("size", [1, 10, 1000, 50_000])
@pytest.mark.parametrize("bits", [0.5, 1, 3.3, 8])
def test_dithered_message_has_its_declared_length_whatever_it_says(size: int, bits: float) -> None:
    b = bound(Dither(bits), size)
    for x in (np.zeros(size), np.eye(1, size).reshape(-1), *vectors(size).values()):
        assert bits * size / 8 <= written(b, x, 0).size_bytes <= bits * size / 8 + 35


def test_steps_are_tried_until_the_code_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ratio that is far too fine for the message is made coarser, and the decoder is told."""
    from hansa.stages import dither

    b = bound(Dither(2), 5000)
    code = b.steps[-1]._codes[0][1]  # type: ignore[attr-defined]
    declared = code._finest
    monkeypatch.setattr(code, "_finest", declared + 300)
    x = vectors(5000)["normal"]
    message = written(b, x, 0)
    assert declared - 60 < int(message["value/:ratio"][0]) <= declared + 10
    y = np.asarray(b.decode_one(message, b.start())["value/w"])
    assert ((y - x) ** 2).sum() / (x @ x) < 0.15
    assert dither._ratio(declared + 300) < dither._ratio(declared)


# ── a peer's garbage


@every_code
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_garbage_is_rejected_or_gives_numbers_of_the_right_shape(stage: Stage, seed: int) -> None:
    b = bound(stage, 133)
    rng = np.random.default_rng(seed)
    garbage = {}
    for name, (shape, dtype) in b.signal.shapes.items():
        garbage[name] = rng.standard_normal(shape) if dtype == "float64" else np.frombuffer(
            rng.bytes(math.prod(shape) * np.dtype(dtype).itemsize), dtype
        )  # fmt: skip
    try:
        y = b.decode_one(Tensors(garbage), b.start())["value/w"]
    except UpdateRejected:
        return
    assert y.shape == (133,) and np.isfinite(y).all()


@every_code
def test_message_of_another_length_is_rejected(stage: Stage) -> None:
    b = bound(stage, 133)
    message = written(b, np.ones(133), 0)
    for name in message:
        with pytest.raises(UpdateRejected, match="not"):
            b.decode_one(message.updated({name: message[name][:-1]}), b.start())


def test_ratio_that_was_never_written_is_rejected() -> None:
    b = bound(Dither(2), 133)
    message = written(b, np.ones(133), 0)
    for ratio in (-(2**31), 2**31 - 1):
        with pytest.raises(UpdateRejected, match="none that 133 coordinates were ever written with"):
            b.decode_one(message.updated({"value/:ratio": np.array([ratio], np.int32)}), b.start())


# ── error feedback, and the way down


def test_what_the_sign_leaves_out_is_sent_later() -> None:
    b = bound(Sign(), 50)
    x, memory, sent = vectors(50)["heavy"], EMPTY, np.zeros(50)
    contribution = Tensors({"value/w": x.astype("float32")[None], "weight/weight": np.ones((1, 1))})
    for _ in range(200):
        message, memory = b.encode(contribution, b.start(), memory, [np.random.default_rng(0)])
        sent += b.decode_one(message.map(lambda a: a[0]), b.start())["value/w"]
    np.testing.assert_allclose(sent + memory["1/value"][0], 200 * x, rtol=1e-3, atol=1e-2 * np.abs(x).max())
    # Karimireddy et al., lemma 3: what is kept stays bounded, so that the mean of what is sent tends to x.
    assert np.linalg.norm(sent / 200 - x) < 0.25 * np.linalg.norm(x)
    assert Sign().remembers and not Sign(error_feedback=False).remembers


@pytest.mark.parametrize(("stage", "allowed"), [(Eden(4), 0.012), (Eden(8), 1e-4), (Dither(4), 0.007)], ids=repr)
def test_worker_reads_the_model_that_came_down(stage: Stage, allowed: float) -> None:
    signal = Signal({
        "model": Part(shapes={"w": ((100, 37), "float32"), "b": ((37,), "float32"), "steps": ((), "int64")}),
        "control": Part(shapes={"w": ((100, 37), "float32")}),
    })  # fmt: skip
    setting = Setting(sampling=Fixed(2), algorithm=Algorithm(LocalWork(lr=1.0, epochs=1)), population=2)
    rng = np.random.default_rng(0)
    sent = {name: rng.standard_normal(at).astype(kind) for name, (at, kind) in signal.shapes.items()}
    down = Tensors(sent).updated({"model/steps": np.array(3)})
    b = Pipeline([stage]).bind(signal, setting)
    message, _ = b.encode(stack([down]), b.start(), EMPTY, [rng])
    read = b.decode_one(message.map(lambda a: a[0]), b.start())
    assert read.shapes == down.shapes and read["model/steps"] == 3
    for name in ("model/w", "control/w"):
        assert ((read[name] - down[name]) ** 2).sum() < allowed * (down[name] ** 2).sum()
