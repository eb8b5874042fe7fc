"""What record-level privacy (`LocalWork.dp`) costs one worker's records: every step is one sampled Gaussian release.

Each worker accounts for its own data, of a size that only it knows. Who sees the updates does not matter, since the
noise is in them when they leave; neither do clipping and sums that follow.
"""

import math
from collections import Counter
from dataclasses import replace

from hansa.core.errors import ConfigError
from hansa.core.ledger import Event
from hansa.core.model import LocalWork, RecordDP
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


def sensitivity(dp: RecordDP) -> float:
    """The L2 norm by which one record more or less changes what a step sums up, whatever else was drawn: C or 2C.

    Without microbatches the sum has one more gradient of norm at most C. With them a record falls into one slot alone,
    independently of all others, so that for given draws and slots of the others one summand is replaced by another, and
    both lie in the ball of radius C: no more than 2C, and no less where a slot turns round. Averaging over those draws
    and slots, and over whether the record was drawn, is a mixture of such pairs; divergences are jointly convex, so it
    costs no more than one Poisson-sampled Gaussian of this sensitivity.

    Sources: McMahan, Andrew et al. 2018, A General Approach to Adding Differential Privacy to Iterative Training
    Procedures, https://arxiv.org/abs/1812.06210; Ponomareva et al. 2023, How to DP-fy ML, section 5.6 (the factor 2),
    https://arxiv.org/abs/2303.00654
    """
    return dp.clip if dp.microbatches is None else 2 * dp.clip


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
    slots = "" if work.dp.microbatches is None else f", {work.dp.microbatches} microbatches"
    event = Event(
        mechanism="gaussian", noise_multiplier=work.dp.noise_multiplier, sampling=sampling, rate=rate,
        detail=f"DP-SGD steps, clip {work.dp.clip:g}{slots}",
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
