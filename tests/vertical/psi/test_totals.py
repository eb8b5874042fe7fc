"""Counts and sums over shared keys: right, private as declared, and refused where they would say too much."""

from typing import Any

import numpy as np
import pytest

pytest.importorskip("coincurve")
pytest.importorskip("gmpy2")

from tests.vertical.psi.owners import each, errors, names

from hansa.core.errors import ConfigError, DataError, PolicyError
from hansa.core.sampling import Stream
from hansa.runtimes.mesh.local import LocalMesh
from hansa.vertical.psi import Keys, meeting, totals
from hansa.vertical.psi.totals import cardinality, intersection_sum, noise_bound, noise_law

TWO = ("bank", "shop")
ONE = {"workers": 1, "accept": True}
TABLES: dict[str, dict[str, list[Any]]] = {
    "bank": {"id": names(0, 50)},
    "shop": {"id": names(30, 90), "spent": [at / 8 - 3 for at in range(60)]},
}


def counted(**options: Any) -> dict[str, Any]:
    return each(TWO, lambda mesh: cardinality(mesh, TABLES[mesh.me], Keys("id"), learner="bank", **ONE, **options))


def test_the_learner_gets_the_count_and_the_other_nothing() -> None:
    found = counted()
    assert found["bank"] == totals.Cardinality(20) and found["shop"] is None


def test_the_learner_cannot_tell_which_of_its_keys_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tags come back in another order than that of the keys which it sent."""
    made: list[np.ndarray] = []
    back: list[np.ndarray] = []
    honest, meet = meeting.tags_of_other, meeting.meet

    def tags(session: Any, *given: Any) -> Any:
        found = honest(session, *given)
        if session.mesh.me == "shop":
            made.append(found)
        return found

    def spy(mine: Any, theirs: Any) -> Any:
        back.append(mine)
        return meet(mine, theirs)

    monkeypatch.setattr(meeting, "tags_of_other", tags)
    monkeypatch.setattr(meeting, "meet", spy)
    counted()
    in_order, received = [row.tobytes() for row in made[0]], [row.tobytes() for row in back[0]]
    assert sorted(in_order) == sorted(received) and in_order != received


def test_with_noise_the_count_is_near_and_the_event_is_given_to_both() -> None:
    found = counted(epsilon=2.0, delta=1e-6)
    assert abs(found["bank"].count - 20) <= noise_bound(2.0, 1e-6)
    assert found["bank"].event == found["shop"].event and found["shop"].count == -1
    assert found["bank"].event.mechanism == "cut discrete laplace" and "epsilon=2.0" in found["bank"].event.detail


def test_noise_reaches_the_count_and_is_the_other_owner_s(monkeypatch: pytest.MonkeyPatch) -> None:
    class Seven:
        def draw(self, stream: Stream, count: int) -> np.ndarray:
            return np.array([-7])

    monkeypatch.setattr(totals, "noise_law", lambda epsilon, bound: Seven())
    assert counted(epsilon=0.5, delta=1e-6)["bank"].count == 13


@pytest.mark.parametrize(("epsilon", "delta"), [(0.3, 1e-6), (1.0, 1e-9), (5.0, 1e-3)])
def test_the_law_keeps_its_epsilon_and_delta(epsilon: float, delta: float) -> None:
    bound = noise_bound(epsilon, delta)
    weights = np.exp(-epsilon * np.abs(np.arange(-bound, bound + 1)))
    law = weights / weights.sum()
    shifted = np.append(law[1:], 0)  # the count is one less
    beyond = law - np.exp(epsilon) * shifted
    assert beyond[beyond > 1e-15].sum() <= delta and (beyond > 1e-15).sum() <= 1
    draws = noise_law(epsilon, bound).draw(Stream(b"test"), 40_000)
    assert np.abs(draws).max() <= bound
    for value in (0, 1, -1):
        chance = law[bound + value]
        assert abs((draws == value).mean() - chance) < 6 * (chance * (1 - chance) / 40_000) ** 0.5


def test_a_sum_is_exact_and_its_holder_s() -> None:
    found = each(
        TWO,
        lambda mesh: intersection_sum(
            mesh, TABLES[mesh.me], Keys("id"), values="spent" if mesh.me == "shop" else None, holder="shop", **ONE
        ),
    )
    assert found["shop"] == totals.Total(20, sum(TABLES["shop"]["spent"][:20]))
    assert found["bank"] == totals.Total(20)


def test_a_sum_over_few_keys_is_refused_at_both() -> None:
    def play(mesh: LocalMesh) -> Any:
        return intersection_sum(
            mesh, TABLES[mesh.me], Keys("id"), values="spent" if mesh.me == "shop" else None, holder="shop", least=21,
            **ONE,
        )  # fmt: skip

    for error in errors(TWO, play).values():
        assert isinstance(error, DataError) and "20 keys are shared, and a sum is shown from 21 on" in str(error)


def test_what_is_wrong_is_refused() -> None:
    mesh = LocalMesh.of(TWO)[1]
    for values, message in [
        ([None] * 60, "missing number, or one of"),
        (["x"] * 60, "holds text"),
        ([2.0**41] * 60, "2⁴⁰"),
    ]:
        with pytest.raises(DataError, match=message):
            intersection_sum(mesh, {"id": names(0, 60), "v": values}, Keys("id"), values="v", holder="shop", **ONE)
    with pytest.raises(ConfigError, match="'shop' alone names a column"):
        intersection_sum(mesh, TABLES["shop"], Keys("id"), values=None, holder="shop", **ONE)
    with pytest.raises(ConfigError, match="epsilon=0"):
        cardinality(mesh, TABLES["shop"], Keys("id"), learner="bank", epsilon=0, **ONE)
    with pytest.raises(PolicyError, match="not accepted"):
        cardinality(mesh, TABLES["shop"], Keys("id"), learner="bank")
