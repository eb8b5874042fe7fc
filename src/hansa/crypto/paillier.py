"""Paillier encryption: integers that are added, and multiplied by public numbers, while encrypted.

    encrypt     c = (1 + m·n) · h^r  mod n²,   h = (−x²)^n,   r of 448 random bits
    add         c · c'  mod n²                  is an encryption of m + m'
    scale       c^k  mod n²                     is an encryption of k·m
    decrypt     modulo p² and q² apart, and joined (Paillier's section 7)

h^r comes from a table of powers of h, so an encryption costs some forty products in place of an exponentiation; who
holds the key computes it modulo p² and q², which halves the cost again. Plaintexts are signed: −n/2 < m < n/2.

Assumptions: decisional composite residuosity modulo n, as in every Paillier scheme; and that h^r of a short r cannot be
told from one of a full r, where the best attack known (Pollard's kangaroo) takes 2^224 steps. A sum of ciphertexts
shows its key's owner, who knows every r, traces of what was added: `rerandomise` what is sent back.

Parties follow the protocol: nothing proves that a ciphertext holds a number of the agreed size.

Sources: Paillier 1999, https://doi.org/10.1007/3-540-48910-X_16; Damgård, Jurik and Nielsen 2010, A generalization of
Paillier's public-key system, section 4.2 (h), https://doi.org/10.1007/s10207-010-0119-9; Koshiba and Kurosawa 2004,
Short exponent Diffie–Hellman problems, https://doi.org/10.1007/978-3-540-24632-9_13.
"""

import functools
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self, TypeAlias

from hansa.core.errors import ConfigError, MissingExtra, ProtocolError, require

try:
    import gmpy2
except ModuleNotFoundError as error:
    raise MissingExtra("Paillier encryption", "gmpy2", "vertical") from error

Entropy: TypeAlias = Callable[[int], bytes]
"""So many random bytes of the operating system."""
mpz: TypeAlias = Any  # gmpy2 has no type stubs
Ciphertext: TypeAlias = mpz
"""An integer modulo n²."""
_Table: TypeAlias = list[list[mpz]]

MIN_BITS = 2048
_EXPONENT_BYTES = 56  # four times the 112 bits of strength that a modulus of 2048 bits has
_PRIME_TESTS = 40  # Miller–Rabin: an error below 2^−80
_MANY = 2000  # from so many encryptions on, a larger table pays


@dataclass(frozen=True, eq=False)
class PublicKey:
    """What encrypts and computes. Ciphertexts are integers below n².

    Args:
      n: the product of two primes, 2048 bits or more.
      h: an n-th residue modulo n², of which ciphertexts take powers.

    Raises:
      ProtocolError: numbers that no key generation of ours gives.
    """

    n: mpz = field(repr=False)
    h: mpz = field(repr=False)
    square: mpz = field(init=False, repr=False)
    _tables: dict[int, _Table] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "square", self.n * self.n)
        sound = self.n.bit_length() >= MIN_BITS and self.n % 4 == 1 and 1 < self.h < self.square
        if not sound or gmpy2.gcd(self.h, self.n) != 1:
            raise ProtocolError("a Paillier key that no key generation of ours gives: its owner must make another.")

    @property
    def bits(self) -> int:
        """A plaintext's magnitude is below 2^bits."""
        return int(self.n.bit_length()) - 2

    @property
    def size_bytes(self) -> int:
        """Of one ciphertext on the wire."""
        return (int(self.square.bit_length()) + 7) // 8

    @classmethod
    def of(cls, n: bytes, h: bytes) -> Self:
        """What `numbers` gave."""
        return cls(gmpy2.mpz(int.from_bytes(n, "little")), gmpy2.mpz(int.from_bytes(h, "little")))

    def numbers(self) -> tuple[bytes, bytes]:
        """The public numbers n and h, to be sent."""
        return int(self.n).to_bytes(self.size_bytes // 2, "little"), int(self.h).to_bytes(self.size_bytes, "little")

    def encrypt(self, values: Sequence[int], entropy: Entropy = secrets.token_bytes) -> list[Ciphertext]:
        """Encrypts signed integers.

        Args:
          values: each below 2^bits in magnitude.
          entropy: random bytes of the operating system.

        Raises:
          ConfigError: a value is too large.
        """
        checked = self._checked(values)
        return [self.hide(value, by) for value, by in zip(checked, self.blinders(len(checked), entropy), strict=True)]

    def hide(self, value: int, blinder: Ciphertext) -> Ciphertext:
        """Encrypts a signed integer below 2^bits with one of the `blinders`, which serves once."""
        return (1 + self.n * value) * blinder % self.square

    def blinders(self, count: int, entropy: Entropy = secrets.token_bytes) -> list[Ciphertext]:
        """So many encryptions of 0: they can be made before what they will hide is known; each is used once."""
        window = _window(count)
        if window not in self._tables:
            self._tables[window] = _table(self.h, self.square, window)
        return _powers(self._tables[window], self.square, _exponents(count, window, entropy))

    def rerandomise(
        self, ciphertexts: Sequence[Ciphertext], entropy: Entropy = secrets.token_bytes
    ) -> list[Ciphertext]:
        """The same plaintexts under randomness of ours: does not show what the ciphertexts were computed from."""
        return [a * b % self.square for a, b in zip(ciphertexts, self.blinders(len(ciphertexts), entropy), strict=True)]

    def add(self, a: Ciphertext, b: Ciphertext) -> Ciphertext:
        """Encrypts the sum."""
        return a * b % self.square

    def scale(self, ciphertext: Ciphertext, by: int) -> Ciphertext:
        """Encrypts the product with a public integer, which may be negative."""
        return gmpy2.powmod(ciphertext, by, self.square)

    def pack(self, ciphertexts: Sequence[Ciphertext], slot_bits: int) -> Ciphertext:
        """One ciphertext whose plaintext has those of all, at multiples of `slot_bits`; `Packing` says how many fit."""
        square, shift = self.square, gmpy2.mpz(1) << slot_bits
        packed = ciphertexts[-1]
        for each in reversed(ciphertexts[:-1]):
            packed = gmpy2.powmod(packed, shift, square) * each % square
        return packed

    def to_bytes(self, ciphertexts: Sequence[Ciphertext]) -> bytes:
        """Little-endian, `size_bytes` each."""
        size = self.size_bytes
        return b"".join(int(each).to_bytes(size, "little") for each in ciphertexts)

    def from_bytes(self, raw: bytes | memoryview, count: int | None = None) -> list[Ciphertext]:
        """What `to_bytes` wrote.

        Raises:
          ProtocolError: not whole ciphertexts of this key, or not `count` of them.
        """
        data, size = bytes(raw), self.size_bytes
        if len(data) % size or count not in (None, len(data) // size):
            raise ProtocolError(f"{len(data)} bytes are not {count or 'some'} ciphertexts of {size} bytes.")
        made = [gmpy2.mpz(int.from_bytes(data[at : at + size], "little")) for at in range(0, len(data), size)]
        if not all(0 < each < self.square for each in made):
            raise ProtocolError("a ciphertext beyond its key's modulus: it was made with another key.")
        return made

    def _checked(self, values: Sequence[int]) -> list[mpz]:
        made = [gmpy2.mpz(value) for value in values]
        if any(value.bit_length() > self.bits for value in made):
            raise ConfigError(f"a value has more than {self.bits} bits: lower its precision, or take a longer key.")
        return made


@dataclass(frozen=True, eq=False)
class PrivateKey:
    """What decrypts; its repr shows nothing.

    Args:
      p, q: primes, p ≡ q ≡ 3 modulo 4, of equal length; gcd(p − 1, q − 1) = 2.
      h: as in the public key.
    """

    p: mpz = field(repr=False)
    q: mpz = field(repr=False)
    h: mpz = field(repr=False)
    _tables: dict[tuple[mpz, int], _Table] = field(init=False, repr=False, default_factory=dict)

    @classmethod
    def generate(cls, bits: int = MIN_BITS, entropy: Entropy = secrets.token_bytes) -> Self:
        """A new key.

        Args:
          bits: of n: 2048 has the strength of 112 bits, 3072 of 128.
          entropy: random bytes of the operating system.

        Raises:
          ConfigError: fewer than 2048 bits, or no multiple of 16.
        """
        require(bits >= MIN_BITS and bits % 16 == 0, f"bits={bits}: give a multiple of 16 from {MIN_BITS} on.")
        p = _prime(bits // 2, entropy)
        q = _prime(bits // 2, entropy)
        while gmpy2.gcd(p - 1, q - 1) != 2:
            q = _prime(bits // 2, entropy)
        n = p * q
        x = gmpy2.mpz(int.from_bytes(entropy(bits // 8 + 16), "little")) % n  # 128 bits more: no bias to speak of
        return cls(p, q, gmpy2.powmod(-x * x % n, n, n * n))

    @functools.cached_property
    def public(self) -> PublicKey:
        """What others encrypt with."""
        return PublicKey(self.p * self.q, self.h)

    def encrypt(self, values: Sequence[int], entropy: Entropy = secrets.token_bytes) -> list[Ciphertext]:
        """As the public key does, in a third of the time."""
        public = self.public
        checked = public._checked(values)
        return [public.hide(value, by) for value, by in zip(checked, self.blinders(len(checked), entropy), strict=True)]

    def blinders(self, count: int, entropy: Entropy = secrets.token_bytes) -> list[Ciphertext]:
        """As the public key's, by way of p² and q²."""
        window = _window(count)
        digits = list(_exponents(count, window, entropy))
        halves = []
        for prime in (self.p, self.q):
            square = prime * prime
            if (prime, window) not in self._tables:
                self._tables[prime, window] = _table(self.h % square, square, window)
            halves.append(_powers(self._tables[prime, window], square, digits))
        p_square, q_square = self.p * self.p, self.q * self.q
        back = gmpy2.invert(p_square, q_square)
        return [a + p_square * ((b - a) * back % q_square) for a, b in zip(*halves, strict=True)]

    def decrypt(self, ciphertexts: Sequence[Ciphertext]) -> list[int]:
        """The signed plaintexts."""
        p, q, n = self.p, self.q, self.public.n
        half, back = n // 2, gmpy2.invert(p, q)
        made = []
        for each in ciphertexts:
            a, b = self._modulo(each, p), self._modulo(each, q)
            value = a + p * ((b - a) * back % q)
            made.append(int(value - n if value > half else value))
        return made

    def _modulo(self, ciphertext: Ciphertext, prime: mpz) -> mpz:
        """The plaintext modulo one prime: L(c^(prime − 1)) / L((1 + n)^(prime − 1)), L(u) = (u − 1) / prime."""
        square = prime * prime
        return (gmpy2.powmod(ciphertext % square, prime - 1, square) - 1) // prime * self._inverse[prime] % prime

    @functools.cached_property
    def _inverse(self) -> dict[mpz, mpz]:
        made = {}
        for prime in (self.p, self.q):
            power = gmpy2.powmod(1 + self.public.n, prime - 1, prime * prime)
            made[prime] = gmpy2.invert((power - 1) // prime, prime)
        return made


@dataclass(frozen=True)
class Packing:
    """Several signed integers in one plaintext, at multiples of a slot that their sums cannot leave.

    Args:
      value_bits: each integer's magnitude is at most 2^value_bits.
      terms: how many plaintexts are added at most.
    """

    value_bits: int
    terms: int

    @property
    def slot_bits(self) -> int:
        """Of the integer, of the carries of all terms, of its sign, and one to guard."""
        return self.value_bits + (self.terms - 1).bit_length() + 2

    def slots(self, key: PublicKey) -> int:
        """How many fit into a plaintext of this key."""
        return key.bits // self.slot_bits

    def pack(self, values: Sequence[int]) -> int:
        """Σ value_i · 2^(i · slot_bits)."""
        packed = 0
        for value in reversed(values):
            packed = (packed << self.slot_bits) + value
        return packed

    def unpack(self, packed: int, count: int) -> list[int]:
        """The `count` sums that a plaintext holds.

        Raises:
          ProtocolError: it holds more: a slot ran over, or it was packed otherwise.
        """
        base, half = 1 << self.slot_bits, 1 << (self.slot_bits - 1)
        values = []
        for _ in range(count):
            value = ((packed + half) & (base - 1)) - half
            values.append(value)
            packed = (packed - value) >> self.slot_bits
        if packed:
            raise ProtocolError(f"a plaintext of more than {count} slots of {self.slot_bits} bits.")
        return values


def _prime(bits: int, entropy: Entropy) -> mpz:
    """A random prime of exactly these bits, its two highest set, 3 modulo 4."""
    while True:
        drawn = int.from_bytes(entropy(bits // 8), "little") | 3 << (bits - 2) | 3
        candidate = gmpy2.mpz(drawn)
        if gmpy2.is_prime(candidate, _PRIME_TESTS):
            return candidate


def _window(count: int) -> int:
    """Bits of an exponent that one look-up serves."""
    return 11 if count >= _MANY else 6


def _exponents(count: int, window: int, entropy: Entropy) -> Sequence[list[int]]:
    """Random exponents, each as its digits of `window` bits."""
    digits, mask = -(-8 * _EXPONENT_BYTES // window), (1 << window) - 1
    drawn = entropy(count * _EXPONENT_BYTES)
    made = []
    for at in range(0, len(drawn), _EXPONENT_BYTES):
        exponent = int.from_bytes(drawn[at : at + _EXPONENT_BYTES], "little")
        made.append([exponent >> (window * place) & mask for place in range(digits)])
    return made


def _table(base: mpz, modulus: mpz, window: int) -> _Table:
    """Row i has base^(d · 2^(window · i)) for every digit d."""
    rows = []
    for _ in range(-(-8 * _EXPONENT_BYTES // window)):
        row = [gmpy2.mpz(1)]
        for _ in range((1 << window) - 1):
            row.append(row[-1] * base % modulus)
        rows.append(row)
        base = row[-1] * base % modulus
    return rows


def _powers(table: _Table, modulus: mpz, exponents: Sequence[list[int]]) -> list[mpz]:
    made = []
    for digits in exponents:
        power = table[0][digits[0]]
        for row, digit in zip(table[1:], digits[1:], strict=True):
            power = power * row[digit] % modulus
        made.append(power)
    return made
