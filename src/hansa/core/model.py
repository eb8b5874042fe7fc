"""What learns: `Model`, pure in its parameters, and `LocalWork`, what one visit of local training means.

Local work is data, not code: that is why one algorithm runs in a plain loop, traced and compiled, or many clients at
once, with the same result. Whoever needs another loop overrides `Model.fit`, and loses only the faster plans.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

import numpy as np

from hansa.core.errors import require
from hansa.core.tensors import EMPTY, Shapes, Tensors

Metrics = Mapping[str, tuple[float, float]]  # name -> (numerator, denominator), as in {"accuracy": (29, 30)}


class Role(StrEnum):
    """What happens to a tensor of the model.

    TRAINABLE ones are trained and their differences averaged (and clipped, noised, quantised). BUFFERs (batch norm's
    running statistics) are averaged apart and never clipped with them. FROZEN ones travel once, by hash. PRIVATE ones
    stay in the worker's memory and never travel.
    """

    TRAINABLE = "trainable"
    BUFFER = "buffer"
    FROZEN = "frozen"
    PRIVATE = "private"


@dataclass(frozen=True)
class RecordDP:
    """Differential privacy of single records in local training (DP-SGD, Abadi et al. 2016, arXiv:1607.00133).

    Each step draws every record with probability batch_size / examples, clips each record's gradient to the L2 norm
    `clip`, adds noise of standard deviation `noise_multiplier`·`clip` to their sum, and divides by `batch_size`. Draws
    and noise come from the worker's operating system, never from the job's seed.

    With `microbatches` m, each record drawn falls into one of m slots at random; what is clipped is a slot's sum of
    gradients over its expected size, batch_size / m, and m is divided by. This costs m gradients a step in any network,
    and noise of `noise_multiplier`·2·`clip`: for the same ε the mean's noise is 2·batch_size / m times that without.
    `hansa.privacy.records.sensitivity` has the proof.
    """

    noise_multiplier: float
    clip: float
    microbatches: int | None = None

    def __post_init__(self) -> None:
        for name in ("noise_multiplier", "clip"):
            given = getattr(self, name)
            require(given > 0 and math.isfinite(given), f"{name}={given}: record-level privacy needs one above 0.")
        require(self.microbatches is None or self.microbatches >= 1, f"microbatches={self.microbatches}: at least 1.")


@dataclass(frozen=True)
class LocalWork:
    """What a worker does with its own data in one round.

    Args:
      lr: learning rate.
      epochs: passes over the data; give this or `steps`.
      steps: optimiser steps, going on to further passes where the data is short.
      batch_size: examples a step; None is all of them. The last batch of a pass may be smaller.
      optimiser: `sgd` or `adam`, fresh at each visit.
      momentum: of SGD, in [0, 1).
      betas, eps: of Adam.
      weight_decay: L2 penalty's factor, added to the gradient.
      proximal: μ of FedProx: adds μ/2 ‖w − w₀‖² to the loss, w₀ being what the server sent.
      shuffle: new order of examples at each pass.
      correction: tensors added to the gradient at each step (SCAFFOLD's c − cᵢ); set by algorithms, not by users.
      mask: tensors of 0 and 1 that the gradient is multiplied with; set by algorithms.
      dp: differential privacy of single records; needs a batch size, and a model that can clip each record's gradient.

    Raises:
      ConfigError: a value is out of its range.

    | use | settings |
    |---|---|
    | McMahan's MNIST | `LocalWork(lr=0.1, epochs=1, batch_size=10)` |
    | full-batch steps | `LocalWork(lr=1e-3, epochs=10, optimiser="adam")` |
    | one gradient (FedSGD) | `LocalWork(lr=1.0, steps=1)` |
    """

    lr: float
    epochs: int | None = None
    steps: int | None = None
    batch_size: int | None = None
    optimiser: str = "sgd"
    momentum: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    proximal: float = 0.0
    shuffle: bool = True
    correction: Tensors = field(default=EMPTY, repr=False)
    mask: Tensors = field(default=EMPTY, repr=False)
    dp: RecordDP | None = None

    def __post_init__(self) -> None:
        require(self.lr >= 0 and math.isfinite(self.lr), f"lr={self.lr}: a learning rate is finite and not negative.")
        length = f"epochs={self.epochs}, steps={self.steps}: give exactly one of them."
        require((self.epochs is None) != (self.steps is None), length)
        for name in ("epochs", "steps", "batch_size"):
            count = getattr(self, name)
            require(count is None or count >= 1, f"{name}={count}: at least 1 is needed.")
        unknown = f"optimiser='{self.optimiser}': choose 'sgd' or 'adam', or override Model.fit."
        require(self.optimiser in ("sgd", "adam"), unknown)
        require(0 <= self.momentum < 1, f"momentum={self.momentum}: it lies in [0, 1).")
        require(all(0 <= beta < 1 for beta in self.betas), f"betas={self.betas}: both lie in [0, 1).")
        for name in ("weight_decay", "proximal"):
            require(getattr(self, name) >= 0, f"{name}={getattr(self, name)}: it may not be negative.")
        require(self.dp is None or self.batch_size is not None, "dp draws batches at random: give a batch_size.")
        slots = (self.dp and self.dp.microbatches) or 1
        require(slots <= (self.batch_size or slots), f"microbatches={slots} > batch_size={self.batch_size}: lower it.")

    def with_(self, **changes: Any) -> "LocalWork":
        """A copy with some fields changed."""
        return replace(self, **changes)

    def batches(self, examples: int, rng: np.random.Generator) -> list[np.ndarray]:
        """The rows of every step, in order: the one definition of a pass that all plans share.

        Args:
          examples: how many there are; at least 1.
          rng: draws one permutation for each pass begun, if `shuffle`.

        Returns:
          One int64 array of rows for each step.
        """
        size = min(self.batch_size or examples, examples)
        per_pass = math.ceil(examples / size)
        wanted = self.steps if self.steps is not None else (self.epochs or 0) * per_pass
        rows: list[np.ndarray] = []
        while len(rows) < wanted:
            order = rng.permutation(examples) if self.shuffle and size < examples else np.arange(examples)
            rows.extend(order[at : at + size] for at in range(0, examples, size))
        return rows[:wanted]


@dataclass(frozen=True)
class Fit:
    """What local training gives: parameters after it, optimiser steps taken, and the metrics seen on the way."""

    params: Tensors
    steps: int
    metrics: Metrics = field(default_factory=dict)


class Model(ABC):
    """Something with parameters that can be fitted and evaluated; subclasses are frozen dataclasses.

    All methods are pure in `params`: nothing is kept between calls that could change a result. Framework types stay
    inside. A model in any other library needs `init`, `fit` and `evaluate`:

    >>> @dataclass(frozen=True)
    ... class MeanModel(Model):
    ...     def init(self, seed): return Tensors({"mean": np.zeros(1)})
    ...     def fit(self, params, data, work, rng): return Fit(Tensors({"mean": [data["x"].mean()]}), steps=1)
    ...     def evaluate(self, params, data):
    ...         return {"loss": (float(((data["x"] - params["mean"]) ** 2).sum()), len(data))}
    """

    metrics: Mapping[str, float] = {"loss": math.inf}
    """Names of the metrics that `fit` and `evaluate` give, each with the largest value one example can have. A plain
    sum takes any bound; a secure sum refuses an infinite one."""
    clips_records = False
    """True if `fit` can do record-level privacy (`LocalWork.dp`)."""

    @abstractmethod
    def init(self, seed: int) -> Tensors:
        """All parameters and buffers at the start: the same for the same seed, on every machine."""

    @abstractmethod
    def fit(self, params: Tensors, data: Any, work: LocalWork, rng: np.random.Generator) -> Fit:
        """Trains on `data` as `work` says, from `params`, with all randomness from `rng`."""

    def fit_cohort(
        self, params: Sequence[Tensors], data: Sequence[Any], work: Sequence[LocalWork],
        rngs: Sequence[np.random.Generator],
    ) -> list[Fit]:  # fmt: skip
        """`fit` of K clients, one after another unless a model can do them at once."""
        return [self.fit(*each) for each in zip(params, data, work, rngs, strict=True)]

    @abstractmethod
    def evaluate(self, params: Tensors, data: Any) -> Metrics:
        """Metrics on `data`, each as (numerator, denominator), so that they add up over parties."""

    def roles(self) -> Mapping[str, Role]:
        """The role of each tensor that is not trainable."""
        return {}

    def shapes(self) -> Shapes:
        """Names, shapes and dtypes of `init`; override it where making the arrays is dear."""
        return self.init(0).shapes

    def plan(self) -> str:
        """How `fit` runs (plan and threads), as text kept in checkpoints."""
        return "loop"

    def planned(self, load: Callable[[], Any], work: LocalWork, plan: str = "") -> "Model":
        """This model with the way `fit` runs fixed: as `plan` says (what `plan()` gave), or measured on loaded data."""
        return self

    def finish(self, params: Tensors) -> Any:
        """The ordinary object of its library (a module, an estimator) with these parameters."""
        return params

    def role(self, name: str) -> Role:
        """The role of one tensor."""
        return self.roles().get(name, Role.TRAINABLE)

    def named(self, params: Tensors, *roles: Role) -> Tensors:
        """Those of `params` that have one of these roles."""
        given = self.roles()
        return Tensors({name: params[name] for name in params if given.get(name, Role.TRAINABLE) in roles})


def value(metrics: Metrics) -> dict[str, float]:
    """Metrics as numbers: numerator over denominator, NaN where nothing was seen."""
    return {name: top / bottom if bottom else math.nan for name, (top, bottom) in metrics.items()}
