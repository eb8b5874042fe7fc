"""What each hospital alone, all together, and one pool of all cases would reach: the same job on other data.

An arm is a run of the same model with the same number of passes over each case (rounds × epochs). Not comparable are
the optimiser steps: in one pass the pool takes as many steps as all hospitals in sum, and the mean of three models
moves about as far as one of them. The test set is small: one case is almost one per cent of accuracy.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hansa.app.demo import cases
from hansa.core.data import Clients, Dataset
from hansa.core.job import Evaluation, Job
from hansa.runtimes.local import train

TOGETHER, POOLED = "together", "pooled"
ARMS = (*cases.SHARES, TOGETHER, POOLED)
"""All runs of one seed: each hospital alone, then the federation, then the pool."""

CAVEATS = (
    (
        "Every run has the same model and the same number of passes over each case. It does not have the same number "
        "of optimiser steps: in one pass the pool takes as many steps as the three hospitals in sum."
    ),
    (
        "The test set is a random fifth of all cases. A hospital alone is measured on patients that it never sees at "
        "home; on its own kind of patient it may do better than here."
    ),
    (
        "One test case is worth 0.9 points of accuracy, and each seed has another test set: compare runs within a "
        "seed, and do not read much into a difference of one point."
    ),
)


@dataclass(frozen=True)
class Score:
    """A model on the test set: the share it gets right, and its mean log loss."""

    accuracy: float
    loss: float


Table = Mapping[int, Mapping[str, Score]]  # seed -> arm -> score


def compare(job: Job, seeds: Sequence[int], done: Callable[[int], None] = lambda seed: None) -> Table:
    """Trains every arm of every seed in this process.

    Args:
      job: its model, work and rounds; the seed and the data are replaced.
      seeds: of the cut, the test set and the training.
      done: called after each seed.
    """
    table: dict[int, dict[str, Score]] = {}
    for seed in seeds:
        parts, test = cases.cut(seed)
        parts, test = {name: cases.scaled(part) for name, part in parts.items()}, cases.scaled(test)
        holdings = {
            **{name: {name: part} for name, part in parts.items()},
            TOGETHER: parts,
            POOLED: {"all": pool(parts)},
        }
        table[seed] = {arm: reached(job, seed, holdings[arm], test) for arm in ARMS}
        done(seed)
    return table


def reached(job: Job, seed: int, parts: Mapping[str, Dataset], test: Dataset) -> Score:
    """The last model's score, trained on these parties' data."""
    at_end = Evaluation(data=test, every=max(1, job.rounds))
    arm = replace(job, seed=seed, evaluation=at_end, cohort=len(parts), sampling=None)
    last = train(arm, Clients.of(parts)).rounds[-1].central
    return Score(last["accuracy"], last["loss"])


def pool(parts: Mapping[str, Dataset]) -> Dataset:
    """All parties' cases in one place: what the federation is there to avoid."""
    columns = next(iter(parts.values()))
    return Dataset(**{name: np.concatenate([part[name] for part in parts.values()]) for name in columns})


def spread(table: Table, arm: str, measure: str = "accuracy") -> tuple[float, float, float]:
    """Median, least and greatest over the seeds."""
    values = [getattr(scores[arm], measure) for scores in table.values()]
    return statistics.median(values), min(values), max(values)


def wins(table: Table, arm: str) -> tuple[int, int, int]:
    """In how many seeds the federation is better than an arm, equal to it, and worse, in accuracy."""
    pairs = [(scores[TOGETHER].accuracy, scores[arm].accuracy) for scores in table.values()]
    return sum(a > b for a, b in pairs), sum(a == b for a, b in pairs), sum(a < b for a, b in pairs)
