"""What the labels' owner and an owner of columns say to each other while a tree grows.

labels' owner                                     owner of columns
key      n and h of its Paillier key        ──►
begin    rows, then their gradients (g, h),
         encrypted, in pieces               ──►
sums     nodes                              ──►
                                            ◄──   sums    for each node those of all cuts and categories, in an
                                                          order of this tree, many in a ciphertext
take     the best candidates of some nodes  ──►
                                            ◄──   left    which rows of these nodes go left
follow   how the rows of other nodes went   ──►
end      of this tree                       ──►
round    of boosting is over                ──►
done     how many rounds are kept           ──►
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hansa.algorithms.trees.losses import VALUE_BITS
from hansa.core.checkpoint import Buffer
from hansa.core.errors import ProtocolError
from hansa.core.runtime import Mesh
from hansa.crypto.paillier import Packing
from hansa.runtimes.mesh.messages import read

_TAG = "boosting"


def say(mesh: Mesh, to: str, what: str, facts: Mapping[str, Any] | None = None, *buffers: Buffer) -> None:
    """Sends one message."""
    mesh.send(to, _TAG, [json.dumps({"what": what, **(facts or {})}).encode(), *buffers])


def hear(mesh: Mesh, sender: str, *expected: str) -> tuple[str, dict[str, Any], list[Buffer]]:
    """The next message, its facts and its buffers.

    Raises:
      ProtocolError: none of those expected.
    """
    head, *buffers = mesh.recv(sender, _TAG) or [b""]
    facts: dict[str, Any] = read(head, sender, "message of boosting", dict[str, Any])
    what = facts.pop("what", None)
    if what not in expected:
        raise ProtocolError(f"'{sender}' sent '{what}' where {' or '.join(expected)} was expected.")
    return what, facts, buffers


def bits(flags: NDArray[np.bool_]) -> bytes:
    """Flags, eight in a byte."""
    return np.packbits(flags).tobytes()


def flags(raw: Buffer, count: int, sender: str) -> NDArray[np.bool_]:
    """What `bits` packed.

    Raises:
      ProtocolError: another number of them.
    """
    data = np.frombuffer(raw, np.uint8)
    if len(data) != -(-count // 8):
        raise ProtocolError(f"'{sender}' sent {len(data)} bytes for the sides of {count} rows.")
    return np.unpackbits(data, count=count).astype(bool)


def whole_numbers(given: Any, below: int, sender: str) -> list[int]:
    """A list of integers from 0 to `below` − 1, each once.

    Raises:
      ProtocolError: it is no such list.
    """
    fits = isinstance(given, list) and all(type(each) is int and 0 <= each < below for each in given)
    if not fits or len(set(given)) != len(given):
        raise ProtocolError(f"'{sender}' sent {_shown(given)} where distinct numbers below {below} were expected.")
    return list(given)


def _shown(given: Any) -> str:
    text = repr(given)
    return text if len(text) < 60 else text[:57] + "..."


def packing(rows: int) -> Packing:
    """How sums over that many rows lie in a plaintext: g above h, one pair after another."""
    return Packing(VALUE_BITS, rows)


def pieces(count: int, size: int) -> Sequence[slice]:
    """Slices of at most `size` that cover `count`."""
    return [slice(at, min(at + size, count)) for at in range(0, count, size)]
