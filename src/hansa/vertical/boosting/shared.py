"""Boosted trees over columns that nobody joins, on shares: nobody sees a gradient, a gain, or who went where.

    owners        share for each split they could make which rows it sends left         B   rows × candidates, secret
    all           gradients of the margins, sums (mask · g) B, gains, the largest of each node: on shares
    an owner      is told which of its own candidates won a node, and of others' nodes nothing
    all           the winner's rows go left, the others right                           mask ← mask · (B hot), secret
    label owner   is told the leaves

A node whose best split gains nothing sends all its rows right. Columns of text are split one category from the rest,
since nobody may see the gradients to order them by.

Source: Fang et al. 2021, Large-scale secure XGB for vertical federated learning, https://arxiv.org/abs/2005.08479
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from hansa.algorithms.trees.boost import learning_rows, spent
from hansa.algorithms.trees.columns import Choice, Grouping, Table
from hansa.algorithms.trees.losses import Floats, Loss, Softmax, loss_of, predictions
from hansa.algorithms.trees.settings import MAX_DEPTH, Boosting
from hansa.algorithms.trees.tree import Boosted, Split, Tree
from hansa.core.errors import ConfigError, ProtocolError, require
from hansa.mpc import functions
from hansa.mpc.secret import SecretTensor
from hansa.mpc.session import Session
from hansa.runtimes.mesh.messages import heard, told
from hansa.vertical.learns import Learns
from hansa.vertical.table import AlignedTable

_LEAST_GAIN = 0.01  # above what rounding in the sums of some ten thousand rows can make of no gain at all
_MOST_ROWS = 1 << 15  # a sum of hessians is divided by
_MOST_CLASSES = 256


@dataclass(frozen=True, kw_only=True)
class SharedBoosting(Boosting):
    """Boosted trees on shares.

    Args:
      labels_at: the owner of the labels.

    The other settings are those of `hansa.algorithms.trees.Boosting`, but that there is no `goss`, which saves nothing
    where nobody may know which rows it drops (docs/boosting.md says why); there are at most 32,768 rows. With
    `validation` all know which rows are kept out, and the labels' owner is shown the loss on them after each round;
    with `patience` all are told which round was best.
    """

    labels_at: str

    title: ClassVar[str] = "Boosted trees on shares"
    learns: ClassVar[Learns] = {
        "labels' owner": (
            "the leaves' values, and which of its own columns split which nodes, where",
            "with `validation` the mean loss on the rows kept out after each round",
        ),
        "other owners": ("which of their own columns split which nodes, where",),
        "a helper": (
            "how many rows, candidates, classes and trees there are, as everybody",
            "with `validation` which rows are kept out, with `patience` which round was best, as everybody",
            "no value, unless two computing parties collude",
        ),
        "prediction": ("the labels' owner: the prediction of each row",),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        fault = (
            f"goss={self.goss}: on shares no row can be dropped unless it is shown which ones have large gradients, "
            "and secret weights on all rows save nothing; leave it out, or use EncryptedBoosting."
        )
        require(self.goss is None, fault)

    def fit(
        self, session: Session, table: AlignedTable | None, labels: Any = None, *,
        observe: Callable[[int], None] | None = None,
    ) -> Boosted:  # fmt: skip
        """Trains; every party of the session calls it.

        Args:
          session: of `hansa.mpc`.
          table: this party's columns; None at one that only computes.
          labels: at their owner alone, one number for each row.
          observe: called with the number of each round that is done.

        Returns:
          This party's part of the trees; `predict_shared` takes it.

        Raises:
          ConfigError: settings or alignments differ, labels at another party than `labels_at`, too many rows.
          DataError: labels or columns that cannot be learned from.
        """
        require((session.me == self.labels_at) == (labels is not None), f"labels are given at '{self.labels_at}'.")
        mine = _Own.of(table, self) if table is not None and table.names else None
        loss = None if labels is None else loss_of(self.loss, labels)
        sizes, rows, outputs = _meet(session, self, table, *_facts(mine, loss))
        y = session.share(None if loss is None else _targets(loss), self.labels_at, shape=(rows, outputs))
        base = session.share(None if loss is None else loss.base(), self.labels_at, shape=(outputs,))
        given = None if mine is None else mine.sides()
        sides = [session.share(given, owner, shape=(rows, size)) for owner, size in sizes.items() if size]
        left = torch.cat(sides, 1)
        margins = base.expand(rows, outputs)
        learns = torch.from_numpy(learning_rows(rows, self))
        owners = (self.labels_at, *sorted(set(session.names) - {self.labels_at}))
        part = Boosted(self.loss, base=tuple(loss.base().tolist()) if loss else (), party=session.me, owners=owners)
        while len(part) < self.trees and not self._stops(session, part):
            g, h = self._gradients(margins, y)
            if self.validation:
                g, h = (x * learns.long()[:, None] for x in (g, h))
            added, trees = [], []
            for output in range(outputs):
                values, hot, leaves = self._tree(g[:, output], h[:, output], left)
                added.append(values)
                trees.append(_opened(session, self, sizes, hot, leaves, mine))
            margins = margins + torch.stack(added, 1)
            part = part.with_round(trees)
            if self.validation:
                mean = session.reveal(self._mean(margins[~learns], y[~learns]), to=self.labels_at)
                part = part if mean is None else replace(part, losses=(*part.losses, float(mean)))
            if observe is not None:
                observe(len(part))
        if self.patience is None:
            return part
        best = _told(session, self.labels_at, int(np.argmin(part.losses)) + 1 if part.losses else 0, self.trees)
        return part.first(best)

    def _stops(self, session: Session, part: Boosted) -> bool:
        """Whether so many rounds have gone without a lower loss, as the labels' owner sees it."""
        return self.patience is not None and bool(_told(session, self.labels_at, int(spent(part.losses, self)), 1))

    def _gradients(self, margins: Any, y: Any) -> tuple[Any, Any]:
        """First and second derivatives of each row's loss, of shape (rows, outputs); secret."""
        if self.loss == "squared":
            return margins - y, torch.ones(margins.shape) + 0 * y
        p = torch.sigmoid(margins) if self.loss == "logistic" else torch.softmax(margins, 1)
        return p - y, p * (1 - p)

    def _mean(self, margins: Any, y: Any) -> Any:
        """The mean loss of some rows; secret."""
        if self.loss == "squared":
            return 0.5 * torch.nn.functional.mse_loss(margins, y)
        if self.loss == "logistic":
            return torch.nn.functional.binary_cross_entropy_with_logits(margins, y)
        return torch.nn.functional.cross_entropy(margins, y)

    def _tree(self, g: Any, h: Any, left: Any) -> tuple[Any, Any, Any]:
        """One tree: what it adds to the margins, the winners of its nodes (nodes × candidates), its leaves; secret."""
        mask, hots = None, []
        for _ in range(self.depth):
            G, H = (x[None] if mask is None else mask * x for x in (g, h))
            hot = self._winners(G @ left, H @ left, G.sum(1, keepdim=True), H.sum(1, keepdim=True))
            hots.append(hot)
            mask = _below(mask, hot @ left.T)
        assert mask is not None
        leaves = _quotient(-self.learning_rate * (mask @ g), mask @ h + self.l2)
        return leaves @ mask, torch.cat(hots), leaves

    def _winners(self, GL: Any, HL: Any, G: Any, H: Any) -> Any:
        """For each node a one at its best candidate, or zeros if that gains too little; secret integers."""
        HR = H - HL
        gains = 0.5 * (_score(GL, HL, self.l2) + _score(G - GL, HR, self.l2))
        least = max(self.min_child_weight, 2**-10)  # an empty child's sum is 0 up to rounding
        gains = gains * (least <= HL) * (least <= HR)
        best, hot = functions.maximum(gains.value, hot=True)
        assert hot is not None
        enough = SecretTensor(best, gains.dtype)[:, None] > 0.5 * _score(G, H, self.l2) + max(self.gamma, _LEAST_GAIN)
        return SecretTensor(hot, torch.int64) * enough


def predict_shared(session: Session, part: Boosted, table: AlignedTable | None) -> Floats | None:
    """Predicts on shares; every party of the session calls it.

    Args:
      session: with the parties of the training.
      part: what `fit` gave here.
      table: this owner's columns of the rows to predict, aligned with the others'; None at one that only computes.

    Returns:
      At the labels' owner probabilities (numbers with the squared loss), one or, of several classes, one row of them
      for each row; None elsewhere.

    Raises:
      ConfigError: alignments differ.
    """
    leader, trees = part.owners[0], [tree for round in part.trees for tree in round]
    splits = any(tree.splits for tree in trees)
    here = len(table) if table is not None and table.names else None
    sizes, rows, outputs = _meet(session, None, table, here, int(splits), len(part.trees[0]))
    own_depth = len(trees[0].leaves).bit_length() - 1 if part.base else 0
    depth = _told(session, leader, own_depth, MAX_DEPTH)
    nodes = 2**depth - 1
    left: Any = 0
    for owner in [owner for owner, size in sizes.items() if size] or [leader]:  # where no tree splits, all go right
        own = _answers(trees, table, nodes, rows) if owner == session.me else None
        left = left + session.share(own, owner, shape=(len(trees), nodes, rows))
    values = np.array([[tree.leaves[nodes + at] for at in range(nodes + 1)] for tree in trees]) if part.base else None
    leaves = session.share(values, leader, shape=(len(trees), nodes + 1))
    mask: Any = None
    for level in range(depth):
        mask = _below(mask, left[:, 2**level - 1 : 2 ** (level + 1) - 1])
    added = (leaves[:, :, None] * mask).sum(1).reshape(len(part), outputs, rows).sum(0)
    margins = session.reveal(added, to=leader)
    return None if margins is None else predictions(part.loss, margins.double().numpy().T + np.array(part.base))


def _below(mask: Any, left: Any) -> Any:
    """Which rows reach each node's two children: shape (…, nodes, rows) to (…, 2·nodes, rows); secret.

    `mask` says which reach the nodes (None: the root, which all do), `left` which of all would go left there.
    """
    goes = left if mask is None else mask * left
    stays = 1 - goes if mask is None else mask - goes
    *trees, nodes, rows = goes.shape
    return torch.stack([goes, stays], len(trees) + 1).reshape(*trees, 2 * nodes, rows)


# -- in the clear, at one party


@dataclass(frozen=True)
class _Own:
    """What an owner brings: its columns in bins, and everything that they can be split by."""

    table: Table
    choices: list[Choice]

    @staticmethod
    def of(table: AlignedTable, settings: Boosting) -> "_Own":
        binned = Table(table.columns, settings)
        groups = [Grouping(place, (at,)) for place in binned.texts for at in range(binned.bins[place].count)]
        return _Own(binned, [*binned.cuts, *groups])

    def split(self, choice: int) -> Split:
        """As all rows part there."""
        return self.table.split(self.choices[choice], np.arange(len(self.table)))

    def sides(self) -> NDArray[np.int64]:
        """1 where a candidate sends a row left, shape (rows, candidates)."""
        splits = [self.split(choice) for choice in range(len(self.choices))]
        return np.column_stack([each.goes_left(self.table.columns[each.column]) for each in splits]).astype(np.int64)


def _facts(mine: _Own | None, loss: Loss | None) -> tuple[int | None, int, int | None]:
    """Rows, candidates and outputs, as far as this party knows them."""
    rows = len(loss.labels) if loss is not None else None if mine is None else len(mine.table)
    return rows, 0 if mine is None else len(mine.choices), None if loss is None else loss.outputs


def _targets(loss: Loss) -> Floats:
    """The labels, of shape (rows, outputs): classes as ones and zeros."""
    return np.eye(loss.outputs)[loss.classes] if isinstance(loss, Softmax) else loss.labels[:, None]


def _answers(trees: list[Tree], table: AlignedTable | None, nodes: int, rows: int) -> NDArray[np.int64]:
    """1 where a row would go left at a node of ours, shape (trees, nodes, rows); 0 at the nodes of others."""
    out = np.zeros((len(trees), nodes, rows), np.int64)
    for at, tree in enumerate(trees):
        for node, split in tree.splits.items():
            assert table is not None
            out[at, node] = split.goes_left(table[split.column])
    return out


def _score(G: Any, H: Any, l2: float) -> Any:
    return G * _quotient(G, H + l2)


def _quotient(a: Any, b: Any) -> Any:
    return SecretTensor(functions.quotient(a.value, b.value), a.dtype)


def _opened(
    session: Session, settings: SharedBoosting, sizes: dict[str, int], hot: Any, leaves: Any, mine: _Own | None
) -> Tree:
    """This party's part of a tree: each owner is shown the winners among its own candidates."""
    at, splits = 0, dict[int, Split]()
    for owner, size in sizes.items():
        shown = session.reveal(hot[:, at : at + size], to=owner) if size else None
        at += size
        if shown is not None and mine is not None:
            splits = {int(node): mine.split(choice) for node, choice in np.argwhere(shown.numpy())}
    values = session.reveal(leaves, to=settings.labels_at)
    first = 2**settings.depth - 1
    known = {} if values is None else {first + place: float(value) for place, value in enumerate(values)}
    return Tree(splits=splits, leaves=known)


# -- what all must know and agree on


def _meet(
    session: Session, settings: SharedBoosting | None, table: AlignedTable | None, rows: int | None, size: int,
    outputs: int | None,
) -> tuple[dict[str, int], int, int]:  # fmt: skip
    """How many candidates each party has, how many rows there are, and how many trees a round."""
    digest = settings.digest().hex() if settings else ""
    alignment = None if table is None else table.alignment.hex()
    mine = {"settings": digest, "alignment": alignment, "rows": rows, "outputs": outputs, "size": size}
    said = told(session.mesh, "boosting", list(mine.values()), tuple[str, str | None, int | None, int | None, int])
    facts_of = {party: dict(zip(mine, values, strict=True)) for party, values in said.items()}
    for what in ("settings", "alignment", "rows", "outputs"):
        stated = {party: facts[what] for party, facts in facts_of.items() if facts[what] is not None}
        if len(set(stated.values())) != 1:
            raise ConfigError(f"the parties have not the same {what}: {stated}; give the same everywhere.")
    count = next(facts["rows"] for facts in facts_of.values() if facts["rows"] is not None)
    require(type(count) is int and 0 < count <= _MOST_ROWS, f"{count} rows: at most {_MOST_ROWS} fit on shares.")
    if settings is not None:
        require(any(facts["size"] for facts in facts_of.values()), "no owner has a column that can be split.")
    trees = next(facts["outputs"] for facts in facts_of.values() if facts["outputs"] is not None)
    require(1 <= trees <= _MOST_CLASSES, f"{trees} classes: at most {_MOST_CLASSES} are grown on shares.")
    return {party: facts_of[party]["size"] for party in sorted(facts_of)}, count, trees


def _told(session: Session, teller: str, value: int, most: int) -> int:
    """A public number of one party's, of 0 to `most`."""
    if session.me == teller:
        for peer in session.mesh.peers:
            session.mesh.send(peer, "boosting", [json.dumps(value).encode()])
        return value
    said: int = heard(session.mesh, teller, "boosting", int)
    if not 0 <= said <= most:
        raise ProtocolError(f"'{teller}' says {said} where 0 to {most} belong: it is broken or hostile.")
    return said
