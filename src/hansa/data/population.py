"""One data set cut into many clients: `partition`, and the `Partition` it returns.

    rows       3 7 8 │ 0 2 │ 1 4 5 6 9      every row once, grouped by client
    offsets    0     3     5         10     client k owns rows[offsets[k]:offsets[k + 1]]

Two arrays describe all clients, so that memory is O(rows + clients) and a client costs nothing until it is opened.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple, overload

import numpy as np

from hansa.core.data import Clients, Dataset
from hansa.core.errors import DataError
from hansa.data.ids import known_place
from hansa.data.labels import labels

DEFAULT_CLIENTS = 100


class Cut(NamedTuple):
    """Where the rows go: row numbers grouped by client, the bounds of the groups, and names if the data gives them."""

    rows: np.ndarray
    offsets: np.ndarray
    ids: Sequence[str] | None = None


class Partitioner(ABC):
    """A rule that gives every row of a data set to exactly one client. A frozen dataclass of simple values.

    A new rule is one class with one method; `by_owner` turns "row i belongs to client k" into what it returns.
    """

    @abstractmethod
    def cut(self, dataset: Dataset, clients: int | None, rng: np.random.Generator) -> Cut:
        """Cuts `dataset`.

        Args:
          dataset: at least one row.
          clients: how many clients; None: as many as the data says, or else `DEFAULT_CLIENTS`.
          rng: the only source of chance.

        Raises:
          DataError: the request cannot be met; names the value and what to change.
        """


class NumberedIds(Sequence[str]):
    """The ids '00', '01', …: zero-padded, so that their sorted order is numeric. Formed when asked for, never held.

    >>> list(NumberedIds(11)[8:])
    ['08', '09', '10']
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._width = len(str(max(count - 1, 0)))

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [f"{number:0{self._width}d}" for number in range(self._count)[index]]
        return f"{range(self._count)[index]:0{self._width}d}"

    def __contains__(self, client: object) -> bool:
        if not isinstance(client, str) or len(client) != self._width or not (client.isascii() and client.isdigit()):
            return False
        return int(client) < self._count

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NumberedIds) and other._count == self._count

    def __hash__(self) -> int:
        return hash(self._count)

    def __repr__(self) -> str:
        return f"NumberedIds({self._count})"


class Partition(Clients):
    """Clients that share one data set in memory (or memory-mapped), each owning some of its rows.

    Args:
      dataset: all examples.
      rows: row numbers grouped by client.
      offsets: clients + 1 bounds into `rows`, from 0 to len(rows), never decreasing.
      ids: sorted unique names, one for each client; by default zero-padded numbers.

    >>> clients = Partition(Dataset(y=[5, 6, 7]), rows=np.array([2, 0, 1]), offsets=np.array([0, 1, 3]))
    >>> list(clients), clients.open("1")["y"].tolist()
    (['0', '1'], [5, 6])
    """

    def __init__(
        self, dataset: Dataset, rows: np.ndarray, offsets: np.ndarray, ids: Sequence[str] | None = None
    ) -> None:
        if len(offsets) < 2 or offsets[0] != 0 or offsets[-1] != len(rows) or np.any(np.diff(offsets) < 0):
            raise DataError(f"offsets must rise from 0 to len(rows)={len(rows)}, one bound more than clients.")
        if ids is not None and len(ids) != len(offsets) - 1:
            raise DataError(f"{len(ids)} ids were given for {len(offsets) - 1} clients: give one for each.")
        self.dataset = dataset
        self._rows = rows
        self._offsets = offsets
        self._ids = NumberedIds(len(offsets) - 1) if ids is None else ids

    @property
    def ids(self) -> Sequence[str]:
        return self._ids

    def position(self, client: str) -> int:
        """The place of `client` among the ids. Bisection, so that no table of ids is kept beside them."""
        return known_place(self._ids, client)

    def rows(self, client: str) -> np.ndarray:
        """The row numbers that `client` owns in `dataset`: a view, not to be written to."""
        place = self.position(client)
        return self._rows[self._offsets[place] : self._offsets[place + 1]]

    def all_rows(self) -> np.ndarray:
        """The row numbers of all clients, one client after the other: a view, not to be written to."""
        return self._rows

    def open(self, client: str) -> Dataset:
        """A copy of the rows of one client; NotFound for an unknown id."""
        return self.dataset.take(self.rows(client))

    def sizes(self) -> np.ndarray:
        """How many examples each client has, in the order of `ids`."""
        return np.diff(self._offsets)

    def counts(self, column: str = "y") -> np.ndarray:
        """How often each client has each label.

        Returns:
          Whole numbers of shape (clients, labels): rows in the order of `ids`, columns in that of
          `hansa.data.labels(dataset, column)[0]`.

        Raises:
          DataError: the column is missing or does not hold labels.
        """
        found, codes = labels(self.dataset, column)
        owner = np.repeat(np.arange(len(self)), self.sizes())
        cells = owner * len(found) + codes[self._rows]
        return np.bincount(cells, minlength=len(self) * len(found)).reshape(len(self), len(found))

    def __repr__(self) -> str:
        sizes = self.sizes()
        return f"Partition({len(self)} clients of {sizes.min()} to {sizes.max()} examples; {self.dataset!r})"


def partition(dataset: Dataset, how: Partitioner, clients: int | None = None, seed: int = 0) -> Partition:
    """Cuts one data set into the data of many clients.

    Args:
      dataset: the examples.
      how: the rule, such as `IID()`, `Dirichlet(alpha=0.3)`, `Shards(2)` or `NaturalId("hospital")`.
      clients: how many clients. By default 100, or as many as the data says where the rule reads that from the data.
      seed: the same seed gives the same partition.

    Returns:
      Clients named '00', '01', … or after the data, together holding every row exactly once.

    Raises:
      DataError: more clients than rows, a missing column, or another request that cannot be met.

    >>> from hansa.data import IID, partition
    >>> clients = partition(Dataset(x=np.arange(10)), IID(), clients=4)
    >>> list(clients), clients.sizes().tolist()
    (['0', '1', '2', '3'], [3, 3, 2, 2])
    """
    if not isinstance(how, Partitioner):
        raise DataError(f"how={how!r} is not a partitioner: give an instance, such as IID() or Dirichlet(alpha=0.3).")
    if len(dataset) == 0:
        raise DataError("the data set has no rows, so there is nothing to partition: give at least one example.")
    if clients is not None and (isinstance(clients, bool) or not isinstance(clients, (int, np.integer)) or clients < 1):
        raise DataError(f"clients={clients!r} must be a whole number of at least 1.")
    if clients is not None and clients > len(dataset):
        raise DataError(f"clients={clients} > {len(dataset)} rows: lower clients or give more rows.")
    cut = how.cut(dataset, None if clients is None else int(clients), np.random.default_rng(seed))
    found = Partition(dataset, *cut)
    if clients is not None and len(found) != clients:
        raise DataError(
            f"clients={clients}, but {how} finds {len(found)} clients in the data: leave clients out, "
            f"or use GroupedNaturalId to put several ids into one client."
        )
    return found


def client_count(dataset: Dataset, clients: int | None, least: int = 1) -> int:
    """How many clients to cut into, once it is sure that each can have `least` rows."""
    wanted = DEFAULT_CLIENTS if clients is None else clients
    if wanted * max(least, 1) > len(dataset):
        many = f"clients={wanted}" + (" (the default)" if clients is None else "")
        each = f" with min_examples={least}" if least > 1 else ""
        raise DataError(f"{many}{each} need {wanted * max(least, 1)} rows, but there are {len(dataset)}: lower them.")
    return wanted


def by_owner(owner: np.ndarray, clients: int, ids: Sequence[str] | None = None) -> Cut:
    """The cut in which row i belongs to client owner[i]; rows stay in their order within a client."""
    index = np.int32 if len(owner) < 2**31 else np.int64
    rows = np.argsort(owner, kind="stable").astype(index)
    offsets = np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=clients))])
    return Cut(rows, offsets, ids)
