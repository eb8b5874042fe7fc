"""A tensor of a device as an array that NumPy's functions take, so that what a client trained stays there until it is
added up.

    model on the device ─► OnDevice ─ minus, times, plus: NumPy's operators, done there ─► the round's sum ─► here, once

Sums, differences, products, quotients and the look for what is not finite are made on the device, each number as NumPy
would make it. Whatever else is done with one is done with a copy in this machine's memory: right, and slower.

NumPy's side of it: NEP 13 and NEP 18, https://numpy.org/doc/stable/user/basics.interoperability.html
"""

import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

_DTYPES: dict[np.dtype[Any], Any] = {np.dtype("float32"): torch.float32, np.dtype("float64"): torch.float64}
_NAMES = {kind: name for name, kind in _DTYPES.items()}
# A quotient by a number is a product with its inverse in CUDA's kernels, so numbers become tensors first.
_UFUNCS = {
    np.add: torch.add, np.subtract: torch.subtract, np.multiply: torch.multiply, np.true_divide: torch.true_divide,
    np.negative: torch.negative,
}  # fmt: skip
_BASIC = (int, np.integer, slice, type(None), type(Ellipsis))
_IN_PLACE = ("fill", "itemset", "partition", "put", "resize", "setfield", "setflags", "sort")


class OnDevice(np.lib.mixins.NDArrayOperatorsMixin):
    """A float array whose memory is a device's.

    Args:
      tensor: float32 or float64, and nobody else's to change.
    """

    __slots__ = ("tensor",)

    def __init__(self, tensor: Any) -> None:
        self.tensor = tensor

    # -- what it is

    @property
    def dtype(self) -> np.dtype[Any]:
        """NumPy's."""
        return _NAMES[self.tensor.dtype]

    @property
    def shape(self) -> tuple[int, ...]:
        """As of any array."""
        return tuple(self.tensor.shape)

    @property
    def ndim(self) -> int:
        """Axes."""
        return int(self.tensor.ndim)

    @property
    def size(self) -> int:
        """Numbers."""
        return int(self.tensor.numel())

    def __len__(self) -> int:
        return len(self.tensor)

    def __repr__(self) -> str:
        return f"OnDevice({self.dtype}{list(self.shape)}, {self.tensor.device})"

    def __float__(self) -> float:
        return float(self.tensor)

    def __int__(self) -> int:
        return int(self.tensor)

    def __bool__(self) -> bool:
        return bool(self.tensor)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in _IN_PLACE:
            raise AttributeError(f"an array on a device has no '{name}': make a copy by np.array first.")
        return getattr(np.asarray(self), name)

    # -- its parts

    def __getitem__(self, key: Any) -> Any:
        return OnDevice(self.tensor[key]) if _basic(key) else np.asarray(self)[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        if _basic(key):
            part = self.tensor[key]
            if not (isinstance(value, OnDevice) and value.tensor.data_ptr() == part.data_ptr()):  # as after `part += …`
                part.copy_(tensor_of(value, part))
        else:
            here = np.array(self)
            here[key] = np.asarray(value)
            self.tensor.copy_(torch.from_numpy(here))

    def reshape(self, *shape: Any) -> "OnDevice":
        """A view, or a copy, in C order."""
        return OnDevice(self.tensor.reshape(*shape))

    def copy(self) -> "OnDevice":
        """Memory of its own."""
        return OnDevice(self.tensor.clone())

    def astype(self, dtype: Any, copy: bool = True) -> Any:
        """In another type of floats on the device; of integers here."""
        if (kind := _DTYPES.get(np.dtype(dtype))) is None:
            return np.asarray(self).astype(dtype)
        return OnDevice(self.tensor.to(kind, copy=copy))

    # -- NumPy's functions

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("an array on a device is copied to be had here.")
        here: np.ndarray = torch.empty(self.shape, dtype=self.tensor.dtype).copy_(self.tensor).numpy()
        return here if dtype is None else here.astype(dtype, copy=False)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: Any = None, **settings: Any) -> Any:
        into = out[0] if out is not None else None
        kind = None if settings or method != "__call__" else _kind(inputs)
        if ufunc in _UFUNCS and kind is not None and (into is None or isinstance(into, OnDevice)):
            given = [tensor_of(one, self.tensor, kind) for one in inputs]
            if into is None:
                return OnDevice(_UFUNCS[ufunc](*given))
            _UFUNCS[ufunc](*given, out=into.tensor)
            return into
        made = getattr(ufunc, method)(*map(_here, inputs), **{name: _here(one) for name, one in settings.items()})
        if into is None:
            return made
        into[...] = made
        return into

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if function is np.dot and not kwargs and all(isinstance(one, OnDevice) and one.ndim == 1 for one in args):
            return float(torch.dot(*(one.tensor for one in args)))
        if function is np.empty_like and len(args) == 2 and (kind := _DTYPES.get(np.dtype(args[1]))) is not None:
            return OnDevice(torch.empty(kwargs.get("shape", self.shape), dtype=kind, device=self.tensor.device))
        return function(*_here(args), **_here(kwargs))


_SENT: dict[tuple[int, str], tuple[Any, Any]] = {}  # of an array that lives, by its id, and a device


def sent(array: Any, like: Any) -> Any:
    """An array's numbers on the device of `like`, in its type; copied there, and remembered for what is done with the
    array next, as long as it lives. Nobody may change either until then.
    """
    if isinstance(array, OnDevice) or torch.is_tensor(array):
        return tensor_of(array, like)
    tensor = torch.from_numpy(np.array(array)).to(like.device, like.dtype)
    if isinstance(array, np.ndarray) and _DTYPES.get(array.dtype) == tensor.dtype:  # else it would be rounded unasked
        key = (id(array), str(like.device))
        _SENT[key] = weakref.ref(array, lambda _: _SENT.pop(key, None)), tensor
    return tensor


def resident(tensor: Any) -> Any:
    """A device's tensor, which nobody changes any more, as an array: there if it is of floats, else here."""
    return OnDevice(tensor) if tensor.dtype in _NAMES else tensor.cpu().numpy()


def tensor_of(value: Any, like: Any, kind: Any = None) -> Any:
    """A number, an array or a tensor as a tensor beside another, in its type unless another is asked for."""
    kind = like.dtype if kind is None else kind
    if isinstance(value, OnDevice):
        return value.tensor.to(like.device, kind)
    if torch.is_tensor(value):
        return value.detach().to(like.device, kind)
    if isinstance(value, int | float):
        return torch.full((), value, dtype=kind, device=like.device)
    known = _SENT.get((id(value), str(like.device)))
    if known is not None and known[0]() is value:
        return known[1].to(kind)
    return torch.from_numpy(np.array(value)).to(like.device, kind)


def _kind(inputs: Any) -> Any:
    """The type that NumPy would give the result, if it is one of floats that a device has."""
    known = [one if isinstance(one, int | float) and not isinstance(one, np.generic) else _dtype(one) for one in inputs]
    return _DTYPES.get(np.result_type(*known))


def _dtype(value: Any) -> Any:
    return value.dtype if isinstance(value, OnDevice) else np.asarray(value).dtype


def _basic(key: Any) -> bool:
    """Whether a key takes a view."""
    return all(
        isinstance(one, _BASIC) and not isinstance(one, bool) for one in (key if isinstance(key, tuple) else (key,))
    )


def _here(value: Any) -> Any:
    """Arrays of a device, wherever they are in an argument, as arrays in this machine's memory."""
    if isinstance(value, OnDevice):
        return np.asarray(value)
    if isinstance(value, list | tuple):
        return type(value)(map(_here, value))
    if isinstance(value, Mapping):
        return {name: _here(one) for name, one in value.items()}
    return value
