"""Homomorphic sums: exact to the integer, of declared size, and refused where they would overflow."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from hansa.core.algorithm import Algorithm
from hansa.core.errors import JobError, SecretRoundVoid
from hansa.core.model import LocalWork
from hansa.core.pipeline import Arrived, Bound, Closed, Part, Pipeline, Setting, Signal
from hansa.core.sampling import Fixed
from hansa.core.tensors import Tensors
from hansa.crypto.seats import SimulatedSeat

pytest.importorskip("tenseal", reason="homomorphic sums need TenSEAL, which is not installed")
from hansa.stages.clip import Clip
from hansa.stages.he_sum import HeSum
from hansa.stages.mean import UniformMean
from hansa.stages.quantise import Quantise

D = 5000
SIGNAL = Signal(
    {
        "value": Part(shapes={"w": ((D,), "float32"), "b": ((3,), "float32")}),
        "weight": Part(shapes={"weight": ((1,), "float64")}),
        "metric": Part(shapes={"loss": ((2,), "float64")}),
    }
)
STAGES = (Clip(1.0), UniformMean(), Quantise(16))


def bound(reducer: HeSum, clients: int = 4, stages: Any = STAGES) -> Bound:
    algorithm = Algorithm(LocalWork(lr=1.0, epochs=1))
    return Pipeline(stages, reducer).bind(
        SIGNAL, Setting(sampling=Fixed(clients), algorithm=algorithm, population=clients)
    )


def contribution(at: int) -> Tensors:
    rng = np.random.default_rng(at)
    w, b = (rng.integers(-32767, 32767, size, endpoint=True).astype(np.int16) for size in (D, 3))
    return Tensors({"value/w": w, "value/b": b, "metric/loss": np.array([at + 0.5, 1.0])})


def play(
    b: Bound, clients: int = 4, leaves: Mapping[str, int] | None = None
) -> tuple[Tensors, list[str], list[Tensors]]:
    reducer, secret = b.reducer, os.urandom(32)
    assert reducer is not None
    names = [f"c{at}" for at in range(clients)]
    roles = {n: reducer.worker(contribution(int(n[1:])), SimulatedSeat(n, b"run/train/0.0", secret)) for n in names}
    server = reducer.server(names, SimulatedSeat("server", b"run/train/0.0", secret))
    next(server)
    inbox, here, counted, sent = dict.fromkeys(names), list(names), list[str](), list[Tensors]()
    for leg in range(4):
        answered = []
        for name in here:
            if (leaves or {}).get(name, 9) <= leg:
                continue
            message = roles[name].send(inbox[name])  # type: ignore[arg-type]
            sent.append(message)
            if leg == 2:
                b.admit(message, name)
                counted.append(name)
            assert server.send(Arrived(name, leg, message)) is None
            answered.append(name)
        try:
            answers = server.send(Closed(leg, tuple(answered)))
        except StopIteration as end:
            return end.value, counted, sent
        assert isinstance(answers, Mapping)
        inbox, here = {name: answers[name] for name in answered}, answered  # type: ignore[misc]
    raise AssertionError("no total")


@pytest.mark.parametrize("encrypted", [None, ("b",)])
@pytest.mark.parametrize("leaves", [{}, {"c3": 1}, {"c2": 2}, {"c0": 3}])
def test_the_total_is_exact_for_those_that_sent_a_ciphertext(encrypted: Any, leaves: dict[str, int]) -> None:
    b = bound(HeSum(encrypted))
    total, counted, sent = play(b, leaves=leaves)
    given = [contribution(int(name[1:])) for name in counted]
    for name in ("value/w", "value/b"):
        assert np.array_equal(total[name], np.sum([m[name].astype(np.int64) for m in given], 0)), name
    assert np.allclose(total["metric/loss"], np.sum([m["metric/loss"] for m in given], 0), atol=0.1)
    ciphers = [m for m in sent if "cipher/text" in m]
    assert all(("value/w" in m) == (encrypted is not None) for m in ciphers)
    if encrypted is None:
        assert b.bits() == pytest.approx(8 * ciphers[0].size_bytes, rel=0.01)
    windows = {contribution(0)["value/b"].tobytes()}
    assert not any(w in np.asarray(a).tobytes() for m in ciphers for a in m.values() for w in windows)


def test_what_cannot_be_encrypted_or_finished_is_said() -> None:
    for stages, clients, fault in (
        ((UniformMean(),), 4, "'value' is real: put Clip"),
        ((Clip(1.0), UniformMean(), Quantise(30)), 4, r"overflows: use Quantise\(bits=26\)"),
        (STAGES, 2, "over 2 clients hides nobody"),
    ):
        with pytest.raises(JobError, match=fault):
            bound(HeSum(), clients, stages)
    with pytest.raises(JobError, match=r"encrypted=\['x'\] are no tensors"):
        bound(HeSum(("x",)))
    with pytest.raises(SecretRoundVoid, match="'c0', who makes the key, is gone"):
        play(bound(HeSum()), leaves={"c0": 1})
    with pytest.raises(SecretRoundVoid, match="are gone, or do not agree"):
        play(bound(HeSum()), leaves={"c0": 3, "c1": 3})
    with pytest.raises(SecretRoundVoid, match="2 clients are left"):
        play(bound(HeSum()), leaves={"c1": 2, "c2": 2})
