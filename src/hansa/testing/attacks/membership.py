"""Was this example in the training data? LiRA: the likelihood ratio of the model's confidence in it.

    φ = log p/(1 − p), p what the model gives the right label         out ~ N(μ₀, σ²), in ~ N(μ₁, σ²) over shadow models
    score = log N(φ; μ₁, σ²) − log N(φ; μ₀, σ²)

Shadow models are trained on random halves of the same examples; each is the target in turn, judged by all others.

Source: Carlini et al. 2022, Membership Inference Attacks From First Principles, https://arxiv.org/abs/2112.03570
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hansa.core.data import Clients, Dataset
from hansa.core.errors import ConfigError, require
from hansa.core.job import Evaluation, Job
from hansa.core.model import Model
from hansa.core.tensors import Tensors
from hansa.runtimes.local import Local


@dataclass(frozen=True)
class Membership:
    """Scores of examples, and whether they were members.

    Args:
      scores: the higher, the more likely a member.
      members: what is true; of the same shape.
    """

    scores: np.ndarray
    members: np.ndarray

    def roc(self) -> tuple[np.ndarray, np.ndarray]:
        """False and true positive rates at all thresholds, from (0, 0) to (1, 1)."""
        order = np.argsort(-self.scores, kind="stable")
        last = np.append(np.flatnonzero(np.diff(self.scores[order])), len(order) - 1)  # equal scores fall together
        hits = np.cumsum(self.members[order])[last]
        false = (last + 1 - hits) / max(1, (~self.members).sum())
        return np.append(0.0, false), np.append(0.0, hits / max(1, self.members.sum()))

    @property
    def auc(self) -> float:
        """Area under that curve: 1/2 is guessing."""
        return float(np.trapezoid(*reversed(self.roc())))

    def tpr(self, fpr: float) -> float:
        """The share of members found at no more than this rate of false alarms: `fpr` itself is guessing."""
        false, true = self.roc()
        return float(true[false <= fpr].max())


def lira(inside: np.ndarray, confidences: np.ndarray) -> Membership:
    """Every model as the target in turn, all others its shadows.

    Args:
      inside: which examples each model was trained on: booleans of shape (models, examples).
      confidences: φ of each model for each example, of the same shape.

    Raises:
      ConfigError: there are too few models to tell in from out for each example.
    """
    models = len(inside)
    require(models >= 6, f"{models} shadow models: at least 6 are needed, and 16 or more are of use.")
    scores = np.empty(confidences.shape)
    for target in range(models):
        others = np.arange(models) != target
        means, spreads = [], []
        for flag in (inside[others], ~inside[others]):
            count = np.maximum(flag.sum(axis=0), 1)
            mean = np.where(flag, confidences[others], 0.0).sum(axis=0) / count
            left = np.where(flag, confidences[others] - mean, 0.0)
            means.append(mean)
            # One spread for all examples: with so few models an example's own is noise (section VI-C).
            spreads.append(max(float(np.sqrt((left**2).sum() / max(1, flag.sum()))), 1e-6))
        away = [(confidences[target] - mean) / spread for mean, spread in zip(means, spreads, strict=True)]
        scores[target] = (away[1] ** 2 - away[0] ** 2) / 2 + np.log(spreads[1] / spreads[0])
    return Membership(scores.reshape(-1), inside.reshape(-1))


def halves(models: int, examples: int, rng: np.random.Generator) -> np.ndarray:
    """Which examples each shadow model is trained on: each example is in half of them. Booleans (models, examples)."""
    ranks = np.argsort(rng.random((models, examples)), axis=0)
    inside: np.ndarray = ranks < models // 2
    return inside


def confidences(model: Model, params: Tensors, data: Any, wanted: Sequence[int] | None = None) -> np.ndarray:
    """φ of each example, from the model's own loss, which must be a cross-entropy.

    Args:
      model, params: what is attacked.
      data: with `take`.
      wanted: rows; all if None.
    """
    found = []
    for row in range(len(data)) if wanted is None else wanted:
        loss, weight = model.evaluate(params, data.take([row]))["loss"]
        nats = max(loss / weight, 1e-7)  # where float32 no longer tells p from 1
        found.append(-nats - np.log(-np.expm1(-nats)))
    return np.array(found)


def against_job(
    job: Job, clients: Clients, *, models: int = 16, seed: int = 0, tell: Callable[[int], None] | None = None
) -> Membership:
    """LiRA against the model that a job ends with: the job is run once for each shadow model, on halves of the data.

    Args:
      job: any; its last model is what the attacker has.
      clients: whose data can be taken by rows (`Dataset`).
      models: how many runs; at least 6.
      seed: of the halves; each run has a seed of its own.
      tell: called with the number of runs that are done.

    Raises:
      ConfigError: the data cannot be taken by rows, or there are too few runs.
      HansaError: a run failed.
    """
    require(models >= 6, f"{models} shadow models: at least 6 are needed, and 16 or more are of use.")
    whole: dict[str, Any] = {name: clients.open(name) for name in clients.ids}
    other = next((name for name in whole if not isinstance(whole[name], Dataset)), None)
    if other is not None:
        raise ConfigError(f"'{other}' holds a {type(whole[other]).__name__}: membership is tested on a Dataset's rows.")
    inside = halves(models, sum(map(len, whole.values())), np.random.default_rng(seed))
    plain = replace(job, evaluation=Evaluation(), epsilon=None, delta=None)
    found = []
    for run in range(models):
        rows, at = {}, 0
        for name, data in whole.items():
            mine = inside[run, at : at + len(data)]
            if not mine.any():
                mine[0] = True  # a client without examples cannot train; `mine` is a view, so the truth says so
            rows[name], at = data.take(mine), at + len(data)
        params = Local().run(replace(plain, seed=job.seed + 1 + run), Clients.of(rows)).params
        found.append(np.concatenate([confidences(job.model, params, data) for data in whole.values()]))
        if tell is not None:
            tell(run + 1)
    return lira(inside, np.stack(found))
