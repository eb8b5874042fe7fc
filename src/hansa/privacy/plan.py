"""Planning a private job: how many clients a round, with how much noise, for a target ε.

    noise of the mean, in units of the clip = z / cohort          what the model feels
    ε(cohort) at z = noise · cohort                               falls as the cohort grows

More clients a round allow the same noise in the mean with a larger multiplier: `plan` finds the smallest cohort at
which that is private enough.

Source: McMahan et al. 2018, section 4, https://arxiv.org/abs/1710.06963; the search is that of TensorFlow Federated's
tutorial on differential privacy
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hansa.core.errors import ConfigError, MissingExtra, require
from hansa.core.ledger import Event
from hansa.privacy.accountant import pld_epsilon, rdp_epsilon
from hansa.privacy.calibrate import searched

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_INTERVAL = 1e-3  # of privacy losses: a bound as good as a finer one's to the third digit, and ten times as fast


@dataclass(frozen=True, kw_only=True)
class Target:
    """What is to be reached.

    Args:
      epsilon, delta: of all rounds together.
      clients: the population.
      rounds: how many.
      sampling: `poisson` or `fixed`, which costs more.
      by: the way of accounting: `rdp`, or `pld`, which is tighter where it can be (not for `fixed`).

    Raises:
      ConfigError: a value is out of its range.
    """

    epsilon: float
    delta: float
    clients: int
    rounds: int
    sampling: str = "poisson"
    by: str = "rdp"

    def __post_init__(self) -> None:
        require(self.epsilon > 0, f"epsilon={self.epsilon}: it is above 0.")
        require(0 < self.delta < 1, f"delta={self.delta}: it lies in (0, 1), well below 1 / population.")
        require(self.clients >= 1, f"clients={self.clients}: a population has at least one.")
        require(self.rounds >= 1, f"rounds={self.rounds}: there is at least one.")
        require(self.sampling in ("poisson", "fixed"), f"sampling='{self.sampling}': choose 'poisson' or 'fixed'.")
        require(self.by in ("rdp", "pld"), f"by='{self.by}': choose 'rdp' or 'pld'.")

    def spent(self, cohort: int, noise_multiplier: float) -> float:
        """ε of all rounds with so many clients a round and this noise."""
        rate = cohort / self.clients
        event = Event(
            mechanism="gaussian", noise_multiplier=noise_multiplier, rate=rate,
            sampling=self.sampling if rate < 1 else "none",
        )  # fmt: skip
        counts, replaced = Counter({event: self.rounds}), event.sampling == "fixed"
        rough = rdp_epsilon(counts, replaced, self.delta)
        return rough if self.by == "rdp" else pld_epsilon(counts, replaced, self.delta, rough, _INTERVAL)

    def multiplier(self, cohort: int, *, rough: bool = False) -> float:
        """The least noise multiplier with so many clients a round; to three digits if `rough`."""
        rate = cohort / self.clients
        sampling = self.sampling if rate < 1 else "none"
        return searched(self.epsilon, self.delta, rate, self.rounds, sampling, self.by, rough=rough)

    @property
    def warning(self) -> str:
        """What is wrong with δ, if anything is."""
        if self.delta < 1 / self.clients:
            return ""
        return (
            f"δ = {self.delta:g} is not below 1 / {self.clients}: publishing one client would satisfy it. Lower delta."
        )


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A cohort and its noise.

    Args:
      target: which they reach.
      cohort: clients a round, expected.
      noise_multiplier: z of `Gaussian`.
      epsilon: what all rounds cost.
    """

    target: Target
    cohort: int
    noise_multiplier: float
    epsilon: float

    @property
    def noise(self) -> float:
        """Standard deviation of a coordinate of the mean, in units of the clip."""
        return self.noise_multiplier / self.cohort

    def __str__(self) -> str:
        goal = f"({self.target.epsilon:g}, {self.target.delta:.0e})-DP"
        return f"To get {goal}, use {self.cohort} clients with noise multiplier {round(self.noise_multiplier, 4):g}."


def plan(target: Target, *, noise: float | None = None, cohort: int | None = None) -> Plan:
    """The smallest cohort at which a mean of this noise is private enough; or the least noise for a given cohort.

    Args:
      target: ε, δ, population and rounds.
      noise: standard deviation of a coordinate of the mean, in units of the clip: z / cohort. Give this or `cohort`.
      cohort: clients a round.

    Raises:
      ConfigError: no cohort is large enough, or neither or both were given.
      MissingExtra: dp-accounting is not installed.

    >>> print(plan(Target(epsilon=2, delta=1e-5, clients=3383, rounds=100), noise=0.01))
    To get (2, 1e-05)-DP, use 120 clients with noise multiplier 1.2.
    """
    if (noise is None) == (cohort is None):
        raise ConfigError(f"noise={noise}, cohort={cohort}: give exactly one of them.")
    if cohort is not None:
        require(1 <= cohort <= target.clients, f"cohort={cohort}: from 1 to the {target.clients} clients.")
        z = target.multiplier(cohort)
        return Plan(target=target, cohort=cohort, noise_multiplier=z, epsilon=target.spent(cohort, z))
    assert noise is not None
    require(noise > 0, f"noise={noise}: it is above 0, as in 0.01.")
    if target.spent(target.clients, noise * target.clients) > target.epsilon:
        raise ConfigError(
            f"even all {target.clients} clients in every round give more than ε = {target.epsilon:g} with "
            f"noise={noise:g}: allow more noise in the mean, more ε, or fewer rounds."
        )
    low, high = 0, target.clients
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if target.spent(middle, noise * middle) <= target.epsilon else (middle, high)
    z = noise * high
    return Plan(target=target, cohort=high, noise_multiplier=z, epsilon=target.spent(high, z))


def plot_noise(found: Plan, path: str | Path | None = None, points: int = 12) -> "Figure":
    """Draws the noise that the target takes against the size of the cohort: as a multiplier, and in the mean.

    Args:
      found: what is marked in it.
      path: where to write the picture, as PNG, SVG or PDF by its ending; None writes nothing.
      points: cohorts between a few and everybody, each a search of its own.

    Returns:
      The matplotlib Figure.

    Raises:
      MissingExtra: matplotlib or dp-accounting is not installed.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import FuncFormatter, LogLocator
    except ImportError:
        raise MissingExtra("hansa.privacy.plot_noise", "matplotlib", "plot") from None
    target = found.target
    least = max(1.0, found.cohort / 16)
    share = (target.clients / least) ** (1 / max(1, points - 1))
    cohorts = sorted({*(round(least * share**i) for i in range(points)), target.clients})
    multipliers = [target.multiplier(cohort, rough=True) for cohort in cohorts]
    figure = Figure(figsize=(9.2, 3.9), dpi=120, layout="constrained")
    left, right = figure.subplots(1, 2, sharex=True)
    left.plot(cohorts, multipliers, marker="o", markersize=3.5)
    left.plot([found.cohort], [found.noise_multiplier], "o", color="tab:red", markersize=8)
    left.set_title("noise multiplier z", loc="left", fontsize=10)
    left.set_ylim(bottom=0)
    right.plot(cohorts, [z / n for z, n in zip(multipliers, cohorts, strict=True)], marker="o", markersize=3.5)
    right.plot([found.cohort], [found.noise], "o", color="tab:red", markersize=8)
    right.annotate(
        f"{found.cohort} clients, z = {found.noise_multiplier:.3g}", (found.cohort, found.noise),
        textcoords="offset points", xytext=(10, 8), fontsize=9.5,
    )  # fmt: skip
    right.set_yscale("log")
    plain = FuncFormatter(lambda value, _: f"{value:,g}")
    right.yaxis.set_major_formatter(plain)
    right.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    right.yaxis.set_minor_formatter(plain)
    right.set_title("noise of the mean, z / cohort, in units of the clip", loc="left", fontsize=10)
    for axes in (left, right):
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(plain)
        axes.set_xlabel("clients a round")
        axes.grid(visible=True, which="major", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    setting = f"{target.clients:,} clients, {target.rounds:,} rounds, {target.sampling} sampling"
    figure.suptitle(f"ε = {target.epsilon:g} at δ = {target.delta:g}: {setting} ({target.by.upper()})", fontsize=11)
    if path is not None:
        figure.savefig(path)
    return figure
