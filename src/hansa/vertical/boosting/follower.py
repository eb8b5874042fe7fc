"""An owner of columns: adds what it cannot read, and keeps its splits to itself."""

import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hansa.algorithms.trees.columns import Choice, Grouping, Table, first_of
from hansa.algorithms.trees.tree import Boosted, Split, Tree
from hansa.core.checkpoint import Buffer
from hansa.core.errors import ProtocolError
from hansa.core.runtime import Mesh
from hansa.crypto.paillier import Ciphertext, PublicKey
from hansa.vertical.boosting.aggregate import bin_sums
from hansa.vertical.boosting.messages import bits, flags, hear, packing, pieces, say, whole_numbers

_SHUFFLE = secrets.SystemRandom()


class Follower:
    """Serves the labels' owner through one training.

    Args:
      mesh: links to it.
      leader: its name.
      table: the columns here.
      key: the labels' owner's.
      start: this party's part after the rounds done already.
      save: called with the part after each round.
    """

    def __init__(
        self, mesh: Mesh, leader: str, table: Table, key: PublicKey, start: Boosted, save: Callable[[Boosted], None]
    ) -> None:
        self._mesh, self._leader, self._table, self._key = mesh, leader, table, key
        self._part, self._save = start, save
        self._round: list[Tree] = []
        self._members: dict[int, NDArray[np.int64]] = {}
        self._splits: dict[int, Split] = {}
        self._ciphertexts: list[Ciphertext] = []
        self._place = np.full(len(table), -1)
        self._cuts: list[int] = []
        self._texts: list[list[int]] = []

    def serve(self) -> Boosted:
        """Answers until the training is over; gives this party's part of the trees."""
        answers: Mapping[str, Callable[[dict[str, Any], list[Buffer]], None]] = {
            "begin": self._begin, "sums": self._sums, "take": self._take, "follow": self._follow, "end": self._end,
            "round": self._keep,
        }  # fmt: skip
        while True:
            what, facts, buffers = hear(self._mesh, self._leader, *answers, "done")
            if what == "done":
                return self._part.first(whole_numbers([facts.get("rounds")], len(self._part) + 1, self._leader)[0])
            answers[what](facts, buffers)

    # -- what is asked

    def _begin(self, facts: dict[str, Any], buffers: list[Buffer]) -> None:
        """A tree: its gradients come in, and the candidates get a new order, which only this party knows."""
        count = whole_numbers([facts.get("count")], len(self._table) + 1, self._leader)[0]
        raw = bytes(buffers[0]) if buffers else b""
        rows = np.frombuffer(raw[: len(raw) // 8 * 8], "<i8")
        inside = not len(rows) or 0 <= rows[0] <= rows[-1] < len(self._table)
        if len(raw) != 8 * count or (np.diff(rows) <= 0).any() or not inside:
            raise ProtocolError(f"'{self._leader}' sent no ascending rows of the table.")
        self._ciphertexts = []
        while len(self._ciphertexts) < count:
            _, _, piece = hear(self._mesh, self._leader, "gradients")
            self._ciphertexts += self._key.from_bytes(b"".join(bytes(each) for each in piece))
        if len(self._ciphertexts) != count:
            raise ProtocolError(f"'{self._leader}' sent {len(self._ciphertexts)} gradients for {count} rows.")
        self._place[:] = -1
        self._place[rows] = np.arange(count)
        self._members, self._splits = {0: np.arange(len(self._table))}, {}
        self._cuts = _shuffled(len(self._table.cuts))
        self._texts = [_shuffled(self._table.bins[place].count) for place in self._table.texts]

    def _sums(self, facts: dict[str, Any], buffers: list[Buffer]) -> None:
        nodes = self._nodes(facts)
        shape = {"cuts": len(self._cuts), "texts": [len(order) for order in self._texts]}
        for node in nodes:
            say(self._mesh, self._leader, "sums", shape, self._packed(self._candidates(node)))

    def _take(self, facts: dict[str, Any], buffers: list[Buffer]) -> None:
        answers = []
        chosen = facts.get("nodes")
        for name, given in (chosen if isinstance(chosen, dict) else {"": None}).items():
            node, rows = self._unsplit(int(name) if name.isdecimal() else -1)
            split = self._table.split(first_of(self._choices(given)), rows)
            self._splits[node] = split
            left = split.goes_left(self._table.columns[split.column][rows])
            self._part_rows(node, left)
            answers.append(bits(left))
        say(self._mesh, self._leader, "left", {}, *answers)

    def _follow(self, facts: dict[str, Any], buffers: list[Buffer]) -> None:
        nodes = self._nodes(facts)
        if len(nodes) != len(buffers):
            raise ProtocolError(f"'{self._leader}' sent the sides of {len(buffers)} nodes, and named {len(nodes)}.")
        for name, raw in zip(nodes, buffers, strict=True):
            node, rows = self._unsplit(name)
            self._part_rows(node, flags(raw, len(rows), self._leader))

    def _end(self, facts: dict[str, Any], buffers: list[Buffer]) -> None:
        self._round.append(Tree(dict(sorted(self._splits.items()))))
        self._ciphertexts = []

    def _keep(self, facts: dict[str, Any], buffers: list[Buffer]) -> None:
        self._part = self._part.with_round(self._round)
        self._round = []
        self._save(self._part)

    # -- how it is answered

    def _candidates(self, node: int) -> list[Ciphertext]:
        """Sums of the left children of all cuts, then of all categories, in this tree's order."""
        table, square = self._table, self._key.square
        places = self._place[self._members[node]]
        learning = self._members[node][places >= 0]
        ciphertexts = [self._ciphertexts[at] for at in self._place[learning].tolist()]
        sums = bin_sums(self._key, ciphertexts, table.codes[learning], [bins.count for bins in table.bins])
        below: list[list[Ciphertext]] = []
        for each in sums:
            running = [each[0]] if each else []
            for value in each[1:]:
                running.append(running[-1] * value % square)
            below.append(running)
        cuts: list[Ciphertext] = []
        for at in self._cuts:
            cut = table.cuts[at]
            left = below[cut.column][cut.bin]
            cuts.append(left * sums[cut.column][-1] % square if cut.missing_left else left)
        texts = [sums[table.texts[place]][at] for place, order in enumerate(self._texts) for at in order]
        return cuts + texts

    def _packed(self, sums: Sequence[Ciphertext]) -> bytes:
        """Many sums in a ciphertext, under randomness of ours, so that they show nothing of what was added."""
        slots = packing(len(self._table))
        parts = pieces(len(sums), slots.slots(self._key) // 2)
        packed = [self._key.pack(sums[part], 2 * slots.slot_bits) for part in parts]
        return self._key.to_bytes(self._key.rerandomise(packed))

    def _choices(self, given: Any) -> list[Choice]:
        """The candidates that the labels' owner names, in the table's own order."""
        try:
            cuts, texts = given
            named = [(int(place), group) for place, group in texts]
        except (TypeError, ValueError):
            raise ProtocolError(f"'{self._leader}' chose no candidates.") from None
        choices: list[Choice] = [
            self._table.cuts[self._cuts[at]] for at in whole_numbers(cuts, len(self._cuts), self._leader)
        ]
        for place, group in named:
            whole_numbers([place], len(self._texts), self._leader)
            order = self._texts[place]
            left = tuple(order[at] for at in whole_numbers(group, len(order), self._leader))
            choices.append(Grouping(self._table.texts[place], left))
        if not choices:
            raise ProtocolError(f"'{self._leader}' chose no candidate.")
        return choices

    def _nodes(self, facts: dict[str, Any]) -> list[int]:
        """The nodes that a message names, all of this tree."""
        nodes = whole_numbers(facts.get("nodes"), max(self._members, default=0) + 1, self._leader)
        if not self._members.keys() >= set(nodes):
            raise ProtocolError(f"'{self._leader}' asks for nodes that this tree does not have.")
        return nodes

    def _unsplit(self, node: int) -> tuple[int, NDArray[np.int64]]:
        """A node and its rows."""
        if node not in self._members or 2 * node + 1 in self._members:
            raise ProtocolError(f"'{self._leader}' splits a node that this tree does not have, or a second time.")
        return node, self._members[node]

    def _part_rows(self, node: int, left: NDArray[np.bool_]) -> None:
        rows = self._members[node]
        self._members[2 * node + 1], self._members[2 * node + 2] = rows[left], rows[~left]


def _shuffled(count: int) -> list[int]:
    order = list(range(count))
    _SHUFFLE.shuffle(order)
    return order
