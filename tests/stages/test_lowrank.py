"""Structured updates: a random view is unbiased, and PowerSGD's directions follow the updates."""

from collections.abc import Sequence

import numpy as np
import pytest

from hansa.core.algorithm import Algorithm
from hansa.core.model import LocalWork
from hansa.core.pipeline import Arrived, Bound, Closed, Decoding, Part, Pipeline, Setting, Signal, Stage
from hansa.core.sampling import Fixed, Stream
from hansa.core.tensors import EMPTY, Tensors, stack
from hansa.stages.lowrank import LowRank, orthonormal
from hansa.stages.mean import UniformMean
from hansa.stages.powersgd import PowerSGD
from hansa.stages.sum import Sum

SHAPES = {"w": (30, 4, 5), "b": (30,), "v": (8, 40)}


def bound(stage: Stage, clients: int = 3) -> Bound:
    setting = Setting(sampling=Fixed(clients), algorithm=Algorithm(LocalWork(lr=1.0, epochs=1)), population=clients)
    value = Part(shapes={name: (shape, "float64") for name, shape in SHAPES.items()})
    weight = Part(shapes={"weight": ((1,), "float64")}, bits=64)
    return Pipeline([UniformMean(), stage], Sum()).bind(Signal({"value": value, "weight": weight}), setting)


def contribution(seed: int, rank: int | None = None) -> Tensors:
    rng = np.random.default_rng(seed)
    value = {name: rng.standard_normal(shape) for name, shape in SHAPES.items()}
    if rank is not None:
        value["w"] = (rng.standard_normal((30, rank)) @ rng.standard_normal((rank, 20))).reshape(30, 4, 5)
        value["v"] = rng.standard_normal((8, rank)) @ rng.standard_normal((rank, 40))
    return Tensors.join(value=Tensors(value), weight=Tensors({"weight": np.ones(1)}))


def a_round(
    b: Bound, xs: Sequence[Tensors], state: Tensors, memories: Sequence[Tensors]
) -> tuple[Tensors, Tensors, list[Tensors]]:
    """The mean, the next state and the next memories."""
    assert b.reducer is not None
    server, kept = b.reducer.server(["c"] * len(xs)), []
    next(server)
    for x, memory in zip(xs, memories, strict=True):
        message, after = b.encode(stack([x]), state, memory, [np.random.default_rng(0)])
        kept.append(after)
        message = message.map(lambda a: np.array(a[0]))
        b.admit(message, "c")
        server.send(Arrived("c", 0, message))
    with pytest.raises(StopIteration) as end:
        server.send(Closed(0, ("c",) * len(xs)))
    total, state = b.decode_total(end.value.value, state, Decoding(len(xs), len(xs), lambda label: Stream(b"s", label)))
    return total, state, kept


def mean(xs: Sequence[Tensors], name: str) -> np.ndarray:
    return np.asarray(np.mean([x[name] for x in xs], axis=0))


# ── a random view


def test_projection_on_random_directions_has_the_mean_it_should() -> None:
    projections = [q @ q.T for q in (orthonormal(12, 3, seed) for seed in range(2000))]
    np.testing.assert_allclose(np.mean(projections, axis=0), np.eye(12) * 3 / 12, atol=0.025)


def test_view_is_linear_unbiased_and_leaves_small_tensors_alone() -> None:
    b, xs = bound(LowRank(4)), [contribution(seed) for seed in range(3)]
    assert {name: shape for name, (shape, _) in b.signal.parts["value"].shapes.items()} == {
        "w": (4, 20), "b": (30,), "v": (4, 8),
    }  # fmt: skip
    state, seen, rounds = b.start(), {name: np.zeros(shape) for name, shape in SHAPES.items()}, 400
    for _ in range(rounds):
        total, state, _ = a_round(b, xs, state, [EMPTY] * 3)
        np.testing.assert_allclose(total["value/b"], mean(xs, "value/b"))
        for name in seen:
            seen[name] += total[f"value/{name}"] / rounds
    for name, long in (("w", 30), ("v", 40)):
        error = np.linalg.norm(seen[name] - mean(xs, f"value/{name}")) / np.linalg.norm(mean(xs, f"value/{name}"))
        assert error == pytest.approx(np.sqrt((long / 4 - 1) / rounds), rel=0.25)


# ── PowerSGD


def test_factors_travel_and_nothing_is_lost_between_what_is_sent_and_what_is_kept() -> None:
    b, xs = bound(PowerSGD(2)), [contribution(seed) for seed in range(3)]
    assert {name: shape for name, (shape, _) in b.signal.parts["value"].shapes.items()} == {
        "w:p": (30, 2), "w:z": (20, 2), "b": (30,), "v:p": (8, 2), "v:z": (40, 2),
    }  # fmt: skip
    state, memories, sent = b.start(), [EMPTY] * 3, np.zeros((30, 4, 5))
    for _ in range(20):
        total, state, memories = a_round(b, xs, state, memories)
        sent += total["value/w"]
        np.testing.assert_allclose(total["value/b"], mean(xs, "value/b"))
    kept = np.mean([memory["1/value/w"][0] for memory in memories], axis=0).reshape(30, 4, 5)
    np.testing.assert_allclose(sent + kept, 20 * mean(xs, "value/w"), atol=1e-9)


def test_directions_of_a_low_rank_update_are_learnt() -> None:
    """Without error feedback, on the same update of rank 2: after two rounds both factors span it, and all arrives."""
    b, xs = bound(PowerSGD(2, error_feedback=False), 1), [contribution(0, rank=2)]
    state, errors = b.start(), []
    for _ in range(4):
        total, state, _ = a_round(b, xs, state, [EMPTY])
        errors.append(np.linalg.norm(total["value/w"] - xs[0]["value/w"]) / np.linalg.norm(xs[0]["value/w"]))
    assert errors[0] > 0.3 and errors[1] < 1e-9 and errors[3] < 1e-9


def test_directions_follow_the_clients_sum() -> None:
    """The sum of three updates has rank 2 though each alone has full rank: that is what is learnt."""
    b, base = bound(PowerSGD(2, error_feedback=False)), contribution(0, rank=2)
    noise = [contribution(seed) for seed in (1, 2)]
    xs = [base + (noise[0] + noise[1] * -1.0) * 3.0, base + noise[0] * -3.0, base + noise[1] * 3.0]
    xs = [x.updated({"weight/weight": np.ones(1)}) for x in xs]
    state = b.start()
    for _ in range(3):
        total, state, _ = a_round(b, xs, state, [EMPTY] * 3)
    np.testing.assert_allclose(total["value/w"], mean(xs, "value/w"), atol=1e-8)


def test_error_feedback_brings_the_mean_of_many_rounds_to_the_update() -> None:
    b, xs = bound(PowerSGD(1)), [contribution(seed) for seed in range(3)]
    state, memories, sent, rounds = b.start(), [EMPTY] * 3, np.zeros((30, 4, 5)), 300
    for _ in range(rounds):
        total, state, memories = a_round(b, xs, state, memories)
        sent += total["value/w"]
    expected = mean(xs, "value/w")
    assert np.linalg.norm(sent / rounds - expected) < 0.1 * np.linalg.norm(expected)


def test_round_of_zeros_keeps_the_directions() -> None:
    b = bound(PowerSGD(2), 1)
    zero = contribution(0).map(lambda a: a * 0.0)
    _, state, _ = a_round(b, [zero], b.start(), [EMPTY])
    assert state == b.start()
