"""At every place where a peer is listened to, garbage in place of its message ends in an error that names it.

The parties run each program; one of them, the shop, follows it but for one message. Who reads it must end with a
`ProtocolError` or a `ConfigError` that names the shop: no error of a parser, and no result.
"""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("coincurve")
pytest.importorskip("gmpy2")

from tests.vertical.networks import layers, rows

from hansa.core.checkpoint import Buffer
from hansa.core.errors import ConfigError, HansaError, ProtocolError
from hansa.crypto.paillier import PrivateKey
from hansa.mpc.session import Session
from hansa.runtimes.mesh import LocalMesh
from hansa.vertical import (
    AlignedTable,
    Glm,
    Keys,
    agree_categories,
    coordinate,
    correlation,
    intersect,
    relate,
    scalings,
    serve,
)
from hansa.vertical.boosting import EncryptedBoosting
from hansa.vertical.boosting.shared import SharedBoosting
from hansa.vertical.predict import Asker, People
from hansa.vertical.psi import Prepared, cardinality, intersection_sum, look_up
from hansa.vertical.split import SplitLearning

GARBAGE: dict[str, list[Buffer]] = {
    "nothing": [],
    "empty": [b""],
    "no text": [b"\xff\xfe\x00"],
    "too deep": [b"[" * 100_000],
    "not a number": [b"[NaN, NaN]"],
    "another form": [b'{"what": ["a"], "rows": -1}'],
    "too many parts": [b"[1]", b"[2]", b"[3]"],
}
ZEROS: list[Buffer] = [b"zeros of the right size"]
N = 24
KEY = PrivateKey.generate()
X, Y = np.random.default_rng(0).normal(size=(N, 4)), np.arange(N) % 2


class Garbler(LocalMesh):
    """Sends garbage instead of the message of one tag."""

    tag, garbage = "", list[Buffer]()

    def send(self, to: str, tag: str, buffers: Sequence[Buffer]) -> None:
        if tag == self.tag:
            buffers = [bytes(len(each)) for each in buffers] if self.garbage is ZEROS else self.garbage
        super().send(to, tag, buffers)


def table(me: str, label: bool = False) -> AlignedTable:
    columns = {"a": X[:, 0], "b": X[:, 1]} if me == "bank" else {"c": X[:, 2], "d": X[:, 3]}
    return AlignedTable(me, {**columns, "y": Y} if label else columns)


def owned(mesh: LocalMesh, label: bool = False) -> AlignedTable | None:
    return table(mesh.me, label) if mesh.me != "helper" else None


def glm(mesh: LocalMesh, keep: Path) -> None:
    session, label = Session(mesh), mesh.me == "bank"
    columns = owned(mesh, label)
    Glm(epochs=1, batch_size=N).fit(session, columns, "y" if label else None, keep=keep / mesh.me).predict(
        session, columns
    )


def split(mesh: LocalMesh, keep: Path) -> None:
    x, y = rows(N, 6)
    plan = SplitLearning(bottoms=("shop", "bank"), top="bank", batch_size=N, epochs=1)
    options: dict[str, Any] = {"bottom": layers(1, 3, 3), "optimiser": lambda p: torch.optim.SGD(p, 0.1)}
    if mesh.me == "bank":
        options |= {"top": layers(2, 6, 3), "loss": torch.nn.functional.cross_entropy}
    part = plan.part(mesh, announce=quiet, folder=keep / mesh.me, **options)
    part.fit(x[:, :3], y) if mesh.me == "bank" else part.fit(x[:, 3:])


def boosted(mesh: LocalMesh, leader: str) -> None:
    settings = EncryptedBoosting(labels_at=leader, trees=1, depth=1, bins=4)
    settings.fit(mesh, table(mesh.me), Y if mesh.me == leader else None)


def related(mesh: LocalMesh, labels: str) -> None:
    given: dict[str, Any] = {"labels": Y} if mesh.me == labels else {"table": table(mesh.me)}
    relate(mesh, labels, to="both", least=2, bins=3, announce=quiet, **given)


def asked(mesh: LocalMesh, asker: str) -> None:
    ids = [str(at) for at in range(N)]
    people = People(ids=ids if mesh.me != "helper" else (), table=owned(mesh))

    def predict(chosen: AlignedTable | None) -> Any:
        return np.zeros(2) if mesh.me == asker else None

    if mesh.me == asker:
        made = Asker(lambda: (mesh, predict), people, default=0)
        made.ask(["1", "2"])
        made.close()
    else:
        serve(mesh, predict, people, asker)


def psi(mesh: LocalMesh, leader: str) -> None:
    intersect(mesh, people(mesh), Keys("id"), protocol="many", learns=[leader], accept=accepted)


def pair(mesh: LocalMesh, protocol: str) -> None:
    coordinated = {"coordinator": "shop"} if protocol == "coordinator" else {}
    if mesh.me in coordinated.values():
        return coordinate(mesh, Keys("id"), accept=accepted)
    intersect(mesh, people(mesh), Keys("id"), protocol=protocol, accept=accepted, workers=1, **coordinated)


def counted(mesh: LocalMesh, learner: str) -> None:
    cardinality(mesh, people(mesh), Keys("id"), learner=learner, accept=accepted, workers=1)


def summed(mesh: LocalMesh, holder: str) -> None:
    given = {**people(mesh), "spent": np.ones(30)} if mesh.me == holder else people(mesh)
    values = "spent" if mesh.me == holder else None
    intersection_sum(mesh, given, Keys("id"), values=values, holder=holder, least=2, accept=accepted, workers=1)


def looked_up(mesh: LocalMesh, server: str, folder: Path) -> None:
    if mesh.me == server:
        made = Prepared.make(people(mesh), Keys("id"), folder / "prepared", workers=1)
        return made.answer(mesh, cap=30, accept=accepted)
    look_up(mesh, people(mesh), Keys("id"), cap=30, accept=accepted)


def accepted(_: str) -> bool:
    return True


def people(mesh: LocalMesh) -> dict[str, Any]:
    first = {"bank": 0, "helper": 10, "shop": 20}[mesh.me]
    return {"id": [f"user-{at}" for at in range(first, first + 30)]}


def quiet(_: str) -> None:
    """Says nothing."""


Program = Callable[[LocalMesh, Path], Any]
PLACES: dict[tuple[str, Sequence[str]], Program] = {
    ("linear models", ("shape", "columns", "keeps", "epochs", "rows")): glm,
    ("categories", ("categories", "points/1", "digests")): lambda mesh, _: agree_categories(
        mesh, "town", ["Lübeck", mesh.me], announce=quiet
    ),
    ("two: relations, to labels", ("terms", "columns", "sums/0", "masked/0")): lambda mesh, _: related(mesh, "bank"),
    ("two: relations, to features", ("key", "labels", "opened/0")): lambda mesh, _: related(mesh, "shop"),
    ("correlation", ("columns",)): lambda mesh, _: correlation(Session(mesh), owned(mesh)),
    ("scaling", ("summands", "sums")): lambda mesh, _: scalings(Session(mesh), {"a": X[:, 0]}),
    ("alignment", ("alignment",)): lambda mesh, _: table(mesh.me).agree(mesh),
    ("two: split learning", ("settings", "checkpoints", "activations/0/0")): split,
    ("two: boosting, at a follower", ("settings", "boosting")): lambda mesh, _: boosted(mesh, "shop"),
    ("two: boosting, at the leader", ("settings", "boosting")): lambda mesh, _: boosted(mesh, "bank"),
    ("boosting on shares", ("boosting",)): lambda mesh, _: SharedBoosting(labels_at="bank", trees=1, depth=1).fit(
        Session(mesh), owned(mesh), Y if mesh.me == "bank" else None
    ),
    ("prediction, who asks", ("known",)): lambda mesh, _: asked(mesh, "bank"),
    ("prediction, who serves", ("request", "people")): lambda mesh, _: asked(mesh, "shop"),
    ("intersection", ("psi terms", "psi sizes", "psi resume", "psi key", "base choices", "psi store")): (
        lambda mesh, _: psi(mesh, "bank")
    ),
    ("intersection, behind a leader", ("base", "columns")): lambda mesh, _: psi(mesh, "shop"),
    ("intersection, coordinated", ("psi common",)): lambda mesh, _: pair(mesh, "coordinator"),
    ("two: by Diffie-Hellman", ("psi points", "psi promise", "psi tags", "psi alignment")): (
        lambda mesh, _: pair(mesh, "ecdh")
    ),
    ("two: fast", ("psi order", "psi values")): lambda mesh, _: pair(mesh, "fast"),
    ("two: a count", ("psi resume", "psi points", "psi ranges", "psi tags")): lambda mesh, _: counted(mesh, "bank"),
    ("two: a count, at who learns it", ("psi from",)): lambda mesh, _: counted(mesh, "shop"),
    ("two: a sum, where the values are", ("psi count", "psi total")): lambda mesh, _: summed(mesh, "bank"),
    ("two: a sum, of the other's values", ("psi key", "psi values")): lambda mesh, _: summed(mesh, "shop"),
    ("two: a look-up, at the client", ("psi set", "psi tags", "psi answers")): (
        lambda mesh, folder: looked_up(mesh, "shop", folder)
    ),
    ("two: a look-up, at the server", ("psi wants", "psi points")): (
        lambda mesh, folder: looked_up(mesh, "bank", folder)
    ),
}  # fmt: skip


def failures(
    names: Sequence[str], program: Program, folder: Path, tag: str, garbage: list[Buffer]
) -> dict[str, BaseException]:
    """How each party ends, with a shop that sends garbage under one tag."""
    meshes, ends = Garbler.of(names), dict[str, BaseException]()

    def play(mesh: LocalMesh) -> None:
        try:
            program(mesh, folder)
        except BaseException as error:
            ends[mesh.me] = error
            mesh.leave()

    for mesh in meshes:
        if mesh.me == "shop":
            assert isinstance(mesh, Garbler)
            mesh.tag, mesh.garbage = tag, garbage
    threads = [threading.Thread(target=play, args=[mesh], daemon=True) for mesh in meshes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return ends


@pytest.mark.parametrize("kind", GARBAGE)
@pytest.mark.parametrize(
    ("place", "tag"), [(name, tag) for name, tags in PLACES for tag in tags], ids=lambda each: str(each)
)
def test_garbage_ends_in_an_error_that_names_its_sender(
    place: str, tag: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PrivateKey, "generate", lambda *_, **__: KEY)
    (program,) = (each for (name, _), each in PLACES.items() if name == place)
    names = ["bank", "shop"] if place.startswith("two") else ["bank", "helper", "shop"]
    ends = failures(names, program, tmp_path, tag, GARBAGE[kind])
    honest = [error for name, error in ends.items() if name != "shop"]
    assert honest and all(isinstance(error, HansaError) for error in honest), ends
    named = [error for error in honest if isinstance(error, ProtocolError | ConfigError) and "'shop'" in str(error)]
    assert named, ends


@pytest.mark.parametrize(
    ("place", "tag"),
    [
        ("categories", "points/1"),
        ("two: by Diffie-Hellman", "psi points"),
        ("two: a count", "psi points"),
        ("two: a look-up, at the client", "psi answers"),
        ("two: a look-up, at the server", "psi points"),
    ],
)
def test_what_is_no_point_of_the_curve_names_its_sender(place: str, tag: str, tmp_path: Path) -> None:
    (program,) = (each for (name, _), each in PLACES.items() if name == place)
    names = ["bank", "shop"] if place.startswith("two") else ["bank", "helper", "shop"]
    ends = failures(names, program, tmp_path, tag, ZEROS)
    assert any("'shop' is broken or hostile: a point is not on the curve" in str(each) for each in ends.values()), ends
