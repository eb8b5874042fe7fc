"""Boosted trees over columns that nobody joins, by encrypted gradients (SecureBoost).

The labels' owner sends each owner of columns the gradients of the rows under its own Paillier key; that owner adds them
by bin, unread, and sends the sums back, shuffled; the labels' owner opens them, takes the best split of all owners, and
tells only its owner which it was. Every owner keeps its own splits; prediction asks each for its rows' sides.

Sources: Cheng et al. 2021, SecureBoost: a lossless federated learning framework, https://arxiv.org/abs/1901.08755;
Chen et al. 2021, SecureBoost+ (packed gradients, subtraction, packed splits), https://arxiv.org/abs/2110.10927
"""

import hashlib
import json
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from hansa.algorithms.trees.boost import Progress, begin, boost
from hansa.algorithms.trees.columns import Table
from hansa.algorithms.trees.growth import LocalSource, Source
from hansa.algorithms.trees.losses import Floats, Loss, loss_of, predictions
from hansa.algorithms.trees.settings import Boosting
from hansa.algorithms.trees.tree import Boosted, Tree
from hansa.core.errors import ConfigError, DataError, ProtocolError, StateMismatch, require
from hansa.core.runtime import Mesh
from hansa.crypto.paillier import PrivateKey, PublicKey
from hansa.vertical.boosting.follower import Follower
from hansa.vertical.boosting.leader import Encryption, RemoteSource
from hansa.vertical.boosting.messages import bits, flags, hear, say, whole_numbers
from hansa.vertical.boosting.saved import Saved
from hansa.vertical.learns import Learns
from hansa.vertical.table import AlignedTable


@dataclass(frozen=True, kw_only=True)
class EncryptedBoosting(Boosting):
    """Boosted trees over the columns of several owners, the same trees as on the joined table.

    Args:
      labels_at: the owner of the labels; its columns count too, if it has any.
      key_bits: of its Paillier key: 2048 has the strength of 112 bits.

    The other settings are those of `hansa.algorithms.trees.Boosting`.
    """

    labels_at: str
    key_bits: int = field(default=2048)

    title: ClassVar[str] = "Boosted trees, encrypted gradients"
    learns: ClassVar[Learns] = {
        "labels' owner": (
            "of each node the sums of gradients left of every split that an owner could make, shuffled, unnamed",
            "so which of these candidates are alike, and in what order those of one column lie; no threshold",
            "who splits each node, and which rows go to either side",
        ),
        "other owners": (
            "which rows reach each node (so which of them the labels make alike), and which of their columns split",
            "with goss: which rows have large gradients; with validation: which rows are kept out",
        ),
        "prediction": ("the labels' owner: for each row and each split of another owner, on which side it is",),
    }

    def fit(
        self, mesh: Mesh, table: AlignedTable, labels: str | Any = None, *,
        state: str | os.PathLike[str] | None = None, observe: Callable[[int], None] | None = None,
    ) -> Boosted:  # fmt: skip
        """Trains; every owner calls it.

        Args:
          mesh: links to all other owners, and to nobody else.
          table: this owner's columns; the labels' owner may have its labels' column alone.
          labels: at their owner alone: the name of a column of the table, or one number for each row.
          state: a folder of this training, in which each party keeps its part after every round: after a failure the
            same call goes on from the last round that all of them have.
          observe: called with the number of each round that is done.

        Returns:
          This owner's part of the trees; `predict` takes it.

        Raises:
          ConfigError: settings or alignments differ; labels at another owner than `labels_at`.
          DataError: labels or columns that cannot be learned from.
          StateMismatch: the folder is of another training.
          Unreachable: an owner was lost.
        """
        parties = tuple(sorted((mesh.me, *mesh.peers)))
        require(self.labels_at in parties, f"labels_at='{self.labels_at}' is no party: choose of {', '.join(parties)}.")
        require(len(parties) > 1, "there is no other owner: use hansa.algorithms.trees.fit.")
        leads = mesh.me == self.labels_at
        require(leads == (labels is not None), f"labels are given at '{self.labels_at}', and there alone.")
        table.agree(mesh)
        _agree(mesh, self)
        done = observe or (lambda round: None)
        if not leads:
            return self._follow(mesh, table, self._saved(state, mesh.me, table), done)
        name = labels if isinstance(labels, str) else None
        loss = loss_of(self.loss, table[name] if name is not None else labels)
        saved = self._saved(state, mesh.me, table, loss.labels)
        if len(loss.labels) != len(table) and table.names:
            raise DataError(f"{len(loss.labels)} labels for {len(table)} rows: give one for each.")
        return self._lead(mesh, table.only([each for each in table.names if each != name]), loss, saved, done)

    def _saved(
        self, state: str | os.PathLike[str] | None, me: str, table: AlignedTable, labels: Floats | None = None
    ) -> Saved:  # fmt: skip
        """This party's state, of these settings and data alone."""
        digest = hashlib.sha256(self.digest() + table.alignment + (b"" if labels is None else labels.tobytes()))
        for name, values in table.columns.items():
            content = values.tobytes() if table.is_number(name) else json.dumps(values.tolist()).encode()
            digest.update(hashlib.sha256(name.encode()).digest() + hashlib.sha256(content).digest())
        return Saved(None if state is None else Path(state), me, digest.digest())

    # -- the labels' owner

    def _lead(
        self, mesh: Mesh, table: AlignedTable, loss: Loss, saved: Saved, done: Callable[[int], None]
    ) -> Boosted:  # fmt: skip
        start = begin(loss, self)
        start = replace(start, boosted=replace(start.boosted, party=mesh.me, owners=(mesh.me, *sorted(mesh.peers))))
        run, part = saved.load() or (secrets.token_hex(16), start.boosted)
        rounds = len(part)
        for peer in mesh.peers:
            _, facts, _ = hear(mesh, peer, "state")
            theirs = whole_numbers([facts.get("rounds")], self.trees + 1, peer)[0]
            if theirs and facts.get("run") != run:
                raise StateMismatch(f"the states of '{peer}' and '{mesh.me}' are of different trainings: delete both.")
            rounds = min(rounds, theirs)
        key = PrivateKey.generate(self.key_bits)
        for peer in mesh.peers:
            say(mesh, peer, "key", {"run": run, "rounds": rounds}, *key.public.numbers())
        if rounds:
            part = part.first(rounds)
            start = Progress(part, _together(mesh, part, table))
        encryption = Encryption(key, len(loss.labels))

        def save(progress: Progress) -> None:
            saved.store(run, progress.boosted)
            for peer in mesh.peers:
                say(mesh, peer, "round")
            done(len(progress.boosted))

        try:
            sources: list[Source] = [LocalSource(mesh.me, Table(table.columns, self))] if table.names else []
            sources += [RemoteSource(peer, mesh, encryption) for peer in start.boosted.owners[1:]]
            finished = boost(sources, loss, self, start, save).boosted
        finally:
            encryption.close()
        for peer in mesh.peers:
            say(mesh, peer, "done", {"rounds": len(finished)})
        return finished

    # -- the other owners

    def _follow(self, mesh: Mesh, table: AlignedTable, saved: Saved, done: Callable[[int], None]) -> Boosted:
        binned = Table(table.columns, self)
        owners = (self.labels_at, *sorted({mesh.me, *mesh.peers} - {self.labels_at}))
        run, part = saved.load() or ("", Boosted(self.loss, party=mesh.me, owners=owners))
        say(mesh, self.labels_at, "state", {"run": run, "rounds": len(part)})
        _, facts, numbers = hear(mesh, self.labels_at, "key")
        run, rounds = str(facts.get("run")), facts.get("rounds")
        if not isinstance(rounds, int) or not 0 <= rounds <= len(part) or len(numbers) != 2:
            raise ProtocolError(f"'{self.labels_at}' begins with {rounds} rounds, of which {len(part)} are here.")
        part = part.first(rounds)
        if rounds:
            _together(mesh, part, table)

        def save(now: Boosted) -> None:
            saved.store(run, now)
            done(len(now))

        key = PublicKey.of(*(bytes(each) for each in numbers))
        return Follower(mesh, self.labels_at, binned, key, part, save).serve()


def predict(mesh: Mesh, part: Boosted, table: AlignedTable) -> Floats | None:
    """Predicts together; every owner of the training calls it.

    Args:
      mesh: links to all of them.
      part: what `fit` gave here.
      table: this owner's columns of the rows to predict, aligned with the others'. A labels' owner whose columns no
        tree splits gives any column of that length.

    Returns:
      At the labels' owner probabilities (numbers with the squared loss), one or, of several classes, one row of them
      for each row; None elsewhere.

    Raises:
      ConfigError: tables of different alignments.
      StateMismatch: the parties' parts are of different lengths.
    """
    table.agree(mesh)
    margins = _together(mesh, part, table)
    return predictions(part.loss, margins) if part.base else None


def _together(mesh: Mesh, part: Boosted, table: AlignedTable) -> Floats:
    """The margins at the labels' owner; the other owners send the sides of all rows at their nodes."""
    leader, sides = part.owners[0], _sides(part, table)
    if mesh.me != leader:
        facts = {"rounds": len(part), "rows": len(table)}
        say(mesh, leader, "sides", facts, b"".join(bits(side) for side in sides.values()))
        return np.empty((0, 0))
    rows: int | None = len(table) if table.names else None
    for peer in part.owners[1:]:
        _, facts, buffers = hear(mesh, peer, "sides")
        if facts.get("rounds") != len(part):
            raise StateMismatch(f"the part of '{peer}' has {facts.get('rounds')} rounds, and ours {len(part)}.")
        given = facts.get("rows")
        if type(given) is not int or given < 0 or rows not in (None, given) or len(buffers) != 1:
            raise ProtocolError(f"'{peer}' sent the sides of {given} rows, and there are {rows}.")
        rows = given
        sides |= _sides_of(peer, part, rows, bytes(buffers[0]))
    place = {id(tree): at for at, tree in enumerate(_flat(part))}

    def values(tree: Tree) -> Floats:
        return tree.values(rows or 0, lambda node, here: sides[place[id(tree)], node][here])

    return part.sum_of(rows or 0, values)


def _flat(part: Boosted) -> list[Tree]:
    return [tree for round in part.trees for tree in round]


def _sides(part: Boosted, table: AlignedTable) -> dict[tuple[int, int], NDArray[np.bool_]]:
    """For each tree and node of this party's: whether each row would go left there."""
    return {
        (at, node): split.goes_left(table[split.column])
        for at, tree in enumerate(_flat(part)) for node, split in tree.splits.items()
    }  # fmt: skip


def _sides_of(peer: str, part: Boosted, rows: int, raw: bytes) -> dict[tuple[int, int], NDArray[np.bool_]]:
    """The same as another owner sent it."""
    nodes = [(at, node) for at, tree in enumerate(_flat(part)) for node, who in tree.owners.items() if who == peer]
    size = -(-rows // 8)
    if len(raw) != size * len(nodes):
        raise ProtocolError(f"'{peer}' sent {len(raw)} bytes for the sides of {rows} rows at {len(nodes)} nodes.")
    return {node: flags(raw[at * size : (at + 1) * size], rows, peer) for at, node in enumerate(nodes)}


def _agree(mesh: Mesh, settings: Boosting) -> None:
    mine = settings.digest()
    for peer, theirs in mesh.exchange("settings", mine).items():
        if theirs != mine:
            raise ConfigError(f"'{peer}' has other settings of boosting than '{mesh.me}': give the same everywhere.")
