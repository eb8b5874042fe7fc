"""Secret numbers with a public scale, and the arithmetic that is exact up to rounding.

    value = ring element / 2^bits            `home` bits at rest: 16 of the fraction for floats, 0 for integers and bits

A product has the bits of both factors, and is brought home only when somebody needs it there: until then it waits as
summands, to which biases, gradients' signs and learning rates are added or multiplied without a message, so that one
truncation does for all. What is public (a constant, a mask, zeros of an optimiser) stays public, and costs nothing.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from hansa.mpc.protocol import Bilinear, Protocol, Ring, Share
from hansa.mpc.ring import FRACTION_BITS, encode

_TOO_LARGE = 1 << 62  # as a code
_FACTOR = 2.0**46  # as shared numbers
_WHOLE = 2**53  # whole numbers below it multiply without a longer fraction
_CONSTANTS = 1 << 10
MOST_BITS = 46  # beyond it a waiting value is brought home: 2^(61 − 46) is still the largest magnitude it may have


@dataclass
class Engine:
    """A protocol and how numbers are represented in it.

    Args:
      protocol: this party's side.
      bits: of the fraction.
      sigmoid: which of `functions.SIGMOIDS`.
      random: of public masks (dropout), seeded alike at every party; of the processor, wherever shares live.
      device: where shares live, and what is public beside them.
    """

    protocol: Protocol
    bits: int = FRACTION_BITS
    sigmoid: str = "spline"
    random: torch.Generator = field(default_factory=torch.Generator)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    _constants: dict[int, Share] = field(default_factory=dict)

    def placed(self, value: torch.Tensor) -> torch.Tensor:
        """Something public, where shares live."""
        return value if value.device == self.device else value.to(self.device)

    def constant(self, code: int) -> Share:
        """A public element of the ring, a single number, which programs use again and again."""
        known = self._constants.get(code)
        if known is None:
            if len(self._constants) == _CONSTANTS:
                self._constants.clear()
            known = self._constants[code] = self.protocol.constant(self.placed(torch.tensor(code)))
        return known


class Fixed:
    """A secret (or public) number of an engine. Immutable but for being settled, which does not change its value."""

    __slots__ = ("_public", "_share", "_summands", "bits", "cached", "engine", "home")

    def __init__(
        self, engine: Engine, share: Share | None, bits: int, home: int, *, summands: bool = False,
        public: torch.Tensor | None = None,
    ) -> None:  # fmt: skip
        self.engine, self.bits, self.home = engine, bits, home
        self._share, self._summands, self._public = share, summands, public
        self.cached: dict[str, Any] = {}  # what backward passes need again, as the sign behind a relu

    # -- what it is

    @classmethod
    def constant(cls, engine: Engine, value: torch.Tensor, home: int | None = None) -> "Fixed":
        """A public number; conditions are 0 and 1."""
        value = value.to(torch.int64) if value.dtype == torch.bool else value
        home = (engine.bits if value.is_floating_point() else 0) if home is None else home
        return cls(engine, None, home, home, public=engine.placed(value))

    @property
    def shape(self) -> torch.Size:
        """Of the number."""
        if self._share is not None:
            return self._share.parts[0].shape
        assert self._public is not None
        return self._public.shape

    @property
    def public(self) -> torch.Tensor | None:
        """The value itself where it is public."""
        return self._public

    def share(self) -> Share:
        """The share, at home bits; settles what waits."""
        if self._share is None:
            assert self._public is not None
            return self.engine.protocol.constant(encode(self._public, self.home, "a constant"))
        if self._summands or self.bits != self.home:
            self._settle()
        return self._share

    def _settle(self) -> None:
        assert self._share is not None
        if (origin := self.cached.pop("of", None)) is not None:
            whole, places = origin
            self._share, self._summands, self.bits = whole.share().map(places), False, self.home
            return
        protocol, share, shift = self.engine.protocol, self._share, self.bits - self.home
        if shift < 0:
            share = share.times(1 << -shift)
        if self._summands:
            share = protocol.settle(share, max(0, shift))
        elif shift > 0:
            share = protocol.truncate(share, shift)
        self._share, self._summands, self.bits = share, False, self.home

    def rehomed(self, bits: int) -> "Fixed":
        """The same number with another precision at rest."""
        if self._public is not None:
            return Fixed(self.engine, None, bits, bits, public=self._public)
        return Fixed(self.engine, self._share, self.bits, bits, summands=self._summands)

    def _with(self, share: Share, **changes: Any) -> "Fixed":
        kept = {"bits": self.bits, "home": self.home, "summands": self._summands, **changes}
        return Fixed(self.engine, share, kept["bits"], kept["home"], summands=kept["summands"])

    # -- linear

    def map(self, linear: Callable[[torch.Tensor], torch.Tensor]) -> "Fixed":
        """A view, a sum, or another linear function with integer factors."""
        if self._public is not None:
            return Fixed(self.engine, None, self.bits, self.home, public=linear(self._public))
        assert self._share is not None
        return Fixed(self.engine, self._share.map(linear), self.bits, self.home, summands=self._summands)

    def view(self, places: Callable[[torch.Tensor], torch.Tensor]) -> "Fixed":
        """The same numbers at other places: a weight and its transpose wait for one truncation, not two."""
        made = self.map(places)
        if (
            self._public is None
            and (self._summands or self.bits != self.home)
            and made.shape.numel() >= self.shape.numel()
        ):
            made.cached["of"] = self, places
        return made

    def join(self, others: Sequence["Fixed"], linear: Callable[[list[torch.Tensor]], torch.Tensor]) -> "Fixed":
        """A linear function of several numbers: concatenation, stacking; with the longest of their fractions."""
        every = [self, *others]
        home = max([one.home for one in every])
        if all(one.public is not None for one in every):
            return Fixed.constant(self.engine, linear([one.public for one in every if one.public is not None]), home)
        shares = [one.share() if one.home == home else one.rehomed(home).share() for one in every]
        parts = zip(*(share.parts for share in shares), strict=True)
        joined = replace(shares[0], parts=tuple(linear(list(part)) for part in parts))
        return self._with(joined, summands=False, bits=home, home=home)

    def __neg__(self) -> "Fixed":
        return self.map(torch.neg)

    def __add__(self, other: "Fixed | float | torch.Tensor") -> "Fixed":
        return self._added(other, torch.add)

    def __sub__(self, other: "Fixed | float | torch.Tensor") -> "Fixed":
        return self._added(other, torch.sub)

    def __rsub__(self, other: "float | torch.Tensor") -> "Fixed":
        return -self + other

    def _added(self, other: "Fixed | float | torch.Tensor", op: Bilinear) -> "Fixed":
        if isinstance(other, Fixed) and self._public is None and other._public is None:
            home = max(self.home, other.home)
            bits = max(self.bits, other.bits, home)
            waits = self._summands or other._summands
            total = self._terms(waits, bits).zip(other._terms(waits, bits), op)
            return Fixed(self.engine, total, bits, home, summands=waits)
        if isinstance(other, float | int) and self._public is None:
            return self._moved(other, op)
        given = _public(other, self.engine)
        if given is not None and self._public is not None:
            return Fixed.constant(self.engine, op(self._public, given), max(self.home, _home(other, self.engine)))
        protocol = self.engine.protocol
        home = max(self.home, _home(other, self.engine))
        if given is not None:
            bits = max(self.bits, home)
            right = protocol.constant(encode(given, bits, "a constant"))
            if self._summands:
                right = protocol.summands(right)
            return self._with(self._terms(self._summands, bits).zip(right, op), bits=bits, home=home)
        assert isinstance(other, Fixed)
        assert self._public is not None
        flipped = other if op is torch.add else -other
        return flipped.__add__(self._public)

    def _moved(self, other: float, op: Bilinear) -> "Fixed":
        """The sum with one public number."""
        home = max(self.home, _home(other, self.engine))
        bits = max(self.bits, home)
        code = round(other * (1 << bits)) if math.isfinite(other) else _TOO_LARGE
        if abs(code) >= _TOO_LARGE:
            encode(torch.tensor(other, dtype=torch.float64), bits, "a constant")  # says what is wrong
        right = self.engine.constant(code)
        if self._summands:
            right = self.engine.protocol.summands(right)
        return self._with(self._terms(self._summands, bits).zip(right, op), bits=bits, home=home)

    def _terms(self, summands: bool, bits: int) -> Share:
        """What a sum with so many bits, more than this number has, adds up."""
        share = self._share
        assert share is not None
        if summands and not self._summands:
            share = self.engine.protocol.summands(share)
        return share if bits == self.bits else share.times(1 << (bits - self.bits))

    # -- products

    def __mul__(self, other: "Fixed | float | torch.Tensor") -> "Fixed":
        if isinstance(other, float | int) and self._public is None:
            return self._times(float(other), max(self.home, _home(other, self.engine)))
        given = _public(other, self.engine)
        if given is not None:
            return self._scaled(given, torch.mul, _home(other, self.engine))
        assert isinstance(other, Fixed)
        if self._public is not None:
            return other._scaled(self._public, torch.mul, self.home)
        return self.bilinear(other, torch.mul)

    def bilinear(self, other: "Fixed", op: Bilinear) -> "Fixed":
        """A product of any kind; of a public factor with the cheap rule."""
        home = max(self.home, other.home)
        if self._public is not None and other._public is not None:
            return Fixed.constant(self.engine, op(self._public.double(), other._public.double()).float(), home)
        if other._public is not None:
            return self._scaled(other._public, op, other.home)
        if self._public is not None:
            return other._scaled(self._public, lambda b, a: op(a, b), self.home)
        product = self.engine.protocol.product(self.share(), other.share(), op)
        return Fixed(self.engine, product, self.home + other.home, home, summands=True)

    def _scaled(self, factor: torch.Tensor, op: Bilinear, home: int) -> "Fixed":
        """A product with something public: integers keep the scale, other numbers add bits to it."""
        home = max(self.home, home)
        if self._public is not None:
            known = self._public
            kind = torch.promote_types(known.dtype, factor.dtype) if home else known.dtype
            return Fixed.constant(self.engine, op(known.to(kind), factor.to(kind)), home)
        if factor.numel() == 1 and op is torch.mul and factor.dim() <= len(self.shape):
            return self._times(float(factor), home)
        integers = not factor.is_floating_point() or bool(((factor == factor.round()) & (factor.abs() < _WHOLE)).all())
        power = None if integers else _inverse_power(factor)
        if self.bits + self.engine.bits > MOST_BITS and not integers:
            self.share()
        assert self._share is not None
        if power is not None and self.bits + power <= MOST_BITS and op is torch.mul:
            # A factor of 2^−k is a longer fraction, and no message.
            ones = torch.full_like(factor, 1 if float(factor.flatten()[0]) > 0 else -1, dtype=torch.int64)
            return self._with(self._share.map(lambda part: op(part, ones)), bits=self.bits + power, home=home)
        extra = 0
        if not integers:  # a small factor gets a longer fraction, so that a mean over many is as exact as a sum
            below_one = max(0, -math.frexp(float(factor.abs().max()))[1])
            extra = min(self.engine.bits + below_one, MOST_BITS - self.bits)
        code = factor.to(torch.int64) if integers else encode(factor, extra, "a factor")
        return self._with(self._share.map(lambda part: op(part, code)), bits=self.bits + extra, home=home)

    def _times(self, factor: float, home: int) -> "Fixed":
        """The product with one public number, by the same rules, without tensors."""
        if factor == 1 and home == self.home:
            return self
        if not abs(factor) < (_WHOLE if factor.is_integer() else _FACTOR):
            encode(torch.tensor(factor, dtype=torch.float64), self.engine.bits, "a factor")  # says what is wrong
        if factor.is_integer() and abs(factor) < _WHOLE:
            extra, code = 0, int(factor)
        else:
            mantissa, exponent = math.frexp(abs(factor))
            if mantissa == 0.5 and self.bits + 1 - exponent <= MOST_BITS:
                extra, code = 1 - exponent, 1 if factor > 0 else -1
            else:
                if self.bits + self.engine.bits > MOST_BITS:
                    self.share()
                extra = min(self.engine.bits + max(0, -exponent), MOST_BITS - self.bits)
                code = round(factor * (1 << extra))
        assert self._share is not None
        share = self._share if code == 1 else self._share.times(code)
        return self._with(share, bits=self.bits + extra, home=home)

    # -- comparison

    def negative(self) -> "Fixed":
        """1 where the number is below 0, else 0: a secret integer."""
        if self._public is not None:
            return Fixed.constant(self.engine, (self._public < 0).to(torch.int64), 0)
        protocol = self.engine.protocol
        if self._summands:
            self.share()
        assert self._share is not None  # a longer fraction has the same sign
        return Fixed(self.engine, protocol.to_arithmetic(protocol.negative(self._share)), 0, 0)

    def open(self, to: Sequence[str] | None = None) -> Ring | None:
        """The ring element at home bits, to these parties."""
        return self.engine.protocol.open(self.share(), to)

    def __repr__(self) -> str:
        return f"Fixed({'public' if self._public is not None else 'secret'}, shape={tuple(self.shape)})"


class Later(Fixed):
    """A number that is computed when somebody asks for it: a loss's value, which its gradient does not need.

    Every party runs the same program, so all ask at the same place, or none does.

    Args:
      engine: as the number's.
      shape: public.
      compute: gives the number; called once, or never.
    """

    __slots__ = ("_compute", "_shape")
    _WAITING = frozenset(("_public", "_share", "_summands", "bits", "home"))

    def __init__(self, engine: Engine, shape: Sequence[int], compute: Callable[[], Fixed]) -> None:
        self.engine, self.cached = engine, {}
        self._shape, self._compute = torch.Size(shape), compute

    @property
    def shape(self) -> torch.Size:
        """Known before the number is."""
        return self._shape

    def __getattr__(self, name: str) -> Any:
        # Only called for what is not there yet.
        if name not in self._WAITING:
            raise AttributeError(name)
        number = self._compute()
        for each in self._WAITING:
            setattr(self, each, getattr(number, each))
        return getattr(self, name)


def _public(other: "Fixed | float | torch.Tensor", engine: Engine) -> torch.Tensor | None:
    if isinstance(other, Fixed):
        return other.public
    return engine.placed(other if isinstance(other, torch.Tensor) else torch.tensor(other, dtype=torch.float64))


def _home(other: "Fixed | float | torch.Tensor", engine: Engine) -> int:
    if isinstance(other, Fixed):
        return other.home
    fraction = other.is_floating_point() if isinstance(other, torch.Tensor) else not float(other).is_integer()
    return engine.bits if fraction else 0


def _inverse_power(factor: torch.Tensor) -> int | None:
    """K where every factor is the same 2^−k or −2^−k, else None."""
    first = float(factor.flatten()[0])
    mantissa, exponent = math.frexp(abs(first))
    if mantissa != 0.5 or not bool((factor == first).all()):
        return None
    return 1 - exponent
