"""The prime-order group secp256k1 for oblivious evaluation: hashing to points, and multiplying many by one scalar.

    hash: 16 bytes ── BLAKE2b-512 ──► (u, t) ── SwiftEC ──► point          the group law: libsecp256k1, by coincurve

Why this map, and not a shortcut. The image of a set must look like random points once it is multiplied by a secret.
Hashing to an X25519 coordinate does not: half of all coordinates belong to the curve and half to its twist, no scalar
moves a point from one to the other, and so one bit of each hidden key survives. secp256k1 has prime order, so there is
no subgroup, cofactor or twist to survive in (points off the curve are refused when they are read), and SwiftEC of a
uniform pair is indifferentiable from a random oracle into the group.

Multiplication takes a time that depends on the scalar. A peer sees the time of thousands of products under one scalar
that is used in one session and then forgotten; whoever can time this process's instructions is outside the promise.

Sources: Chávez-Saab, Rodríguez-Henríquez and Tibouchi 2022, SwiftEC: Shallue–van de Woestijne Indifferentiable Function
To Elliptic Curves, https://eprint.iacr.org/2022/759; libsecp256k1, https://github.com/bitcoin-core/secp256k1
"""

import hashlib
from functools import cache
from typing import Any

import numpy as np

from hansa.core.errors import MissingExtra, ProtocolError

POINT_BYTES = 64  # both coordinates: a reader checks the equation, and takes no square root
_UNCOMPRESSED = 2
_SERIAL = 65


@cache
def _library() -> tuple[Any, Any, Any]:
    try:
        from coincurve._libsecp256k1 import ffi, lib  # type: ignore[import-not-found]
    except ImportError:
        raise MissingExtra("private set intersection", "coincurve 21", "vertical") from None
    if not hasattr(lib, "secp256k1_ellswift_decode"):
        raise MissingExtra("private set intersection", "coincurve 21", "vertical")
    return ffi, lib, lib.secp256k1_context_create(1)


def scalar(entropy: bytes) -> bytes:
    """A secret scalar between 1 and the group's order, of 32 uniform bytes.

    Raises:
      ValueError: of the 2⁻¹²⁸ of all that are none.
    """
    _, lib, context = _library()
    if not lib.secp256k1_ec_seckey_verify(context, entropy):
        raise ValueError("these bytes are no scalar: draw others")
    return entropy


def hash_and_multiply(values: bytes, width: int, domain: bytes, secret: bytes) -> bytes:
    """The points of values of `width` bytes each, times a scalar: 64 bytes a point.

    Args:
      values: one after the other.
      width: of each.
      domain: what the session is, up to 64 bytes: the same value is another point in another session.
      secret: a scalar.
    """
    ffi, lib, context = _library()
    count = len(values) // width
    out = bytearray(_SERIAL * count)
    place, length, point = ffi.from_buffer("unsigned char[]", out) + 0, ffi.new("size_t*", _SERIAL), _point(ffi)
    start = hashlib.blake2b(digest_size=64, key=domain, person=b"hansa swiftec")
    for at in range(0, len(values), width):
        state = start.copy()
        state.update(values[at : at + width])
        lib.secp256k1_ellswift_decode(context, point, state.digest())
        lib.secp256k1_ec_pubkey_tweak_mul(context, point, secret)
        lib.secp256k1_ec_pubkey_serialize(context, place, length, point, _UNCOMPRESSED)
        place += _SERIAL
    return _stripped(out)


def multiply(points: bytes, secret: bytes) -> bytes:
    """Other points, times a scalar.

    Raises:
      ProtocolError: the bytes are no points of the curve.
    """
    ffi, lib, context = _library()
    if len(points) % POINT_BYTES:
        raise ProtocolError(f"{len(points)} bytes are no points of {POINT_BYTES} bytes: the sender is broken.")
    framed = np.full((len(points) // POINT_BYTES, _SERIAL), 4, np.uint8)  # 4: both coordinates follow
    framed[:, 1:] = np.frombuffer(points, np.uint8).reshape(-1, POINT_BYTES)
    given, out = bytes(framed), bytearray(framed.size)
    source, place = ffi.from_buffer("unsigned char[]", given) + 0, ffi.from_buffer("unsigned char[]", out) + 0
    length, point = ffi.new("size_t*", _SERIAL), _point(ffi)
    for _ in range(len(framed)):
        if not lib.secp256k1_ec_pubkey_parse(context, point, source, _SERIAL):
            raise ProtocolError("a point is not on the curve: its sender is broken or hostile.")
        lib.secp256k1_ec_pubkey_tweak_mul(context, point, secret)
        lib.secp256k1_ec_pubkey_serialize(context, place, length, point, _UNCOMPRESSED)
        source += _SERIAL
        place += _SERIAL
    return _stripped(out)


def multiply_and_hash(points: bytes, secret: bytes, domain: bytes, size: int) -> bytes:
    """What is compared of other points, times a scalar: `size` bytes of the BLAKE2b of each. Raises as `multiply`."""
    return _digests(multiply(points, secret), domain, size)


def hash_multiply_and_hash(values: bytes, width: int, domain: bytes, secret: bytes, size: int) -> bytes:
    """What is compared of values, by whoever has the scalar. Arguments as `hash_and_multiply`."""
    return _digests(hash_and_multiply(values, width, domain, secret), domain, size)


def _digests(points: bytes, domain: bytes, size: int) -> bytes:
    start = hashlib.blake2b(digest_size=size, key=domain, person=b"hansa psi tag")
    made = bytearray()
    for at in range(0, len(points), POINT_BYTES):
        state = start.copy()
        state.update(points[at : at + POINT_BYTES])
        made += state.digest()
    return bytes(made)


def inverse(secret: bytes) -> bytes:
    """The scalar that undoes another."""
    return pow(int.from_bytes(secret, "big"), -1, _ORDER).to_bytes(32, "big")


_ORDER = 0xFFFFFFFF_FFFFFFFF_FFFFFFFF_FFFFFFFE_BAAEDCE6_AF48A03B_BFD25E8C_D0364141


def _point(ffi: Any) -> Any:
    return ffi.new("secp256k1_pubkey*")


def _stripped(serial: bytearray) -> bytes:
    return np.frombuffer(serial, np.uint8).reshape(-1, _SERIAL)[:, 1:].tobytes()
