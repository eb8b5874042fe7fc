"""Partitioners that decide how many rows a client has, and draw which ones at random.

sizes = apportion(rows, weights)        whole numbers that sum to rows, as near to rows · w_k / Σ w as they can be
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass

import numpy as np

from hansa.core.data import Dataset
from hansa.core.errors import DataError
from hansa.data.population import Cut, Partitioner, by_owner, client_count


class SizeRule(Partitioner):
    """A partitioner that only says how much each client has; the rows are drawn uniformly."""

    @abstractmethod
    def sizes(self, rows: int, clients: int, rng: np.random.Generator) -> np.ndarray:
        """Whole numbers, one for each client, that sum to `rows`."""

    @property
    def least(self) -> int:
        """The fewest examples a client may be left with."""
        return 1

    def cut(self, dataset: Dataset, clients: int | None, rng: np.random.Generator) -> Cut:
        clients = client_count(dataset, clients, self.least)
        owner = np.repeat(np.arange(clients), self.sizes(len(dataset), clients, rng))
        return by_owner(rng.permutation(owner), clients)


@dataclass(frozen=True)
class IID(SizeRule):
    """Every client a random share; sizes differ by at most one.

    Source: McMahan et al. 2017, section 3, https://arxiv.org/abs/1602.05629
    """

    def sizes(self, rows: int, clients: int, rng: np.random.Generator) -> np.ndarray:
        return apportion(rows, np.ones(clients))


LAWS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "equal": lambda k: np.ones(len(k)),
    "linear": lambda k: k + 1.0,
    "square": lambda k: (k + 1.0) ** 2,
    "exponential": lambda k: np.exp(k - k.max()),
}


@dataclass(frozen=True)
class Sizes(SizeRule):
    """Sizes that follow a law of the client's number k = 0, 1, …, rows drawn at random.

    | law             | weight of client k                                   |
    |-----------------|------------------------------------------------------|
    | `"equal"`       | 1                                                    |
    | `"linear"`      | k + 1                                                |
    | `"square"`      | (k + 1)²                                             |
    | `"exponential"` | exp(k)                                               |
    | a function      | law(k)                                               |
    | a tuple         | law[k]: exact sizes where they sum to the row count  |

    Sizes are in proportion to the weights, as near as whole numbers can be; no client gets fewer than `min_examples`.

    Source: the size partitioners of Flower Datasets, https://flower.ai/docs/datasets

    >>> Sizes("linear").sizes(60, 3, np.random.default_rng(0)).tolist()
    [10, 20, 30]
    """

    law: str | tuple[float, ...] | Callable[[int], float]
    _: KW_ONLY
    min_examples: int = 1

    def __post_init__(self) -> None:
        if isinstance(self.law, str) and self.law not in LAWS:
            raise DataError(f"law='{self.law}' is unknown: use one of {sorted(LAWS)}, a function or a tuple.")
        if not isinstance(self.law, (str, tuple)) and not callable(self.law):
            raise DataError(f"law={self.law!r} must be one of {sorted(LAWS)}, a function of the number, or a tuple.")
        whole_number(min_examples=self.min_examples)

    @property
    def least(self) -> int:
        return self.min_examples

    def sizes(self, rows: int, clients: int, rng: np.random.Generator) -> np.ndarray:
        if isinstance(self.law, str):
            weights = LAWS[self.law](np.arange(clients))
        elif isinstance(self.law, tuple):
            if len(self.law) != clients:
                raise DataError(f"law has {len(self.law)} sizes for clients={clients}: give one for each.")
            weights = np.array(self.law, dtype=float)
        else:
            weights = np.array([self.law(client) for client in range(clients)], dtype=float)
        if not (np.all(np.isfinite(weights)) and np.all(weights >= 0) and weights.sum() > 0):
            raise DataError("law gives a size that is negative or not finite, or none above 0: mend the law.")
        return apportion(rows, weights, self.min_examples)


@dataclass(frozen=True)
class QuantitySkew(SizeRule):
    """Random sizes, rows drawn at random: clients differ in how much they have, not in what.

    | given       | weights                                       | usual           | source                      |
    |-------------|-----------------------------------------------|-----------------|-----------------------------|
    | `alpha`     | one draw of Dirichlet(alpha, …, alpha)        | 0.5             | Li et al. 2022, NIID-Bench  |
    | `power`     | rank^-power, ranks dealt at random (Zipf)     | 1.0 … 1.5       | Clauset et al. 2009         |
    | `sigma`     | exp(N(0, sigma²))                             | 0.3 … 2         | Acar et al. 2021, FedDyn    |

    Give exactly one. No client gets fewer than `min_examples`.

    Source: https://arxiv.org/abs/2102.02079, https://arxiv.org/abs/0706.1062, https://arxiv.org/abs/2111.04263
    """

    alpha: float | None = None
    _: KW_ONLY
    power: float | None = None
    sigma: float | None = None
    min_examples: int = 1

    def __post_init__(self) -> None:
        given = {name: getattr(self, name) for name in ("alpha", "power", "sigma") if getattr(self, name) is not None}
        if len(given) != 1:
            raise DataError(f"QuantitySkew takes exactly one of alpha, power and sigma, not {given or 'none'}.")
        positive(**given)
        whole_number(min_examples=self.min_examples)

    @property
    def least(self) -> int:
        return self.min_examples

    def sizes(self, rows: int, clients: int, rng: np.random.Generator) -> np.ndarray:
        if self.alpha is not None:
            weights = rng.dirichlet(np.full(clients, self.alpha))
        elif self.power is not None:
            weights = rng.permutation(np.arange(1, clients + 1) ** -float(self.power))
        else:
            assert self.sigma is not None
            exponent = self.sigma * rng.standard_normal(clients)
            weights = np.exp(exponent - exponent.max())
        return apportion(rows, weights, self.min_examples)


def apportion(total: int, weights: np.ndarray, least: int = 0) -> np.ndarray:
    """Whole numbers that sum to `total`, in proportion to `weights`: the method of largest remainders (Hamilton 1792).

    Where that leaves someone under `least`, those above it give up what is lacking in proportion to what they have
    above it. Needs total >= least · len(weights) and one weight above 0.

    >>> apportion(10, np.array([1.0, 1.0, 1.0])).tolist(), apportion(10, np.array([98.0, 1.0, 1.0]), least=2).tolist()
    ([4, 3, 3], [6, 2, 2])
    """
    quotas = total * (weights / weights.sum())
    sizes: np.ndarray = np.floor(quotas).astype(np.int64)
    most_cut = np.argsort(sizes - quotas, kind="stable")
    sizes[most_cut[: total - int(sizes.sum())]] += 1
    lacking = int(np.maximum(least - sizes, 0).sum())
    if lacking:
        sizes = np.maximum(sizes, least)
        sizes -= apportion(lacking, (sizes - least).astype(float))
    return sizes


def positive(**values: float) -> None:
    """DataError for a value that is not a finite number above 0."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, (int, float, np.number)) or not 0 < value < np.inf:
            raise DataError(f"{name}={value!r} must be a finite number above 0.")


def whole_number(least: int = 0, **values: int) -> None:
    """DataError for a value that is not a whole number of at least `least`."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
            raise DataError(f"{name}={value!r} must be a whole number of at least {least}.")
