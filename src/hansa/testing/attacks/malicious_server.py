"""A server that does not follow the secure sum, and wants one client's contribution.

    asks for both secrets      tells half of the clients that the victim masked, and half that it dropped out
    drops all but one          tells each client that nobody is left but the victim and itself
    lies about who is alive    tells all that the victim dropped out, and when they have answered, that it did not
    asks again                 lets the round end, and holds the same attempt again without the victim
    replays                    hands the victim keys that its neighbours signed for an earlier attempt
    puts its own keys in       hands the victim keys of its own in its neighbours' names
    leaves the others out      names the victim and accomplices alone, who are true members

Each is played against the clients' real halves. The server has won when it computes the victim's contribution, bit for
bit, from what it was sent; in the last three, when the victim seals shares of its secrets under the wrong keys, or for
accomplices alone.
"""

import hashlib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from hansa.core.errors import ConfigError, HansaError
from hansa.core.job import Job
from hansa.core.pipeline import Setting
from hansa.crypto import shamir
from hansa.crypto.agreement import KeyPair
from hansa.crypto.masking import KEY_BYTES, add_mask
from hansa.crypto.seats import SimulatedSeat
from hansa.crypto.secagg import Advert, Client, Fields, Roster, Terms
from hansa.crypto.secagg.terms import SECRET_BYTES
from hansa.stages.secure_sum import SecureSum

Told = Mapping[int, Sequence[int]]
"""Client -> whom it is told to have masked, by place; who is not in it is told nothing."""

T = TypeVar("T")
_FIELDS = Fields((64,), (32,))  # of a contribution: what is in it does not matter
_MOST = 40  # clients of a complete graph: more refuse no better
_VICTIM = 0


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """What one attack came to.

    Args:
      attack: its name.
      won: whether the server has what it wanted.
      refused: clients that refused to go on.
      why: what the first of them said; empty if none did.
    """

    attack: str
    won: bool
    refused: int
    why: str


def against(
    terms: Terms, clients: int, client: type[Client] = Client, seat: type[SimulatedSeat] = SimulatedSeat
) -> list[Attempt]:
    """All attacks, each on a conversation of its own.

    Args:
      terms: threshold, graph and fewest clients of the conversation; its context and fields are replaced.
      clients: 3 or more.
      client, seat: the halves that are attacked; tests give weaker ones, against which attacks must win.
    """

    def begun(attack: str) -> "_Attack":
        seats = [seat(f"client-{at}", b"attacked", b"one secret of all") for at in range(clients)]
        return _Attack(attack, replace(terms, context=b"attacked", fields=_FIELDS), client, seats)

    return [
        _both_secrets(begun("asks for both secrets")),
        _all_but_one(begun("drops all but one")),
        _dead_and_alive(begun("lies about who is alive")),
        _again(begun("asks again")),
        _replayed(begun("replays")),
        _own_keys(begun("puts its own keys in")),
        _left_out(begun("leaves the others out")),
    ]


def against_job(job: Job, population: int) -> list[Attempt]:
    """The same for the sum of a job, with its threshold, graph and groups; at most 40 clients of a complete graph.

    Raises:
      ConfigError: its reducer is no `SecureSum`.
    """
    reducer = job.pipeline.reducer
    if not isinstance(reducer, SecureSum):
        raise ConfigError(f"it is played against SecureSum, and this job ends in {type(reducer).__name__}.")
    setting = Setting(sampling=job.who, algorithm=job.algorithm, population=population, sees=reducer.sees)
    cohort, fewest = math.ceil(setting.cohort), reducer.fewest(setting)
    graph = reducer.graph(cohort, fewest)
    if graph is not None:
        terms = Terms(b"", _FIELDS, reducer.threshold, graph.neighbours, graph.threshold, fewest)
        return against(terms, min(cohort, reducer.groups_of or cohort))
    clients = min(cohort, reducer.groups_of or cohort, _MOST)
    return against(Terms(b"", _FIELDS, reducer.threshold, fewest=max(3, fewest * clients // cohort)), clients)


class _Attack:
    """One conversation, held by a server that keeps all it is sent."""

    def __init__(self, name: str, terms: Terms, client: type[Client], seats: Sequence[SimulatedSeat]) -> None:
        self.name, self.terms, self.seats, self.kind = name, terms, seats, client
        self.refusals: dict[int, str] = {}
        rng = np.random.default_rng(0)
        self.truth = [
            [rng.integers(0, 1 << 32, 64, np.uint64).astype(run.dtype) for run in terms.fields.zeros()] for _ in seats
        ]
        self.begin()

    def begin(self) -> None:
        """A conversation with new keys, in the same context and with the same seats."""
        self.clients = [self.kind(self.terms, seat) for seat in self.seats]
        self.adverts = [client.advertise() for client in self.clients]
        self.shares: dict[tuple[int, str], dict[int, np.ndarray]] = {}

    def gather(self, leave_out: Sequence[int] = ()) -> None:
        """Legs 0 to 2 as they should be; those that are left out do not get to mask."""
        self.roster, self.graph = self.listed(self.adverts)
        sealed: dict[int, dict[int, bytes]] = {at: {} for at in range(len(self.clients))}
        for at, client in enumerate(self.clients):
            given = client.share(self.roster, {near: self.adverts[near] for near in self.graph[at]})
            for near, each in zip(self.graph[at], given, strict=True):
                sealed[near][at] = each
        self.masked = [at for at in range(len(self.clients)) if at not in leave_out]
        self.vectors = {
            at: self.clients[at].mask(sealed[at], [run.copy() for run in self.truth[at]]) for at in self.masked
        }

    def listed(self, adverts: Sequence[bytes]) -> tuple[Roster, list[list[int]]]:
        """The roster of these keys, and its graph."""
        names = tuple(seat.name for seat in self.seats)
        digests = b"".join(Advert.load(raw).digest for raw in adverts)
        roster = Roster(names, digests, self.terms.degree, self.terms.context)
        return roster, roster.graph()

    def tell(self, told: Told) -> None:
        """Legs 3 and 4: shows each client its list, and keeps the shares of those that do not refuse."""
        signed: dict[int, bytes] = {}
        for at, alive in told.items():
            if (signature := self.asked(at, self.clients[at].agree, alive)) is not None:
                signed[at] = signature
        for at in signed:
            same = {near: signed[near] for near in self.graph[at] if near in signed and told[near] == told[at]}
            if (rows := self.asked(at, self.clients[at].unmask, same)) is None:
                continue
            for row, owner in zip(rows, [*self.graph[at], at], strict=True):
                which = "own" if owner in told[at] else "pair"
                self.shares.setdefault((owner, which), {})[at] = row

    def asked(self, at: int, answer: Callable[..., T], *given: object) -> T | None:
        """What a client answers; None if it refuses, which is noted."""
        try:
            return answer(*given)
        except HansaError as error:
            self.refusals.setdefault(at, f"{type(error).__name__}: {error}")
            return None

    def secret(self, owner: int, which: str) -> bytes | None:
        """A client's secret from the shares that were revealed: its self-mask's key, or that of its pairs' masks."""
        length = KEY_BYTES if which == "own" else SECRET_BYTES
        holders = [*self.graph[owner], owner]
        rows = self.shares.get((owner, which), {})
        places = [place for place, holder in enumerate(holders) if holder in rows][: self.terms.needed(len(holders))]
        if len(places) < self.terms.needed(len(holders)):
            return None
        limbs = shamir.limbs(bytes(length))
        try:
            found = shamir.combine(np.stack([rows[holders[place]][:limbs] for place in places]), places, length)
        except HansaError:
            return None
        advert = Advert.load(self.adverts[owner])
        own = which == "own" and hashlib.sha256(found).digest() == advert.commitment
        return found if own or (which == "pair" and KeyPair.of(found).public == advert.mask) else None

    def opened(self, at: int) -> list[np.ndarray] | None:
        """A client's vector without its masks, if its self-mask's key and the keys of all its pairs are known."""
        own, pair = self.secret(at, "own"), self.secret(at, "pair")
        if own is None or at not in self.vectors:
            return None
        runs = self.terms.fields.unpack(self.vectors[at])
        add_mask(runs, own, -1)
        for near in self.graph[at]:
            other = None if pair is not None else self.secret(near, "pair")
            if pair is None and other is None:
                return None
            known, public = (pair, near) if pair is not None else (other, at)
            assert known is not None
            key = KeyPair.of(known).agree(
                Advert.load(self.adverts[public]).mask, b"mask\0" + self.terms.context, KEY_BYTES
            )
            add_mask(runs, key, -1 if at < near else 1)
        return runs

    def total(self) -> list[np.ndarray] | None:
        """The sum over all that masked, if every key that it takes is known."""
        found = [np.zeros_like(run) for run in self.terms.fields.zeros()]
        for at in self.masked:
            if (own := self.secret(at, "own")) is None:
                return None
            for run, summand in zip(found, self.terms.fields.unpack(self.vectors[at]), strict=True):
                run += summand
            add_mask(found, own, -1)
        for gone in set(range(len(self.clients))) - set(self.masked):
            if (pair := self.secret(gone, "pair")) is None:
                return None
            for near in set(self.graph[gone]) & set(self.masked):
                public = Advert.load(self.adverts[near]).mask
                key = KeyPair.of(pair).agree(public, b"mask\0" + self.terms.context, KEY_BYTES)
                add_mask(found, key, -1 if near < gone else 1)
        return found

    def outcome(self, found: Sequence[np.ndarray] | None = None, sealed: bool = False) -> Attempt:
        """How it ended: with something that should be the victim's contribution, or with its sealed shares."""
        truth = self.truth[_VICTIM]
        won = sealed or (found is not None and all(map(np.array_equal, found, truth)))
        why = next(iter(self.refusals.values()), "")
        return Attempt(attack=self.name, won=won, refused=len(self.refusals), why=why)


def _both_secrets(attack: _Attack) -> Attempt:
    attack.gather()
    everybody = attack.masked
    others = [at for at in everybody if at != _VICTIM]
    believers = _half(attack.graph)
    attack.tell({at: everybody if at in believers else others for at in everybody})
    return attack.outcome(attack.opened(_VICTIM))


def _half(graph: Sequence[Sequence[int]]) -> set[int]:
    """The victim, half of its holders, and whoever is nearer to them than to the others: each half agrees with itself.

    Neighbours on a ring are those before and after the victim. Who is at one end has the fewest in common with it.
    """
    holders = set(graph[_VICTIM])
    end = min(holders, key=lambda at: len(holders & set(graph[at])))
    first = set(sorted(holders)[1::2]) if len(holders) == len(graph) - 1 else {end, *holders & set(graph[end])}
    side = {at: at in first for at in holders} | {_VICTIM: True}
    reached = list(holders)
    for at in reached:
        for near in graph[at]:
            if near not in side:
                side[near] = side[at]
                reached.append(near)
    return {at for at, believes in side.items() if believes}


def _all_but_one(attack: _Attack) -> Attempt:
    attack.gather()
    attack.tell({at: sorted({at, _VICTIM}) for at in attack.masked})
    return attack.outcome(attack.opened(_VICTIM))


def _dead_and_alive(attack: _Attack) -> Attempt:
    attack.gather()
    others = [at for at in attack.masked if at != _VICTIM]
    attack.tell(dict.fromkeys(others, others))
    attack.tell(dict.fromkeys(attack.masked, attack.masked))
    return attack.outcome(attack.opened(_VICTIM))


def _again(attack: _Attack) -> Attempt:
    attack.gather()
    attack.tell(dict.fromkeys(attack.masked, attack.masked))
    whole = attack.total()
    assert whole is not None, "an honest round has a total"
    attack.begin()
    attack.gather(leave_out=[_VICTIM])
    attack.tell(dict.fromkeys(attack.masked, attack.masked))
    rest = attack.total()
    return attack.outcome(None if rest is None else [one - other for one, other in zip(whole, rest, strict=True)])


def _replayed(attack: _Attack) -> Attempt:
    terms = replace(attack.terms, context=b"an earlier attempt")
    earlier = [type(seat)(seat.name, terms.context, seat.secret) for seat in attack.seats]
    return _under(attack, [attack.kind(terms, seat).advertise() for seat in earlier])


def _own_keys(attack: _Attack) -> Attempt:
    server = SimulatedSeat("server", attack.terms.context, os.urandom(32))
    return _under(attack, [attack.kind(attack.terms, server).advertise() for _ in attack.seats])


def _left_out(attack: _Attack) -> Attempt:
    everybody = len(attack.seats)
    few = min(max(3, everybody // 3), everybody - 1)
    attack.seats = attack.seats[:few]
    return _under(attack, attack.adverts[:few])


def _under(attack: _Attack, keys: Sequence[bytes]) -> Attempt:
    """Has the victim share its secrets with holders of these keys."""
    given = [attack.adverts[_VICTIM], *keys[1:]]
    roster, graph = attack.listed(given)
    victim = attack.clients[_VICTIM]
    near = {at: given[at] for at in graph[_VICTIM]}
    return attack.outcome(sealed=attack.asked(_VICTIM, victim.share, roster, near) is not None)
