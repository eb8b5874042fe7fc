"""Adaptive federated optimisation: the server treats the mean difference Δ as a gradient of its own optimiser.

    m ← β₁ m + (1 − β₁) Δ
    v ← v + Δ²                                FedAdagrad
    v ← v − (1 − β₂) Δ² sign(v − Δ²)          FedYogi
    v ← β₂ v + (1 − β₂) Δ²                    FedAdam
    w ← w + η m / (√v + τ)                    v starts at τ², m at 0; there is no bias correction

    m ← β m + Δ,  w ← w + η m                 FedAvgM

m and v are the parts `momentum` and `second` of the state.

Sources: Reddi, Charles, Zaheer, Garrett, Rush, Konečný, Kumar, McMahan: Adaptive Federated Optimization, 2021,
algorithm 2, https://arxiv.org/abs/2003.00295
Hsu, Qi, Brown: Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification, 2019
(FedAvgM), https://arxiv.org/abs/1909.06335
"""

from dataclasses import dataclass, field

import numpy as np

from hansa.core.algorithm import Aggregate, Algorithm, moved
from hansa.core.errors import ConfigError
from hansa.core.tensors import Array, Tensors


@dataclass(frozen=True)
class FedAdagrad(Algorithm):
    """Adagrad on the server.

    Args:
      work: what workers do in a round.
      server_lr: η. The paper's usual range is 0.01 to 1.
      beta1: β₁ in [0, 1); the paper has 0 for Adagrad.
      tau: τ > 0, in the unit of Δ: small adapts much, large hardly at all.
    """

    server_lr: float = field(default=0.1, kw_only=True)
    beta1: float = field(default=0.0, kw_only=True)
    tau: float = field(default=1e-3, kw_only=True)

    def __post_init__(self) -> None:
        _fraction(beta1=self.beta1)
        if not self.tau > 0:
            raise ConfigError(f"tau={self.tau}: the degree of adaptivity is above 0, as in 1e-3.")

    def init(self, params: Tensors) -> Tensors:
        """The model, m = 0 and v = τ²."""
        zeros = _floats(params).zeros()
        return Tensors.join(model=params, momentum=zeros, second=zeros.map(lambda a: a + self.tau**2))

    def apply(self, state: Tensors, aggregate: Aggregate) -> Tensors:
        """One step of the server's optimiser."""
        momentum, second = dict(state.part("momentum")), dict(state.part("second"))
        for name, delta in aggregate.mean.items():
            momentum[name] = self.beta1 * momentum[name] + (1 - self.beta1) * delta
            second[name] = self.accumulate(second[name], delta * delta)
            delta[...] = momentum[name] / (np.sqrt(second[name]) + self.tau)
        kept = Tensors.join(momentum=Tensors(momentum), second=Tensors(second))
        return moved(state.updated(kept), aggregate, self.server_lr)

    def accumulate(self, second: Array, square: Array) -> Array:
        """The next v, from v and Δ²."""
        return second + square


@dataclass(frozen=True)
class FedAdam(FedAdagrad):
    """Adam on the server.

    Args:
      work, server_lr, tau: as in `FedAdagrad`.
      beta1, beta2: β₁ and β₂ in [0, 1).
    """

    beta1: float = field(default=0.9, kw_only=True)
    beta2: float = field(default=0.99, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        _fraction(beta2=self.beta2)

    def accumulate(self, second: Array, square: Array) -> Array:
        """The next v, from v and Δ²."""
        return self.beta2 * second + (1 - self.beta2) * square


@dataclass(frozen=True)
class FedYogi(FedAdam):
    """Yogi on the server: as `FedAdam`, but v changes by no more than Δ² and so forgets slowly."""

    def accumulate(self, second: Array, square: Array) -> Array:
        """The next v, from v and Δ²."""
        return second - (1 - self.beta2) * square * np.sign(second - square)


@dataclass(frozen=True)
class FedAvgM(Algorithm):
    """Momentum on the server.

    Args:
      work: what workers do in a round.
      server_lr: η.
      momentum: β in [0, 1); 0 is FedAvg.
    """

    momentum: float = field(default=0.9, kw_only=True)

    def __post_init__(self) -> None:
        _fraction(momentum=self.momentum)

    def init(self, params: Tensors) -> Tensors:
        """The model, and m = 0."""
        return Tensors.join(model=params, momentum=_floats(params).zeros())

    def apply(self, state: Tensors, aggregate: Aggregate) -> Tensors:
        """The momentum gathers Δ, and the model moves along it."""
        momentum = dict(state.part("momentum"))
        for name, delta in aggregate.mean.items():
            momentum[name] = self.momentum * momentum[name] + delta
            delta[...] = momentum[name]  # `moved` goes on in the mean's memory, never in the state's
        return moved(state.updated(Tensors.join(momentum=Tensors(momentum))), aggregate, self.server_lr)


def _floats(params: Tensors) -> Tensors:
    """Without integer buffers (counters), which no optimiser moves."""
    return params.only(name for name, (_, dtype) in params.shapes.items() if dtype.startswith("float"))


def _fraction(**named: float) -> None:
    for name, number in named.items():
        if not 0 <= number < 1:
            raise ConfigError(f"{name}={number}: it lies in [0, 1).")
