"""What record-level privacy (`LocalWork.dp`) costs one worker's records: every step is one sampled Gaussian release.

Each worker accounts for its own data, of a size that only it knows. Who sees the updates does not matter, since the
noise is in them when they leave; neither do clipping and sums that follow.
"""

import math
from collections import Counter
from dataclasses import replace

from hansa.core.errors import ConfigError
from hansa.core.ledger import Event
from hansa.core.model import LocalWork
from hansa.privacy.accountant import Cost, cost
from hansa.privacy.threats import Adversary, Sees

RECORD = "add or remove one record"
THREATS: tuple[Sees, ...] = (
    Sees(
        Adversary.SERVER,
        "single records within the ε that their worker accounts; all that they have in common",
    ),
    Sees(Adversary.LIAR, "the same, each time it asks"),
    Sees(Adversary.READER, "no more than the server"),
)
"""Of `LocalWork(dp=…)`, which the core declares."""


def record_events(work: LocalWork, examples: int) -> Counter[Event]:
    """The releases of one visit, by kind.

    Args:
      work: with `dp`.
      examples: the worker's own; their number itself is taken as public.
    """
    if work.dp is None or work.batch_size is None:
        raise ConfigError("the local work has no dp: give LocalWork(dp=RecordDP(...), batch_size=...).")
    if examples < 1:
        raise ConfigError(f"examples={examples}: at least one is needed.")
    rate = min(1.0, work.batch_size / examples)
    steps = work.steps if work.steps is not None else (work.epochs or 0) * math.ceil(examples / work.batch_size)
    sampling = "poisson" if rate < 1 else "none"
    event = Event(
        mechanism="gaussian", noise_multiplier=work.dp.noise_multiplier, sampling=sampling, rate=rate,
        detail=f"DP-SGD steps, clip {work.dp.clip:g}",
    )  # fmt: skip
    return Counter({event: steps})


def record_epsilon(work: LocalWork, *, examples: int, visits: int, delta: float) -> Cost:
    """What so many visits (rounds in which this worker took part) cost each of its records.

    Args:
      work: with `dp`.
      examples: the worker's own.
      visits: how often it trains; each is as dear as the others.
      delta: well below 1 / examples.

    Raises:
      ConfigError: no dp is declared, or a number is out of range.
      MissingExtra: dp-accounting is not installed.
    """
    if visits < 0:
        raise ConfigError(f"visits={visits}: it may not be negative.")
    counts = Counter({event: steps * visits for event, steps in record_events(work, examples).items()})
    known = cost(counts, delta, examples)
    notes = tuple(note.replace("client", "record") for note in known.notes)
    return replace(known, relation=RECORD, notes=notes)
