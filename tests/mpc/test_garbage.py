"""A peer that sends something else: one error, which names it, at every message of every protocol."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from hansa.core.checkpoint import Buffer
from hansa.core.errors import ConfigError, HansaError, ProtocolError
from hansa.mpc.session import Session
from hansa.runtimes.mesh.local import LocalMesh, together

PARTIES = {"aby3": 3, "pond": 3, "two_party": 2, "malicious": 3}
NAMES = ("a", "b", "c")


class Broken(LocalMesh):
    """Its message number `at` is another one."""

    at = -1
    sent = 0
    kind = "short"

    def send(self, to: str, tag: str, buffers: Sequence[Buffer]) -> None:
        if self.sent == self.at:
            first = bytes(buffers[0]) if buffers else b""
            buffers = {"short": [first[:-1]], "long": [first + b"\0"], "none": [], "many": [first] * 7}[self.kind]
        self.sent += 1
        super().send(to, tag, buffers)


def program(session: Session, compares: bool) -> Any:
    x = session.share(torch.tensor([1.0, -2.0, 3.0]), "a")
    y = session.share(torch.tensor([3, 1, 2]), session.names[-1])
    z = x * y * x
    return session.reveal(torch.relu(z) if compares else z)


def play(protocol: str, kind: str, at: int) -> tuple[int, list[Any]]:
    """How many messages b sends, and what the parties end with."""
    names = NAMES[: PARTIES[protocol]]
    meshes = [Broken(mesh.me, names, mesh._links, mesh._lost) for mesh in LocalMesh.of(names)]
    liar = meshes[1]
    liar.at, liar.kind = at, kind

    def party(mesh: LocalMesh) -> Any:
        try:
            if protocol == "malicious":
                return program(Session(mesh, "aby3", security="malicious"), compares=False)
            return program(Session(mesh, protocol), compares=True)
        except HansaError as error:
            mesh.leave()
            return error

    ends = together(meshes, party)
    return liar.sent, ends


@pytest.mark.parametrize("kind", ["short", "long", "none", "many"])
@pytest.mark.parametrize("protocol", PARTIES)
def test_garbage_at_any_message_ends_in_an_error_that_names_its_sender(protocol: str, kind: str) -> None:
    count, honest = play(protocol, kind, -1)
    assert not any(isinstance(each, Exception) for each in honest)
    for at in range(0, count, max(1, count // 8)):
        _, ends = play(protocol, kind, at)
        told = [str(each) for each in ends if isinstance(each, ProtocolError | ConfigError)]
        assert any("'b'" in each or "one of the three parties deviated" in each for each in told), (at, ends)
