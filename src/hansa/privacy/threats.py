"""What each adversary learns, as reducers, stages and local work declare it: the words behind every table of threats.

A mechanism declares them in its class attribute `threats`, beside the code that keeps them. `hansa threats` and the
table of docs/threat-models.md are made from these declarations alone, and `who_sees_what` speaks of a job with them.
"""

from dataclasses import dataclass
from enum import StrEnum


class Adversary(StrEnum):
    """Who wants to know, from the nearest to the data to the farthest from it."""

    SERVER = "a server that follows the protocol"
    LIAR = "a server that lies"
    HELPER = "a helper"
    WORKER = "another worker"
    READER = "whoever sees the models"


@dataclass(frozen=True)
class Sees:
    """What one adversary learns where a mechanism is in the pipeline.

    Args:
      who: the adversary.
      what: it learns, and nothing more of a single worker.
      provided: the assumption on which that rests; empty for none.
    """

    who: Adversary
    what: str
    provided: str = ""


OPEN: tuple[Sees, ...] = (
    Sees(Adversary.SERVER, "each worker's contribution, weight and metrics, as the stages leave them"),
    Sees(Adversary.LIAR, "the same, and of a model of its choice: what it sends is what workers train"),
    Sees(Adversary.WORKER, "the models of its rounds", "the server does not work with it"),
)
"""Of reducers that see each contribution."""

CENTRAL: tuple[Sees, ...] = (
    Sees(Adversary.SERVER, "what the reducer shows it, without noise: it adds the noise itself"),
    Sees(Adversary.LIAR, "what the reducer shows it, without noise"),
    Sees(
        Adversary.READER,
        "each client within (ε, δ) of the ledger",
        "the server adds the noise, and tells nobody its secret or who was asked",
    ),
)
"""Of noise that the server adds."""

OWN: tuple[Sees, ...] = (
    Sees(Adversary.SERVER, "each contribution under noise: a client within ε `against` the server"),
    Sees(Adversary.LIAR, "the same, each time it asks"),
    Sees(Adversary.READER, "no more than the server"),
)
"""Of noise that each worker adds for itself."""


def declared(mechanism: object) -> tuple[Sees, ...]:
    """The declarations of a stage or reducer, or of its class; none for what promises nothing."""
    found: tuple[Sees, ...] = getattr(mechanism, "threats", ())
    return found
