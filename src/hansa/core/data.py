"""What a party holds: `Dataset`, the examples of one party, and `Clients`, the parties of a simulation by id.

A worker may hold anything that has a length (a DataFrame, a list of files); `Dataset`, named columns of equal length,
is what the adapters of this project read. Its columns `x` and `y` are inputs and targets by convention.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from hansa.core.errors import DataError, NotFound


class Sized(Protocol):
    """The least a party's data must offer: how many examples there are."""

    def __len__(self) -> int: ...


class Dataset:
    """The examples of one party, as named columns whose first axis counts the examples.

    Args:
      **columns: arrays (NumPy, or anything NumPy can read) of shape (examples, ...).

    Raises:
      DataError: there is no column, or two columns differ in length.

    >>> data = Dataset(x=np.zeros((4, 2)), y=[0, 1, 1, 0])
    >>> len(data), data["y"].tolist(), len(data.take([1, 2]))
    (4, [0, 1, 1, 0], 2)
    """

    def __init__(self, **columns: Any) -> None:
        if not columns:
            raise DataError("a Dataset needs at least one column, as in Dataset(x=inputs, y=targets).")
        self.columns: dict[str, np.ndarray] = {name: np.asarray(column) for name, column in columns.items()}
        lengths = {name: len(column) if column.ndim else -1 for name, column in self.columns.items()}
        if len(set(lengths.values())) > 1 or -1 in lengths.values():
            raise DataError(f"columns must have one row for each example, but their lengths are {lengths}.")

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.columns:
            raise DataError(f"no column '{name}': this Dataset has {sorted(self.columns)}.")
        return self.columns[name]

    def __contains__(self, name: object) -> bool:
        return name in self.columns

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name}: {column.dtype}{list(column.shape[1:])}" for name, column in self.columns.items())
        return f"Dataset({len(self)} examples; {shapes})"

    def take(self, rows: Sequence[int] | np.ndarray) -> "Dataset":
        """The examples at `rows` (indices or a boolean mask), in that order."""
        chosen = np.asarray(rows) if len(rows) else np.zeros(0, np.int64)
        return Dataset(**{name: column[chosen] for name, column in self.columns.items()})


class Clients(ABC):
    """Many parties' data by id. Opening one never loads another; ids are all that is held.

    Iterating gives the ids in sorted order, which is the population's order everywhere.
    """

    @property
    @abstractmethod
    def ids(self) -> Sequence[str]:
        """Every id, sorted and unique."""

    @abstractmethod
    def open(self, client: str) -> Sized:
        """The data of one client; NotFound for an unknown id."""

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[str]:
        return iter(self.ids)

    def __getitem__(self, client: str) -> Sized:
        return self.open(client)

    @staticmethod
    def of(datasets: Mapping[str, Any]) -> "Clients":
        """Clients whose data is in memory, or behind a callable that is called when the client is opened.

        Args:
          datasets: id to data, or to a callable without arguments that returns it.

        >>> clients = Clients.of({"b": Dataset(x=[1, 2]), "a": lambda: Dataset(x=[3])})
        >>> list(clients), len(clients["a"])
        (['a', 'b'], 1)
        """
        return _Given(datasets)


class _Given(Clients):
    def __init__(self, datasets: Mapping[str, Any]) -> None:
        if not datasets:
            raise DataError("there are no clients: give at least one data set.")
        self._datasets = datasets
        self._ids = sorted(datasets)

    @property
    def ids(self) -> Sequence[str]:
        return self._ids

    def open(self, client: str) -> Sized:
        if client not in self._datasets:
            raise NotFound(f"no client '{client}' among {len(self._ids)} (the first is '{self._ids[0]}').")
        data = self._datasets[client]
        return load(data) if callable(data) else data  # type: ignore[no-any-return]


def load(source: Callable[[], Any]) -> Any:
    """Calls a loader and says which one failed to give data."""
    data = source()
    if not hasattr(data, "__len__"):
        raise DataError(
            f"{getattr(source, '__qualname__', source)} returned {type(data).__name__}, which has no length."
        )
    return data
