"""PrivUnit: a random direction that says where a unit vector points, and no more of it than ε allows.

    U uniform on the sphere,  Q = P(⟨U, u⟩ ≥ γ),  a = 1 / (Q + e^(−ε)(1 − Q))
    V  has density a (relative to uniform) where ⟨V, u⟩ ≥ γ, and a·e^(−ε) elsewhere        ε-private, whatever γ
    E V = m·u,   m = a·(1 − e^(−ε))·E[⟨U, u⟩; ⟨U, u⟩ ≥ γ]                                  V / m is unbiased

γ is where m is largest, which is where the error ‖V/m − u‖² = 1/m² − 1 is smallest.

Sources: Bhowmick et al. 2018, Protection Against Reconstruction and Its Applications in Private Federated Learning,
https://arxiv.org/abs/1812.00984; Asi, Feldman and Talwar 2022, https://arxiv.org/abs/2205.03774
"""

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from hansa.core.errors import ConfigError, MissingExtra
from hansa.core.sampling import Stream
from hansa.privacy.checks import positive
from hansa.privacy.noise import Normals

_STEPS = 2000  # of γ·√d, from 0 to where no cap is left


@dataclass(frozen=True)
class Cap:
    """The law for one dimension and ε. Use `best_cap`.

    Args:
      dimension: of the sphere's space, 1 or more.
      epsilon: above 0.
      gamma: where the cap begins, in [0, 1).
      share: Q, the cap's share of the sphere.
      mean: m.
    """

    dimension: int
    epsilon: float
    gamma: float
    share: float
    mean: float

    def draw(self, unit: np.ndarray, stream: Stream) -> np.ndarray:
        """V for a unit vector of shape (dimension,), float64.

        Args:
          stream: secret; of the worker's operating system.
        """
        inside = self.share / (self.share + math.exp(-self.epsilon) * (1 - self.share))
        along = self._cosine(_uniform(stream) < inside, _uniform(stream))
        across = Normals(stream).draw(self.dimension)
        across -= (across @ unit) * unit
        length = math.sqrt(across @ across)
        if self.dimension == 1 or not length:
            return math.copysign(1.0, along) * unit
        drawn: np.ndarray = along * unit + (math.sqrt(max(0.0, 1 - along**2)) / length) * across
        return drawn

    def _cosine(self, inside: bool, at: float) -> float:
        """⟨V, u⟩ by inversion: its square has the law Beta(1/2, (d − 1)/2)."""
        if self.dimension == 1:
            return 1.0 if inside else -1.0
        special, half = _special(), (self.dimension - 1) / 2
        if inside:
            return math.sqrt(special.betainccinv(0.5, half, 2 * self.share * at))
        place = (1 - self.share) * at
        if place < 0.5:
            return -math.sqrt(special.betaincinv(0.5, half, 2 * place))
        return math.sqrt(special.betaincinv(0.5, half, 2 * place - 1))


@functools.lru_cache(maxsize=64)
def best_cap(dimension: int, epsilon: float) -> Cap:
    """The cap with the least error.

    Raises:
      ConfigError: ε is not finite and above 0, or the dimension below 1.
      MissingExtra: SciPy is not installed.
    """
    positive(epsilon=epsilon)
    if dimension < 1:
        raise ConfigError(f"dimension={dimension}: a vector has at least 1.")
    if dimension == 1:
        return Cap(1, epsilon, 0.0, 0.5, math.tanh(epsilon / 2))
    special, half = _special(), (dimension - 1) / 2
    furthest = min(math.sqrt(dimension), 2 + math.sqrt(2 * epsilon + 40))
    gammas = np.linspace(0, furthest, _STEPS, endpoint=False) / math.sqrt(dimension)
    shares = special.betaincc(0.5, half, gammas**2) / 2
    beyond = np.exp(half * np.log1p(-(gammas**2)) - special.betaln(0.5, half)) / (dimension - 1)
    means = beyond * -math.expm1(-epsilon) / (shares + math.exp(-epsilon) * (1 - shares))
    best = int(np.argmax(means))
    return Cap(dimension, epsilon, float(gammas[best]), float(shares[best]), float(means[best]))


def _uniform(stream: Stream) -> float:
    return (stream.word() >> 11) * 2.0**-53 + 2.0**-54


def _special() -> Any:
    try:
        from scipy import special
    except ModuleNotFoundError:
        raise MissingExtra("PrivUnit", "scipy", "dp") from None
    return special
