"""Many clients' local steps at once: the `cohort` loop of `TorchModel`, for GPUs and for models that are tiny.

    clients ─► buckets of like size ─► for each run of steps: one traced step over the client axis, replayed natively

Parameters, buffers and the optimiser's state are stacked along a leading client axis, and the step is traced through
`torch.func.vmap`. The batches of one step are padded to the widest, with rows of the client's own whose losses count
nothing; a client with fewer steps goes on with such rows, and what it had after its last own step is its result.

Padding asks of a module that it treats rows apart, and of a loss that it is a mean over them. Where that does not hold
(batch norm) only clients with equal batches share a bucket. Every new step is first held against the plain loop. What
draws random numbers, which are each client's own, or has no rule for `vmap` (LSTM and GRU on a CPU; on a GPU they are
taken step by step), is trained one by one, and says so.
"""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils._pytree import tree_map

from hansa.adapters.measure import Measures
from hansa.adapters.torch_array import sent, tensor_of
from hansa.adapters.torch_buckets import Run, buckets, runs, table
from hansa.adapters.torch_capture import loop_of
from hansa.adapters.torch_loss import Task, correct, ready, rowwise
from hansa.adapters.torch_native import Loop, Untraceable
from hansa.adapters.torch_network import Network
from hansa.adapters.torch_recurrent import StepByStep
from hansa.adapters.torch_replay import CHECKED_STEPS, LONE, Replay, rate
from hansa.adapters.torch_trace import (
    Axis,
    Group,
    State,
    Step,
    begin,
    flat,
    kind_of,
    peak_bytes,
    resized,
    results,
    trace,
)
from hansa.adapters.torch_visit import Columns
from hansa.core.model import Fit, LocalWork, Metrics
from hansa.core.tensors import EMPTY, Tensors

log = logging.getLogger("hansa.plan")
WASTE = 0.15  # rows of padding, at most, for each row of a bucket
TRACED = (3, 5)  # clients in the two steps from which others are scaled
CHUNK_BYTES, GPU_CHUNK_BYTES = 64 << 20, 1 << 30  # rows gathered at a time


class Visit(NamedTuple):
    """One client's task."""

    params: Tensors
    source: Columns
    work: LocalWork
    batches: list[np.ndarray]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Rows of each step."""
        return tuple(map(len, self.batches))


class _Stacked(NamedTuple):
    """A step for so many clients, and the shapes and dtypes of what it stores."""

    loop: Loop
    like: list[tuple[tuple[int, ...], Any]]


class Cohort:
    """The stacked steps of one network, kept between visits.

    Args:
      network: in training mode whenever `fit` is called, with the frozen tensors of the job.
      replay: of the same network; its plain loop is the reference.
      loss: (outputs, targets) -> mean over the batch, or several with their weights.
      task, measures: what is measured.
      memory_bytes: that clients trained together may need.
    """

    def __init__(
        self, network: Network, replay: Replay, loss: Any, task: Task, measures: Measures, memory_bytes: int
    ) -> None:
        self._network, self._replay, self._loss, self._memory = network, replay, ready(loss), memory_bytes
        self._task, self._measures, self._rowwise = task, measures, rowwise(loss)
        self._traced: dict[Any, dict[tuple[int, int], Step]] = {}  # by clients and width
        self._loops: dict[Any, _Stacked] = {}
        self._need: dict[Any, int] = {}  # bytes for each client
        self._refused: dict[Any, str] = {}  # kind, and whether with padding -> why

    def fit(self, visits: Sequence[Visit]) -> list[Fit | None]:
        """Trains clients together.

        Returns:
          One result for each visit; None for those that must be trained alone.
        """
        found: list[Fit | None] = [None] * len(visits)
        kinds: dict[Any, list[int]] = {}
        for i, visit in enumerate(visits):
            kinds.setdefault((_kind(visit), visit.work.lr), []).append(i)
        for (kind, _), members in kinds.items():
            padded = self._rowwise and all(_counts(visits[i].source, self._task) for i in members)
            known = len(self._refused)
            if not (padded and self._together(kind, True, visits, members, found)):
                self._together(kind, False, visits, members, found)
            if len(self._refused) > known:
                self._say(kind)
        return found

    def _say(self, kind: Any) -> None:
        if alone := self._refused.get((kind, False)):
            log.info("clients are trained one by one: %s", alone)
        else:
            log.info("only clients of equal batches are trained together: %s", self._refused[kind, True])

    def _together(
        self, kind: Any, padded: bool, visits: Sequence[Visit], members: Sequence[int], found: list[Fit | None]
    ) -> bool:
        """Fills in what can be trained in one way; False if it cannot be done in this way."""
        if (kind, padded) in self._refused:
            return False
        for bucket in buckets([visits[i].sizes for i in members], WASTE if padded else 0.0):
            try:
                for chunk in self._chunks(kind, visits, [members[i] for i in bucket]):
                    for i, fit in zip(chunk, self._as_fits(kind, [visits[i] for i in chunk]), strict=True):
                        found[i] = fit
            except Untraceable as reason:
                if LONE in str(reason) and not padded:  # batch norm: the plain loop knows to leave such a step out
                    continue
                self._refused[kind, padded] = str(reason)
                return False
        return True

    def _chunks(self, kind: Any, visits: Sequence[Visit], bucket: Sequence[int]) -> Iterator[Sequence[int]]:
        """As many of a bucket at a time as have room; whoever is left alone is left out."""
        if len(bucket) < 2:
            return
        most = self._memory // self._need_bytes(kind, [visits[i] for i in bucket])
        if most < 2:
            raise Untraceable(f"{self._memory >> 20} MB have no room for two clients at once")
        for at in range(0, len(bucket), most):
            if len(bucket[at : at + most]) > 1:
                yield bucket[at : at + most]

    # -- one chunk

    def _as_fits(self, kind: Any, visits: Sequence[Visit]) -> list[Fit]:
        """All at once, or in halves where memory turns out to be short: others may use the same GPU."""
        try:
            return self._fit(kind, visits)
        except torch.OutOfMemoryError:
            if len(visits) < 4:
                raise Untraceable(f"there is no memory for {len(visits)} clients at once") from None
        half = len(visits) // 2  # outside of the handler, which would hold on to what the first try had
        log.info("memory is short: %d clients are trained in halves", len(visits))
        return [*self._as_fits(kind, visits[:half]), *self._as_fits(kind, visits[half:])]

    def _fit(self, kind: Any, visits: Sequence[Visit]) -> list[Fit]:
        clients, work, source = len(visits), visits[0].work, visits[0].source
        sizes, state = table([visit.sizes for visit in visits]), self._state(visits)
        sums = _Sums(self._task, self._measures, clients)
        after: list[Tensors] = [EMPTY] * clients
        row_bytes = sum(int(np.prod(shape)) * dtype.itemsize for shape, dtype in source.shapes(1))
        chunk_bytes = CHUNK_BYTES if source.device == "cpu" else GPU_CHUNK_BYTES
        for run in runs(sizes, max(1, chunk_bytes // (clients * row_bytes))):
            step = self._loop(kind, visits, run)
            columns, steps = self._columns(visits, run), run.last - run.first
            stores = [torch.empty((steps, *shape), dtype=kind, device=columns[0].device) for shape, kind in step.like]
            step.loop(flat(state), columns, rate(work), stores)
            sums.add(stores, columns[len(columns) - source.targets :], sizes[:, run.first : run.last])
            done = [k for k, visit in enumerate(visits) if len(visit.batches) == run.last]
            for k, params in zip(done, self._taken(state, done), strict=True):
                after[k] = visits[k].params.updated(params)
        metrics = sums.metrics()
        return [Fit(after[k], len(visits[k].batches), metrics[k]) for k in range(clients)]

    def _state(self, visits: Sequence[Visit]) -> State:
        """Everything that is kept between steps, stacked; frozen parameters are the network's own."""
        network, work, params = self._network, visits[0].work, [visit.params for visit in visits]
        weights = {name: _stack([one[name] for one in params], like) for name, like in network.trained.items()}
        others = {
            name: one if name in network.parameters
            else _stack([each.get(name, one) for each in params], one)
            for name, one in network.others().items()
        }  # fmt: skip
        terms = {
            what: {n: _stack([getattr(v.work, what)[n] for v in visits], weights[n][0]) for n in getattr(work, what)}
            for what in ("correction", "mask")
        }
        return begin(work, weights, network.pulled, terms, others)

    def _taken(self, state: State, clients: Sequence[int]) -> list[dict[str, Any]]:
        """What some clients have now."""
        if not clients:
            return []
        whole = state["weights"] | {n: one for n, one in state["others"].items() if n not in self._network.parameters}
        rows = torch.as_tensor(clients, device=next(iter(state["weights"].values())).device)
        copies = {name: one.index_select(0, rows) for name, one in whole.items() if name in self._network.names}
        kept = {name: self._network.array(one) for name, one in copies.items()}
        return [{name: one[k] for name, one in kept.items()} for k in range(len(clients))]

    def _columns(self, visits: Sequence[Visit], run: Run) -> list[Any]:
        """Batches of a run of steps: inputs, what each row counts if there is padding, and targets.

        Each has the shape (steps, clients, width, ...).
        """
        rows = [_padded(visit.batches, run) for visit in visits]
        sources = [visit.source for visit in visits]
        columns = _side_by_side(sources, rows) if sources[0].device == "cpu" else _at_once(sources, rows)
        if run.padded:
            sizes = table([visit.sizes for visit in visits])[:, run.first : run.last].T[..., None]
            share = (np.arange(run.width) < sizes) / np.maximum(sizes, 1)
            at = len(columns) - visits[0].source.targets
            columns.insert(at, torch.as_tensor(share, dtype=self._network.dtype, device=columns[0].device))
        return columns

    # -- the step

    def _loop(self, kind: Any, visits: Sequence[Visit], run: Run) -> _Stacked:
        """The stacked step of a run, once it has given what the plain loop gives in its most padded step."""
        key = (kind, run.padded, len(visits), run.width)
        if key not in self._loops:
            sizes = table([visit.sizes for visit in visits])[:, run.first : run.last]
            at = run.first + int(np.where(sizes > 0, sizes, run.width).min(0).argmin())
            state, columns = self._state(visits), self._columns(visits, run._replace(first=at, last=at + 1))
            step = self._step((kind, run.padded), visits, state, columns)
            shapes = [(len(visits),), (len(visits), run.width)]  # the graph's own are those it was scaled from
            stored = [node.meta["val"] for node in results(step.graph)]
            like = [((*lead, *one.shape[len(lead) :]), one.dtype) for lead, one in zip(shapes, stored, strict=False)]
            self._loops[key] = _Stacked(loop_of(step, self._replay.room), like)
            try:
                self._hold(visits, at, state, columns, self._loops[key])
            except Untraceable:
                del self._loops[key]
                raise
        return self._loops[key]

    def _step(self, way: Any, visits: Sequence[Visit], state: State, columns: Sequence[Any]) -> Step:
        """The step for so many clients and so wide a batch, scaled from three that were traced, if it can be."""
        clients, width = columns[0].shape[1:3]
        traced = self._traced.setdefault(way, {})

        def made(many: int, wide: int) -> Step:
            if (many, wide) not in traced:
                cut = [_tiled(one[0], many, 0) for one in columns]
                some = {group: {n: self._cut(group, n, one, many) for n, one in all_.items()}
                        for group, all_ in state.items()}  # fmt: skip
                traced[many, wide] = self._trace(way[1], visits[0], some, cut)
            return traced[many, wide]

        if width == 1:  # a size of one may take another way through the module
            return made(clients, width)
        few, more = TRACED
        base = next((wide for many, wide in traced if many == few and wide > 1), width)
        axes = [Axis(made(more, base), few, more, clients)]
        if base != width:
            other = next((wide for many, wide in traced if many == few and wide not in (base, 1)), width)
            axes.append(Axis(made(few, other), base, other, width))
        return resized(made(few, base), axes) or made(clients, width)

    def _cut(self, group: str, name: str, tensor: Any, many: int) -> Any:
        """One of the tensors kept, for so many clients."""
        return tensor if self._shared(group, name) else _tiled(tensor, many, 0)

    def _shared(self, group: str, name: str) -> bool:
        return group == "count" or (group == "others" and name in self._network.parameters)

    def _trace(self, padded: bool, visit: Visit, state: State, batch: Sequence[Any]) -> Step:
        at = len(batch) - visit.source.targets - padded
        apart = {name: None if self._shared("others", name) else 0 for name in state["others"]}
        dims = apart | dict.fromkeys(state["weights"], 0)

        def call(tensors: Group, inputs: Sequence[Any]) -> Any:
            return torch.vmap(one, (dims, *[0] * len(inputs)))(tensors, *inputs)

        def one(own: Group, *x: Any) -> Any:
            with nullcontext() if visit.source.device == "cpu" else StepByStep():
                outputs = self._replay.call(given := dict(own), x)
            if replaced := [name for name in own if given[name] is not own[name]]:
                raise Untraceable(f"the module replaces its buffer '{replaced[0]}'")
            return outputs

        def loss(outputs: Any, targets: Any) -> Any:
            own = self._weighted if padded else self._mean
            return torch.vmap(own)(outputs, *targets)

        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "There is a performance drop")  # what has no rule is done one by one
                step = trace(call, state, visit.work, loss, batch[:at], tuple(batch[at:]), self._replay.keep)
            if self._replay.attributes.changed():
                raise Untraceable("the module keeps attributes from step to step")
            return step
        except Untraceable as reason:
            if "random operation" in str(reason):  # PyTorch's words
                raise Untraceable("the step draws random numbers, which are each client's own") from reason
            raise
        finally:
            self._replay.attributes.reset()

    def _mean(self, outputs: Any, *targets: Any) -> Any:
        return self._loss(outputs, targets[0] if len(targets) == 1 else targets)

    def _weighted(self, outputs: Any, share: Any, *targets: Any) -> Any:
        def row(output: Any, *target: Any) -> Any:
            return self._mean(tree_map(_single, output), *map(_single, target))

        return (torch.vmap(row)(outputs, *targets) * share).sum()

    def _hold(self, visits: Sequence[Visit], step: int, state: State, columns: Sequence[Any], made: _Stacked) -> None:
        """Raises Untraceable unless two clients, the least and the most padded, get what the plain loop gives."""
        work, sizes = visits[0].work, table([visit.sizes for visit in visits])[:, step]
        within = np.flatnonzero(sizes)
        least, most = within[sizes[within].argmin()], within[::-1][sizes[within][::-1].argmax()]
        for k in {int(least), int(most)}:  # of clients that are padded alike, the first and the last
            before = self._of(state, k)
            inputs, targets = visits[k].source.take(visits[k].batches[step])
            try:
                after, _ = self._replay.plain(work, _copy(before), [(inputs, targets)] * CHECKED_STEPS)
            except ValueError as error:  # batch norm on a single example
                raise Untraceable(str(error)) from None
            native = _copy(state)
            stores = [torch.empty((CHECKED_STEPS, *shape), dtype=kind, device=columns[0].device)
                      for shape, kind in made.like]  # fmt: skip
            repeated = [one.expand(CHECKED_STEPS, *one.shape[1:]).contiguous() for one in columns]
            made.loop(flat(native), repeated, rate(work), stores)
            self._replay.agree(work, before, self._of(native, k), after)

    def _of(self, state: State, k: int) -> State:
        """One client's part of a stack."""
        return {
            group: {name: one if self._shared(group, name) else one[k] for name, one in many.items()}
            for group, many in state.items()
        }

    def _need_bytes(self, kind: Any, visits: Sequence[Visit]) -> int:
        """What each client of a bucket needs: its state, and what is alive in the traced step of a few of them."""
        step, width = max(enumerate(visits[0].sizes), key=lambda one: one[1])
        key = (kind, width)
        if key not in self._need:
            few = list(visits[:1]) * TRACED[0]
            state, columns = self._state(few), self._columns(few, Run(step, step + 1, width, False))
            traced = self._step((kind, False), few, state, columns)
            held = sum(one.nbytes for one in [*flat(state), *columns])
            # The state three times: it is copied to check a new step, and handed out. A recording has one of its own.
            copies = 3 if self._replay.room is None else 4
            self._need[key] = (copies * held + peak_bytes(traced.graph)) // len(few)
        return self._need[key]


class _Sums:
    """Metrics of many clients: sums over the rows that count."""

    def __init__(self, task: Task, measures: Measures, clients: int) -> None:
        self._task, self._measures = task, measures
        self._seen = np.zeros(clients)
        self._sums: dict[str, np.ndarray] = {}

    def add(self, stores: Sequence[Any], targets: Sequence[Any], sizes: np.ndarray) -> None:
        """Takes the losses (steps, clients) and outputs (steps, clients, width, ...) of some steps."""
        self._seen += sizes.sum(1)
        self._plus("loss", (stores[0].double().cpu().numpy() * sizes.T).sum(0))
        if len(stores) == 1:
            return
        lead, outputs = stores[1].shape[:3], stores[1].flatten(0, 2)
        rows = [one.flatten(0, 2) for one in targets]
        counted = torch.as_tensor(np.arange(lead[2]) < sizes.T[..., None], device=outputs.device)
        for name, values in self._values(outputs, rows[0] if len(rows) == 1 else tuple(rows)):
            own = torch.where(counted, values.reshape(lead).double(), 0.0)
            self._plus(name, own.sum((0, 2)).cpu().numpy())

    def _values(self, outputs: Any, targets: Any) -> Iterator[tuple[str, Any]]:
        """Each metric, for each row."""
        if torch.is_tensor(targets) and correct(self._task, outputs[:1], targets[:1]) is not None:
            yield "accuracy", torch.vmap(lambda o, t: correct(self._task, o[None], t[None]))(outputs, targets)
        for name, (measure, _) in self._measures.items():
            yield name, measure(outputs, targets)

    def _plus(self, name: str, values: np.ndarray) -> None:
        self._sums[name] = self._sums.get(name, 0.0) + values

    def metrics(self) -> list[Metrics]:
        """Of each client, as (numerator, examples seen)."""
        return [
            {name: (float(values[k]), float(seen)) for name, values in self._sums.items()}
            for k, seen in enumerate(self._seen)
        ]


def _kind(visit: Visit) -> Any:
    """What a stacked step depends on."""
    return (*kind_of(visit.work), visit.source.shapes(1))


def _counts(source: Columns, task: Task) -> bool:
    """Whether every target counts: losses of classes leave negative labels out of their mean."""
    labels = source.columns[-1]
    return task != Task.CLASSES or len(labels) == 0 or bool(labels.min() >= 0)


def _padded(batches: Sequence[np.ndarray], run: Run) -> np.ndarray:
    """Rows of a run's steps, of shape (steps, width): a short batch is filled with its first row."""
    rows = np.empty((run.last - run.first, run.width), np.int64)
    for i, row in enumerate(rows, run.first):
        own = batches[i] if i < len(batches) else batches[0][:1]
        row[: len(own)], row[len(own) :] = own, own[0]
    return rows


def _side_by_side(sources: Sequence[Columns], rows: Sequence[np.ndarray]) -> list[Any]:
    """Clients' rows, each (steps, width), as columns (steps, clients, width, ...)."""
    taken = [source.gather(own) for source, own in zip(sources, rows, strict=True)]
    return [torch.stack(many, 1) for many in zip(*taken, strict=True)]


def _at_once(sources: Sequence[Columns], rows: Sequence[np.ndarray]) -> list[Any]:
    """The same on a GPU, where one gathering from all is as dear as one from a client."""
    first = np.cumsum([0, *(len(source.columns[0]) for source in sources[:-1])])
    at = torch.from_numpy(np.stack(rows, 1) + first[None, :, None]).to(sources[0].device)
    return [torch.cat(many)[at] for many in zip(*(source.columns for source in sources), strict=True)]


def _stack(arrays: Sequence[Any], like: Any) -> Any:
    """Clients' arrays on one new axis, in memory of its own; where all have the same one it is read once."""
    first = arrays[0]
    if all(one is first for one in arrays):
        return sent(first, like).expand(len(arrays), *first.shape).clone(memory_format=torch.contiguous_format)
    return torch.stack([tensor_of(one, like) for one in arrays])


def _tiled(tensor: Any, count: int, dim: int) -> Any:
    return tensor.index_select(dim, torch.arange(count, device=tensor.device) % tensor.shape[dim])


def _single(value: Any) -> Any:
    return value[None] if torch.is_tensor(value) else value


def _copy(state: State) -> State:
    return {group: {name: one.detach().clone() for name, one in many.items()} for group, many in state.items()}
