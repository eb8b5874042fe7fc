"""What every protocol gives: secrets of the ring Z₂⁶⁴ as shares, and the few operations from which all others follow.

    SecretTensor, functions   fixed point, autograd, softmax, …     the same for all protocols
    Protocol                  input open bilinear truncate negative to_arithmetic …
    Mesh                      send, recv

A secret is an int64 tensor whose arithmetic wraps (two's complement, so unsigned and signed are the same bits). Each
party holds a `Share`: as many tensors of the secret's shape as its protocol replicates. What is linear in the secret
(sums, reshapes, indexing, multiples by public integers) is done on the parts by themselves, without a message, and is
written once, in `Share`; the rest is a protocol's.
"""

import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import torch

from hansa.core.runtime import Mesh

Ring: TypeAlias = torch.Tensor
"""int64: a public value of the ring, or one part of a shared one."""
Bilinear: TypeAlias = Callable[[Ring, Ring], Ring]
"""A function linear in each argument: torch.mul, a matrix product, a convolution. Runs on parts."""


@dataclass(frozen=True)
class Share:
    """What one party holds of a secret.

    Args:
      parts: tensors of the secret's shape: int64 for numbers; for bits (`boolean`) of any integer dtype, added by xor.
        A party that computes without holding anything (a dealer) has parts of zeros.
      boolean: whether the parts add up by xor instead of modulo 2⁶⁴.
    """

    parts: tuple[torch.Tensor, ...]
    boolean: bool = False

    @property
    def shape(self) -> torch.Size:
        """Of the secret."""
        return self.parts[0].shape

    def map(self, linear: Callable[[torch.Tensor], torch.Tensor]) -> "Share":
        """A linear function of the secret that needs no message: a sum, a view, an index, a negation."""
        return Share(tuple([linear(part) for part in self.parts]), self.boolean)

    def zip(self, other: "Share", linear: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> "Share":
        """A linear function of two secrets, part by part."""
        return Share(tuple([linear(a, b) for a, b in zip(self.parts, other.parts, strict=True)]), self.boolean)

    def __add__(self, other: "Share") -> "Share":
        return self.zip(other, operator.add)

    def __sub__(self, other: "Share") -> "Share":
        return self.zip(other, operator.sub)

    def __neg__(self) -> "Share":
        return self.map(operator.neg)

    def __xor__(self, other: "Share") -> "Share":
        return self.zip(other, operator.xor)

    def times(self, integer: int | Ring) -> "Share":
        """The secret times a public integer of the ring, which grows its scale and is not truncated."""
        return self.map(lambda part: part * integer)

    def __repr__(self) -> str:
        kind = "bits" if self.boolean else "numbers"
        return f"Share({kind}, shape={tuple(self.shape)})"


@dataclass(frozen=True)
class Cost:
    """What one operation sends, at most, by each computing party: messages one after another, and bytes."""

    rounds: int
    bytes_each: int


class Protocol(ABC):
    """One party's side of a protocol; every computing party calls the same methods in the same order.

    Args:
      mesh: the links to the other parties.

    Attributes:
      parties: how many compute.
      corruption: against whom it protects, in words, for reports and pages.
      holdings: which summands of a secret each party holds, in the parties' order by name: x is the sum of all
        summands. A party that holds none (a dealer) has one part of zeros.
      sorts_from: numbers in a row from which `sorted` is cheaper than a network of comparators; infinite without one.
      orders: for each sort of `sorted`, how many bits were opened to all parties that say nothing of the data.
      devices: the kinds of device on which its shares may live.
      fast_truncation: whether a number that is truncated may be wrong, the more likely the larger it is.
      device: where this session's do.
    """

    name: ClassVar[str]
    parties: ClassVar[int]
    corruption: ClassVar[str]
    holdings: ClassVar[tuple[tuple[int, ...], ...]]
    sorts_from: ClassVar[float] = math.inf
    devices: ClassVar[tuple[str, ...]] = ("cpu",)
    fast_truncation: bool = False
    device: torch.device = torch.device("cpu")

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self.orders: list[int] = []

    # -- in and out

    @abstractmethod
    def input(self, value: Ring | None, shape: Sequence[int], owner: str) -> Share:
        """Shares what its owner alone gives; the others pass None and the shape, which is public."""

    @abstractmethod
    def constant(self, value: Ring) -> Share:
        """A public value as a share, without a message."""

    @abstractmethod
    def open(self, share: Share, to: Sequence[str] | None = None) -> Ring | None:
        """The secret, to these parties (None: all that compute); None at the others."""

    # -- numbers

    @abstractmethod
    def product(self, x: Share, y: Share, op: Bilinear) -> Share:
        """Summands of `op(x, y)`, one part at each party: linear functions may follow before `settle`."""

    @abstractmethod
    def settle(self, summands: Share, shift: int = 0) -> Share:
        """The sum of all parties' summands as a share, divided by 2^shift.

        With a shift it is off by at most one unit, for every magnitude below 2^61, unless the fast kind was chosen.
        """

    def summands(self, x: Share) -> Share:
        """A share as summands, without a message."""
        return Share(x.parts[:1])

    def held(self, parts: tuple[Ring, ...]) -> Share:
        """A number's share from its parts, as a file gives them."""
        return Share(parts)

    def bilinear(self, x: Share, y: Share, op: Bilinear, shift: int = 0) -> Share:
        """`op(x, y)`, divided by 2^shift."""
        return self.settle(self.product(x, y, op), shift)

    def truncate(self, x: Share, shift: int) -> Share:
        """The number x / 2^shift."""
        return self.settle(self.summands(x), shift) if shift else x

    # -- bits

    @abstractmethod
    def both(self, x: Share, y: Share) -> Share:
        """Bitwise and of two boolean shares."""

    @abstractmethod
    def negative(self, x: Share) -> Share:
        """Boolean share (int8, in bit 0) of x < 0, exact for every x of the ring as a signed number."""

    @abstractmethod
    def bits(self, x: Share) -> Share:
        """Boolean share (int64) of all 64 bits of x."""

    @abstractmethod
    def to_arithmetic(self, bit: Share) -> Share:
        """Bit 0 of a boolean share as the number 0 or 1."""

    def select(self, bit: Share, x: Share) -> Share:
        """The number x where the bit is 1, else 0."""
        return self.bilinear(self.to_arithmetic(bit), x, torch.mul)

    def flip(self, bit: Share) -> Share:
        """1 − bit, in bit 0."""
        like = bit.parts[0]
        return bit ^ self.constant_bits(torch.ones(bit.shape, dtype=like.dtype, device=like.device))

    def sorted(self, columns: Sequence[Share]) -> list[Share] | None:
        """Columns in ascending order of the first along their last dimension, or None if it has no way for them.

        Args:
          columns: numbers, all of one shape.
        """
        return None

    @abstractmethod
    def constant_bits(self, value: torch.Tensor) -> Share:
        """A public boolean value as a share."""

    # -- what it costs

    @abstractmethod
    def cost(self, operation: str, elements: int) -> Cost:
        """The declared cost of `bilinear`, `bilinear_shift`, `truncate`, `negative`, … on so many results."""

    def costs(self) -> Mapping[str, Cost]:
        """The declared cost of one element of each operation, for reports."""
        names = ("input", "open", "bilinear", "bilinear_shift", "truncate", "both", "negative", "bits", "to_arithmetic")
        return {name: self.cost(name, 1) for name in names}
