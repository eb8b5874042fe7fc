"""One party that holds the secret itself: what every other protocol is held against."""

from collections.abc import Sequence
from typing import ClassVar

import torch

from hansa.core.errors import ConfigError
from hansa.core.runtime import Mesh
from hansa.mpc.protocol import Bilinear, Cost, Protocol, Ring, Share


class Plain(Protocol):
    """No protection at all: for tests, and for writing a program before it runs on shares."""

    name: ClassVar[str] = "plain"
    parties: ClassVar[int] = 1
    corruption: ClassVar[str] = "nobody: the one party sees all values"
    holdings = ((0,),)
    devices = ("cpu", "cuda")

    def __init__(self, mesh: Mesh) -> None:
        super().__init__(mesh)
        if mesh.peers:
            raise ConfigError(f"'plain' is one party's, and there are {1 + len(mesh.peers)}: choose another protocol.")

    def input(self, value: Ring | None, shape: Sequence[int], owner: str) -> Share:
        """The value itself."""
        if value is None:
            raise ConfigError(f"'{owner}' is not here to give its input: 'plain' has one party, '{self.mesh.me}'.")
        return Share((value,))

    def constant(self, value: Ring) -> Share:
        """The value itself."""
        return Share((value,))

    def constant_bits(self, value: torch.Tensor) -> Share:
        """The bits themselves."""
        return Share((value,), boolean=True)

    def open(self, share: Share, to: Sequence[str] | None = None) -> Ring | None:
        """The secret."""
        return share.parts[0] if to is None or self.mesh.me in to else None

    def product(self, x: Share, y: Share, op: Bilinear) -> Share:
        """The product."""
        return Share((op(x.parts[0], y.parts[0]),))

    def settle(self, summands: Share, shift: int = 0) -> Share:
        """Rounded to the nearest: rounding down would drift by half a unit in every step of a training."""
        return summands.map(lambda part: (part + (1 << (shift - 1))) >> shift) if shift else summands

    def both(self, x: Share, y: Share) -> Share:
        """And."""
        return x.zip(y, torch.bitwise_and)

    def negative(self, x: Share) -> Share:
        """The sign bit."""
        return Share(((x.parts[0] < 0).to(torch.int8),), boolean=True)

    def bits(self, x: Share) -> Share:
        """The number's own bits."""
        return Share(x.parts, boolean=True)

    def to_arithmetic(self, bit: Share) -> Share:
        """Bit 0."""
        return Share(((bit.parts[0] & 1).to(torch.int64),))

    def cost(self, operation: str, elements: int) -> Cost:
        """Nothing."""
        return Cost(0, 0)
