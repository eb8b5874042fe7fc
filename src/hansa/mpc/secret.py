"""`SecretTensor`: a torch.Tensor whose values nobody sees.

It has the shape, dtype and device of the value it hides. Autograd records operations on it as on any tensor; what runs
below autograd, forward and backward, is looked up here by its ATen name:

    a handler of ours       addmm, relu, convolution, …                       in `mpc.operations`
    a decomposition         PyTorch's own, into operations that have one
    an error                that names the operation, and the nearest thing that works

There is one way out, `Session.reveal`. Whatever else would read a value (`item`, `bool`, `print`, `numpy`) is an error
that names the line.

What is written in place goes where PyTorch's memory would take it: `detach()` and `.data` hold the same number as what
they came from, and a change of a view changes its base.
"""

import copy
import difflib
import functools
import traceback
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch._decomp import core_aten_decompositions, decomposition_table

from hansa.core.errors import DataError, SecretError
from hansa.mpc.fixed import Fixed

_Handler = TypeVar("_Handler", bound=Callable[..., Any])
_HANDLERS: dict[Any, Callable[..., Any]] = {}
_DRAWN = {"normal_": "normal_functional"}
_OPENS = ("_local_scalar_dense", "is_nonzero", "item", "equal", "_to_cpu", "nonzero", "unique", "masked_select")


def handles(*operations: Any) -> Callable[[_Handler], _Handler]:
    """Registers a handler for ATen operations."""

    def register(handler: _Handler) -> _Handler:
        for operation in operations:
            _HANDLERS[operation] = handler
        return handler

    return register


class SecretTensor(torch.Tensor):
    """A secret-shared tensor; `Session.share` makes one, `Session.reveal` opens it."""

    _cell: list[Fixed]

    @staticmethod
    def __new__(
        cls: type["SecretTensor"], value: Fixed, dtype: torch.dtype = torch.float32, requires_grad: bool = False
    ) -> "SecretTensor":
        made: SecretTensor = torch.Tensor._make_wrapper_subclass(
            cls, value.shape, dtype=dtype, device=value.engine.device, requires_grad=requires_grad
        )
        made._cell = [value]
        return made

    @property
    def value(self) -> Fixed:
        """The number that it holds now."""
        return self._cell[0]

    @property
    def data(self) -> "SecretTensor":
        """The same number outside of autograd; what replaces it is held here from then on.

        Raises:
          SecretError: what shall replace it has another shape or dtype, which PyTorch cannot change in a secret.
        """
        found: SecretTensor = self.detach()
        return found

    @data.setter
    def data(self, given: torch.Tensor) -> None:
        if given.shape != self.shape or given.dtype != self.dtype:
            raise SecretError(
                f"a secret of {tuple(self.shape)} and {self.dtype} keeps its shape and dtype{program_line()}, and is "
                f"given data of {tuple(given.shape)} and {given.dtype}: make a new tensor of them."
            )
        self.data.copy_(given)

    def alias(self) -> "SecretTensor":
        """Another tensor of the same number: what is written into one is in the other, too."""
        made = SecretTensor(self.value, self.dtype)
        made._cell = self._cell
        return made

    def write(self, value: Fixed) -> "SecretTensor":
        """Another number in place of this one, here and in whatever this tensor is a view of."""
        self._cell[0] = value
        base = self._base
        if isinstance(base, SecretTensor) and base is not self:
            placed = value.engine.placed
            places = self._view_func_unsafe(torch.arange(base.numel()).reshape(base.shape))
            flat = places.reshape(-1)
            source = torch.zeros(base.numel(), dtype=torch.int64)
            source[flat] = torch.arange(flat.numel())
            source = placed(source)
            taken = torch.zeros(base.numel(), dtype=torch.int64)
            taken[flat] = 1
            new = value.map(lambda part: part.reshape(-1)[source].reshape(base.shape))
            mask = placed(taken.reshape(base.shape))
            base._cell[0] = base.value * (1 - mask) + new * mask
        return self

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        handler = _HANDLERS.get(func) or _without_handler(func)
        try:
            return handler(*args, **kwargs) if kwargs else handler(*args)
        except DataError as error:
            if "' of a secret" in str(error):  # which operation it was has been said
                raise
            name = func._schema.name.split("::")[1]
            raise DataError(f"'{name}' of a secret{program_line()}: {error}") from None

    def __repr__(self, **_: Any) -> str:
        return f"SecretTensor(shape={tuple(self.shape)}, dtype={str(self.dtype).removeprefix('torch.')})"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return repr(self)

    def numpy(self, **_: Any) -> Any:
        """Always an error: it would open the secret."""
        raise _opening("numpy()")

    def tolist(self) -> Any:
        """Always an error: it would open the secret."""
        raise _opening("tolist()")

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise _opening("numpy.asarray()")

    def __dlpack__(self, *_: Any, **__: Any) -> Any:
        raise _opening("__dlpack__()")

    def apply_(self, *_: Any) -> Any:
        """Always an error: it would call a function of Python with each value."""
        raise _opening("apply_()")

    def map_(self, *_: Any) -> Any:
        """Always an error, as `apply_`."""
        raise _opening("map_()")

    def share_memory_(self) -> Any:
        """Always an error: there is no memory with the value."""
        raise _opening("share_memory_()")

    def __deepcopy__(self, memo: dict[int, Any]) -> "SecretTensor":
        if id(self) in memo:
            return memo[id(self)]  # type: ignore[no-any-return]
        if not self.is_leaf:
            raise RuntimeError("only tensors that were made by the program itself can be copied by deepcopy: detach()")
        memo[id(self)] = made = SecretTensor(self.value, self.dtype, self.requires_grad)
        if getattr(self, "_is_param", False):  # PyTorch copies the gradient of what is no parameter
            made._is_param = True
        elif self.grad is not None:
            made.grad = copy.deepcopy(self.grad, memo)
        return made

    def __reduce_ex__(self, _: Any) -> Any:
        raise SecretError("a secret tensor is one party's share: save it with `session.save`, never with pickle.")


def dispatch(func: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
    """Runs an ATen operation as if a program had called it."""
    return SecretTensor.__torch_dispatch__(func, (), args, kwargs)


@functools.cache
def _without_handler(func: Any) -> Callable[..., Any]:
    """How another operation runs: written back, decomposed, or not at all."""
    if (functional := _functional(func)) is not None:
        handler = _HANDLERS.get(functional) or _without_handler(functional)
        return functools.partial(_write_back, func, handler)
    decomposition: Callable[..., Any] | None = _decompositions().get(func)
    return decomposition or functools.partial(_decomposed, func)


def _write_back(func: Any, handler: Callable[..., Any], into: Any, *args: Any, **kwargs: Any) -> Any:
    if not isinstance(into, SecretTensor):
        raise SecretError(
            f"'{func._schema.name.split('::')[1]}' would write a secret into a public tensor{program_line()}: make it "
            "secret with session.share, or write the result to a new tensor."
        )
    result = handler(into, *args, **kwargs)
    if result.shape != into.shape:
        raise RuntimeError(
            f"output with shape {list(into.shape)} doesn't match the broadcast shape {list(result.shape)}"
        )
    if result.dtype != into.dtype:
        if not torch.can_cast(result.dtype, into.dtype):
            raise RuntimeError(f"result type {result.dtype} can't be cast to the desired output type {into.dtype}")
        result = result.to(into.dtype)
    return into.write(result.value)


def _decomposed(func: Any, *args: Any, **kwargs: Any) -> Any:
    result = func.decompose(*args, **kwargs)
    if result is NotImplemented:
        raise _refusal(func)
    return result


def _functional(func: Any) -> Any:
    """The operation that an in-place one writes back, as add for add_."""
    name = func._schema.name.split("::")[1]
    if not name.endswith("_") or name.startswith("__"):
        return None
    packet = getattr(torch.ops.aten, _DRAWN.get(name, name[:-1]), None)
    return getattr(packet, func._overloadname, None) if packet is not None else None


@functools.cache
def _decompositions() -> Mapping[Any, Any]:
    # Made whole before another thread, another party's of this process, sees it.
    core = core_aten_decompositions()
    return {**decomposition_table, **core}


def _refusal(func: Any) -> SecretError:
    name = func._schema.name.split("::")[1]
    if name in _OPENS:
        return _opening("reading one value" if name == "_local_scalar_dense" else name)
    known = sorted({operation._schema.name.split("::")[1] for operation in _HANDLERS})
    if name in known:
        return SecretError(
            f"'{name}' with these arguments (as with out= or rounding_mode=) has no protocol on secret tensors"
            f"{program_line()}: use its usual form."
        )
    near = difflib.get_close_matches(name.strip("_"), known, 3, cutoff=0.5)
    advice = f"nearest are {', '.join(near)}" if near else "write it with sums, products, comparisons and torch.where"
    return SecretError(f"'{name}' has no protocol on secret tensors{program_line()}: {advice}.")


def _opening(what: str) -> SecretError:
    return SecretError(
        f"{what} would open a secret{program_line()}: compute on it as a tensor (torch.where instead of `if`), or open "
        "it on purpose with session.reveal(tensor, to=...)."
    )


def program_line() -> str:
    """Where in the user's program this happens."""
    for frame in reversed(traceback.extract_stack()):
        if "/torch/" not in frame.filename and "/hansa/" not in frame.filename:
            return f" at {frame.filename}:{frame.lineno} ({frame.line})"
    return ""
