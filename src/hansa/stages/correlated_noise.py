"""Noise of the server that is correlated over rounds, for cohorts that are not sampled at random (DP-FTRL).

    release of round t, part p:   Σ xₚ + σₚ·sens·n_t,   σₚ = zₚ·Sₚ

    MatrixNoise   n = C⁻¹·Z          n_t = Z_t − c₁·n_{t−1} − … − c_{b−1}·n_{t−b+1}
    TreeNoise     n_t = F_t − F_{t−1},   F_t the best estimates of the nodes that make up rounds 1 … t

The sum of the first t rounds, which is what the model is, has noise that grows slowly; a single round has more than it
would have by itself. What `privacy/correlated.py` calls sens is what one client can change over the whole run, which
the ledger counts as one Gaussian mechanism of multiplier z, whatever the rounds are.

Independent normals come from the run's secret, a round's number and a random word for each attempt, and are made again
rather than kept: the state that workers are sent has the words alone. What a server that goes on remembers of earlier
rounds is a cache.
"""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from hansa.core.errors import ConfigError
from hansa.core.ledger import Event
from hansa.core.pipeline import Decoding, Setting, Signal, Step, fault
from hansa.core.tensors import Tensors
from hansa.privacy.correlated import CORRELATED, Run, banded, honaker, restart, sensitivity, tree_sensitivity
from hansa.privacy.noise import Normals
from hansa.privacy.sampling import Turns
from hansa.privacy.threats import CENTRAL, Adversary, Sees
from hansa.stages.noise import Gaussian, Noised, noised, protectable

Fresh = Callable[[str], np.ndarray]
"""Independent standard normals of one round, by a label."""

_THREATS = (
    *CENTRAL[:2],
    Sees(
        Adversary.READER,
        "each client within (ε, δ) of the ledger, over the whole run, also if it is known who was asked",
        "the server adds the noise, and tells nobody its secret",
    ),
)


@dataclass(frozen=True)
class MatrixNoise(Gaussian):
    """Noise by the best banded Toeplitz matrix: `[Clip(C), UniformMean(), MatrixNoise(z, rounds=1000)]`.

    The sampling must be `Turns(clients, groups=...)`, which keeps a client's participations `groups` rounds apart.

    Args:
      noise_multiplier: z of the whole run, not of a round; above 0.
      rounds: for which it is planned; a job may not have more.
      bands: rounds over which noise is correlated, at most `groups`; None is as many as that. The server keeps so many
        vectors of the model's size.
      count_noise: as `Gaussian` has it, for `AdaptiveClip`'s count.

    Guarantees:
      No amplification is assumed: who was in which round may be known. A round that is released a second time (its
      first total was charged and came to nothing) is paid for as one more release. Noise is made from the run's secret;
      after a restart that of all earlier rounds is made once more.

    Root mean square of the noise of all prefix sums at the same (ε, δ), 1,000 rounds, relative to independent noise:

    | groups | 10 | 50 | 200 |
    |---|---|---|---|
    | `MatrixNoise` | 0.34 | 0.19 | 0.15 |
    | `TreeNoise` | 0.43 | 0.29 | 0.25 |

    Sources: Choquette-Choo et al. 2023, https://arxiv.org/abs/2306.08153; McKenna 2024,
    https://arxiv.org/abs/2405.15913
    """

    threats: ClassVar[tuple[Sees, ...]] = _THREATS

    rounds: int = field(kw_only=True)
    bands: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        _planned(self.rounds)
        if self.bands is not None and self.bands < 1:
            raise ConfigError(f"bands={self.bands}: 1 is independent noise; choose more, up to the sampling's groups.")

    def bind(self, signal: Signal, setting: Setting) -> Step:
        """Refuses what noise cannot protect, and bands over which a client may be in two rounds."""
        out, apart = protectable(signal, "MatrixNoise"), _separation(setting, "MatrixNoise")
        bands = min(apart, self.rounds) if self.bands is None else self.bands
        if bands > min(apart, self.rounds):
            raise fault(
                f"MatrixNoise(bands={bands}) over {self.rounds} rounds, but a client may be in two rounds that are "
                f"{apart} apart: lower bands, or sample by Turns(clients, groups={bands})."
            )
        coefficients = np.array(banded(self.rounds, bands, apart))
        whole = sensitivity(coefficients, self.rounds, apart)
        return _Correlated("MatrixNoise", self, out, setting, whole, 1.0, lambda c: _Banded(c), coefficients)


@dataclass(frozen=True)
class TreeNoise(Gaussian):
    """Noise by binary trees, each node's sum estimated from its own subtree: the DP-FTRL of Kairouz et al. 2021.

    Simpler than `MatrixNoise` and noisier; it needs no particular sampling, but a run in which a client may be in every
    round pays for it.

    Args:
      noise_multiplier: z of the whole run, not of a round; above 0.
      rounds: for which it is planned; a job may not have more.
      restart: rounds after which a new tree begins; None is the power of two with the least noise.
      count_noise: as `Gaussian` has it, for `AdaptiveClip`'s count.

    Guarantees:
      As `MatrixNoise`.

    Sources: Kairouz et al. 2021, https://arxiv.org/abs/2103.00039; Honaker 2015
    """

    threats: ClassVar[tuple[Sees, ...]] = _THREATS

    rounds: int = field(kw_only=True)
    restart: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        _planned(self.rounds)
        if self.restart is not None and self.restart < 1:
            raise ConfigError(f"restart={self.restart}: a tree has at least 1 round.")

    def bind(self, signal: Signal, setting: Setting) -> Step:
        """Refuses what noise cannot protect."""
        out, apart = protectable(signal, "TreeNoise"), _separation(setting, "TreeNoise")
        size = min(self.rounds, self.restart or restart(self.rounds, apart))
        whole, once = tree_sensitivity(self.rounds, size, apart)
        return _Correlated("TreeNoise", self, out, setting, whole, once, lambda c: _Tree(int(c[0])), np.array([size]))


class _Correlated(Noised):
    """Noise of which each round's row depends on those before.

    Args:
      whole: what one client of norm 1 can change over the run; `once`: what it can change in one round's release.
      begun: a process of noise that is at its beginning, from `plan`.
      plan: numbers that are kept with the run, so that it goes on as it began.
    """

    def __init__(
        self, name: str, stage: "MatrixNoise | TreeNoise", out: Signal, setting: Setting, whole: float, once: float,
        begun: "Callable[[np.ndarray], _Process]", plan: np.ndarray,
    ) -> None:  # fmt: skip
        super().__init__(name, stage, out, setting)
        self._rounds, self._whole, self._once, self._begun, self._plan = stage.rounds, whole, once, begun, plan
        self._process: _Process | None = None
        self._reached: tuple[int, bytes] | None = None

    def _released(self, multiplier: float, detail: str) -> Event:
        run = Run(rounds=self._rounds, again=multiplier * self._whole / self._once)
        return Event(mechanism=CORRELATED, noise_multiplier=multiplier, detail=run.to_text())

    def start(self) -> Tensors:
        words = np.zeros(self._rounds, np.uint32)
        return Tensors({"plan": self._plan.astype(np.float64), "round": np.zeros(1, np.int64), "words": words})

    def decode_total(self, total: Tensors, state: Tensors, round: Decoding) -> tuple[Tensors, Tensors]:
        at, words = int(state["round"][0]), np.array(state["words"])
        if at >= self._rounds:
            raise ConfigError(f"{self._name}(rounds={self._rounds}) has no noise for a further round: plan for more.")
        # Another word in each attempt: noise that was released once is never released again around another total.
        words[at] = round.secret("attempt").word() >> 32
        sizes = {name: total[name].size for name in total if name.split("/", 1)[0] in self._stds}
        row = self._whole * self._row(at, words, sum(sizes.values()), round)
        state = state.updated({"round": np.array([at + 1]), "words": words})
        return noised(total, self._stds, _Row(row)), state

    def _row(self, at: int, words: np.ndarray, size: int, round: Decoding) -> np.ndarray:
        """The noise of this round, at scale 1."""
        run = round.run("noise").seed()
        if self._process is None or self._reached != (run, words[:at].tobytes()):
            self._process = self._begun(self._plan)
            for before in range(at):
                self._process.next(_fresh(round, before, words, size))
        row = self._process.next(_fresh(round, at, words, size))
        self._reached = (run, words[: at + 1].tobytes())
        return row


def _fresh(round: Decoding, at: int, words: np.ndarray, size: int) -> Fresh:
    return lambda label: Normals(round.run(f"noise {at} {words[at]} {label}")).draw(size)


class _Row:
    """A row that was made before, given out in order."""

    def __init__(self, row: np.ndarray) -> None:
        self._row, self._at = row, 0

    def draw(self, count: int) -> np.ndarray:
        self._at += count
        return self._row[self._at - count : self._at]


class _Process(ABC):
    """Noise round by round."""

    @abstractmethod
    def next(self, fresh: Fresh) -> np.ndarray:
        """The next round's row."""


class _Banded(_Process):
    def __init__(self, coefficients: np.ndarray) -> None:
        self._later = coefficients[1:]
        self._past: deque[np.ndarray] = deque(maxlen=len(self._later))  # the latest first

    def next(self, fresh: Fresh) -> np.ndarray:
        row = fresh("row")
        for coefficient, past in zip(self._later, self._past, strict=False):
            row -= coefficient * past
        self._past.appendleft(row)
        return row


class _Tree(_Process):
    def __init__(self, size: int) -> None:
        self._size, self._done = size, 0
        self._weights = honaker(size.bit_length())
        self._nodes: list[np.ndarray | None] = []  # the estimate of the node of each level that is open, lowest first

    def next(self, fresh: Fresh) -> np.ndarray:
        if self._done == self._size:
            self._done, self._nodes = 0, []
        self._done += 1
        row = np.zeros_like(node := fresh("0"))
        level = 0
        while level < len(self._nodes) and (left := self._nodes[level]) is not None:
            row -= left
            self._nodes[level] = None
            level += 1
            own, children = self._weights[level]
            node = own * fresh(str(level)) + children * (left + node)
        self._nodes += [None] * (level + 1 - len(self._nodes))
        self._nodes[level] = node
        row += node
        return row


def _planned(rounds: int) -> None:
    if rounds < 1:
        raise ConfigError(f"rounds={rounds}: correlated noise is planned for at least one round, as for the job's all.")


def _separation(setting: Setting, stage: str) -> int:
    """The least number of rounds from one participation of a client to its next."""
    if setting.sampling.max_staleness:
        raise fault(f"{stage} needs every update in its own round: set max_staleness=0.")
    return setting.sampling.groups if isinstance(setting.sampling, Turns) else 1
