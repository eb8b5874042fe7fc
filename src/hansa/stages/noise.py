"""Gaussian noise of the server: central differential privacy.

    release of part p:   Σ xₚ + N(0, σₚ²·I),   σₚ = zₚ·Sₚ
    its noise multiplier: (Σₚ zₚ⁻²)^(−1/2)

Sₚ is the L2 norm by which one client can change the decoded total of part p, after every later stage: quantisation
widens it, and so does the rounding of a float sum. It is carried here by the second pass of `Pipeline.bind`; nobody
types it. Scaled by 1/σₚ, all parts together are one Gaussian mechanism of unit noise whose sensitivity is (Σₚ
(Sₚ/σₚ)²)^½: that is the formula, and what the ledger records.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import numpy as np

from hansa.core.ledger import Event
from hansa.core.pipeline import Decoding, Sensitivity, Setting, Signal, Stage, Step, fault
from hansa.core.tensors import Tensors
from hansa.privacy.checks import positive
from hansa.privacy.noise import Draws, Normals, add_noise
from hansa.privacy.threats import CENTRAL, Sees
from hansa.stages.adaptive_clip import BELOW
from hansa.stages.clip import WITHIN


@dataclass(frozen=True)
class Gaussian(Stage):
    """Adds noise to the decoded total: `noise_multiplier` standard deviations per unit of L2 sensitivity.

    With a uniform mean over n clients and a clip to C, each coordinate of the model's step has noise of z·C/n. Stands
    after the mean and before what rounds: `[Clip(C), UniformMean(), Gaussian(z), Quantise(b)]`. Metrics of training are
    not sent at all under it; measure the model centrally.

    Args:
      noise_multiplier: z, of each part; above 0. With P averaged parts (value, SCAFFOLD's control) the release as a
        whole has z/√P, which is what the ledger says. With `AdaptiveClip` the value's own is raised so that value and
        indicator together have z: z_Δ = (z⁻² − (S_b/σ_b)⁻²)^(−1/2), S_b being 1/2 (Andrew et al. 2021, theorem 1).
      count_noise: σ_b, standard deviation of the noise on `AdaptiveClip`'s count (and `Zeroing`'s); None is the larger
        of z and a 20th of the expected cohort.

    Guarantees:
      Noise is drawn from the server's secret for this round and attempt, never from the job's seed; a new attempt has
      new noise. It protects against those who see the model, not against the server, unless the reducer hides
      contributions from it.

    Sources: McMahan et al. 2018, https://arxiv.org/abs/1710.06963; Andrew et al. 2021, https://arxiv.org/abs/1905.03871
    """

    noise_multiplier: float
    count_noise: float | None = field(default=None, kw_only=True)
    alone = False
    threats: ClassVar[tuple[Sees, ...]] = CENTRAL

    def __post_init__(self) -> None:
        positive("; leave Gaussian out for no noise", noise_multiplier=self.noise_multiplier)
        if self.count_noise is not None:
            positive(", or None", count_noise=self.count_noise)

    def bind(self, signal: Signal, setting: Setting) -> Step:
        """Refuses what noise cannot protect: unbounded, weighted, rounded or selected contributions, and buffers."""
        return Noised("Gaussian", self, protectable(signal, "Gaussian"), setting)


class NoisyStage(Protocol):
    """What `Noised` asks of its stage."""

    @property
    def noise_multiplier(self) -> float: ...
    @property
    def count_noise(self) -> float | None: ...


class Noised(Step):
    """Gaussian noise on every averaged part of the decoded total, independent in every round.

    Args:
      name: of the stage, for messages.
      stage: how much noise.
      out: the signal, which `protectable` has passed.
      setting: of the job.
    """

    def __init__(self, name: str, stage: NoisyStage, out: Signal, setting: Setting) -> None:
        super().__init__(out)
        self._name, self._stage, self._setting = name, stage, setting
        self._stds: dict[str, float] = {}
        self._event: Event | None = None

    def settle(self, sensitivity: Sensitivity) -> Sensitivity:
        """Sets every part's noise, now that it is known what one client can change."""
        z = self._stage.noise_multiplier
        names = list(self.out.averaged)
        for name in names:
            if math.isinf(sensitivity.get(name, math.inf)):
                raise fault(unbounded(self._name, name))
        multipliers = shared(z, self._stage.count_noise, names, sensitivity, self._setting)
        # A part that no client can change (no coordinates) needs no noise and costs nothing.
        self._stds = {name: multipliers[name] * sensitivity[name] for name in names if sensitivity[name] > 0}
        effective = sum(multipliers[name] ** -2 for name in self._stds) ** -0.5 if self._stds else math.inf
        self._event = self._released(effective, measured(self._stds, sensitivity))
        return sensitivity

    def _released(self, multiplier: float, detail: str) -> Event:
        """What one round releases, at this multiplier of all parts together."""
        kind, rate = amplified(self._setting)
        return Event(mechanism="gaussian", noise_multiplier=multiplier, sampling=kind, rate=rate, detail=detail)

    def encode(
        self, x: Tensors, state: Tensors, memory: Tensors, rngs: Sequence[np.random.Generator]
    ) -> tuple[Tensors, Tensors]:
        return x.without("metric"), memory

    def decode_total(self, total: Tensors, state: Tensors, round: Decoding) -> tuple[Tensors, Tensors]:
        return noised(total, self._stds, Normals(round.secret("noise"))), state

    def events(self) -> tuple[Event, ...]:
        return () if self._event is None else (self._event,)


# -- what all noise of the server shares


def protectable(signal: Signal, stage: str) -> Signal:
    """The signal as noise leaves it, without metrics.

    Raises:
      JobError: contributions are unbounded, weighted, rounded or selected, or have buffers.
    """
    faults = []
    if "value" not in signal.parts:
        raise fault(f"{stage} is for updates on their way up: leave it out of `down`.")
    if "weight" in signal.parts:
        faults.append(f"{stage} finds a weight that would be released exactly: put UniformMean() before it.")
    if "buffers" in signal.parts:
        faults.append(f"{stage} finds buffers, which have no bound: make them FROZEN, or use group norm.")
    for name in signal.averaged:
        part = signal.parts[name]
        if part.domain != "real" or not part.additive:
            faults.append(f"{stage} finds '{name}' already rounded or selected: put {stage} before Quantise and TopK.")
        elif name != "buffers" and math.isinf(part.l2):
            faults.append(f"{stage} finds no bound on '{name}': put Clip before it.")
    if faults:
        raise fault(*faults)
    return signal.without("metric")


def unbounded(stage: str, part: str) -> str:
    """The fault of noise behind which one client can change the total without bound."""
    return (
        f"{stage} cannot protect '{part}': behind it, one client can change the total without bound: "
        "use Sum(), and a stage behind it without error feedback."
    )


def shared(
    z: float, count_noise: float | None, names: Sequence[str], sensitivity: Sensitivity, setting: Setting
) -> dict[str, float]:
    """The multiplier of each part: z, but where counts of `AdaptiveClip` and `Zeroing` are paid out of the same."""
    wanted = count_noise or max(z, setting.cohort / 20)
    counts = {name: wanted / sensitivity[name] for name in (BELOW, WITHIN) if name in names}
    spent = sum(share**-2 for share in counts.values())
    if spent >= z**-2:
        least = z * math.sqrt(len(counts)) * max(sensitivity[name] for name in counts)
        raise fault(
            f"count_noise={wanted:g} alone costs more than noise_multiplier={z:g} allows: "
            f"raise it above {least:g}, or leave it None."
        )
    return dict.fromkeys(names, (z**-2 - spent) ** -0.5 if counts else z) | counts


def amplified(setting: Setting) -> tuple[str, float]:
    """How a round was sampled, and its rate, as the ledger is to count it.

    Where speed helps to decide who is in, where everybody is, and where turns are public, chance hides nobody. Nor is
    it counted where small samples are drawn again: a client is in those that are kept more often than its coin says.
    """
    who, rate = setting.sampling, setting.sampling.rate(setting.population)
    again = who.kind == "poisson" and (who.quorum is not None or (setting.sees == "total" and _few(setting) > 1e-20))
    hidden = who.random_membership and rate < 1 and who.kind in ("poisson", "fixed") and not again
    return (who.kind, rate) if hidden else ("none", 1.0)


def _few(setting: Setting) -> float:
    """The probability that coins draw fewer than the 3 clients that a sum which hides contributions needs."""
    coin, people = setting.sampling.rate(setting.population), setting.population
    return sum(math.comb(people, k) * coin**k * (1 - coin) ** (people - k) for k in range(3))


def measured(scales: Mapping[str, float], sensitivity: Sensitivity) -> str:
    """Noise and sensitivity of each part, for readers of the ledger."""
    return ", ".join(f"{name}: std {std:g} on sensitivity {sensitivity[name]:g}" for name, std in scales.items())


def noised(total: Tensors, scales: Mapping[str, float], deviates: Draws) -> Tensors:
    """The total with noise of these scales added to its parts."""
    noisy = {}
    for name in total:
        scale = scales.get(name.split("/", 1)[0])
        if scale is not None:
            noisy[name] = np.ascontiguousarray(total[name]).reshape(np.shape(total[name]))  # a 0-d array stays one
            add_noise(noisy[name], scale, deviates)
    return total.updated(noisy)
