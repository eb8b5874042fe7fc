"""Signatures of many parties, verified in one question where a seat is not beside its keys.

A member of a secure sum hears from every neighbour twice a round. Over a pipe, to ask about each of them by itself
costs several times what the signatures do.
"""

from abc import abstractmethod
from collections.abc import Sequence

from hansa.core.pipeline import Seat

Claim = tuple[str, bytes, bytes]  # that the party of this name signed this message: name, message, signature


class AskingSeat(Seat):
    """A seat that asks somebody else, and can ask for several signatures at once."""

    @abstractmethod
    def verify_all(self, claims: Sequence[Claim]) -> None:
        """As `verify` for each in turn: the error is that of the first that does not hold."""


def verify_all(seat: Seat, claims: Sequence[Claim]) -> None:
    """Verifies all claims, or raises what `Seat.verify` does for the first that does not hold."""
    if isinstance(seat, AskingSeat):
        seat.verify_all(claims)
    else:
        for claim in claims:
            seat.verify(*claim)
