"""Between tensors of the program and numbers of the engine."""

from collections.abc import Iterable
from typing import Any

import torch

from hansa.mpc.fixed import Engine, Fixed
from hansa.mpc.secret import SecretTensor

_ENDLESS = torch.finfo(torch.float32).max


def engine_of(*things: Any) -> Engine:
    """The engine of the first secret among arguments."""
    for thing in things:
        if isinstance(thing, SecretTensor):
            return thing.value.engine
        if isinstance(thing, list | tuple):
            for each in thing:
                if isinstance(each, SecretTensor):
                    return each.value.engine
    raise AssertionError("no secret among the arguments")


def number(thing: Any, engine: Engine) -> Fixed:
    """Any operand as a number; what is not secret is public."""
    if isinstance(thing, SecretTensor):
        return thing.value
    return Fixed.constant(engine, torch.as_tensor(thing))


def bounded(thing: Any, most: float = 2.0**14) -> Any:
    """What is public, with ±`most` for infinity and for the largest float, which masks take for it.

    A mask's number is added to, compared and scaled: 2^14 leaves room for that, and is far beyond where softmax is 0.
    """
    if isinstance(thing, SecretTensor):
        return thing
    if not isinstance(thing, torch.Tensor):
        return max(-most, min(most, thing)) if isinstance(thing, float) and abs(thing) >= _ENDLESS else thing
    if not thing.is_floating_point() or not bool((endless := thing.abs() >= _ENDLESS).any()):
        return thing
    return torch.where(endless, thing.sign() * most, thing)


def secret(value: Fixed, dtype: torch.dtype = torch.float32) -> SecretTensor:
    """A number as a tensor of the program."""
    return SecretTensor(value, dtype)


def floating(*things: Any) -> torch.dtype:
    """The dtype of an arithmetic result."""
    dtypes = {thing.dtype for thing in things if isinstance(thing, torch.Tensor)}
    dtype: torch.dtype = next(iter(dtypes))
    if len(dtypes) == 1 and dtype.is_floating_point:
        return dtype  # numbers beside it change nothing
    if len(things) == 2:
        return torch.result_type(*(_like(thing) for thing in things))
    return dtype if dtype.is_floating_point else torch.float32


def summed_dtype(x: SecretTensor) -> torch.dtype:
    """Of a sum: counts of conditions are integers."""
    return x.dtype if x.dtype.is_floating_point else torch.int64


def _like(thing: Any) -> Any:
    return torch.empty(thing.shape, dtype=thing.dtype, device="meta") if isinstance(thing, torch.Tensor) else thing


def numbers(things: Iterable[Any], engine: Engine) -> list[Fixed]:
    """Several operands."""
    return [number(thing, engine) for thing in things]
