"""Two sets under both secrets, met by one owner that sees how many are shared, or where in the other's secret order.

    1  bucket k of each set, in its owner's secret order    A ── a·H(x) ──►  B         A ◄── b·H(y) ──  B
       both keep the tags of the other's bucket             A: T(ab·H(y)) and places     B: T(ba·H(x))
    2  range j of all tags                                  A ◄── those of A's keys, ascending ──  B
       A meets them with those of B's keys, notes what it found, and asks for the next

Nothing is held but a bucket, or a range of all tags, and each stage goes on where it was. What makes that safe:

*   Buckets are no parts of a result. A bucket is a slice of a secret order (`order.py`), ranges are of tags, which are
    keyed under both secrets: A is told all tags of its own keys whatever the buckets are, and no count per bucket says
    anything that all tags at once would not.
*   One session has one transcript. Scalar, order, dummies and noise follow from a secret that is kept with the
    session's salt; entries that changed are refused by their fingerprint. So whatever is sent again is what was sent.
    A session that is not gone on with by both has another salt and another secret: it is another run, and counts in the
    audit as one.
*   One session has one result, also for an owner that enters other keys after a loss: the tags of a bucket that is kept
    stay as they are (`pile.py`), and B tells tags only when it has all buckets.
*   Noise is drawn once. B notes that tags may have been shown before it sends the first; if A then does not go on with
    the session, B refuses to begin anew until it is told to, since another run's noise would be another release.
"""

import hashlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hansa.core.errors import ProtocolError
from hansa.vertical.psi.ecdh import new_scalar, tags_of_other
from hansa.vertical.psi.entries import parts_of
from hansa.vertical.psi.order import SecretOrder, bounds
from hansa.vertical.psi.pile import Pile
from hansa.vertical.psi.state import SHOWN, State
from hansa.vertical.psi.tags import meet, repeats, tag_bytes
from hansa.vertical.psi.terms import Entropy, Session
from hansa.vertical.psi.work import counter, mapper

_FOUND = "found"


def drawn(secret: bytes, what: str) -> Entropy:
    """Random bytes that follow from a session's secret: for each use their own, and the same ones each time."""
    name, count = what.encode(), itertools.count()
    start = b"hansa psi drawn" + secret + len(name).to_bytes(8, "little") + name
    return lambda size: hashlib.shake_256(start + next(count).to_bytes(8, "little")).digest(size)


@dataclass(frozen=True)
class Met:
    """What was found so far.

    Args:
      ranges: of tags that are done.
      count: of shared keys in them.
      total: a product of ciphertexts in hexadecimal, where a sum is sought.
    """

    ranges: int = 0
    count: int = 0
    total: str = ""


@dataclass(frozen=True)
class Meeting:
    """One owner's side.

    Args:
      session: agreed, of two owners.
      state: of this run, begun.
      order: this owner's set.
      theirs: how many the other enters.
      buckets: of each set, and ranges of tags.
      finder: the owner that is told tags.
      noisy: whether what it is told is a release of its own.
      workers: processes that multiply.
      progress: told of the other's keys that are done, and of how many.
    """

    session: Session
    state: State
    order: SecretOrder
    theirs: int
    buckets: int
    finder: str
    noisy: bool = False
    workers: int | None = None
    progress: Callable[[int, int], None] | None = field(default=None, repr=False)

    def _pile(self) -> Pile:
        return Pile(self.state, self.buckets, tag_bytes(len(self.order), self.theirs))

    def exchange(self, left: Sequence[int], beside: Callable[[int, NDArray[np.int64]], None] | None = None) -> None:
        """Step 1, for the buckets that are left; `beside` is told each one's number and what its records hold."""
        pile, secret = self._pile(), new_scalar(drawn(self.state.secret, "scalar"))
        spans = [bounds(self.theirs, at, self.buckets) for at in range(self.buckets)]
        before = self.theirs - sum(spans[at][1] - spans[at][0] for at in left)
        told = counter(self.progress, before, self.theirs)
        with mapper(self.workers, sum(spans[at][1] - spans[at][0] for at in left)) as apply:
            for at in left:
                digests, numbers = parts_of(self.order.bucket(at, self.buckets))
                if beside is not None:
                    beside(at, numbers)
                low, high = spans[at]
                tags = tags_of_other(self.session, digests, high - low, pile.size, apply, secret, told)
                pile.put(at, tags, np.arange(low, high))

    def tell(self) -> None:
        """Step 2, at the owner that is told nothing; ends when the finder has noted what it found.

        Raises:
          ProtocolError: the other entered a key twice.
        """
        pile, peer = self._pile(), self.session.peer
        counts = np.array([pile.count(at, self.buckets) for at in range(self.buckets)], "<i8")
        self.session.mesh.send(peer, "psi ranges", [counts.tobytes()])
        at = self._asked(0)
        if at < self.buckets and self.noisy:
            self.state.note(SHOWN, True)
        while at < self.buckets:
            tags, _ = pile.read(at, self.buckets)
            if repeats(tags):
                raise ProtocolError(f"'{peer}' entered a key twice: it is broken or hostile.")
            self.session.mesh.send(peer, "psi tags", [tags.tobytes()])
            at = self._asked(at + 1)

    def _asked(self, least: int) -> int:
        """The range that the finder asks for next, which comes after those it had; all, once it is done."""
        asked = int.from_bytes(self.session.receive(self.session.peer, "psi from", 8), "little")
        if not least <= asked <= self.buckets:
            fault = f"'{self.session.peer}' asks for range {asked} of {self.buckets}: it is broken or hostile."
            raise ProtocolError(fault)
        return asked

    def find(self, add: Callable[[str, NDArray[np.int64]], str] | None = None) -> Met:
        """Step 2, at the finder; `add` takes the total so far and the shared places, and gives the total.

        Raises:
          ProtocolError: the other entered a key twice, or sent other tags than there are.
        """
        pile, peer = self._pile(), self.session.peer
        raw = self.session.receive(peer, "psi ranges", 8 * self.buckets)
        counts = np.frombuffer(raw, "<u8").tolist()
        if sum(counts) != len(self.order):
            fault = f"'{peer}' has {sum(counts)} tags of {len(self.order)} keys: it is broken or hostile."
            raise ProtocolError(fault)
        met = Met(**(self.state.noted(_FOUND) or {}))
        for at in range(met.ranges, self.buckets):
            self.session.mesh.send(peer, "psi from", [at.to_bytes(8, "little")])
            back = np.frombuffer(self.session.receive(peer, "psi tags", counts[at] * pile.size), np.uint8)
            mine, places = pile.read(at, self.buckets)
            back = back.reshape(-1, pile.size)
            if repeats(mine) or repeats(back):
                raise ProtocolError(f"'{peer}' entered a key, or sent a tag, twice: it is broken or hostile.")
            shared = places[meet(back, mine)[1]]
            total = met.total if add is None else add(met.total, shared)
            met = Met(at + 1, met.count + len(shared), total)
            self.state.note(_FOUND, vars(met))
        self.session.mesh.send(peer, "psi from", [self.buckets.to_bytes(8, "little")])
        return met
