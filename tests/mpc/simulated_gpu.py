"""A GPU's rules without a GPU: tensors of a device "simulated:0" compute on the processor and refuse what CUDA does.

    python -m tests.mpc.simulated_gpu aby3 [OPERATION …]      runs them on it (all), and prints a line of JSON for each

Refused, as PyTorch refuses it: operands of two devices (but single numbers, and places of the processor in an index),
NumPy's view of a device's memory, products of int64 matrices, and products of bytes of other sizes than CUDA's.

Not shown: CUDA's kernels themselves, streams, memory, speed, PyTorch's paths for tensors that say `is_cuda` (recurrent
layers have some), and operations that CUDA lacks beyond those listed here. Backward passes run on the device's numbers,
but PyTorch's engine, which cannot follow a device without its library, is told that the secrets are the processor's.
It has a process of its own, as PyTorch keeps a device for good.
"""

import contextlib
import json
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from tests.mpc.test_secret_tensor import OPERATIONS
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

import hansa.mpc.options
from hansa.mpc.fixed import Fixed
from hansa.mpc.protocols import PROTOCOLS
from hansa.mpc.ring.products import kernel_on, matmul
from hansa.mpc.secret import SecretTensor
from hansa.mpc.session import Session, local
from hansa.runtimes.mesh.local import LocalMesh, together

aten = torch.ops.aten
_NO_INT64 = {aten.mm.default, aten.bmm.default, aten.addmm.default, aten.mv.default, aten.dot.default}
_INDEX = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default}


class OnDevice(torch.Tensor):
    """A tensor of the device; `inner` is where its numbers are."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls: type["OnDevice"], inner: torch.Tensor) -> "OnDevice":
        made: OnDevice = torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device=device(),
        )  # fmt: skip
        made.inner = inner
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})

    def numpy(self, **_: Any) -> Any:
        raise TypeError("can't convert simulated:0 device type tensor to numpy.")

    def __repr__(self, **_: Any) -> str:
        return f"OnDevice({tuple(self.shape)}, {self.dtype})"


def device() -> torch.device:
    return torch.device("simulated", 0)


def run(func: Any, args: Any, kwargs: Any) -> Any:
    """One operation on the processor, with CUDA's refusals."""
    tensors = [each for each in tree_flatten((args, kwargs))[0] if isinstance(each, torch.Tensor)]
    there = any(isinstance(each, OnDevice) for each in tensors)
    asked = torch.device(kwargs["device"]).type if kwargs.get("device") is not None else None
    if there and asked is None:
        _refuse(func, tensors)
    if asked is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    plain_args, plain_kwargs = tree_map(lambda each: each.inner if isinstance(each, OnDevice) else each, (args, kwargs))
    out = func(*plain_args, **plain_kwargs)
    if func is aten._to_copy.default and asked is not None:
        out = out.clone()
    if asked == "simulated" or (asked is None and there):
        return tree_map(lambda each: OnDevice(each) if isinstance(each, torch.Tensor) else each, out)
    return out


def _refuse(func: Any, tensors: list[torch.Tensor]) -> None:
    checked = tensors[:1] if func in _INDEX else tensors
    if any(not isinstance(each, OnDevice) and each.dim() for each in checked):
        raise RuntimeError(f"{func}: Expected all tensors to be on the same device, but found simulated:0 and cpu.")
    if func in _NO_INT64 and any(each.dtype == torch.int64 for each in tensors):
        raise RuntimeError(f"{func}: not implemented for 'Long' on CUDA")
    if func is aten._int_mm.default:
        (m, k), n = tensors[0].shape, tensors[1].shape[1]
        if m <= 16 or k % 8 or n % 8:
            raise RuntimeError(f"_int_mm: {m} x {k} x {n} is no size of CUDA's")


class Simulated(TorchDispatchMode):
    """Sees `device="simulated"` where no tensor of the device is among the arguments; secrets answer for themselves."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(isinstance(each, SecretTensor) for each in tree_flatten((args, kwargs or {}))[0]):
            with self:
                return SecretTensor.__torch_dispatch__(func, types, args, kwargs)
        return run(func, args, kwargs or {})


def on_device(program: Callable[[Session], Any], protocol: str) -> list[Any]:
    """As `hansa.mpc.local`, with all shares on the device."""

    def party(mesh: LocalMesh) -> Any:
        with Simulated(), Session(mesh, protocol, device=device()) as session:
            return program(session)

    return together(LocalMesh.of([f"party-{at}" for at in range(PROTOCOLS[protocol].parties)]), party)


def operation(function: Callable[..., Any], given: tuple[torch.Tensor, ...]) -> Callable[[Session], Any]:
    """A function of secrets, revealed; wherever it is, given as tensors of the processor."""

    def program(session: Session) -> Any:
        with torch.no_grad():
            secrets = [session.share(each, session.names[0]) for each in given]
            assert all(each.device == session._engine.device for each in secrets)
            opened = session.reveal(function(*secrets))
        return tree_map(lambda each: each.cpu() if isinstance(each, torch.Tensor) else each, opened)

    return program


def training(optimiser_of: Callable[[Any], torch.optim.Optimizer], session: Session) -> Any:
    """A small network with convolution, pooling, normalisation, dropout and cross-entropy, for three steps."""
    session.generator.manual_seed(4)
    nn = torch.nn
    layers = [nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(0.2)]
    model = nn.Sequential(*layers, nn.Linear(18, 8), nn.LayerNorm(8), nn.Sigmoid(), nn.Linear(8, 3))
    for each in model.parameters():  # not at random: the parties' threads share PyTorch's generator
        each.data = torch.linspace(-1, 2, each.numel()).sin().reshape(each.shape) * 0.5
    session.share_module(model)
    x = session.share(torch.linspace(-1, 1, 4 * 64).sin().reshape(4, 1, 8, 8), session.names[0])
    y = torch.tensor([0, 2, 1, 1])
    optimiser = optimiser_of(model.parameters())
    for _ in range(3):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimiser.step()
    return {name: each.cpu() for name, each in session.reveal(dict(model.named_parameters())).items()}


def differ(mine: Any, wanted: Any) -> float:
    """The largest difference; infinite where shapes or dtypes do."""
    mine, wanted = (
        [each for each in tree_flatten(every)[0] if isinstance(each, torch.Tensor)] for every in (mine, wanted)
    )
    if [(each.shape, each.dtype) for each in mine] != [(each.shape, each.dtype) for each in wanted]:
        return float("inf")
    pairs = zip(mine, wanted, strict=True)
    return max((float((a.double() - b.double()).abs().max()) for a, b in pairs if a.numel()), default=0.0)


def _as_of_the_processor(
    cls: type[SecretTensor], value: Fixed, dtype: torch.dtype = torch.float32, requires_grad: bool = False
) -> SecretTensor:
    made = torch.Tensor._make_wrapper_subclass(cls, value.shape, dtype=dtype, requires_grad=requires_grad)
    made._cell = [value]
    return made


def products() -> float:
    """Of int64 matrices of several sizes, from both kernels and in stacks: how many numbers are wrong."""
    wrong = 0
    for shapes in (((3, 5), (5, 2)), ((40, 70), (70, 33)), ((33, 600), (600, 35)), ((2, 3, 4), (2, 4, 5))):
        a, b = (torch.randint(-(2**63), 2**63 - 1, shape) for shape in shapes)
        with Simulated():
            found = matmul(a.to(device()), b.to(device())).cpu()
        wrong += int((found != torch.matmul(a, b)).sum())
    return float(wrong)


def told(name: str, measure: Callable[[], float]) -> None:
    error = None
    try:
        largest = measure()
    except Exception as problem:
        largest, error = float("inf"), f"{type(problem).__name__}: {problem}"[:300]
    print(json.dumps({"name": name, "difference": largest, "error": error}), flush=True)


def main(protocol: str, *names: str) -> None:
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    _setup_privateuseone_for_python_backend("simulated")
    torch.set_num_threads(1)
    hansa.mpc.options.usable = lambda wanted, _: torch.device(wanted)
    with Simulated():
        kernel_on(device())
    told("products", products)
    for name in names or OPERATIONS:
        if name in ("sort", "topk"):
            continue  # Batcher's network indexes by lists, which PyTorch copies to a device past any simulation
        function, given, _ = OPERATIONS[name]
        program = operation(function, given)
        told(name, lambda p=program: differ(on_device(p, protocol)[0], local(p, protocol)[0]))
    SecretTensor.__new__ = staticmethod(_as_of_the_processor)
    # Adam divides by its gradients' size, and so makes steps of the random roundings of a gradient near 0.
    optimiser = partial(torch.optim.Adam, lr=0.05) if protocol == "plain" else partial(torch.optim.SGD, lr=0.05)
    program = partial(training, optimiser)
    told("training", lambda: differ(on_device(program, protocol)[0], local(program, protocol)[0]))


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        main(*sys.argv[1:])
