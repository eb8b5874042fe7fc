"""Arithmetic that detects a party which deviates: every secret carries a code that only the three together know.

    secret      x as signed number modulo 2¹⁴⁴, in replicated shares, and α·x, α random, odd, and never opened
    product     op(x, y) and op(α·x, y), each reshared as in the semi-honest protocol: a party can add an error to its
                message, and nothing else
    truncate    r = r₀ + r₁ + r₂ with rⱼ < 2¹⁰³ drawn by its two holders, and Σ (rⱼ >> f), which they know as well;
                z + r + 2⁶² is opened; it hides z but for 2⁻⁴⁰
    open        each party receives what it lacks from one holder, and its digest from the other
    check       before anything is revealed: Σ ρₖ·(α·x)ₖ − α·Σ ρₖ·xₖ = 0 over all that was reshared since the last
                check, with ρₖ drawn together afterwards, of 40 bits and odd

An error e = 2ʲ·(odd) in a message passes the check with probability 2^(j−143), and those with j ≥ 105 leave the range
in which everything that is opened must lie: a party that deviates in a way that changes a result is caught but for
2⁻³⁸. It can end the session, and is not named. Comparisons and whatever is built from them are not covered, and
refused.

Sources: Chida et al. 2018 (codes and their check), https://eprint.iacr.org/2018/570; Cramer et al. 2018, SPDZ2k (codes
modulo 2ᵏ), https://eprint.iacr.org/2018/482; Furukawa et al. 2017 (digests of openings), https://eprint.iacr.org/2016/944
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch

from hansa.core.errors import ConfigError, ProtocolError, SecretError
from hansa.core.runtime import Mesh
from hansa.mpc.aby3.share import Sharing
from hansa.mpc.protocol import Bilinear, Cost, Ring, Share
from hansa.mpc.ring import wide
from hansa.mpc.ring.random import KEY_BYTES, Prg
from hansa.mpc.ring.wide import MODULUS, PACKED_BYTES, WORDS, Wide
from hansa.runtimes.mesh.messages import named, parts, sized

_MASK_BITS = 103
_OFFSET = 1 << 62
_DIGEST = 16
_MANY = 1 << 21  # numbers that wait for a check at most
_COIN = 32


class Coded(Share):
    """Parts in sixes: the words of each part of a secret, then those of its code."""

    def map(self, linear: Callable[[torch.Tensor], torch.Tensor]) -> "Coded":
        """Word by word, and the carries after it."""
        return Coded.of([wide.carried([linear(word) for word in each]) for each in self.wide])

    def zip(self, other: Share, linear: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> "Coded":
        """Word by word, and the carries after it."""
        words = [linear(a, b) for a, b in zip(self.parts, other.parts, strict=True)]
        return Coded.of([wide.carried(words[at : at + WORDS]) for at in range(0, len(words), WORDS)])

    @property
    def wide(self) -> list[Wide]:
        """The parts: of a share the two of the secret and the two of its code, of summands one of each."""
        return [self.parts[at : at + WORDS] for at in range(0, len(self.parts), WORDS)]

    @classmethod
    def of(cls, parts: Sequence[Wide]) -> "Coded":
        """From the parts."""
        return cls(tuple(word for part in parts for word in part))


class MaliciousAby3(Sharing):
    """Three parties, of which one may do what it likes.

    Args:
      mesh: links to the others.
      computing: the three that compute; all of the mesh's if None.

    Raises:
      ProtocolError: at a check, or an opening: a party deviated; nothing of what was to be opened is used.
      SecretError: an operation that is not arithmetic.
    """

    name: ClassVar[str] = "aby3-malicious"
    parties: ClassVar[int] = 3
    corruption: ClassVar[str] = "any one of the three parties, whatever it does; arithmetic alone"
    holdings = ()  # nothing in files: the codes are of this session's α

    def __init__(self, mesh: Mesh, computing: Sequence[str] | None = None) -> None:
        super().__init__(mesh, computing)
        self._waiting: list[Coded] = []
        key = self._mine(torch.Size(()))
        # Share 0 is odd and the others are even.
        self._key = tuple((part[0] & -2 | int((self.me + at) % 3 == 0), *part[1:]) for at, part in enumerate(key))

    # -- in and out

    def input(self, value: Ring | None, shape: Sequence[int], owner: str) -> Share:
        """As in the semi-honest protocol, then the code."""
        size = torch.Size(shape)
        zero = wide.split(torch.zeros(size, dtype=torch.int64))
        if owner not in self.names:
            raise ConfigError(f"'{owner}' does not compute: let it share its data with `hansa mpc share`.")
        at = self.names.index(owner)
        if self.me == at:
            if value is None:
                raise ConfigError(f"'{owner}' gives no value for its input of shape {tuple(size)}.")
            mask = wide.drawn(self._with_previous, size)
            rest = wide.subtracted(wide.split(value), mask)
            self.mesh.send(self.next, "input", [wide.packed(rest)])
            pair = mask, rest
        elif self.me == (at + 1) % 3:
            pair = wide.unpacked(self._numbers(owner, "input", size.numel()), size), zero
        else:
            pair = zero, wide.drawn(self._with_next, size)
        return self._coded(pair, self._reshared([self._product(self._key, pair, torch.mul)])[0])

    def constant(self, value: Ring) -> Share:
        """Share 0 is the value, and its code a multiple of each party's own part of α."""
        return self._public(wide.split(value))

    def open(self, share: Share, to: Sequence[str] | None = None) -> Ring | None:
        """After everything before was checked."""
        self._check()
        receivers = self.names if to is None else to
        first, second, *_ = _parts(share)
        opened = self._opened("open", (first, second), receivers)
        if opened is None:
            return None
        value, whole = wide.joined(opened)
        if not whole:
            raise _deviation("a result is out of range")
        return value

    def _opened(self, tag: str, pair: tuple[Wide, Wide], receivers: Sequence[str]) -> Wide | None:
        mine = [wide.packed(part) for part in pair]
        third = self._third(tag, mine, receivers)
        if third is None:
            return None
        return wide.added(wide.added(*pair), wide.unpacked(third, pair[0][0].shape))

    def _third(self, tag: str, mine: Sequence[bytes], receivers: Sequence[str]) -> bytes | None:
        """The share that this party lacks: from one of its holders, and a digest of it from the other."""
        if self.previous in receivers:
            self.mesh.send(self.previous, tag, [mine[1]])
        if self.next in receivers:
            self.mesh.send(self.next, tag, [hashlib.sha256(mine[0]).digest()[:_DIGEST]])
        if self.mesh.me not in receivers:
            return None
        third = sized(self.mesh, self.next, tag, len(mine[0]))
        if sized(self.mesh, self.previous, tag, _DIGEST) != hashlib.sha256(third).digest()[:_DIGEST]:
            raise _deviation(f"'{self.next}' and '{self.previous}' hold different shares of one secret")
        return third

    def _numbers(self, sender: str, tag: str, count: int) -> bytes:
        return sized(self.mesh, sender, tag, count * PACKED_BYTES)

    # -- numbers

    def product(self, x: Share, y: Share, op: Bilinear) -> Share:
        """Of the secrets, and of one's code with the other."""
        a, b, code_a, code_b = _parts(x)
        other = (_parts(y)[0], _parts(y)[1])
        return Coded.of([self._product((a, b), other, op), self._product((code_a, code_b), other, op)])

    def settle(self, summands: Share, shift: int = 0) -> Share:
        """One message around of 36 bytes an element; with a shift, what `truncate` takes as well."""
        value, code = self._reshared(_parts(summands))
        share = self._coded(value, code)
        return self.truncate(share, shift) if shift else share

    def summands(self, x: Share) -> Share:
        """The first part of the secret and of its code."""
        first, _, code, _ = _parts(x)
        return Coded.of([first, code])

    def truncate(self, x: Share, shift: int) -> Share:
        """Two messages around; off by at most two units, for |x| < 2⁶²."""
        if not shift:
            return x
        a, b, _, _ = _parts(x)
        masks = [wide.drawn(prg, x.shape, _MASK_BITS) for prg in (self._with_previous, self._with_next)]
        quotients = wide.shifted(masks[0], shift), wide.shifted(masks[1], shift)
        (code,) = self._reshared([self._product(self._key, quotients, torch.mul)])
        removed = self._coded(quotients, code)
        offset = _parts(self.constant(torch.full(x.shape, _OFFSET)))
        masked = [wide.added(wide.added(part, mask), o) for part, mask, o in zip((a, b), masks, offset, strict=False)]
        opened = self._opened("masked", (masked[0], masked[1]), self.names)
        assert opened is not None
        if bool(opened[5].any()) or bool((opened[4] >> (_MASK_BITS + 2 - 4 * 24)).any()):
            raise _deviation("a masked number is out of range")
        # Each of three quotients is rounded down, which adds one on average.
        rest = self._public(wide.shifted(opened, shift)) - self.constant(torch.full(x.shape, (_OFFSET >> shift) + 1))
        return rest - removed

    def _public(self, words: Wide) -> Share:
        zero = tuple(torch.zeros_like(word) for word in words)
        pair = words if self.me == 0 else zero, words if self.me == 2 else zero
        return Coded.of([*pair, *(wide.multiplied(part, words, torch.mul) for part in self._key)])

    def _product(self, x: tuple[Wide, ...], y: tuple[Wide, ...], op: Bilinear) -> Wide:
        return wide.added(
            wide.multiplied(x[0], wide.added(y[0], y[1]), op),
            wide.multiplied(x[1], y[0], op),
        )

    def _mine(self, shape: torch.Size) -> tuple[Wide, Wide]:
        """This party's shares of a random number."""
        return wide.drawn(self._with_previous, shape), wide.drawn(self._with_next, shape)

    def _reshared(self, summands: Sequence[Wide]) -> list[tuple[Wide, Wide]]:
        masked = []
        for each in summands:
            mine, theirs = self._mine(each[0].shape)
            masked.append(wide.added(each, wide.subtracted(mine, theirs)))
        self.mesh.send(self.previous, "product", [wide.packed(each) for each in masked])
        raws = parts(self.mesh, self.next, "product", len(masked))
        with named(self.next):
            return [(mine, wide.unpacked(raw, mine[0].shape)) for mine, raw in zip(masked, raws, strict=True)]

    def _coded(self, value: tuple[Wide, Wide], code: tuple[Wide, Wide]) -> Coded:
        share = Coded.of([*value, *code])
        self._waiting.append(share)
        if sum(each.shape.numel() for each in self._waiting) > _MANY:
            self._check()
        return share

    # -- the check

    def _check(self) -> None:
        """That the code of everything that waits is α times its secret."""
        if not self._waiting:
            return
        coins = [prg.draw((_COIN,), torch.int8).numpy().tobytes() for prg in (self._with_previous, self._with_next)]
        third = self._third("coin", coins, self.names)
        assert third is not None
        shares = [b""] * 3
        for at, coin in zip((self.me, self.me + 1, self.me + 2), (*coins, third), strict=True):
            shares[at % 3] = coin
        prg = Prg(hashlib.sha256(b"".join(shares)).digest()[:KEY_BYTES])
        totals = [0, 0, 0, 0]
        for share in self._waiting:
            count = (share.shape.numel(),)
            low = prg.draw(count) & ((1 << 24) - 1) | 1
            high = prg.draw(count) & ((1 << 16) - 1)
            totals = [total + wide.weighted(part, low, high) for total, part in zip(totals, share.wide, strict=True)]
        self._waiting.clear()
        a, b, code_a, code_b = totals
        key = [_whole(part) for part in self._key]
        zero = [_whole(part) for part in self._mine(torch.Size(()))]
        mine = (key[0] * (a + b) + key[1] * a + zero[0] - zero[1]) % MODULUS
        self.mesh.send(self.previous, "check", [mine.to_bytes(PACKED_BYTES, "little")])
        theirs = int.from_bytes(self._numbers(self.next, "check", 1), "little")
        difference = [(code - product) % MODULUS for code, product in ((code_a, mine), (code_b, theirs))]
        third = self._third("difference", [each.to_bytes(PACKED_BYTES, "little") for each in difference], self.names)
        assert third is not None
        if (sum(difference) + int.from_bytes(third, "little")) % MODULUS:
            raise _deviation("a product is not what its code says")

    # -- bits

    def both(self, x: Share, y: Share) -> Share:
        """Refused."""
        raise _refused("a logical and of bits")

    def negative(self, x: Share) -> Share:
        """Refused."""
        raise _refused("a comparison")

    def bits(self, x: Share) -> Share:
        """Refused."""
        raise _refused("taking a number's bits (division, roots, logarithms)")

    def to_arithmetic(self, bit: Share) -> Share:
        """Refused."""
        raise _refused("a bit as a number")

    def constant_bits(self, value: torch.Tensor) -> Share:
        """Refused."""
        raise _refused("a constant of bits")

    def cost(self, operation: str, elements: int) -> Cost:
        """Of the busiest party; that of opening with a check of what came before."""
        rounds, size, fixed = {
            "input": (2, 2 * PACKED_BYTES, 0),
            "open": (4, PACKED_BYTES, 2 * _DIGEST + _COIN + 2 * PACKED_BYTES + _DIGEST),
            "bilinear": (1, 2 * PACKED_BYTES, 0),
            "bilinear_shift": (3, 4 * PACKED_BYTES, _DIGEST),
            "truncate": (2, 2 * PACKED_BYTES, _DIGEST),
        }[operation]
        return Cost(rounds, size * elements + fixed)


def _parts(share: Share) -> list[Wide]:
    return Coded(share.parts).wide


def _whole(x: Wide) -> int:
    return sum(int(word) << 24 * at for at, word in enumerate(x))


def _refused(what: str) -> SecretError:
    return SecretError(
        f"{what} is not covered by security='malicious', which checks arithmetic alone (sums, products, matrix "
        "products, convolutions, scaling): leave it out, take sigmoid='chebyshev' for a logistic function, or use "
        "security='semi-honest'."
    )


def _deviation(what: str) -> ProtocolError:
    return ProtocolError(
        f"one of the three parties deviated from the protocol: {what}. Nothing was opened; start again."
    )
