"""Noise that the clients add together, each its share, so that not even the server can know the sum without it.

    encode   x → x/γ → x̃, rounded at random until ‖x̃‖ ≤ Δ → x̃ + share of noise → modulo 2^bits, per part as one vector
    decode   the total modulo 2^bits, centred, times γ

    Δ² = min{ (c + √d)²,  c² + d/4 + √(2·ln(1/β))·(c + √d/2) },   c = C/γ,  β = e^(−1/2)
    the sum of n ≥ `fewest` shares of variance s² has the declared noise:   fewest·s² = (z·Δ)²

Rounding is repeated until its result is short (each try succeeds with probability 1 − β at least), so the bound holds
for whatever is sent, and its randomness protects nothing. γ is the finest grid on which the sum, `reach` standard
deviations of its noise included, does not wrap. Integers modulo 2^bits add up under a secure sum.

Sources: Kairouz, Liu and Steinke 2021, The Distributed Discrete Gaussian Mechanism for Federated Learning with Secure
Aggregation, https://arxiv.org/abs/2102.06387; Agarwal, Kairouz and Liu 2021, The Skellam Mechanism,
https://arxiv.org/abs/2110.04995
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from hansa.core.errors import ConfigError
from hansa.core.ledger import Event
from hansa.core.pipeline import Decoding, Sensitivity, Setting, Signal, Stage, Step, fault
from hansa.core.tensors import Tensors
from hansa.privacy import noise
from hansa.privacy.checks import positive
from hansa.privacy.discrete import MOST_STD, Table, discrete_gaussian, skellam
from hansa.privacy.mechanisms import DISCRETE_GAUSSIAN, SKELLAM, Lattice, Shares
from hansa.privacy.threats import Adversary, Sees
from hansa.stages.flat import Flat
from hansa.stages.noise import amplified, protectable, shared, unbounded
from hansa.stages.sum import likely_most

_NOISED = ":noised"
_BETA_TERM = 1.0  # √(2·ln(1/β)) for β = e^(−1/2)
_TRIES = 10_000
_COARSE = 2.0  # by how much rounding may lengthen a contribution: beyond, bits are too few to be meant


@dataclass(frozen=True)
class DistributedGaussian(Stage):
    """Discrete Gaussian noise, in shares: `[Clip(C), UniformMean(), Rotate(clip=4), DistributedGaussian(z, bits=16)]`.

    Put it last, before a reducer that hides contributions. A rotation before it makes coordinates even, and so the grid
    finer by √d/4.

    Args:
      noise_multiplier: z of the sum of the fewest shares, per unit of what one client can change, for each part; above
        0. More clients bring more noise, which is not counted.
      bits: of a coordinate of the sum, modulo which everything is; 8 to 32. On the wire a contribution takes the
        smallest of 8, 16 and 32 bits that holds it (a reducer that packs may take fewer).
      colluding: the share of the cohort whose noise does not count, since the server may know it; in [0, 1).
      reach: standard deviations of the sum's noise, at the largest cohort, before it wraps.
      count_noise: as `Gaussian` has it, for `AdaptiveClip`'s count.

    Guarantees:
      The fewest contributions of a round are its quorum (all that are asked, if there is none): with fewer it is void.
      Who sees the sum alone, the server under a secure sum among them, is kept to the ledger's ε. Who sees single
      contributions, as the server does under `Sum`, is up against one share only: `epsilon(..., against="server")`
      says what that is worth.
      Noise is drawn from each worker's operating system. Fixed-size cohorts are amplified without replacement; Poisson
      cohorts are not at all, since an absent client takes its share of the noise away.

    | cohort, coordinates | bits |
    |---|---|
    | 10 to 100, up to 10⁵, rotated | 16 |
    | more of either, or not rotated | 20 to 24 |
    """

    threats: ClassVar[tuple[Sees, ...]] = (
        Sees(
            Adversary.SERVER,
            "each client within (ε, δ) of the ledger where the reducer shows totals alone; else one share's worth",
            "no more than `colluding` of the cohort tell it their shares",
        ),
        Sees(
            Adversary.LIAR,
            "as much under `SecureSum`, whose clients refuse sums of fewer than a round has; else with fewer shares",
            "no more than `colluding` of the cohort tell it their shares, dummies included",
        ),
        Sees(
            Adversary.READER,
            "each client within (ε, δ) of the ledger",
            "as many workers as the quorum add their shares, and nobody tells who was asked",
        ),
    )

    noise_multiplier: float
    bits: int = field(default=16, kw_only=True)
    colluding: float = field(default=0.0, kw_only=True)
    reach: float = field(default=6.0, kw_only=True)
    count_noise: float | None = field(default=None, kw_only=True)
    alone = False

    def __post_init__(self) -> None:
        positive(noise_multiplier=self.noise_multiplier)
        if not (isinstance(self.bits, int) and 8 <= self.bits <= 32):
            raise ConfigError(f"bits={self.bits}: choose a whole number from 8 to 32.")
        if not 0 <= self.colluding < 1:
            raise ConfigError(f"colluding={self.colluding}: a share of the cohort, in [0, 1).")
        if not (self.reach >= 1 and math.isfinite(self.reach)):
            raise ConfigError(f"reach={self.reach}: at least 1 standard deviation, as in 6.")
        if self.count_noise is not None:
            positive(", or None", count_noise=self.count_noise)

    def bind(self, signal: Signal, setting: Setting) -> Step:
        """Refuses what noise cannot protect, cohorts without a lower bound, and too few bits."""
        return _Distributed(self, protectable(signal, type(self).__name__), setting)

    def mechanism(self) -> str:
        """What the ledger calls it."""
        return DISCRETE_GAUSSIAN

    def table(self, variance: float) -> Table:
        """The law of one share, in units of the grid."""
        return discrete_gaussian(variance)


@dataclass(frozen=True)
class DistributedSkellam(DistributedGaussian):
    """Skellam noise, in shares: as `DistributedGaussian`, whose arguments it has.

    Its shares add up to the declared law exactly, with however few of them; where shares have a standard deviation of 1
    or more, the two cost the same to the third digit.
    """

    def mechanism(self) -> str:
        """What the ledger calls it."""
        return SKELLAM

    def table(self, variance: float) -> Table:
        """The law of one share, in units of the grid."""
        return skellam(variance)


@dataclass(frozen=True)
class _Grid:
    """One part's: the unit γ, the longest rounded contribution and the variance of a share in that unit."""

    flat: Flat
    unit: float
    l2: float
    longest: float
    variance: float


class _Distributed(Step):
    def __init__(self, stage: DistributedGaussian, signal: Signal, setting: Setting) -> None:
        self._stage, self._setting, name = stage, setting, type(stage).__name__
        self._modulus, self._most = 1 << stage.bits, likely_most(setting)
        self._fewest = _fewest(setting, name) - math.ceil(stage.colluding * setting.most)
        if self._fewest < 1:
            raise fault(f"{name}(colluding={stage.colluding:g}) leaves no share of noise: lower it, or raise quorum.")
        if setting.sampling.max_staleness:
            raise fault(f"{name} needs every share in its own round: set max_staleness=0, or use LocalGaussian.")
        bounds = {part: signal.parts[part].l2 for part in signal.averaged if signal.parts[part].l2 > 0}
        multipliers = shared(stage.noise_multiplier, stage.count_noise, list(bounds), bounds, setting)
        self._grids, parts = list[_Grid](), {}
        dtype = next(kind for kind in ("int8", "int16", "int32") if self._modulus <= 1 << 8 * np.dtype(kind).itemsize)
        for part in bounds:
            flat, half = Flat(part, signal.parts[part]), float(self._modulus // 2)
            grid = self._grid(flat, bounds[part], min(signal.parts[part].linf, bounds[part]), multipliers[part])
            self._grids.append(grid)
            parts[part] = flat.part(
                signal.parts[part], {_NOISED: ((flat.size,), dtype)}, domain="integer", modulus=self._modulus,
                l2=half * math.sqrt(flat.size), linf=half,
            )  # fmt: skip
        self._event: Event | None = None
        super().__init__(signal.with_(**parts))
        if self._grids:
            self._event = self._released()

    def _grid(self, flat: Flat, l2: float, linf: float, multiplier: float) -> _Grid:
        """The finest γ on which the sum does not wrap; a fixed point, since a coarser grid needs more noise."""
        stage, room, unit, wanted = self._stage, self._modulus / 2 - self._most - 1, 0.0, l2 * 2.0**-40
        while room > 0 and unit * (1 + 1e-9) < wanted <= _COARSE * l2:
            unit = wanted
            longest = rounded_norm(l2 / unit, flat.size)
            std = multiplier * longest / math.sqrt(self._fewest)  # of a share, in units of the grid
            spread = self._most * linf + stage.reach * std * unit * math.sqrt(self._most)
            wanted = max(spread / room, unit * std / MOST_STD)
        if room <= 0 or wanted > _COARSE * l2 or longest * unit > _COARSE * l2 or std < 0.5:
            raise fault(
                f"{type(stage).__name__}(bits={stage.bits}) is too coarse for {flat.size} coordinates of "
                f"'{flat.name}' and {self._most:g} clients: raise bits, or put Rotate(clip=4) before it."
            )
        return _Grid(flat, unit, l2 / unit, longest, std**2)

    def _released(self) -> Event:
        lattices = tuple(Lattice(l2=g.longest, dimension=g.flat.size, variance=g.variance) for g in self._grids)
        shares = Shares(shares=self._fewest, parts=lattices, hidden=self._setting.sees == "total")
        kind, rate = amplified(self._setting)
        if kind != "fixed":
            kind, rate = "none", 1.0
        return Event(
            mechanism=self._stage.mechanism(), noise_multiplier=shares.multiplier, sampling=kind, rate=rate,
            detail=shares.to_text(),
        )  # fmt: skip

    def settle(self, sensitivity: Sensitivity) -> Sensitivity:
        """Refuses reducers that do more than add: shares of noise must add up."""
        changed = {}
        for grid in self._grids:
            name = grid.flat.name
            if sensitivity.get(name, math.inf) > self.out.parts[name].l2:
                raise fault(unbounded(type(self._stage).__name__, name))
            changed[name] = grid.longest * grid.unit
        return {**sensitivity, **changed}

    def encode(
        self, x: Tensors, state: Tensors, memory: Tensors, rngs: Sequence[np.random.Generator]
    ) -> tuple[Tensors, Tensors]:
        x = x.without("metric")
        for grid in self._grids:
            vectors = grid.flat.joined(x)
            coded = [self._encoded(vector, grid, rng) for vector, rng in zip(vectors, rngs, strict=True)]
            x = grid.flat.coded(x, {_NOISED: np.stack(coded)})
        return x, memory

    def _encoded(self, vector: np.ndarray, grid: _Grid, rng: np.random.Generator) -> np.ndarray:
        """One contribution's part, rounded, noised and wrapped."""
        scaled = vector / np.float64(grid.unit)
        norm = math.sqrt(float(scaled @ scaled))
        if norm > grid.l2:  # what earlier stages promised, whatever their rounding
            scaled *= grid.l2 / norm
        rounded = conditionally_rounded(scaled, grid.longest, rng)
        rounded += self._stage.table(grid.variance).draw(noise.own_stream(), len(rounded))
        dtype = self.out.parts[grid.flat.name].shapes[_NOISED][1]
        return _centred(rounded, self._modulus).astype(dtype)

    def decode_total(self, total: Tensors, state: Tensors, round: Decoding) -> tuple[Tensors, Tensors]:
        assert round.count >= self._fewest, "fewer shares of noise than were charged"
        for grid in self._grids:
            integers = np.asarray(total[f"{grid.flat.name}/{_NOISED}"]).astype(np.int64)
            total = grid.flat.restored(total, _centred(integers, self._modulus) * grid.unit, [_NOISED])
        return total, state

    def events(self) -> tuple[Event, ...]:
        return () if self._event is None else (self._event,)


def rounded_norm(norm: float, dimension: int) -> float:
    """Δ: how long a vector of this L2 norm may be after conditional rounding to integers."""
    root = math.sqrt(dimension)
    likely = math.sqrt(norm**2 + dimension / 4 + _BETA_TERM * (norm + root / 2))
    return min(norm + root, likely)


def conditionally_rounded(vector: np.ndarray, longest: float, rng: np.random.Generator) -> np.ndarray:
    """Rounds every coordinate up or down at random, again until the L2 norm is at most `longest`: int64.

    Without the condition the mean would be the vector itself; the bias is below what one coordinate in √d rounds.
    """
    floor = np.floor(vector)
    rest = vector - floor
    for _ in range(_TRIES):
        rounded: np.ndarray = floor + (rng.random(len(vector)) < rest)
        if float(rounded @ rounded) <= longest**2:
            return rounded.astype(np.int64)
    raise AssertionError("conditional rounding failed ten thousand times, which has a probability below 10⁻¹⁰⁰⁰")


def _centred(integers: np.ndarray, modulus: int) -> np.ndarray:
    """Modulo a power of two, from −modulus/2 up."""
    half = modulus // 2
    centred: np.ndarray = ((integers + half) & (modulus - 1)) - half
    return centred


def _fewest(setting: Setting, stage: str) -> int:
    """Contributions that every counted round has at least."""
    if setting.sampling.quorum is not None:
        return setting.sampling.quorum
    if setting.sampling.kind != "fixed":
        kind = type(setting.sampling).__name__
        raise fault(f"{stage} under {kind} may meet too few shares of noise: give {kind} a quorum=....")
    return math.floor(setting.cohort)
