"""How many keys two owners share, and the sum of a column over them: which keys, nobody learns.

    A ── a·H(x), shuffled ──►  B                          B ── b·H(y), shuffled [with Enc(value)] ──►  A
                               B ── tags of b·a·H(x), shuffled again ──►  A
    A: tags of a·b·H(y); how many are among B's?          [the product of those ciphertexts, blinded anew ──► B]

A cannot tell which of its keys a tag belongs to, since B shuffled them. With differential privacy, A enters 2τ dummies
that both know, B a secret number τ + Z of them and fillers up to 2τ, and A takes τ off: Z follows the discrete Laplace
law of scale 1/ε, cut at ±τ, drawn from the operating system's randomness by B, so that A never has the exact count.

Security: as `ecdh.py`, against semi-honest owners. The values are hidden by Paillier's encryption under B's key.

Sources: Ion et al. 2019, On Deploying Secure Computing: Private Intersection-Sum-with-Cardinality,
https://eprint.iacr.org/2019/723; Ghosh, Roughgarden and Sundararajan 2012, Universally Utility-Maximizing Privacy
Mechanisms, https://doi.org/10.1137/09076828X (the law)
"""

import decimal
import hashlib
import math
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

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
from hansa.vertical.psi.ecdh import new_scalar, tags_of_other
from hansa.vertical.psi.entries import Entries, Source, pieces_of
from hansa.vertical.psi.intersect import CAP
from hansa.vertical.psi.keys import DIGEST_BYTES, Keys
from hansa.vertical.psi.tags import meet, repeats, shuffled, tag_bytes
from hansa.vertical.psi.terms import Accept, Entropy, Session, Terms, ask
from hansa.vertical.psi.work import counter, mapper

_PRECISION_BITS = 200
DELTA = 1e-9
LEAST = 10
DECIMALS = 6
LARGEST = 2.0**40
_TagsFor: TypeAlias = Callable[[str], NDArray[np.int64] | None]
"""`_shuffled_tags` for a learner."""
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
    cap: int = CAP, accept: Accept = False, audit: Audit | None = None, workers: int | None = None,
    progress: Callable[[int, int], None] | None = None, entropy: Entropy = secrets.token_bytes,
) -> Cardinality | None:  # fmt: skip
    """How many keys two owners share. Both call it; arguments and errors as `intersect`, but:

    Args:
      learner: the owner that learns the count.
      epsilon: of differential privacy for the other owner's keys; None for the exact count.
      delta: the probability with which ε may not hold, by the cut of the noise.
      progress: told how many of the other owner's keys are done, and of how many.

    Returns:
      The count; None for the other owner, and with noise its event, without the count, is there for its ledger.
    """
    bound = 0 if epsilon is None else noise_bound(epsilon, delta)
    detail = "exact" if epsilon is None else f"epsilon={epsilon!r} delta={delta!r}"
    said = cardinality_learns(learner, _other(mesh, learner), cap, epsilon, delta)
    session, digests, _ = _agreed(mesh, table, keys, "cardinality", learner, said, detail, cap, accept, entropy)
    event = None if epsilon is None else _event(epsilon, delta)
    dummies = _dummies(session, 2 * bound)
    learns = mesh.me == learner
    if epsilon is not None and not learns:
        true = bound + int(noise_law(epsilon, bound).draw(Stream(entropy(32)), 1)[0])
        fillers = np.frombuffer(entropy(DIGEST_BYTES * (2 * bound - true)), np.uint8).reshape(-1, DIGEST_BYTES)
        dummies = np.concatenate([dummies[:true], fillers])
    entered = np.concatenate([digests, dummies])
    with recorded(audit, session):
        found = _shuffled_tags(session, entered, 2 * bound, workers, entropy, progress)
    if found is None:
        return None if event is None else Cardinality(-1, event, epsilon, delta)
    return Cardinality(len(found) - bound, event, epsilon, delta if event is not None else None)


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
    accept: Accept = False, audit: Audit | None = None, workers: int | None = None,
    progress: Callable[[int, int], None] | None = None, entropy: Entropy = secrets.token_bytes,
) -> Total:  # fmt: skip
    """The sum of one owner's column over the keys that two owners share. Both call it; as `intersect`, but:

    Args:
      values: the column; None at the other owner.
      holder: the owner that has the values, and learns their sum.
      least: of fewer shared keys nobody learns a sum, as it would show single values.

    Raises:
      DataError: fewer are shared, at both owners; or a value is no number below 2⁴⁰. Sums are exact to six decimals.
    """
    require((values is not None) == (mesh.me == holder), f"values={values}: '{holder}' alone names a column.")
    require(least >= 2, f"least={least}: the sum over one key is its value; ask for two or more.")
    numbers = None if values is None else _numbers(values, table)
    said = sum_learns(holder, _other(mesh, holder), cap, least)
    session, digests, rows = _agreed(mesh, table, keys, "sum", holder, said, f"least={least}", cap, accept, entropy)
    order = shuffled(len(digests))
    with recorded(audit, session) as ended:
        tags = partial(_shuffled_tags, session, digests[order], 0, workers, entropy, progress)
        if numbers is None:
            made = _sum_of_others(session, tags, least, entropy)
        else:
            made = _sum_of_own(session, tags, [numbers[row] for row in rows[order]], least, entropy)
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


def _sum_of_own(session: Session, tags: _TagsFor, values: list[int], least: int, entropy: Entropy) -> Total:
    """The side of the owner of the values, which are in the order of what it enters."""
    from hansa.crypto.paillier import PrivateKey

    key = PrivateKey.generate(entropy=entropy)
    session.mesh.send(session.peer, "psi key", list(key.public.numbers()))
    session.mesh.send(session.peer, "psi values", [key.public.to_bytes(key.encrypt(values, entropy))])
    tags(session.peer)
    count = int.from_bytes(session.receive(session.peer, "psi count", 8), "little")
    if count < least:
        raise _too_few(count, least)
    raw = session.receive(session.peer, "psi total", key.public.size_bytes)
    with named(session.peer):
        return Total(count, key.decrypt(key.public.from_bytes(raw, 1))[0] / 10**DECIMALS)


def _sum_of_others(session: Session, tags: _TagsFor, least: int, entropy: Entropy) -> Total:
    """The side of the owner without values: it finds what is shared, and adds under the other's key."""
    from hansa.crypto.paillier import PublicKey

    numbers = map(bytes, parts(session.mesh, session.peer, "psi key", 2))
    size = session.sizes[session.peer]
    with named(session.peer):
        public = PublicKey.of(*numbers)
        sealed = public.from_bytes(session.receive(session.peer, "psi values", size * public.size_bytes), size)
    theirs = tags(session.mesh.me)
    assert theirs is not None
    session.mesh.send(session.peer, "psi count", [len(theirs).to_bytes(8, "little")])
    if len(theirs) < least:
        raise _too_few(len(theirs), least)
    total = sealed[theirs[0]]
    for at in theirs[1:]:
        total = public.add(total, sealed[at])
    session.mesh.send(session.peer, "psi total", [public.to_bytes(public.rerandomise([total], entropy))])
    return Total(len(theirs))


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
    accept: Accept, entropy: Entropy,
) -> tuple[Session, NDArray[np.uint8], NDArray[np.int64]]:  # fmt: skip
    """The session of two owners, and this one's digests and their rows."""
    owners = tuple(sorted((mesh.me, *mesh.peers)))
    terms = Terms(name, owners, (learner,), cap, tuple(keys.normalise), len(keys.columns), detail=detail)
    ask(TITLES[name], learns, accept)
    digests, rows = Entries.of(pieces_of(table), keys, terms.digest()[:16]).bucket(0, 1)
    return terms.agree(mesh, len(digests), entropy), digests, rows


def _shuffled_tags(
    session: Session, digests: NDArray[np.uint8], more: int, workers: int | None, entropy: Entropy,
    progress: Callable[[int, int], None] | None = None, learner: str | None = None,
) -> NDArray[np.int64] | None:  # fmt: skip
    """At the learner: the places of shared keys in the order in which the other entered its own.

    Digests are shuffled first, unless a `learner` is named: then their order means something, and the caller did so.
    """
    theirs = session.sizes[session.peer] + more
    size = tag_bytes(len(digests), theirs)
    entered = digests[shuffled(len(digests))] if learner is None else digests
    with mapper(workers, len(digests) + theirs) as apply:
        ours = tags_of_other(session, entered, theirs, size, apply, new_scalar(entropy), counter(progress, 0, theirs))
    if repeats(ours):
        raise ProtocolError(f"'{session.peer}' entered a key twice: it is broken or hostile.")
    if session.mesh.me != (learner or session.terms.learns[0]):
        session.mesh.send(session.peer, "psi tags", [ours[shuffled(len(ours))].tobytes()])
        return None
    raw = session.receive(session.peer, "psi tags", len(digests) * size)
    back = np.frombuffer(raw, np.uint8).reshape(-1, size)
    if repeats(back):
        raise ProtocolError(f"'{session.peer}' sent a tag twice: it is broken or hostile.")
    return meet(back, ours)[1]


def _dummies(session: Session, count: int) -> NDArray[np.uint8]:
    raw = hashlib.shake_256(b"hansa psi dummies" + session.salt).digest(DIGEST_BYTES * count)
    return np.frombuffer(raw, np.uint8).reshape(-1, DIGEST_BYTES)


def _numbers(name: str, table: Source) -> list[int]:
    """The column as whole numbers of millionths, row by row."""
    made: list[int] = []
    for piece in pieces_of(table):
        made += _whole(name, piece, len(made))
    return made


def _whole(name: str, table: Mapping[str, Any], first: int) -> list[int]:
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
    return [round(value * 10**DECIMALS) for value in column.tolist()]


def _too_few(count: int, least: int) -> DataError:
    return DataError(f"{count} keys are shared, and a sum is shown from {least} on: nobody learnt it.")
