"""A Keras 3 model on its PyTorch or JAX backend.

Keras chooses its backend when it is first imported, by the environment variable KERAS_BACKEND. Where that is not set,
this module sets it to a backend that is installed: torch, else jax. TensorFlow is refused.
"""

import importlib.util
import os
import random
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from hansa.adapters.descent import Arrays, Descent, check_terms
from hansa.adapters.measure import bounds
from hansa.adapters.roles import assign, patterns
from hansa.core.errors import ConfigError, MissingExtra
from hansa.core.model import Fit, LocalWork, Metrics, Model, Role
from hansa.core.tensors import EMPTY, Shapes, Tensors, mismatch


def _installed(library: str) -> bool:
    try:
        return importlib.util.find_spec(library) is not None
    except ModuleNotFoundError:
        return False


if not _installed("keras"):
    raise MissingExtra("KerasModel", "keras", "keras")
if "keras" not in sys.modules and "KERAS_BACKEND" not in os.environ:
    os.environ["KERAS_BACKEND"] = "torch" if _installed("torch") else "jax"
if "keras" not in sys.modules and os.environ["KERAS_BACKEND"] not in ("torch", "jax"):
    raise ConfigError(
        f"KERAS_BACKEND={os.environ['KERAS_BACKEND']}: set it to 'torch' or 'jax' before Keras is imported."
    )

import keras  # noqa: E402  (its backend is chosen above)

BACKEND = keras.backend.backend()
if BACKEND not in ("torch", "jax"):
    raise ConfigError(f"Keras runs on {BACKEND}: set KERAS_BACKEND to 'torch' or 'jax' before it is imported.")

EVALUATION_BATCH = 512  # examples at a time; decides memory, and nothing else
_LOCK = threading.RLock()
_TRAINED = (Role.TRAINABLE, Role.PRIVATE)
_CLASSES = ("sparse_categorical_crossentropy",)
_BINARY = ("binary_crossentropy",)


@dataclass(frozen=True)
class KerasModel(Model):
    """A Keras model and its loss.

    Args:
      build: a callable that returns a new, built `keras.Model` (give its first layer an `Input`).
      loss: a loss that Keras knows by name, as `sparse_categorical_crossentropy`, or (targets, outputs) -> loss, in
        Keras's order of arguments. Losses that layers add (regularisers) are added.
      private: names or patterns (`*/head/*`) of tensors that never leave the worker.
      frozen: names or patterns of tensors that are not trained; layers with `trainable=False` are frozen anyway.

    Guarantees:
      Tensors are named by Keras's paths, with automatic counters renumbered from the start, so that a model built twice
      has the same names. Randomness of initialisers and dropout comes from the seed and rng given. Statistics of batch
      norm are buffers.
    """

    build: Callable[[], Any]
    loss: Any
    private: Sequence[str] = field(default=(), kw_only=True)
    frozen: Sequence[str] = field(default=(), kw_only=True)

    def __post_init__(self) -> None:
        if not callable(self.build) or isinstance(self.build, keras.Model):
            raise ConfigError("build: give a callable that returns a new keras.Model, not a model.")
        if isinstance(self.loss, keras.losses.Loss) or not (isinstance(self.loss, str) or callable(self.loss)):
            raise ConfigError(f"loss={self.loss}: give its name, as 'mean_squared_error', or a function.")
        for name in ("private", "frozen"):
            object.__setattr__(self, name, patterns(getattr(self, name), name))
        try:
            keras.losses.get(self.loss)
        except ValueError:
            raise ConfigError(f"loss='{self.loss}': Keras knows no loss of this name.") from None
        kind = getattr(keras.losses.get(self.loss), "__name__", "")
        object.__setattr__(self, "_kind", kind)
        object.__setattr__(self, "metrics", bounds({}, kind in (*_CLASSES, *_BINARY)))

    # -- what there is

    def init(self, seed: int) -> Tensors:
        """The weights of a new model that was built with this seed."""
        with _LOCK:
            return _Kept(self._build(seed)).copy()

    def shapes(self) -> Shapes:
        """Names, shapes and dtypes, from one model that is built once."""
        return self._kept.copy().shapes

    def roles(self) -> Mapping[str, Role]:
        """By Keras's `trainable`, and by `private` and `frozen`."""
        return self._roles

    def plan(self) -> str:
        """The backend."""
        return f"keras loop, {BACKEND}"

    def finish(self, params: Tensors) -> Any:
        """A new `keras.Model` with these weights."""
        with _LOCK:
            kept = _Kept(self._build(0))
        kept.load(params)
        return kept.model

    @cached_property
    def _kept(self) -> "_Kept":
        with _LOCK:
            return _Kept(self._build(0))

    @cached_property
    def _roles(self) -> Mapping[str, Role]:
        kept = _Kept(self._build(0))
        before = {name: variable.trainable for name, variable in kept.weights.items()}
        kept.model.trainable = True  # what does not follow is no parameter, but a statistic
        own = {}
        for name, variable in kept.weights.items():
            if not variable.trainable:
                own[name] = Role.BUFFER if "float" in str(variable.dtype) else Role.FROZEN
            else:
                own[name] = Role.TRAINABLE if before[name] else Role.FROZEN
        return assign(own, self.private, self.frozen)

    def _build(self, seed: int) -> Any:
        with _python_random(seed), _backend_random(seed):
            model = self.build()
        if not isinstance(model, keras.Model) or not model.built:
            raise ConfigError(f"build gave {type(model).__name__}, not built: begin it with keras.Input(shape=...).")
        return model

    # -- training

    def fit(self, params: Tensors, data: Any, work: LocalWork, rng: np.random.Generator) -> Fit:
        """The batches of `work`, one gradient each."""
        batches = work.batches(len(data), rng)
        seed = int(rng.integers(2**31))
        with _LOCK, _backend_random(seed):
            kept = self._kept
            kept.load(params, seed)
            names = [name for name in kept.weights if self.role(name) in _TRAINED]
            check_terms(work, {name: tuple(kept.weights[name].shape) for name in names})
            gradient = _Torch(self, kept, names) if BACKEND == "torch" else _Jax(self, kept, names)
            weights = gradient.weights()
            terms = [{n: _tensor(term[n], "float32") for n in term} for term in (work.correction, work.mask)]
            sent = {name: w for name, w in weights.items() if self.role(name) != Role.PRIVATE}
            descent = Descent(work.with_(correction=EMPTY, mask=EMPTY), sent, *terms)
            moments = descent.begin(weights)
            sums, seen = dict.fromkeys(self.metrics, 0.0), 0
            x, y = np.asarray(data["x"]), np.asarray(data["y"])
            for count, rows in enumerate(batches, start=1):
                loss, outputs, grads = gradient(weights, _tensor(x[rows]), _tensor(y[rows]))
                weights, moments = descent.step(weights, grads, moments, count)
                seen += len(rows)
                for name, amount in self._sums(loss, outputs, y[rows]).items():
                    sums[name] += amount
            gradient.write(weights)
            metrics = {name: (total, float(seen)) for name, total in sums.items()}
            return Fit(kept.copy(), len(batches), metrics)

    def evaluate(self, params: Tensors, data: Any) -> Metrics:
        """Sums over all examples of loss and correct answers."""
        with _LOCK:
            kept = self._kept
            kept.load(params)
            x, y = np.asarray(data["x"]), np.asarray(data["y"])
            sums = dict.fromkeys(self.metrics, 0.0)
            for at in range(0, len(x), EVALUATION_BATCH):
                part = slice(at, at + EVALUATION_BATCH)
                with _no_gradient():
                    outputs = kept.model(_tensor(x[part]), training=False)
                    loss = self.value(outputs, _tensor(y[part]), kept.model.losses)
                for name, amount in self._sums(loss, outputs, y[part]).items():
                    sums[name] += amount
            return {name: (total, float(len(x))) for name, total in sums.items()}

    def value(self, outputs: Any, targets: Any, added: Sequence[Any]) -> Any:
        """The loss of a batch: the mean over it, and what layers add."""
        loss = keras.ops.mean(keras.losses.get(self.loss)(targets, outputs))
        for one in added:
            loss = loss + one
        return loss

    def _sums(self, loss: Any, outputs: Any, targets: np.ndarray) -> dict[str, float]:
        sums = {"loss": float(_numpy(loss)) * len(targets)}
        if "accuracy" in self.metrics:
            guess = _numpy(outputs)
            flat = targets.reshape(len(targets))
            kind = self.__dict__["_kind"]
            hits = guess.argmax(axis=1) == flat if kind in _CLASSES else (guess.reshape(-1) > 0.5) == (flat > 0.5)
            sums["accuracy"] = float(hits.sum())
        return sums


class _Kept:
    """A model and its weights by stable names."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.weights = dict(zip(stable([v.path for v in model.weights]), model.weights, strict=True))
        known = {id(variable) for variable in model.weights}
        self._seeds = [variable for variable in model.variables if id(variable) not in known]

    def load(self, params: Tensors, seed: int = 0) -> None:
        mismatch(self.copy().shapes, params.shapes, "the parameters")
        for name, variable in self.weights.items():
            variable.assign(np.array(params[name]))
        drawn = np.random.default_rng(seed)
        for variable in self._seeds:  # states of dropout's generators
            variable.assign(drawn.integers(2**31, size=tuple(variable.shape)).astype(str(variable.dtype)))

    def copy(self) -> Tensors:
        return Tensors({name: np.array(_numpy(variable.value)) for name, variable in self.weights.items()})


class _Torch:
    """Gradients on the PyTorch backend."""

    def __init__(self, model: KerasModel, kept: _Kept, names: Sequence[str]) -> None:
        self._model, self._kept, self._names = model, kept, names

    def weights(self) -> Arrays:
        return {name: self._kept.weights[name].value.detach().clone() for name in self._names}

    def __call__(self, weights: Arrays, x: Any, y: Any) -> tuple[Any, Any, Arrays]:
        import torch

        self.write(weights)
        leaves = [self._kept.weights[name].value for name in self._names]
        for leaf in leaves:
            leaf.requires_grad_(True)
        outputs = self._kept.model(x, training=True)
        loss = self._model.value(outputs, y, self._kept.model.losses)
        grads = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
        return loss.detach(), outputs.detach(), dict(zip(self._names, grads, strict=True))

    def write(self, weights: Arrays) -> None:
        import torch

        with torch.no_grad():
            for name, array in weights.items():
                self._kept.weights[name].value.copy_(array)


class _Jax:
    """Gradients on the JAX backend, compiled, by Keras's stateless call."""

    def __init__(self, model: KerasModel, kept: _Kept, names: Sequence[str]) -> None:
        self._kept, self._names = kept, names
        by_id = {id(variable): name for name, variable in kept.weights.items()}
        self._parameters = [by_id[id(v)] for v in kept.model.trainable_variables]
        self._state = [v.value for v in kept.model.non_trainable_variables]
        self._fixed = {name: kept.weights[name].value for name in self._parameters if name not in names}
        cache = kept.__dict__.setdefault("compiled", {})
        if "step" not in cache:
            cache["step"] = self._compiled(model)
        self._step = cache["step"]

    def _compiled(self, model: KerasModel) -> Any:
        import jax

        order, keras_model = self._parameters, self._kept.model

        def loss_of(weights: Any, fixed: Any, state: Any, x: Any, y: Any) -> Any:
            every = {**fixed, **weights}
            outputs, after, added = keras_model.stateless_call(
                [every[name] for name in order], state, x, training=True, return_losses=True
            )
            return model.value(outputs, y, added), (outputs, after)

        return jax.jit(jax.value_and_grad(loss_of, has_aux=True))

    def weights(self) -> Arrays:
        return {name: self._kept.weights[name].value for name in self._names}

    def __call__(self, weights: Arrays, x: Any, y: Any) -> tuple[Any, Any, Arrays]:
        (loss, (outputs, self._state)), grads = self._step(weights, self._fixed, self._state, x, y)
        return loss, outputs, grads

    def write(self, weights: Arrays) -> None:
        for name, array in weights.items():
            self._kept.weights[name].assign(array)
        for variable, array in zip(self._kept.model.non_trainable_variables, self._state, strict=True):
            variable.assign(array)


def stable(paths: Sequence[str]) -> list[str]:
    """Paths with Keras's automatic counters renumbered in the order of their appearance.

    >>> stable(["sequential_3/dense_7/kernel", "sequential_3/dense_7/bias", "sequential_3/dense_9/bias"])
    ['sequential/dense/kernel', 'sequential/dense/bias', 'sequential/dense_1/bias']
    """
    given: dict[str, str] = {}
    counts: dict[str, int] = {}
    renamed = []
    for path in paths:
        *scopes, last = path.split("/")
        for scope in scopes:
            if scope not in given:
                base = re.sub(r"_\d+$", "", scope)
                number = counts.get(base, 0)
                counts[base] = number + 1
                given[scope] = f"{base}_{number}" if number else base
        renamed.append("/".join([*(given[scope] for scope in scopes), last]))
    if len(set(renamed)) < len(renamed):
        raise ConfigError("two weights of the Keras model have one path: give its layers names of their own.")
    return renamed


def _tensor(array: Any, dtype: str | None = None) -> Any:
    array = np.asarray(array)
    kind = array.dtype.kind
    return keras.ops.convert_to_tensor(
        array, dtype or ("float32" if kind == "f" else "int32" if kind in "iu" else None)
    )


def _numpy(value: Any) -> np.ndarray:
    # keras.ops.convert_to_numpy of Keras 3.15 warns on torch tensors under NumPy 2.
    array: np.ndarray = np.asarray(value.detach().cpu().numpy() if BACKEND == "torch" else value)
    return array


@contextmanager
def _python_random(seed: int) -> Iterator[None]:
    """Keras draws the seeds of initialisers and dropout from Python's `random`: seeded inside, as before outside."""
    before = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(before)


@contextmanager
def _backend_random(seed: int) -> Iterator[None]:
    """Keras's dropout on PyTorch draws from PyTorch's global generator: seeded inside, as before outside."""
    if BACKEND != "torch":
        yield
        return
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        yield


@contextmanager
def _no_gradient() -> Iterator[None]:
    if BACKEND != "torch":
        yield
        return
    import torch

    with torch.no_grad():
        yield
