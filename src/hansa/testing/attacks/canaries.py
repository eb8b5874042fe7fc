"""ε bounded from below by canaries: clients whose contribution is a coordinate of its own, there or not by a coin.

    every canary i is in with probability 1/2 → the job runs once → sᵢ, the sum of all released means at coordinate i
    the largest s are guessed in, the smallest out → many right guesses are possible only if ε is large

A job that is (ε, δ)-private leaves a guesser right at most as often as a coin of bias e^ε/(1 + e^ε) would be, up to δ.
So v right ones of r refute every ε under which v would be too lucky. The bound holds with the stated confidence
whatever the guesser does; one above what the ledger says proves that the noise is not what it should be.

Source: Steinke, Nasr and Jagielski 2023, Privacy Auditing with One (1) Training Run, https://arxiv.org/abs/2305.08846
"""

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from hansa.core.algorithm import Update
from hansa.core.data import Clients
from hansa.core.errors import ConfigError, MissingExtra, require
from hansa.core.job import Evaluation, Job
from hansa.core.model import Model, Role
from hansa.core.sampling import Fixed, Sampling
from hansa.core.tensors import Tensors
from hansa.privacy import epsilon
from hansa.runtimes.local import Local
from hansa.testing.attacks.eavesdrop import Tap

SIZE = 1e6  # of a canary's contribution before it is clipped: beyond any bound
SHARES = (
    1 / 32,
    1 / 16,
    1 / 8,
    1 / 4,
    1 / 2,
    1.0,
)  # of the canaries that are guessed; the best counts, and is paid for


@dataclass(frozen=True)
class Canary:
    """The data of a canary.

    Args:
      place: of its coordinate among all trained ones, tensors in order.
      inside: whether it contributes; if not, it sends zeros.
    """

    place: int
    inside: bool

    def __len__(self) -> int:
        return 1


@dataclass(frozen=True)
class Canaried(Tap):
    """An algorithm that trains as it does on data, and on a canary sends its coordinate."""

    def train(self, model: Model, down: Tensors, memory: Tensors, data: Any, rng: np.random.Generator) -> Update:
        """The canary's coordinate, or the real work."""
        if not isinstance(data, Canary):
            return self.inner.train(model, down, memory, data, rng)
        start = down.part("model")
        difference = {name: np.zeros(shape, dtype) for name, (shape, dtype) in start.shapes.items()}
        at = data.place
        for name in model.named(start, Role.TRAINABLE):
            size = difference[name].size
            if data.inside and 0 <= at < size:
                difference[name].reshape(-1)[at] = SIZE
            at -= size
        sides = self.inner.sides(model.named(start, Role.TRAINABLE, Role.BUFFER))
        return Update(difference=Tensors(difference), weight=1.0, side=sides)


class WithCanaries(Clients):
    """Clients and canaries beside them.

    Args:
      clients: the real ones.
      canaries: by id.
    """

    def __init__(self, clients: Clients, canaries: dict[str, Canary]) -> None:
        self._clients, self._canaries = clients, canaries
        self._ids = sorted({*clients.ids, *canaries})

    @property
    def ids(self) -> Sequence[str]:
        """All of them."""
        return self._ids

    def open(self, client: str) -> Any:
        """A canary, or a real client's data."""
        return self._canaries[client] if client in self._canaries else self._clients.open(client)


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What the canaries said.

    Args:
      lower: ε is at least this, with the stated confidence.
      accounted: what the ledger says it is at most.
      delta: δ of both.
      confidence: that `lower` is right.
      guesses, right: how often was guessed, and rightly, where the bound is best.
      canaries: how many there were.
      scores: sᵢ, shape (canaries,).
      inside: which of them were in, of the same shape.
    """

    lower: float
    accounted: float
    delta: float
    confidence: float
    guesses: int
    right: int
    canaries: int
    scores: np.ndarray = field(repr=False)
    inside: np.ndarray = field(repr=False)

    @property
    def broken(self) -> bool:
        """Whether the job is proven to be less private than it says."""
        return self.lower > self.accounted


def audit(
    job: Job, clients: Clients, *, canaries: int = 200, delta: float | None = None, confidence: float = 0.95
) -> Audit:
    """Runs a private job once, with canaries among its clients, and bounds its ε from below.

    The population grows by the canaries; a cohort of fixed size grows with it, so that everybody's chance stays. What
    is accounted is that job.

    Args:
      job: with a stage that adds noise at the server.
      clients: the real ones.
      canaries: how many, at most one for each trained coordinate; more bound better.
      delta: δ; the job's own if None.
      confidence: of the bound, in (0, 1).

    Raises:
      ConfigError: the job is not private, or its model has fewer coordinates than canaries.
      MissingExtra: dp-accounting is not installed.
    """
    require(0 < confidence < 1, f"confidence={confidence}: it lies in (0, 1).")
    require(canaries >= 2, f"canaries={canaries}: at least 2 are needed, and hundreds are of use.")
    if not job.bind(len(clients)).events():
        raise ConfigError("no stage of this job adds noise, so it promises nothing that canaries could refute.")
    sizes = [math.prod(job.model.shapes()[name][0]) for name in job.signal.parts["value"].shapes]
    if canaries > sum(sizes):
        raise ConfigError(f"{canaries} canaries for {sum(sizes)} trained coordinates: each needs one of its own.")
    rng = np.random.default_rng(secrets.randbits(128))
    places, inside = rng.choice(sum(sizes), canaries, replace=False), rng.random(canaries) < 0.5
    birds = {
        f"canary-{i:06}": Canary(int(place), bool(there))
        for i, (place, there) in enumerate(zip(places, inside, strict=True))
    }
    everybody = WithCanaries(clients, birds)
    run = replace(
        job, algorithm=Canaried(job.algorithm.work, inner=job.algorithm), cohort=None, evaluation=Evaluation(),
        sampling=_grown(job.who, len(clients), len(everybody)), epsilon=None, delta=None,
    )  # fmt: skip
    chosen = delta if delta is not None else job.delta
    accounted = float(epsilon(run, population=len(everybody), delta=chosen))
    assert chosen is not None, "epsilon() asks for a δ"
    heard = Local().run(run, everybody).checkpoint.state.part("tap")
    flat = np.concatenate([np.asarray(heard[name]).reshape(-1) for name in job.signal.parts["value"].shapes])
    scores = flat[places].astype(np.float64)
    lower, guesses, right = bound(scores, inside, chosen, confidence)
    return Audit(
        lower=lower, accounted=accounted, delta=chosen, confidence=confidence, guesses=guesses, right=right,
        canaries=canaries, scores=scores, inside=inside,
    )  # fmt: skip


def bound(scores: np.ndarray, inside: np.ndarray, delta: float, confidence: float) -> tuple[float, int, int]:
    """The best bound over several numbers of guesses, each at its share of the error; with its guesses and right ones.

    Args:
      scores: the larger, the more likely in.
      inside: what is true.
      delta, confidence: as in `audit`.
    """
    order, best = np.argsort(scores, kind="stable"), (0.0, 0, 0)
    for share in SHARES:
        each = max(1, round(share * len(scores) / 2))
        right = int(inside[order[-each:]].sum() + (~inside[order[:each]]).sum())
        lower = one_run_bound(len(scores), 2 * each, right, delta, (1 - confidence) / len(SHARES))
        best = max(best, (lower, 2 * each, right))
    return best


def one_run_bound(canaries: int, guesses: int, right: int, delta: float, error: float) -> float:
    """The smallest ε at which so many right guesses are not too lucky: theirs, appendix D.

    >>> round(one_run_bound(100, 100, 100, 0.0, 0.05), 3)  # e^ε/(1 + e^ε) to the 100th is 0.05
    3.493
    """
    low, high = 0.0, 1.0
    if luck(canaries, guesses, right, low, delta) > error:
        return 0.0
    while luck(canaries, guesses, right, high, delta) <= error:
        high *= 2
        if high > 1000:
            break
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if luck(canaries, guesses, right, middle, delta) <= error else (low, middle)
    return low


def luck(canaries: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """How probable at least so many right guesses are at the most, if the job is (ε, δ)-private.

    Args:
      canaries: m; guesses: r; right: v, with 0 ≤ v ≤ r ≤ m.
    """
    try:
        from scipy.stats import binom
    except ModuleNotFoundError as error:
        raise MissingExtra("auditing ε", "scipy", "dp") from error
    bias = 1 / (1 + math.exp(-epsilon))
    beyond = float(binom.sf(right - 1, guesses, bias))
    below = np.cumsum(binom.pmf(right - np.arange(1, right + 1), guesses, bias))
    slope = float((below / np.arange(1, right + 1)).max(initial=0.0))
    return min(1.0, beyond + slope * delta * 2 * canaries)


def _grown(who: Sampling, before: int, after: int) -> Sampling:
    """The same sampling of a larger population, with everybody's chance as it was."""
    return replace(who, clients=math.ceil(who.clients * after / before)) if isinstance(who, Fixed) else who
