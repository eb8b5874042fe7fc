"""Columns shared out among owners: the same people at a bank and a shop, each knowing other things about them.

    rows     ann bob eve                 owner 0: columns 0 3, and the target
    columns  0 1 2 3 │ target            owner 1: columns 1 2

Every feature falls to exactly one owner; all owners hold all rows, in one order, as after the private set intersection
that joins them.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

import numpy as np

from hansa.core.data import Clients, Dataset
from hansa.core.errors import DataError
from hansa.data.ids import known_place
from hansa.data.partitioners.size import apportion


class VerticalRule(ABC):
    """How many features each owner has. A frozen dataclass of simple values."""

    @abstractmethod
    def sizes(self, features: int, owners: int) -> np.ndarray:
        """Whole numbers, one for each owner, that sum to `features`."""


@dataclass(frozen=True)
class VerticalEven(VerticalRule):
    """Every owner equally many features, or one more or less.

    >>> VerticalEven().sizes(10, 3).tolist()
    [4, 3, 3]
    """

    def sizes(self, features: int, owners: int) -> np.ndarray:
        return apportion(features, np.ones(owners))


@dataclass(frozen=True)
class VerticalSizes(VerticalRule):
    """Given numbers of features (whole numbers that sum to all), or shares of them (that sum to 1).

    >>> VerticalSizes((0.5, 0.3, 0.2)).sizes(10, 3).tolist()
    [5, 3, 2]
    """

    given: tuple[float, ...]

    def sizes(self, features: int, owners: int) -> np.ndarray:
        given = np.array(self.given, dtype=float)
        if len(given) != owners:
            raise DataError(f"{len(given)} sizes were given for {owners} owners: give one for each.")
        if not np.all(np.isfinite(given)) or not np.all(given >= 0):
            raise DataError(f"sizes {self.given} must be numbers of at least 0.")
        counts = all(float(size).is_integer() for size in self.given) and given.sum() == features
        if not counts and abs(given.sum() - 1) > 1e-9:
            raise DataError(f"sizes {self.given} sum to {given.sum():g}: give {features} features, or shares of 1.")
        return given.astype(np.int64) if counts else apportion(features, given)


@dataclass(frozen=True)
class Columns(Clients):
    """What `vertical` returns: each owner's Dataset, made when it is opened.

    Args:
      dataset: all columns.
      names: of the owners, sorted.
      owned: of each owner, the numbers of its features in column `x`.
      target_owner: who has the column `target`.
      x, target: the columns of features and of targets.
      shared: columns that every owner has, such as the ids to join by.
    """

    dataset: Dataset
    names: tuple[str, ...]
    owned: tuple[tuple[int, ...], ...]
    _: KW_ONLY
    target_owner: str
    x: str = "x"
    target: str = "y"
    shared: tuple[str, ...] = ()

    @property
    def ids(self) -> Sequence[str]:
        return self.names

    def features(self, owner: str) -> tuple[int, ...]:
        """The numbers of an owner's features, in the order in which it has them."""
        return self.owned[known_place(self.names, owner)]

    def open(self, client: str) -> Dataset:
        columns = {self.x: self.dataset[self.x][:, list(self.features(client))]}
        columns.update({name: self.dataset[name] for name in self.shared})
        if client == self.target_owner:
            columns[self.target] = self.dataset[self.target]
        return Dataset(**columns)


def vertical(
    dataset: Dataset,
    how: VerticalRule,
    owners: int | Sequence[str] = 2,
    *,
    target_owner: str | None = None,
    shuffle: bool = True,
    shared: Sequence[str] = (),
    x: str = "x",
    target: str = "y",
    seed: int = 0,
) -> Columns:
    """Shares the features of one data set out among owners.

    Args:
      dataset: with features of shape (rows, features) and a column of targets.
      how: `VerticalEven()` or `VerticalSizes((10, 20))`.
      owners: their names, or how many.
      target_owner: who holds the targets; by default the first.
      shuffle: deals random features; otherwise each owner has a run of neighbours, in the given order.
      shared: columns that all owners have.
      x, target: the columns of features and targets.
      seed: the same seed gives the same split.

    Raises:
      DataError: an owner would be left without features, or a column or owner is not there.

    >>> parts = vertical(Dataset(x=np.eye(4), y=[0, 1, 0, 1]), VerticalEven(), ("shop", "bank"), target_owner="bank")
    >>> list(parts), "y" in parts.open("shop"), parts.open("bank")["x"].shape
    (['bank', 'shop'], False, (4, 2))
    """
    given = [f"{number}" for number in range(owners)] if isinstance(owners, int) else list(owners)
    width = len(given[-1]) if given else 0
    named = [name.zfill(width) for name in given] if isinstance(owners, int) else given
    if len(named) < 1 or len(set(named)) < len(named):
        raise DataError(f"owners={owners!r}: give at least one, and each name once.")
    holder = named[0] if target_owner is None else target_owner
    if holder not in named:
        raise DataError(f"target_owner='{holder}' is none of the owners {named}.")
    if dataset[x].ndim != 2:
        raise DataError(f"column '{x}' has shape {list(dataset[x].shape)}, but (rows, features) is needed.")
    for name in (target, *shared):
        dataset[name]
    features = dataset[x].shape[1]
    sizes = how.sizes(features, len(named))
    if not sizes.all():
        raise DataError(f"{features} features leave one of {len(named)} owners with none: give other sizes.")
    order = np.random.default_rng(seed).permutation(features) if shuffle else np.arange(features)
    ends = np.cumsum(sizes)
    owned = {
        name: tuple(sorted(order[end - size : end].tolist()))
        for name, end, size in zip(named, ends.tolist(), sizes.tolist(), strict=True)
    }
    names = tuple(sorted(named))
    return Columns(
        dataset,
        names,
        tuple(owned[name] for name in names),
        target_owner=holder,
        x=x,
        target=target,
        shared=tuple(shared),
    )
