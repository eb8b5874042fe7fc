"""Replaying a traced local step over a client's batches: the fast plan of `TorchModel`.

    for each batch size that occurs:  trace once ─► hold it against the plain loop ─► keep
    for each run of equal batches:    gather some megabytes of rows ─► one native call ─► losses and outputs

A step that cannot be traced, or that does not give what the plain loop gives, is left to the plain loop, and says why.
"""

import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from hansa.adapters.torch_descent import InPlaceDescent
from hansa.adapters.torch_native import Untraceable
from hansa.adapters.torch_trace import Group, begin, flat, rates, trace
from hansa.core.model import LocalWork
from hansa.core.tensors import EMPTY, Tensors

log = logging.getLogger("hansa.plan")
CHUNK_BYTES = 16 << 20  # rows gathered at a time
CHECKED_STEPS = 2
LONE = "Expected more than 1 value per channel when training"  # PyTorch's words where batch norm meets one example
Gather = Callable[[np.ndarray], tuple[list[Any], Any]]  # rows -> inputs, targets
Batches = tuple[Any, Any, Any, int]  # losses (steps,), outputs or None and targets of all their examples, batch size


class Replay:
    """The native loops of one module, by everything they depend on.

    Args:
      module: in training mode whenever `fit` is called.
      loss: (outputs, targets) -> mean over the batch.
      keep: whether outputs are needed for metrics.
      check: called with outputs and targets of a batch of each new shape.
    """

    def __init__(self, module: Any, loss: Any, keep: bool, check: Callable[[Any, Any], None]) -> None:
        self._module, self._loss, self._keep, self._check = module, loss, keep, check
        self._loops: dict[Any, Any] = {}
        self._refused: dict[Any, str] = {}

    def fit(
        self,
        work: LocalWork,
        weights: Group,
        pulled: Sequence[str],
        others: Group,
        batches: Sequence[np.ndarray],
        gather: Gather,
    ) -> Iterator[Batches]:
        """Trains `weights` in place, and gives what metrics need.

        Args:
          work: what is asked.
          weights: trained parameters, by name.
          pulled: those that the proximal term pulls back.
          others: frozen parameters, and buffers (changed in place).
          batches: rows of every step.
          gather: inputs and targets at some rows.

        Raises:
          Untraceable: before anything is changed.
        """
        terms = {"correction": _terms(work.correction, weights), "mask": _terms(work.mask, weights)}
        state = begin(work, weights, pulled, terms, others)
        plain = work.with_(correction=EMPTY, mask=EMPTY, epochs=None, steps=1)
        loops: dict[int, Any] = {}
        for rows in batches:
            if len(rows) not in loops:
                loops[len(rows)] = self._loop(plain, state, rows, gather)
        if not any(loops.values()):
            raise Untraceable(LONE)
        return self._run(work, state, loops, [rows for rows in batches if loops[len(rows)]], gather)

    def _run(
        self,
        work: LocalWork,
        state: Mapping[str, Group],
        loops: Mapping[int, Any],
        batches: Sequence[np.ndarray],
        gather: Gather,
    ) -> Iterator[Batches]:
        dtype, done = next(iter(state["weights"].values())).dtype, 0
        for size, run in itertools.groupby(batches, len):
            for rows in _chunks(list(run), gather):
                steps = len(rows)
                inputs, targets = gather(np.concatenate(rows))
                columns = _columns(inputs, targets)
                loop, like = loops[size]
                stores = [torch.empty((steps, *shape), dtype=kind) for shape, kind in like]
                cut = [column.reshape(steps, size, *column.shape[1:]) for column in columns]
                loop(flat(state), cut, rates(work, done + 1, steps, dtype), stores)
                done += steps
                yield stores[0], stores[1].flatten(0, 1) if self._keep else None, targets, size

    def _loop(self, work: LocalWork, state: Mapping[str, Group], rows: np.ndarray, gather: Gather) -> Any:
        inputs, targets = gather(rows)
        columns = _columns(inputs, targets)
        shapes = tuple((tuple(column.shape), column.dtype) for column in columns)
        key = (work, shapes, tuple(state["correction"]), tuple(state["mask"]))
        if key in self._refused:
            raise Untraceable(self._refused[key])
        if key not in self._loops:
            try:
                self._loops[key] = self._checked(work, state, inputs, targets, columns)
            except Untraceable as reason:
                if len(rows) == 1 and LONE in str(reason):
                    self._loops[key] = None  # this batch is left out
                    return None
                self._refused[key] = str(reason)
                log.info("plain loop for this step: %s", reason)
                raise
        return self._loops[key]

    def _checked(
        self, work: LocalWork, state: Mapping[str, Group], inputs: Any, targets: Any, columns: Sequence[Any]
    ) -> tuple[Callable[..., None], list[tuple[tuple[int, ...], Any]]]:
        """A new loop, once it has given what the plain loop gives on this batch; and the shapes of what it stores."""
        seed = torch.random.get_rng_state()  # a visit draws the same numbers whether or not it has to trace
        try:
            loop = trace(self._module, state, work, self._loss, inputs, targets, self._keep)
        finally:
            torch.random.set_rng_state(seed)
        plain, stored = self._plain(work, _copy(state), inputs, targets)
        torch.random.set_rng_state(seed)
        native = _copy(state)
        stores = [torch.empty((CHECKED_STEPS, *shape), dtype=kind) for shape, kind in stored]
        repeated = [column.expand(CHECKED_STEPS, *column.shape).contiguous() for column in columns]
        loop(flat(native), repeated, rates(work, 1, CHECKED_STEPS, stored[0][1]), stores)
        torch.random.set_rng_state(seed)
        for name, weight in native["weights"].items():
            theirs = plain["weights"][name]
            if work.optimiser == "adam":  # it blows the rounding of a gradient of zero up to a whole step
                seen = native["first"][name].abs() > 1e-6
                weight, theirs = weight[seen], theirs[seen]
            if not torch.allclose(weight, theirs, rtol=1e-3, atol=1e-5, equal_nan=True):
                raise Untraceable(f"replayed, '{name}' differs from the plain loop")
        return loop, stored

    def _plain(
        self, work: LocalWork, state: dict[str, Group], inputs: Any, targets: Any
    ) -> tuple[dict[str, Group], list[tuple[tuple[int, ...], Any]]]:
        """The state after a few plain steps on one batch, and the shapes of the loss and, if kept, the outputs."""
        leaves = {name: weight.requires_grad_() for name, weight in state["weights"].items()}
        values, terms = list(leaves.values()), {what: _tree(state[what]) for what in ("correction", "mask")}
        descent = InPlaceDescent(work.with_(**terms), list(leaves), values, list(state["start"]), _tensor)
        for _ in range(CHECKED_STEPS):
            outputs = torch.func.functional_call(self._module, {**state["others"], **leaves}, tuple(inputs))
            self._check(outputs, targets)
            loss = self._loss(outputs, targets)
            descent.step(torch.autograd.grad(loss, values, allow_unused=True, materialize_grads=True))
        kept = [(tuple(outputs.shape), outputs.dtype)] if self._keep and torch.is_tensor(outputs) else []
        return {**state, "weights": {name: one.detach() for name, one in leaves.items()}}, [((), loss.dtype), *kept]


def _columns(inputs: Sequence[Any], targets: Any) -> list[Any]:
    return [*inputs, *(targets if isinstance(targets, tuple) else [targets])]


def _tensor(array: Any, like: Any) -> Any:
    return torch.as_tensor(np.array(array), dtype=like.dtype)


def _terms(given: Mapping[str, Any], weights: Group) -> Group:
    return {name: _tensor(given[name], weight) for name, weight in weights.items() if name in given}


def _tree(terms: Group) -> Tensors:
    return Tensors({name: term.numpy() for name, term in terms.items()})


def _copy(state: Mapping[str, Group]) -> dict[str, Group]:
    return {group: {name: one.detach().clone() for name, one in many.items()} for group, many in state.items()}


def _chunks(rows: Sequence[np.ndarray], gather: Gather) -> Iterator[Sequence[np.ndarray]]:
    """Runs of steps whose rows together take some megabytes."""
    columns = _columns(*gather(rows[0]))
    size = max(1, sum(column.numel() * column.element_size() for column in columns))
    steps = max(1, CHUNK_BYTES // size)
    for at in range(0, len(rows), steps):
        yield rows[at : at + steps]
