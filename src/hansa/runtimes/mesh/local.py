"""Parties as threads of one process: the same messages, without sockets."""

import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from hansa.core.checkpoint import Buffer
from hansa.core.errors import ProtocolError, Unreachable
from hansa.core.runtime import Counters, Mesh

_T = TypeVar("_T")
_END = object()  # after all that a party has sent
_POLL_S = 0.05  # how soon a waiting party sees that another one failed


class LocalMesh(Mesh):
    """One party's links to the others of its process; `LocalMesh.of(names)` makes all of them."""

    def __init__(self, me: str, names: Sequence[str], links: dict[tuple[str, str], Any], lost: list[str]) -> None:
        self.me, self.peers, self.counters = me, tuple(name for name in names if name != me), Counters()
        self._links, self._lost, self._spoke = links, lost, True

    @classmethod
    def of(cls, names: Sequence[str]) -> "list[LocalMesh]":
        """Meshes that are linked to each other, in order."""
        links = {(a, b): queue.SimpleQueue[Any]() for a in names for b in names if a != b}
        lost: list[str] = []
        return [cls(name, names, links, lost) for name in names]

    def send(self, to: str, tag: str, buffers: Sequence[Buffer]) -> None:
        """Puts the buffers, without a copy, where the other party takes them."""
        self._links[self.me, to].put((tag, list(buffers)))
        size = sum(len(memoryview(each).cast("B")) for each in buffers)
        self.counters.sent_bytes[to] = self.counters.sent_bytes.get(to, 0) + size
        self._spoke = True

    def recv(self, sender: str, tag: str, deadline_s: float | None = None) -> list[Buffer]:
        """What the other party sent next."""
        left = deadline_s
        buffers: list[Buffer]
        while True:
            try:
                given, buffers = self._links[sender, self.me].get(
                    timeout=_POLL_S if left is None else min(_POLL_S, left)
                )
                break
            except queue.Empty:
                if self._lost:
                    raise Unreachable(f"party '{self._lost[0]}' is gone: see its error, and start again.") from None
                left = None if left is None else left - _POLL_S
                if left is not None and left <= 0:
                    raise Unreachable(f"party '{sender}' sent nothing for {deadline_s:g} s ('{tag}').") from None
        if given is _END:
            self._links[sender, self.me].put((_END, []))  # for whoever asks again
            raise ProtocolError(f"party '{sender}' ended where '{tag}' was expected: the programs differ.")
        if given != tag:
            raise ProtocolError(f"party '{sender}' sent '{given}' where '{tag}' was expected: the programs differ.")
        size = sum(len(memoryview(each).cast("B")) for each in buffers)
        self.counters.received_bytes[sender] = self.counters.received_bytes.get(sender, 0) + size
        self.counters.rounds += self._spoke
        self._spoke = False
        return buffers

    def leave(self) -> None:
        """Says that this party failed, so that nobody waits for it."""
        self._lost.append(self.me)

    def end(self) -> None:
        """Says that this party is done, so that nobody waits for more of it than it has sent."""
        for peer in self.peers:
            self._links[self.me, peer].put((_END, []))


def together(meshes: Sequence[LocalMesh], play: Callable[[LocalMesh], _T]) -> list[_T]:
    """Runs every party in a thread of its own and gives what each returned; the first error is raised."""
    results: list[Any] = [None] * len(meshes)
    errors: list[BaseException] = []

    def run(at: int, mesh: LocalMesh) -> None:
        try:
            results[at] = play(mesh)
            mesh.end()
        except BaseException as error:
            errors.append(error)
            mesh.leave()

    threads = [threading.Thread(target=run, args=pair, daemon=True) for pair in enumerate(meshes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results
