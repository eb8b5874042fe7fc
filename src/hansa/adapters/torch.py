"""Any `nn.Module` and loss as a model: its local step traced and replayed, or a plain PyTorch loop.

    fit:  load params into the module → for each batch of LocalWork: forward, loss, grad, step in place → copy out

Names are those of `state_dict()`; of tied parameters the first name counts. Results depend on `params`, data, work and
rng alone; all that one process fits goes through one lock, since PyTorch's threads and random state are the process's.
"""

import functools
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from hansa.adapters.descent import check_terms
from hansa.adapters.measure import Measures, bounds
from hansa.adapters.roles import assign, patterns
from hansa.core.errors import ConfigError, DataError, MissingExtra
from hansa.core.job import SPEED
from hansa.core.model import Fit, LocalWork, Metrics, Model, Role
from hansa.core.tensors import Shapes, Tensors, dtype_name, mismatch

try:
    import torch
except ModuleNotFoundError as error:
    raise MissingExtra("TorchModel", "torch", "torch") from error

from hansa.adapters.torch_descent import InPlaceDescent
from hansa.adapters.torch_loss import Task, carried, check_shapes, correct, ready, task
from hansa.adapters.torch_native import Untraceable
from hansa.adapters.torch_program import Program, digest
from hansa.adapters.torch_replay import LONE, Replay, Shapes as ColumnShapes

DEVICE = "HANSA_DEVICE"  # environment variable: where this worker trains
EVALUATION_BATCH = 512  # examples at a time; decides memory, and nothing else
LOOPS = ("replay", "replay, channels last", "plain", "plain, channels last")
TRIAL_STEPS, TRIALS = 8, 5  # how a loop is measured
log = logging.getLogger("hansa.plan")
_LOCK = threading.RLock()


@dataclass(frozen=True)
class TorchModel(Model):
    """A PyTorch network, its loss and what is to be measured.

    Args:
      net: a callable that returns a new `nn.Module`; a class or a named function, so that a job can carry it.
      loss: (outputs, targets) -> mean over the batch, as `F.cross_entropy`; or a sequence of (weight, callable), whose
        weighted sum is minimised. Settings go in by `functools.partial`.
      measures: further metrics: name -> (callable (outputs, targets) -> one value for each example, largest value).
      private: names or patterns (`head.*`) of tensors that never leave the worker.
      frozen: names or patterns of tensors that are not trained. Parameters with `requires_grad=False` are frozen
        anyway. A batch norm whose statistics are frozen uses them instead of the batch's.
      inputs: columns handed to the module, in order.
      targets: columns handed to the loss; several come as a tuple.
      dtype: of all float tensors; None leaves the module's own (float32 or float64).
      device: where to train, as `cpu` or `cuda:0`; None asks the environment variable HANSA_DEVICE, then takes the CPU.
      threads: that PyTorch may use during `fit` and `evaluate`; part of what decides float rounding.
      loop: how `fit` runs its steps: `plain` or `replay` (traced once, run natively without autograd; what cannot be
        traced runs plainly), each also with `, channels last`; `auto`: replay on the CPU, with channels last for
        convolutions; or `measure`: what a simulation finds fastest on its first client, printed, and kept when it is
        resumed. It changes float rounding alone; only dropout on images draws other masks in another layout.

    Guarantees:
      Two fits with equal arguments give equal bits on one kind of machine, whatever was fitted in between. Dropout
      draws from the rng given; PyTorch's global random state and number of threads are as before.

    Raises:
      ConfigError: an argument does not fit the others, or the device is not there.

    | tensor | role |
    |---|---|
    | parameter | trainable; frozen with `requires_grad=False` |
    | float buffer (`running_mean`) | buffer: averaged apart, never clipped |
    | integer buffer (`num_batches_tracked`) | frozen |
    | named by `private` or `frozen` | private or frozen |

    Batch norm cannot train on a single example. Where the last batch of a pass is one example and the module says so,
    that step is left out (`Fit.steps` counts those made); a client for whom no step is left gets a DataError.
    """

    net: Callable[[], Any]
    loss: Any
    measures: Measures = field(default_factory=dict, kw_only=True, hash=False)
    private: Sequence[str] = field(default=(), kw_only=True)
    frozen: Sequence[str] = field(default=(), kw_only=True)
    inputs: Sequence[str] = field(default=("x",), kw_only=True)
    targets: Sequence[str] = field(default=("y",), kw_only=True)
    dtype: str | None = field(default=None, kw_only=True)
    device: str | None = field(default=None, kw_only=True, metadata=SPEED)
    threads: int = field(default=1, kw_only=True, metadata=SPEED)
    loop: str = field(default="auto", kw_only=True, metadata=SPEED)

    clips_records = True

    def __post_init__(self) -> None:
        if self.loop not in ("auto", "measure", *LOOPS):
            raise ConfigError(f"loop='{self.loop}': choose 'auto', 'measure' or one of {LOOPS}.")
        if not callable(self.net) or isinstance(self.net, torch.nn.Module):
            raise ConfigError("net: give a callable that returns a new nn.Module (a class or function), not a module.")
        object.__setattr__(self, "loss", carried(self.loss))
        if self.dtype not in (None, "float32", "float64"):
            raise ConfigError(
                f"dtype='{self.dtype}': parameters are kept in float32 or float64; for half precision "
                "use torch.autocast inside the module's forward."
            )
        if self.threads < 1:
            raise ConfigError(f"threads={self.threads}: at least 1 is needed.")
        for name in ("private", "frozen", "inputs", "targets"):
            object.__setattr__(self, name, patterns(getattr(self, name), name))
        kind = task(self.loss)
        object.__setattr__(self, "metrics", bounds(self.measures, kind != Task.VALUES))
        object.__setattr__(self, "_task", kind)
        object.__setattr__(self, "_kept", {})  # device -> the module used by fit and evaluate

    @classmethod
    def exported(cls, path: str | os.PathLike[str], loss: Any, **settings: Any) -> "TorchModel":
        """A network saved by `torch.jit.save`, without its source; see `torch_program`.

        Args:
          path: of the TorchScript archive. The job holds its SHA-256; workers need a copy of the file.
          loss, settings: as above.

        Guarantees:
          `init` gives the weights that were saved, whatever the seed.
        """
        return cls(Program(os.fspath(path), digest(path)), loss, **settings)

    # -- what there is

    def init(self, seed: int) -> Tensors:
        """Parameters and buffers of a new module that was built with this seed."""
        with _LOCK, _random(seed, "cpu"):
            module = self._build()
        return Tensors({name: _array(tensor) for name, tensor in _named(module).items()})

    def shapes(self) -> Shapes:
        """Names, shapes and dtypes, from one module that is built once."""
        return self._facts[0]

    def roles(self) -> Mapping[str, Role]:
        """By kind of tensor, and by `private` and `frozen`."""
        return self._facts[1]

    def plan(self) -> str:
        """The loop, the kind of device, and threads."""
        device = self._device()
        return f"torch; {self._loop(device)}; {device.split(':')[0]}; threads={self.threads}"

    def planned(self, load: Callable[[], Any], work: LocalWork, plan: str = "") -> "TorchModel":
        """This model with its loop fixed, if it is to be measured."""
        if self.loop != "measure":
            return self
        parts = plan.split("; ")
        return replace(self, loop=parts[1] if plan else self._fastest(load(), work))

    def _fastest(self, data: Any, work: LocalWork) -> str:
        """Each loop in turn on some steps of this data, several times over; the one with the best time."""
        params, some = self.init(0), work.with_(epochs=None, steps=TRIAL_STEPS)
        images = any(len(shape) == 4 for shape, _ in self.shapes().values())
        models = {loop: replace(self, loop=loop) for loop in LOOPS if images or "channels last" not in loop}
        times: dict[str, list[float]] = {loop: [] for loop in models}
        for _ in range(1 + TRIALS):
            for loop, model in models.items():
                began = time.perf_counter()
                model.fit(params, data, some, np.random.default_rng(0))
                times[loop].append(time.perf_counter() - began)
        best = {loop: min(seconds[1:]) / TRIAL_STEPS * 1e3 for loop, seconds in times.items()}  # the first ones trace
        chosen = min(best, key=lambda loop: best[loop])
        log.warning("measured ms a step: %s", ", ".join(f"{loop} {ms:.3g}" for loop, ms in best.items()))
        log.warning("local training runs in the loop '%s'", chosen)
        return chosen

    def finish(self, params: Tensors) -> Any:
        """The `nn.Module` with these parameters, on the CPU and in eval mode."""
        with _LOCK, _random(0, "cpu"):
            module = self._build()
        mismatch(self.shapes(), params.shapes, "the parameters")
        _load(_named(module), params)
        return module.eval()

    @cached_property
    def _facts(self) -> tuple[Shapes, Mapping[str, Role]]:
        with _LOCK, _random(0, "cpu"):
            module = self._build()
        named = _named(module)
        own = {name: Role.TRAINABLE if tensor.requires_grad else Role.FROZEN for name, tensor in named.items()}
        for name, _ in module.named_buffers():
            if name in own:
                own[name] = Role.BUFFER if named[name].is_floating_point() else Role.FROZEN
        shapes = {name: (tuple(tensor.shape), dtype_name(tensor)) for name, tensor in sorted(named.items())}
        return shapes, assign(own, self.private, self.frozen)

    # -- training

    def fit(self, params: Tensors, data: Any, work: LocalWork, rng: np.random.Generator) -> Fit:
        """The steps of `work`, replayed or in a plain loop, as the class says."""
        batches = work.batches(len(data), rng) if work.dp is None else []
        seed = int(rng.integers(2**63))
        device = self._device()
        with _LOCK, _threads(self.threads), _random(seed, device):
            return self._fit(params, data, work, batches, device)

    def _fit(self, params: Tensors, data: Any, work: LocalWork, batches: list[np.ndarray], device: str) -> Fit:
        module = self._module(device)
        module.load(params)
        module.train()
        roles = self.roles()
        names = [name for name, tensor in module.parameters.items() if roles.get(name, Role.TRAINABLE) in _TRAINED]
        weights = [module.parameters[name] for name in names]
        check_terms(work, {name: tuple(w.shape) for name, w in zip(names, weights, strict=True)})
        pulled = [name for name in names if roles.get(name) != Role.PRIVATE]
        source, tally = _Columns(data, self.inputs, self.targets, module.dtype, device), _Tally(self)
        if work.dp is not None:
            return self._fit_records(module, names, weights, pulled, len(data), work, source)
        if module.loop.startswith("replay"):
            try:
                trained = dict(zip(names, weights, strict=True))
                for run in module.replay(self).fit(work, trained, pulled, module.others(trained), batches, source):
                    tally.add(*run)
                return Fit(module.copy(), tally.steps, tally.metrics())
            except Untraceable:
                pass  # said once by Replay; nothing was changed
        descent = InPlaceDescent(work, names, weights, pulled, _beside)
        loss_of, call = ready(self.loss), module.module
        for rows in batches:
            inputs, targets = source.take(rows)
            try:
                outputs = call(*inputs)
            except (ValueError, torch.jit.Error) as error:
                if len(rows) == 1 and LONE in str(error):
                    continue
                raise
            if not tally.steps:
                check_shapes(self.loss, outputs, targets)
            loss = loss_of(outputs, targets)
            grads = torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)
            descent.step(grads)
            tally.add(loss.detach().reshape(1), outputs, targets, len(rows))
        if not tally.steps:
            raise DataError(
                "batch norm cannot train on single examples: "
                "raise batch_size, leave clients of one example out, or use group norm."
            )
        return Fit(module.copy(), tally.steps, tally.metrics())

    def _fit_records(
        self, module: "_Module", names: list[str], weights: list[Any], pulled: list[str], examples: int,
        work: LocalWork, source: "_Columns",
    ) -> Fit:  # fmt: skip
        """The steps of DP-SGD. It gives no metrics: they would be released without noise."""
        from hansa.adapters import torch_records

        assert work.dp is not None
        records = torch_records.Records(module.module, ready(self.loss), names, weights)
        protected, descent = torch_records.Protected(), InPlaceDescent(work, names, weights, pulled, _beside)
        count = torch_records.steps(work, examples)
        for _ in range(count):
            rows = protected.chosen(examples, torch_records.rate(work, examples))
            sums = records.clipped_sum(*source.take(rows), work.dp.clip) if len(rows) else records.nothing()
            descent.step(torch_records.noisy_mean(sums, work, protected))
        return Fit(module.copy(), count)

    def evaluate(self, params: Tensors, data: Any) -> Metrics:
        """Sums over all examples of loss, correct answers and the further measures, in eval mode."""
        device = self._device()
        with _LOCK, _threads(self.threads), _random(0, device), torch.inference_mode(False), torch.no_grad():
            module = self._module(device)
            module.load(params)
            module.module.eval()
            source = _Columns(data, self.inputs, self.targets, module.dtype, device)
            loss_of, tally = ready(self.loss), _Tally(self)
            for at in range(0, len(data), EVALUATION_BATCH):
                rows = np.arange(at, min(at + EVALUATION_BATCH, len(data)))
                inputs, targets = source.take(rows)
                with torch.inference_mode():
                    outputs = module.module(*inputs)
                    check_shapes(self.loss, outputs, targets)
                    tally.add(loss_of(outputs, targets).reshape(1), outputs, targets, len(rows))
            return tally.metrics()

    # -- the module

    def _build(self) -> Any:
        module = self.net()
        if not isinstance(module, torch.nn.Module):
            raise ConfigError(f"net gave a {type(module).__name__}: it must return an nn.Module.")
        if self.dtype is not None:
            module = module.to(getattr(torch, self.dtype))
        for name, tensor in _named(module).items():
            if dtype_name(tensor) not in _DTYPES:
                raise ConfigError(
                    f"'{name}' is {dtype_name(tensor)}, which cannot be averaged: "
                    "give dtype='float32' for master copies, and torch.autocast inside forward for half precision."
                )
        return module

    def _module(self, device: str) -> "_Module":
        kept: dict[str, _Module] = self.__dict__["_kept"]
        if device not in kept:
            with _random(0, "cpu"):  # what is drawn while building must not shift what the visit draws
                kept[device] = _Module(self._build().to(device), self.roles(), self._loop(device))
        return kept[device]

    def _loop(self, device: str) -> str:
        if self.loop in LOOPS:
            return self.loop
        images = any(len(shape) == 4 for shape, _ in self.shapes().values())
        return "plain" if device != "cpu" else "replay, channels last" if images else "replay"

    def _device(self) -> str:
        name = self.device or os.environ.get(DEVICE) or "cpu"
        try:
            kind = torch.device(name)
        except RuntimeError:
            raise ConfigError(f"device='{name}': it is written as 'cpu' or 'cuda:0'.") from None
        if kind.type == "cuda" and (kind.index or 0) >= torch.cuda.device_count():
            raise ConfigError(
                f"device='{name}', but PyTorch sees {torch.cuda.device_count()} CUDA devices here: "
                f"choose another by device= or {DEVICE}, as in {DEVICE}=cpu."
            )
        return name


_TRAINED = (Role.TRAINABLE, Role.PRIVATE)
_DTYPES = ("float32", "float64", "int64", "int32", "int16", "int8", "uint8", "bool")


class _Module:
    """A module on its device, with all that makes a visit independent of the ones before."""

    def __init__(self, module: Any, roles: Mapping[str, Role], loop: str) -> None:
        self.loop = loop
        self.module = module.to(memory_format=torch.channels_last) if "channels last" in loop else module
        self._roles = roles
        named = _named(module)
        self.parameters = {name: tensor for name, tensor in module.named_parameters() if name in named}
        for name, tensor in self.parameters.items():
            tensor.requires_grad_(roles.get(name, Role.TRAINABLE) in _TRAINED)
        floats = [tensor.dtype for tensor in self.parameters.values() if tensor.is_floating_point()]
        self.dtype = floats[0] if floats else torch.float32
        self._replay: Replay | None = None
        # Buffers that are not in state_dict are reset at each visit.
        self._unsaved = {name: tensor.clone() for name, tensor in module.named_buffers() if name not in named}

    def load(self, params: Tensors) -> None:
        named = _named(self.module)
        mismatch({name: (tuple(t.shape), "") for name, t in named.items()}, params.shapes, "the parameters")
        _load(named, params)
        unsaved = dict(self.module.named_buffers()) if self._unsaved else {}
        for name, tensor in self._unsaved.items():
            unsaved[name].data.copy_(tensor)

    def train(self) -> None:
        self.module.train()
        for part in self.static:
            part.eval()

    @cached_property
    def static(self) -> list[Any]:
        """Parts whose own float buffers are all frozen: a batch norm that keeps its statistics."""
        still = []
        for prefix, part in self.module.named_modules():
            floats = [name for name, b in part.named_buffers(recurse=False) if b.is_floating_point()]
            own = [f"{prefix}.{name}".lstrip(".") for name in floats]
            if own and all(self._roles.get(name) == Role.FROZEN for name in own):
                still.append(part)
        return still

    def others(self, trained: Mapping[str, Any]) -> dict[str, Any]:
        """All parameters and buffers but those trained, as one visit changes them."""
        parameters = {name: p.detach() for name, p in self.module.named_parameters() if name not in trained}
        return parameters | dict(self.module.named_buffers())

    def replay(self, model: TorchModel) -> Replay:
        """The traced loops of this module, kept between visits."""
        if self._replay is None:
            keep = model.__dict__["_task"] != Task.VALUES or bool(model.measures)
            self._replay = Replay(self.module, ready(model.loss), keep, functools.partial(check_shapes, model.loss))
        return self._replay

    def copy(self) -> Tensors:
        return Tensors({name: _array(tensor) for name, tensor in _named(self.module).items()})


class _Columns:
    """The data's columns as batches of tensors: read row by row on the CPU, held whole on an accelerator."""

    def __init__(self, data: Any, inputs: Sequence[str], targets: Sequence[str], dtype: Any, device: str) -> None:
        self._inputs: list[Any] = [_column(data, name, dtype) for name in inputs]
        self._targets: list[Any] = [_column(data, name, dtype) for name in targets]
        self._dtype, self._device = dtype, device
        if device != "cpu":
            self._inputs = [torch.from_numpy(np.array(column)).to(device) for column in self._inputs]
            self._targets = [torch.from_numpy(np.array(column)).to(device) for column in self._targets]

    def shapes(self, size: int) -> ColumnShapes:
        """Shape and dtype of each column, inputs first, of a batch of so many rows."""
        return tuple(
            ((size, *column.shape[1:]), _torch_dtype(column.dtype)) for column in [*self._inputs, *self._targets]
        )

    def take(self, rows: np.ndarray) -> tuple[list[Any], Any]:
        """Inputs, and the target or the tuple of targets, at these rows."""
        if self._device != "cpu":
            at = torch.from_numpy(rows).to(self._device)
            inputs = [column.index_select(0, at) for column in self._inputs]
            targets = [column.index_select(0, at) for column in self._targets]
        else:
            inputs = [torch.from_numpy(column.take(rows, 0)) for column in self._inputs]
            targets = [torch.from_numpy(column.take(rows, 0)) for column in self._targets]
        return inputs, targets[0] if len(targets) == 1 else tuple(targets)


class _Tally:
    """Metrics as they come by: tensors are kept and added up at the end, so that a step waits for nothing."""

    def __init__(self, model: TorchModel) -> None:
        self._task: Task = model.__dict__["_task"]
        self._measures = model.measures
        self._sums: dict[str, list[Any]] = {}
        self._sizes: list[int] = []
        self.steps = 0

    def add(self, losses: Any, outputs: Any, targets: Any, size: int) -> None:
        """Takes the losses of some batches of `size`, and the outputs and targets of all their examples."""
        self.steps += len(losses)
        self._sizes += [size] * len(losses)
        self._sums.setdefault("loss", []).append(losses)
        with torch.no_grad():
            right = correct(self._task, outputs, targets) if outputs is not None else None
            if right is not None:
                self._sums.setdefault("accuracy", []).append(right.reshape(1))
            for name, (measure, _) in self._measures.items():
                self._sums.setdefault(name, []).append(measure(outputs, targets).sum().reshape(1))

    def metrics(self) -> Metrics:
        seen = float(sum(self._sizes))
        found = {}
        for name, values in self._sums.items():
            each = torch.cat(values).double().cpu().numpy()
            found[name] = (float(each @ np.asarray(self._sizes) if name == "loss" else each.sum()), seen)
        return found


# -- small steps


def _named(module: Any) -> dict[str, Any]:
    """Parameters (tied ones once) and buffers, by their names in state_dict."""
    saved = module.state_dict(keep_vars=True)
    found = {name: p for name, p in module.named_parameters() if name in saved}
    return found | {name: b for name, b in module.named_buffers() if name in saved}


def _load(named: Mapping[str, Any], params: Tensors) -> None:
    with torch.no_grad():
        for name, tensor in named.items():
            given = params[name]
            if tensor.device.type == "cpu" and isinstance(given, np.ndarray):
                tensor.detach().numpy()[...] = given  # no warning for arrays that may not be written
            else:
                tensor.copy_(given if torch.is_tensor(given) else torch.from_numpy(np.array(given)))


def _array(tensor: Any) -> np.ndarray:
    return np.array(tensor.detach().cpu().numpy(), order="C")


@functools.cache
def _torch_dtype(dtype: Any) -> Any:
    return torch.from_numpy(np.empty(0, dtype)).dtype if isinstance(dtype, np.dtype) else dtype


def _beside(array: Any, like: Any) -> Any:
    return torch.as_tensor(np.array(array), dtype=like.dtype, device=like.device)


def _column(data: Any, name: str, dtype: Any) -> np.ndarray:
    """One column: floats in the model's dtype, integers that PyTorch can index with."""
    column = np.asarray(data[name])
    if column.dtype.kind == "f":
        return column.astype(str(dtype).removeprefix("torch."), copy=False)
    if column.dtype.kind in "iu" and column.dtype != np.uint8:
        return column.astype(np.int64, copy=False)
    if column.dtype.kind not in "ub":
        raise DataError(f"column '{name}' is {column.dtype}: PyTorch takes numbers; encode it when the data is loaded.")
    return column


@contextmanager
def _random(seed: int, device: str) -> Iterator[None]:
    """PyTorch's random state, seeded inside and as before outside."""
    cuda = [torch.device(device)] if device.startswith("cuda") else []
    with torch.random.fork_rng(devices=cuda):
        torch.random.default_generator.manual_seed(seed)
        if cuda:
            torch.cuda.manual_seed(seed)
        yield


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    if before == count:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
