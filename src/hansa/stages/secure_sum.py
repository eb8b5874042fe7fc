"""The secure sum: the server learns the total of a cohort's contributions, and no single one.

    stages ► integers ► mask ═══ five legs, `hansa.crypto.secagg` ═══► Σ modulo 2ᵐ ► integers ► stages back

Contributions are added modulo a power of two that is as small as holds the cohort's sum, and packed to so many bits, so
it must be known before any data how large one can be: that is what `Clip` and `Quantise` declare. Weights and metrics
travel inside the same sum.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np

from hansa.core.errors import ConfigError, MissingExtra
from hansa.core.pipeline import Part, Reducer, Seat, Setting, Signal, Worker, fault
from hansa.core.sampling import Stream
from hansa.core.tensors import Tensors

try:
    from hansa.crypto import secagg
except ModuleNotFoundError as error:
    raise MissingExtra("SecureSum", "cryptography", "cryptography") from error

from hansa.crypto.secagg.graph import Graph, choose_graph
from hansa.crypto.secagg.terms import SEALED_BYTES, void
from hansa.privacy.threats import Adversary, Sees
from hansa.stages.hidden_sum import (
    NOTHING,
    Aggregator,
    HiddenSum,
    array_of,
    as_array,
    as_names,
    bytes_by_place,
    bytes_of,
    fewest_clients,
    names_of,
)
from hansa.stages.residues import Layout


@dataclass(frozen=True)
class SecureSum(HiddenSum):
    """Adds contributions under masks that cancel, with drop-outs at any leg.

    Args:
      threshold: the fraction of clients that must stay to the end, above 1/2. Against a server that lies it protects
        while fewer than 2·threshold − 1 of the clients work with it: above 2/3, take 0.7 or more.
      dropout, corrupt: where given (both), the fractions of clients that may drop out, and that may work with the
        server: each client then masks with a few others, as many as these rates need, and `threshold` is not used.
      lying: whether the server may lie. False takes half as many neighbours or fewer, where rates are declared, and
        trusts the server to tell all clients the same of who masked: one that does not can open a client.
      groups_of: where given, clients are summed in groups of about so many, and the server sees the groups' sums: for
        cohorts of thousands. It puts the groups together, and could put its own beside one client: with lying=False.

    Guarantees:
      The server sees uniform noise of each client, and the sum over those whose masked vector came, while fewer than
      the threshold of a client's holders work with it. Clients check that they all speak of the same survivors and
      reveal one secret of each other, never both; and that there are as many of them as the job's quorum, or as it asks
      where there is none, so that nobody is left alone among the server's own. The sum is exact, or the round is void.
      It does not protect the sum itself: add noise for that. Clients that send wrong values are not found out.

    Sources: Bonawitz et al. 2017, https://eprint.iacr.org/2017/281; Bell et al. 2020, https://eprint.iacr.org/2020/704

    | use | settings |
    |---|---|
    | some tens of organisations | `SecureSum()` with `Fixed(20, quorum=14, deadline_s=60)` |
    | a thousand devices | `SecureSum(dropout=0.1, corrupt=0.2)` |
    | ten thousand | `SecureSum(dropout=0.1, corrupt=0.1, groups_of=500, lying=False)` |
    """

    threshold: float = 0.7
    dropout: float | None = field(default=None, kw_only=True)
    corrupt: float | None = field(default=None, kw_only=True)
    lying: bool = field(default=True, kw_only=True)
    groups_of: int | None = field(default=None, kw_only=True)

    legs: ClassVar[int] = 5
    counted: ClassVar[int] = 2
    threats: ClassVar[tuple[Sees, ...]] = (
        Sees(
            Adversary.SERVER,
            "the total of the round, or of each group; who took part, who dropped out",
            "fewer than the threshold of a client's holders work with it",
        ),
        Sees(
            Adversary.LIAR,
            "one total for each attempt, over clients of which at least the threshold agreed",
            "fewer than 2·threshold − 1 of a round's fewest clients work with it, dummies included, or no more than "
            "`corrupt`; `lying=False` is not used",
        ),
        Sees(
            Adversary.WORKER,
            "who takes part, their public keys, and the models of its rounds",
            "the server does not work with it",
        ),
    )

    def __post_init__(self) -> None:
        if not 0.5 < self.threshold <= 1:
            raise ConfigError(
                f"threshold={self.threshold}: above 1/2, so that no two lists of survivors pass, up to 1."
            )
        if (self.dropout is None) != (self.corrupt is None):
            raise ConfigError("dropout and corrupt are declared together, or neither is.")
        if self.groups_of is not None and self.groups_of < 3:
            raise ConfigError(f"groups_of={self.groups_of}: a sum of fewer than 3 hides nobody.")
        if self.groups_of is not None and self.lying:
            raise ConfigError(
                f"groups_of={self.groups_of} against a server that lies: it puts the groups together, and its own "
                "clients beside one. Add lying=False, or leave groups_of out."
            )

    def graph(self, clients: int, fewest: int | None = None) -> Graph | None:
        """The graph chosen for a round of so many; None where everybody masks with everybody."""
        if self.dropout is None or self.corrupt is None:
            return None
        return choose_graph(clients, self.corrupt, self.dropout, lying=self.lying, fewest=fewest, group=self.groups_of)

    def fewest(self, setting: Setting) -> int:
        """Clients that every round has; those of a group are not promised to be more than 3."""
        return 3 if self.groups_of is not None else fewest_clients(setting)

    def faults(self, signal: Signal, setting: Setting) -> Iterator[str]:
        """What no hidden sum can add, and noise of which a group has too few shares."""
        yield from super().faults(signal, setting)
        if self.groups_of is not None and any(part.modulus is not None for part in signal.parts.values()):
            yield (
                f"groups_of={self.groups_of} shows the server sums with too few shares of the clients' noise: "
                "leave groups_of out, or take Gaussian instead."
            )

    def bind(self, signal: Signal, setting: Setting) -> Reducer:
        """Chooses a round's graph, refusing rates that none stands, and the smallest moduli that hold its sum."""
        faults, graph, fewest = list(self.faults(signal, setting)), None, self.fewest(setting)
        try:
            graph = self.graph(max(3, math.ceil(setting.cohort)), fewest)
        except ConfigError as error:
            faults.append(f"SecureSum: {error}")
        if faults:
            raise fault(*faults)
        return _Bound(
            self.threshold, dropout=self.dropout, corrupt=self.corrupt, lying=self.lying, groups_of=self.groups_of,
            layout=Layout.of(signal, setting.most), degree=None if graph is None else graph.neighbours,
            holders=None if graph is None else graph.threshold, named=fewest,
        )  # fmt: skip


@dataclass(frozen=True)
class _Bound(SecureSum):
    layout: Layout = field(kw_only=True, repr=False)
    degree: int | None = field(default=None, kw_only=True)
    holders: int | None = field(default=None, kw_only=True)
    named: int = field(default=3, kw_only=True)

    def wire(self, signal: Signal, setting: Setting) -> Signal:
        """One vector of bytes."""
        size = self.layout.fields.size_bytes
        masked = Part(shapes={"vector": ((size,), "uint8")}, domain="bytes", bits=8.0, modulus=1 << 8)
        return replace(signal, parts={"masked": masked})

    def worker(self, message: Tensors, seat: Seat) -> Worker:
        """Five messages."""
        client = secagg.Client(self._terms(seat), seat)
        told = yield Tensors({"advert": as_array(client.advertise())})
        roster = secagg.Roster(names_of(told), bytes_of(told, "digests"), self.degree, seat.context)
        sealed = client.share(roster, bytes_by_place(told, "advert"))
        told = yield Tensors({"sealed": as_array(b"".join(sealed)).reshape(len(sealed), SEALED_BYTES)})
        places, shares = array_of(told, "places", 1), array_of(told, "sealed", 2)
        shares_of = {int(at): share.tobytes() for at, share in zip(places, shares, strict=True)}
        told = yield Tensors({"masked/vector": client.mask(shares_of, self.layout.encode(message))})
        survivors = [int(at) for at in array_of(told, "survivors", 1)]
        told = yield Tensors({"signature": as_array(client.agree(survivors))})
        yield Tensors({"revealed": client.unmask(bytes_by_place(told, "signature"))})

    def aggregator(self, cohort: Sequence[str], seat: Seat) -> Aggregator:
        """One server for each group."""
        groups = self._groups(cohort, seat)
        return _Groups(self.layout, {secagg.Server(self._terms(seat), seat): group for group in groups})

    def _groups(self, cohort: Sequence[str], seat: Seat) -> list[list[str]]:
        """Groups of like size, in an order that this conversation draws."""
        count = max(1, len(cohort) // self.groups_of) if self.groups_of else 1
        words = Stream("groups", seat.context).words(len(cohort))
        order = [cohort[int(at)] for at in np.argsort(words, kind="stable")]
        return [sorted(order[at::count]) for at in range(count)]

    def _terms(self, seat: Seat) -> secagg.Terms:
        return secagg.Terms(seat.context, self.layout.fields, self.threshold, self.degree, self.holders, self.named)


class _Groups(Aggregator):
    """Each group has a conversation by itself; their sums are added."""

    def __init__(self, layout: Layout, groups: Mapping[secagg.Server, Sequence[str]]) -> None:
        self._layout, self._servers = layout, list(groups)
        self._server_of = {name: server for server, group in groups.items() for name in group}

    def take(self, leg: int, client: str, message: Tensors) -> None:
        server = self._server_of[client]
        match leg:
            case 0:
                server.add_advert(client, bytes_of(message, "advert"))
            case 1:
                server.add_shares(client, [row.tobytes() for row in array_of(message, "sealed", 2)])
            case 2:
                server.add_masked(client, array_of(message, "masked/vector", 1))
            case 3:
                server.add_agreement(client, bytes_of(message, "signature"))
            case _:
                server.add_revealed(client, array_of(message, "revealed", 2))

    def close(self, leg: int, survivors: Sequence[str]) -> Mapping[str, Tensors]:
        answers: dict[str, Tensors] = {}
        for server in self._servers:
            answers |= _closed(server, leg, [name for name in survivors if self._server_of[name] is server])
        return answers

    def total(self) -> Tensors:
        totals = [server.total() for server in self._servers]
        return self._layout.decode([np.sum(runs, axis=0, dtype=runs[0].dtype) for runs in zip(*totals, strict=True)])


def _closed(server: secagg.Server, leg: int, names: Sequence[str]) -> Mapping[str, Tensors]:
    """What a group is told when a leg is over."""
    if leg == 0:
        return {name: _told(*known) for name, known in server.close_adverts(names).items()}
    if leg == 4:
        return {}
    if not names:
        raise void("nobody of a group is left")
    if leg == 1:
        return {name: _sealed(given) for name, given in server.close_shares(names).items()}
    if leg == 2:
        return dict.fromkeys(names, Tensors({"survivors": np.array(server.close_masked(names), np.int64)}))
    return {
        name: NOTHING.updated(_listed("signature", signed)) for name, signed in server.close_agreements(names).items()
    }


def _told(roster: secagg.Roster, adverts: Mapping[int, bytes]) -> Tensors:
    """Who is there, and a client's neighbours' keys."""
    return Tensors({"names": as_names(roster.names), "digests": as_array(roster.digests), **_listed("advert", adverts)})


def _sealed(shares: Mapping[int, bytes]) -> Tensors:
    """What a client's neighbours sealed for it."""
    rows = as_array(b"".join(shares.values())).reshape(len(shares), SEALED_BYTES)
    return Tensors({"places": np.array(list(shares), np.int64), "sealed": rows})


def _listed(prefix: str, raws: Mapping[int, bytes]) -> dict[str, np.ndarray]:
    return {f"{prefix}/{at}": as_array(raw) for at, raw in raws.items()}
