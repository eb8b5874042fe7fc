"""Categories as numbers: locally, where a column has one owner; by private agreement, where several owners have it.

    owner i   v ─ H(v)^kᵢ ──► next owner ─ ^kⱼ ──► … ──► H(v)^(k₁k₂…kₙ) ─ digest ──► all
              number of v = rank of its digest among the digests of all owners' values

All owners give a value the same number without showing it. A digest needs every owner's key, so nobody can try out
values on what it received; only a value that an owner enters itself shows whether others have it.

Source: the exponentiations of Diffie and Hellman, as in Meadows 1986, https://doi.org/10.1109/SP.1986.10022
"""

import hashlib
import json
import secrets
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hansa.core.errors import ConfigError, DataError, ProtocolError, require
from hansa.core.runtime import Mesh
from hansa.crypto import curve
from hansa.runtimes.mesh.messages import named, sized, told
from hansa.vertical.learns import Learns, statement
from hansa.vertical.table import AlignedTable, Column

_TAG_BYTES = 16
_VALUE_BYTES = 32


@dataclass(frozen=True)
class Encoding:
    """The numbers of one owner's categories among those of all owners.

    Args:
      column: its name.
      numbers: of this owner's categories, each below `size`.
      size: categories of all owners together.
      holders: for each of this owner's categories, the other owners that have it too.
    """

    column: str
    numbers: Mapping[str, int] = field(repr=False)
    size: int
    holders: Mapping[str, tuple[str, ...]] = field(repr=False)

    def codes(self, values: Column) -> NDArray[np.float64]:
        """The number of each value, NaN where it is missing.

        Raises:
          DataError: a value was not among those that were agreed on.
        """
        return np.array([np.nan if value is None else self._number(value) for value in _texts(values)])

    def one_hot(self, values: Column) -> NDArray[np.float64]:
        """Shape (rows, size): 1 at the number of each value; a row of zeros where it is missing."""
        codes = self.codes(values)
        made = np.zeros((len(codes), self.size))
        there = np.flatnonzero(~np.isnan(codes))
        made[there, codes[there].astype(int)] = 1
        return made

    def _number(self, value: str) -> int:
        if value not in self.numbers:
            raise DataError(f"a category of '{self.column}' was not agreed on: agree again with all that can occur.")
        return self.numbers[value]


def learns(owners: Sequence[str]) -> Learns:
    """What each owner learns from an agreement."""
    told = [
        "how many categories each owner has, and how many all have together",
        "for each of its own categories, which other owners have it too",
    ]
    if len(owners) > 2:
        told.append("how many categories any of the others have in common, and not which")
    return dict.fromkeys(owners, told)


def agree_categories(
    mesh: Mesh, column: str, values: Iterable[str | None], *, most: int = 10_000,
    announce: Callable[[str], None] = print,
) -> Encoding:  # fmt: skip
    """One numbering of a column's categories for all parties of a mesh, each of which calls this.

    Args:
      mesh: links to the other owners.
      column: its name, the same at all.
      values: this owner's, in any order and number; None is no category.
      most: categories that one owner may enter, the same at all: a large set of guesses is a question about each.
      announce: is told, before anything is sent, what each party learns.

    Raises:
      ConfigError: the owners name other columns or limits, or this one has more categories than agreed.
      ProtocolError: a peer sends what is no point, or more of them than agreed.
    """
    owners = sorted((mesh.me, *mesh.peers))
    require(len(owners) > 1, "an agreement needs another owner: use one_hot for a column that one owner has alone.")
    own = sorted({value for value in _texts(values) if value is not None})
    require(len(own) <= most, f"'{column}' has {len(own)} categories, more than most={most}: raise it at all owners.")
    announce(statement(f"Categories of '{column}'", learns(owners)))
    counts, domain = _agreed(mesh, owners, column, most, len(own))
    order = np.argsort([secrets.randbits(64) for _ in own])  # an alphabetical order would say something
    shuffled = [own[at] for at in order]
    tags = _blinded(mesh, owners, shuffled, domain, counts)
    rank = {tag: at for at, tag in enumerate(sorted(set().union(*tags.values())))}
    mine = dict(zip(shuffled, tags[mesh.me], strict=True))
    others = {name: set(tags[name]) for name in owners if name != mesh.me}
    return Encoding(
        column,
        {value: rank[mine[value]] for value in own},
        len(rank),
        {value: tuple(name for name in others if mine[value] in others[name]) for value in own},
    )


def one_hot(table: AlignedTable, names: Sequence[str] | None = None) -> AlignedTable:
    """Columns of text as columns of 0 and 1, named `town=Bremen`, in the order of the alphabet; the rest as it is.

    Args:
      table: one owner's.
      names: of the columns; all that are text if None. Missing values are 0 in all of them.

    Raises:
      DataError: a column has no category at all.
    """
    wanted = [name for name in table.names if not table.is_number(name)] if names is None else list(names)
    made: dict[str, Column] = {}
    for name in table.names:
        if name not in wanted:
            made[name] = table[name]
            continue
        texts = np.array(_texts(table[name]), object)
        categories = sorted({value for value in texts if value is not None})
        if not categories:
            raise DataError(f"the column '{name}' of '{table.owner}' is all missing: leave it out.")
        made |= {f"{name}={category}": (texts == category).astype(np.float64) for category in categories}
    return AlignedTable(table.owner, made, table.alignment)


def _texts(values: Iterable[object]) -> list[str | None]:
    """Values as text in one Unicode form; None where missing."""
    missing = (value is None or (isinstance(value, float) and np.isnan(value)) for value in values)
    return [
        None if gone else unicodedata.normalize("NFC", str(value)) for value, gone in zip(values, missing, strict=True)
    ]


def _agreed(
    mesh: Mesh, owners: Sequence[str], column: str, most: int, count: int
) -> tuple[Mapping[str, int], bytes]:  # fmt: skip
    """How many categories each owner enters, and what makes these points others than any other agreement's."""
    salt = secrets.token_hex(16)
    said = told(mesh, "categories", [column, most, count, salt], tuple[str, int, int, str])
    for peer, (*theirs, entered, _) in said.items():
        if theirs != [column, most]:
            raise ConfigError(f"'{peer}' agrees on [column, most]={theirs}, '{mesh.me}' on {[column, most]}.")
        if entered > most:
            raise ProtocolError(f"'{peer}' enters {entered} categories, more than the {most} that were agreed on.")
    domain = hashlib.sha256(json.dumps([column, most, [said[name][3] for name in owners]]).encode()).digest()
    return {name: said[name][2] for name in owners}, domain


def _blinded(
    mesh: Mesh, owners: Sequence[str], values: Sequence[str], domain: bytes, counts: Mapping[str, int]
) -> dict[str, list[bytes]]:
    """For each owner the digests of its values under the keys of all, in the order that it chose."""
    key = _key()
    place = owners.index(mesh.me)
    after, before = owners[(place + 1) % len(owners)], owners[place - 1]
    hashed = b"".join(hashlib.blake2b(value.encode(), digest_size=_VALUE_BYTES).digest() for value in values)
    points = curve.hash_and_multiply(hashed, _VALUE_BYTES, domain, key)
    for hop in range(1, len(owners)):
        mesh.send(after, f"points/{hop}", [points])
        points = sized(mesh, before, f"points/{hop}", counts[owners[place - hop]] * curve.POINT_BYTES)
        with named(before):
            points = curve.multiply(points, key)
    # What came last has been with all owners: it is the set of the owner after this one.
    made: dict[str, list[bytes]] = {}
    for peer, raw in mesh.exchange("digests", _digests(points, domain)).items():
        whose = owners[(owners.index(peer) + 1) % len(owners)]
        if len(raw) != _TAG_BYTES * counts[whose]:
            raise ProtocolError(f"'{peer}' sent other digests than '{whose}' has values: it is broken or hostile.")
        made[whose] = [raw[at : at + _TAG_BYTES] for at in range(0, len(raw), _TAG_BYTES)]
    return made


def _digests(points: bytes, domain: bytes) -> bytes:
    size = curve.POINT_BYTES
    each = (points[at : at + size] for at in range(0, len(points), size))
    return b"".join(hashlib.blake2b(point, key=domain, digest_size=_TAG_BYTES).digest() for point in each)


def _key() -> bytes:
    while True:
        try:
            return curve.scalar(secrets.token_bytes(32))
        except ValueError:
            continue
