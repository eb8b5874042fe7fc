"""Any number of owners: what all share and nothing else, with a coordinator or without; and the store behind it."""

import os
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

pytest.importorskip("coincurve")

from tests.vertical.psi.owners import each, errors, names

from hansa.core.errors import ConfigError, DataError
from hansa.runtimes.mesh.local import LocalMesh, together
from hansa.vertical import AlignedTable
from hansa.vertical.psi import Keys, align, coordinate, intersect, many, okvs

HELPER = "registry"
ALL = ("bank", "clinic", "shop", "tax")


def tables(owners: tuple[str, ...]) -> dict[str, dict[str, list[Any]]]:
    """All share 30 people; every two of them share some more."""
    made = {}
    for at, owner in enumerate(owners):
        pairs = [f"{min(owner, other)}-{max(owner, other)}-{i}" for other in owners if other != owner for i in range(9)]
        keys = names(0, 30) + pairs + [f"{owner} {i}" for i in range(20 + at)]
        made[owner] = {"id": keys[at:] + keys[:at], "who": keys[at:] + keys[:at]}
    return made


def run(protocol: str, owners: tuple[str, ...], **options: Any) -> dict[str, AlignedTable]:
    given = tables(owners)
    helper = HELPER if protocol == "coordinator" else ""

    def play(mesh: LocalMesh) -> Any:
        if mesh.me == HELPER:
            return coordinate(mesh, Keys("anything"), accept=True, **options)
        return align(
            mesh, given[mesh.me], Keys("id"), protocol=protocol, coordinator=helper, accept=True, workers=1, **options
        )

    made = each((*owners, HELPER) if helper else owners, play)
    return {owner: made[owner] for owner in owners}


@pytest.mark.parametrize("owners", [ALL[:2], ALL[:3], ALL])
@pytest.mark.parametrize("protocol", ["coordinator", "many"])
def test_all_owners_get_what_all_share_in_one_order(protocol: str, owners: tuple[str, ...]) -> None:
    made = run(protocol, owners)
    orders = {tuple(table["who"].tolist()) for table in made.values()}
    shared = set.intersection(*(set(table["id"]) for table in tables(owners).values()))
    assert len(orders) == 1 and sorted(orders.pop()) == sorted(shared)
    assert len({table.alignment for table in made.values()}) == 1


@pytest.mark.parametrize("protocol", ["coordinator", "many"])
def test_buckets_give_the_same_rows(protocol: str) -> None:
    made = run(protocol, ALL[:3], bucket_keys=20)
    orders = {tuple(table["who"].tolist()) for table in made.values()}
    assert len(orders) == 1 and sorted(orders.pop()) == names(0, 30)


@pytest.mark.parametrize("protocol", ["coordinator", "many"])
def test_only_the_declared_owners_learn(protocol: str) -> None:
    given, owners = tables(ALL[:3]), ALL[:3]
    helper = HELPER if protocol == "coordinator" else ""

    def play(mesh: LocalMesh) -> Any:
        learns = ["clinic", "shop"]
        if mesh.me == HELPER:
            return coordinate(mesh, Keys("id"), learns=learns, accept=True)
        return intersect(
            mesh, given[mesh.me], Keys("id"), protocol=protocol, coordinator=helper, learns=learns, accept=True
        )

    found = each((*owners, HELPER) if helper else owners, play)
    assert found["bank"] is None and len(found["clinic"]) == len(found["shop"]) == 30
    assert found["clinic"].alignment == found["shop"].alignment


@pytest.mark.parametrize("protocol", ["coordinator", "many"])
def test_no_shared_key_is_an_error_at_every_owner(protocol: str) -> None:
    owners = ("bank", "clinic", "shop")
    given = {"bank": ["a", "b", "c"], "clinic": ["b", "c", "d"], "shop": ["a", "d"]}

    def play(mesh: LocalMesh) -> Any:
        if mesh.me == HELPER:
            coordinate(mesh, Keys("id"), accept=True)
            raise DataError("no key is shared")  # the coordinator may not know
        return align(
            mesh, {"id": given[mesh.me]}, Keys("id"), protocol=protocol, accept=True,
            coordinator=HELPER if protocol == "coordinator" else "",
        )  # fmt: skip

    raised = errors((*owners, HELPER) if protocol == "coordinator" else owners, play)
    assert all("no key is shared" in str(error) for error in raised.values())


def test_the_coordinator_sees_nothing_that_it_could_recompute() -> None:
    """What reaches it is new in every run, though it knows all keys and the terms."""
    seen: list[set[bytes]] = []
    for _ in range(2):
        got: set[bytes] = set()

        class Tapped(LocalMesh):
            def send(self, to: str, tag: str, buffers: Any, got: set[bytes] = got) -> None:
                if to == HELPER and tag == "psi digests":
                    got.update(bytes(each)[at : at + 10] for each in buffers for at in range(0, len(each), 10))
                super().send(to, tag, buffers)

        owners, given = ALL[:2], tables(ALL[:2])

        def play(mesh: LocalMesh, given: Any = given) -> Any:
            if mesh.me == HELPER:
                return coordinate(mesh, Keys("id"), accept=True)
            return align(mesh, given[mesh.me], Keys("id"), protocol="coordinator", coordinator=HELPER, accept=True)

        together(Tapped.of((*owners, HELPER)), play)
        seen.append(got)
    assert len(seen[0]) > 50 and not seen[0] & seen[1]


def test_what_the_leader_gets_of_one_owner_does_not_tell_whether_it_has_a_key() -> None:
    """Without the function's mask a value is a share of zero: not zero, and the same from both where all have it."""
    owns: list[np.ndarray] = []
    stored: list[np.ndarray] = []
    function, decode = many.evaluate_own, okvs.decode

    def own(*given: Any) -> Any:
        made = function(*given)
        owns.append(made[given[3] >= 0])
        return made

    def value(*given: Any) -> Any:
        made = decode(*given)
        stored.append(made.view(np.uint8).reshape(-1, 16)[:, : owns[-1].shape[1]].copy())
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(many, "evaluate_own", own)
        patch.setattr(many.okvs, "decode", value)
        run("many", ALL[:3])
    shares = [made ^ mask for made, mask in zip(stored, owns, strict=True)]
    assert len(shares) == 2 and all(share.any(axis=1).all() for share in shares)
    assert (shares[0] == shares[1]).all(axis=1).sum() == 30


def test_a_protocol_that_does_not_fit_the_parties_is_refused() -> None:
    for options, message in [
        ({"protocol": "ecdh"}, "is for 2 owners, not 3"),
        ({"protocol": "coordinator"}, "needs a coordinator"),
        ({"protocol": "many", "coordinator": "shop"}, "has no coordinator, and 'shop' would be one"),
        ({"protocol": "best"}, "choose from ecdh, fast, coordinator, many"),
    ]:
        mesh = LocalMesh.of(ALL[:3])[0]
        with pytest.raises(ConfigError, match=message):
            align(mesh, tables(ALL[:3])["bank"], Keys("id"), accept=True, **options)


def some(count: int) -> np.ndarray:
    return np.frombuffer(os.urandom(16 * count), np.uint8).reshape(-1, 16)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 400) | st.just(20_000), st.binary(min_size=16, max_size=16))
def test_a_store_gives_back_what_was_stored(count: int, seed: bytes) -> None:
    keys, values = some(count), some(count).view(np.uint64)
    table = okvs.encode(keys, values, seed, os.urandom)
    assert (okvs.decode(keys, table, count, seed) == values).all()
    others = okvs.decode(some(count + 1), table, count, seed)
    assert not {row.tobytes() for row in others} & {row.tobytes() for row in values}


def test_keys_that_cannot_be_peeled_are_solved_over_the_dense_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = okvs._places

    def crowded(keys: Any, size: int, seed: bytes) -> Any:
        places, dense = honest(keys, size, seed)
        places[:20] = places[0]  # twenty keys at the same three places
        return places, dense

    monkeypatch.setattr(okvs, "_places", crowded)
    keys, values = some(300), some(300).view(np.uint64)
    table = okvs.encode(keys, values, bytes(16), os.urandom)
    assert (okvs.decode(keys, table, 300, bytes(16)) == values).all()


def test_the_entries_of_a_store_look_random() -> None:
    keys, values = some(3000), some(3000).view(np.uint64)
    table = okvs.encode(keys, values, bytes(16), os.urandom)
    bits = np.unpackbits(table.view(np.uint8).reshape(-1, 16), axis=1).mean(axis=0)
    assert abs(bits - 0.5).max() < 6 * 0.5 / len(table) ** 0.5
