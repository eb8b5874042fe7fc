"""Data that is made up, from a seed, for examples and tests that ship none, and for checking against a known truth."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from hansa.core.data import Clients, Dataset
from hansa.core.errors import DataError, NotFound
from hansa.data.population import NumberedIds

FEATURES, CLASSES = 60, 10


def synthetic(
    alpha: float = 1.0, beta: float = 1.0, clients: int = 30, iid: bool = False, seed: int = 0
) -> "SyntheticClients":
    """The synthetic(α, β) clients of FedProx: each labels its own kind of points by its own linear model.

        u_k ~ N(0, α)   W_k[i,j], b_k[i] ~ N(u_k, 1)                   how much the local models differ: alpha
        B_k ~ N(0, β)   v_k[j] ~ N(B_k, 1)   x ~ N(v_k, diag(j^-1.2))  how much the local points differ: beta
        y = argmax(W_k x + b_k)                                        60 features, 10 labels

    Args:
      alpha: standard deviation of the mean of a client's model. (The paper writes a variance; its code, which made the
        published figures, uses it as standard deviation, and so do we.)
      beta: standard deviation of the mean of a client's points.
      clients: how many; sizes are 50 + a lognormal(4, 2) draw, as in the paper's code.
      iid: one model and v = 0 for all, as in the paper's Synthetic-IID; alpha and beta are then not used.
      seed: the same seed gives the same clients, whichever are opened and in whatever order.

    Returns:
      Clients, each made when it is opened: x float32 (n, 60), y int64 (n).

    Source: Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith 2020, Federated optimization in heterogeneous networks,
    section 5.1 and appendix C.1, https://arxiv.org/abs/1812.06127
    """
    for name, value in {"alpha": alpha, "beta": beta}.items():
        if not 0 <= value < np.inf:
            raise DataError(f"{name}={value!r} must be a finite number of at least 0.")
    if clients < 1:
        raise DataError(f"clients={clients!r} must be a whole number of at least 1.")
    return SyntheticClients(alpha, beta, clients, iid, seed)


class Generated(Clients):
    """Clients numbered from 0, of which only a seed is kept. A subclass is a frozen dataclass."""

    clients: int

    @cached_property
    def ids(self) -> Sequence[str]:
        return NumberedIds(self.clients)

    def number(self, client: str) -> int:
        """The client's number; NotFound for an unknown id."""
        if client not in self.ids:
            raise NotFound(f"no client '{client}' among {len(self.ids)} (the first is '{self.ids[0]}').")
        return int(client)


@dataclass(frozen=True)
class SyntheticClients(Generated):
    """What `synthetic` returns. `truth(id)` is the model that labelled a client's points."""

    alpha: float
    beta: float
    clients: int
    iid: bool
    seed: int

    def truth(self, client: str) -> tuple[np.ndarray, np.ndarray]:
        """W of shape (10, 60) and b of shape (10,), such that y = argmax(W x + b)."""
        rng = np.random.default_rng([self.seed, 0] if self.iid else [self.seed, 1, self.number(client)])
        mean = 0.0 if self.iid else rng.normal(0, self.alpha)
        return rng.normal(mean, 1, (CLASSES, FEATURES)), rng.normal(mean, 1, CLASSES)

    def open(self, client: str) -> Dataset:
        rng = np.random.default_rng([self.seed, 2, self.number(client)])
        size = 50 + int(min(rng.lognormal(4, 2), 1e6))  # the tail is heavy: one draw in 10⁶ exceeds 10⁶
        centre = np.zeros(FEATURES) if self.iid else rng.normal(rng.normal(0, self.beta), 1, FEATURES)
        spread = np.arange(1, FEATURES + 1) ** -0.6  # the square root of the covariance j^-1.2
        # Rounded to float32 before it is labelled, so that the truth labels what the client sees without fault.
        x = (centre + spread * rng.standard_normal((size, FEATURES))).astype(np.float32)
        weights, bias = self.truth(client)
        return Dataset(x=x, y=(x @ weights.T + bias).argmax(1).astype(np.int64))


def blobs(rows: int = 1000, classes: int = 3, features: int = 2, separation: float = 3.0, seed: int = 0) -> Dataset:
    """Round clouds of points, one for each class, for a first classifier.

    Args:
      rows: how many points, shared equally among the classes, in random order.
      classes: how many clouds.
      features: coordinates of a point.
      separation: standard deviation of the clouds' centres; that of a cloud is 1.
      seed: the same seed gives the same points.

    Returns:
      x float32 (rows, features), y int64 (rows).

    >>> blobs(rows=6, classes=2)["y"].sum()
    np.int64(3)
    """
    for name, value in {"rows": rows, "classes": classes, "features": features}.items():
        if value < 1:
            raise DataError(f"{name}={value!r} must be a whole number of at least 1.")
    rng = np.random.default_rng(seed)
    centres = separation * rng.standard_normal((classes, features))
    y = rng.permutation(np.arange(rows) % classes)
    return Dataset(x=(centres[y] + rng.standard_normal((rows, features))).astype(np.float32), y=y.astype(np.int64))
