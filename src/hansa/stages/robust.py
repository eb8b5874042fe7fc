"""What reducers share that a few wrong contributions cannot carry away: they see each one, and keep all until the end.

    Median, TrimmedMean      coordinate by coordinate
    Krum, MultiKrum, Bulyan  choose contributions by their distances
    GeometricMedian, CentredClipping, FLTrust   weigh them

They give the robust mean times the count, which is what a sum would have been: the mean stage divides as ever. Each
part (value, buffers, a side value) is reduced by itself, so that none hides behind another's scale. Metrics are added
up as `Sum` does: they steer nothing.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar

import numpy as np

from hansa.core.pipeline import Arrived, Reducer, Seat, Sensitivity, Server, Setting, Signal, fault
from hansa.core.tensors import Tensors
from hansa.privacy.threats import OPEN, Sees

CHUNK = 1 << 12  # coordinates of all contributions that are widened to float64 at a time
TILE = 32  # contributions in one matrix product: small enough that BLAS gives the same bits whatever its threads


class Gathered:
    """The contributions of one round, read block by block from wherever the runtime keeps them.

    Args:
      clients: who sent them, in task order.
      messages: flat parts of equal names and shapes.
    """

    def __init__(self, clients: Sequence[str], messages: Sequence[Tensors]) -> None:
        self.clients, self._messages = tuple(clients), messages
        self.shapes = messages[0].shapes if messages else {}

    def __len__(self) -> int:
        return len(self._messages)

    @property
    def parts(self) -> list[list[str]]:
        """The names of each part that is averaged."""
        found: dict[str, list[str]] = {}
        for name in self.shapes:
            found.setdefault(name.split("/", 1)[0], []).append(name)
        return [names for part, names in found.items() if part != "metric"]

    def columns(self, name: str, reduce: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """One tensor from its blocks, each of shape (contributions, coordinates) and reduced to (coordinates,)."""
        shape, dtype = self.shapes[name]
        out = np.empty(shape, dtype if np.dtype(dtype).kind == "f" else np.float64)
        flat = out.reshape(-1)
        for where, block in self._stacked(name):
            flat[where] = reduce(block)
        return out

    def added(self, name: str) -> np.ndarray:
        """The plain sum of one tensor, in its own type."""
        shape, dtype = self.shapes[name]
        out = np.empty(shape, dtype)
        for where, block in self._stacked(name):
            out.reshape(-1)[where] = block.sum(axis=0)
        return out

    def mixed(self, names: Sequence[str], weights: np.ndarray) -> dict[str, np.ndarray]:
        """Σ wᵢ·xᵢ of these tensors; a contribution of weight 0 is not looked at."""
        return {name: self.columns(name, lambda block: _mix(block, weights)) for name in names}

    def gram(self, names: Sequence[str]) -> np.ndarray:
        """Inner products of all pairs over these tensors: shape (n, n), float64.

        Not centred: one liar's 10³⁰ as the origin would swallow everybody else's digits. Entries of float64
        contributions beyond 10¹⁵⁰ overflow to infinity or NaN.
        """
        products = np.zeros((len(self), len(self)))
        with np.errstate(over="ignore", invalid="ignore"):
            for name in names:
                for _, block in self._stacked(name):
                    for at in range(0, block.shape[1], CHUNK):
                        wide = block[:, at : at + CHUNK].astype(np.float64)
                        for i, j in _tiles(len(self)):
                            products[i, j] += wide[i] @ wide[j].T
            lower = np.tril_indices(len(self), -1)
            products[lower] = products.T[lower]
        return products

    def _stacked(self, name: str) -> Iterator[tuple[slice, np.ndarray]]:
        for blocks in zip(*(message.blocks(name) for message in self._messages), strict=True):
            yield blocks[0][0], np.stack([block for _, block in blocks])


class Robust(Reducer):
    """A reducer that outvotes liars. A subclass says what the mean of one part is."""

    threats: ClassVar[tuple[Sees, ...]] = OPEN

    @abstractmethod
    def mean(self, given: Gathered, names: Sequence[str]) -> dict[str, np.ndarray]:
        """The robust mean of the tensors of one part."""

    @abstractmethod
    def withstands(self, contributions: int) -> int:
        """How many of so many contributions may be anything without carrying the mean away; below 0 if too few."""

    @property
    def fewest(self) -> int:
        """The number of contributions below which it has no meaning."""
        return 1

    def faults(self, contributions: int, signal: Signal) -> Iterator[str]:
        """What else is wrong with this signal in rounds of so few contributions."""
        yield from ()

    def bind(self, signal: Signal, setting: Setting) -> None:
        """Refuses weights, which a liar would choose, what is divided by another number than the count, and too few."""
        name, who, algorithm = type(self).__name__, setting.sampling, type(setting.algorithm).__name__
        count = who.quorum if who.quorum is not None else math.floor(setting.cohort)
        faults = []
        if "weight" in signal.parts:
            faults.append(
                f"{name} counts every client the same and takes no weights: put UniformMean() in the pipeline."
            )
        if who.kind == "poisson":
            faults.append(
                f"{name} under Poisson sampling would be divided by the expected cohort: use cohort=n instead."
            )
        elif count < self.fewest:
            faults.append(
                f"{self} needs at least {self.fewest} contributions, and a round may have {count}: lower its "
                "settings, or raise the cohort (and its quorum)."
            )
        else:
            faults += self.faults(count, signal)
        if any(signal.parts[part].modulus is not None for part in signal.averaged):
            faults.append(
                f"{name} cannot compare integers that wrap: leave the clients' noise out, or use SecureSum()."
            )
        if setting.algorithm.discounts:
            faults.append(f"{name} cannot discount stale updates, as {algorithm} asks: use Sum().")
        if faults:
            raise fault(*faults)

    def settle(self, signal: Signal, setting: Setting) -> Sensitivity:
        """Unbounded: one client may decide which of the others count, which moves the mean by more than its own."""
        return dict.fromkeys(signal.parts, math.inf)

    def server(self, cohort: Sequence[str], seat: Seat | None = None) -> Server:
        """Keeps what arrives; reduces when the leg is closed."""
        clients: list[str] = []
        messages: list[Tensors] = []
        while isinstance(event := (yield None), Arrived):
            clients.append(event.client)
            messages.append(event.message)
        given = Gathered(clients, messages)
        total = {name: given.added(name) for name in given.shapes if name.startswith("metric/")}
        for names in given.parts:
            for name, array in self.mean(given, names).items():
                array *= len(given)
                total[name] = array
        return Tensors(total)


def squared_distances(products: np.ndarray) -> np.ndarray:
    """‖xᵢ − xⱼ‖² from inner products, shape (n, n); infinite where they overflowed."""
    lengths = np.diag(products)
    with np.errstate(over="ignore", invalid="ignore"):
        squared = lengths[:, None] + lengths[None, :] - 2 * products
    squared = np.maximum(np.where(np.isnan(squared), np.inf, squared), 0.0)
    np.fill_diagonal(squared, 0.0)
    return squared


def distances_to(products: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """‖xᵢ − v‖ for v = Σ wⱼ·xⱼ, from inner products alone: shape (n,).

    So a fixed point can be sought among n numbers, after one pass over the contributions.
    """
    squared = np.diag(products) - 2 * (products @ weights) + weights @ products @ weights
    found: np.ndarray = np.sqrt(np.maximum(squared, 0.0))
    return found


def _mix(block: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """In task order and in float64, whatever the block's type."""
    total = np.zeros(block.shape[1])
    for row, weight in zip(block, weights, strict=True):
        if weight:
            total += row * weight
    return total


def _tiles(count: int) -> Iterator[tuple[slice, slice]]:
    starts = range(0, count, TILE)
    for i in starts:
        for j in range(i, count, TILE):
            yield slice(i, i + TILE), slice(j, j + TILE)
