"""The aligned table: what it holds, and what it refuses."""

import numpy as np
import pytest

from hansa.core.errors import ConfigError, DataError
from hansa.runtimes.mesh.local import LocalMesh, together
from hansa.vertical import AlignedTable


def table(owner: str = "bank", alignment: bytes = bytes(32)) -> AlignedTable:
    return AlignedTable(owner, {"age": [30, 41, None], "town": ["a", None, "b"]}, alignment)


def test_numbers_are_floats_and_everything_else_is_text() -> None:
    made = table()
    assert made.is_number("age") and np.isnan(made["age"][2]) and len(made) == 3
    assert not made.is_number("town") and made["town"].tolist() == ["a", None, "b"]
    assert made.matrix(["age"]).shape == (3, 1)


def test_what_does_not_fit_is_refused_by_name() -> None:
    with pytest.raises(DataError, match="differ in length"):
        AlignedTable("bank", {"a": [1.0], "b": [1.0, 2.0]})
    with pytest.raises(DataError, match=r"\['town'\] of 'bank' are text"):
        table().matrix()
    with pytest.raises(DataError, match="no column 'income': it has age, town"):
        table()["income"]


def test_parts_of_two_owners_tables_stay_aligned() -> None:
    ours, theirs = table("bank").split(0.67, seed=3), table("shop").split(0.67, seed=3)
    assert [len(part) for part in ours] == [2, 1]
    assert [a.alignment == b.alignment for a, b in zip(ours, theirs, strict=True)] == [True, True]
    assert ours[0].alignment != ours[1].alignment != table().alignment


def test_tables_of_different_alignments_are_refused() -> None:
    def play(mesh: LocalMesh) -> None:
        table(mesh.me, bytes(32) if mesh.me == "bank" else bytes([1]) * 32).agree(mesh)

    with pytest.raises(ConfigError, match="another alignment"):
        together(LocalMesh.of(["bank", "shop"]), play)
    together(LocalMesh.of(["bank", "shop"]), lambda mesh: table(mesh.me).agree(mesh))
