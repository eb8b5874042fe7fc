"""What parties tell each other as plain values, read under one guard: garbage ends in an error that names its sender.

    told(mesh, "sizes", len(table), int)            {"bank": 30000, "shop": 30000}    everybody tells everybody
    heard(mesh, "shop", "head", tuple[int, str])    [13, "9f…"]                       one tells
    sized(mesh, "shop", "digests", 4096)            so many bytes

Values travel as JSON. A form says what they must be:

    int                     from 0 to 2⁶³ − 1, and no bool
    float, str, bool        finite numbers; text in valid Unicode
    list[form]              of any length
    tuple[form, form]       a list of exactly these
    form | None             or nothing
    dict[str, form]         by name
    Any                     whatever: to be compared with what is expected
"""

import json
import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from types import NoneType, UnionType
from typing import Any, NoReturn, get_args, get_origin

from hansa.core.checkpoint import Buffer
from hansa.core.errors import ProtocolError
from hansa.core.runtime import Mesh

MOST = 1 << 26  # bytes of JSON
_LARGEST = 1 << 63


def told(mesh: Mesh, tag: str, mine: Any, form: Any, among: Collection[str] | None = None) -> dict[str, Any]:
    """What every party says under a tag, by name, this one's value among it; all parties call it together.

    Args:
      mesh: links to them.
      tag: of the messages.
      mine: this party's value.
      form: of all values.
      among: the parties that speak, of those of the mesh; None: all.

    Raises:
      ProtocolError: what a peer said is not of this form.
    """
    peers = [name for name in mesh.peers if among is None or name in among]
    for peer in peers:
        mesh.send(peer, tag, [json.dumps(mine).encode()])
    return {mesh.me: mine, **{peer: heard(mesh, peer, tag, form) for peer in peers}}


def heard(mesh: Mesh, sender: str, tag: str, form: Any, deadline_s: float | None = None) -> Any:
    """What one party says. Raises as `told`, and what a mesh raises when nothing comes."""
    (raw,) = parts(mesh, sender, tag, 1, deadline_s)
    return read(raw, sender, tag, form)


def sized(mesh: Mesh, sender: str, tag: str, size: int) -> bytes:
    """So many bytes of one party; ProtocolError if there are more or fewer."""
    (raw,) = parts(mesh, sender, tag, 1)
    if len(raw) != size:
        fault = f"'{sender}' sent {len(raw)} bytes as '{tag}' where {size} belong: it is broken or hostile."
        raise ProtocolError(fault)
    return bytes(raw)


def parts(mesh: Mesh, sender: str, tag: str, count: int, deadline_s: float | None = None) -> list[Buffer]:
    """A message of so many buffers; ProtocolError if there are more or fewer."""
    buffers = mesh.recv(sender, tag, deadline_s)
    if len(buffers) != count:
        raise ProtocolError(f"'{sender}' sent {len(buffers)} parts as '{tag}' where {count} belong.")
    return buffers


@contextmanager
def named(sender: str) -> Iterator[None]:
    """What a peer sent is used in here: a fault that does not name it comes out as one that does."""
    try:
        yield
    except ProtocolError as error:
        if f"'{sender}'" in str(error):
            raise
        raise ProtocolError(f"'{sender}' is broken or hostile: {error}") from None


def read(raw: Buffer, sender: str, what: str, form: Any) -> Any:
    """A value of a form, from the bytes that a peer sent as `what`.

    Raises:
      ProtocolError: it is none; says what is wrong, and where in it.
    """
    if len(raw) > MOST:
        raise ProtocolError(f"'{sender}' sent {len(raw):,} bytes as '{what}', where at most {MOST:,} are read.")
    try:
        return _checked(json.loads(bytes(raw), parse_constant=_no_number), form, "it")
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"'{sender}' sent no '{what}' that can be read: {error}.") from None


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number here")


def _checked(value: Any, form: Any, where: str) -> Any:
    """The value, if it is of the form; else ValueError."""
    if form is Any:
        return value
    kind, inner = get_origin(form) or form, get_args(form)
    if kind is UnionType:
        return None if value is None else _checked(value, next(each for each in inner if each is not NoneType), where)
    wanted: Any = {tuple: list, float: (float, int)}.get(kind, kind)
    if not isinstance(value, wanted) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{where} is {_shown(value)}, and no {kind.__name__}")
    if kind is int and not 0 <= value < _LARGEST:
        raise ValueError(f"{where} is {_shown(value)}, and no count")
    if kind is float and not math.isfinite(value):
        raise ValueError(f"{where} is {value}")
    if kind is str:
        value.encode()  # a lone surrogate is a ValueError
    if kind is list:
        for at, each in enumerate(value):
            _checked(each, inner[0], f"{where}[{at}]")
    if kind is tuple:
        if len(value) != len(inner):
            raise ValueError(f"{where} has {len(value)} values where {len(inner)} belong")
        for at, (each, of) in enumerate(zip(value, inner, strict=True)):
            _checked(each, of, f"{where}[{at}]")
    if kind is dict:
        for name, each in value.items():
            _checked(each, inner[1], f"{where}[{name!r}]")
    return value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else text[:57] + "..."
