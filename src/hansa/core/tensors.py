"""Named arrays: what models, updates, messages and checkpoints are made of.

A `Tensors` maps names to numeric arrays, always iterates in sorted order (so that every float sum over names has one
order everywhere) and is treated as immutable. Two of them meet only with equal names and shapes. What travels is one
flat `Tensors` whose names begin with the part they belong to: `value/layer.weight`, `weight/weight`, `metric/loss`.
Leaves may be NumPy or torch arrays: arithmetic uses operators that both have.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from hansa.core.errors import TensorMismatch

Array = Any  # numpy.ndarray or another array of the Python array API
Shapes = Mapping[str, tuple[tuple[int, ...], str]]  # name -> (shape, dtype), as in {"w": ((2, 3), "float32")}

BLOCK = 1 << 20  # elements handled at a time where a whole tensor need not be in memory


class Tensors(Mapping[str, Array]):
    """An immutable mapping of names to numeric arrays, in sorted order.

    Args:
      arrays: name to array; anything without a dtype is read by NumPy. A lazy mapping that has a method `blocks`
        (a message still on disk) is kept as it is, and read only when an array is asked for.

    Raises:
      TensorMismatch: an array is not numeric, or not in native byte order.

    >>> a = Tensors({"w": np.ones((2, 2), "float32"), "b": [0.0, 1.0]})
    >>> list(a), (a + a * 2.0)["b"].tolist(), a.count
    (['b', 'w'], [0.0, 3.0], 6)
    """

    __slots__ = ("_arrays", "_names", "_shapes")

    def __init__(self, arrays: Mapping[str, Array] | None = None, /) -> None:
        given = {} if arrays is None else arrays
        self._names = tuple(sorted(given))
        self._shapes: Shapes | None = getattr(given, "shapes", None)
        self._arrays: Mapping[str, Array] = (
            given if hasattr(given, "blocks") else {name: _numeric(name, given[name]) for name in self._names}
        )

    # -- as a mapping

    def __getitem__(self, name: str) -> Array:
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __repr__(self) -> str:
        inside = ", ".join(f"{name}: {dtype}{list(shape)}" for name, (shape, dtype) in self.shapes.items())
        return f"Tensors({inside})"

    def __eq__(self, other: object) -> bool:
        """Equal names, shapes, dtypes and bits (so NaN equals NaN)."""
        if not isinstance(other, Tensors):
            return NotImplemented
        return self.shapes == other.shapes and all(
            np.asarray(self[name]).tobytes() == np.asarray(other[name]).tobytes() for name in self
        )

    def __hash__(self) -> int:
        return hash(self._names)

    # -- what is inside

    @property
    def shapes(self) -> Shapes:
        """Name to (shape, dtype name)."""
        if self._shapes is None:
            self._shapes = {name: (tuple(self[name].shape), dtype_name(self[name])) for name in self}
        return self._shapes

    @property
    def count(self) -> int:
        """Coordinates in all."""
        return sum(math.prod(shape) for shape, _ in self.shapes.values())

    @property
    def size_bytes(self) -> int:
        """Bytes of all arrays."""
        return sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in self.shapes.values())

    def blocks(self, name: str) -> Iterator[tuple[slice, np.ndarray]]:
        """One array in flat pieces of at most `BLOCK` elements, read from disk piece by piece where it lies there."""
        lazy = getattr(self._arrays, "blocks", None)
        if lazy is not None:
            yield from lazy(name)
            return
        flat = (own if hasattr(own := self[name], "__array_ufunc__") else np.asarray(own)).reshape(-1)
        for start in range(0, len(flat), BLOCK):
            yield slice(start, min(start + BLOCK, len(flat))), flat[start : start + BLOCK]

    def first_not_finite(self) -> str | None:
        """The name of the first array with a NaN or an infinity, or None."""
        with np.errstate(all="ignore"):
            for name, (_, dtype) in self.shapes.items():
                if dtype.startswith("float") and not all(_finite(block) for _, block in self.blocks(name)):
                    return name
        return None

    # -- parts

    def part(self, prefix: str) -> "Tensors":
        """The arrays under `prefix/`, named without it.

        >>> Tensors({"value/w": [1.0], "weight/weight": [2.0]}).part("value")
        Tensors(w: float64[1])
        """
        start = prefix + "/"
        return Tensors({name[len(start) :]: self[name] for name in self if name.startswith(start)})

    @property
    def parts(self) -> tuple[str, ...]:
        """The prefixes that occur, sorted."""
        return tuple(sorted({name.split("/", 1)[0] for name in self}))

    @staticmethod
    def join(**parts: "Tensors") -> "Tensors":
        """One flat tree out of parts: the opposite of `part`."""
        return Tensors({f"{part}/{name}": tensors[name] for part, tensors in parts.items() for name in tensors})

    def only(self, names: Iterable[str]) -> "Tensors":
        """The arrays of these names that are here."""
        return Tensors({name: self[name] for name in names if name in self._arrays})

    def without(self, *parts: str) -> "Tensors":
        """All arrays but those of these parts."""
        return Tensors({name: self[name] for name in self if name.split("/", 1)[0] not in parts})

    def updated(self, other: Mapping[str, Array]) -> "Tensors":
        """These arrays, with those of `other` added or put in their place."""
        return Tensors({**{name: self[name] for name in self}, **other})

    # -- arithmetic

    def map(self, function: Callable[[Array], Array]) -> "Tensors":
        """`function` of every array."""
        return Tensors({name: function(self[name]) for name in self})

    def zip(self, other: "Tensors", function: Callable[[Array, Array], Array]) -> "Tensors":
        """`function` of every pair of arrays; TensorMismatch unless names and shapes are equal."""
        self.meets(other)
        return Tensors({name: function(self[name], other[name]) for name in self})

    def __add__(self, other: "Tensors") -> "Tensors":
        return self.zip(other, lambda a, b: a + b)

    def __sub__(self, other: "Tensors") -> "Tensors":
        return self.zip(other, lambda a, b: a - b)

    def __mul__(self, factor: float) -> "Tensors":
        return self.map(lambda a: a * factor)

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> "Tensors":
        return self.map(lambda a: a / divisor)

    def zeros(self) -> "Tensors":
        """Zeros of the same names, shapes and dtypes."""
        return Tensors({name: np.zeros(shape, dtype) for name, (shape, dtype) in self.shapes.items()})

    def norm(self) -> float:
        """The L2 norm over all arrays, summed in float64 in one fixed order, whatever the number of threads."""
        return math.sqrt(sum(float(squares(block)) for name in self for _, block in self.blocks(name)))

    def meets(self, other: "Tensors", what: str = "the other") -> None:
        """Raises TensorMismatch, naming the first difference, unless names and shapes are equal."""
        mismatch(self.shapes, other.shapes, what)


EMPTY = Tensors()


def mismatch(expected: Shapes, given: Shapes, what: str, dtypes: bool = False) -> None:
    """Raises TensorMismatch that names the first difference between two sets of shapes."""
    missing, foreign = sorted(set(expected) - set(given)), sorted(set(given) - set(expected))
    if missing or foreign:
        raise TensorMismatch(f"{what} lacks {missing[:5]} and has the unknown {foreign[:5]}: names must be equal.")
    for name, (shape, dtype) in expected.items():
        if tuple(given[name][0]) != tuple(shape):
            raise TensorMismatch(f"'{name}' has shape {tuple(given[name][0])} in {what}, not {tuple(shape)}.")
        if dtypes and given[name][1] != dtype:
            raise TensorMismatch(f"'{name}' is {given[name][1]} in {what}, not {dtype}.")


def squares(block: np.ndarray) -> np.float64:
    """The sum of squares in float64, pairwise and on one thread: the same bits everywhere."""
    wide = block.astype(np.float64)
    np.multiply(wide, wide, out=wide)
    return np.float64(np.add.reduce(wide.reshape(-1)))


def _finite(block: np.ndarray) -> bool:
    """Whether all numbers are finite: by one product, which is infinite or NaN if any is; then looked at closely."""
    return math.isfinite(np.dot(block, block)) or bool(np.isfinite(block).all())


def stack(trees: Sequence[Tensors]) -> Tensors:
    """Trees of equal shapes along a new leading client axis; one tree becomes a view of length 1."""
    if len(trees) == 1:
        return trees[0].map(lambda a: a[None])
    return Tensors({name: np.stack([np.asarray(tree[name]) for tree in trees]) for name in trees[0]})


def dtype_name(array: Array) -> str:
    """'float32' for NumPy's and torch's arrays alike."""
    name = _DTYPE_NAMES.get(array.dtype)
    if name is None:
        name = _DTYPE_NAMES[array.dtype] = str(array.dtype).removeprefix("torch.")
    return name


_DTYPE_NAMES: dict[Any, str] = {}  # NumPy takes microseconds to spell one
_NUMERIC: set[Any] = set()  # dtypes that were found to be numeric


def _numeric(name: str, array: Array) -> Array:
    if type(array) is np.ndarray and array.dtype in _NUMERIC:
        return array
    if isinstance(array, np.ndarray) or not hasattr(array, "dtype"):
        array = np.asarray(array)
        if array.dtype.kind not in "fiub" or array.dtype.itemsize > 8 or not array.dtype.isnative:
            raise TensorMismatch(f"'{name}' is of type {array.dtype}: tensors are native floats, integers or booleans.")
        _NUMERIC.add(array.dtype)
    return array
