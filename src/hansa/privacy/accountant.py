"""What the events of a ledger cost in privacy: ε at a δ, in two ways that are both bounds.

    RDP   Rényi differential privacy: composes any number of rounds at once; somewhat loose. By the dp-accounting
          library, and by `mechanisms` for what that does not know
    PLD   privacy loss distributions, by that library: tight for Poisson sampling and for none; not for every mechanism

What ε speaks of depends on how clients were drawn and where the noise was added, and these are not mixed:

    poisson, none   one client's contributions replaced by zeros in every round (zero-out, which costs what
                    add-or-remove costs). One client moves a sum by at most C: multiplier z as recorded.
    fixed           one client replaced by another. One client moves a sum by at most 2·C: multiplier z/2. RDP amplifies
                    by sampling without replacement (Wang et al. 2019); PLD has no such event, and counts every round
                    as if everybody were in it, which is a bound too.
    local           one client's contributions replaced by any others, each seen alone: multiplier as recorded, which is
                    measured by 2·C already. Nothing is amplified: whoever sees a contribution knows whose it is.

A ledger that has several is accounted as replacement, with Poisson rounds unamplified. An event of another mechanism
gives no ε: an error that says so, never a wrong number.

Against the server itself (`against="server"`) only noise counts that it does not add: what workers add to their own
contributions, and the shares of distributed noise under a sum that hides the single ones; and never a sample, since the
server drew it.

Sources: Mironov, Talwar and Zhang 2019, https://arxiv.org/abs/1908.10530; Koskela, Jälkö and Honkela 2020,
https://arxiv.org/abs/1906.03049; Wang, Balle and Kasiviswanathan 2019, https://arxiv.org/abs/1808.00087
"""

import functools
import logging
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hansa.core.errors import BudgetExceeded, ConfigError, MissingExtra
from hansa.core.job import Job
from hansa.core.ledger import Entry, Event, Ledger
from hansa.privacy.correlated import CORRELATED, Run
from hansa.privacy.mechanisms import DISCRETE_GAUSSIAN, SKELLAM, Shares, divergences, without_replacement

ADD_OR_REMOVE = "add or remove one client"
REPLACE = "replace one client"
ALONE = "replace one client's contributions, each seen alone"

MODELS, SERVER = "models", "server"
"""Against whom: those who see the models of all rounds, or the server itself."""

LOCAL = "local "
"""Before the name of a mechanism whose noise protects a contribution seen alone."""

PURE = LOCAL + "pure"
"""A contribution seen alone under any mechanism of ε = 1/noise_multiplier, δ = 0: counted as randomised response."""

_DISTRIBUTED = (DISCRETE_GAUSSIAN, SKELLAM)
_DISCRETE = (*_DISTRIBUTED, *(LOCAL + name for name in _DISTRIBUTED))
_KNOWN = ("gaussian", "laplace", LOCAL + "gaussian", LOCAL + "laplace", PURE, CORRELATED, *_DISCRETE)

# Fewer than the library tries: each takes it a good while without replacement, and any choice of orders gives a bound.
_FIXED_ORDERS = tuple(float(order) for order in (*range(2, 33), 40, 48, 64, 96, 128, 192, 256))
WHOLE_ORDERS = tuple(float(order) for order in (*range(2, 65), *range(68, 129, 4), 160, 192, 256, 384, 512, 768, 1024))
"""Orders at which every mechanism has a divergence, and quickly so."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What some releases cost together.

    Args:
      delta: δ of both.
      rdp, pld: ε by each way of accounting; inf where nothing is protected, or that way cannot tell.
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
        if math.isinf(self.epsilon):
            return f"ε = ∞: nothing is protected, {self.relation}"
        ways = f"RDP {self.rdp:.5f}" + (f", PLD {self.pld:.5f}" if math.isfinite(self.pld) else "")
        return f"ε = {self.epsilon:.5g} ({ways}) at δ = {self.delta:g}, {self.relation}"


def epsilon(
    job: Job, *, population: int, delta: float | None = None, rounds: int | None = None, against: str = MODELS
) -> Cost:
    """What all rounds of a job will cost, each succeeding at its first attempt (void ones that were opened are charged
    too).

    Args:
      job: bound to this population first; its faults are raised.
      population: clients that could be asked.
      delta: the job's own if None; well below 1 / population.
      rounds: how many of them; all if None.
      against: `models`, those who see the models of all rounds, or `server`.

    Raises:
      JobError: the job cannot be bound.
      ConfigError: δ is missing or out of range, nothing is noised, or a mechanism is not known here.
      MissingExtra: dp-accounting is not installed.
    """
    return cost(releases(job, population, rounds), delta_of(job, delta), population, against=against)


def releases(job: Job, population: int, rounds: int | None = None) -> Counter[Event]:
    """What so many rounds of a job will release; all if None. Raises as `epsilon`."""
    events = job.bind(population).events()
    if not events:
        raise ConfigError("no stage of this job adds noise, so it has no ε: add one, as in Gaussian(1.0).")
    return _counts(_planned(events, range(job.rounds if rounds is None else rounds)))


def epsilon_of(
    ledger: Ledger | Sequence[Ledger], delta: float, population: int | None = None, *, against: str = MODELS
) -> Cost:
    """What a ledger's entries have cost, void attempts among them.

    Args:
      ledger: of one run; or those of all runs of one population. Empty costs nothing.
      delta: in (0, 1).
      population: to hold δ against; not needed otherwise.
      against: `models`, those who see the models of all rounds, or `server`.

    Raises:
      ConfigError: δ is out of range, or a mechanism is not known here.
      MissingExtra: dp-accounting is not installed.
    """
    runs = [ledger] if isinstance(ledger, Ledger) else ledger
    return cost(sum(map(_counts, runs), Counter()), delta, population, against=against)


def check_budget(
    job: Job,
    population: int,
    ledger: Ledger | None = None,
    *,
    done: int = 0,
    others: Sequence[Ledger] = (),
    epsilon: float | None = None,
    delta: float | None = None,
) -> Cost | None:
    """Refuses a job that would exceed a budget, before it starts or goes on.

    Args:
      job: its own budget is `job.epsilon` and `job.delta`; without one, and without `epsilon`, nothing is checked.
      population: clients that can be asked.
      ledger: what this run of the job has spent already.
      done: rounds of it that are committed; the rest is what is still to be paid.
      others: ledgers of other runs that count against the same budget.
      epsilon, delta: a budget other than the job's own, as that of its population.

    Returns:
      What it will have cost at the end; None for a job without a budget.

    Raises:
      BudgetExceeded: with the number of rounds that the budget allows.
    """
    most, whose = (job.epsilon, "epsilon") if epsilon is None else (epsilon, "the population's budget")
    if most is None:
        return None
    chosen, planned = delta_of(job, delta), job.bind(population).events()
    if not planned:
        raise ConfigError(f"{whose}={most:g} but no stage adds noise: add one, as in Gaussian(1.0).")
    spent, own = sum(map(_counts, others), Counter[Event]()), tuple(ledger or ())

    def after(rounds: int) -> Counter[Event]:
        return spent + _counts((*own, *_planned(planned, range(done, done + rounds))))

    left = max(0, job.rounds - done)
    whole = cost(after(left), chosen, population)
    if whole.epsilon <= most:
        return whole
    low, high = 0, left
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _within(after(middle), chosen, most) else (low, middle)
    before = f" of which {cost(spent, chosen).epsilon:.3g} is spent by other runs," if spent else ""
    raise BudgetExceeded(
        f"{left} more rounds would bring ε to {whole.epsilon:.3g} at δ = {chosen:g},{before} beyond {whose}={most:g}: "
        f"the budget allows {low} of them; run fewer, add noise, or sample fewer clients a round."
    )


def cost(
    counts: Counter[Event],
    delta: float,
    population: int | None = None,
    *,
    against: str = MODELS,
    interval: float = 1e-4,
) -> Cost:
    """What these events cost together.

    Args:
      counts: how many times each was released.
      delta: of (ε, δ), in (0, 1).
      population: how many clients there are, for notes on δ; None leaves those out.
      against: `MODELS`, who sees what is released; or `SERVER`, who may see single contributions.
      interval: of the grid on which privacy losses are added: a finer one is tighter, and slower.

    Raises:
      ConfigError: δ is outside, `against` is neither, or an event has no known cost.
    """
    if not 0 < delta < 1:
        raise ConfigError(f"delta={delta}: it lies in (0, 1), well below 1 / population.")
    if against not in (MODELS, SERVER):
        raise ConfigError(f"against='{against}': choose '{MODELS}' or '{SERVER}'.")
    for event in counts:
        _known(event)
    notes = tuple(_notes(counts, delta, population, against))
    if against == SERVER:
        if any(_servers_own(event) for event in counts):
            return Cost(delta=delta, rdp=math.inf, pld=math.inf, relation="against the server", notes=notes)
        counts = sum((Counter({_as_server(event): count}) for event, count in counts.items()), Counter())
    replaced, relation = _relation(counts)
    if not sum(counts.values()):
        return Cost(delta=delta, rdp=0.0, pld=0.0, relation=relation, notes=notes)
    rdp = rdp_epsilon(counts, replaced, delta)
    pld = pld_epsilon(counts, replaced, delta, rdp, interval)
    return Cost(delta=delta, rdp=rdp, pld=pld, relation=relation, notes=notes)


def _within(counts: Counter[Event], delta: float, most: float) -> bool:
    """Whether these cost at most so much; the quick way of accounting is asked first."""
    replaced, _ = _relation(counts)
    rough = rdp_epsilon(counts, replaced, delta)
    return rough <= most or pld_epsilon(counts, replaced, delta, rough) <= most


def _relation(counts: Iterable[Event]) -> tuple[bool, str]:
    """Whether one client is replaced by another, not by zeros; and that in words."""
    local = [event.mechanism.startswith(LOCAL) for event in counts]
    if local and all(local):
        return True, ALONE
    replaced = any(local) or any(event.sampling == "fixed" for event in counts)
    return replaced, REPLACE if replaced else ADD_OR_REMOVE


# -- Rényi


def rdp_epsilon(counts: Counter[Event], replaced: bool, delta: float, orders: tuple[float, ...] | None = None) -> float:
    """ε by Rényi differential privacy.

    Args:
      counts: of each event.
      replaced: whether one client is replaced by another.
      delta: δ.
      orders: at which divergences are taken; any give a bound. None is many, fractions among them where that can be.
    """
    dp = _library()
    if orders is None and any(event.sampling == "fixed" and event.mechanism == "gaussian" for event in counts):
        orders = _FIXED_ORDERS
    elif orders is None and any(event.mechanism in _DISCRETE or event.sampling == "fixed" for event in counts):
        orders = WHOLE_ORDERS
    orders = orders or tuple(float(order) for order in dp.rdp.rdp_privacy_accountant.DEFAULT_RDP_ORDERS)
    total = sum(count * _rdp(event, replaced, orders) for event, count in counts.items())
    return float(dp.rdp.rdp_privacy_accountant.compute_epsilon(orders, total, delta)[0])


@functools.lru_cache(maxsize=256)
def _rdp(event: Event, replaced: bool, orders: tuple[float, ...]) -> np.ndarray:
    """Rényi divergences of one release at these orders; they add up over releases. Kept, since fixed sizes are dear."""
    if event.mechanism in _DISCRETE:
        return _rdp_discrete(event, replaced, orders)
    if event.mechanism == PURE:
        return _rdp_pure(1 / event.noise_multiplier, np.array(orders))
    dp = _library()
    if event.mechanism == "laplace" and event.sampling == "fixed":
        every = tuple(float(order) for order in range(2, int(max(orders)) + 1))
        released = _rdp(replace(event, sampling="none"), True, every)
        return without_replacement(released, event.rate, orders, pure=2 / event.noise_multiplier)
    fixed = event.sampling == "fixed"
    relation = dp.NeighboringRelation.REPLACE_ONE if fixed else dp.NeighboringRelation.ADD_OR_REMOVE_ONE
    accountant = dp.rdp.RdpAccountant(list(orders), relation)
    logger = logging.getLogger("absl")
    level = logger.level
    try:
        logger.setLevel(logging.ERROR)  # it warns of orders that it leaves out, which costs tightness alone
        accountant.compose(_as_rdp(dp, event, replaced))
    finally:
        logger.setLevel(level)
    found: np.ndarray = accountant.rdp
    return found


def _rdp_discrete(event: Event, replaced: bool, orders: tuple[float, ...]) -> np.ndarray:
    shares, mechanism = Shares.from_text(event.detail), event.mechanism.removeprefix(LOCAL)
    doubled = replaced or event.mechanism.startswith(LOCAL)
    if event.sampling != "fixed":
        return divergences(mechanism, shares, orders, doubled=doubled)
    released = divergences(mechanism, shares, range(2, int(max(orders)) + 1), doubled=True)
    return without_replacement(released, event.rate, orders)


def _rdp_pure(epsilon: float, orders: np.ndarray) -> np.ndarray:
    """Of randomised response between two, which no other mechanism of this pure ε exceeds (Kairouz et al. 2015)."""
    likely = -math.log1p(math.exp(-epsilon))
    one, other = (
        orders * likely + (1 - orders) * (likely - epsilon),
        orders * (likely - epsilon) + (1 - orders) * likely,
    )
    found: np.ndarray = np.logaddexp(one, other) / (orders - 1)
    return found


def _as_rdp(dp: Any, event: Event, replaced: bool) -> Any:
    z = _multiplier(event, replaced)
    if event.mechanism.endswith("laplace"):
        return dp.LaplaceDpEvent(z)  # sampled, the library has no RDP of it: unsampled is a bound
    release = dp.GaussianDpEvent(z)
    if event.sampling == "poisson" and not replaced:
        return dp.PoissonSampledDpEvent(event.rate, release)
    if event.sampling == "fixed":
        # The library asks for two sizes and reads their ratio alone.
        return dp.SampledWithoutReplacementDpEvent(1 << 40, math.ceil(event.rate * (1 << 40)), release)
    return release


def _multiplier(event: Event, replaced: bool) -> float:
    """By how much one client can move the release, in noise: twice as far where it is replaced by another."""
    return event.noise_multiplier / (2 if replaced and not event.mechanism.startswith(LOCAL) else 1)


# -- privacy loss distributions


def pld_epsilon(counts: Counter[Event], replaced: bool, delta: float, rough: float, interval: float = 1e-4) -> float:
    """ε by privacy loss distributions; inf where there is none.

    Args:
      counts: of each event.
      replaced: whether one client is replaced by another.
      delta: δ.
      rough: ε by another way. Where it is beyond use the grid is coarser, which saves what would be minutes.
      interval: of the grid of losses; any gives a bound.
    """
    if any(event.mechanism in _DISCRETE for event in counts):
        return math.inf  # no distribution of many coordinates at once is known
    dp = _library()
    amplified = {event for event in counts if event.sampling == "poisson" and event.rate < 1 and not replaced}
    other = {event for event in counts if event.mechanism.endswith(("laplace", "pure"))}
    precision = sum(
        count / _multiplier(event, replaced) ** 2
        for event, count in counts.items()
        if event not in amplified and event not in other
    )
    sigma = precision**-0.5 if precision else math.inf
    if not amplified and not other:
        # Gaussians alone are one Gaussian, whose curve has a closed form: Balle and Wang 2018, theorem 8, https://arxiv.org/abs/1805.06530
        return float(dp.get_epsilon_gaussian(sigma, delta))
    interval *= 1.0 if rough < 20 else rough
    every = []
    for event in sorted(amplified | other, key=repr):
        rate = event.rate if event in amplified else 1.0
        loss = _loss_of(event.mechanism, _multiplier(event, replaced), rate, interval)
        every.append(loss.self_compose(counts[event]))
    if precision:
        every.append(_loss_of("gaussian", sigma, 1.0, interval))
    return float(functools.reduce(lambda one, other: one.compose(other), every).get_epsilon_for_delta(delta))


@functools.lru_cache(maxsize=16)
def _loss_of(mechanism: str, multiplier: float, rate: float, interval: float) -> Any:
    """The privacy loss distribution of one release; to make it takes longer than to compose it a thousand times."""
    losses = _library().pld.privacy_loss_distribution
    if mechanism == PURE:
        bound = _library().pld.common.DifferentialPrivacyParameters(1 / multiplier, 0.0)
        return losses.from_privacy_parameters(bound, interval)
    make = losses.from_laplace_mechanism if mechanism.endswith("laplace") else losses.from_gaussian_mechanism
    return make(multiplier, sampling_prob=rate, value_discretization_interval=interval)


# -- what is counted


def _counts(entries: Iterable[Entry]) -> Counter[Event]:
    """The events of one run.

    Noise that is correlated over rounds is one Gaussian for all of them, and one more for each round released again.
    """
    counts: Counter[Event] = Counter()
    rounds: dict[Event, Counter[int]] = {}
    for entry in entries:
        if entry.event.mechanism == CORRELATED:
            rounds.setdefault(entry.event, Counter())[entry.round] += 1
        else:
            counts[entry.event] += 1
    for event, released in rounds.items():
        run = Run.from_text(event.detail)
        if max(released) >= run.rounds:
            raise ConfigError(
                f"round {max(released) + 1} of noise that was planned for rounds={run.rounds}: plan it for more."
            )
        counts[Event(mechanism=CORRELATED, noise_multiplier=event.noise_multiplier)] += 1
        again = Event(mechanism=CORRELATED, noise_multiplier=run.again)
        counts.update({again: sum(released.values()) - len(released)} if max(released.values()) > 1 else {})
    return counts


def _planned(events: Sequence[Event], rounds: Iterable[int]) -> Iterator[Entry]:
    """What these rounds will release, each at its first attempt."""
    return (Entry(round, 0, event) for round in rounds for event in events)


def _as_server(event: Event) -> Event:
    """What the server sees of a release: who is in it; and where it sees single contributions, each with one share."""
    event = replace(event, sampling="none", rate=1.0)
    if event.mechanism not in _DISTRIBUTED or (shares := Shares.from_text(event.detail)).hidden:
        return event
    alone = replace(shares, shares=1)
    return Event(
        mechanism=LOCAL + event.mechanism, noise_multiplier=alone.multiplier / 2, detail=alone.to_text()
    )  # fmt: skip


def _servers_own(event: Event) -> bool:
    return event.mechanism in ("gaussian", "laplace", CORRELATED)


def _known(event: Event) -> None:
    if event.mechanism not in _KNOWN:
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


def _notes(counts: Iterable[Event], delta: float, population: int | None, against: str) -> Iterable[str]:
    kinds = {event.sampling for event in counts}
    if population is not None and delta >= 1 / population:
        yield f"δ = {delta:g} is not below 1 / {population}: publishing one client would satisfy it. Lower delta."
    if any(event.mechanism in _DISTRIBUTED and not Shares.from_text(event.detail).hidden for event in counts):
        yield "the server sees each contribution: against it only a client's own share of the noise counts."
    if against == SERVER:
        if any(_servers_own(event) for event in counts):
            yield "the server adds this noise itself and knows the total without it: use DistributedGaussian."
        return
    if "fixed" in kinds:
        yield "fixed-size cohorts: RDP counts sampling without replacement, PLD no sampling at all; Poisson costs less."
    if "poisson" in kinds and _relation(counts)[0]:
        yield "Poisson rounds beside replaced clients are counted without amplification."
    if "none" in kinds:
        yield "no amplification where everyone is asked, or a deadline, over-selection or staleness decides who is in."


def delta_of(job: Job, delta: float | None) -> float:
    """δ as it was given, or the job's own; ConfigError if there is neither."""
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
