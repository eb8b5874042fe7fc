"""A pure JAX function as a model: whole passes compiled, one program for clients of similar size.

Batches of equal size run in one compiled loop; a smaller last batch is a loop of its own. Rows are padded to the next
power of two, so that clients of many sizes share few programs; padding is never read.
"""

import functools
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from typing import Any

import numpy as np

from hansa.adapters.descent import Descent, check_terms
from hansa.adapters.measure import Measures, bounds
from hansa.adapters.roles import assign, patterns
from hansa.core.errors import ConfigError, DataError, MissingExtra
from hansa.core.model import Fit, LocalWork, Metrics, Model, Role
from hansa.core.tensors import EMPTY, Shapes, Tensors, mismatch

try:
    import jax
except ModuleNotFoundError as error:
    raise MissingExtra("JaxModel", "jax", "jax") from error

import jax.numpy as jnp

EVALUATION_BATCH = 512  # examples at a time; decides memory, and nothing else
_TRAINED = (Role.TRAINABLE, Role.PRIVATE)


def cross_entropy(outputs: Any, targets: Any) -> Any:
    """Mean softmax cross-entropy of logits (examples, classes) and integer classes (examples,)."""
    chosen = jnp.take_along_axis(jax.nn.log_softmax(outputs), targets[:, None], axis=1)
    return -chosen.mean()


def squared_error(outputs: Any, targets: Any) -> Any:
    """Mean squared error of two arrays of one shape."""
    if outputs.shape != targets.shape:
        raise ConfigError(f"outputs have shape {outputs.shape}, targets {targets.shape}: give them one shape.")
    return jnp.square(outputs - targets).mean()


@dataclass(frozen=True)
class JaxModel(Model):
    """A pytree of parameters, a pure function and a loss.

    Args:
      make: key -> pytree of parameters; leaves become float32.
      apply: (params, x) -> outputs; or (params, x, key) -> outputs, where key is None in evaluation (dropout).
      loss: (outputs, targets) -> mean over the batch, as `cross_entropy` and `squared_error` of this module.
      measures: further metrics: name -> (callable (outputs, targets) -> one value for each example, largest value).
      private: names or patterns (`head.*`) of tensors that never leave the worker.
      frozen: names or patterns of tensors that are not trained.

    Guarantees:
      Tensors are named by their path in the pytree: `{"head": {"w": …}}` gives `head.w`. All steps of a visit run
      compiled; results are those of the plain formulas but for float rounding.

    >>> def make(key): return {"w": jax.random.normal(key, (2, 3)), "b": jnp.zeros(3)}
    >>> def apply(params, x): return x @ params["w"] + params["b"]
    >>> JaxModel(make, apply, cross_entropy).init(seed=0)
    Tensors(b: float32[3], w: float32[2, 3])
    """

    make: Callable[[Any], Any]
    apply: Callable[..., Any]
    loss: Callable[[Any, Any], Any]
    measures: Measures = field(default_factory=dict, kw_only=True, hash=False)
    private: Sequence[str] = field(default=(), kw_only=True)
    frozen: Sequence[str] = field(default=(), kw_only=True)

    def __post_init__(self) -> None:
        for name in ("make", "apply", "loss"):
            if not callable(getattr(self, name)):
                raise ConfigError(f"{name}={getattr(self, name)!r}: give a function.")
        for name in ("private", "frozen"):
            object.__setattr__(self, name, patterns(getattr(self, name), name))
        object.__setattr__(self, "metrics", bounds(self.measures, self.loss is cross_entropy))

    # -- what there is

    def init(self, seed: int) -> Tensors:
        """What `make` gives for the key of this seed."""
        return _flat(self.make(jax.random.key(seed % 2**32)))

    def shapes(self) -> Shapes:
        """Names and shapes, without making an array."""
        return self._facts[0]

    def roles(self) -> Mapping[str, Role]:
        """By `private` and `frozen`."""
        return self._facts[2]

    def plan(self) -> str:
        """The kind of device."""
        return f"jax loop, {jax.default_backend()}"

    def finish(self, params: Tensors) -> Any:
        """The pytree, as `apply` takes it."""
        mismatch(self.shapes(), params.shapes, "the parameters")
        return self._tree({name: jnp.asarray(params[name]) for name in params})

    @cached_property
    def _facts(self) -> tuple[Shapes, Any, Mapping[str, Role]]:
        tree = jax.eval_shape(self.make, jax.random.key(0))
        paths, structure = jax.tree_util.tree_flatten_with_path(tree)
        shapes = {_name(path): (tuple(leaf.shape), "float32") for path, leaf in paths}
        if len(shapes) < len(paths):
            raise ConfigError("two tensors of the pytree have one name: rename keys that contain dots.")
        order = [_name(path) for path, _ in paths]
        own = dict.fromkeys(order, Role.TRAINABLE)
        return dict(sorted(shapes.items())), (structure, order), assign(own, self.private, self.frozen)

    def _tree(self, flat: Mapping[str, Any]) -> Any:
        structure, order = self._facts[1]
        return jax.tree_util.tree_unflatten(structure, [flat[name] for name in order])

    # -- training

    def fit(self, params: Tensors, data: Any, work: LocalWork, rng: np.random.Generator) -> Fit:
        """The batches of `work`, in compiled loops."""
        mismatch(self.shapes(), params.shapes, "the parameters")
        batches = work.batches(len(data), rng)
        key = jax.random.key(int(rng.integers(2**32)))
        roles = self.roles()
        flat = {name: jnp.asarray(np.asarray(params[name], np.float32)) for name in params}
        trained = {name: w for name, w in flat.items() if roles.get(name, Role.TRAINABLE) in _TRAINED}
        still = {name: w for name, w in flat.items() if name not in trained}
        check_terms(work, {name: w.shape for name, w in trained.items()})
        sent = {name: w for name, w in trained.items() if roles.get(name) != Role.PRIVATE}
        correction, mask = (
            {name: jnp.asarray(np.asarray(term[name], np.float32)) for name in term}
            for term in (work.correction, work.mask)
        )
        plain = work.with_(correction=EMPTY, mask=EMPTY, epochs=None, steps=1)  # what decides the program
        moments = Descent(plain, {}, {}, {}).begin(trained)
        self._check_labels(flat, _narrow(data["x"]), _narrow(data["y"]))
        x, y = _padded(data["x"]), _padded(data["y"])
        sums: Any = {name: jnp.zeros(()) for name in self.metrics}
        done = seen = 0
        for size, rows in _runs(batches):
            seen += size * len(rows)
            trained, moments, sums = self._loop(
                plain, trained, moments, sums, still, sent, correction, mask, x, y, _padded(rows), len(rows), done, key
            )
            done += len(rows)
        found = {name: (float(total), float(seen)) for name, total in sums.items()}
        return Fit(Tensors({name: np.array(w) for name, w in {**trained, **still}.items()}), done, found)

    @cached_property
    def _loop(self) -> Any:
        @functools.partial(jax.jit, static_argnums=0)
        def loop(
            work: LocalWork,
            trained: Any,
            moments: Any,
            sums: Any,
            still: Any,
            sent: Any,
            correction: Any,
            mask: Any,
            x: Any,
            y: Any,
            rows: Any,
            steps: Any,
            done: Any,
            key: Any,
        ) -> Any:
            descent = Descent(work, sent, correction, mask)

            def step(i: Any, carry: Any) -> Any:
                trained, moments, sums = carry
                inputs, targets = x[rows[i]], y[rows[i]]

                def loss_of(trained: Any) -> Any:
                    outputs = self._outputs({**trained, **still}, inputs, jax.random.fold_in(key, done + i))
                    return self.loss(outputs, targets), outputs

                (loss, outputs), grads = jax.value_and_grad(loss_of, has_aux=True)(trained)
                trained, moments = descent.step(trained, grads, moments, (done + i + 1).astype(jnp.float32))
                more = self._sums(loss, outputs, targets)
                return trained, moments, {name: sums[name] + more[name] for name in sums}

            return jax.lax.fori_loop(0, steps, step, (trained, moments, sums))

        return loop

    @cached_property
    def _takes_key(self) -> bool:
        try:
            return len(inspect.signature(self.apply).parameters) > 2
        except (TypeError, ValueError):
            return False

    def _outputs(self, flat: Mapping[str, Any], x: Any, key: Any) -> Any:
        return self.apply(self._tree(flat), x, key) if self._takes_key else self.apply(self._tree(flat), x)

    def _sums(self, loss: Any, outputs: Any, targets: Any) -> dict[str, Any]:
        sums = {"loss": loss * len(targets)}
        if "accuracy" in self.metrics and "accuracy" not in self.measures:
            sums["accuracy"] = (outputs.argmax(axis=1) == targets).sum().astype(jnp.float32)
        return sums | {name: measure(outputs, targets).sum() for name, (measure, _) in self.measures.items()}

    def _check_labels(self, flat: Mapping[str, Any], x: np.ndarray, y: np.ndarray) -> None:
        """DataError for a label that is no class: JAX would read another class's score, or NaN, and say nothing."""
        if self.loss is not cross_entropy or not len(y) or y.dtype.kind not in "iu":
            return
        row, known = jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype), self._classes
        if row not in known:
            known[row] = int(jax.eval_shape(lambda p, one: self._outputs(p, one, None), flat, row).shape[-1])
        if not 0 <= y.min() <= y.max() < known[row]:
            raise DataError(f"'y' has classes {y.min()} to {y.max()}, but the model knows 0 to {known[row] - 1}.")

    @cached_property
    def _classes(self) -> dict[Any, int]:
        return {}

    # -- evaluation

    def evaluate(self, params: Tensors, data: Any) -> Metrics:
        """Sums over all examples of loss, correct answers and the further measures."""
        mismatch(self.shapes(), params.shapes, "the parameters")
        flat = {name: jnp.asarray(np.asarray(params[name], np.float32)) for name in params}
        x, y = _narrow(data["x"]), _narrow(data["y"])
        self._check_labels(flat, x, y)
        sums = dict.fromkeys(self.metrics, 0.0)
        for at in range(0, len(x), EVALUATION_BATCH):
            found = self._measured(flat, x[at : at + EVALUATION_BATCH], y[at : at + EVALUATION_BATCH])
            sums = {name: total + float(found[name]) for name, total in sums.items()}
        return {name: (total, float(len(x))) for name, total in sums.items()}

    @cached_property
    def _measured(self) -> Any:
        def measured(flat: Any, x: Any, y: Any) -> Any:
            outputs = self._outputs(flat, x, None)
            return self._sums(self.loss(outputs, y), outputs, y)

        return jax.jit(measured)


def _flat(tree: Any) -> Tensors:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return Tensors({_name(path): np.array(leaf, np.float32) for path, leaf in leaves})


def _name(path: Sequence[Any]) -> str:
    return str(jax.tree_util.keystr(path, simple=True, separator=".")) or "params"


def _runs(batches: Sequence[np.ndarray]) -> Iterator[tuple[int, np.ndarray]]:
    """Neighbouring batches of one size, stacked."""
    for size, run in groupby(batches, key=len):
        yield size, np.stack(list(run))


def _narrow(given: Any) -> np.ndarray:
    """Floats as float32, integers as int32: JAX's own widths."""
    column: np.ndarray = np.asarray(given)
    if column.dtype.kind == "f":
        return column.astype(np.float32, copy=False)
    return column.astype(np.int32, copy=False) if column.dtype.kind in "iu" and column.dtype != np.uint8 else column


def _padded(given: Any) -> np.ndarray:
    """Zeros added up to the next power of two."""
    column = _narrow(given)
    whole = 1 << max(0, math.ceil(math.log2(len(column))))
    return np.concatenate([column, np.zeros((whole - len(column), *column.shape[1:]), column.dtype)])
