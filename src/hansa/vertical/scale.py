"""Scaling of a column that several owners have, of different people: as if their rows were one column; none is shown.

    count, sum, squares   each owner splits its numbers into random summands, one for each owner; their sums are opened
    minimum, maximum      of the owners' own ones, compared on shares (hansa.mpc)

Sums are exact integers modulo 2¹⁹² of numbers in units of 2⁻⁴⁰: nobody learns more than the totals, even if all but one
other owner put together what they have. Extremes are as secret as the session's protocol makes them.
"""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from hansa.core.errors import DataError
from hansa.core.runtime import Mesh
from hansa.mpc.session import Session
from hansa.runtimes.mesh.messages import sized
from hansa.vertical.learns import Learns
from hansa.vertical.table import AlignedTable

_FRACTION, _BITS = 40, 192  # squares of the largest numbers, of 2^60 rows
_LARGEST = float(1 << 44)  # of a number: what the session's fixed-point numbers hold


@dataclass(frozen=True)
class Scaling:
    """What all owners know of one column in the end.

    Args:
      count: numbers that are there, of all owners.
      minimum, maximum: to 2⁻¹⁶.
      mean, variance: of the population, not of a sample; to 2⁻³⁹ or so.
    """

    count: int
    minimum: float
    maximum: float
    mean: float
    variance: float

    def standardised(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Of mean 0 and variance 1; a constant column becomes zeros."""
        return (values - self.mean) / (self.variance**0.5 or 1.0)

    def normalised(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Between 0 and 1; a constant column becomes zeros."""
        return (values - self.minimum) / (self.maximum - self.minimum or 1.0)

    def centred(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Less the mean, over the range: PaddleFL's mean normalisation."""
        return (values - self.mean) / (self.maximum - self.minimum or 1.0)


def learns(owners: Sequence[str]) -> Learns:
    """What each party learns from scaling."""
    return {name: ["of each column: count, minimum, maximum, mean and variance over all owners"] for name in owners}


def scalings(session: Session, table: AlignedTable | Mapping[str, NDArray[np.float64]]) -> dict[str, Scaling]:
    """One scaling for each column, the same at all parties of the session, each of which calls this.

    Args:
      session: of all owners.
      table: this owner's rows of columns that all owners have by the same names; NaN counts as missing.

    Raises:
      ConfigError: owners have other columns.
      DataError: a column is infinite, too large, or missing at all owners.
    """
    names = sorted(table.names if isinstance(table, AlignedTable) else table)
    session.agree("columns", repr(names).encode())
    own = {name: np.asarray(table[name], np.float64) for name in names}
    own = {name: values[~np.isnan(values)] for name, values in own.items()}
    wild = [name for name, values in own.items() if len(values) and not np.abs(values).max() < _LARGEST]
    if wild:
        raise DataError(f"the columns {wild} hold numbers beyond 2^44, or infinite ones: divide them by something.")
    counts = total(session.mesh, [float(len(own[name])) for name in names])
    if absent := [name for name, count in zip(names, counts, strict=True) if not count]:
        raise DataError(f"the columns {absent} are missing at all owners: leave them out.")
    means = [s / n for s, n in zip(total(session.mesh, [own[name].sum() for name in names]), counts, strict=True)]
    spreads = [((own[name] - mean) ** 2).sum() for name, mean in zip(names, means, strict=True)]
    variances = [s / n for s, n in zip(total(session.mesh, spreads), counts, strict=True)]
    lows, highs = _extremes(session, [own[name] for name in names])
    return {
        name: Scaling(round(counts[at]), lows[at], highs[at], means[at], variances[at]) for at, name in enumerate(names)
    }


def total(mesh: Mesh, values: Sequence[float]) -> list[float]:
    """The sums over all parties of a mesh, each of which calls this with equally many finite numbers.

    Nobody learns another's numbers unless all others put together what they have.
    """
    parties = sorted((mesh.me, *mesh.peers))
    modulus = 1 << _BITS
    own = [round(float(value) * (1 << _FRACTION)) % modulus for value in values]
    for peer in mesh.peers:
        summand = [secrets.randbits(_BITS) for _ in own]
        own = [(mine - theirs) % modulus for mine, theirs in zip(own, summand, strict=True)]
        mesh.send(peer, "summands", [_bytes(summand)])
    for peer in mesh.peers:
        own = _sum(own, _numbers(mesh, peer, "summands", len(values)))
    for peer in mesh.peers:
        mesh.send(peer, "sums", [_bytes(own)])
    whole = own
    for peer in parties:
        if peer != mesh.me:
            whole = _sum(whole, _numbers(mesh, peer, "sums", len(values)))
    return [(value - modulus if value >> (_BITS - 1) else value) / (1 << _FRACTION) for value in whole]


def _extremes(session: Session, columns: Sequence[NDArray[np.float64]]) -> tuple[list[float], list[float]]:
    """Minima and maxima over owners, of which only these are opened."""
    # Who has no number of a column enters one that is never the largest.
    own = np.array([[each.max() if len(each) else -_LARGEST for each in (-values, values)] for values in columns])
    shared = [session.share(torch.from_numpy(own), name, shape=(len(columns), 2)) for name in session.names]
    opened = session.reveal(torch.stack(shared).amax(0)).double().numpy()
    return (-opened[:, 0]).tolist(), opened[:, 1].tolist()


def _sum(a: Sequence[int], b: Sequence[int]) -> list[int]:
    return [(x + y) % (1 << _BITS) for x, y in zip(a, b, strict=True)]


def _bytes(numbers: Sequence[int]) -> bytes:
    return b"".join(each.to_bytes(_BITS // 8, "little") for each in numbers)


def _numbers(mesh: Mesh, sender: str, tag: str, count: int) -> list[int]:
    size = _BITS // 8
    raw = sized(mesh, sender, tag, size * count)
    return [int.from_bytes(raw[at : at + size], "little") for at in range(0, len(raw), size)]
