"""Gaussian noise of the server: central differential privacy.

    release of part p:   Σ xₚ + N(0, σₚ²·I),   σₚ = zₚ·Sₚ
    its noise multiplier: (Σₚ zₚ⁻²)^(−1/2)

Sₚ is the L2 norm by which one client can change the decoded total of part p, after every later stage: quantisation
widens it, and so does the rounding of a float sum. It is carried here by the second pass of `Pipeline.bind`; nobody
types it. Scaled by 1/σₚ, all parts together are one Gaussian mechanism of unit noise whose sensitivity is (Σₚ
(Sₚ/σₚ)²)^½: that is the formula, and what the ledger records.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from hansa.core.errors import ConfigError
from hansa.core.ledger import Event
from hansa.core.pipeline import Decoding, Sensitivity, Setting, Signal, Stage, Step, fault
from hansa.core.tensors import Tensors
from hansa.privacy.noise import Normals, add_noise
from hansa.stages.adaptive_clip import BELOW


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
      count_noise: σ_b, standard deviation of the noise on `AdaptiveClip`'s count; None is the larger of z and a 20th of
        the expected cohort.

    Guarantees:
      Noise is drawn from the server's secret for this round and attempt, never from the job's seed; a new attempt has
      new noise. It protects against those who see the model, not against the server, unless the reducer hides
      contributions from it.

    Sources: McMahan et al. 2018, https://arxiv.org/abs/1710.06963; Andrew et al. 2021, https://arxiv.org/abs/1905.03871
    """

    noise_multiplier: float
    count_noise: float | None = field(default=None, kw_only=True)
    alone = False

    def __post_init__(self) -> None:
        if not (self.noise_multiplier > 0 and math.isfinite(self.noise_multiplier)):
            raise ConfigError(
                f"noise_multiplier={self.noise_multiplier}: it is finite and above 0; leave Gaussian out for no noise."
            )
        if self.count_noise is not None and not (self.count_noise > 0 and math.isfinite(self.count_noise)):
            raise ConfigError(f"count_noise={self.count_noise}: it is finite and above 0, or None.")

    def bind(self, signal: Signal, setting: Setting) -> Step:
        """Refuses what noise cannot protect: unbounded, weighted, rounded or selected contributions, and buffers."""
        faults = []
        if "value" not in signal.parts:
            raise fault("Gaussian is for updates on their way up: leave it out of `down`.")
        if "weight" in signal.parts:
            faults.append("Gaussian finds a weight that would be released exactly: put UniformMean() before it.")
        if "buffers" in signal.parts:
            faults.append("Gaussian finds buffers, which have no bound: make them FROZEN, or use group norm.")
        for name in signal.averaged:
            part = signal.parts[name]
            if part.domain != "real" or not part.additive:
                faults.append(
                    f"Gaussian finds '{name}' already rounded or selected: put Gaussian before Quantise and TopK."
                )
            elif name != "buffers" and math.isinf(part.l2):
                faults.append(f"Gaussian finds no bound on '{name}': put Clip before it.")
        if faults:
            raise fault(*faults)
        return _Noised(self, signal.without("metric"), setting)


class _Noised(Step):
    def __init__(self, stage: Gaussian, out: Signal, setting: Setting) -> None:
        super().__init__(out)
        self._stage, self._setting = stage, setting
        self._stds: dict[str, float] = {}
        self._event: Event | None = None

    def settle(self, sensitivity: Sensitivity) -> Sensitivity:
        """Sets every part's noise, now that it is known what one client can change."""
        z = self._stage.noise_multiplier
        names = list(self.out.averaged)
        for name in names:
            if math.isinf(sensitivity.get(name, math.inf)):
                raise fault(
                    f"Gaussian cannot protect '{name}': behind it, one client can change the total without bound: "
                    "use Sum(), and TopK(..., error_feedback=False)."
                )
        multipliers = dict.fromkeys(names, z)
        if BELOW in names:
            count_noise = self._stage.count_noise or max(z, self._setting.cohort / 20)
            share = count_noise / sensitivity[BELOW]
            if share <= z:
                raise fault(
                    f"count_noise={count_noise:g} alone costs more than noise_multiplier={z:g} allows: "
                    f"raise it above {z * sensitivity[BELOW]:g}, or leave it None."
                )
            multipliers = dict.fromkeys(names, (z**-2 - share**-2) ** -0.5) | {BELOW: share}
        # A part that no client can change (no coordinates) needs no noise and costs nothing.
        self._stds = {name: multipliers[name] * sensitivity[name] for name in names if sensitivity[name] > 0}
        effective = sum(multipliers[name] ** -2 for name in self._stds) ** -0.5 if self._stds else math.inf
        self._event = self._released(effective, sensitivity)
        return sensitivity

    def _released(self, multiplier: float, sensitivity: Sensitivity) -> Event:
        who, rate = self._setting.sampling, self._setting.sampling.rate(self._setting.population)
        # Where speed helps to decide who is in, or everybody is, chance hides nobody.
        hidden = who.random_membership and rate < 1
        parts = ", ".join(
            f"{name}: std {std:g} on sensitivity {sensitivity[name]:g}" for name, std in self._stds.items()
        )
        return Event(
            mechanism="gaussian", noise_multiplier=multiplier, sampling=who.kind if hidden else "none",
            rate=rate if hidden else 1.0, detail=parts,
        )  # fmt: skip

    def encode(
        self, x: Tensors, state: Tensors, memory: Tensors, rngs: Sequence[np.random.Generator]
    ) -> tuple[Tensors, Tensors]:
        return x.without("metric"), memory

    def decode_total(self, total: Tensors, state: Tensors, round: Decoding) -> tuple[Tensors, Tensors]:
        normals = Normals(round.secret("noise"))
        noisy = {}
        for name in total:
            std = self._stds.get(name.split("/", 1)[0])
            if std is not None:
                noisy[name] = np.ascontiguousarray(total[name]).reshape(np.shape(total[name]))  # a 0-d array stays one
                add_noise(noisy[name], std, normals)
        return total.updated(noisy), state

    def events(self) -> tuple[Event, ...]:
        return () if self._event is None else (self._event,)
