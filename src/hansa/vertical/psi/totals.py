"""How many keys two owners share, and the sum of a column over them: which keys, nobody learns.

    A ── a·H(x) ──►  B        B ── b·H(y), in an order that it alone knows [with Enc(value)] ──►  A
                              B ── tags of b·a·H(x), ascending ──►  A
    A: tags of a·b·H(y); how many are among B's?          [the product of those ciphertexts, blinded anew ──► B]

A cannot tell which of its keys a tag belongs to: it has no b, and B sends them in their own order. `meeting.py` has the
way through sets larger than memory, and why a run that was lost may go on. With differential privacy, A enters 2τ
dummies that both know, B a secret number τ + Z of them and fillers up to 2τ, and A takes τ off: Z follows the discrete
Laplace law of scale 1/ε, cut at ±τ, drawn by B from a secret of the session, so that A never has the exact count, and
none but one noisy one.

Security: as `ecdh.py`, against semi-honest owners. The values are hidden by Paillier's encryption under B's key, which
is the session's, too; A keeps the first ciphertexts of each bucket, whatever comes again.

Sources: Ion et al. 2019, On Deploying Secure Computing: Private Intersection-Sum-with-Cardinality,
https://eprint.iacr.org/2019/723; Ghosh, Roughgarden and Sundararajan 2012, Universally Utility-Maximizing Privacy
Mechanisms, https://doi.org/10.1137/09076828X (the law)
"""

import decimal
import hashlib
import io
import math
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hansa.core.errors import ConfigError, DataError, ProtocolError, require
from hansa.core.ledger import Event
from hansa.core.runtime import Mesh
from hansa.core.sampling import Stream
from hansa.privacy.discrete import Table
from hansa.runtimes.mesh.messages import named, parts
from hansa.vertical.learns import Learns
from hansa.vertical.psi.audit import Audit, recorded
from hansa.vertical.psi.entries import Entries, Numbers, Source, bucket_count, pieces_of
from hansa.vertical.psi.intersect import BUCKET_KEYS, CAP
from hansa.vertical.psi.keys import DIGEST_BYTES, Keys
from hansa.vertical.psi.meeting import Meeting, drawn
from hansa.vertical.psi.order import SecretOrder, bounds
from hansa.vertical.psi.state import State
from hansa.vertical.psi.terms import Accept, Entropy, Session, Terms, ask

_PRECISION_BITS = 200
DELTA = 1e-9
LEAST = 10
DECIMALS = 6
LARGEST = 2.0**40
_PIECE = 2048  # ciphertexts of a message, of half a kilobyte each
_AHEAD = 4  # messages of them under way
TITLES = {"cardinality": "Private intersection, its size alone", "sum": "Private intersection, a sum over it alone"}


@dataclass(frozen=True)
class Cardinality:
    """How many keys are shared.

    Args:
      count: exact; or with noise, and then below zero at times.
      event: what was released, for the ledger of the owner whose keys the noise protects; None if the count is exact.
      epsilon, delta: what it guarantees, if one key of the other owner is replaced by another; None if it is exact.
    """

    count: int
    event: Event | None = None
    epsilon: float | None = None
    delta: float | None = None


def cardinality(
    mesh: Mesh, table: Source, keys: Keys, *, learner: str, epsilon: float | None = None, delta: float = DELTA,
    cap: int = CAP, accept: Accept = False, audit: Audit | None = None, folder: Path | None = None,
    bucket_keys: int = BUCKET_KEYS, workers: int | None = None, progress: Callable[[int, int], None] | None = None,
    entropy: Entropy = secrets.token_bytes,
) -> Cardinality | None:  # fmt: skip
    """How many keys two owners share. Both call it; arguments and errors as `intersect`, but:

    Args:
      learner: the owner that learns the count.
      epsilon: of differential privacy for the other owner's keys; None for the exact count.
      delta: the probability with which ε may not hold, by the cut of the noise.
      progress: told how many of the other owner's keys are done, and of how many.

    Returns:
      The count; None for the other owner, and with noise its event, without the count, is there for its ledger.

    Raises:
      StateMismatch: also at the other owner, if a noisy count may have been shown in a run that the learner does not go
        on with.
    """
    bound = 0 if epsilon is None else noise_bound(epsilon, delta)
    detail = "exact" if epsilon is None else f"epsilon={epsilon!r} delta={delta!r}"
    said = cardinality_learns(learner, _other(mesh, learner), cap, epsilon, delta)
    run = _agreed(
        mesh, table, keys, "cardinality", learner, said, detail, cap, accept, folder, bucket_keys, entropy, 2 * bound
    )
    event = None if epsilon is None else _event(epsilon, delta)
    dummies, learns = _dummies(run.session, 2 * bound), mesh.me == learner
    if epsilon is not None and not learns:
        noise = noise_law(epsilon, bound).draw(Stream(drawn(run.state.secret, "noise")(32)), 1)
        fillers = drawn(run.state.secret, "fillers")(DIGEST_BYTES * (bound - int(noise[0])))
        dummies = np.concatenate([dummies[: bound + int(noise[0])], _digests(fillers)])
    with recorded(audit, run.session):
        meeting = run.meeting(learner, dummies, workers, progress, noisy=epsilon is not None)
        meeting.exchange(run.left)
        if not learns:
            meeting.tell()
        else:
            found = meeting.find()
        run.state.remove()
    if not learns:
        return None if event is None else Cardinality(-1, event, epsilon, delta)
    return Cardinality(found.count - bound, event, epsilon, delta if event is not None else None)


@dataclass(frozen=True)
class Total:
    """A sum over shared keys.

    Args:
      count: of shared keys.
      total: the sum; None at the owner that has no values.
    """

    count: int
    total: float | None = None


def intersection_sum(
    mesh: Mesh, table: Source, keys: Keys, *, values: str | None, holder: str, least: int = LEAST, cap: int = CAP,
    accept: Accept = False, audit: Audit | None = None, folder: Path | None = None, bucket_keys: int = BUCKET_KEYS,
    workers: int | None = None, progress: Callable[[int, int], None] | None = None,
    entropy: Entropy = secrets.token_bytes,
) -> Total:  # fmt: skip
    """The sum of one owner's column over the keys that two owners share. Both call it; as `intersect`, but:

    Args:
      values: the column; None at the other owner, whose folder needs half a kilobyte for each of them.
      holder: the owner that has the values, and learns their sum.
      least: of fewer shared keys nobody learns a sum, as it would show single values.

    Raises:
      DataError: fewer are shared, at both owners; or a value is no number below 2⁴⁰. Sums are exact to six decimals.
    """
    require((values is not None) == (mesh.me == holder), f"values={values}: '{holder}' alone names a column.")
    require(least >= 2, f"least={least}: the sum over one key is its value; ask for two or more.")
    said = sum_learns(holder, _other(mesh, holder), cap, least)
    run = _agreed(
        mesh, table, keys, "sum", holder, said, f"least={least}", cap, accept, folder, bucket_keys, entropy,
        numbers=None if values is None else partial(_whole, values),
    )  # fmt: skip
    with recorded(audit, run.session) as ended:
        meeting = run.meeting(_other(mesh, holder), _digests(b""), workers, progress)
        side = _sum_of_others if values is None else _sum_of_own
        made = side(run, meeting, least, entropy)
        run.state.remove()
        if made.count < least:
            raise DataError(f"{made.count} keys are shared, and a sum is shown from {least} on: nobody learnt it.")
        ended["shared"] = made.count
    return made


def cardinality_learns(
    learner: str, other: str, cap: int, epsilon: float | None = None, delta: float = DELTA
) -> Learns:
    """What each party learns of a count."""
    noise = "" if epsilon is None else f", with noise of ε = {epsilon:g}, δ = {delta:g} for one key of the other owner"
    return {
        learner: [f"how many keys '{other}' enters, at most {cap:,}", f"how many keys both have{noise}"],
        other: [f"how many keys '{learner}' enters, at most {cap:,}"],
    }


def sum_learns(holder: str, other: str, cap: int, least: int = LEAST) -> Learns:
    """What each party learns of a sum."""
    told = f"the sum of its values over the keys that both have, and their number; nothing if fewer than {least}"
    return {
        holder: [f"how many keys '{other}' enters, at most {cap:,}", told],
        other: [f"how many keys '{holder}' enters, at most {cap:,}", "how many keys both have"],
    }


@dataclass(frozen=True)
class _Agreed:
    """What a run of two owners begins or goes on with."""

    session: Session
    state: State
    entries: Entries
    buckets: int
    left: list[int]

    def meeting(
        self, finder: str, more: NDArray[np.uint8], workers: int | None, progress: Callable[[int, int], None] | None,
        noisy: bool = False,
    ) -> Meeting:  # fmt: skip
        """This owner's side; both enter so many `more`."""
        order = SecretOrder.of(self.entries, drawn(self.state.secret, "order")(16), more)
        theirs = self.session.sizes[self.session.peer] + len(more)
        return Meeting(self.session, self.state, order, theirs, self.buckets, finder, noisy, workers, progress)


def _sum_of_own(run: _Agreed, meeting: Meeting, least: int, entropy: Entropy) -> Total:
    """The side of the owner of the values."""
    from hansa.crypto.paillier import PrivateKey

    session = run.session
    key = PrivateKey.generate(entropy=drawn(run.state.secret, "key"))
    session.mesh.send(session.peer, "psi key", list(key.public.numbers()))

    def send(bucket: int, values: NDArray[np.int64]) -> None:
        for at in range(0, len(values), _PIECE):
            if at >= _AHEAD * _PIECE:
                session.receive(session.peer, "psi more", 0)
            sealed = key.encrypt(values[at : at + _PIECE].tolist(), entropy)
            session.mesh.send(session.peer, "psi values", [key.public.to_bytes(sealed)])

    meeting.exchange(run.left, send)
    meeting.tell()
    count, total = int.from_bytes(session.receive(session.peer, "psi count", 8), "little"), None
    if count >= least:
        raw = session.receive(session.peer, "psi total", key.public.size_bytes)
        with named(session.peer):
            total = key.decrypt(key.public.from_bytes(raw, 1))[0] / 10**DECIMALS
    session.mesh.send(session.peer, "psi done", [b""])
    return Total(count, total)


def _sum_of_others(run: _Agreed, meeting: Meeting, least: int, entropy: Entropy) -> Total:
    """The side of the owner without values: it finds what is shared, and adds under the other's key."""
    import gmpy2

    from hansa.crypto.paillier import PublicKey

    session, state = run.session, run.state
    numbers = [bytes(each) for each in parts(session.mesh, session.peer, "psi key", 2)]
    with named(session.peer):
        public = PublicKey.of(*numbers)
    if state.noted("key") not in (None, numbers[0].hex()):
        raise ProtocolError(f"'{session.peer}' goes on with another key of its values: start again.")
    state.note("key", numbers[0].hex())
    kept, size = _Ciphertexts(state.folder, public.size_bytes, meeting.theirs, run.buckets), public.size_bytes

    def receive(bucket: int, _: NDArray[np.int64]) -> None:
        low, high = bounds(meeting.theirs, bucket, run.buckets)
        with nullcontext(_forgotten) if state.has(bucket) else kept.writing(bucket) as write:
            for at in range(low, high, _PIECE):
                count = min(_PIECE, high - at)
                raw = session.receive(session.peer, "psi values", count * size)
                with named(session.peer):
                    public.from_bytes(raw, count)
                write(raw)
                if at + _AHEAD * _PIECE < high:
                    session.mesh.send(session.peer, "psi more", [b""])

    def add(total: str, places: NDArray[np.int64]) -> str:
        sealed = None if not total else gmpy2.mpz(total, 16)
        for raw in kept.at(np.sort(places)):
            (each,) = public.from_bytes(raw, 1)
            sealed = each if sealed is None else public.add(sealed, each)
        return "" if sealed is None else sealed.digits(16)

    meeting.exchange(run.left, receive)
    found = meeting.find(add)
    session.mesh.send(session.peer, "psi count", [found.count.to_bytes(8, "little")])
    if found.count >= least:
        total = public.rerandomise([gmpy2.mpz(found.total, 16)], entropy)
        session.mesh.send(session.peer, "psi total", [public.to_bytes(total)])
    session.receive(session.peer, "psi done", 0)
    return Total(found.count)


def noise_bound(epsilon: float, delta: float) -> int:
    """τ: where the noise is cut, so that its probability there is at most δ."""
    require(0 < epsilon <= 20, f"epsilon={epsilon}: give a number above 0, and 20 at most.")
    require(1e-15 <= delta < 0.1, f"delta={delta}: give a probability from 1e-15 on, far below 1 / number of keys.")
    ratio = math.exp(-epsilon)
    bound = max(1, math.ceil(math.log((1 - ratio) / (delta * (1 + ratio))) / epsilon))
    require(bound <= 1 << 20, f"epsilon={epsilon} needs {2 * bound:,} dummies: take a larger one.")
    while ratio**bound * (1 - ratio) / (1 + ratio - 2 * ratio ** (bound + 1)) > delta:
        bound += 1
    return bound


def noise_law(epsilon: float, bound: int) -> Table:
    """The discrete Laplace law of scale 1/ε, cut at ±bound."""
    with decimal.localcontext() as context:
        context.prec = 80
        base = (-decimal.Decimal(epsilon)).exp()
        return Table([int(base**at * (1 << _PRECISION_BITS)) for at in range(bound + 1)])


def _event(epsilon: float, delta: float) -> Event:
    scale = math.sqrt(2 * math.exp(-epsilon)) / (1 - math.exp(-epsilon))
    return Event(
        mechanism="cut discrete laplace",
        noise_multiplier=scale,
        detail=f"size of an intersection; epsilon={epsilon!r} delta={delta!r}",
    )


def _other(mesh: Mesh, one: str) -> str:
    """The other of two owners.

    Raises:
      ConfigError: there are more, or `one` is none of them.
    """
    owners = sorted((mesh.me, *mesh.peers))
    fault = f"'{one}' is to learn a count or sum of two owners, but there are {', '.join(owners)}."
    require(len(owners) == 2 and one in owners, fault)
    (other,) = set(owners) - {one}
    return other


def _agreed(
    mesh: Mesh, table: Source, keys: Keys, name: str, learner: str, learns: Learns, detail: str, cap: int,
    accept: Accept, folder: Path | None, bucket_keys: int, entropy: Entropy, more: int = 0,
    numbers: Numbers | None = None,
) -> _Agreed:  # fmt: skip
    """The session of two owners that each enter their keys and so many `more`; a new one, or one that goes on."""
    require(bucket_keys >= 1, f"bucket_keys={bucket_keys}: at least one.")
    owners, detail = tuple(sorted((mesh.me, *mesh.peers))), f"{detail}; buckets of {bucket_keys} keys"
    terms = Terms(name, owners, (learner,), cap, tuple(keys.normalise), len(keys.columns), detail=detail)
    ask(TITLES[name], learns, accept)
    state = State(folder, entropy(32))
    entries = Entries.of(pieces_of(table), keys, terms.digest()[:16], folder, numbers)
    state.check(terms.digest(), entries.fingerprint)
    session = terms.agree(mesh, len(entries), entropy)
    buckets = bucket_count(max(session.sizes.values()) + more, bucket_keys)
    session, left = state.begin(session, entries.fingerprint, buckets)
    return _Agreed(session, state, entries, buckets, left)


class _Ciphertexts:
    """The other owner's values, bucket by bucket: in files beside the state, or in memory."""

    def __init__(self, folder: Path | None, size: int, count: int, buckets: int) -> None:
        self._folder, self._size, self._held = folder, size, dict[int, bytearray]()
        self._starts = np.array([bounds(count, at, buckets)[0] for at in range(buckets)])

    @contextmanager
    def writing(self, bucket: int) -> Iterator[Callable[[bytes], object]]:
        """Keeps the ciphertexts of a bucket, as they come."""
        if self._folder is None:
            self._held[bucket] = bytearray()
            yield self._held[bucket].extend
            return
        with open(os.open(self._path(bucket), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            yield file.write
            file.flush()
            os.fsync(file.fileno())

    def at(self, places: NDArray[np.int64]) -> Iterator[bytes]:
        """Some of them, by their places in the whole set, ascending."""
        buckets = np.searchsorted(self._starts, places, "right") - 1
        for bucket in np.unique(buckets).tolist():
            inside = (places[buckets == bucket] - self._starts[bucket]).tolist()
            with io.BytesIO(self._held[bucket]) if self._folder is None else self._path(bucket).open("rb") as file:
                for place in inside:
                    file.seek(place * self._size)
                    yield file.read(self._size)

    def _path(self, bucket: int) -> Path:
        assert self._folder is not None
        return self._folder / f"values-{bucket:03}.bin"


def _forgotten(_: bytes) -> None:
    """Where what is kept already goes."""


def _dummies(session: Session, count: int) -> NDArray[np.uint8]:
    return _digests(hashlib.shake_256(b"hansa psi dummies" + session.salt).digest(DIGEST_BYTES * count))


def _digests(raw: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(raw, np.uint8).reshape(-1, DIGEST_BYTES)


def _whole(name: str, table: Mapping[str, Any], first: int) -> NDArray[np.int64]:
    """A piece of the column as whole numbers of millionths."""
    if name not in table:
        raise ConfigError(f"the table has no column '{name}' to sum: it has {', '.join(table)}.")
    try:
        column = np.asarray(table[name], np.float64)
    except (TypeError, ValueError):
        raise DataError(f"the column '{name}' holds text or empty cells: a sum is of numbers.") from None
    wrong = np.flatnonzero(~(np.abs(column) < LARGEST))
    if len(wrong):
        raise DataError(
            f"the column '{name}' holds a missing number, or one of 2⁴⁰ or more, in row {first + wrong[0]}."
        )
    return np.array([round(value * 10**DECIMALS) for value in column.tolist()], np.int64)
