"""Owners of made-up tables, as threads of one process."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
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


class Killed(Exception):
    """Stands for kill -9."""


class Mortal(LocalMesh):
    """One party is killed when it has sent so many messages; all that is sent is kept."""

    after: "tuple[str, int] | None" = None
    sent: list[tuple[str, str, bytes]]

    def send(self, to: str, tag: str, buffers: Any) -> None:
        if self.after is not None and self.after == (self.me, len(self.sent)):
            raise Killed
        self.sent.append((self.me, tag, b"".join(bytes(each) for each in buffers)))
        super().send(to, tag, buffers)


Play = Callable[[LocalMesh], Any]
Sent = dict[str, list[tuple[str, str, bytes]]]


def played(owners: Sequence[str], play: Play, after: tuple[str, int] | None = None) -> tuple[dict[str, Any], Sent]:
    """What each party ended with, an error or a result, and sent."""
    meshes, ends = Mortal.of(owners), dict[str, Any]()
    for mesh in meshes:
        assert isinstance(mesh, Mortal)
        mesh.sent, mesh.after = [], after

    def run(mesh: LocalMesh) -> None:
        try:
            ends[mesh.me] = play(mesh)
        except (Killed, HansaError) as error:
            ends[mesh.me] = error
            mesh.leave()

    together(meshes, run)
    return ends, {mesh.me: mesh.sent for mesh in meshes if isinstance(mesh, Mortal)}


def runs(folder: Path, me: str) -> set[str]:
    """Those that an owner's audit has."""
    return {json.loads(line)["run"] for line in (folder / f"{me}.jsonl").read_text().splitlines()}


def left(folder: Path) -> list[str]:
    """The folders of runs that did not end."""
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


def goes_on(
    owners: Sequence[str], play: Callable[[Path], Play], folder: Path, places: Callable[[list[str]], Sequence[int]],
    again: int = 2,
) -> None:  # fmt: skip
    """Kills either party before some of its messages, in turn: the next start ends with the whole result.

    What it sends then is what it sent; at most `again` messages of a kind travel twice.
    """
    (folder / "whole").mkdir()
    whole, sent = played(owners, play(folder / "whole"))
    for me, messages in sent.items():
        for at in places([tag for _, tag, _ in messages]):
            place = folder / f"{me}-{at}"
            place.mkdir()
            ends, before = played(owners, play(place), after=(me, at))
            assert isinstance(ends[me], Killed)
            assert all(isinstance(end, (Killed, HansaError)) for end in ends.values()), "a partial result"
            ended, after = played(owners, play(place))
            assert ended == whole, f"killed before message {at} of {me}: {messages[at][1]}"
            assert left(place) == []
            assert len(runs(place, me)) == 1, "it began anew"
            for tag in ("psi points", "psi tags", "psi answers"):
                uninterrupted = [raw for _, name, raw in messages if name == tag]
                both = [raw for _, name, raw in before[me] + after[me] if name == tag]
                assert len(set(both)) <= len(uninterrupted), f"another {tag} was sent after the loss"
                assert len(both) <= len(uninterrupted) + again, "what was done was done again"


def begun(tags: list[str]) -> range:
    """The messages of a run that can be gone on with."""
    return range(tags.index("psi resume") + 1, len(tags))


def seconds(tags: list[str]) -> list[int]:
    """The second message of each kind, or the only one."""
    after = begun(tags).start
    return sorted({[at for at, name in enumerate(tags) if name == tag][:2][-1] for tag in set(tags[after:])})


def lost_at(owners: Sequence[str], play: Play, me: str, tag: str, which: int = 0) -> dict[str, Any]:
    """How both end if one is killed before its message of this tag."""
    _, sent = played(owners, play)
    at = [index for index, (_, name, _) in enumerate(sent[me]) if name == tag][which]
    return played(owners, play, after=(me, at))[0]
