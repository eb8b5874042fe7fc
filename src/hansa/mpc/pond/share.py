"""Keys, inputs, openings, and what the dealer gives.

keys        one for each two of the three
input       the other server draws its share from the key that it has with the owner
open        the servers swap their shares; to the dealer they send them masked by what they draw together
deal        a random value: both servers draw their shares, and the dealer draws what they draw
            a value of the dealer's: server 0 draws its share, server 1 is sent the rest
mask        x − a is opened once for each secret x, as TF Encrypted does; what is linear in x (a view, a transpose, a
            multiple) is hidden by the same function of a, and multiplied without opening anything again
"""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from hansa.core.errors import ConfigError
from hansa.core.runtime import Mesh
from hansa.mpc.protocol import Protocol, Ring, Share
from hansa.mpc.ring.random import KEY_BYTES, Prg
from hansa.mpc.ring.words import Words, raw, taken
from hansa.runtimes.mesh.messages import sized

_DEALER = 2
_WINDOW = 1 << 26  # bytes that the dealer may be ahead of the servers


@dataclass(frozen=True)
class Masked(Share):
    """A number's share, and how the number was hidden when it was multiplied: for what is multiplied again.

    Attributes:
      origin: what this is a linear function of, and the function; None if it is to be masked itself.
      kept: x − a, which is open, and this party's share of a (at the dealer zeros, and a); empty while it is unknown.
    """

    origin: "tuple[Masked, Callable[[torch.Tensor], torch.Tensor]] | None" = field(default=None, init=False, repr=False)
    kept: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list, init=False, repr=False)

    def map(self, linear: Callable[[torch.Tensor], torch.Tensor]) -> "Masked":
        """As large as this or larger, it is hidden by this one's mask."""
        made = Masked(tuple([linear(part) for part in self.parts]))
        if made.parts[0].numel() >= self.parts[0].numel():
            object.__setattr__(made, "origin", (self, linear))
        return made

    def zip(self, other: Share, linear: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> "Masked":
        """Another number, with a mask of its own."""
        return Masked(tuple([linear(a, b) for a, b in zip(self.parts, other.parts, strict=True)]))

    def root(self) -> "Masked":
        """What is masked when this is multiplied."""
        at = self
        while at.origin is not None:
            at = at.origin[0]
        return at

    def hidden(self) -> tuple[torch.Tensor, torch.Tensor]:
        """What is open of it, and the share of its mask; the root has been masked."""
        path = []
        at = self
        while not at.kept:
            assert at.origin is not None
            path.append((at, at.origin[1]))
            at = at.origin[0]
        known = at.kept[0]
        for at, linear in reversed(path):
            known = linear(known[0]), linear(known[1])
            at.kept.append(known)
        return known


class Sharing(Protocol):
    """Who holds what.

    Args:
      mesh: of three parties.
      dealer: which of them deals; the last one by name if None.
    """

    def __init__(self, mesh: Mesh, dealer: str | None = None) -> None:
        super().__init__(mesh)
        every = sorted((mesh.me, *mesh.peers))
        if len(every) != 3:
            raise ConfigError(f"pond is computed by two servers and a dealer: {', '.join(every)} are given.")
        if dealer is not None and dealer not in every:
            raise ConfigError(f"dealer='{dealer}' is no party: choose one of {', '.join(every)}.")
        last = dealer or every[-1]
        self.names = (*(name for name in every if name != last), last)
        self.me = self.names.index(mesh.me)
        self.other = self.names[1 - self.me] if self.me != _DEALER else ""
        self._keys = {}
        for at, name in enumerate(self.names):
            if at < self.me:
                self._keys[at] = Prg(sized(mesh, name, "key", KEY_BYTES))
            elif at > self.me:
                mine = secrets.token_bytes(KEY_BYTES)
                mesh.send(name, "key", [mine])
                self._keys[at] = Prg(mine)
        self._dealt = 0

    # -- messages

    def _send(self, to: str, tag: str, *words: Words) -> None:
        self.mesh.send(to, tag, [raw(each) for each in words])

    def _recv(self, sender: str, tag: str, *like: Words) -> list[Words]:
        """As many words as these, of their kinds."""
        return taken(self.mesh, sender, tag, *like)

    def _swap(self, tag: str, *words: Words) -> list[Words]:
        """Server to server."""
        self._send(self.other, tag, *words)
        return self._recv(self.other, tag, *words)

    # -- the dealer's gifts

    def _random(self, like: Words, boolean: bool = False) -> Words:
        """A random secret of this shape, dtype and kind: at a server its share, at the dealer the whole."""
        if self.me != _DEALER:
            return self._keys[_DEALER].draw_like(like)
        mine, theirs = self._keys[0].draw_like(like), self._keys[1].draw_like(like)
        return mine ^ theirs if boolean else mine + theirs

    def _deal(self, value: Words, boolean: bool = False) -> Words:
        """A secret that the dealer knows: its value there, anything of its shape, dtype and kind at the servers.

        Returns:
          The share at a server, zeros at the dealer.
        """
        if self.me == 0:
            return self._keys[_DEALER].draw_like(value)
        self._dealt += value.nbytes
        ahead, self._dealt = self._dealt >= _WINDOW, self._dealt % _WINDOW
        if self.me == 1:
            (share,) = self._recv(self.names[_DEALER], "deal", value)
            if ahead:
                self.mesh.send(self.names[_DEALER], "go on", [])
            return share
        mask = self._keys[0].draw_like(value)
        self._send(self.names[1], "deal", value ^ mask if boolean else value - mask)
        if ahead:
            self.mesh.recv(self.names[1], "go on")
        return value ^ value

    # -- in and out

    def held(self, parts: tuple[Ring, ...]) -> Share:
        """To be masked once."""
        return Masked(parts)

    def input(self, value: Ring | None, shape: Sequence[int], owner: str) -> Share:
        """No message from a server; from the dealer one to server 1."""
        size, zero = torch.Size(shape), torch.zeros(tuple(shape), dtype=torch.int64, device=self.device)
        if owner not in self.names:
            raise ConfigError(f"'{owner}' does not compute: let it share its data with `hansa mpc share`.")
        at = self.names.index(owner)
        if self.me == at and value is None:
            raise ConfigError(f"'{owner}' gives no value for its input of shape {tuple(size)}.")
        if at == _DEALER:
            return Masked((self._deal(zero if value is None else value),))
        if self.me == _DEALER:
            return Masked((zero,))
        drawn = self._keys[1 - self.me].draw_like(zero)
        return Masked((drawn if value is None else value - drawn,))

    def constant(self, value: Ring) -> Share:
        """Server 0's share is the value."""
        return Masked((value if self.me == 0 else torch.zeros_like(value),))

    def constant_bits(self, value: torch.Tensor) -> Share:
        """Server 0's share is the value."""
        return Share(self.constant(value).parts, boolean=True)

    def open(self, share: Share, to: Sequence[str] | None = None) -> Ring | None:
        """Each server to the other; and to the dealer, which drew with them and shall not recognise what it drew."""
        receivers, (mine,) = self.names if to is None else to, share.parts
        dealer = self.names[_DEALER]
        if self.me == _DEALER:
            if dealer not in receivers:
                return None
            a, b = (self._recv(self.names[at], "open", mine)[0] for at in (0, 1))
            return a ^ b if share.boolean else a + b
        if dealer in receivers:
            mask = self._keys[1 - self.me].draw_like(mine)
            mask = mask if share.boolean or self.me == 0 else -mask
            self._send(dealer, "open", mine ^ mask if share.boolean else mine + mask)
        if self.other in receivers:
            self._send(self.other, "open", mine)
        if self.mesh.me not in receivers:
            return None
        (theirs,) = self._recv(self.other, "open", mine)
        return mine ^ theirs if share.boolean else mine + theirs
