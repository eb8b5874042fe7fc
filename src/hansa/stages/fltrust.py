"""FLTrust: clients count as far as they agree with a root, a small data set that the server trusts.

    TSᵢ = max(0, cos(xᵢ, x₀))          mean = Σ TSᵢ · xᵢ · ‖x₀‖/‖xᵢ‖  /  Σ TSᵢ

The root is an enrolled worker like any other, run by the server's operator on data of its own: its update is made by
the job's model from the same start, in every runtime. `Rooted` asks it in every round.
"""

from collections.abc import Sequence, Set
from dataclasses import dataclass

import numpy as np

from hansa.core.errors import ConfigError, SecretRoundVoid, require
from hansa.core.pipeline import Setting, Signal, fault
from hansa.core.sampling import Fixed, Sampling, Stream
from hansa.stages.robust import Gathered, Robust


@dataclass(frozen=True)
class FLTrust(Robust):
    """The mean of contributions scaled to the root's length, each weighted by how much its direction is the root's.

    The root's own contribution is the measure and is not averaged. A round without it is void and tried again; one in
    which nobody agrees with it gives zeros.

    Args:
      root: the id of the worker that holds the root data; ask it with `Rooted`.

    Guarantees:
      Any number of liars: the mean is never longer than the root's update, nor at more than a right angle to it. It is
      as good as the root's data: what those do not show, liars may say.

    Source: Cao et al. 2021, FLTrust: Byzantine-robust Federated Learning via Trust Bootstrapping,
    https://arxiv.org/abs/2012.13995
    """

    root: str

    @property
    def fewest(self) -> int:
        """The root and one more."""
        return 2

    def withstands(self, contributions: int) -> int:
        """All but the root."""
        return contributions - 1

    def bind(self, signal: Signal, setting: Setting) -> None:
        """Refuses a sampling that may leave the root out."""
        super().bind(signal, setting)
        who = setting.sampling
        if not (isinstance(who, Rooted) and who.root == self.root) and setting.cohort < setting.population:
            raise fault(
                f"FLTrust needs '{self.root}' in every round: give "
                f"sampling=Rooted({self.root!r}, clients={setting.cohort:g})."
            )

    def mean(self, given: Gathered, names: Sequence[str]) -> dict[str, np.ndarray]:
        """The weighted mean of directions, at the root's length."""
        if self.root not in given.clients:
            raise SecretRoundVoid(
                f"the root '{self.root}' did not answer, and FLTrust measures by it: start its worker"
            )
        return given.mixed(names, self.weights(given.gram(names), given.clients.index(self.root)))

    def weights(self, products: np.ndarray, root: int) -> np.ndarray:
        """How much each contribution counts, from all inner products."""
        lengths = np.sqrt(np.diag(products))
        with np.errstate(divide="ignore", invalid="ignore"):
            trust = products[root] / (lengths * lengths[root])
            trust = np.where(np.isfinite(trust), np.maximum(trust, 0.0), 0.0)
            trust[root] = 0.0
            scales = np.where(trust > 0, lengths[root] / lengths, 0.0)
        weights: np.ndarray = trust * scales / (trust.sum() or 1.0)
        return weights


@dataclass(frozen=True)
class Rooted(Sampling):
    """One worker in every round, and `clients` of the others, drawn uniformly without replacement.

    It gives no privacy amplification: the root is always there. Rounds are synchronous and ask nobody beyond need.

    Raises:
      ConfigError: `over_select` or `max_staleness` is given; when a round is drawn, the root is not enrolled.
    """

    root: str
    clients: int = 1
    kind = "fixed"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.clients >= 1, f"clients={self.clients}: at least one client beside the root must be asked.")
        plain = not self.over_select and not self.max_staleness
        require(plain, "Rooted takes neither over_select nor max_staleness: the root has to be in every round.")

    @property
    def random_membership(self) -> bool:
        """False: chance hides nobody who is always asked."""
        return False

    def expected(self, population: int) -> float:
        """The root and the others."""
        return float(self.clients + 1)

    def draw(self, population: Sequence[str], stream: Stream, busy: Set[str] = frozenset()) -> list[str]:
        """The others as `Fixed` draws them, with the root in its place."""
        others = Fixed(self.clients + 1).draw(population, stream, {self.root, *busy})
        names = sorted([*others, self.root])
        if self.root not in population:
            raise ConfigError(f"the root '{self.root}' is not among the {len(population)} clients: enrol its worker.")
        return names
