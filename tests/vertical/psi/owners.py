"""Owners of made-up tables, as threads of one process."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from hansa.core.errors import HansaError
from hansa.runtimes.mesh.local import LocalMesh, together

T = TypeVar("T")


def names(low: int, high: int) -> list[str]:
    """Keys of people; ranges that overlap share them."""
    return [f"person-{at:07}" for at in range(low, high)]


def each(owners: Sequence[str], play: Callable[[LocalMesh], T]) -> dict[str, T]:
    """What each owner returned."""
    return dict(zip(owners, together(LocalMesh.of(owners), play), strict=True))


def errors(owners: Sequence[str], play: Callable[[LocalMesh], Any]) -> dict[str, HansaError]:
    """What each owner raised, where every owner has to."""
    raised: dict[str, HansaError] = {}

    def run(mesh: LocalMesh) -> None:
        try:
            play(mesh)
        except HansaError as error:
            raised[mesh.me] = error
            mesh.leave()

    together(LocalMesh.of(owners), run)
    assert sorted(raised) == sorted(owners), f"only {sorted(raised)} heard of it"
    return raised
