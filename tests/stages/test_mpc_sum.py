"""Sums by computing parties: exact, uniform to the server, and refused where too few stand behind them."""

import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from hansa.core.algorithm import Algorithm
from hansa.core.errors import ConfigError, HansaError, IdentityError, JobError, SecretRoundVoid
from hansa.core.model import LocalWork
from hansa.core.pipeline import Arrived, Bound, Closed, Part, Pipeline, Setting, Signal
from hansa.core.sampling import Fixed
from hansa.core.tensors import Tensors
from hansa.crypto.seats import SimulatedSeat
from hansa.stages.clip import Clip
from hansa.stages.mean import UniformMean
from hansa.stages.mpc_sum import MpcSum
from hansa.stages.quantise import Quantise

D = 200
SIGNAL = Signal(
    {
        "value": Part(shapes={"w": ((D,), "float32")}),
        "weight": Part(shapes={"weight": ((1,), "float64")}),
        "metric": Part(shapes={"loss": ((2,), "float64")}),
    }
)
STAGES = (Clip(1.0), UniformMean(), Quantise(16))
CONTEXT = b"run/train/0.0"
Tamper = Callable[[str, int, Tensors], Tensors]


def bound(reducer: MpcSum, clients: int = 5, stages: Any = STAGES, quorum: int = 3) -> Bound:
    algorithm = Algorithm(LocalWork(lr=1.0, epochs=1))
    return Pipeline(stages, reducer).bind(
        SIGNAL, Setting(sampling=Fixed(clients, quorum=min(quorum, clients)), algorithm=algorithm, population=clients)
    )


def contribution(at: int) -> Tensors:
    q = np.random.default_rng(at).integers(-32767, 32767, D)
    return Tensors({"value/w": q.astype(np.int16), "metric/loss": np.array([at + 0.5, 1.0])})


def play(
    b: Bound, clients: int = 5, leaves: Mapping[str, int] | None = None, down: Tamper = lambda n, leg, m: m
) -> tuple[Tensors, list[str], dict[str, list[Tensors]], dict[str, HansaError]]:
    """The total, who is in it, what everybody sent, and who refused."""
    reducer, secret = b.reducer, os.urandom(32)
    assert reducer is not None
    names = [f"c{at}" for at in range(clients)]
    seats = {name: SimulatedSeat(name, CONTEXT, secret) for name in (*names, *reducer.helpers)}
    roles = {name: reducer.worker(contribution(int(name[1:])), seats[name]) for name in names}
    roles |= {name: reducer.helper(seats[name]) for name in reducer.helpers}
    server = reducer.server(names, SimulatedSeat("server", CONTEXT, secret))
    next(server)
    here, inbox, counted = list(roles), dict.fromkeys(roles), list[str]()
    sent: dict[str, list[Tensors]] = {name: [] for name in roles}
    refused: dict[str, HansaError] = {}
    for leg in range(3):
        answered = []
        for name in here:
            if (leaves or {}).get(name, 9) <= leg:
                continue
            try:
                message = roles[name].send(inbox[name])  # type: ignore[arg-type]
            except HansaError as error:
                refused[name] = error
                continue
            if leg == 1 and name in names:
                b.admit(message, name)
                counted.append(name)
            sent[name].append(message)
            assert server.send(Arrived(name, leg, message)) is None
            answered.append(name)
        try:
            answers = server.send(Closed(leg, tuple(answered)))
        except StopIteration as end:
            return end.value, counted, sent, refused
        except SecretRoundVoid as void:
            raise next(iter(refused.values()), void) from None
        assert isinstance(answers, Mapping)
        inbox, here = {name: down(name, leg, answers[name]) for name in answered}, answered  # type: ignore[misc]
    raise AssertionError("no total")


@pytest.mark.parametrize("helpers", [("one",), ("one", "two")])
@pytest.mark.parametrize("leaves", [{}, {"c1": 1}, {"c1": 0, "c3": 2}])
def test_the_total_is_that_of_those_whose_vector_came(helpers: tuple[str, ...], leaves: dict[str, int]) -> None:
    total, counted, _, _ = play(bound(MpcSum(helpers)), leaves=leaves)
    assert counted == [f"c{at}" for at in range(5) if leaves.get(f"c{at}", 9) > 1]
    given = [contribution(int(name[1:])) for name in counted]
    assert np.array_equal(total["value/w"], np.sum([m["value/w"].astype(np.int64) for m in given], 0))
    assert np.allclose(total["metric/loss"], np.sum([m["metric/loss"] for m in given], 0), atol=1e-6)


def test_server_and_helper_see_uniform_bytes_and_no_helper_sees_a_vector() -> None:
    b, counts, captured = bound(MpcSum(("one", "two"))), np.zeros(256), b""
    for _ in range(12):
        _, _, sent, _ = play(b)
        for at in range(5):
            vector = np.asarray(sent[f"c{at}"][1]["masked/vector"])
            counts += np.bincount(vector[: D * 2], minlength=256)  # whole bytes of the first run
            captured += b"".join(np.asarray(a).tobytes() for m in sent[f"c{at}"] for a in m.values())
    expected = counts.sum() / 256
    assert abs(float(((counts - expected) ** 2 / expected).sum()) - 255) < 6 * 22.6
    for at in range(5):
        raw = contribution(at)["value/w"].tobytes()
        assert not any(raw[i : i + 8] in captured for i in range(len(raw) - 7))


def test_a_helper_gives_no_sum_over_few_or_unsigned_or_other_clients() -> None:
    def alone(name: str, leg: int, message: Tensors) -> Tensors:
        if leg != 1 or name != "one":
            return message
        rows = np.asarray(message["sealed"])[:1]
        return message.updated({"names": np.frombuffer(b'["c0"]', np.uint8), "sealed": rows})

    def invented(name: str, leg: int, message: Tensors) -> Tensors:
        if leg != 1 or name != "one":
            return message
        return message.updated({"names": np.frombuffer(b'["c0","x1","x2","x3","x4"]', np.uint8)})

    with pytest.raises(SecretRoundVoid, match="over 1 clients"):
        play(bound(MpcSum(("one",))), down=alone)
    with pytest.raises(IdentityError):
        play(bound(MpcSum(("one",))), down=invented)

    def three(name: str, leg: int, message: Tensors) -> Tensors:
        if leg != 1 or name != "one":
            return message
        rows = np.asarray(message["sealed"])[:3]
        return message.updated({"names": np.frombuffer(b'["c0","c1","c2"]', np.uint8), "sealed": rows})

    with pytest.raises(SecretRoundVoid, match="over 3 clients"):
        play(bound(MpcSum(("one",)), quorum=4), down=three)
    with pytest.raises(SecretRoundVoid, match="3 clients are left, too few"):
        play(bound(MpcSum(("one",)), quorum=4), leaves={"c0": 1, "c1": 1})
    seat = SimulatedSeat("one", CONTEXT, os.urandom(32))
    seat.once("clients of an mpc sum", b"of before")
    with pytest.raises(SecretRoundVoid, match="same attempt"):
        seat.once("clients of an mpc sum", b"others")


def test_a_lost_helper_ends_the_round_and_says_who() -> None:
    for leg in range(3):
        with pytest.raises(SecretRoundVoid, match=r"helpers \['two'\] are gone: nothing"):
            play(bound(MpcSum(("one", "two"))), leaves={"two": leg})


def test_what_cannot_be_summed_is_refused_with_its_remedy() -> None:
    with pytest.raises(JobError, match="'value' is real: put Clip"):
        bound(MpcSum(), stages=(UniformMean(),))
    with pytest.raises(JobError, match="over 2 clients hides nobody"):
        bound(MpcSum(), clients=2)
    for wrong in ((), ("a", "a")):
        with pytest.raises(ConfigError, match="helpers="):
            MpcSum(wrong)
