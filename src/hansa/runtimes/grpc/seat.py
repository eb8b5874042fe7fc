"""A seat over the pipe between a worker and its executor: the one has the keys, the other the conversation.

    executor  {"did": "seat", ask: sign | verify | once, …} + raw  ──►  worker
              ◄──────────────────  {"do": "seat"} + raw, or {"do": "seat", error, reason}

The worker answers with the seat of the task that it is having done. Whatever code runs in the executor, it gets no
signature for another run, kind, round or attempt.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from hansa.core import errors
from hansa.core.errors import HansaError, ProtocolError
from hansa.core.pipeline import Seat
from hansa.crypto.claims import AskingSeat, Claim

Header = dict[str, Any]


@dataclass(frozen=True)
class DistantSeat(AskingSeat):
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
        self.verify_all([(name, message, signature)])

    def verify_all(self, claims: Sequence[Claim]) -> None:
        """The same of several, in one question."""
        sizes = [(name, len(message), len(signature)) for name, message, signature in claims]
        self._asked({"ask": "verify", "claims": sizes}, b"".join(part for claim in claims for part in claim[1:]))

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
            at = 0
            for name, message, signature in header["claims"]:
                signed = at + message
                seat.verify(name, raw[at:signed], raw[signed : (at := signed + signature)])
        elif header["ask"] == "once":
            seat.once(header["name"], raw)
        else:
            raise ProtocolError(f"a seat cannot be asked to {header['ask']!r}.")
    except (HansaError, LookupError, TypeError, ValueError, AttributeError) as error:  # all but ours: a broken header
        kind = type(error).__name__ if isinstance(error, HansaError) else "ProtocolError"
        return {"do": "seat", "error": kind, "reason": str(error)}, b""
    return {"do": "seat"}, content
