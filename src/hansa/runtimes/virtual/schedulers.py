"""Which devices a job gets for a round, where several jobs share them: random, fastest first, within a deadline.

A scheduler is a pure function of what it is shown; one that learns gives each job a copy that does. `Bayesian`,
`Genetic` and `RLDS`, which learns, have files of their own.

    class Slowest(Scheduler):
        def pick(self, view, rng):
            return view.free[np.argsort(view.seconds[view.free])][-view.wanted:]
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hansa.core.errors import ConfigError
from hansa.core.tensors import EMPTY, Tensors


@dataclass(frozen=True)
class Trial:
    """One round of a job as it went.

    Args:
      plan: devices that were asked.
      fairness: variance, over all devices, of how often the job had picked each, this round included.
      seconds: simulated, from asking to the last answer that was waited for.
    """

    plan: np.ndarray
    fairness: float
    seconds: float


@dataclass(frozen=True)
class View:
    """What a scheduler may know when it picks devices for one job's next round.

    Args:
      wanted: how many.
      free: devices that are idle and there, ascending; at least one.
      seconds: expected of one task of this job on each device of the fleet.
      compute_s, upload_s: the parts of it that FedCS tells apart.
      counts: how often this job picked each device before.
      trials: this job's rounds so far.
    """

    wanted: int
    free: np.ndarray
    seconds: np.ndarray
    compute_s: np.ndarray
    upload_s: np.ndarray
    counts: np.ndarray
    trials: Sequence[Trial] = ()

    def fairness(self, plan: np.ndarray) -> float:
        """The variance of the counts after one more round with this plan: 0 if all devices were picked as often."""
        after = self.counts.astype(float)
        after[plan] += 1
        return float(after.var())


class Scheduler(ABC):
    """Picks the devices of a round; a frozen dataclass of its settings."""

    @abstractmethod
    def pick(self, view: View, rng: np.random.Generator) -> np.ndarray:
        """Different devices of `view.free`, at least one and at most `view.wanted`."""

    def for_job(self, learnt: Tensors = EMPTY) -> "Scheduler":
        """The scheduler of one job, going on from what another has learnt; itself, if it does not learn."""
        if len(learnt):
            raise ConfigError(f"learnt: {type(self).__name__} does not learn; leave it out, or take RLDS.")
        return self

    def observe(self, trial: Trial) -> None:
        """A round of the plan that was picked last, as it went; only called on what `for_job` gave."""

    def learnt(self) -> Tensors:
        """What `for_job` goes on from; empty where nothing is learnt."""
        return EMPTY


@dataclass(frozen=True)
class Random(Scheduler):
    """Uniformly among those that are free."""

    def pick(self, view: View, rng: np.random.Generator) -> np.ndarray:
        """Without replacement."""
        return rng.choice(view.free, min(view.wanted, len(view.free)), replace=False)


@dataclass(frozen=True)
class Greedy(Scheduler):
    """The fastest that are free: short rounds, and slow devices never learn nor teach."""

    def pick(self, view: View, rng: np.random.Generator) -> np.ndarray:
        """Ties go to the lower number."""
        return view.free[np.argsort(view.seconds[view.free], kind="stable")[: view.wanted]]


@dataclass(frozen=True)
class FedCS(Scheduler):
    """As many of some randomly drawn candidates as can answer within a deadline.

    Args:
      deadline_s: of a round.
      candidates: drawn for each device wanted; the paper's fraction C.
      shared_link: whether uploads wait for one another, as on the paper's cell; else each device has its own link.

    If not one candidate can make it, the fastest is asked alone.

    Source: Nishio, Yonetani: Client Selection for Federated Learning with Heterogeneous Resources in Mobile Edge, 2019,
    algorithm 3, https://arxiv.org/abs/1804.08333
    """

    deadline_s: float
    candidates: float = 3.0
    shared_link: bool = False

    def __post_init__(self) -> None:
        if not self.deadline_s > 0:
            raise ConfigError(f"deadline_s={self.deadline_s}: a number of seconds above 0.")
        if not self.candidates >= 1:
            raise ConfigError(f"candidates={self.candidates}: at least 1 for each device wanted.")

    def pick(self, view: View, rng: np.random.Generator) -> np.ndarray:
        """The cheapest next device, until no more fit."""
        drawn = rng.choice(view.free, min(len(view.free), round(self.candidates * view.wanted)), replace=False)
        chosen = self._queued(view, drawn) if self.shared_link else self._parallel(view, drawn)
        return chosen if len(chosen) else drawn[[np.argmin(view.seconds[drawn])]]

    def _parallel(self, view: View, drawn: np.ndarray) -> np.ndarray:
        order: np.ndarray = drawn[np.argsort(view.seconds[drawn], kind="stable")]
        within: np.ndarray = order[view.seconds[order] <= self.deadline_s][: view.wanted]
        return within

    def _queued(self, view: View, drawn: np.ndarray) -> np.ndarray:
        """Algorithm 3: Θ is when the last upload ends, T_d when the slowest download has."""
        left, chosen, theta, slowest = list(drawn.tolist()), list[int](), 0.0, 0.0
        download = view.seconds - view.compute_s - view.upload_s

        def cost(k: int) -> float:  # line 3: what device k would add to the round
            more = max(slowest, download[k]) - slowest
            return float(more + view.upload_s[k] + max(0.0, view.compute_s[k] - theta))

        while left and len(chosen) < view.wanted:
            x = min(left, key=lambda k: (cost(k), k))
            left.remove(x)
            after = theta + view.upload_s[x] + max(0.0, view.compute_s[x] - theta)  # line 5
            if max(slowest, download[x]) + after < self.deadline_s:  # line 7
                theta, slowest = float(after), float(max(slowest, download[x]))
                chosen.append(x)
        return np.array(chosen, np.int64)
