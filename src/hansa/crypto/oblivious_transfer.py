"""Oblivious transfer in bulk: the receiver gets one of two pads for each of its choices, the sender learns no choice.

    base       128 (or `width`) transfers by elliptic curves: the later *sender* chooses, by its secret bits s
    columns    PRG(k₀ⱼ) = t₀ⱼ,  PRG(k₁ⱼ) = t₁ⱼ             column j of the matrices T₀ and T₁, at the receiver
    message    uⱼ = t₀ⱼ ⊕ t₁ⱼ ⊕ cⱼ                          c: the receiver's code words, one row each transfer
    sender     qⱼ = PRG(k_{sⱼ}ⱼ) ⊕ sⱼ·uⱼ                    so that in rows   Q = T₀ ⊕ (C & s)
    pads       H(i, qᵢ), H(i, qᵢ ⊕ s)  and  H(i, tᵢ)        where the code repeats the choice: C = 00…0 or 11…1

The matrix form (`MatrixSender`, `MatrixReceiver`) takes code words of any width: an oblivious PRF evaluates H(i, qᵢ ⊕
(code(y) & s)), of which the receiver knows the value at its own word alone. `OtSender` and `OtReceiver` are its case of
the repetition code, 128 wide: one transfer costs the receiver 16 bytes and no public-key operation.

Security. Against semi-honest parties alone: columns are not checked for consistency, so a receiver that deviates may
learn bits of s, and with them pads of both choices. Computational security is 128 bits: Diffie and Hellman's problem on
secp256k1 in the random-oracle model for the base transfers, AES-128 as the generator of columns, and AES under a fixed
key as a tweakable correlation-robust hash in the ideal-cipher model. The repetition code loses nothing statistically;
another code is as good as its smallest distance between two words, which whoever chooses it has to state.

Sources: Chou and Orlandi 2015 (base transfers), https://eprint.iacr.org/2015/267; Ishai, Kilian, Nissim and Petrank
2003 (extension), https://doi.org/10.1007/978-3-540-45146-4_9; Asharov, Lindell, Schneider and Zohner 2013 (correlated
transfers), https://eprint.iacr.org/2013/552; Kolesnikov, Kumaresan, Rosulek and Trieu 2016 (code words),
https://eprint.iacr.org/2016/799; Guo, Katz, Wang and Yu 2020 (the hash), https://eprint.iacr.org/2019/074
"""

import hashlib
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes

from hansa.core.errors import ConfigError, MissingExtra, ProtocolError
from hansa.core.runtime import Mesh

KEY_BYTES = 16
WIDTH = 128
Entropy = Callable[[int], bytes]
_POINT_BYTES = 33
_HASH_KEY = hashlib.sha256(b"hansa: the fixed key of the hash of oblivious transfers").digest()[:KEY_BYTES]
_PIECE = 1 << 15  # words that are transposed at a time: they stay in the cache
_SWAPS = tuple(
    (np.uint64(distance), np.uint64(mask))
    for distance, mask in (
        (32, 0x00000000FFFFFFFF), (16, 0x0000FFFF0000FFFF), (8, 0x00FF00FF00FF00FF),
        (4, 0x0F0F0F0F0F0F0F0F), (2, 0x3333333333333333), (1, 0x5555555555555555),
    )
)  # fmt: skip


# -- base transfers


def base_send(mesh: Mesh, peer: str, count: int, entropy: Entropy = secrets.token_bytes) -> list[tuple[bytes, bytes]]:
    """Pairs of random keys, of each of which the peer, who calls `base_receive`, knows one.

    Secrets meet points in libsecp256k1's constant-time operations alone.

    Args:
      mesh: a link to the peer; two messages.
      peer: its name.
      count: of pairs.
      entropy: gives secret random bytes.

    Raises:
      ProtocolError: the peer sent something that is no point of the curve.
    """
    curve = _curve()
    secret = curve.PrivateKey(entropy(32))
    mine = secret.public_key.format()
    mesh.send(peer, "base", [mine])
    raw = b"".join(mesh.recv(peer, "base choices"))
    if len(raw) != count * _POINT_BYTES:
        raise ProtocolError(f"'{peer}' sent {len(raw)} bytes for {count} base transfers: the programs differ.")
    minus = _point(_negated(mine), peer)
    keys = []
    for i in range(count):
        chosen = raw[i * _POINT_BYTES : (i + 1) * _POINT_BYTES]
        zero = _point(chosen, peer)
        try:
            one = curve.PublicKey.combine_keys([zero, minus])
        except ValueError:  # the sum is the point at infinity
            raise ProtocolError(f"'{peer}' sent our own point back: it is broken or hostile.") from None
        first, second = (secret.ecdh(point.format()) for point in (zero, one))
        keys.append((_key(i, mine, chosen, first), _key(i, mine, chosen, second)))
    return keys


def base_receive(mesh: Mesh, peer: str, choices: np.ndarray, entropy: Entropy = secrets.token_bytes) -> list[bytes]:
    """One key of each pair that the peer gets of `base_send`.

    Args:
      mesh: a link to the peer; two messages.
      peer: its name.
      choices: shape (count,), 0 or 1: which key.
      entropy: gives secret random bytes.

    Raises:
      ProtocolError: the peer sent something that is no point of the curve.
    """
    curve = _curve()
    theirs = b"".join(mesh.recv(peer, "base"))
    point = _point(theirs, peer)
    made = []
    for choice in choices:
        secret = curve.PrivateKey(entropy(32))
        both = (secret.public_key, curve.PublicKey.combine_keys([secret.public_key, point]))
        made.append((secret, both[int(choice)].format()))
    mesh.send(peer, "base choices", [b"".join(sent for _, sent in made)])
    return [_key(i, theirs, sent, secret.ecdh(theirs)) for i, (secret, sent) in enumerate(made)]


def _curve() -> Any:
    """The library of secp256k1, which only base transfers need."""
    try:
        import coincurve
    except ImportError as error:
        raise MissingExtra("oblivious transfer", "coincurve", "mpc") from error
    return coincurve


def _point(raw: bytes, peer: str) -> Any:
    try:
        return _curve().PublicKey(raw)
    except ValueError:
        raise ProtocolError(f"'{peer}' sent {len(raw)} bytes that are no point: it is broken or hostile.") from None


def _negated(raw: bytes) -> bytes:
    """A compressed point's negative has the other parity."""
    return bytes([raw[0] ^ 1]) + raw[1:]


def _key(i: int, sent: bytes, chosen: bytes, shared: bytes) -> bytes:
    head = b"hansa base transfer" + i.to_bytes(4, "little")
    return hashlib.sha256(head + sent + chosen + shared).digest()[:KEY_BYTES]


# -- the matrix form


class MatrixSender:
    """Holds s, and of each pair of columns the one that a bit of s chose.

    Args:
      mesh: a link to the peer, which makes a `MatrixReceiver` of the same width at the same time.
      peer: its name.
      width: of the code words in bits, a multiple of 64.
      entropy: gives secret random bytes.

    Attributes:
      secret: s, shape (width / 64,), uint64; bit j is bit j mod 64 of word j / 64. Never to be sent.
    """

    def __init__(self, mesh: Mesh, peer: str, width: int = WIDTH, entropy: Entropy = secrets.token_bytes) -> None:
        self.mesh, self.peer, self.width = mesh, peer, _checked(width)
        raw = np.frombuffer(entropy(width // 8), np.uint8)
        self.secret = raw.view(np.uint64)
        self._bits = np.unpackbits(raw, bitorder="little").astype(bool)
        self._columns = _Columns(base_receive(mesh, peer, self._bits, entropy))

    def matrix(self, count: int) -> np.ndarray:
        """Q = T₀ ⊕ (C & s) for the peer's next `count` code words: shape (count, width / 64), uint64. One message."""
        q = self._columns.draw(count)
        raw = b"".join(self.mesh.recv(self.peer, "columns"))
        if len(raw) != q.nbytes:
            raise ProtocolError(f"'{self.peer}' sent {len(raw)} bytes for {count} transfers: the programs differ.")
        q[self._bits] ^= np.frombuffer(raw, np.uint64).reshape(q.shape)[self._bits]
        return transpose(q)[:count]

    def __repr__(self) -> str:
        return f"{type(self).__name__}(peer='{self.peer}', width={self.width})"


class MatrixReceiver:
    """Holds both columns of each pair; its code words are hidden by the one that the peer does not know.

    Args:
      mesh: a link to the peer, which makes a `MatrixSender` of the same width at the same time.
      peer: its name.
      width: of the code words in bits, a multiple of 64.
      entropy: gives secret random bytes.
    """

    def __init__(self, mesh: Mesh, peer: str, width: int = WIDTH, entropy: Entropy = secrets.token_bytes) -> None:
        self.mesh, self.peer, self.width = mesh, peer, _checked(width)
        pairs = base_send(mesh, peer, width, entropy)
        self._zero, self._one = _Columns([zero for zero, _ in pairs]), _Columns([one for _, one in pairs])

    def matrix(self, codes: np.ndarray) -> np.ndarray:
        """T₀ for code words, in their shape (count, width / 64) and type, uint64. One message of their size."""
        if codes.ndim != 2 or codes.shape[1] * 64 != self.width or codes.dtype != np.uint64:
            raise ConfigError(
                f"code words of shape {codes.shape} and type {codes.dtype}: (n, {self.width // 64}), uint64."
            )
        padded = np.zeros((_whole(len(codes)), codes.shape[1]), np.uint64)
        padded[: len(codes)] = codes
        return self._extend(len(codes), transpose(padded))

    def _extend(self, count: int, columns: np.ndarray) -> np.ndarray:
        """Sends T₀ ⊕ T₁ ⊕ C for the columns of C, and gives the rows of T₀."""
        zero = self._zero.draw(count)
        sent = self._one.draw(count)
        sent ^= zero
        sent ^= columns
        self.mesh.send(self.peer, "columns", [_raw(sent)])
        return transpose(zero)[:count]

    def __repr__(self) -> str:
        return f"{type(self).__name__}(peer='{self.peer}', width={self.width})"


# -- one of two


@dataclass(frozen=True, repr=False)
class Rows:
    """What pads are made of: one row a transfer, and the number of the first, which is never used again."""

    rows: np.ndarray
    first: int

    def pads(self, blocks: int = 1) -> np.ndarray:
        """Pseudorandom words of every transfer: shape (count, 2·blocks), uint64.

        Block j of transfer i is π(π(x) ⊕ (i, j)) ⊕ π(x), π being AES under a fixed key.
        """
        count = len(self.rows)
        cipher = Cipher(algorithms.AES(_HASH_KEY), modes.ECB()).encryptor()
        out = np.empty((count, blocks, 2), np.uint64)
        step = max(1, _PIECE // (2 * blocks))
        for at in range(0, count, step):
            inner = _permuted(cipher, self.rows[at : at + step])
            numbers = np.arange(self.first + at, self.first + at + len(inner), dtype=np.uint64)
            tweaked = np.empty((len(inner), blocks, 2), np.uint64)
            tweaked[:, :, 0] = (inner[:, 0] ^ numbers)[:, None]
            np.bitwise_xor(inner[:, 1, None], np.arange(blocks, dtype=np.uint64), out=tweaked[:, :, 1])
            hashed = _permuted(cipher, tweaked)
            for word in range(2):
                np.bitwise_xor(hashed[:, :, word], inner[:, word, None], out=out[at : at + step, :, word])
        return out.reshape(count, 2 * blocks)


class OtSender(MatrixSender):
    """Knows both pads of every transfer. Arguments as `MatrixSender`, 128 wide."""

    def __init__(self, mesh: Mesh, peer: str, entropy: Entropy = secrets.token_bytes) -> None:
        super().__init__(mesh, peer, WIDTH, entropy)
        self._next = 0

    def accept(self, count: int) -> tuple[Rows, Rows]:
        """The rows of both pads of the peer's next `count` choices. One message from the peer."""
        rows, first = self.matrix(count), self._next
        self._next += count
        return Rows(rows, first), Rows(rows ^ self.secret, first)

    def correlated(self, values: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Shares of choice · value, added by the integers' own modulus.

        Args:
          values: groups of shape (count, length), unsigned integers; the peer calls `correlated` with as many choices
            in all, and the same shapes and dtypes. One message from the peer, and one back of the values' size.

        Returns:
          This party's shares, in groups alike: with the peer's they add up to the values where the choice is 1, and
          to 0 elsewhere.
        """
        zero, one = self.accept(sum(map(len, values)))
        groups = [each.shape for each in values], [each.dtype for each in values]
        pads = list(zip(_grouped(zero, *groups), _grouped(one, *groups), values, strict=True))
        self.mesh.send(self.peer, "corrections", [_raw(p - q + each) for p, q, each in pads])
        return [-p for p, _, _ in pads]


class OtReceiver(MatrixReceiver):
    """Knows the pad of its choice. Arguments as `MatrixReceiver`, 128 wide."""

    def __init__(self, mesh: Mesh, peer: str, entropy: Entropy = secrets.token_bytes) -> None:
        super().__init__(mesh, peer, WIDTH, entropy)
        self._next = 0

    def request(self, choices: np.ndarray) -> Rows:
        """The rows of the chosen pads. One message, 16 bytes a transfer.

        Args:
          choices: shape (count,), 0 or 1.
        """
        count, first = len(choices), self._next
        padded = np.zeros(_whole(count), np.uint8)
        padded[:count] = choices
        self._next += count
        return Rows(self._extend(count, np.packbits(padded, bitorder="little").view(np.uint64)), first)

    def correlated(
        self, requested: Rows, choices: np.ndarray, shapes: Sequence[tuple[int, int]], dtypes: Sequence[np.dtype]
    ) -> list[np.ndarray]:
        """This party's shares of what the peer's `correlated` shares, in the same groups. One message from the peer.

        Args:
          requested: of `request`, for these choices.
          choices: shape (count,), 0 or 1, those of all groups one after another.
          shapes: (count, length) of each group of the peer's values.
          dtypes: of each, unsigned.
        """
        shares = _grouped(requested, shapes, dtypes)
        buffers = self.mesh.recv(self.peer, "corrections")
        if [len(raw) for raw in buffers] != [share.nbytes for share in shares]:
            raise ProtocolError(f"'{self.peer}' sent values that are not of shapes {shapes}: the programs differ.")
        at = 0
        for share, raw in zip(shares, buffers, strict=True):
            chosen = choices[at : at + len(share)].astype(share.dtype)
            share += np.frombuffer(raw, share.dtype).reshape(share.shape) * chosen[:, None]
            at += len(share)
        return shares


# -- inside


class _Columns:
    """Streams of AES-128 in counter mode, one a key: the columns of a matrix that grows downwards."""

    def __init__(self, keys: list[bytes]) -> None:
        self._streams = [Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor() for key in keys]

    def draw(self, count: int) -> np.ndarray:
        """The next `count` bits of every column, and those up to a whole word: shape (columns, words), uint64."""
        size = _whole(count) // 8
        zeros = bytes(size)
        flat = np.empty(len(self._streams) * size + KEY_BYTES, np.uint8)  # the cipher wants a block more than it fills
        view = flat.data
        for at, stream in enumerate(self._streams):
            stream.update_into(zeros, view[at * size :])
        return flat[:-KEY_BYTES].view(np.uint64).reshape(len(self._streams), size // 8)


def transpose(matrix: np.ndarray) -> np.ndarray:
    """The transpose of a matrix of bits.

    Args:
      matrix: shape (rows, columns / 64), uint64; column j is bit j mod 64 of word j / 64; rows a multiple of 64.

    Returns:
      Shape (columns, rows / 64), uint64, laid out alike.

    Six swaps of halves, quarters, … of all blocks of 64 × 64 bits at a time.
    """
    tall, wide = len(matrix) // 64, matrix.shape[1]
    blocks = matrix.reshape(tall, 64, wide)
    out = np.empty((wide, 64, tall), np.uint64)
    down = max(1, min(tall, _PIECE // 64))
    across = max(1, _PIECE // (64 * down))
    for i in range(0, tall, down):
        for j in range(0, wide, across):
            piece = blocks[i : i + down, :, j : j + across].copy()
            for distance, mask in _SWAPS:
                half = int(distance)
                pairs = piece.reshape(len(piece), 32 // half, 2, half, -1)
                low, high = pairs[:, :, 0], pairs[:, :, 1]
                moved = low >> distance
                moved ^= high
                moved &= mask
                high ^= moved
                moved <<= distance
                low ^= moved
            out[j : j + across, :, i : i + down] = piece.transpose(2, 1, 0)
    return out.reshape(64 * wide, tall)


def _permuted(cipher: CipherContext, words: np.ndarray) -> np.ndarray:
    """AES of every pair of words."""
    words = np.ascontiguousarray(words)
    out = np.empty(words.nbytes + KEY_BYTES, np.uint8)
    cipher.update_into(_raw(words), out.data)
    return out[:-KEY_BYTES].view(np.uint64).reshape(words.shape)


def _raw(array: np.ndarray) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _grouped(rows: Rows, shapes: Sequence[tuple[int, ...]], dtypes: Sequence[np.dtype]) -> list[np.ndarray]:
    """Pads as integers: groups of so many rows, lengths and types, one after another."""
    groups, at = [], 0
    for (count, length), dtype in zip(shapes, dtypes, strict=True):
        part = Rows(rows.rows[at : at + count], rows.first + at)
        groups.append(part.pads(-(-length * dtype.itemsize // KEY_BYTES)).view(dtype)[:, :length])
        at += count
    return groups


def _checked(width: int) -> int:
    if width <= 0 or width % 64:
        raise ConfigError(f"width={width}: choose a multiple of 64.")
    return width


def _whole(count: int) -> int:
    """Bits up to a whole word."""
    return -(-count // 64) * 64
