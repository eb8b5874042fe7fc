"""FedBuff: buffered asynchronous averaging, where nobody waits for the slowest.

    the server keeps `clients` workers busy; as soon as K of them have answered:
    w ← w + η/K · Σ s(τₖ) (wₖ − w₍ₜ₋τₖ₎),   s(τ) = (1 + τ)^−a,  a = 1/2

τₖ is how many versions old the model was that worker k started from. K and the bound on τ are the sampling's:

    sampling=Fixed(100, quorum=10, max_staleness=20), pipeline=Pipeline([UniformMean()], Sum())

Discounts are put on single contributions, so the reducer must see each, and the mean is over their count.

Source: Nguyen, Malik, Zhan, Yousefpour, Rabbat, Malek, Huba: Federated Learning with Buffered Asynchronous
Aggregation, 2022, algorithm 1, https://arxiv.org/abs/2106.06639
"""

from dataclasses import dataclass, field

from hansa.core.algorithm import Algorithm
from hansa.core.errors import ConfigError


@dataclass(frozen=True)
class FedBuff(Algorithm):
    """Buffered asynchronous averaging.

    Args:
      work: what workers do for one answer.
      server_lr: η.
      exponent: a ≥ 0, how fast old updates lose weight; 0 counts them all the same.
    """

    exponent: float = field(default=0.5, kw_only=True)

    def __post_init__(self) -> None:
        if not self.exponent >= 0:
            raise ConfigError(f"exponent={self.exponent}: old updates may not count more than new ones, so 0 or more.")

    def discount(self, staleness: int) -> float:
        """(1 + τ)^−a.

        >>> from hansa.core.model import LocalWork
        >>> FedBuff(LocalWork(lr=0.1, steps=1)).discount(3)
        0.5
        """
        return float((1 + staleness) ** -self.exponent)
