"""What the events of a ledger cost in privacy: ε at a δ, by the dp-accounting library, in two ways that are both
bounds.

    RDP   Rényi differential privacy: composes any number of rounds at once; somewhat loose
    PLD   privacy loss distributions: tight for Poisson sampling and for none

What ε speaks of depends on how clients were drawn, and the two are not mixed:

    poisson, none   one client's contributions replaced by zeros in every round (zero-out, which costs what
                    add-or-remove costs). One client moves a sum by at most C: multiplier z as recorded.
    fixed           one client replaced by another. One client moves a sum by at most 2·C: multiplier z/2. RDP amplifies
                    by sampling without replacement (Wang et al. 2019); PLD has no such event, and counts every round
                    as if everybody were in it, which is a bound too.

A ledger that has both is accounted as fixed, with Poisson rounds unamplified. An event of another mechanism gives no ε:
an error that says so, never a wrong number.

Sources: Mironov, Talwar and Zhang 2019, https://arxiv.org/abs/1908.10530; Koskela, Jälkö and Honkela 2020,
https://arxiv.org/abs/1906.03049; Wang, Balle and Kasiviswanathan 2019, https://arxiv.org/abs/1808.00087
"""

import functools
import logging
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from hansa.core.errors import BudgetExceeded, ConfigError, MissingExtra
from hansa.core.job import Job
from hansa.core.ledger import Event, Ledger

ADD_OR_REMOVE = "add or remove one client"
REPLACE = "replace one client"

# Fewer than the library tries: each takes it a good while without replacement, and any choice of orders gives a bound.
_FIXED_ORDERS = tuple(float(order) for order in (*range(2, 33), 40, 48, 64, 96, 128, 192, 256))


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What some releases cost together.

    Args:
      delta: δ of both.
      rdp, pld: ε by each way of accounting; inf where nothing is protected.
      relation: which two populations ε says cannot be told apart.
      notes: what a reader of the number should know.
    """

    delta: float
    rdp: float
    pld: float
    relation: str
    notes: tuple[str, ...] = ()

    @property
    def epsilon(self) -> float:
        """The smaller of the two: both are upper bounds."""
        return min(self.rdp, self.pld)

    def __float__(self) -> float:
        return self.epsilon

    def __str__(self) -> str:
        return f"ε = {self.epsilon:.5g} (RDP {self.rdp:.5f}, PLD {self.pld:.5f}) at δ = {self.delta:g}, {self.relation}"


def epsilon(job: Job, *, population: int, delta: float | None = None, rounds: int | None = None) -> Cost:
    """What all rounds of a job will cost, each succeeding at its first attempt (void ones that were opened are charged
    too).

    Args:
      job: bound to this population first; its faults are raised.
      population: clients that could be asked.
      delta: the job's own if None; well below 1 / population.
      rounds: how many of them; all if None.

    Raises:
      JobError: the job cannot be bound.
      ConfigError: δ is missing or out of range, nothing is noised, or a mechanism is not known here.
      MissingExtra: dp-accounting is not installed.
    """
    chosen = _delta(job, delta)
    events = job.bind(population).events()
    if not events:
        raise ConfigError("no stage of this job adds noise, so it has no ε: add one, as in Gaussian(1.0).")
    return cost(_times(events, job.rounds if rounds is None else rounds), chosen, population)


def epsilon_of(ledger: Ledger, delta: float, population: int | None = None) -> Cost:
    """What a ledger's entries have cost, void attempts among them.

    Args:
      ledger: of one population; empty costs nothing.
      delta: in (0, 1).
      population: to hold δ against; not needed otherwise.

    Raises:
      ConfigError: δ is out of range, or a mechanism is not known here.
      MissingExtra: dp-accounting is not installed.
    """
    return cost(Counter(entry.event for entry in ledger), delta, population)


def check_budget(job: Job, population: int, ledger: Ledger | None = None, *, done: int = 0) -> Cost | None:
    """Refuses a job that would exceed its budget, before it starts or goes on.

    Args:
      job: with `epsilon` and `delta`, else nothing is checked.
      population: clients that can be asked.
      ledger: what this population has spent already, this job's own rounds among it.
      done: rounds of this job that are committed; the rest is what is still to be paid.

    Returns:
      What it will have cost at the end; None for a job without a budget.

    Raises:
      BudgetExceeded: with the number of rounds that the budget allows.
    """
    if job.epsilon is None:
        return None
    delta, planned = _delta(job, None), job.bind(population).events()
    if not planned:
        raise ConfigError(f"epsilon={job.epsilon} but no stage adds noise: add one, as in Gaussian(1.0).")
    spent = Counter(entry.event for entry in ledger or Ledger())

    def after(rounds: int) -> Cost:
        counts = spent.copy()
        counts.update(_times(planned, rounds))
        return cost(counts, delta, population)

    left = max(0, job.rounds - done)
    whole = after(left)
    if whole.epsilon <= job.epsilon:
        return whole
    low, high = 0, left
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if after(middle).epsilon <= job.epsilon else (low, middle)
    raise BudgetExceeded(
        f"{left} more rounds would bring ε to {whole.epsilon:.3g} at δ = {delta:g}, beyond epsilon={job.epsilon:g}: "
        f"the budget allows {low} of them; run fewer, add noise, or sample fewer clients a round."
    )


def cost(counts: Counter[Event], delta: float, population: int | None = None) -> Cost:
    """What these events, each so many times, cost together. See `epsilon_of` for the rest."""
    if not 0 < delta < 1:
        raise ConfigError(f"delta={delta}: it lies in (0, 1), well below 1 / population.")
    for event in counts:
        _known(event)
    fixed = any(event.sampling == "fixed" for event in counts)
    relation = REPLACE if fixed else ADD_OR_REMOVE
    notes = tuple(_notes(counts, delta, population))
    if not sum(counts.values()):
        return Cost(delta=delta, rdp=0.0, pld=0.0, relation=relation, notes=notes)
    dp = _library()
    orders = (
        _FIXED_ORDERS if fixed else tuple(float(order) for order in dp.rdp.rdp_privacy_accountant.DEFAULT_RDP_ORDERS)
    )
    divergences = sum(count * _rdp(event, fixed, orders) for event, count in counts.items())
    rdp = float(dp.rdp.rdp_privacy_accountant.compute_epsilon(orders, divergences, delta)[0])
    return Cost(
        delta=delta,
        rdp=rdp,
        pld=_pld(dp, counts, fixed, delta, rdp),
        relation=relation,
        notes=notes,
    )


@functools.lru_cache(maxsize=256)
def _rdp(event: Event, fixed: bool, orders: tuple[float, ...]) -> np.ndarray:
    """Rényi divergences of one release at these orders; they add up over releases. Kept, since fixed sizes are dear."""
    dp = _library()
    relation = dp.NeighboringRelation.REPLACE_ONE if fixed else dp.NeighboringRelation.ADD_OR_REMOVE_ONE
    accountant = dp.rdp.RdpAccountant(list(orders), relation)
    logger = logging.getLogger("absl")
    level = logger.level
    try:
        logger.setLevel(logging.ERROR)  # it warns of orders that it leaves out, which costs tightness alone
        accountant.compose(_as_rdp(dp, event, fixed))
    finally:
        logger.setLevel(level)
    divergences: np.ndarray = accountant.rdp
    return divergences


def _as_rdp(dp: Any, event: Event, fixed: bool) -> Any:
    z = event.noise_multiplier / 2 if fixed else event.noise_multiplier
    release = dp.GaussianDpEvent(z)
    if event.sampling == "poisson" and not fixed:
        return dp.PoissonSampledDpEvent(event.rate, release)
    if event.sampling == "fixed":
        # The library asks for two sizes and reads their ratio alone.
        return dp.SampledWithoutReplacementDpEvent(1 << 40, math.ceil(event.rate * (1 << 40)), release)
    return release


def _pld(dp: Any, counts: Counter[Event], fixed: bool, delta: float, rough: float) -> float:
    """ε by privacy loss distributions. Gaussians alone compose to one, whose curve is known in closed form."""
    amplified = {event for event in counts if event.sampling == "poisson" and event.rate < 1 and not fixed}
    # Half the multiplier under add-or-remove is a sensitivity twice as large, which is that of replace-one.
    precision = sum(count / event.noise_multiplier**2 for event, count in counts.items() if event not in amplified)
    sigma = precision**-0.5 / (2 if fixed else 1) if precision else math.inf
    if not amplified:
        # Balle and Wang 2018, theorem 8, https://arxiv.org/abs/1805.06530
        return float(dp.get_epsilon_gaussian(sigma, delta))
    # Where ε is beyond use, a coarser grid of losses (still a bound) saves what would be minutes.
    accountant = dp.pld.PLDAccountant(value_discretization_interval=1e-4 * (1.0 if rough < 20 else rough))
    for event in sorted(amplified, key=repr):
        release = dp.GaussianDpEvent(event.noise_multiplier)
        accountant.compose(dp.PoissonSampledDpEvent(event.rate, release), counts[event])
    if precision:
        accountant.compose(dp.GaussianDpEvent(sigma))
    return float(accountant.get_epsilon(delta))


def _times(events: Iterable[Event], rounds: int) -> Counter[Event]:
    return Counter({event: count * rounds for event, count in Counter(events).items()})


def _known(event: Event) -> None:
    if event.mechanism != "gaussian":
        raise ConfigError(
            f"the ledger holds the mechanism '{event.mechanism}', whose cost is not known here: it has no ε."
        )
    if event.sampling not in ("poisson", "fixed", "none"):
        raise ConfigError(
            f"the ledger holds the sampling '{event.sampling}', whose cost is not known here: it has no ε."
        )
    if not (event.noise_multiplier > 0 and 0 < event.rate <= 1):
        raise ConfigError(
            f"the ledger holds noise_multiplier={event.noise_multiplier}, rate={event.rate}: it has no ε."
        )


def _notes(counts: Iterable[Event], delta: float, population: int | None) -> Iterable[str]:
    kinds = {event.sampling for event in counts}
    if population is not None and delta >= 1 / population:
        yield f"δ = {delta:g} is not below 1 / {population}: publishing one client would satisfy it. Lower delta."
    if "fixed" in kinds:
        yield "fixed-size cohorts: RDP counts sampling without replacement, PLD no sampling at all; Poisson costs less."
    if kinds == {"fixed", "poisson"} or kinds == {"fixed", "poisson", "none"}:
        yield "Poisson rounds beside fixed-size ones are counted without amplification."
    if "none" in kinds:
        yield "no amplification where everyone is asked, or a deadline, over-selection or staleness decides who is in."


def _delta(job: Job, delta: float | None) -> float:
    chosen = delta if delta is not None else job.delta
    if chosen is None:
        raise ConfigError("ε has no meaning without δ: give delta=..., well below 1 / population, as in 1e-5.")
    return chosen


def _library() -> Any:
    try:
        import dp_accounting
        import dp_accounting.pld
        import dp_accounting.rdp
    except ImportError as error:
        raise MissingExtra("privacy accounting", "dp-accounting", "dp") from error
    return dp_accounting
