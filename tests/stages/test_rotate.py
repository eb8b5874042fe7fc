"""What a random rotation promises: orthogonality, evenness, the cut's bias, and one rotation for all clients."""

import math

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy import integrate, linalg, stats

from hansa.core.algorithm import Algorithm
from hansa.core.model import LocalWork
from hansa.core.pipeline import Bound, Decoding, Part, Pipeline, Setting, Signal, Stage
from hansa.core.sampling import Fixed, Sampling, Stream
from hansa.core.tensors import EMPTY, Tensors, stack
from hansa.stages import fourier
from hansa.stages.clip import Clip
from hansa.stages.mean import UniformMean
from hansa.stages.quantise import Quantise
from hansa.stages.rotate import Rotate, Rotation, rounding, transformed
from hansa.stages.sum import Sum

SIZES = [1, 2, 3, 5, 8, 96, 100, 127, 128, 129, 300, 1000, 1024]
ROTATIONS = {"hadamard": (Rotation, rounding), "fourier": (fourier.FourierRotation, fourier.rounding)}
WEIGHT = Part(shapes={"weight": ((1,), "float64")}, bits=64)


def matrix(kind: str, size: int, seed: int = 1) -> np.ndarray:
    rotation = ROTATIONS[kind][0](size, seed)
    return np.stack([rotation.apply(row) for row in np.eye(size)], axis=1)


def bound(*stages: Stage, size: int = 100, sampling: Sampling | None = None) -> Bound:
    setting = Setting(sampling=sampling or Fixed(4), algorithm=Algorithm(LocalWork(lr=1.0, epochs=1)), population=4)
    signal = Signal({"value": Part(shapes={"w": ((size,), "float32")}), "weight": WEIGHT})
    return Pipeline(stages, Sum()).bind(signal, setting)


def sent(b: Bound, values: np.ndarray, state: Tensors | None = None, seed: int = 0) -> Tensors:
    x = Tensors({"value/w": values.astype("float32")[None], "weight/weight": np.ones((1, 1))})
    message, _ = b.encode(x, b.start() if state is None else state, EMPTY, [np.random.default_rng(seed)])
    return message.map(lambda a: a[0])


# ── the map


@pytest.mark.parametrize("kind", ROTATIONS)
@pytest.mark.parametrize("size", SIZES)
def test_rotation_is_orthogonal_and_undo_is_its_transpose(kind: str, size: int) -> None:
    r = matrix(kind, size)
    np.testing.assert_allclose(r @ r.T, np.eye(size), atol=1e-12)
    rotation, y = ROTATIONS[kind][0](size, 1), np.random.default_rng(0).standard_normal(size)
    np.testing.assert_allclose(rotation.undo(y), r.T @ y, atol=1e-12)


@pytest.mark.parametrize("kind", ROTATIONS)
@settings(max_examples=50, deadline=None)
@given(size=st.integers(1, 3000), seed=st.integers(0, 2**64 - 1))
def test_rotation_is_linear_keeps_norms_and_is_undone_at_any_length(kind: str, size: int, seed: int) -> None:
    rotation, rng = ROTATIONS[kind][0](size, seed), np.random.default_rng(seed)
    x, y = rng.standard_normal(size), rng.standard_normal(size)
    turned = rotation.apply(x)
    assert turned.shape == (size,) and rotation.apply(x.astype("float32")).shape == (size,)
    assert np.linalg.norm(turned) == pytest.approx(np.linalg.norm(x), rel=1e-12)
    np.testing.assert_allclose(rotation.undo(turned), x, atol=1e-12)
    np.testing.assert_allclose(rotation.apply(2 * x - 3 * y), 2 * turned - 3 * rotation.apply(y), atol=1e-11)


@pytest.mark.parametrize("size", SIZES)
def test_fourier_rows_are_the_cosines_and_sines_of_the_formula(size: int) -> None:
    j, rows = np.arange(size), [np.full(size, 1 / math.sqrt(size))]
    for k in range(1, (size + 1) // 2):
        angles = 2 * math.pi * (j * k % size) / size
        rows += [math.sqrt(2 / size) * np.cos(angles), -math.sqrt(2 / size) * np.sin(angles)]
    rows += [(-1.0) ** j / math.sqrt(size)] if size % 2 == 0 else []
    np.testing.assert_allclose([fourier.transformed(e) for e in np.eye(size)], np.stack(rows, axis=1), atol=1e-12)


@pytest.mark.parametrize("power", range(11))
def test_transform_of_a_power_of_two_is_the_hadamard_matrix(power: int) -> None:
    x = np.random.default_rng(0).standard_normal(1 << power)
    np.testing.assert_allclose(
        transformed(x.copy()), linalg.hadamard(1 << power) @ x / math.sqrt(1 << power), atol=1e-12
    )


@pytest.mark.parametrize("size", [1 << 15, (1 << 16) - 1, 40_000, 50_001])
@pytest.mark.parametrize("where", ["spike", "first", "last", "uneven"])
@pytest.mark.parametrize("kind", ROTATIONS)
def test_rotated_coordinates_are_even_wherever_the_vector_lay(kind: str, size: int, where: str) -> None:
    x = {
        "spike": np.eye(1, size, size // 3).reshape(-1),
        "first": np.linspace(1, 0, size) ** 8,
        "last": np.linspace(0, 1, size) ** 8,
        "uneven": np.where(np.arange(size) < 0.6 * size, 1.0, 5.0),
    }[where]
    rotations = [ROTATIONS[kind][0](size, seed).apply(x / np.linalg.norm(x)) * math.sqrt(size) for seed in range(8)]
    energy = np.mean([[(piece**2).mean() for piece in np.array_split(y, 16)] for y in rotations], axis=0)
    assert energy.min() > 0.8 and energy.max() < 1.25
    assert max(np.abs(y).max() for y in rotations) < 7


@pytest.mark.parametrize(("kind", "spread"), [("hadamard", 2), ("fourier", 1.5)])  # one has 61 % of it, or 25 %
def test_rotated_coordinates_are_close_to_normal(kind: str, spread: float) -> None:
    x = np.random.default_rng(0).lognormal(0, spread, 50_000)
    y = ROTATIONS[kind][0](50_000, 3).apply(x / np.linalg.norm(x)) * math.sqrt(50_000)
    assert stats.kstest(y[::7], "norm").pvalue > 1e-3


@pytest.mark.parametrize("kind", ROTATIONS)
@pytest.mark.parametrize("size", SIZES)
def test_float_rounding_stays_within_what_is_declared(kind: str, size: int) -> None:
    rotation, declared = ROTATIONS[kind][0](size, 1), ROTATIONS[kind][1](size, np.dtype("float32"))
    x = np.random.default_rng(0).standard_normal(size)
    exact, single = rotation.apply(x), rotation.apply(x.astype("float32")).astype("float32")
    assert np.linalg.norm(exact - single) <= (declared + 1e-7) * np.linalg.norm(x)


@pytest.mark.parametrize("size", [*SIZES, 5987, 81 * 73, 46337])  # two primes: one by Bluestein's, one large
def test_fourier_in_float64_errs_by_no_more_than_is_declared(size: int) -> None:
    x, j = np.random.default_rng(0).standard_normal(size).astype(np.longdouble), np.arange(size)
    for k in {0, size // 3, size // 2, size - 1}:  # single coordinates, summed in extended precision
        angles = 2 * np.arccos(np.longdouble(-1)) * (j * ((k + 1) // 2) % size) / size
        scale = np.sqrt(np.longdouble(1 if k in (0, size - 1 if size % 2 == 0 else 0) else 2) / size)
        exact = float((x * (np.cos(angles) if k % 2 or k == 0 else -np.sin(angles))).sum() * scale)
        got = fourier.transformed(x.astype(np.float64))[k]
        assert abs(got - exact) <= fourier.rounding(size, np.dtype(np.float64)) * float(np.linalg.norm(x))


# ── the stage


@pytest.mark.parametrize("kind", ROTATIONS)
def test_all_clients_of_a_round_share_a_rotation_and_the_next_round_has_another(kind: str) -> None:
    b = bound(UniformMean(), Rotate(transform=kind))
    values = np.random.default_rng(0).standard_normal(100)
    first = sent(b, values, seed=0)
    assert first == sent(b, values, seed=1)
    decoding = Decoding(1, 1.0, lambda label: Stream(b"s", label))
    total, state = b.decode_total(first, b.start(), decoding)
    np.testing.assert_allclose(total["value/w"], values, atol=1e-5)
    second = sent(b, values, state)
    assert not np.allclose(first["value/:rotated"], second["value/:rotated"])
    np.testing.assert_allclose(b.decode_total(second, state, decoding)[0]["value/w"], values, atol=1e-5)


def test_rotation_stays_where_updates_may_be_of_an_older_round() -> None:
    b = bound(UniformMean(), Rotate(), sampling=Fixed(4, quorum=2, max_staleness=3))
    decoding = Decoding(1, 1.0, lambda label: Stream(b"s", label))
    _, state = b.decode_total(sent(b, np.ones(100)), b.start(), decoding)
    assert state == b.start()


@pytest.mark.parametrize(("clip", "taken"), [(2, 0.012), (2.5, 0.0023), (3, 0.00039), (4, 0.0000062)])
def test_cut_takes_what_the_table_says(clip: float, taken: float) -> None:
    lost = 2 * integrate.quad(lambda y: (y - clip) ** 2 * stats.norm.pdf(y), clip, 30)[0]
    assert lost == pytest.approx(taken, rel=0.05)
    assert lost == pytest.approx(2 * (1 + clip**2) * stats.norm.sf(clip) - 2 * clip * stats.norm.pdf(clip), rel=1e-6)
    b = bound(Clip(1.0), UniformMean(), Rotate(clip=clip), size=100_000)
    x = np.random.default_rng(0).standard_normal(100_000)
    x /= np.linalg.norm(x)
    total, _ = b.decode_total(sent(b, x), b.start(), Decoding(1, 1.0, lambda label: Stream(b"s", label)))
    error = float(((total["value/w"] - x) ** 2).sum())
    assert error == pytest.approx(lost, rel=0.2) or (clip == 4 and error < 10 * lost)  # of six coordinates
    assert b.signal.parts["value"].linf == pytest.approx(clip / math.sqrt(100_000), rel=1e-6)


def test_cut_makes_the_grid_of_quantise_finer() -> None:
    x = np.random.default_rng(1).standard_normal(10_000)
    x, errors = x / np.linalg.norm(x), []
    for stages in ([Quantise(4)], [Rotate(clip=4.0), Quantise(4)]):
        b = bound(Clip(1.0), UniformMean(), *stages, size=10_000)
        draws = []
        for seed in range(20):
            total = sent(b, x, seed=seed).map(lambda a: a.astype(np.int64) if a.dtype == np.int8 else a)
            draws.append(b.decode_total(total, b.start(), Decoding(1, 1.0, lambda label: Stream(b"s", label)))[0])
        errors.append(np.mean([((draw["value/w"] - x) ** 2).sum() for draw in draws]))
    # d·E|y|·step where the step is larger than the coordinates, and d·step²/6 where it is smaller.
    assert errors[0] == pytest.approx(10_000 * math.sqrt(2 / math.pi) / 100 / 7, rel=0.15)
    assert errors[1] == pytest.approx(10_000 * (4 / 100 / 7) ** 2 / 6, rel=0.15)


def test_worker_turns_back_what_came_down_rotated() -> None:
    signal = Signal({"model": Part(shapes={"w": ((37, 11), "float32"), "steps": ((), "int64")})})
    setting = Setting(sampling=Fixed(4), algorithm=Algorithm(LocalWork(lr=1.0, epochs=1)), population=4)
    model = Tensors({"model/w": np.random.default_rng(0).standard_normal((37, 11)).astype("float32")})
    model = model.updated({"model/steps": np.array(7)})
    for stages, allowed in (
        ([Rotate()], 1e-5), ([Rotate(), Quantise(8)], 0.2), ([Rotate(transform="fourier"), Quantise(8)], 0.2)
    ):  # fmt: skip
        b = Pipeline(stages).bind(signal, setting)
        message, _ = b.encode(stack([model]), b.start(), EMPTY, [np.random.default_rng(0)])
        back = b.decode_one(message.map(lambda a: a[0]), b.start())
        assert back.shapes == model.shapes and back["model/steps"] == 7
        np.testing.assert_allclose(back["model/w"], model["model/w"], atol=allowed)
