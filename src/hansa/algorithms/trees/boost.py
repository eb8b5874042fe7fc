"""Rounds of boosting, over whatever sources have the columns; `fit` is the learner that has all of them.

Source: Friedman 2001, Greedy function approximation, https://doi.org/10.1214/aos/1013203451
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hansa.algorithms.trees.columns import Table
from hansa.algorithms.trees.growth import LocalSource, Source, grow
from hansa.algorithms.trees.losses import Floats, Gradients, Loss, loss_of
from hansa.algorithms.trees.settings import Boosting
from hansa.algorithms.trees.tree import Boosted, read
from hansa.core.errors import DataError


@dataclass(frozen=True)
class Progress:
    """After some rounds: the trees, and the margins of all training rows, shape (rows, outputs)."""

    boosted: Boosted
    margins: Floats


def fit(columns: Mapping[str, Any], labels: Any, settings: Boosting) -> Boosted:
    """Boosts trees on columns that are all here.

    Args:
      columns: equally long arrays or lists: numbers (NaN where missing), or text (None where missing).
      labels: one for each row; see `Boosting.loss`.
      settings: of the training.

    Raises:
      DataError: labels or columns that cannot be learned from.

    >>> x = np.arange(8.0)
    >>> model = fit({"x": x}, x > 3, Boosting(trees=20, depth=1, min_child_weight=0))
    >>> model.predict({"x": np.array([0.0, 7.0])}).round(1)
    array([0.1, 0.9])
    """
    loss = loss_of(settings.loss, labels)
    table = Table(read(columns), settings)
    if len(table) != len(loss.labels):
        raise DataError(f"{len(loss.labels)} labels for {len(table)} rows: give one for each.")
    return boost([LocalSource("", table)], loss, settings, begin(loss, settings)).boosted


def begin(loss: Loss, settings: Boosting) -> Progress:
    """Before the first round."""
    base = loss.base()
    return Progress(Boosted(settings.loss, base=tuple(base.tolist())), np.tile(base, (len(loss.labels), 1)))


def boost(
    sources: Sequence[Source], loss: Loss, settings: Boosting, start: Progress,
    save: Callable[[Progress], None] = lambda progress: None,
) -> Progress:  # fmt: skip
    """Rounds of boosting from `start` on.

    Args:
      sources: the labels' owner's columns first.
      loss: over the labels of all rows.
      settings: of the training.
      start: the state after the last round done, or that of `begin`.
      save: called with the state after each round.

    Returns:
      The state after the last round; with `patience`, of the best rounds alone.
    """
    rows = len(loss.labels)
    learns = learning_rows(rows, settings)
    watched = ~learns if settings.validation else learns
    progress = start
    while len(progress.boosted) < settings.trees and not spent(progress.boosted.losses, settings):
        round = len(progress.boosted)
        g, h = loss.gradients(progress.margins)
        taken, g, h = _sampled(g, h, np.flatnonzero(learns), settings, round)
        margins, trees = progress.margins.copy(), []
        for output in range(loss.outputs):
            tree, leaf_of = grow(sources, Gradients.of(taken, g[:, output], h[:, output]), rows, settings)
            margins[:, output] += np.array([tree.leaves.get(at, 0.0) for at in range(leaf_of.max() + 1)])[leaf_of]
            trees.append(tree)
        boosted = progress.boosted
        losses = (*boosted.losses, loss.mean(margins, watched))
        progress = Progress(replace(boosted, trees=(*boosted.trees, tuple(trees)), losses=losses), margins)
        save(progress)
    if settings.patience is None:
        return progress
    return Progress(progress.boosted.first(int(np.argmin(progress.boosted.losses)) + 1), progress.margins)


def learning_rows(rows: int, settings: Boosting) -> NDArray[np.bool_]:
    """Which rows are learned from: all but those kept out.

    Raises:
      DataError: too few rows for either.
    """
    learns = np.ones(rows, bool)
    kept = round(settings.validation * rows)
    if rows - kept < 2 or (settings.validation and not kept):
        raise DataError(f"{rows} rows, {kept} of them kept out: that leaves too few.")
    learns[np.random.default_rng([settings.seed, 0]).permutation(rows)[:kept]] = False
    return learns


def spent(losses: Sequence[float], settings: Boosting) -> bool:
    """Whether so many rounds have gone without a lower loss."""
    return settings.patience is not None and len(losses) - 1 - int(np.argmin(losses or [0.0])) >= settings.patience


def _sampled(
    g: Floats, h: Floats, rows: NDArray[np.int64], settings: Boosting, round: int
) -> tuple[NDArray[np.int64], Floats, Floats]:
    """One-sided sampling by gradients: the rows taken, and their gradients, weighed up where drawn."""
    g, h = g[rows], h[rows]
    if settings.goss is None:
        return rows, g, h
    top, rest = (max(1, int(share * len(rows))) for share in settings.goss)
    order = np.argsort(-np.abs(g).sum(axis=1), kind="stable")
    drawn = np.random.default_rng([settings.seed, 1, round]).choice(order[top:], min(rest, len(order) - top), False)
    weight = np.zeros(len(rows))
    weight[order[:top]], weight[drawn] = 1.0, (1 - settings.goss[0]) / settings.goss[1]
    taken = np.flatnonzero(weight)
    return rows[taken], g[taken] * weight[taken, None], h[taken] * weight[taken, None]
