"""A lying server against the secure sum: it gets nothing of the real clients, and everything of gullible ones."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("cryptography")

from tests.runtimes.jobs import plain

from hansa.core.errors import ConfigError
from hansa.core.pipeline import Pipeline
from hansa.crypto.seats import SimulatedSeat
from hansa.crypto.secagg import Client, Fields, Terms
from hansa.stages.clip import Clip
from hansa.stages.mean import UniformMean
from hansa.stages.quantise import Quantise
from hansa.stages.secure_sum import SecureSum
from hansa.stages.sum import Sum
from hansa.testing.attacks.malicious_server import Attempt, against, against_job

ATTACKS = (
    *("asks for both secrets", "drops all but one", "lies about who is alive", "asks again"),
    *("replays", "puts its own keys in", "leaves the others out"),
)


def by_name(attempts: list[Attempt]) -> dict[str, Attempt]:
    found = {attempt.attack: attempt for attempt in attempts}
    assert tuple(found) == ATTACKS
    return found


@pytest.mark.parametrize("clients", [3, 9])
@pytest.mark.parametrize("threshold", [0.51, 0.7, 1.0])
def test_no_attack_wins_against_clients_as_they_are(clients: int, threshold: float) -> None:
    found = by_name(against(Terms(b"", Fields((), ()), threshold, fewest=max(3, clients - 1)), clients))
    assert not any(attempt.won for attempt in found.values())
    assert "SecretRoundVoid" in found["asks for both secrets"].why
    assert found["asks again"].refused == clients - 1
    assert "IdentityError" in found["replays"].why and "IdentityError" in found["puts its own keys in"].why
    if clients > 4:
        assert "1 clients are named" in found["drops all but one"].why
        assert "3 clients are named" in found["leaves the others out"].why
        assert found["drops all but one"].refused == clients
        if threshold < 0.8:
            for name in ("asks again", "lies about who is alive"):
                assert "the server asks for the same attempt at a secret round again" in found[name].why


def test_no_attack_wins_in_neighbourhoods() -> None:
    assert won_in_graph(SecureSum(dropout=0.05, corrupt=0.05)) == []


def test_who_does_not_know_how_many_take_part_is_left_alone_among_accomplices() -> None:
    found = by_name(against(Terms(b"", Fields((), ()), 0.7), 9))
    assert [name for name, attempt in found.items() if attempt.won] == ["leaves the others out"]


def test_neighbourhoods_that_trust_the_server_to_tell_the_truth_are_opened_by_one_that_does_not() -> None:
    assert won_in_graph(SecureSum(dropout=0.05, corrupt=0.05, lying=False)) == ["asks for both secrets"]


def won_in_graph(reducer: SecureSum) -> list[str]:
    graph = reducer.graph(60)
    assert graph is not None
    terms = Terms(b"", Fields((), ()), 0.7, graph.neighbours, graph.threshold, 54)
    return [attempt.attack for attempt in against(terms, 60) if attempt.won]


class Gullible(Client):
    """Signs every list it is shown, however short and however often, and never forgets a share."""

    def agree(self, masked: Sequence[int]) -> bytes:
        self._needed, self._masked = 1, tuple(masked)
        return self._seat.sign(self._roster.agreed(masked))

    def unmask(self, signatures: Mapping[int, bytes]) -> np.ndarray:
        held = dict(self._held)
        revealed = super().unmask(signatures)
        self._held.update(held)
        return revealed


class Trusting(SimulatedSeat):
    """Believes every signature."""

    def verify(self, name: str, message: bytes, signature: bytes) -> None:
        pass


def test_every_attack_wins_against_clients_that_check_nothing() -> None:
    """Or a verdict of `holds` would mean nothing."""
    found = by_name(against(Terms(b"", Fields((), ()), 0.7, None, 3), 8, Gullible, Trusting))
    assert [name for name, attempt in found.items() if not attempt.won] == []


@pytest.mark.parametrize("half", [{"client": Gullible}, {"seat": Trusting}])
def test_what_one_check_stops_is_not_stopped_by_another(half: Any) -> None:
    terms = Terms(b"", Fields((), ()), 0.7, None, 3 if "client" in half else None, 3 if "client" in half else 8)
    found = by_name(against(terms, 8, **half))
    won = [name for name, attempt in found.items() if attempt.won]
    assert won == [*ATTACKS[:4], ATTACKS[6]] if "client" in half else list(ATTACKS[4:6])


def test_a_threshold_of_half_would_give_both_secrets_away() -> None:
    """Which is why `SecureSum` refuses it: here half of the clients believe one thing, and half the other."""
    won = [attempt.attack for attempt in against(Terms(b"", Fields((), ()), 0.5, None, 4, 7), 8) if attempt.won]
    assert won == ["asks for both secrets"]
    with pytest.raises(ConfigError, match="above 1/2"):
        SecureSum(0.5)


def test_a_job_is_attacked_with_its_own_threshold_and_no_other_reducer_is() -> None:
    stages = [Clip(1.0), UniformMean(), Quantise(16)]
    job = replace(plain(), pipeline=Pipeline(stages, SecureSum(0.8)))
    found = by_name(against_job(job, 6))
    assert not any(attempt.won for attempt in found.values())
    with pytest.raises(ConfigError, match="this job ends in Sum"):
        against_job(replace(job, pipeline=Pipeline(stages, Sum())), 6)
