"""Relay: clients with different people train one bottom half, which passes from client to client.

    ann ══ bottom ══► bob ══ bottom ══► eve ══ …        one epoch of its own rows at each
         ↕ activations, gradients
       server  ── top (or middle, where labels stay at the clients)

Unlike the rest of this room the owners' rows are of different people and their columns the same. Each client trains
with the server while the others wait; its optimiser's state is its own, and starts afresh at each turn.

Source: Gupta and Raskar 2018, Distributed learning of deep neural network over multiple agents, algorithm 2,
https://arxiv.org/abs/1810.06060
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from hansa.core.checkpoint import buffers, open_bytes
from hansa.core.errors import CorruptFile, ProtocolError, TensorMismatch, require
from hansa.core.runtime import Mesh
from hansa.core.tensors import Tensors, mismatch
from hansa.vertical.learns import Learns, statement
from hansa.vertical.split.party import Optimiser, SplitParty, sgd
from hansa.vertical.split.plan import SplitLearning
from hansa.vertical.split.protection import RowNoise


@dataclass(frozen=True, kw_only=True)
class Relay:
    """Who takes part, in which order, and how.

    Args:
      clients: at least two, in the order of their turns.
      server: has the layers that all share.
      rounds: turns of each client.
      batch_size, micro_batches, seed: as in `SplitLearning`; the order of a client's rows is its own and the round's.
      activations: protection of what clients send.
    """

    clients: tuple[str, ...]
    server: str
    rounds: int = 1
    batch_size: int = 256
    micro_batches: int = 1
    seed: int = 0
    activations: RowNoise | None = None

    def __post_init__(self) -> None:
        require(
            len(set(self.clients)) == len(self.clients) >= 2, f"clients={self.clients}: name two or more, each once."
        )
        require(self.server not in self.clients, f"server='{self.server}' is a client too: name another party.")
        require(self.rounds >= 1, f"rounds={self.rounds}: at least 1 is needed.")
        self.turn(0, self.clients[0])

    def turn(self, number: int, client: str) -> SplitLearning:
        """The plan of one client's turn: folded like a U, so that labels stay at the client."""
        return SplitLearning(
            bottoms=(client,), middles=(self.server,), top=client, batch_size=self.batch_size,
            micro_batches=self.micro_batches, seed=self.seed + number, activations=self.activations,
        )  # fmt: skip

    def learns(self) -> Learns:
        """What each party learns."""
        plan = self.turn(0, self.clients[0])
        server = [sentence.replace(self.clients[0], "each client") for sentence in plan.learns()[self.server]]
        client = "the bottom and top halves as the client before left them, which depend on that one's rows and labels"
        return {self.server: server, **{name: [client] for name in self.clients}}

    def fit(
        self, mesh: Mesh, *, bottom: nn.Module | None = None, top: nn.Module | None = None,
        middle: nn.Module | None = None, x: Any = None, y: Any = None,
        loss: Callable[[torch.Tensor, Any], torch.Tensor] | None = None, optimiser: Optimiser = sgd,
        announce: Callable[[str], None] = print,
    ) -> list[float]:  # fmt: skip
        """Trains all turns; each party calls it. Every client ends with the halves as the last one left them.

        Args:
          mesh: links to all others.
          bottom, top: a client's, of the same shapes at all of them; the first client's values count.
          middle: the server's.
          x, y: a client's own rows and labels.
          loss: (outputs, labels) to the mean over rows, at clients.
          optimiser: of this party's parameters; a client's starts afresh at each of its turns.
          announce: is told, before training, what each party learns.

        Returns:
          The loss of each of this client's turns; none at the server.
        """
        self._check(mesh.me, bottom, top, middle)
        announce(statement("Relay", self.learns()))
        halves = nn.ModuleDict({} if bottom is None or top is None else {"bottom": bottom, "top": top})
        losses: list[float] = []
        shared = None if middle is None else optimiser(middle.parameters())
        for number in range(self.rounds):
            for client, before in zip(self.clients, self._before(number), strict=True):
                plan = self.turn(number, client)
                if mesh.me == client:
                    if before is not None:
                        _receive(mesh, before, halves)
                    part = SplitParty(
                        plan, mesh, bottom=bottom, top=top, loss=loss, optimiser=optimiser, announce=_silent
                    )
                    losses += [epoch.loss for epoch in part.fit(x, y) if epoch.loss is not None]
                    for name in self._after(number, client):
                        mesh.send(name, "halves", buffers(_copied(halves)))
                elif mesh.me == self.server:
                    assert middle is not None
                    assert shared is not None
                    SplitParty(plan, mesh, middles=[middle], optimiser=shared, announce=_silent).fit()
        if mesh.me in self.clients[:-1]:
            _receive(mesh, self.clients[-1], halves)
        return losses

    def _check(self, me: str, bottom: Any, top: Any, middle: Any) -> None:
        require(me in (self.server, *self.clients), f"'{me}' is neither the server nor a client of this relay.")
        client = me in self.clients
        needed = "bottom and top, and no middle" if client else "a middle, and neither bottom nor top"
        fits = (bottom is not None) == (top is not None) == client and (middle is None) == client
        require(fits, f"'{me}' is {'a client' if client else 'the server'}: give it {needed}.")

    def _before(self, number: int) -> Sequence[str | None]:
        """For each client, whose halves it goes on from."""
        first = None if number == 0 else self.clients[-1]
        return [first, *self.clients[:-1]]

    def _after(self, number: int, client: str) -> Sequence[str]:
        """Who gets the halves after a client's turn: the next one, or at the end everybody."""
        if client != self.clients[-1]:
            return [self.clients[self.clients.index(client) + 1]]
        return self.clients[:1] if number + 1 < self.rounds else self.clients[:-1]


def _silent(_: str) -> None:
    """What is learnt has been said for all turns."""


def _copied(halves: nn.Module) -> Tensors:
    return Tensors({name: tensor.detach().cpu().numpy().copy() for name, tensor in halves.state_dict().items()})


def _receive(mesh: Mesh, sender: str, halves: nn.Module) -> None:
    try:
        given, _ = open_bytes(b"".join(mesh.recv(sender, "halves")))
        mismatch(_copied(halves).shapes, given.shapes, f"what '{sender}' sent", dtypes=True)
    except CorruptFile as error:
        raise ProtocolError(f"'{sender}' sent no halves: {error}") from None
    except TensorMismatch as error:
        raise ProtocolError(f"{error} Give the same modules to every client.") from None
    if wild := [name for name in given if not np.isfinite(given[name]).all()]:
        raise ProtocolError(f"'{sender}' sent halves with numbers that are not finite, in {', '.join(wild)}.")
    halves.load_state_dict({name: torch.from_numpy(np.array(given[name])) for name in given})
