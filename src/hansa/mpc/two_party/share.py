"""Keys, inputs, openings, and the one product that all else is made of.

keys        128 base transfers in each direction; a common key for masks of inputs
input       the other party draws its share from the common key: no message
open        the parties swap their shares
gated       bits that a party chose ∧ bits that the other holds, shared by xor: one transfer each
bit · bit   of a bit of each party, shared by addition: one transfer, and of half of them either party is the sender, so
            that both work at the same time
"""

import secrets
from collections.abc import Sequence

import numpy as np
import torch

from hansa.core.errors import ConfigError
from hansa.core.runtime import Mesh
from hansa.crypto.oblivious_transfer import OtReceiver, OtSender
from hansa.mpc.protocol import Protocol, Ring, Share
from hansa.mpc.ring.random import KEY_BYTES, Prg
from hansa.mpc.ring.words import taken
from hansa.runtimes.mesh.messages import sized


class Sharing(Protocol):
    """Who holds what.

    Args:
      mesh: of two parties.
    """

    def __init__(self, mesh: Mesh) -> None:
        super().__init__(mesh)
        self.names = tuple(sorted((mesh.me, *mesh.peers)))
        if len(self.names) != 2:
            raise ConfigError(f"two_party is computed by two parties: {', '.join(self.names)} are given.")
        self.me = self.names.index(mesh.me)
        self.other = self.names[1 - self.me]
        if self.me == 0:
            key = secrets.token_bytes(KEY_BYTES)
            mesh.send(self.other, "key", [key])
            self._sender, self._receiver = OtSender(mesh, self.other), OtReceiver(mesh, self.other)
        else:
            key = sized(mesh, self.other, "key", KEY_BYTES)
            self._receiver, self._sender = OtReceiver(mesh, self.other), OtSender(mesh, self.other)
        self._common, self._own = Prg(key), Prg(secrets.token_bytes(KEY_BYTES))

    # -- messages

    def _send(self, tag: str, array: np.ndarray) -> None:
        self.mesh.send(self.other, tag, [np.ascontiguousarray(array).reshape(-1).view(np.uint8).data])

    def _recv(self, tag: str, like: np.ndarray) -> np.ndarray:
        """An array of this one's shape and dtype."""
        words: np.ndarray = taken(self.mesh, self.other, tag, like)[0]
        return words

    # -- in and out

    def input(self, value: Ring | None, shape: Sequence[int], owner: str) -> Share:
        """No message: the other party's share is drawn from the key that both have."""
        if owner not in self.names:
            raise ConfigError(f"'{owner}' does not compute: let it share its data with `hansa mpc share`.")
        drawn = self._common.draw(torch.Size(shape))
        if self.mesh.me != owner:
            return Share((drawn,))
        if value is None:
            raise ConfigError(f"'{owner}' gives no value for its input of shape {tuple(shape)}.")
        return Share((value - drawn,))

    def constant(self, value: Ring) -> Share:
        """Party 0's share is the value."""
        return Share((value if self.me == 0 else torch.zeros_like(value),))

    def constant_bits(self, value: torch.Tensor) -> Share:
        """Party 0's share is the value."""
        return Share(self.constant(value).parts, boolean=True)

    def open(self, share: Share, to: Sequence[str] | None = None) -> Ring | None:
        """One message to each party that learns it."""
        receivers, (mine,) = self.names if to is None else to, share.parts
        if self.other in receivers:
            self._send("open", mine.numpy())
        if self.mesh.me not in receivers:
            return None
        theirs = torch.from_numpy(self._recv("open", mine.numpy()).copy())
        return mine ^ theirs if share.boolean else mine + theirs

    # -- by oblivious transfer

    def _gated(self, choices: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Shares, by xor, of choice ∧ value: of this party's choices and the other's values, and the reverse.

        Args:
          choices: shape (n,), 0 or 1.
          values: shape (width, m), 0 or 1: `width` bits for each of the other's m choices.

        Returns:
          Shares of shape (width, n) and (width, m). Two messages one after another.
        """
        width = np.arange(len(values), dtype=np.uint8)[:, None]
        requested = self._receiver.request(choices)
        zero, one = (_first_byte(rows.pads()) for rows in self._sender.accept(values.shape[1]))
        share = (zero >> width) & 1
        self._send("gated", np.packbits(((one >> width) & 1) ^ share ^ values))
        mine = (_first_byte(requested.pads()) >> width) & 1
        packed = self._recv("gated", np.empty(-(-mine.size // 8), np.uint8))
        mine ^= np.unpackbits(packed, count=mine.size).reshape(mine.shape) & choices
        return mine, share

    def _bit_products(self, bits: np.ndarray, dtype: np.dtype) -> np.ndarray:
        """Shares, by addition, of this party's bits times the other's: shape (n,), of an unsigned type."""
        mine, theirs = self._halves(len(bits))
        requested = self._receiver.request(bits[theirs])
        out = np.empty(len(bits), dtype)
        (out[mine],) = (each[:, 0] for each in self._sender.correlated([bits[mine, None].astype(dtype)]))
        count = len(bits[theirs])
        (shares,) = self._receiver.correlated(requested, bits[theirs], [(count, 1)], [dtype])
        out[theirs] = shares[:, 0]
        return out

    def _halves(self, count: int) -> tuple[slice, slice]:
        """Of which elements this party is the sender, and of which the other."""
        halves = slice(0, count // 2), slice(count // 2, count)
        return halves[self.me], halves[1 - self.me]


def _first_byte(pads: np.ndarray) -> np.ndarray:
    return pads[:, 0].astype(np.uint8)
