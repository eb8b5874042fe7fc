"""The labels' owner's side: gradients go out encrypted, sums come back packed, and a source is what they look like."""

import threading
from collections.abc import Iterator, Mapping
from queue import SimpleQueue

import numpy as np
from numpy.typing import NDArray

from hansa.algorithms.trees.growth import Source, Sums, Winner
from hansa.algorithms.trees.losses import Gradients
from hansa.algorithms.trees.tree import Bools, Split
from hansa.core.checkpoint import Buffer
from hansa.core.errors import ProtocolError
from hansa.core.runtime import Mesh
from hansa.crypto.paillier import Ciphertext, PrivateKey
from hansa.vertical.boosting.messages import bits, flags, hear, packing, pieces, say, whole_numbers

PIECE = 2048  # gradients in one message, so that they travel while the next ones are encrypted


class Encryption:
    """Encrypts each tree's gradients once for all owners, with blinders that a thread makes while others compute.

    Args:
      key: of the labels' owner.
      rows: of the training.
    """

    def __init__(self, key: PrivateKey, rows: int) -> None:
        self.key, self.packing, self._piece = key, packing(rows), min(PIECE, rows)
        self._kept: tuple[Gradients, list[bytes]] | None = None
        self._ready: SimpleQueue[list[Ciphertext]] = SimpleQueue()
        self._room = threading.Semaphore(-(-rows // self._piece))
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._make, daemon=True, name="blinders")
        self._thread.start()

    def pieces(self, gradients: Gradients) -> Iterator[bytes]:
        """The ciphertexts of (g, h) in pieces, in the order of the rows; made at the first call for these gradients."""
        if self._kept is not None and self._kept[0] is gradients:
            yield from self._kept[1]
            return
        slot, public, made = self.packing.slot_bits, self.key.public, list[bytes]()
        for piece in pieces(len(gradients.rows), self._piece):
            pairs = zip(gradients.g[piece].tolist(), gradients.h[piece].tolist(), strict=True)
            blinders = self._ready.get()
            self._room.release()
            hidden = [public.hide((g << slot) + h, blinder) for (g, h), blinder in zip(pairs, blinders, strict=False)]
            made.append(public.to_bytes(hidden))
            yield made[-1]
        self._kept = (gradients, made)

    def close(self) -> None:
        """Ends the thread."""
        self._over.set()
        self._room.release()
        self._thread.join()

    def _make(self) -> None:
        while True:
            self._room.acquire()
            if self._over.is_set():
                return
            self._ready.put(self.key.blinders(self._piece))


class RemoteSource(Source):
    """The columns of another owner, which sees none of the gradients."""

    def __init__(self, name: str, mesh: Mesh, encryption: Encryption) -> None:
        self.name, self._mesh, self._encryption = name, mesh, encryption
        self._asked, self._shape = 0, list[int]()

    def begin(self, gradients: Gradients) -> None:
        """Sends the rows and their gradients' ciphertexts."""
        self._shape = []
        rows = np.ascontiguousarray(gradients.rows, "<i8").tobytes()
        say(self._mesh, self.name, "begin", {"count": len(gradients.rows)}, rows)
        for piece in self._encryption.pieces(gradients):
            say(self._mesh, self.name, "gradients", {}, piece)

    def ask(self, nodes: Mapping[int, NDArray[np.int64]]) -> None:
        """Names the nodes: their rows are known there."""
        self._asked = len(nodes)
        say(self._mesh, self.name, "sums", {"nodes": list(nodes)})

    def answer(self) -> list[Sums]:
        """Opens the sums."""
        return [self._opened() for _ in range(self._asked)]

    def take(self, winners: Mapping[int, Winner]) -> dict[int, Bools]:
        """Has the owner split nodes, and learns which rows go left."""
        chosen = {str(node): [list(winner.cuts), [[place, list(group)] for place, group in winner.texts]]
                  for node, winner in winners.items()}  # fmt: skip
        say(self._mesh, self.name, "take", {"nodes": chosen})
        _, _, buffers = hear(self._mesh, self.name, "left")
        self._expect(len(buffers) == len(winners), "left")
        return {node: flags(raw, len(winner.rows), self.name)
                for (node, winner), raw in zip(winners.items(), buffers, strict=True)}  # fmt: skip

    def follow(self, left: Mapping[int, Bools]) -> None:
        """Tells how the rows of others' nodes went."""
        say(self._mesh, self.name, "follow", {"nodes": list(left)}, *(bits(each) for each in left.values()))

    def end(self) -> Mapping[int, Split]:
        """Its splits stay there."""
        say(self._mesh, self.name, "end")
        return {}

    def _opened(self) -> Sums:
        _, facts, buffers = hear(self._mesh, self.name, "sums")
        texts = facts.get("texts")
        self._expect(len(buffers) == 1 and isinstance(texts, list), "sums")
        shape = [whole_numbers([count], 1 << 24, self.name)[0] for count in (facts.get("cuts"), *(texts or ()))]
        self._expect(self._shape in ([], shape), "sums")
        self._shape = shape
        values = self._pairs(buffers[0], sum(shape))
        whole, *groups = np.split(values, np.cumsum(shape)[:-1], axis=1)
        return Sums(whole, tuple(groups))

    def _pairs(self, raw: Buffer, count: int) -> NDArray[np.int64]:
        """(2, count): the G and H of each candidate."""
        key, packing = self._encryption.key, self._encryption.packing
        each = packing.slots(key.public) // 2
        parts = pieces(count, each)
        packed = key.decrypt(key.public.from_bytes(bytes(raw), len(parts)))
        flat: list[int] = []
        for value, part in zip(packed, parts, strict=True):
            flat += packing.unpack(value, 2 * (part.stop - part.start))
        return np.array(flat, np.int64).reshape(count, 2).T[::-1]

    def _expect(self, holds: bool, what: str) -> None:
        if not holds:
            raise ProtocolError(f"'{self.name}' sent '{what}' in a form that was not asked for.")
