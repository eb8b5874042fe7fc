"""Prediction as a service: joint answers at the asker alone, declared defaults where an owner is missing."""

import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.runtimes.test_mesh import NAMES, identities
from tests.vertical.networks import CLASSES, Whole, layers

from hansa.core.errors import ConfigError, DataError, ProtocolError, Refused, Unreachable
from hansa.runtimes.mesh import Parties, TlsMesh
from hansa.runtimes.mesh.local import LocalMesh, together
from hansa.vertical import AlignedTable
from hansa.vertical.predict import Asker, People, learns, serve
from hansa.vertical.scale import total
from hansa.vertical.split import SplitLearning

assert identities  # a fixture
IDS = {"bank": ["ann", "bob", "eve", "max"], "clinic": ["bob", "eve", "ann"], "shop": ["eve", "ann", "bob", "zoe"]}
INCOME = {"ann": 1.0, "bob": 2.0, "eve": 3.0, "max": 4.0, "zoe": 5.0}


def ports_of() -> Parties:
    return Parties.here(NAMES)


def people(owner: str) -> People:
    values = [INCOME[name] * (1 + sorted(IDS).index(owner)) for name in IDS[owner]]
    return People(ids=IDS[owner], table=AlignedTable(owner, {"x": values}))


def added(mesh: LocalMesh) -> Any:
    """A model that is the sum of everybody's column, opened to all; its answers are used by the asker alone."""

    def predict(table: AlignedTable) -> Any:
        table.agree(mesh)
        return total(mesh, table["x"])

    return predict


def play(ids: list[str], **options: Any) -> list[Any]:
    def party(mesh: LocalMesh) -> Any:
        if mesh.me != "bank":
            return serve(mesh, added(mesh), people(mesh.me), "bank", **options)
        asker = Asker(lambda: (mesh, added(mesh)), people("bank"), default=-1.0)
        try:
            return asker.ask(ids), asker.ask(["eve"])
        finally:
            asker.close()

    return together(LocalMesh.of(sorted(IDS)), party)


def test_people_whom_all_know_get_a_joint_answer_and_the_others_the_default() -> None:
    (answers, again), clinic, shop = play(["bob", "max", "eve", "zoe"])
    assert [answer.value for answer in answers] == [12.0, -1.0, 18.0, -1.0]
    assert [answer.joint for answer in answers] == [True, False, True, False]
    assert "'shop' does not know" in answers[1].reason and "does not know" in answers[3].reason
    assert [answer.value for answer in again] == [18.0]
    assert clinic == shop == 3
    assert "bob" not in repr(answers[0])


def test_a_lost_owner_is_answered_by_the_default_until_it_is_back() -> None:
    meshes = LocalMesh.of(sorted(IDS))
    later = LocalMesh.of(sorted(IDS))
    tries = iter([meshes, None, later])

    def connect() -> Any:
        links = next(tries)
        if links is None:
            raise Unreachable("party 'shop' does not answer.")
        return links[0], added(links[0])

    def lost() -> None:
        meshes[2].recv("bank", "request")
        meshes[2].leave()  # killed while a request is under way

    def served(mesh: LocalMesh) -> None:
        serve(mesh, added(mesh), people(mesh.me), "bank")

    threads = [threading.Thread(target=lost), *(threading.Thread(target=served, args=(each,)) for each in later[1:])]
    for thread in threads:
        thread.start()
    asker = Asker(connect, people("bank"), default=None)
    first, second, third = (asker.ask(["ann"])[0] for _ in range(3))
    asker.close()
    for thread in threads:
        thread.join()
    assert first.value is None and "an owner is lost: party" in first.reason
    assert second.value is None and "does not answer" in second.reason
    assert third.joint and third.value == 6.0


def test_over_tls_a_killed_owner_is_a_default_and_one_that_is_back_answers(
    identities: Path,
) -> None:
    owners = {name: people(name) for name in sorted(IDS)}
    files = iter([ports_of(), ports_of()])
    now = [next(files)]

    def connected(name: str) -> TlsMesh:
        return TlsMesh(identities / f"{name}.pem", now[0], wait_s=20)

    def served(name: str, killed: bool) -> None:
        with suppress(Unreachable), connected(name) as mesh:
            if killed:
                mesh.recv("bank", "request")
                mesh._shut()  # as if by kill -9
                return
            serve(mesh, added(mesh), owners[name], "bank")

    def connect() -> Any:
        mesh = connected("bank")
        return mesh, added(mesh)

    asker = Asker(connect, owners["bank"], default=-1.0)
    for round_, killed in enumerate((True, False)):
        threads = [
            threading.Thread(target=served, args=(name, killed and name == "shop")) for name in ("clinic", "shop")
        ]
        for thread in threads:
            thread.start()
        answer = asker.ask(["eve"])[0]
        assert answer.joint != killed and answer.value == (-1.0 if killed else 18.0), answer.reason
        if not killed:
            asker.close()
        for thread in threads:
            thread.join(30)
        if not round_:
            now[0] = next(files)


def test_after_a_fault_of_its_own_the_asker_connects_again(identities: Path) -> None:
    owners = {name: people(name) for name in sorted(IDS)}
    now = [ports_of(), ports_of()]
    lost: list[str] = []

    def served(name: str) -> None:
        for parties in now:
            try:
                with TlsMesh(identities / f"{name}.pem", parties, wait_s=20) as mesh:
                    serve(mesh, added(mesh), owners[name], "bank")
            except Unreachable as error:
                lost.append(str(error))

    files = iter(now)

    def connect() -> Any:
        parties = next(files)
        mesh = TlsMesh(identities / "bank.pem", parties, wait_s=20)

        def failing(table: Any) -> Any:
            raise DataError("a row has a missing value.")

        return mesh, failing if parties is now[0] else added(mesh)

    threads = [threading.Thread(target=served, args=(name,)) for name in ("clinic", "shop")]
    for thread in threads:
        thread.start()
    asker = Asker(connect, owners["bank"], default=-1.0)
    with pytest.raises(DataError, match="missing value"):
        asker.ask(["eve"])
    assert asker.ask(["eve"])[0].value == 18.0
    asker.close()
    for thread in threads:
        thread.join(30)
    assert len(lost) == 2 and all("'bank' failed: DataError" in each or "'bank' was lost" in each for each in lost)


def test_what_may_not_be_is_refused_on_both_sides() -> None:
    with pytest.raises(Refused, match="'clinic' serves 1 people at once, not 2"):
        play(["ann", "bob"], most=1)
    with pytest.raises(ConfigError, match="ids occur more than once in a request"):
        play(["ann", "ann"])
    with pytest.raises(DataError, match="1 ids occur more than once"):
        People(ids=["ann", "ann"], table=AlignedTable("bank", {"x": [1.0, 2.0]}))
    with pytest.raises(ConfigError, match="is no other party"):
        serve(LocalMesh.of(["a", "b"])[0], lambda _: None, people("bank"), "a")

    def curious(mesh: LocalMesh) -> Any:
        if mesh.me == "shop":
            return serve(mesh, added(mesh), people("shop"), "bank")
        mesh.send("shop", "request", [b'[["ann"], ""]'])
        mesh.recv("shop", "known")
        return mesh.send("shop", "people", [b'["zoe"]'])

    with pytest.raises(ProtocolError, match="who were not asked about"):
        together(LocalMesh.of(["bank", "shop"]), curious)


def test_split_halves_serve() -> None:
    plan = SplitLearning(bottoms=("bank", "shop"), top="bank")
    bottoms, top = [layers(0, 1, 4), layers(1, 1, 4)], layers(2, 8, CLASSES)

    def party(mesh: LocalMesh) -> Any:
        given: dict[str, Any] = {"bottom": bottoms[plan.bottoms.index(mesh.me)], "announce": lambda _: None}
        if mesh.me == "bank":
            given |= {"top": top, "loss": torch.nn.functional.cross_entropy}
        part = plan.part(mesh, **given)
        if mesh.me != "bank":
            return serve(mesh, part.predict, people(mesh.me), "bank")
        asker = Asker(lambda: (mesh, part.predict), people("bank"), default=None)
        answers = asker.ask(["max", "ann", "eve"])
        asker.close()
        return answers

    answers = together(LocalMesh.of(["bank", "shop"]), party)[0]
    assert [answer.joint for answer in answers] == [False, True, True]
    features = [torch.tensor([[INCOME[name] * factor] for name in ("ann", "eve")]) for factor in (1, 3)]
    wanted = Whole(bottoms, [top])(*features).detach().numpy()
    assert np.allclose(np.stack([answer.value for answer in answers[1:]]), wanted, atol=1e-6)


def test_a_fitted_linear_model_serves_beside_a_party_that_only_computes() -> None:
    from hansa.mpc import Session
    from hansa.vertical import Glm

    random = np.random.default_rng(0)
    x = random.normal(size=(60, 2))
    y = x @ [1.0, -2.0] + 0.5

    def party(mesh: LocalMesh) -> Any:
        with Session(mesh, "aby3") as session:
            table, label = None, None
            if mesh.me == "bank":
                table, label = AlignedTable("bank", {"x": x[:, 0], "y": y}), "y"
            elif mesh.me == "shop":
                table = AlignedTable("shop", {"x": x[:, 1]})
            model = Glm(family="linear", solver="newton", epochs=2).fit(session, table, label)

            def predict(table: AlignedTable | None) -> Any:
                return model.predict(session, table)

            known = People() if mesh.me == "helper" else people(mesh.me)
            if mesh.me != "bank":
                return serve(mesh, predict, known, "bank")
            asker = Asker(lambda: (mesh, predict), known, default=0.0)
            answers = asker.ask(["ann", "max", "bob"])
            asker.close()
            return answers

    answers = together(LocalMesh.of(["bank", "helper", "shop"]), party)[0]
    assert [answer.joint for answer in answers] == [True, False, True]
    for answer, name in ((answers[0], "ann"), (answers[2], "bob")):
        assert answer.value == pytest.approx(INCOME[name] - 2 * 3 * INCOME[name] + 0.5, abs=0.05)


def test_trees_serve() -> None:
    pytest.importorskip("gmpy2")
    from hansa.vertical.boosting import EncryptedBoosting, predict

    random = np.random.default_rng(0)
    x = random.normal(3, 1, size=(80, 2)) * [1, 3]
    y = (x[:, 0] + x[:, 1] > 12).astype(float)
    tables = {name: AlignedTable(name, {"x": x[:, at]}) for at, name in enumerate(("bank", "shop"))}
    settings = EncryptedBoosting(labels_at="bank", trees=1, depth=2, bins=4, min_child_weight=0.1)

    def party(mesh: LocalMesh) -> Any:
        part = settings.fit(mesh, tables[mesh.me], y if mesh.me == "bank" else None)

        def answered(table: AlignedTable | None) -> Any:
            assert table is not None
            return predict(mesh, part, table)

        if mesh.me != "bank":
            return serve(mesh, answered, people(mesh.me), "bank")
        asker = Asker(lambda: (mesh, answered), people("bank"), default=0.5)
        answers = asker.ask(["ann", "eve", "max"])
        asker.close()
        return answers

    ann, eve, unknown = together(LocalMesh.of(["bank", "shop"]), party)[0]
    assert ann.joint and eve.joint and not unknown.joint
    assert ann.value < 0.5 <= unknown.value


def test_what_is_learnt_is_declared() -> None:
    assert learns("bank", ["bank", "shop"])["shop"] == ["which people are asked about, and when"]
