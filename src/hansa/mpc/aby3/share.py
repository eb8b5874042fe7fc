"""Keys, inputs and openings of replicated shares.

keys        kᵢ is held by parties i and i−1: what both can draw alone
input       the owner masks its value with what the receivers draw themselves
open        each party sends the share that the one before it lacks
"""

import secrets
from collections.abc import Sequence

import torch

from hansa.core.errors import ConfigError
from hansa.core.runtime import Mesh
from hansa.mpc.protocol import Protocol, Ring, Share
from hansa.mpc.ring.random import KEY_BYTES, Prg
from hansa.mpc.ring.words import Words, raw, taken
from hansa.runtimes.mesh.messages import sized


class Sharing(Protocol):
    """Who holds what.

    Args:
      mesh: of three parties, or more where some only give input or take results.
      computing: the three that compute, in order; all of the mesh's if None.
    """

    def __init__(self, mesh: Mesh, computing: Sequence[str] | None = None) -> None:
        super().__init__(mesh)
        self.names = tuple(computing or sorted((mesh.me, *mesh.peers)))
        if len(self.names) != 3 or mesh.me not in self.names:
            raise ConfigError(
                f"aby3 is computed by three parties, of which '{mesh.me}' is one: {self.names} are given."
            )
        self.me = self.names.index(mesh.me)
        self.next, self.previous = self.names[(self.me + 1) % 3], self.names[(self.me - 1) % 3]
        mine = secrets.token_bytes(KEY_BYTES)
        mesh.send(self.previous, "key", [mine])
        self._with_previous, self._with_next = Prg(mine), Prg(sized(mesh, self.next, "key", KEY_BYTES))
        self._own = Prg(secrets.token_bytes(KEY_BYTES))

    # -- messages

    def _send(self, to: str, tag: str, *words: Words) -> None:
        self.mesh.send(to, tag, [raw(each) for each in words])

    def _recv(self, sender: str, tag: str, like: Words) -> Words:
        """As many words as these, of their kind."""
        (words,) = taken(self.mesh, sender, tag, like)
        return words

    def _around(self, tag: str, words: Words) -> Words:
        """Sends to the party before, and receives as much from the party after."""
        self._send(self.previous, tag, words)
        return self._recv(self.next, tag, words)

    def _zero(self, like: Words) -> Words:
        """This party's summand of a random sharing of 0."""
        drawn = self._with_previous.draw_like(like)
        drawn -= self._with_next.draw_like(like)
        return drawn

    def _zero_bits(self, like: Words) -> Words:
        drawn = self._with_previous.draw_like(like)
        drawn ^= self._with_next.draw_like(like)
        return drawn

    # -- in and out

    def input(self, value: Ring | None, shape: Sequence[int], owner: str) -> Share:
        """The owner draws one share with each neighbour and sends what is left to both of the others."""
        size = torch.Size(shape)
        zero = torch.zeros(size, dtype=torch.int64, device=self.device)
        if owner not in self.names:
            raise ConfigError(f"'{owner}' does not compute: let it share its data with `hansa mpc share`.")
        at = self.names.index(owner)
        # Shares `at` (held by the owner and the one before) and `at + 1` (the owner and the one after) hide the value
        # from both others: the share `at + 2`, which they both hold, is public to them, and is 0.
        if self.me == at:
            if value is None:
                raise ConfigError(f"'{owner}' gives no value for its input of shape {tuple(size)}.")
            mask = self._with_previous.draw_like(zero)
            rest = value - mask
            self._send(self.next, "input", rest)
            return Share((mask, rest))
        if self.me == (at + 1) % 3:
            return Share((self._recv(owner, "input", zero), zero))
        return Share((zero, self._with_next.draw_like(zero)))

    def constant(self, value: Ring) -> Share:
        """Share 0 is the value."""
        zero = torch.zeros_like(value)
        return Share((value if self.me == 0 else zero, value if self.me == 2 else zero))

    def constant_bits(self, value: torch.Tensor) -> Share:
        """Share 0 is the value."""
        return Share(self.constant(value).parts, boolean=True)

    def open(self, share: Share, to: Sequence[str] | None = None) -> Ring | None:
        """Party i lacks the share that both others hold: the one after it sends it."""
        receivers = self.names if to is None else to
        if self.previous in receivers:
            self._send(self.previous, "open", share.parts[1])
        if self.mesh.me not in receivers:
            return None
        third = self._recv(self.next, "open", share.parts[1])
        a, b = share.parts
        return a ^ b ^ third if share.boolean else a + b + third
