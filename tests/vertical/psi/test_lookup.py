"""Look-ups in a prepared set: right, twice without sending the set again, and bounded."""

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("coincurve")

from tests.vertical.psi.owners import each, errors, names

from hansa.core.errors import ConfigError, CorruptFile, HansaError, NotFound, PolicyError
from hansa.runtimes.mesh.local import LocalMesh
from hansa.vertical.psi import Audit, Keys
from hansa.vertical.psi.lookup import Prepared, look_up

TWO = ("register", "shop")
SMALL = {"customer": [" PERSON-0000003", "nobody", "person-0000499", "person-0000500"]}


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    return Prepared.make({"id": names(0, 500)}, Keys("id"), tmp_path / "prepared", workers=1)


def asked(prepared: Prepared, cap: int = 10, **options: Any) -> tuple[list[int], int]:
    sent = {}

    def play(mesh: LocalMesh) -> Any:
        if mesh.me == "register":
            Prepared.open(prepared.folder).answer(mesh, cap=cap, accept=True)
            sent["bytes"] = mesh.counters.sent_bytes["shop"]
            return None
        return look_up(mesh, SMALL, Keys("customer"), cap=cap, accept=True, **options)

    return each(TWO, play)["shop"].tolist(), sent["bytes"]


def test_a_client_learns_which_of_its_rows_the_set_has(prepared: Prepared) -> None:
    assert asked(prepared)[0] == [0, 2]


def test_tags_travel_once_for_each_preparation(prepared: Prepared, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    first, second = asked(prepared, kept=kept), asked(prepared, kept=kept)
    assert first[0] == second[0] == [0, 2]
    assert first[1] - second[1] == 500 * prepared.size
    Prepared.make({"id": names(4, 500)}, Keys("id"), prepared.folder, workers=1)
    assert asked(prepared, kept=kept)[0] == [2]


def test_a_client_s_cap_holds_at_both(prepared: Prepared) -> None:
    def play(mesh: LocalMesh) -> Any:
        if mesh.me == "register":
            return prepared.answer(mesh, cap=3, accept=True)
        return look_up(mesh, SMALL, Keys("customer"), cap=3, accept=True)

    for error in errors(TWO, play).values():
        assert isinstance(error, ConfigError)
        assert "'shop' would ask about 4 keys, above the agreed cap of 3" in str(error)


def test_another_normalisation_or_no_acceptance_is_refused(prepared: Prepared) -> None:
    def play(mesh: LocalMesh) -> Any:
        if mesh.me == "register":
            return prepared.answer(mesh, cap=9, accept=True)
        return look_up(mesh, SMALL, Keys("customer", normalise=()), cap=9, accept=True)

    for error in errors(TWO, play).values():
        assert "declares otherwise the normalisation of keys" in str(error)
    with pytest.raises(PolicyError):
        look_up(LocalMesh.of(TWO)[1], SMALL, Keys("customer"), cap=9)


def test_look_ups_are_limited(prepared: Prepared, tmp_path: Path) -> None:
    audit = Audit(tmp_path / "audit.jsonl", runs=1)

    def play(mesh: LocalMesh) -> Any:
        if mesh.me == "register":
            return prepared.answer(mesh, cap=9, accept=True, audit=audit)
        return look_up(mesh, SMALL, Keys("customer"), cap=9, accept=True)

    each(TWO, play)
    assert json.loads(audit.path.read_text().splitlines()[-1])["answered"] == 4
    with pytest.raises(HansaError, match="1 are allowed|is gone"):
        each(TWO, play)


def test_a_damaged_preparation_is_found(prepared: Prepared, tmp_path: Path) -> None:
    assert (prepared.folder / "secret.bin").stat().st_mode & 0o077 == 0
    tags = prepared.folder / "tags.bin"
    tags.write_bytes(tags.read_bytes()[:-1])
    with pytest.raises(CorruptFile, match="cut short"):
        Prepared.open(prepared.folder)
    (prepared.folder / "prepared.json").write_text("{}")
    with pytest.raises(CorruptFile, match="prepare the set again"):
        Prepared.open(prepared.folder)
    with pytest.raises(NotFound, match="holds no prepared set"):
        Prepared.open(tmp_path)
