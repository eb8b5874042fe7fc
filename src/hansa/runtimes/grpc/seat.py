"""A seat over the pipe between a worker and its executor: the one has the keys, the other the conversation.

    executor  {"did": "seat", ask: sign | verify | once, …} + raw  ──►  worker
              ◄──────────────────  {"do": "seat"} + raw, or {"do": "seat", error, reason}

The worker answers with the seat of the task that it is having done. Whatever code runs in the executor, it gets no
signature for another run, kind, round or attempt.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hansa.core import errors
from hansa.core.errors import HansaError, ProtocolError
from hansa.core.pipeline import Seat

Header = dict[str, Any]


@dataclass(frozen=True)
class DistantSeat(Seat):
    """The executor's end.

    Args:
      ask: says a header and raw bytes to the worker, and gives what it answers.
    """

    ask: Callable[[Header, bytes], tuple[Header, bytes]] = field(repr=False, compare=False)

    def sign(self, message: bytes) -> bytes:
        """Signed by the worker."""
        return self._asked({"ask": "sign"}, message)

    def verify(self, name: str, message: bytes, signature: bytes) -> None:
        """Verified by the worker, which has the authority's certificate and the revocation list."""
        self._asked({"ask": "verify", "name": name, "length": len(message)}, message + signature)

    def once(self, what: str, value: bytes) -> None:
        """Recorded by the worker."""
        self._asked({"ask": "once", "name": what}, value)

    def entropy(self, count: int) -> bytes:
        """Of the operating system."""
        return os.urandom(count)

    def _asked(self, header: Header, raw: bytes) -> bytes:
        answer, content = self.ask({"did": "seat", **header}, raw)
        if "error" in answer:
            kind = getattr(errors, answer["error"], HansaError)
            raise kind(answer["reason"])
        return content


def answered(seat: Seat, header: Header, raw: bytes) -> tuple[Header, bytes]:
    """The worker's end: does what the executor asks; what goes wrong is raised there."""
    content = b""
    try:
        if header["ask"] == "sign":
            content = seat.sign(raw)
        elif header["ask"] == "verify":
            seat.verify(header["name"], raw[: header["length"]], raw[header["length"] :])
        elif header["ask"] == "once":
            seat.once(header["name"], raw)
        else:
            raise ProtocolError(f"a seat cannot be asked to {header['ask']!r}.")
    except (HansaError, LookupError, TypeError, AttributeError) as error:  # the latter of a header that is none of ours
        kind = type(error).__name__ if isinstance(error, HansaError) else "ProtocolError"
        return {"do": "seat", "error": kind, "reason": str(error)}, b""
    return {"do": "seat"}, content
