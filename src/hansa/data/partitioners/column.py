"""Partitioners that read from a column of the data who owns what, or when it was recorded."""

import heapq
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Literal

import numpy as np

from hansa.core.data import Dataset
from hansa.core.errors import DataError
from hansa.data.labels import one_value_each
from hansa.data.population import Cut, Partitioner, by_owner, client_count


@dataclass(frozen=True)
class NaturalId(Partitioner):
    """One client for each value of a column: the writer, the speaker, the hospital.

    Clients are named by the values; whole numbers are zero-padded, so that sorted order is numeric.

    Source: Caldas et al. 2018, LEAF, https://arxiv.org/abs/1812.01097
    """

    column: str

    def cut(self, dataset: Dataset, clients: int | None, rng: np.random.Generator) -> Cut:
        values, owner = np.unique(one_value_each(dataset, self.column), return_inverse=True)
        names = _names(values)
        order = sorted(range(len(names)), key=names.__getitem__)
        place = np.empty(len(order), dtype=np.int64)
        place[order] = np.arange(len(order))
        return by_owner(place[owner], len(names), [names[value] for value in order])


@dataclass(frozen=True)
class GroupedNaturalId(Partitioner):
    """Several natural ids to a client, no id cut in two: silos of people rather than people.

    Args:
      column: holds the ids.
      balance: "ids" deals shuffled ids so that clients have equally many, or one more or less; "rows" gives the next
        largest id to the client that has the fewest rows so far (Graham 1969, longest first).

    Source: the grouped natural id partitioner of Flower Datasets, https://flower.ai/docs/datasets
    """

    column: str
    _: KW_ONLY
    balance: Literal["ids", "rows"] = "ids"

    def __post_init__(self) -> None:
        if self.balance not in ("ids", "rows"):
            raise DataError(f"balance={self.balance!r} must be 'ids' or 'rows'.")

    def cut(self, dataset: Dataset, clients: int | None, rng: np.random.Generator) -> Cut:
        clients = client_count(dataset, clients)
        values, code = np.unique(one_value_each(dataset, self.column), return_inverse=True)
        if clients > len(values):
            raise DataError(f"clients={clients} > {len(values)} ids in column '{self.column}': lower clients.")
        shuffled = rng.permutation(len(values))
        group = np.empty(len(values), dtype=np.int64)
        if self.balance == "ids":
            group[shuffled] = np.arange(len(values)) % clients
        else:
            sizes = np.bincount(code)
            loads = [(0, client) for client in range(clients)]
            for value in shuffled[np.argsort(-sizes[shuffled], kind="stable")]:
                load, client = loads[0]
                group[value] = client
                heapq.heapreplace(loads, (load + int(sizes[value]), client))
        return by_owner(group[code], clients)


@dataclass(frozen=True)
class ByTime(Partitioner):
    """Client k has the k-th stretch of time: data that drifts, sites that joined one after the other.

    Args:
      column: numbers or dates that can be sorted.
      by: "rows" cuts the sorted rows into stretches with equally many rows, or one more or less; "duration" cuts the
        time from the first to the last row into equally long stretches, the last one closed.
    """

    column: str
    _: KW_ONLY
    by: Literal["rows", "duration"] = "rows"

    def __post_init__(self) -> None:
        if self.by not in ("rows", "duration"):
            raise DataError(f"by={self.by!r} must be 'rows' or 'duration'.")

    def cut(self, dataset: Dataset, clients: int | None, rng: np.random.Generator) -> Cut:
        clients = client_count(dataset, clients)
        times = one_value_each(dataset, self.column)
        if self.by == "rows" or clients == 1:
            owner = np.empty(len(times), dtype=np.int64)
            owner[np.argsort(times, kind="stable")] = np.arange(len(times)) * clients // len(times)
            return by_owner(owner, clients)
        if times.dtype.kind not in "iufM":
            raise DataError(f"column '{self.column}' holds {times.dtype}, which has no duration: use by='rows'.")
        since = (times - times.min()).astype(float)
        owner = np.minimum((since / (since.max() or 1.0) * clients).astype(np.int64), clients - 1)
        empty = np.flatnonzero(np.bincount(owner, minlength=clients) == 0)
        if len(empty):
            raise DataError(
                f"{len(empty)} of {clients} stretches of column '{self.column}' hold no rows (the first is number "
                f"{empty[0]}): lower clients or use by='rows'."
            )
        return by_owner(owner, clients)


@dataclass(frozen=True)
class Continuous(Partitioner):
    """Clients that differ in a measurement: rows sorted by it, blurred by noise, and cut into equal parts.

        z = (v − mean(v)) / sd(v)        sort by  strictness · z + (1 − strictness) · N(0, 1)

    Args:
      column: of numbers.
      strictness: 1 sorts by the column alone; 0 is IID.

    Source: the continuous partitioner of Flower Datasets, https://flower.ai/docs/datasets
    """

    column: str
    _: KW_ONLY
    strictness: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.strictness <= 1:
            raise DataError(f"strictness={self.strictness!r} must lie between 0 (IID) and 1 (sorted).")

    def cut(self, dataset: Dataset, clients: int | None, rng: np.random.Generator) -> Cut:
        clients = client_count(dataset, clients)
        values = one_value_each(dataset, self.column)
        if values.dtype.kind not in "iuf" or not np.all(np.isfinite(values)):
            raise DataError(f"column '{self.column}' must hold finite numbers to sort by, not {values.dtype}.")
        centred = values - values.mean(dtype=np.float64)
        scaled = centred / (centred.std() or 1.0)
        key = self.strictness * scaled + (1 - self.strictness) * rng.standard_normal(len(values))
        owner = np.empty(len(values), dtype=np.int64)
        owner[np.argsort(key, kind="stable")] = np.arange(len(values)) * clients // len(values)
        return by_owner(owner, clients)


def _names(values: np.ndarray) -> Sequence[str]:
    """Sorted values as text; whole numbers from 0 upwards zero-padded to equal length."""
    if values.dtype.kind in "iu" and values[0] >= 0:
        width = len(str(values[-1]))
        return [f"{value:0{width}d}" for value in values.tolist()]
    if values.dtype.kind == "S":
        return [value.decode(errors="backslashreplace") for value in values.tolist()]
    return [str(value) for value in values.tolist()]
