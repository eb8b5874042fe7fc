"""The secure sum: the server learns the total of a cohort's contributions, and no single one.

    stages ► integers ► mask ═══ five legs, `hansa.crypto.secagg` ═══► Σ modulo 2ᵐ ► integers ► stages back

Contributions are added modulo a power of two that is as small as holds the cohort's sum, and packed to so many bits, so
it must be known before any data how large one can be: that is what `Clip` and `Quantise` declare. Weights and metrics
travel inside the same sum.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np

from hansa.core.errors import ConfigError, HansaError, MissingExtra, ProtocolError
from hansa.core.pipeline import (
    Arrived,
    Closed,
    Part,
    Reducer,
    Seat,
    Sensitivity,
    Server,
    Setting,
    Signal,
    Worker,
    fault,
)
from hansa.core.sampling import Stream
from hansa.core.tensors import Array, Tensors

try:
    from hansa.crypto import secagg
except ModuleNotFoundError as error:
    raise MissingExtra("SecureSum", "cryptography", "cryptography") from error

from hansa.crypto.secagg.graph import Graph, choose_graph
from hansa.crypto.secagg.terms import SEALED_BYTES, void
from hansa.privacy.threats import Adversary, Sees

_RANGE = 2.0**30  # of numbers without a declared bound: metrics beyond it saturate
_FINEST = 50  # bits of magnitude of a number on its grid


@dataclass(frozen=True)
class SecureSum(Reducer):
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
    sees: ClassVar[str] = "total"
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

    def bind(self, signal: Signal, setting: Setting) -> "Reducer":
        """Refuses what has no bound, cohorts too small to hide in, and rates that no graph stands."""
        faults = []
        for name in signal.averaged:
            if signal.parts[name].domain != "integer":
                faults.append(
                    f"SecureSum adds integers, and '{name}' is real: put Clip(...) and Quantise(bits=16) before it"
                    + ("; buffers: make them FROZEN, or use group norm." if name == "buffers" else ".")
                )
        cohort, fewest = math.ceil(setting.cohort), self.fewest(setting)
        if cohort < 3:
            faults.append(f"SecureSum over {cohort} clients hides nobody: ask at least 3 a round.")
        if self.groups_of is not None and any(part.modulus is not None for part in signal.parts.values()):
            faults.append(
                f"groups_of={self.groups_of} shows the server sums with too few shares of the clients' noise: "
                "leave groups_of out, or take Gaussian instead."
            )
        if setting.sampling.max_staleness:
            faults.append("SecureSum needs rounds that begin together: set max_staleness=0.")
        graph = None
        try:
            graph = self.graph(cohort, fewest) if cohort >= 3 else None
        except ConfigError as error:
            faults.append(f"SecureSum: {error}")
        if faults:
            raise fault(*faults)
        layout = Layout.of(signal, setting.most)
        return _Bound(
            self.threshold, dropout=self.dropout, corrupt=self.corrupt, lying=self.lying, groups_of=self.groups_of,
            layout=layout, degree=None if graph is None else graph.neighbours,
            holders=None if graph is None else graph.threshold, named=fewest,
        )  # fmt: skip

    def settle(self, signal: Signal, setting: Setting) -> Sensitivity:
        """Integers are added exactly; numbers on a grid are rounded to it once."""
        return {name: part.l2 for name, part in signal.parts.items()}

    def server(self, cohort: Sequence[str], seat: Seat) -> Server:
        """The bound reducer's."""
        raise ConfigError("SecureSum must be bound to a signal before it adds: use it in a pipeline.")


def fewest_clients(setting: Setting) -> int:
    """How many clients hide each other in every round of a job, at least: 3, or more where its sampling promises it."""
    who, expected = setting.sampling, setting.cohort
    if who.quorum is not None:
        return max(3, who.quorum)
    if who.kind == "poisson":  # fewer come with a probability below 10⁻²⁰: Chernoff's bound is exp(−t² / 2m)
        return max(3, math.ceil(expected - 10 * math.sqrt(expected)))
    return max(3, math.floor(expected)) if who.kind == "fixed" else 3


@dataclass(frozen=True)
class Layout:
    """Where each tensor of a message lies among the residues.

    Args:
      names: of the tensors, in order.
      shapes: shape and dtype of each in the total.
      steps: what one unit is worth; None for integers.
      most: the largest magnitude of a residue of one contribution.
      fields: runs of residues: one for each tensor.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[tuple[int, ...], str], ...]
    steps: tuple[float | None, ...]
    most: tuple[int, ...]
    fields: secagg.Fields

    @staticmethod
    def of(signal: Signal, clients: int) -> "Layout":
        """The layout for this signal and at most so many contributions."""
        names, shapes, steps, largest, counts, bits = [], [], [], [], [], []
        headroom = math.ceil(math.log2(max(2, clients)))
        for part_name in sorted(signal.parts):
            part = signal.parts[part_name]
            integers = part.domain == "integer"
            for name, (shape, dtype) in part.shapes.items():
                most = math.floor(part.linf) if integers else 1 << min(_FINEST, 62 - headroom)
                bound = part.linf if math.isfinite(part.linf) else _RANGE
                names.append(f"{part_name}/{name}")
                shapes.append((tuple(shape), "int64" if integers else dtype))
                steps.append(None if integers else bound / most)
                largest.append(most)
                counts.append(math.prod(shape))
                bits.append(max(1, math.ceil(math.log2(2 * clients * most + 1))))
        too_wide = [name for name, wide in zip(names, bits, strict=True) if wide > 64]
        if too_wide:
            raise fault(f"the sum of {clients} contributions of {too_wide} overflows 64 bits: lower Quantise's bits.")
        return Layout(
            tuple(names), tuple(shapes), tuple(steps), tuple(largest), secagg.Fields(tuple(counts), tuple(bits))
        )

    def encode(self, message: Tensors) -> list[np.ndarray]:
        """A contribution as residues; what is out of its bounds saturates."""
        runs = []
        words = self.fields.zeros()
        for name, step, most, word in zip(self.names, self.steps, self.most, words, strict=True):
            flat = np.asarray(message[name]).reshape(-1)
            if step is not None:
                flat = np.rint(np.clip(flat / step, -float(most), float(most)))
            runs.append(np.clip(flat.astype(np.int64), -most, most).astype(word.dtype))
        return runs

    def decode(self, runs: Sequence[np.ndarray]) -> Tensors:
        """The total of residues as it was before: integers as int64, numbers in their own type."""
        out: dict[str, Array] = {}
        for name, (shape, dtype), step, bits, run in zip(
            self.names, self.shapes, self.steps, self.fields.bits, runs, strict=True
        ):
            signed = _signed(run, bits)
            out[name] = (signed if step is None else (signed * step).astype(dtype)).reshape(shape)
        return Tensors(out)


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
        told = yield Tensors({"advert": _bytes(client.advertise())})
        roster = secagg.Roster(tuple(json.loads(_raw(told, "names"))), _raw(told, "digests"), self.degree, seat.context)
        sealed = client.share(roster, _by_place(told, "advert"))
        told = yield Tensors({"sealed": _bytes(b"".join(sealed)).reshape(len(sealed), SEALED_BYTES)})
        places, shares = _array(told, "places", 1), _array(told, "sealed", 2)
        packed = client.mask(
            {int(at): share.tobytes() for at, share in zip(places, shares, strict=True)}, self.layout.encode(message)
        )
        told = yield Tensors({"masked/vector": packed})
        told = yield Tensors({"signature": _bytes(client.agree([int(at) for at in _array(told, "survivors", 1)]))})
        yield Tensors({"revealed": client.unmask(_by_place(told, "signature"))})

    def server(self, cohort: Sequence[str], seat: Seat) -> Server:
        """Each group by itself; their sums are added."""
        groups = self._groups(cohort, seat)
        group_of = {name: at for at, group in enumerate(groups) for name in group}
        servers = [secagg.Server(self._terms(seat), seat) for _ in groups]
        answers: Mapping[str, Tensors] | str | None = None
        for leg in range(self.legs):
            while isinstance(event := (yield answers), Arrived):
                answers = None
                try:
                    _take(servers[group_of[event.client]], leg, event)
                except HansaError as error:
                    answers = str(error)
            assert isinstance(event, Closed)
            there = [[name for name in event.survivors if group_of[name] == at] for at in range(len(groups))]
            if leg == self.legs - 1:
                break
            answers = {}
            for server, names in zip(servers, there, strict=True):
                answers.update(_close(server, leg, names))
        totals = [server.total() for server in servers]
        summed = [np.sum(np.stack(runs), axis=0, dtype=runs[0].dtype) for runs in zip(*totals, strict=True)]
        return self.layout.decode(
            [run & run.dtype.type((1 << bits) - 1) for run, bits in zip(summed, self.layout.fields.bits, strict=True)]
        )

    def _groups(self, cohort: Sequence[str], seat: Seat) -> list[list[str]]:
        """Groups of like size, in an order that this conversation draws."""
        count = max(1, len(cohort) // self.groups_of) if self.groups_of else 1
        words = Stream("groups", seat.context).words(len(cohort))
        order = [cohort[int(at)] for at in np.argsort(words, kind="stable")]
        return [sorted(order[at::count]) for at in range(count)]

    def _terms(self, seat: Seat) -> secagg.Terms:
        return secagg.Terms(seat.context, self.layout.fields, self.threshold, self.degree, self.holders, self.named)


def _take(server: secagg.Server, leg: int, event: Arrived) -> None:
    name, message = event.client, event.message
    if leg == 0:
        server.add_advert(name, _raw(message, "advert"))
    elif leg == 1:
        server.add_shares(name, [row.tobytes() for row in _array(message, "sealed", 2)])
    elif leg == 2:
        server.add_masked(name, _array(message, "masked/vector", 1))
    elif leg == 3:
        server.add_agreement(name, _raw(message, "signature"))
    else:
        server.add_revealed(name, _array(message, "revealed", 2))


def _close(server: secagg.Server, leg: int, names: Sequence[str]) -> dict[str, Tensors]:
    if leg == 0:
        answers = {}
        for name, (roster, adverts) in server.close_adverts(names).items():
            listed = {f"advert/{at}": _bytes(advert) for at, advert in adverts.items()}
            names_bytes = _bytes(json.dumps(roster.names).encode())
            answers[name] = Tensors({"names": names_bytes, "digests": _bytes(roster.digests), **listed})
        return answers
    if not names:
        raise void("nobody of a group is left")
    if leg == 1:
        return {
            name: Tensors(
                {
                    "places": np.array(list(sealed), np.int64),
                    "sealed": _bytes(b"".join(sealed.values())).reshape(len(sealed), SEALED_BYTES),
                }
            )
            for name, sealed in server.close_shares(names).items()
        }
    if leg == 2:
        return dict.fromkeys(names, Tensors({"survivors": np.array(server.close_masked(names), np.int64)}))
    return {
        name: Tensors({"none": np.zeros(0, np.uint8), **{f"signature/{at}": _bytes(s) for at, s in signatures.items()}})
        for name, signatures in server.close_agreements(names).items()
    }


def _signed(run: np.ndarray, bits: int) -> np.ndarray:
    """Residues modulo 2^bits as the integers nearest to 0."""
    wide = run.astype(np.uint64) << np.uint64(64 - bits)
    signed: np.ndarray = wide.view(np.int64) >> np.int64(64 - bits)
    return signed


def _bytes(raw: bytes) -> np.ndarray:
    return np.frombuffer(raw, np.uint8)


def _array(message: Tensors, name: str, dimensions: int) -> np.ndarray:
    if name not in message or np.ndim(message[name]) != dimensions:
        raise ProtocolError(f"a message of the secure sum lacks '{name}', or it is misshapen.")
    return np.asarray(message[name])


def _raw(message: Tensors, name: str) -> bytes:
    array = _array(message, name, 1)
    if array.dtype != np.uint8:
        raise ProtocolError(f"'{name}' of a secure sum is no bytes.")
    return array.tobytes()


def _by_place(message: Tensors, prefix: str) -> dict[int, bytes]:
    part = message.part(prefix)
    if not all(name.isdecimal() for name in part):
        raise ProtocolError(f"'{prefix}' of a secure sum names no places.")
    return {int(name): _raw(part, name) for name in part}
