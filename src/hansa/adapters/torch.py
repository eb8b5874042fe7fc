"""Any `nn.Module` and loss as a model: its local step traced and replayed, or a plain PyTorch loop.

    fit:  load params into the module → for each batch of LocalWork: forward, loss, grad, step in place → copy out

Names are those of `state_dict()`; of tied parameters the first name counts. Results depend on `params`, data, work and
rng alone; all that one process fits goes through one lock, since PyTorch's threads and random state are the process's.
"""

import functools
import logging
import os
import random
import re
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
from hansa.core.errors import ConfigError, DataError, HansaError, MissingExtra
from hansa.core.job import SPEED
from hansa.core.model import Fit, LocalWork, Metrics, Model, Role
from hansa.core.tensors import Shapes, Tensors, dtype_name, mismatch

try:
    import torch
except ModuleNotFoundError as error:
    raise MissingExtra("TorchModel", "torch", "torch") from error

from hansa.adapters import torch_plans
from hansa.adapters.torch_capture import Room, recorder_on
from hansa.adapters.torch_cohort import Cohort, Visit
from hansa.adapters.torch_descent import InPlaceDescent
from hansa.adapters.torch_device import chosen, hardware, memory_bytes, seeded, wanted, working_on
from hansa.adapters.torch_loss import Task, carried, check_loss, check_shapes, ignored, ready, task
from hansa.adapters.torch_native import Untraceable
from hansa.adapters.torch_network import Network, array, fill, named
from hansa.adapters.torch_precision import BF16, call
from hansa.adapters.torch_program import Program, digest
from hansa.adapters.torch_replay import LONE, Replay, said
from hansa.adapters.torch_visit import Columns, Tally

EVALUATION_BATCH = 512  # examples at a time; decides memory, and nothing else
LOOPS = ("replay", "replay, channels last", "plain", "plain, channels last", "cohort")
TRIAL_STEPS, TRIALS, TRIAL_CLIENTS = 8, 5, 32  # how a loop is measured, and with how many clients at once
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
      precision: `bf16` multiplies matrices in bfloat16 while it trains, which is faster where the hardware has it, and
        less exact: see `torch_precision`. Parameters, their updates and evaluation stay as `dtype` says.
      device: where to train: `cpu`, `cuda` (the process's own GPU) or `cuda:0`; None asks the environment variable
        HANSA_DEVICE, then takes the CPU. See `torch_device`.
      threads: that PyTorch may use during `fit` and `evaluate`; part of what decides float rounding.
      loop: how `fit` runs its steps: `plain` or `replay` (traced once, run natively without autograd; what cannot be
        traced runs plainly), each also with `, channels last`; `cohort`: replay, and in the local runtime many clients
        at once, which pays on a GPU and for models that are tiny; `auto`: cohort on a GPU, replay on the CPU, with
        channels last for convolutions; or `measure`: what a simulation finds fastest on its first client, printed, and
        kept between runs (`torch_plans`). It changes float rounding alone; only dropout on images draws other masks in
        another layout.

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
    precision: str | None = field(default=None, kw_only=True)
    device: str | None = field(default=None, kw_only=True, metadata=SPEED)
    threads: int = field(default=1, kw_only=True, metadata=SPEED)
    loop: str = field(default="auto", kw_only=True, metadata=SPEED)

    clips_records = True

    @property
    def stacks(self) -> bool:
        """Whether `fit_cohort` trains many clients at once, so that it is worth handing them over together."""
        return self._loop(wanted(self.device)) == "cohort"

    def __post_init__(self) -> None:
        if self.loop not in ("auto", "measure", *LOOPS):
            raise ConfigError(f"loop='{self.loop}': choose 'auto', 'measure' or one of {LOOPS}.")
        if not callable(self.net) or isinstance(self.net, torch.nn.Module):
            raise ConfigError("net: give a callable that returns a new nn.Module (a class or function), not a module.")
        object.__setattr__(self, "loss", carried(self.loss))
        if self.dtype not in (None, "float32", "float64"):
            raise ConfigError(
                f"dtype='{self.dtype}': parameters are kept in float32 or float64; for half precision "
                "use precision='bf16'."
            )
        if self.precision not in (None, BF16):
            raise ConfigError(f"precision='{self.precision}': choose '{BF16}', or None for that of the parameters.")
        if self.threads < 1:
            raise ConfigError(f"threads={self.threads}: at least 1 is needed.")
        for name in ("private", "frozen", "inputs", "targets"):
            object.__setattr__(self, name, patterns(getattr(self, name), name))
        kind = task(self.loss)
        object.__setattr__(self, "metrics", bounds(self.measures, kind != Task.VALUES))
        object.__setattr__(self, "_kind", kind)
        object.__setattr__(self, "_kept", {})  # device -> what fit and evaluate keep

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
        with _LOCK, seeded(seed, "cpu"):
            module = self._build()
        return Tensors({name: array(tensor) for name, tensor in named(module).items()})

    def shapes(self) -> Shapes:
        """Names, shapes and dtypes, from one module that is built once."""
        return self._facts[0]

    def roles(self) -> Mapping[str, Role]:
        """By kind of tensor, and by `private` and `frozen`."""
        return self._facts[1]

    def plan(self) -> str:
        """The loop, the kind of device, and threads."""
        device = wanted(self.device)
        return f"torch; {self._loop(device)}; {device.split(':')[0]}; threads={self.threads}"

    def planned(self, load: Callable[[], Any], work: LocalWork, plan: str = "") -> "TorchModel":
        """This model with its loop fixed, if it is to be measured."""
        if self.loop != "measure":
            return self
        return replace(self, loop=plan.split("; ")[1] if plan else self._kept_or_fastest(load(), work))

    def _kept_or_fastest(self, data: Any, work: LocalWork) -> str:
        """The loop that was measured in an earlier run of the same, or what is measured now."""
        device, columns = self._device(), [np.asarray(data[name]) for name in (*self.inputs, *self.targets)]
        with _LOCK, seeded(0, "cpu"):
            network = str(self._build())
        key = torch_plans.key_of(
            network, sorted(self.shapes().items()), sorted(self.roles().items()), len(data), work.with_(lr=0.0),
            [(one.shape[1:], str(one.dtype)) for one in columns], hardware(device), self.threads, self.precision,
        )  # fmt: skip
        kept = torch_plans.known(key, LOOPS)
        if kept is not None:
            log.warning("local training runs in the loop '%s', the fastest when it was measured before", kept)
            return kept
        torch_plans.keep(key, chosen := self._fastest(data, work))
        return chosen

    def _fastest(self, data: Any, work: LocalWork) -> str:
        """Each loop in turn on some steps of this data, several times over; the one with the best time a client."""
        params, some = self.init(0), work.with_(epochs=None, steps=TRIAL_STEPS)
        count = {"cohort": TRIAL_CLIENTS}
        images = any(len(shape) == 4 for shape, _ in self.shapes().values())
        models = {loop: replace(self, loop=loop) for loop in LOOPS if images or "channels last" not in loop}
        times: dict[str, list[float]] = {loop: [] for loop in models}
        for _ in range(1 + TRIALS):
            for loop, model in models.items():
                many = count.get(loop, 1)
                rngs = [np.random.default_rng(seed) for seed in range(many)]
                began = time.perf_counter()
                model.fit_cohort([params] * many, [data] * many, [some] * many, rngs)
                times[loop].append((time.perf_counter() - began) / many)
        best = {loop: min(seconds[1:]) / TRIAL_STEPS * 1e3 for loop, seconds in times.items()}  # the first ones trace
        chosen = min(best, key=lambda loop: best[loop])
        log.warning("measured ms a step: %s", ", ".join(f"{loop} {ms:.3g}" for loop, ms in best.items()))
        log.warning("local training runs in the loop '%s'", chosen)
        return chosen

    def finish(self, params: Tensors) -> Any:
        """The `nn.Module` with these parameters, on the CPU and in eval mode."""
        with _LOCK, seeded(0, "cpu"):
            module = self._build()
        mismatch(self.shapes(), params.shapes, "the parameters")
        fill(named(module), params)
        return module.eval()

    @cached_property
    def _facts(self) -> tuple[Shapes, Mapping[str, Role]]:
        with _LOCK, seeded(0, "cpu"):
            module = self._build()
        found = named(module)
        own = {name: Role.TRAINABLE if tensor.requires_grad else Role.FROZEN for name, tensor in found.items()}
        for name, _ in module.named_buffers():
            if name in own:
                own[name] = Role.BUFFER if found[name].is_floating_point() else Role.FROZEN
        shapes = {name: (tuple(tensor.shape), dtype_name(tensor)) for name, tensor in sorted(found.items())}
        return shapes, assign(own, self.private, self.frozen)

    # -- training

    def fit(self, params: Tensors, data: Any, work: LocalWork, rng: np.random.Generator) -> Fit:
        """The steps of `work`, replayed or in a plain loop, as the class says."""
        return self._fit_drawn(params, data, work, *_drawn(work, len(data), rng))

    def fit_cohort(
        self, params: Sequence[Tensors], data: Sequence[Any], work: Sequence[LocalWork],
        rngs: Sequence[np.random.Generator],
    ) -> list[Fit]:  # fmt: skip
        """`fit` of each; with the loop `cohort` all at once, as far as that can be done: see `torch_cohort`."""
        whole = zip(params, data, work, rngs, strict=True)
        given = [(start, own, asked, *_drawn(asked, len(own), rng)) for start, own, asked, rng in whole]
        together = self._fit_together(given) if self.stacks and len(given) > 1 else [None] * len(given)
        return [fit or self._fit_drawn(*each) for fit, each in zip(together, given, strict=True)]

    def _fit_drawn(self, params: Tensors, data: Any, work: LocalWork, batches: list[np.ndarray], seed: int) -> Fit:
        device = self._device()
        with _LOCK, working_on(device, self.threads), seeded(seed, device):
            return self._fit(params, data, work, batches, device)

    def _fit_together(self, given: Sequence[tuple[Tensors, Any, LocalWork, list[np.ndarray], int]]) -> list[Fit | None]:
        """What can be trained at once; None for the others."""
        if any(work.dp is not None for _, _, work, _, _ in given):
            log.info("clients are trained one by one: record-level privacy draws batches of its own")
            return [None] * len(given)
        device = self._device()
        with _LOCK, working_on(device, self.threads), seeded(0, device):
            kept = self._kept_on(device)
            network = kept.network
            network.load(given[0][0])
            visits, still = [], [name for name in network.parameters if name not in network.trained]
            for params, data, work, batches, _ in given:
                mismatch(self.shapes(), params.shapes, "the parameters")
                if any(not _equal(params[name], given[0][0][name]) for name in still):
                    log.info("clients are trained one by one: their frozen tensors differ")
                    return [None] * len(given)
                check_terms(work, {name: tuple(weight.shape) for name, weight in network.trained.items()})
                columns = Columns(data, self.inputs, self.targets, network.dtype, device)
                visits.append(Visit(params, columns, work, batches))
            try:
                for visit in visits:
                    self._check_labels(kept, visit.source)
                network.train()
                return kept.cohort.fit(visits)
            except (DataError, IndexError, RuntimeError) as error:  # of one client: alone, it will show whose
                log.info("clients are trained one by one: %s", said(error))
                return [None] * len(given)

    def _fit(self, params: Tensors, data: Any, work: LocalWork, batches: list[np.ndarray], device: str) -> Fit:
        kept = self._kept_on(device)
        network, weights = kept.network, kept.network.trained
        network.load(params)
        check_terms(work, {name: tuple(weight.shape) for name, weight in weights.items()})
        source = Columns(data, self.inputs, self.targets, network.dtype, device)
        self._check_labels(kept, source)
        network.train()
        if work.dp is not None:
            return self._fit_records(kept, len(data), work, source)
        with _explained(source, (*self.inputs, *self.targets)):
            tally = self._steps(kept, params, work, batches, source)
        if not tally.steps:
            raise DataError(
                "batch norm cannot train on single examples: "
                "raise batch_size, leave clients of one example out, or use group norm."
            )
        return Fit(network.copy(), tally.steps, tally.metrics())

    def _steps(
        self, kept: "_Kept", params: Tensors, work: LocalWork, batches: list[np.ndarray], source: Columns
    ) -> Tally:
        """All steps, replayed if they can be."""
        network, tally = kept.network, Tally(self._task, self.measures)
        if kept.replay is not None:
            try:
                for run in kept.replay.fit(work, network.trained, network.pulled, network.others(), batches, source):
                    tally.add(*run)
                return tally
            except Untraceable:
                pass  # said once by Replay; nothing was changed
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, IndexError) as error:  # the plain loop says best what it does not like
                log.info("plain loop for this client: replayed, it fails: %s", said(error))
                network.load(params)
                torch.manual_seed(torch.initial_seed())
        with _python_seeded(torch.initial_seed()):
            return self._plain_steps(network, work, batches, source)

    def _plain_steps(self, network: Network, work: LocalWork, batches: list[np.ndarray], source: Columns) -> Tally:
        tally = Tally(self._task, self.measures)
        weights, loss_of = list(network.trained.values()), ready(self.loss)
        descent = InPlaceDescent(work, list(network.trained), weights, network.pulled, _beside)
        for rows in batches:
            inputs, targets = source.take(rows)
            try:
                outputs = call(network.module, self.precision, inputs)
            except (ValueError, torch.jit.Error) as error:
                if len(rows) == 1 and LONE in str(error):
                    continue
                raise
            if not tally.steps:
                check_shapes(self.loss, outputs, targets)
            loss = loss_of(outputs, targets)
            if not tally.steps:
                check_loss(loss)
            grads = torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)
            descent.step(grads)
            tally.add(loss.detach().reshape(1), outputs, targets, len(rows))
        return tally

    def _fit_records(self, kept: "_Kept", examples: int, work: LocalWork, source: Columns) -> Fit:
        """The steps of DP-SGD. It gives no metrics: they would be released without noise."""
        from hansa.adapters import torch_records
        from hansa.adapters.torch_records_replay import padded

        dp, batch = work.dp, work.batch_size
        assert dp is not None
        assert batch is not None
        network = kept.network
        names, weights = list(network.trained), list(network.trained.values())
        if kept.records is None:
            native = kept.replay is not None
            kept.records = torch_records.Records(network.module, ready(self.loss), names, weights, native)
        protected, descent = torch_records.Protected(), InPlaceDescent(work, names, weights, network.pulled, _beside)
        torch.manual_seed(protected.seed())
        count = torch_records.steps(work, examples)
        for _ in range(count):
            rows = protected.chosen(examples, torch_records.rate(work, examples))
            mean = torch_records.noise_of_mean(weights, work, protected)
            if len(rows) and dp.microbatches is not None:
                slots, drawn = protected.slots(len(rows), dp.microbatches), source.take(rows)
                kept.records.add_microbatches(
                    mean, *drawn, dp.clip, 1 / dp.microbatches, slots=slots, expected=batch / dp.microbatches
                )
            elif len(rows):
                kept.records.add_clipped(mean, *source.take(padded(rows)), dp.clip, 1 / batch, count=len(rows))
            descent.step(mean)
        return Fit(network.copy(), count)

    def evaluate(self, params: Tensors, data: Any) -> Metrics:
        """Sums over all examples of loss, correct answers and the further measures, in eval mode."""
        device = self._device()
        with _LOCK, working_on(device, self.threads), seeded(0, device), torch.inference_mode(False), torch.no_grad():
            kept = self._kept_on(device)
            network = kept.network
            network.load(params)
            source = Columns(data, self.inputs, self.targets, network.dtype, device)
            self._check_labels(kept, source)
            network.train(False)
            loss_of, tally = ready(self.loss), Tally(self._task, self.measures)
            for at in range(0, len(data), EVALUATION_BATCH):
                rows = np.arange(at, min(at + EVALUATION_BATCH, len(data)))
                inputs, targets = source.take(rows)
                with torch.inference_mode(), _explained(source, (*self.inputs, *self.targets)):
                    outputs = network.module(*inputs)
                    check_shapes(self.loss, outputs, targets)
                    tally.add(loss_of(outputs, targets).reshape(1), outputs, targets, len(rows))
            return tally.metrics()

    def _check_labels(self, kept: "_Kept", source: Columns) -> None:
        """Raises DataError for a label that is no class, where it would end this process's use of a GPU: an assertion
        in a kernel. The CPU's kernels say it themselves.
        """
        if source.device == "cpu" or self._task != Task.CLASSES or len(self.targets) > 1:
            return
        if kept.classes is None:
            kept.network.train(False)
            with torch.no_grad(), _explained(source, (*self.inputs, *self.targets)):
                outputs = kept.network.module(*source.take(np.zeros(1, np.int64))[0])
            kept.classes = outputs.shape[1] if torch.is_tensor(outputs) and outputs.ndim > 1 else 0
        wrong = source.stranger(kept.classes, ignored(self.loss)) if kept.classes else None
        if wrong is not None:
            raise _no_class(self.targets[-1], wrong)

    # -- the module

    def _build(self) -> Any:
        module = self.net()
        if not isinstance(module, torch.nn.Module):
            raise ConfigError(f"net gave a {type(module).__name__}: it must return an nn.Module.")
        for name, tensor in module.state_dict(keep_vars=True).items():
            if torch.nn.parameter.is_lazy(tensor):
                raise ConfigError(
                    f"'{name}' has no shape before the module has seen a batch: give the layer its size, or let the "
                    "callable run the module once on a batch of zeros."
                )
            if torch.is_tensor(tensor) and tensor.is_complex():
                raise ConfigError(
                    f"'{name}' is {dtype_name(tensor)}: keep its real and imaginary parts in a float tensor whose last "
                    "axis has two numbers, and use torch.view_as_complex."
                )
        if self.dtype is not None:
            module = module.to(getattr(torch, self.dtype))
        for name, tensor in named(module).items():
            if dtype_name(tensor) not in _DTYPES:
                raise ConfigError(
                    f"'{name}' is {dtype_name(tensor)}, which cannot be averaged: "
                    "give dtype='float32' for master copies, and precision='bf16' to compute in half precision."
                )
        return module

    def _kept_on(self, device: str) -> "_Kept":
        kept: dict[str, _Kept] = self.__dict__["_kept"]
        if device not in kept:
            loop = self._loop(device)
            with seeded(0, "cpu"):  # what is drawn while building must not shift what the visit draws
                network = Network(self._build().to(device), self.roles(), "channels last" in loop, device == "cpu")
            keep = self._task != Task.VALUES or bool(self.measures)
            check = functools.partial(check_shapes, self.loss)
            loss = ready(self.loss)
            recorder = recorder_on(device)
            room = Room(recorder) if recorder is not None else None
            replay = Replay(network, loss, keep, check, self.precision, room)
            cohort = Cohort(network, replay, self.loss, self._task, self.measures, memory_bytes(device))
            kept[device] = _Kept(network, None if loop.startswith("plain") else replay, cohort)
        return kept[device]

    @property
    def _task(self) -> Task:
        kind: Task = self.__dict__["_kind"]
        return kind

    def _loop(self, device: str) -> str:
        if self.loop in LOOPS:
            return self.loop
        images = any(len(shape) == 4 for shape, _ in self.shapes().values())
        return "cohort" if device != "cpu" else "replay, channels last" if images else "replay"

    def _device(self) -> str:
        return chosen(self.device)


@dataclass
class _Kept:
    """What lives on one device between visits: the network, and its traced steps unless the plan is the plain loop."""

    network: Network
    replay: Replay | None
    cohort: Cohort
    classes: int | None = None  # that the network tells apart, on a GPU; 0 if its outputs do not say
    records: Any = None  # of DP-SGD, from the first visit that asks for it


_LABEL = re.compile(r"Target (-?\d+) is out of bounds")  # PyTorch's words
_DTYPES = ("float32", "float64", "int64", "int32", "int16", "int8", "uint8", "bool")


# -- small steps


def _beside(array: Any, like: Any) -> Any:
    return torch.as_tensor(np.array(array), dtype=like.dtype, device=like.device)


def _equal(one: Any, other: Any) -> bool:
    return one is other or bool((one == other).all())


def _drawn(work: LocalWork, examples: int, rng: np.random.Generator) -> tuple[list[np.ndarray], int]:
    """All that a visit takes from its generator: the rows of its batches, and a seed."""
    batches = work.batches(examples, rng) if work.dp is None else []
    return batches, int(rng.integers(2**63))


@contextmanager
def _python_seeded(seed: int) -> Iterator[None]:
    """The random states of Python and NumPy that a process shares, for modules that draw from them."""
    python, numpy = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextmanager
def _explained(source: Columns, names: Sequence[str]) -> Iterator[None]:
    """What PyTorch says of a batch that a module or its loss does not take, as an error that names the columns."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (IndexError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, HansaError):
            raise
        if wrong := _LABEL.search(str(error)):
            raise _no_class(names[-1], wrong[1]) from error
        if "device-side assert" in str(error):
            raise DataError(
                "an operation on the GPU met a number beyond its range, as a token that an embedding does not hold: "
                "this process cannot use the GPU any more. Start anew, and train with device='cpu', which says where."
            ) from error
        columns = zip(names, source.shapes(1), strict=True)
        given = ", ".join(
            f"{name}: {str(kind).removeprefix('torch.')} {list(shape[1:])}" for name, (shape, kind) in columns
        )
        said = str(error).strip().splitlines() or [""]
        raise DataError(
            f"the module or its loss failed on examples of {{{given}}}, with {type(error).__name__}: {said[0]}. "
            "Give columns of the dtype, shape and range that they read."
        ) from error


def _no_class(column: str, label: Any) -> DataError:
    return DataError(
        f"column '{column}' has the label {label}, and the model gives no such class: mend the labels, or "
        "give the last layer as many outputs as there are classes (labels begin at 0)."
    )
