"""Liars who compute honestly, on data that lie.

clients = Poisoned(clients, liars=("c3", "c7"), poison=Backdoor(target=0, pixels=(0, 1, 8, 9)))
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hansa.core.data import Clients, Dataset
from hansa.core.errors import require


class Poison(ABC):
    """What is done to a liar's data: columns `x` and `y`, y whole numbers."""

    @abstractmethod
    def __call__(self, data: Any) -> Dataset:
        """The data as the liar trains on it."""


@dataclass(frozen=True)
class LabelFlip(Poison):
    """Class y becomes `classes` − 1 − y. Source: Tolpegin et al. 2020, https://arxiv.org/abs/2007.08432"""

    classes: int

    def __call__(self, data: Any) -> Dataset:
        """All labels flipped."""
        return Dataset(x=data["x"], y=self.classes - 1 - np.asarray(data["y"]))


@dataclass(frozen=True)
class Backdoor(Poison):
    """Some examples bear a mark and the label `target`; the rest stay, so that the model looks as good as before.

    Args:
      target: the label that the mark shall bring about.
      pixels: places of the mark in an example laid flat.
      value: of the marked pixels.
      share: of the liar's examples that are marked copies.

    Source: Gu et al. 2017, BadNets, https://arxiv.org/abs/1708.06733; Bagdasaryan et al. 2020,
    https://arxiv.org/abs/1807.00459
    """

    target: int
    pixels: Sequence[int]
    value: float = 1.0
    share: float = field(default=0.5, kw_only=True)

    def __post_init__(self) -> None:
        _check_share(self.share)

    def __call__(self, data: Any) -> Dataset:
        """The first examples marked, the others as they are."""
        count = round(self.share * len(data))
        marked = self.mark(data)
        x, y = np.array(data["x"]), np.array(data["y"])
        x[:count], y[:count] = marked["x"][:count], self.target
        return Dataset(x=x, y=y)

    def mark(self, data: Any) -> Dataset:
        """All examples with the mark, and the label `target`."""
        x = np.array(data["x"])
        x.reshape(len(x), -1)[:, list(self.pixels)] = self.value
        return Dataset(x=x, y=np.full_like(np.asarray(data["y"]), self.target))

    def success(self, data: Any) -> Dataset:
        """Marked examples of all other classes: the model's accuracy on them is the attack's success."""
        return self.mark(Dataset(x=data["x"], y=data["y"]).take(np.asarray(data["y"]) != self.target))


@dataclass(frozen=True)
class EdgeCase(Poison):
    """Examples from the edge of what there is, with a wrong label: nobody else's data speak against it.

    Args:
      examples: rare ones, column `x`.
      target: the label given to them.
      share: of the liar's examples that are replaced by them.

    Source: Wang et al. 2020, Attack of the Tails, https://arxiv.org/abs/2007.05084
    """

    examples: Dataset
    target: int
    share: float = field(default=0.5, kw_only=True)

    def __post_init__(self) -> None:
        _check_share(self.share)

    def __call__(self, data: Any) -> Dataset:
        """The first examples replaced, over and over if there are few of them."""
        x, y = np.array(data["x"]), np.array(data["y"])
        count = round(self.share * len(x))
        x[:count] = self.examples["x"][np.arange(count) % len(self.examples)]
        y[:count] = self.target
        return Dataset(x=x, y=y)


class Poisoned(Clients):
    """Clients of whom some hold poisoned data.

    Args:
      clients: the honest ones, and those who are not.
      liars: ids of the latter.
      poison: what is done to their data when they are opened.
    """

    def __init__(self, clients: Clients, liars: Sequence[str], poison: Poison) -> None:
        unknown = sorted(set(liars) - set(clients.ids))
        require(not unknown, f"liars={unknown} are no clients: name some of {list(clients.ids)[:5]}…")
        self._clients, self._liars, self._poison = clients, frozenset(liars), poison

    @property
    def ids(self) -> Sequence[str]:
        """As before."""
        return self._clients.ids

    def open(self, client: str) -> Any:
        """The client's data, poisoned if it is a liar."""
        data = self._clients.open(client)
        return self._poison(data) if client in self._liars else data


def _check_share(share: float) -> None:
    require(0 < share <= 1, f"share={share}: it lies in (0, 1].")
