"""Linear, logistic and multi-layer models with forward and backward by hand: the reference for every other adapter.

Names, shapes and losses are those of PyTorch's `nn.Linear`, `nn.Sequential(Linear, ReLU, …)`, `F.mse_loss` and
`F.cross_entropy`, so that a NumPy worker's tensors load into the PyTorch twin and the other way round.
"""

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hansa.adapters.descent import Arrays, Descent, check_terms
from hansa.core.errors import ConfigError, DataError
from hansa.core.model import Fit, LocalWork, Metrics, Model
from hansa.core.tensors import Shapes, Tensors

EVALUATION_BATCH = 1024  # examples at a time; decides memory, and nothing else


class ByHand(Model):
    """A model whose loss and gradient are written out; `fit` and `evaluate` follow from them.

    A subclass gives `forward` and `backward`. Data is a `Dataset` with columns `x` and `y`; `x` is flattened.
    """

    dtype: str

    @abstractmethod
    def forward(self, params: Mapping[str, np.ndarray], x: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        """Outputs, and what `backward` needs to remember. `x` has shape (examples, inputs)."""

    @abstractmethod
    def backward(self, params: Mapping[str, np.ndarray], memory: list[np.ndarray], pull: np.ndarray) -> Arrays:
        """Gradients of all parameters from `pull`, the gradient of the outputs."""

    @abstractmethod
    def loss(self, outputs: np.ndarray, y: np.ndarray) -> tuple[float, np.ndarray, dict[str, float]]:
        """Mean loss of a batch, its gradient by the outputs, and sums over the batch of further metrics."""

    @abstractmethod
    def targets(self, data: Any) -> np.ndarray:
        """The targets, checked."""

    def fit(self, params: Tensors, data: Any, work: LocalWork, rng: np.random.Generator) -> Fit:
        """Plain descent, step by step, in the order that `work.batches` gives."""
        x, y = self._inputs(data), self.targets(data)
        check_terms(work, {name: shape for name, (shape, _) in params.shapes.items()})
        w: Arrays = {name: np.asarray(params[name], self.dtype) for name in params}
        descent = Descent(work, dict(w), _cast(work.correction, self.dtype), _cast(work.mask, self.dtype))
        moments = descent.begin(w)
        sums: dict[str, float] = dict.fromkeys(self.metrics, 0.0)
        seen, batches = 0, work.batches(len(x), rng)
        for count, rows in enumerate(batches, start=1):
            outputs, memory = self.forward(w, x[rows])
            loss, pull, more = self.loss(outputs, y[rows])
            w, moments = descent.step(w, self.backward(w, memory, pull), moments, count)
            for name, amount in {"loss": loss * len(rows), **more}.items():
                sums[name] += amount
            seen += len(rows)
        return Fit(Tensors(_cast(w, self.dtype)), len(batches), {name: (sums[name], float(seen)) for name in sums})

    def evaluate(self, params: Tensors, data: Any) -> Metrics:
        """Sums of loss and of correct answers, each over the number of examples."""
        x, y = self._inputs(data), self.targets(data)
        w: Arrays = {name: np.asarray(params[name], self.dtype) for name in params}
        sums: dict[str, float] = dict.fromkeys(self.metrics, 0.0)
        for at in range(0, len(x), EVALUATION_BATCH):
            rows = slice(at, at + EVALUATION_BATCH)
            outputs, _ = self.forward(w, x[rows])
            loss, _, more = self.loss(outputs, y[rows])
            for name, amount in {"loss": loss * len(outputs), **more}.items():
                sums[name] += amount
        return {name: (sums[name], float(len(x))) for name in sums}

    def _inputs(self, data: Any) -> np.ndarray:
        wanted = self._width()
        x = np.asarray(data["x"], self.dtype)
        x = x.reshape(len(x), -1) if len(x) else x.reshape(0, wanted)
        if x.shape[1] != wanted:
            raise DataError(f"an example of 'x' has {x.shape[1]} numbers, but {type(self).__name__} takes {wanted}.")
        return x

    @abstractmethod
    def _width(self) -> int: ...


class _Classifier(ByHand):
    """Softmax cross-entropy over classes 0 … n−1."""

    metrics: Mapping[str, float] = {"loss": math.inf, "accuracy": 1.0}

    def loss(self, outputs: np.ndarray, y: np.ndarray) -> tuple[float, np.ndarray, dict[str, float]]:
        shifted = outputs - outputs.max(axis=1, keepdims=True)
        log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        pull = np.exp(log_p)
        every = np.arange(len(y))
        pull[every, y] -= 1
        correct = float((outputs.argmax(axis=1) == y).sum())
        return float(-log_p[every, y].mean()), pull / len(y), {"accuracy": correct}

    def targets(self, data: Any) -> np.ndarray:
        y = np.asarray(data["y"])
        if y.dtype.kind not in "iub" or y.ndim != 1:
            raise DataError(f"'y' is {y.dtype}{list(y.shape)}: give one integer class for each example.")
        y = y.astype(np.int64)
        if len(y) and not 0 <= y.min() <= y.max() < self._classes():
            raise DataError(f"'y' has classes {y.min()} to {y.max()}, but the model knows 0 to {self._classes() - 1}.")
        return y

    @abstractmethod
    def _classes(self) -> int: ...


@dataclass(frozen=True)
class LinearModel(ByHand):
    """Linear regression with the mean squared error, starting at zero.

    Args:
      inputs: numbers in one example.
      outputs: numbers to predict; with 1 the targets may have shape (examples,).
      dtype: of all parameters: float32 or float64.

    >>> LinearModel(2).init(seed=0)
    Tensors(bias: float32[1], weight: float32[1, 2])
    """

    inputs: int
    outputs: int = 1
    dtype: str = field(default="float32", kw_only=True)

    def __post_init__(self) -> None:
        _check(self, inputs=self.inputs, outputs=self.outputs)

    def init(self, seed: int) -> Tensors:
        """Zeros."""
        return Tensors({name: np.zeros(shape, dtype) for name, (shape, dtype) in self.shapes().items()})

    def shapes(self) -> Shapes:
        """`weight` (outputs, inputs) and `bias` (outputs,)."""
        return {"bias": ((self.outputs,), self.dtype), "weight": ((self.outputs, self.inputs), self.dtype)}

    def forward(self, params: Mapping[str, np.ndarray], x: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        """The product x Wᵀ + b."""
        return x @ params["weight"].T + params["bias"], [x]

    def backward(self, params: Mapping[str, np.ndarray], memory: list[np.ndarray], pull: np.ndarray) -> Arrays:
        """Gradients of weight and bias."""
        return {"weight": pull.T @ memory[0], "bias": pull.sum(axis=0)}

    def loss(self, outputs: np.ndarray, y: np.ndarray) -> tuple[float, np.ndarray, dict[str, float]]:
        """The mean over examples and outputs of the squared error."""
        error = outputs - y
        return float((error * error).mean()), 2 * error / error.size, {}

    def targets(self, data: Any) -> np.ndarray:
        """Shape (examples, outputs)."""
        y = np.asarray(data["y"], self.dtype)
        if y.shape[1:] not in ((self.outputs,), () if self.outputs == 1 else (self.outputs,)):
            raise DataError(f"'y' has shape {y.shape}: give {self.outputs} number(s) for each example.")
        return y.reshape(len(y), self.outputs)

    def _width(self) -> int:
        return self.inputs


@dataclass(frozen=True)
class LogisticModel(_Classifier):
    """Logistic regression over any number of classes (softmax), starting at zero.

    Args:
      inputs: numbers in one example.
      classes: how many; targets are integers 0 … classes − 1.
      dtype: of all parameters: float32 or float64.

    >>> LogisticModel(4, classes=3).init(seed=0)
    Tensors(bias: float32[3], weight: float32[3, 4])
    """

    inputs: int
    classes: int
    dtype: str = field(default="float32", kw_only=True)

    def __post_init__(self) -> None:
        _check(self, inputs=self.inputs, classes=self.classes)

    def init(self, seed: int) -> Tensors:
        """Zeros."""
        return Tensors({name: np.zeros(shape, dtype) for name, (shape, dtype) in self.shapes().items()})

    def shapes(self) -> Shapes:
        """`weight` (classes, inputs) and `bias` (classes,)."""
        return {"bias": ((self.classes,), self.dtype), "weight": ((self.classes, self.inputs), self.dtype)}

    def forward(self, params: Mapping[str, np.ndarray], x: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        """Logits."""
        return x @ params["weight"].T + params["bias"], [x]

    def backward(self, params: Mapping[str, np.ndarray], memory: list[np.ndarray], pull: np.ndarray) -> Arrays:
        """Gradients of weight and bias."""
        return {"weight": pull.T @ memory[0], "bias": pull.sum(axis=0)}

    def _width(self) -> int:
        return self.inputs

    def _classes(self) -> int:
        return self.classes


@dataclass(frozen=True)
class MLPModel(_Classifier):
    """A classifier of dense layers with ReLU between them; the default is McMahan's "2NN" for MNIST.

    Args:
      layers: numbers in one example, units of each hidden layer, classes.
      dtype: of all parameters: float32 or float64.

    Guarantees:
      Names and shapes are those of `nn.Sequential(Linear, ReLU, Linear, …)`: `0.weight`, `0.bias`, `2.weight`, …

    >>> MLPModel().init(seed=0).count
    199210
    """

    layers: tuple[int, ...] = (784, 200, 200, 10)
    dtype: str = field(default="float32", kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.layers))
        if len(self.layers) < 2:
            raise ConfigError(f"layers={self.layers}: give at least inputs and classes, as in (784, 200, 10).")
        _check(self, layers=min(self.layers))

    def init(self, seed: int) -> Tensors:
        """Uniform in ±1/√inputs of each layer, as PyTorch's Linear."""
        rng = np.random.default_rng(seed)
        drawn = {}
        for name, (shape, dtype) in self.shapes().items():
            bound = 1 / math.sqrt(self.layers[int(name.split(".")[0]) // 2])
            drawn[name] = rng.uniform(-bound, bound, shape).astype(dtype)
        return Tensors(drawn)

    def shapes(self) -> Shapes:
        """Layer i is `2i.weight` (units, inputs) and `2i.bias` (units,)."""
        shapes: dict[str, tuple[tuple[int, ...], str]] = {}
        for i, (width, units) in enumerate(zip(self.layers, self.layers[1:], strict=False)):
            shapes[f"{2 * i}.bias"] = ((units,), self.dtype)
            shapes[f"{2 * i}.weight"] = ((units, width), self.dtype)
        return shapes

    def forward(self, params: Mapping[str, np.ndarray], x: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        """Logits, and the input of each layer."""
        memory, last = [x], len(self.layers) - 2
        for i in range(last + 1):
            x = x @ params[f"{2 * i}.weight"].T + params[f"{2 * i}.bias"]
            if i < last:
                x = np.maximum(x, 0)
                memory.append(x)
        return x, memory

    def backward(self, params: Mapping[str, np.ndarray], memory: list[np.ndarray], pull: np.ndarray) -> Arrays:
        """Gradients of all layers, from the last to the first."""
        grads: Arrays = {}
        for i in reversed(range(len(self.layers) - 1)):
            grads[f"{2 * i}.weight"], grads[f"{2 * i}.bias"] = pull.T @ memory[i], pull.sum(axis=0)
            if i:
                pull = (pull @ params[f"{2 * i}.weight"]) * (memory[i] > 0)
        return grads

    def _width(self) -> int:
        return self.layers[0]

    def _classes(self) -> int:
        return self.layers[-1]


def _check(model: Any, **sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ConfigError(f"{name}={size}: at least 1 is needed.")
    if model.dtype not in ("float32", "float64"):
        raise ConfigError(f"dtype='{model.dtype}': choose 'float32' or 'float64'.")


def _cast(arrays: Mapping[str, Any], dtype: str) -> Arrays:
    return {name: np.asarray(arrays[name], dtype) for name in arrays}
