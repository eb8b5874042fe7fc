"""Messages as bytes and back: what may travel, how large it may be, and one error for everything else.

Reading trusts nothing. Bytes become a message only if they are a known message without unknown fields and within their
limits; a peer's garbage is always a `ProtocolError`.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from google.protobuf.message import DecodeError

from hansa.core.checkpoint import Buffer
from hansa.core.errors import ProtocolError
from hansa.core.runtime import Task
from hansa.runtimes.grpc import wire_pb2

PROTOCOL = 2
SERVICE = "hansa.v1.Federation"
CHUNK = 512 << 10  # of bulk: larger ones cost memory for each transfer, smaller ones time
INLINE = 256 << 10  # content up to this size travels within its message
MESSAGE = 1 << 20  # no message is larger
HEADER = 16 << 10  # nor are the headers of a call
REASON = 4 << 10  # characters of a reason or a line of a log

pb: Any = wire_pb2


def parse(kind: Any, data: bytes) -> Any:
    """A message of this kind; ProtocolError for anything else, unknown fields included.

    >>> parse(pb.Ping, b"\\xff")
    Traceback (most recent call last):
    hansa.core.errors.ProtocolError: 1 bytes are no message of kind Ping.
    """
    if len(data) > MESSAGE:
        raise ProtocolError(f"a message of {len(data)} bytes > {MESSAGE}: larger content travels by Pull and Push.")
    try:
        message = kind.FromString(data)
    except (DecodeError, UnicodeDecodeError):
        raise ProtocolError(f"{len(data)} bytes are no message of kind {kind.__name__}.") from None
    size = message.ByteSize()
    message.DiscardUnknownFields()
    if message.ByteSize() != size:
        raise ProtocolError(f"a message of kind {kind.__name__} has unknown fields: both sides need one protocol.")
    return message


def parse_one(kind: Any, data: bytes) -> tuple[str, Any]:
    """The name and the content of a message that holds one of several."""
    message = parse(kind, data)
    name = message.WhichOneof("what")
    if name is None:
        raise ProtocolError(f"a message of kind {kind.__name__} is empty.")
    return name, getattr(message, name)


def task_to_wire(task: Task) -> Any:
    """A task as a message."""
    return pb.Task(**vars(task))


def task_from_wire(message: Any) -> Task:
    """A task out of a message; its strings are limited, since names of files are made of some."""
    fields = {name: getattr(message, name) for name in Task.__dataclass_fields__}
    for name, value in fields.items():
        if isinstance(value, str) and (len(value) > 200 or "/" in value or "\0" in value or value.startswith(".")):
            raise ProtocolError(f"the task's field '{name}' cannot be {value[:40]!r}.")
    known = fields["kind"] in ("train", "evaluate", "query") and fields["role"] in ("worker", "helper")
    if not fields["run"] or not fields["client"] or not known:
        named = ", ".join(f"{name}={fields[name]!r}" for name in ("run", "client", "kind", "role"))
        raise ProtocolError(f"this is no task: {named}.")
    return Task(**fields)


def checked(payload: Any, inline: bool | None = None) -> Any:
    """A payload that says one thing: its size, and either its bytes or a name with what belongs to it.

    Args:
      payload: as it came.
      inline: True or False if it has to be so.
    """
    if len(payload.inline):
        good = (
            payload.size == len(payload.inline) <= INLINE
            and not payload.name
            and not payload.tag
            and inline is not False
        )
    else:
        good = (len(payload.name), len(payload.tag)) in ((32, 0), (28, 16)) and payload.size > 0 and inline is not True
    if not good:
        raise ProtocolError(f"a payload of {payload.size} bytes is neither inline nor properly named.")
    return payload


class Tag:
    """AES-GMAC over content as it comes, keyed by the content's random name of 28 bytes."""

    def __init__(self, name: bytes) -> None:
        self._mac = Cipher(algorithms.AES(name[:16]), modes.GCM(name[16:])).encryptor()

    def update(self, data: Buffer) -> None:
        """Takes the next bytes."""
        self._mac.authenticate_additional_data(data)

    def value(self) -> bytes:
        """The tag, once all bytes were taken."""
        self._mac.finalize()
        return self._mac.tag


class Pieces:
    """Buffers as one long one, read in chunks without joining them."""

    def __init__(self, buffers: Sequence[Buffer]) -> None:
        self._views = [memoryview(buffer) for buffer in buffers]
        self.size = sum(len(view) for view in self._views)

    def chunks(self, offset: int = 0, size: int = CHUNK) -> Iterator[bytes]:
        """Bytes objects of `size`, the last one shorter, from `offset` on."""
        pending: list[memoryview] = []
        have = 0
        for view in self._views:
            if offset >= len(view):
                offset -= len(view)
                continue
            at, offset = offset, 0
            while at < len(view):
                piece = view[at : at + size - have]
                at += len(piece)
                have += len(piece)
                pending.append(piece)
                if have == size:
                    yield b"".join(pending)
                    pending, have = [], 0
        if have:
            yield b"".join(pending)

    def tag(self, name: bytes) -> bytes:
        """The tag of all bytes."""
        tag = Tag(name)
        for view in self._views:
            for at in range(0, len(view), 1 << 26):  # the library wants less than 2 GiB at a time
                tag.update(view[at : at + (1 << 26)])
        return tag.value()


def carried(size: int) -> int:
    """Bytes on the socket for one message: with the frames of gRPC (5), HTTP/2 (9) and TLS (22 for each 16 KiB)."""
    return size + 14 + 22 * (1 + size // (16 << 10))
