"""Views of clients: fewer of them, or the same ones with other examples. Nothing is copied, and views can be nested.

    AtLeast(clients, 30)                          those with 30 examples or more
    ByHash(clients, share=0.01)                   1 % of them, by the hash of their ids: the same ones everywhere
    Drawn(clients, 10_000, seed=1)                so many, at random
    Only(clients, ("ann", "bob"))                 those named
    Between(clients, "day", 3, 4)                 of each client the examples of day 3
    Mapped(clients, halve)                        of each client what a function makes of its data

Each is a frozen dataclass, so that worker processes rebuild it if they can rebuild what it is a view of.
"""

import hashlib
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np

from hansa.core.data import Clients, Dataset, Sized
from hansa.core.errors import DataError, NotFound
from hansa.data.ids import IdsAt, known_place, place_of


class Selection(Clients):
    """Some of other clients. A subclass says which; opening one never looks at the others."""

    clients: Clients

    @cached_property
    def places(self) -> np.ndarray:
        """Where the selected ids stand among those of the clients that are viewed, in rising order."""
        found = np.asarray(self._places(), dtype=np.int64)
        if len(found) == 0:
            raise DataError(f"{type(self).__name__} leaves none of {len(self.clients)} clients: ask for less.")
        return found

    @abstractmethod
    def _places(self) -> np.ndarray:
        """Computes `places`."""

    @property
    def ids(self) -> Sequence[str]:
        return IdsAt(self.clients.ids, self.places)

    def open(self, client: str) -> Sized:
        if not self._has(client):
            raise NotFound(f"no client '{client}' in this {type(self).__name__}: it was not selected.")
        return self.clients.open(client)

    def _has(self, client: str) -> bool:
        return client in self.ids

    def sizes(self) -> np.ndarray:
        """How many examples each client has, in the order of `ids`."""
        return np.asarray(sizes_of(self.clients)[self.places])


@dataclass(frozen=True)
class AtLeast(Selection):
    """Clients with at least so many examples.

    >>> some = Clients.of({"a": Dataset(x=[1]), "b": Dataset(x=[1, 2])})
    >>> list(AtLeast(some, 2))
    ['b']
    """

    clients: Clients
    examples: int

    def _places(self) -> np.ndarray:
        return np.flatnonzero(sizes_of(self.clients) >= self.examples)

    def open(self, client: str) -> Sized:
        data = self.clients.open(client)
        if len(data) < self.examples:
            raise NotFound(f"client '{client}' has {len(data)} examples, and {self.examples} are asked for.")
        return data


@dataclass(frozen=True)
class ByHash(Selection):
    """Clients whose id, hashed, falls into one part of the unit interval: start ≤ SHA-256(salt, id) < start + share.

    Two parts that do not overlap give two sets of clients that do not, whoever joins later: users to train on and users
    to test on.

    Args:
      clients: to choose from.
      share: the part of them, above 0 and at most 1; met as nearly as chance allows.
      start: where the part begins.
      salt: another one gives other clients.
    """

    clients: Clients
    _: KW_ONLY
    share: float
    start: float = 0.0
    salt: str = ""

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1 or not 0 <= self.start < 1 or self.start + self.share > 1 + 1e-12:
            raise DataError(f"share={self.share}, start={self.start}: a part of the interval from 0 to 1 is needed.")

    def _places(self) -> np.ndarray:
        return np.flatnonzero(np.fromiter(map(self._hit, self.clients.ids), bool, len(self.clients)))

    def _has(self, client: str) -> bool:
        return self._hit(client) and place_of(self.clients.ids, client) is not None

    def _hit(self, client: str) -> bool:
        framed = len(self.salt.encode()).to_bytes(8, "little") + self.salt.encode() + client.encode()
        at = int.from_bytes(hashlib.sha256(framed).digest()[:8], "little") / 2**64
        return self.start <= at < self.start + self.share


@dataclass(frozen=True)
class Drawn(Selection):
    """So many clients, drawn once at random; the same seed draws the same ones from the same ids."""

    clients: Clients
    count: int
    _: KW_ONLY
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.count <= len(self.clients):
            raise DataError(f"count={self.count} must lie between 1 and the {len(self.clients)} clients there are.")

    def _places(self) -> np.ndarray:
        drawn = np.random.default_rng(self.seed).choice(len(self.clients), self.count, replace=False)
        return np.sort(drawn)


@dataclass(frozen=True)
class Only(Selection):
    """The clients named; NotFound for one that is not there."""

    clients: Clients
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(sorted(set(self.names))))
        self.places  # noqa: B018  an unknown name shows at once

    def _places(self) -> np.ndarray:
        return np.array([known_place(self.clients.ids, name) for name in self.names], dtype=np.int64)


@dataclass(frozen=True)
class Between(Clients):
    """All clients, each with those of its examples for which low ≤ column < high; some may be left with none.

    Day-partitioned data: train on `Between(clients, "day", d, d + 1)`, test on `Between(clients, "day", d + 1, d + 2)`;
    `AtLeast(…, 1)` around it leaves out who was absent.
    """

    clients: Clients
    column: str
    low: float
    high: float

    @property
    def ids(self) -> Sequence[str]:
        return self.clients.ids

    def open(self, client: str) -> Dataset:
        data = _dataset(self.clients, client)
        values = data[self.column]
        inside = (values >= self.low) & (values < self.high)
        if inside.ndim != 1:
            raise DataError(f"column '{self.column}' of '{client}' holds vectors: name another.")
        return data.take(inside)


@dataclass(frozen=True)
class Mapped(Clients):
    """All clients, the data of each changed by a function when it is opened.

    Args:
      clients: to view.
      function: takes a client's data and gives what is used in its place; in worker processes it must be importable by
        name, or a `functools.partial` of such a function.
    """

    clients: Clients
    function: Callable[[Any], Any]

    @property
    def ids(self) -> Sequence[str]:
        return self.clients.ids

    def open(self, client: str) -> Sized:
        data = self.function(self.clients.open(client))
        if not hasattr(data, "__len__"):
            raise DataError(f"the function gave a {type(data).__name__} for '{client}', which has no length.")
        return cast(Sized, data)


def sizes_of(clients: Clients) -> np.ndarray:
    """How many examples each client has, in the order of ids: from its `sizes()` if it has one, else by opening all."""
    if callable(sizes := getattr(clients, "sizes", None)):
        return np.asarray(sizes())
    return np.fromiter((len(clients.open(client)) for client in clients.ids), np.int64, len(clients))


def _dataset(clients: Clients, client: str) -> Dataset:
    data = clients.open(client)
    if not isinstance(data, Dataset):
        raise DataError(f"the data of '{client}' is a {type(data).__name__}, which has no columns: give Datasets.")
    return data
