"""How far the labels of single clients are from those of the population.

With n_kc the examples of client k with label c, p_k = n_k / Σ_c n_kc and p = Σ_k n_k / Σ n:

| measure          | formula                                  | IID          | one label each |
|------------------|------------------------------------------|--------------|----------------|
| `entropy`        | −Σ_c p_kc log2 p_kc, bits                | that of p    | 0              |
| `emd`            | Σ_c abs(p_kc − p_c)                      | 0            | towards 2      |
| `jensen_shannon` | H((p_k + p)/2) − (H(p_k) + H(p))/2, bits | 0            | towards 1      |

Each takes counts of shape (clients, labels), as `Partition.counts()` gives them, and returns one number for each
client; a client without examples has NaN.
"""

from dataclasses import dataclass

import numpy as np

from hansa.core.errors import DataError
from hansa.data.population import Partition


def frequencies(counts: np.ndarray) -> np.ndarray:
    """The share of each label in each client's examples, of the shape of `counts`.

    >>> frequencies(np.array([[1, 3], [0, 2]])).tolist()
    [[0.25, 0.75], [0.0, 1.0]]
    """
    counts = _checked(counts)
    totals = counts.sum(1, keepdims=True)
    return np.asarray(np.divide(counts, totals, out=np.full(counts.shape, np.nan), where=totals > 0))


def entropy(counts: np.ndarray) -> np.ndarray:
    """Bits needed to name the label of one of a client's examples: 0 for one label, log2(labels) for all equally.

    Source: Shannon 1948

    >>> entropy(np.array([[2, 2], [4, 0]])).tolist()
    [1.0, 0.0]
    """
    return _entropy_of(frequencies(counts))


def emd(counts: np.ndarray) -> np.ndarray:
    """Earth mover's distance between a client's labels and the population's, every two labels 2 apart: 0 to 2.

    Source: Zhao et al. 2018, section 3.2, https://arxiv.org/abs/1806.00582

    >>> emd(np.array([[4, 0], [0, 4]])).tolist()
    [1.0, 1.0]
    """
    return np.asarray(np.abs(frequencies(counts) - _population(counts)).sum(1))


def jensen_shannon(counts: np.ndarray) -> np.ndarray:
    """Jensen–Shannon divergence, in bits, between a client's labels and the population's: 0 to 1.

    Source: Lin 1991, https://doi.org/10.1109/18.61115
    """
    own, all_ = frequencies(counts), _population(counts)
    divergence = _entropy_of((own + all_) / 2) - (_entropy_of(own) + _entropy_of(all_)) / 2
    return np.asarray(np.clip(divergence, 0.0, 1.0))


@dataclass(frozen=True)
class Summary:
    """Means over clients, each counted once, and the smallest and largest client."""

    clients: int
    smallest: int
    median: float
    largest: int
    labels: float
    entropy: float
    emd: float
    jensen_shannon: float

    def __str__(self) -> str:
        return (
            f"{self.clients} clients of {self.smallest} to {self.largest} examples (median {self.median:g}); "
            f"on average {self.labels:.1f} labels, entropy {self.entropy:.2f} bits, EMD {self.emd:.2f}, "
            f"Jensen-Shannon {self.jensen_shannon:.2f} bits"
        )


def summary(partition: Partition, column: str = "y") -> Summary:
    """The measures of this page for a partition, as one line. Clients without examples count in the sizes alone."""
    counts, sizes = partition.counts(column), partition.sizes()
    filled = counts[sizes > 0]
    return Summary(
        clients=len(partition),
        smallest=int(sizes.min()),
        median=float(np.median(sizes)),
        largest=int(sizes.max()),
        labels=float((filled > 0).sum(1).mean()),
        entropy=float(entropy(filled).mean()),
        emd=float(emd(filled).mean()),
        jensen_shannon=float(jensen_shannon(filled).mean()),
    )


def _checked(counts: np.ndarray) -> np.ndarray:
    counts = np.asarray(counts)
    if counts.ndim != 2 or not counts.sum() > 0 or (counts < 0).any():
        raise DataError(f"counts of shape {list(counts.shape)} must be (clients, labels), at least 0 and not all 0.")
    return counts


def _population(counts: np.ndarray) -> np.ndarray:
    totals = np.asarray(counts).sum(0)
    return np.asarray(totals / totals.sum())


def _entropy_of(shares: np.ndarray) -> np.ndarray:
    logarithms = np.log2(shares, out=np.zeros(shares.shape), where=shares > 0)
    return np.asarray(np.where(np.isnan(shares).any(-1), np.nan, 0.0) - (shares * logarithms).sum(-1) + 0.0)
