"""Replaying a traced local step over a client's batches: the fast plan of `TorchModel`.

    for each batch size:           trace it, or scale it from two that were traced ─► hold it against the plain loop
    for each run of equal batches: gather some megabytes of rows ─► one native call ─► losses and outputs

A step that cannot be traced, or that does not give what the plain loop gives, is left to the plain loop, and says why.
"""

import itertools
import logging
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from hansa.adapters.torch_capture import Room, loop_of
from hansa.adapters.torch_descent import InPlaceDescent
from hansa.adapters.torch_native import Loop, Untraceable
from hansa.adapters.torch_network import Attributes, Network
from hansa.adapters.torch_precision import call
from hansa.adapters.torch_rewrite import ROWS
from hansa.adapters.torch_trace import Axis, Group, State, Step, begin, flat, fused, kind_of, resized, trace
from hansa.core.model import LocalWork
from hansa.core.tensors import Tensors

log = logging.getLogger("hansa.plan")
CHUNK_BYTES = 16 << 20  # rows gathered at a time
CHECKED_STEPS = 2
LONE = "Expected more than 1 value per channel when training"  # PyTorch's words where batch norm meets one example
Shapes = tuple[tuple[tuple[int, ...], Any], ...]  # of columns: shape and dtype
Batch = tuple[list[Any], Any]  # inputs, and the target or the tuple of targets
Batches = tuple[Any, Any, Any, int]  # losses (steps,), outputs or None and targets of all their examples, batch size


class Source(Protocol):
    """A client's columns."""

    def take(self, rows: np.ndarray) -> tuple[list[Any], Any]:
        """Inputs, and the target or the tuple of targets, at some rows."""

    def shapes(self, size: int) -> Shapes:
        """Shape and dtype of each column, inputs first, of a batch of so many rows."""


class _Checked(NamedTuple):
    """A loop that gave what the plain loop gives, and the shapes and dtypes of what it stores for each step."""

    loop: Loop
    like: Shapes


class Replay:
    """The native loops of one module, by everything they depend on.

    Args:
      network: in training mode whenever `fit` is called.
      loss: (outputs, targets) -> mean over the batch.
      keep: whether outputs are needed for metrics.
      check: called with outputs and targets of a batch of each new shape.
      precision: in which the module computes.
      room: where steps are recorded, on a GPU.
    """

    def __init__(
        self, network: Network, loss: Any, keep: bool, check: Callable[[Any, Any], None], precision: str | None = None,
        room: Room | None = None,
    ) -> None:  # fmt: skip
        self._module, self._loss, self.keep, self._check, self._precision = network.module, loss, keep, check, precision
        self.attributes = network.attributes
        self.room = room
        self._loops: dict[Any, _Checked | None] = {}
        self._traced: dict[Any, dict[int, Step]] = {}  # all but the batch size -> batch size -> step
        self._refused: dict[Any, str] = {}

    def fit(
        self, work: LocalWork, weights: Group, pulled: Sequence[str], others: Group, batches: Sequence[np.ndarray],
        source: Source,
    ) -> Iterator[Batches]:  # fmt: skip
        """Trains `weights` in place, and gives what metrics need.

        Args:
          work: what is asked.
          weights: trained parameters, by name.
          pulled: those that the proximal term pulls back.
          others: frozen parameters, and buffers (changed in place).
          batches: rows of every step.
          source: of inputs and targets.

        Raises:
          Untraceable: before anything is changed.
        """
        terms = {"correction": _terms(work.correction, weights), "mask": _terms(work.mask, weights)}
        state = begin(work, weights, pulled, terms, others)
        kind = kind_of(work)
        loops: dict[int, _Checked | None] = {}
        for rows in batches:
            if len(rows) not in loops:
                loops[len(rows)] = self._loop(kind, work, state, rows, source)
        if not any(loops.values()):
            raise Untraceable(LONE)
        return self._run(work, state, loops, [rows for rows in batches if loops[len(rows)]], source)

    def _run(
        self, work: LocalWork, state: State, loops: Mapping[int, _Checked | None], batches: Sequence[np.ndarray],
        source: Source,
    ) -> Iterator[Batches]:  # fmt: skip
        kept = flat(state)
        device = kept[0].device
        for size, run in itertools.groupby(batches, len):
            checked = loops[size]
            assert checked is not None
            for rows in _chunks(list(run), source.shapes(size)):
                steps = len(rows)
                inputs, targets = source.take(np.concatenate(rows))
                cut = [one.view(steps, size, *one.shape[1:]) for one in _columns(inputs, targets)]
                stores = [torch.empty((steps, *shape), dtype=kind, device=device) for shape, kind in checked.like]
                checked.loop(kept, cut, rate(work), stores)
                yield stores[0], stores[1].flatten(0, 1) if self.keep else None, targets, size

    def _loop(self, kind: Any, work: LocalWork, state: State, rows: np.ndarray, source: Source) -> _Checked | None:
        """The loop for batches as large as this one; None if batch norm leaves it out."""
        shapes = source.shapes(len(rows))
        key = (kind, shapes)
        if key in self._refused:
            raise Untraceable(self._refused[key])
        if key not in self._loops:
            try:
                self._loops[key] = self._checked(
                    kind, work, state, source.take(rows), list(map(source.take, _others(rows)))
                )
            except Untraceable as reason:
                if len(rows) == 1 and LONE in str(reason):
                    self._loops[key] = None
                    return None
                self._refused[key] = str(reason)
                log.info("plain loop for this step: %s", reason)
                raise
        return self._loops[key]

    def _step(self, kind: Any, work: LocalWork, state: State, inputs: Any, targets: Any) -> tuple[Step, int]:
        """The step of this batch size, scaled from the first two of its class, which are traced; and how many of it are
        to be held against the plain loop: a scaled one differs from what was held by the size alone.
        """
        columns = _columns(inputs, targets)
        size, rest = len(columns[0]), tuple((tuple(one.shape[1:]), one.dtype) for one in columns)
        traced = self._traced.setdefault((kind, rest, size in ROWS), {})
        if len(traced) == 2 and size > 1:
            (base, first), (other, second) = traced.items()
            step = resized(first, [Axis(second, base, other, size)])
            if step is not None:
                return step, 1
        step = trace(self.call, state, work, self._loss, inputs, targets, self.keep)
        if self.attributes.changed():
            again = trace(self.call, state, work, self._loss, inputs, targets, self.keep)
            if str(again.graph) != str(step.graph):
                raise Untraceable("it depends on what the module kept as an attribute at the step before")
        if len(traced) < 2 and size > 1:  # a single example may take another way through the module
            traced[size] = step
        return step, CHECKED_STEPS

    def _checked(self, kind: Any, work: LocalWork, state: State, batch: Batch, others: Sequence[Batch]) -> _Checked:
        """A new loop, once it has given what the plain loop gives on other batches than it was traced with, since what
        NumPy reads from a batch becomes part of the graph; and the shapes of what it stores.
        """
        device = next(iter(state["weights"].values())).device
        rewind = _rewinding(device, self.attributes)  # a visit finds the same whether or not it has to trace
        before = _drawn_elsewhere()
        try:
            step, count = self._step(kind, work, state, *batch)
            loop = loop_of(step, self.room)
            if before != _drawn_elsewhere():
                raise Untraceable("it draws from the random numbers of Python or NumPy")
        finally:
            rewind()
        plain, stored = self.plain(work, _copy(state), others[:count])
        rewind()
        native = _copy(state)
        stores = [torch.empty((count, *shape), dtype=dtype, device=device) for shape, dtype in stored]
        columns = [torch.stack(one) for one in zip(*(_columns(*other) for other in others[:count]), strict=True)]
        try:
            loop(flat(native), columns, rate(work), stores)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise Untraceable(f"replayed, it fails: {said(error)}") from error
        rewind()
        self.agree(work, state, native, plain)
        return _Checked(loop, stored)

    def agree(self, work: LocalWork, before: State, native: State, plain: State) -> None:
        """Raises Untraceable unless two states are the same but for rounding."""
        steps = {name: float((plain["weights"][name] - one).abs().max()) for name, one in before["weights"].items()}
        rtol, atol = (1e-3, 1e-5) if self._precision is None else (1e-2, 0.05 * max(steps.values()))
        for group in ("weights", "others"):
            for name, one in native[group].items():
                theirs = plain[group][name]
                if work.optimiser == "adam" and group == "weights":
                    seen = native["first"][name].abs() > 1e-6  # it blows a gradient of zero up to a whole step
                    one, theirs = one[seen], theirs[seen]
                if not _close(one, theirs, rtol, atol) or (group == "weights" and not _moved(one, theirs, steps, name)):
                    raise Untraceable(f"replayed, '{name}' differs from the plain loop")

    def call(self, tensors: Group, inputs: Sequence[Any]) -> Any:
        """The module's outputs with these tensors in place of its own."""
        return call(self._module, self._precision, inputs, tensors)

    def plain(self, work: LocalWork, state: State, batches: Sequence[Batch]) -> tuple[State, Shapes]:
        """The state after a plain step on each batch, and the shapes of the loss and, if kept, the outputs."""
        leaves = {name: weight.requires_grad_() for name, weight in state["weights"].items()}
        values, terms = list(leaves.values()), {what: _tree(state[what]) for what in ("correction", "mask")}
        descent = InPlaceDescent(work.with_(**terms), list(leaves), values, list(state["start"]), _tensor)
        for inputs, targets in batches:
            outputs = self.call(tensors := {**state["others"], **leaves}, inputs)
            self._check(outputs, targets)
            loss = self._loss(outputs, targets)
            descent.step(torch.autograd.grad(loss, values, allow_unused=True, materialize_grads=True))
            state = {**state, "others": {name: tensors[name].detach() for name in state["others"]}}
        kept = [(tuple(outputs.shape), outputs.dtype)] if self.keep and torch.is_tensor(outputs) else []
        after = {**state, "weights": {name: one.detach() for name, one in leaves.items()}}
        return after, (((), loss.dtype), *kept)


def rate(work: LocalWork) -> float:
    """What a loop is given: an optimiser's fused call takes lr, a plain step adds -lr times the gradient."""
    return work.lr if fused(work) else -work.lr


def _rewinding(device: Any, attributes: Attributes) -> Callable[[], None]:
    """What sets random numbers back to where they are now, and a module's attributes to what they were at first."""
    state, python, numpy = torch.random.get_rng_state(), random.getstate(), np.random.get_state()
    there = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def rewind() -> None:
        attributes.reset()
        torch.random.set_rng_state(state)
        random.setstate(python)
        np.random.set_state(numpy)
        if there is not None:
            torch.cuda.set_rng_state(there, device)

    return rewind


def _drawn_elsewhere() -> tuple[Any, ...]:
    """Where the generators of Python and NumPy are that a whole process shares."""
    numpy: Any = np.random.get_state(legacy=False)
    return (random.getstate(), numpy["state"]["key"].tobytes(), numpy["state"]["pos"], numpy["has_gauss"])


def _others(rows: np.ndarray) -> list[np.ndarray]:
    """For each step that is checked, a batch of the same size: each lacks half of the rows, so that sums and extremes
    differ, but for three rows at least, which batch norm needs.
    """
    size, some = len(rows), max(3, len(rows) // 2)
    return [np.resize(one, size) for one in ((rows[:some], rows[-some:]) if size > 3 else (rows[::-1], rows))]


def _close(one: Any, other: Any, rtol: float, atol: float) -> bool:
    """`torch.allclose`; told from the largest difference, in a tenth of the time, where that is enough."""
    if one.is_floating_point() and one.numel() and float((one - other).abs_().max()) <= atol:
        return True
    return bool(torch.allclose(one, other, rtol=rtol, atol=atol, equal_nan=True))


def said(error: Exception) -> str:
    """What went wrong in a native loop, without where in its text."""
    return next((line for line in str(error).splitlines() if line.startswith("RuntimeError: ")), str(error))[:200]


def _moved(one: Any, theirs: Any, steps: Mapping[str, float], name: str) -> bool:
    """Whether a weight moved alike: at a small learning rate the weights themselves are close, however they moved.

    A gradient of zero is rounding alone, as large as others' rounding.
    """
    if not theirs.numel():
        return True
    most = 0.05 * max(steps[name], 0.1 * max(steps.values())) + 2e-6 * float(theirs.abs().max())
    return bool((one - theirs).abs().max() <= most)


def _columns(inputs: Sequence[Any], targets: Any) -> list[Any]:
    return [*inputs, *(targets if isinstance(targets, tuple) else [targets])]


def _tensor(array: Any, like: Any) -> Any:
    return torch.as_tensor(np.array(array), dtype=like.dtype, device=like.device)


def _terms(given: Mapping[str, Any], weights: Group) -> Group:
    return {name: _tensor(given[name], weight) for name, weight in weights.items() if name in given}


def _tree(terms: Group) -> Tensors:
    return Tensors({name: term.cpu().numpy() for name, term in terms.items()})


def _copy(state: State) -> State:
    return {group: {name: one.detach().clone() for name, one in many.items()} for group, many in state.items()}


def _chunks(rows: Sequence[np.ndarray], shapes: Shapes) -> Iterator[Sequence[np.ndarray]]:
    """Runs of steps whose rows together take some megabytes."""
    size = sum(math.prod(shape) * dtype.itemsize for shape, dtype in shapes)
    steps = max(1, CHUNK_BYTES // max(1, size))
    for at in range(0, len(rows), steps):
        yield rows[at : at + steps]
