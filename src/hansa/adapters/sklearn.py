"""Estimators of scikit-learn that learn by `partial_fit`: linear ones and multi-layer perceptrons.

A step of `LocalWork` is one call of `partial_fit` with the rows of one batch. Linear estimators go through those rows
one by one (scikit-learn's own stochastic descent); perceptrons of several layers take one gradient of the whole batch.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from hansa.core.errors import ConfigError, DataError, MissingExtra
from hansa.core.model import Fit, LocalWork, Metrics, Model
from hansa.core.tensors import Shapes, Tensors, mismatch

try:
    from sklearn.base import is_classifier
except ModuleNotFoundError as error:
    raise MissingExtra("SklearnModel", "scikit-learn", "sklearn") from error

_LOG = 1e-15  # smallest probability in the logarithmic loss, as scikit-learn's own


@dataclass(frozen=True)
class SklearnModel(Model):
    """A `partial_fit` estimator as a model.

    Args:
      estimator: a callable that returns a fresh estimator: a class, or `functools.partial(SGDClassifier,
        loss="log_loss")`, so that a job can carry it.
      features: numbers in one example; with `classes` it gives all shapes before any data.
      classes: of a classifier: their number, for targets 0 … classes − 1.

    Guarantees:
      Linear estimators start at zero, perceptrons of several layers as scikit-learn starts them, from the seed.
      Metrics are accuracy for classifiers, with the logarithmic loss where there are probabilities, and the squared
      error for regressors.

    Raises:
      ConfigError: the estimator has no `partial_fit`, or no coefficients that could be averaged.

    | estimator | what `LocalWork` can ask beyond lr, epochs, steps, batch_size, shuffle |
    |---|---|
    | SGDClassifier, SGDRegressor, Perceptron | nothing; penalties are the estimator's own `penalty`, `alpha` |
    | MLPClassifier, MLPRegressor | momentum, adam with its betas and eps; penalty is the estimator's own `alpha` |
    | PassiveAggressive… | nothing, and `lr` is not used: they find their own step |
    """

    estimator: Callable[[], Any]
    features: int
    classes: int | None = None

    def __post_init__(self) -> None:
        fresh = self._fresh()
        if not hasattr(fresh, "partial_fit"):
            raise ConfigError(f"{type(fresh).__name__} has no partial_fit: choose one that has, as SGDClassifier.")
        if is_classifier(fresh) != (self.classes is not None):
            raise ConfigError(f"classes={self.classes}: give their number for a classifier, and none for a regressor.")
        if self.features < 1 or (self.classes is not None and self.classes < 2):
            raise ConfigError(f"features={self.features}, classes={self.classes}: at least 1 and 2 are needed.")
        metrics = {"loss": float("inf")} if self.classes is None or hasattr(fresh, "predict_proba") else {}
        if self.classes is not None:
            metrics["accuracy"] = 1.0
        object.__setattr__(self, "metrics", metrics)
        _coefficients(self._shaped())

    def init(self, seed: int) -> Tensors:
        """Zeros, or for perceptrons of several layers Glorot's uniform draw."""
        rng = np.random.default_rng(seed)
        drawn = {}
        activation = getattr(self._fresh(), "activation", None)
        for name, (shape, dtype) in self.shapes().items():
            drawn[name] = np.zeros(shape, dtype)
            if activation is not None:
                fans = self.shapes()[name.replace("intercepts", "coefs")][0]
                bound = np.sqrt((2.0 if activation == "logistic" else 6.0) / sum(fans))
                drawn[name] = rng.uniform(-bound, bound, shape).astype(dtype)
        return Tensors(drawn)

    def shapes(self) -> Shapes:
        """`coef` and `intercept`, or `coefs.i` and `intercepts.i` of each layer."""
        return self._shapes

    @cached_property
    def _shapes(self) -> Shapes:
        return Tensors(_coefficients(self._shaped())).shapes

    def fit(self, params: Tensors, data: Any, work: LocalWork, rng: np.random.Generator) -> Fit:
        """`partial_fit` on each batch of `work`.

        Raises:
          ConfigError: `work` asks for what the estimator cannot do.
        """
        x, y = self._columns(data)
        batches = work.batches(len(x), rng)
        estimator = self._working(work, int(rng.integers(2**31)))
        self._put(estimator, params)
        known = {} if self.classes is None else {"classes": np.arange(self.classes)}
        for rows in batches:
            if hasattr(estimator, "batch_size"):
                estimator.batch_size = len(rows)
            # scikit-learn wants `classes` at the first call alone, but takes the same ones at each.
            estimator.partial_fit(x[rows], y[rows], **known)
        return Fit(Tensors(_coefficients(estimator)), len(batches), self._measure(estimator, x, y))

    def evaluate(self, params: Tensors, data: Any) -> Metrics:
        """Accuracy and logarithmic loss, or squared error, as sums over the examples."""
        return self._measure(self.finish(params), *self._columns(data))

    def finish(self, params: Tensors) -> Any:
        """The estimator, fitted: `predict` works, and `partial_fit` goes on from here."""
        estimator = self._shaped()
        self._put(estimator, params)
        return estimator

    # -- the estimator

    def _fresh(self) -> Any:
        estimator = self.estimator() if callable(self.estimator) else None
        if not hasattr(estimator, "get_params"):
            raise ConfigError("estimator: give a callable that returns a fresh estimator, as the class SGDClassifier.")
        return estimator

    def _shaped(self) -> Any:
        """A fresh estimator with all its attributes, from one call on zeros."""
        estimator = self._fresh()
        if "random_state" in estimator.get_params():
            estimator.set_params(random_state=0)
        return self._touched(estimator)

    def _touched(self, estimator: Any) -> Any:
        count = self.classes or 1
        known = {} if self.classes is None else {"classes": np.arange(count)}
        target = np.arange(count) if self.classes else np.zeros(1)
        # Settings that suit this one call; the estimator's own come back after it.
        once = {"batch_size": "auto", "learning_rate": "constant", "eta0": 1.0, "early_stopping": False}
        own = {name: setting for name, setting in estimator.get_params().items() if name in once}
        once = {name: once[name] for name in own}
        estimator.set_params(**once)
        estimator.partial_fit(np.zeros((count, self.features)), target, **known)
        estimator.set_params(**own)
        estimator.t_ = 1.0 if hasattr(estimator, "coef_") else 0
        if hasattr(estimator, "_optimizer"):
            del estimator._optimizer  # made anew for the coefficients that are put in its place
        return estimator

    def _put(self, estimator: Any, params: Tensors) -> None:
        mismatch(self.shapes(), params.shapes, "the parameters")
        for name, array in _coefficients(estimator).items():
            array[...] = params[name]

    def _working(self, work: LocalWork, seed: int) -> Any:
        estimator = self._fresh()
        settings = inspect.signature(type(estimator)).parameters
        layered = "hidden_layer_sizes" in settings
        asked = {
            "proximal": work.proximal,
            "correction": len(work.correction),
            "mask": len(work.mask),
            "weight_decay": work.weight_decay,
            "momentum": work.momentum and not layered,
            "optimiser='adam'": work.optimiser == "adam" and not layered,
        }
        for what, amount in asked.items():
            if amount:
                raise ConfigError(
                    f"{type(estimator).__name__} cannot do {what}, which the LocalWork asks: "
                    "leave it out (penalties are the estimator's own), or use LogisticModel or TorchModel."
                )
        wanted: dict[str, Any] = {"random_state": np.random.RandomState(seed)}
        if layered:
            wanted |= {"learning_rate_init": work.lr, "learning_rate": "constant", "solver": work.optimiser}
            wanted |= {"momentum": work.momentum, "nesterovs_momentum": False}
            wanted |= {"beta_1": work.betas[0], "beta_2": work.betas[1], "epsilon": work.eps, "shuffle": work.shuffle}
            wanted["early_stopping"] = False
        elif "eta0" in settings:
            wanted |= {"eta0": work.lr, "shuffle": work.shuffle}
            wanted |= {"learning_rate": "constant"} if "learning_rate" in settings else {}
        else:
            wanted["shuffle"] = work.shuffle
        return self._touched(estimator.set_params(**wanted))

    # -- data and measures

    def _columns(self, data: Any) -> tuple[np.ndarray, np.ndarray]:
        x, y = np.asarray(data["x"]), np.asarray(data["y"])
        x = x.reshape(len(x), -1) if len(x) else x.reshape(0, self.features)
        if x.shape[1] != self.features:
            raise DataError(f"an example of 'x' has {x.shape[1]} numbers, but features={self.features}.")
        if self.classes is not None:
            if y.dtype.kind not in "iub" or (len(y) and not 0 <= y.min() <= y.max() < self.classes):
                raise DataError(f"'y' must hold integer classes 0 to {self.classes - 1} (it is {y.dtype}).")
        elif y.ndim == 2 and y.shape[1] == 1:
            y = y[:, 0]
        return x, y

    def _measure(self, estimator: Any, x: np.ndarray, y: np.ndarray) -> Metrics:
        if not len(x):
            return {}
        size, found = float(len(x)), {}
        guess = estimator.predict(x)
        if self.classes is None:
            return {"loss": (float(np.square(guess - y).sum()), size)}
        if "loss" in self.metrics:
            chance = estimator.predict_proba(x)[np.arange(len(y)), y]
            found["loss"] = (float(-np.log(np.clip(chance, _LOG, 1)).sum()), size)
        return {**found, "accuracy": (float((guess == y).sum()), size)}


def _coefficients(estimator: Any) -> Mapping[str, np.ndarray]:
    """The arrays inside, by name; writing into them changes the estimator."""
    if hasattr(estimator, "coef_") and hasattr(estimator, "intercept_"):
        return {"coef": estimator.coef_, "intercept": estimator.intercept_}
    if hasattr(estimator, "coefs_"):
        layers = enumerate(zip(estimator.coefs_, estimator.intercepts_, strict=True))
        pairs = ({f"coefs.{i}": coef, f"intercepts.{i}": intercept} for i, (coef, intercept) in layers)
        return functools.reduce(lambda one, more: one | more, pairs)
    raise ConfigError(
        f"{type(estimator).__name__} has no coefficients to average (naive Bayes keeps counts, not weights): "
        "override Model.fit, as examples/custom_pandas.py does."
    )
