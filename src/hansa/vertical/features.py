"""What columns say about labels that another owner has: WOE, IV, KS, AUC, positive ratio, and correlations.

    label owner    Enc(y₁) … Enc(yₙ) ───────────────►  feature owner: adds up the ciphertexts of each bin's rows
                   positives of each bin, or masked  ◄── Enc(Σ y) of each bin, under randomness of its own

Labels leave their owner as Paillier ciphertexts alone; features leave theirs as sums over bins. Who learns the
positives of the bins is chosen: the label owner (`to="labels"`) sees numbers of bins, never values or who is in them;
the feature owner (`to="features"`) sees them of bins with at least `least` rows, since a bin of one row is that
person's label. Parties follow the protocol: a feature owner that does not could enter small bins.

Sources: Paillier 1999, https://doi.org/10.1007/3-540-48910-X_16; Siddiqi 2006, Credit Risk Scorecards (WOE and IV).
"""

import json
import secrets
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hansa.core.checkpoint import Buffer
from hansa.core.errors import ConfigError, DataError, ProtocolError, require
from hansa.core.runtime import Mesh
from hansa.crypto.paillier import PrivateKey, PublicKey
from hansa.mpc.session import Session
from hansa.runtimes.mesh.messages import heard, named, parts, read, told
from hansa.vertical.learns import Learns, statement
from hansa.vertical.table import AlignedTable, Column

RECEIVERS = ("labels", "features", "both")
_MASK_BITS = 80  # a sum below 2^40 under such a mask shows nothing but with a chance of 2^-40
_UNIT = 1 << 30  # of numbers whose squares sum to 1, as ring integers


@dataclass(frozen=True)
class Binned:
    """One column's bins and the labels in them.

    Args:
      totals: rows of each bin, in increasing order of the column's values; a bin of missing values comes last.
      positives: of them those with label 1.
      edges: bin b holds edges[b − 1] < x ≤ edges[b]; at the feature owner alone, and not of text.
      categories: which bin each category is in; at the feature owner alone, of text alone.
      missing: whether the last bin is that of missing values.
    """

    totals: NDArray[np.int64]
    positives: NDArray[np.int64]
    edges: NDArray[np.float64] | None = field(default=None, repr=False)
    categories: Mapping[str, int] | None = field(default=None, repr=False)
    missing: bool = False

    @property
    def positive_ratio(self) -> NDArray[np.float64]:
        """Share of label 1 in each bin."""
        return self.positives / self.totals

    def woe(self, adjust: float = 0.5) -> NDArray[np.float64]:
        """Weight of evidence of each bin: ln of its share of all positives over its share of all negatives.

        Args:
          adjust: added to both counts of each bin, so that a bin without one of them has a finite weight; 0 for none.
        """
        good, bad = self.positives + adjust, self.totals - self.positives + adjust
        with np.errstate(divide="ignore", invalid="ignore"):
            weights: NDArray[np.float64] = np.log((good / good.sum()) / (bad / bad.sum()))
        return weights

    def iv(self, adjust: float = 0.5) -> float:
        """Information value: Σ (share of positives − share of negatives)·WOE."""
        good, bad = self.positives + adjust, self.totals - self.positives + adjust
        return float(((good / good.sum() - bad / bad.sum()) * self.woe(adjust)).sum())

    @property
    def ks(self) -> float:
        """The largest distance between the distributions of the classes, at edges of bins of numbers."""
        good, bad = self._numbers
        return float(np.abs(np.cumsum(good) / good.sum() - np.cumsum(bad) / bad.sum()).max())

    @property
    def auc(self) -> float:
        """The chance that a positive lies above a negative, half of it within a bin; of bins of numbers."""
        good, bad = self._numbers
        below = np.cumsum(bad) - bad
        return float((good * (below + bad / 2)).sum() / (good.sum() * bad.sum()))

    def transformed(self, values: Column, adjust: float = 0.5) -> NDArray[np.float64]:
        """Each value's weight of evidence, at the feature owner."""
        if self.edges is None and self.categories is None:
            raise ConfigError("only the owner of the column knows its bins: transform it there, with to='features'.")
        return self.woe(adjust)[_bins_of(values, self.edges, self.categories, self.missing)]

    @property
    def _numbers(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        last = len(self.totals) - self.missing
        return self.positives[:last], (self.totals - self.positives)[:last]


Relations = dict[str, dict[str, Binned]]
"""Owner to column to what was learnt."""


def learns(label_owner: str, feature_owners: Sequence[str], to: str, least: int) -> Learns:
    """What each party learns from `relate`."""
    of_bins = "of each column of the others: the number of bins, and rows and positives in each, without its values"
    own = f"of each of its columns: the positives in each bin, of {least} rows or more"
    found = {label_owner: ["how many columns each of the others asks about, and how many bins each has"]}
    if to != "features":
        found[label_owner].append(of_bins)
    for name in feature_owners:
        found[name] = [own] if to != "labels" else []
    return found


def relate(
    mesh: Mesh, label_owner: str, *, to: str, labels: Column | None = None, table: AlignedTable | None = None,
    bins: int = 32, least: int = 20, key_bits: int = 2048, announce: Callable[[str], None] = print,
) -> Relations:  # fmt: skip
    """How each column of every other party of the mesh relates to the label owner's labels; all parties call this.

    Args:
      mesh: links to the others.
      label_owner: who has the labels.
      to: who learns the positives of each bin: `labels`, `features` or `both`.
      labels: 0 and 1, at the label owner.
      table: the columns to be asked about, at the others.
      bins: at most so many of equally many rows, for each column of numbers; up to 2,047.
      least: rows of a bin whose positives its owner learns: smaller ones are merged with a neighbour, and of text
        with other rare categories. With `to="labels"` bins may be smaller.
      key_bits: of the label owner's key.
      announce: is told, before anything is sent, what each party learns.

    Returns:
      What this party learns: at the label owner by owner and column (with numbers in place of names of columns), at a
      feature owner under its own name; empty where it learns nothing.

    Raises:
      ConfigError: terms differ, or data is given where there is none.
      DataError: labels are not 0 and 1, or rows differ.
    """
    require(to in RECEIVERS, f"to='{to}': choose one of {', '.join(RECEIVERS)}.")
    require(2 <= bins <= 2047, f"bins={bins}: choose 2 to 2,047.")
    require(least >= 1, f"least={least}: at least 1.")
    parties = sorted((mesh.me, *mesh.peers))
    require(label_owner in parties, f"label_owner='{label_owner}' is no party of this mesh.")
    owners = [name for name in parties if name != label_owner]
    mine = mesh.me == label_owner
    require((labels is not None) == mine, f"labels: they are those of '{label_owner}', and of nobody else.")
    require((table is None) == mine, f"table: '{label_owner}' asks about the others' columns; each of them gives one.")
    rows = len(labels) if labels is not None else len(table) if table is not None else 0
    _terms(mesh, {"label_owner": label_owner, "to": to, "bins": bins, "least": least, "rows": rows})
    announce(statement("Columns and labels", learns(label_owner, owners, to, least)))
    if labels is not None:
        return _as_label_owner(mesh, owners, labels, to, key_bits)
    assert table is not None
    return _as_feature_owner(mesh, label_owner, table, to, bins, least if to != "labels" else 1)


def correlation(
    session: Session, table: AlignedTable | None, to: str | Sequence[str] | None = None
) -> tuple[list[tuple[str, str]], NDArray[np.float64]] | None:
    """Pearson's correlation of every column of every owner with every other, on shares; all parties call this.

    Args:
      session: of all owners; its names are those of the tables' owners.
      table: this party's, aligned with the others'; None at a party that only computes.
      to: who learns the matrix; None is all.

    Returns:
      (owner, column) of each row, and the matrix; None at who does not learn it. Each entry is within 1e-6 of what
      pandas computes from the joined table. Constant columns have NaN.

    Raises:
      ConfigError: the tables are of different alignments.
      DataError: a value is missing.
    """
    x = np.empty((0, 0)) if table is None else table.matrix()
    if not np.isfinite(x).all():
        raise DataError(f"the table of '{session.me}' has missing values: fill them in first.")
    centred = x - x.mean(0, keepdims=True) if len(x) else x
    norms = np.sqrt((centred**2).sum(0))
    constant = norms <= 1e-12 * np.abs(x).max(0, initial=1.0)
    unit = np.where(constant, 0.0, centred / np.where(constant, 1.0, norms))
    # Integers, so that the products are exact: 2^60 at most, which the ring of 64 bits holds.
    whole = torch.from_numpy(np.rint(unit * _UNIT).astype(np.int64))
    mine = None if table is None else [list(table.names), constant.tolist(), len(table), table.alignment.hex()]
    said = told(session.mesh, "columns", mine, tuple[list[str], list[bool], int, str] | None)
    have = [owner for owner in session.names if said[owner] is not None and said[owner][0]]
    require(bool(have), "no owner gave a column.")
    fault = "the tables are of different alignments: align again, and take the same rows everywhere."
    require(len({tuple(said[owner][2:]) for owner in have}) == 1, fault)
    names = [(owner, name) for owner in have for name in said[owner][0]]
    flat = np.array([each for owner in have for each in said[owner][1]])
    shares = [session.share(whole, owner, shape=(said[owner][2], len(said[owner][0]))) for owner in have]
    joined = torch.cat(shares, 1)
    opened = session.reveal(joined.T @ joined, to)
    if opened is None:
        return None
    matrix = opened.numpy() / float(_UNIT) ** 2
    matrix[flat, :] = matrix[:, flat] = np.nan
    return names, matrix


# -- the two sides


def _as_label_owner(mesh: Mesh, owners: Sequence[str], labels: Column, to: str, key_bits: int) -> Relations:
    y = np.asarray(labels, np.float64)
    if not np.isin(y, (0, 1)).all() or len(set(y.tolist())) < 2:
        raise DataError("labels are 0 and 1, and both must occur: encode them so.")
    key = PrivateKey.generate(key_bits)
    encrypted = key.public.to_bytes(key.encrypt([int(value) for value in y]))
    for owner in owners:
        mesh.send(owner, "key", list(key.public.numbers()))
        mesh.send(owner, "labels", [encrypted])
    found: Relations = {}
    for owner in owners:
        columns: dict[str, Binned] = {}
        for number in range(heard(mesh, owner, "columns", int)):
            binned = _summed(mesh, owner, number, key, len(y)) if to != "features" else None
            if binned is not None:
                columns[str(number)] = binned
            if to != "labels":
                raw, count = (
                    parts(mesh, owner, f"masked/{number}", 1)[0],
                    None if binned is None else len(binned.totals),
                )
                with named(owner):
                    shown = key.decrypt(key.public.from_bytes(raw, count))
                mesh.send(owner, f"opened/{number}", [json.dumps([str(each) for each in shown]).encode()])
        if columns:
            found[owner] = columns
    return found


def _summed(mesh: Mesh, owner: str, number: int, key: PrivateKey, rows: int) -> Binned:
    """What an owner says of one of its columns: rows of each bin, and under our key their positives."""
    head, raw = parts(mesh, owner, f"sums/{number}", 2)
    totals, missing = _totals(head, owner, rows)
    with named(owner):
        sums = key.decrypt(key.public.from_bytes(raw, len(totals)))
    return _checked(totals, sums, missing, owner)


def _as_feature_owner(mesh: Mesh, label_owner: str, table: AlignedTable, to: str, bins: int, least: int) -> Relations:
    with named(label_owner):
        key = PublicKey.of(*map(bytes, parts(mesh, label_owner, "key", 2)))
        encrypted = key.from_bytes(parts(mesh, label_owner, "labels", 1)[0], len(table))
    mesh.send(label_owner, "columns", [json.dumps(len(table.names)).encode()])
    columns: dict[str, Binned] = {}
    for number, name in enumerate(table.names):
        edges, categories, missing = _cut(table[name], table.is_number(name), bins, least)
        place = _bins_of(table[name], edges, categories, missing)
        count = int(place.max(initial=-1)) + 1
        totals = np.bincount(place, minlength=count)
        sums = key.encrypt([0] * count)
        for row, at in enumerate(place):
            sums[at] = key.add(sums[at], encrypted[row])
        if to != "features":
            head = json.dumps([totals.tolist(), missing]).encode()
            mesh.send(label_owner, f"sums/{number}", [head, key.to_bytes(sums)])
        if to != "labels":
            masks = [secrets.randbits(_MASK_BITS) for _ in range(count)]
            masked = [key.add(each, mask) for each, mask in zip(sums, key.encrypt(masks), strict=True)]
            mesh.send(label_owner, f"masked/{number}", [key.to_bytes(masked)])
            shown = _opened(mesh, label_owner, f"opened/{number}", count)
            found = [each - mask for each, mask in zip(shown, masks, strict=True)]
            known = _checked(totals, found, missing, label_owner)
            columns[name] = Binned(known.totals, known.positives, edges, categories, missing)
    return {mesh.me: columns} if columns else {}


def _cut(
    values: Column, numbers: bool, bins: int, least: int
) -> tuple[NDArray[np.float64] | None, dict[str, int] | None, bool]:
    """Edges of bins, or the bin of each category; and whether missing values have a bin."""
    gone = np.isnan(values) if numbers else np.array([value is None for value in values], np.bool_)
    missing, there = int(gone.sum()), values[~gone]
    if 0 < missing < least:
        raise DataError(
            f"{missing} values of a column are missing, fewer than least={least} for a bin of their own: fill them in."
        )
    if numbers:
        return _edges(np.sort(there), bins, least), None, missing > 0
    return None, _categories(there, least), missing > 0


def _edges(there: Column, bins: int, least: int) -> NDArray[np.float64]:
    """Between bins of equally many rows, as far as each has so many."""
    inner = np.linspace(0, 1, bins + 1)[1:-1]
    wanted = np.unique(np.quantile(there, inner, method="lower")) if len(there) else there
    edges, taken = list[float](), 0
    for edge in wanted:
        upto = int(np.searchsorted(there, edge, "right"))
        if upto - taken >= least and len(there) - upto >= least:
            edges.append(float(edge))
            taken = upto
    return np.array(edges)


def _categories(there: Column, least: int) -> dict[str, int]:
    """The bin of each category; rare ones share the last, with the least common of the others if they are too few."""
    counts = Counter(there.tolist())
    common = sorted(name for name, count in counts.items() if count >= least)
    rare = sorted(set(counts) - set(common))
    if common and rare and sum(counts[name] for name in rare) < least:
        common.remove(joined := min(common, key=lambda name: counts[name]))
        rare.append(joined)
    return {name: at for at, name in enumerate(common)} | dict.fromkeys(rare, len(common))


def _bins_of(
    values: Column, edges: NDArray[np.float64] | None, categories: Mapping[str, int] | None, missing: bool
) -> NDArray[np.int64]:
    """The bin of each value."""
    if categories is not None:
        last = max(categories.values(), default=-1) + 1
        unknown = {value for value in values if value is not None} - set(categories)
        if unknown or (not missing and any(value is None for value in values)):
            raise DataError("a category, or a missing value, was not there when the bins were made: make them again.")
        return np.array([last if value is None else categories[value] for value in values], np.int64)
    assert edges is not None
    gone = np.isnan(values)
    if gone.any() and not missing:
        raise DataError("no value was missing when the bins were made, and some are now: fill them in.")
    made: NDArray[np.int64] = np.where(gone, len(edges) + 1, np.searchsorted(edges, values, "left"))
    return made


# -- what is sent


def _terms(mesh: Mesh, terms: dict[str, Any]) -> None:
    for peer, theirs in told(mesh, "terms", terms, dict[str, Any]).items():
        if theirs != terms:
            raise ConfigError(f"'{peer}' states {theirs}, and '{mesh.me}' {terms}: they must be the same.")


def _totals(raw: Buffer, sender: str, rows: int) -> tuple[NDArray[np.int64], bool]:
    totals, missing = read(raw, sender, "bins", tuple[list[int], bool])
    if sum(totals) != rows:
        raise ProtocolError(f"'{sender}' sent no bins: their rows are not those of the table.")
    return np.array(totals, np.int64), missing


def _opened(mesh: Mesh, sender: str, tag: str, count: int) -> list[int]:
    """Masked sums, which are too long for numbers of JSON."""
    found = heard(mesh, sender, tag, list[str])
    if len(found) != count or not all(each.isascii() and each.isdecimal() and len(each) < 40 for each in found):
        raise ProtocolError(f"'{sender}' sent no opened sums of {count} bins.")
    return [int(each) for each in found]


def _checked(totals: NDArray[np.int64], sums: Sequence[int], missing: bool, sender: str) -> Binned:
    if any(not 0 <= each <= total for each, total in zip(sums, totals, strict=True)):
        raise ProtocolError(
            f"the positives of a bin are not between 0 and its rows: '{sender}' has other data or keys."
        )
    return Binned(totals, np.array([int(each) for each in sums], np.int64), missing=missing)
