"""A homomorphic sum: the server adds ciphertexts that it cannot open, and one client opens the total.

    0  a client   its key for this round, signed                     server → all   everybody's keys
    1  the first  a CKKS secret key, sealed for each other client    server → each  what was sealed for it
    2  a client   its contribution, encrypted                        server → two   the sum of the ciphertexts
    3  the two    the total, rounded to integers

Clients share one secret key, so whoever of them works with the server opens everybody, and a server that lies gets
single contributions opened: use `SecureSum` where either is a worry. What is gained is little: no masks among clients.

CKKS gives approximate numbers whose error depends on the key, and who sees it can find the key (Li and Micciancio
2021, https://eprint.iacr.org/2020/1533). Here contributions are integers and their error is far below 1/2: the openers
round it away, so the total is exact and says nothing of the key.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from hansa.core.errors import MissingExtra, ProtocolError, SecretRoundVoid
from hansa.core.pipeline import Part, Reducer, Seat, Setting, Signal, Worker, fault
from hansa.core.tensors import Shapes, Tensors

try:
    import tenseal
except ModuleNotFoundError as error:
    raise MissingExtra("HeSum", "tenseal", "tenseal") from error

from hansa.crypto.agreement import PUBLIC_BYTES, KeyPair, seal, unseal
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
    names_of,
)
from hansa.stages.residues import Grid, grids_of

_DEGREE, _MODULI, _SLOTS = 4096, [50, 50], 2048  # 100 bits: 128-bit security allows 109 at this degree
_SCALE_BITS = 20
_TOTAL_BITS = 27  # of the largest total: 2^(27 + 20) is below the first modulus, and the error below 1/8
_OPENERS = 2
_KEY = b"he sum key\0"  # what is signed begins with
_WIDEST = 2.0**20  # of numbers without a declared bound: metrics beyond it saturate
_CHUNK_BYTES = 66_000  # of 2048 slots: 59 KB, and room for what compression does not save


@dataclass(frozen=True)
class HeSum(HiddenSum):
    """Adds contributions under CKKS encryption, to exact integers.

    Args:
      encrypted: names of the tensors of `value` to encrypt; None encrypts all. The server sees the others of each
        client in the clear, as with `Sum`.

    Guarantees:
      A server that follows the protocol sees ciphertexts and the total, while no client works with it: a single one
      that does can open all clients. One that lies can hand a single client's ciphertext to an opener, who cannot tell
      it from a total. Two clients see the total, too. Metrics and weights are encrypted like the rest.

    Source: Cheon, Kim, Kim and Song 2017, https://eprint.iacr.org/2016/421, through TenSEAL
    """

    encrypted: Sequence[str] | None = None

    legs: ClassVar[int] = 4
    counted: ClassVar[int] = 2
    threats: ClassVar[tuple[Sees, ...]] = (
        Sees(
            Adversary.SERVER,
            "the total; of each worker, the tensors that `encrypted` leaves out",
            "not a single client works with it",
        ),
        Sees(Adversary.LIAR, "**everything**: it can have a single contribution opened as if it were a total"),
        Sees(
            Adversary.WORKER,
            "the models of its rounds; the total, if it is one of the two that open it",
            "the server does not work with it",
        ),
    )

    def __post_init__(self) -> None:
        if self.encrypted is not None:
            object.__setattr__(self, "encrypted", tuple(self.encrypted))

    def faults(self, signal: Signal, setting: Setting) -> Iterator[str]:
        """What no hidden sum can add, totals beyond 27 bits, and unknown names."""
        yield from super().faults(signal, setting)
        most = _most(setting)
        for name in signal.averaged:
            part = signal.parts[name]
            if part.domain == "integer" and part.linf > most:
                bits = int(math.log2(max(1, most))) + 1
                yield f"the sum of {setting.most} contributions to '{name}' overflows: use Quantise(bits={bits})."
        known = set(signal.parts["value"].shapes) if "value" in signal.parts else set()
        unknown = sorted(set(self.encrypted or ()) - known) if known else []
        if unknown:
            yield f"encrypted={unknown} are no tensors of the update: choose from {sorted(known)[:8]}."

    def bind(self, signal: Signal, setting: Setting) -> Reducer:
        """With the grids on which the total is exact."""
        if faults := list(self.faults(signal, setting)):
            raise fault(*faults)
        return _Bound(self.encrypted, plan=_Plan.of(signal, self.encrypted, _most(setting)))


def _most(setting: Setting) -> int:
    """The largest integer of one contribution."""
    return (1 << _TOTAL_BITS) // max(1, setting.most)


@dataclass(frozen=True)
class _Plan:
    """What is encrypted, one tensor after another, and what is not."""

    hidden: tuple[Grid, ...]
    open: Shapes

    @staticmethod
    def of(signal: Signal, encrypted: Sequence[str] | None, most: int) -> "_Plan":
        shown = [] if encrypted is None else [name for name in signal.shapes if name.startswith("value/")]
        clear = {name: signal.shapes[name] for name in shown if name.removeprefix("value/") not in (encrypted or ())}
        hidden = tuple(grid for grid in grids_of(signal, most, _WIDEST) if grid.name not in clear)
        return _Plan(hidden, clear)

    @property
    def count(self) -> int:
        """Integers to encrypt."""
        return sum(grid.count for grid in self.hidden)

    @property
    def chunks(self) -> int:
        """Ciphertexts."""
        return -(-self.count // _SLOTS)

    def encode(self, message: Tensors) -> np.ndarray:
        """All hidden tensors as one vector of integers: int64, shape (count,)."""
        return np.concatenate([np.zeros(0, np.int64), *(grid.encode(message[grid.name]) for grid in self.hidden)])

    def decode(self, total: np.ndarray) -> dict[str, np.ndarray]:
        """The opposite, of a total."""
        ends = np.cumsum([grid.count for grid in self.hidden], dtype=np.int64)
        return {grid.name: grid.decode(run) for grid, run in zip(self.hidden, np.split(total, ends), strict=False)}


@dataclass(frozen=True)
class _Bound(HeSum):
    plan: _Plan = field(kw_only=True, repr=False)

    def wire(self, signal: Signal, setting: Setting) -> Signal:
        """Ciphertexts one after another with their lengths, and what is not encrypted."""
        size = self.plan.chunks * _CHUNK_BYTES
        # A ciphertext is compressed: about 230 bits a slot.
        bits = 8 * self.plan.chunks * 58_970 / size if size else 8.0
        cipher = {"cipher": Part(shapes={"text": ((size,), "uint8")}, domain="bytes", bits=bits)}
        lengths = {"lengths": Part(shapes={"each": ((self.plan.chunks,), "int64")}, domain="integer", bits=64.0)}
        parts = {**cipher, **lengths}
        if self.plan.open:
            shapes = {name.split("/", 1)[1]: shape for name, shape in self.plan.open.items()}
            parts["value"] = replace(signal.parts["value"], shapes=shapes)
        return replace(signal, parts=parts)

    def worker(self, message: Tensors, seat: Seat) -> Worker:
        """Four messages; two clients open the total."""
        pair = KeyPair.new(seat.entropy)
        told = yield Tensors({"advert": as_array(pair.public + seat.sign(_KEY + pair.public))})
        names, keys = _roster(told, seat)
        leader, purpose = names[0], b"he sum\0" + seat.context
        if seat.name == leader:
            context = _new_context()
            content = context.serialize(save_secret_key=True, save_galois_keys=False, save_relin_keys=False)
            sealed = {}
            for at, name in enumerate(names[1:], start=1):
                box = seal(pair.agree(keys[name], purpose), content, _label(leader, name), seat.entropy)
                sealed[f"sealed/{at}"] = as_array(box)
            told = yield NOTHING.updated(sealed)
        else:
            told = yield NOTHING
            content = unseal(pair.agree(keys[leader], purpose), bytes_of(told, "sealed"), _label(leader, seat.name))
            context = tenseal.context_from(content)
        told = yield self._encrypted(message, context)
        yield Tensors({"total": self._opened(told, context)}) if "text" in told else NOTHING

    def aggregator(self, cohort: Sequence[str], seat: Seat) -> Aggregator:
        """Its context has no secret key."""
        return _Ciphertexts(self.plan, seat)

    def _encrypted(self, message: Tensors, context: Any) -> Tensors:
        """One chunk of slots after another, so that memory holds one ciphertext more than what is sent."""
        vector, starts = self.plan.encode(message), range(0, self.plan.count, _SLOTS)
        texts = [tenseal.ckks_vector(context, vector[at : at + _SLOTS]).serialize() for at in starts]
        text, lengths = _joined(texts)
        return Tensors(
            {"cipher/text": text, "lengths/each": lengths, **{name: message[name] for name in self.plan.open}}
        )

    def _opened(self, told: Tensors, context: Any) -> np.ndarray:
        texts = _parted(bytes_of(told, "text"), array_of(told, "lengths", 1), self.plan.chunks)
        chunks = [np.rint(tenseal.ckks_vector_from(context, text).decrypt()).astype(np.int64) for text in texts]
        return np.concatenate([np.zeros(0, np.int64), *chunks])


class _Ciphertexts(Aggregator):
    """Adds ciphertexts as they come; what two clients open of the sum must agree."""

    def __init__(self, plan: _Plan, seat: Seat) -> None:
        self._plan, self._seat, self._context = plan, seat, _public_context()
        self._adverts: dict[str, bytes] = {}
        self._order: list[str] = []  # of the clients, whose first makes the key
        self._sealed: dict[int, bytes] = {}  # by place in that order
        self._sum: list[Any] = []
        self._clear: dict[str, np.ndarray] = {}
        self._opened: list[np.ndarray] = []

    def take(self, leg: int, client: str, message: Tensors) -> None:
        if leg == 0:
            _verified(client, advert := bytes_of(message, "advert"), self._seat)
            self._adverts[client] = advert
        elif leg == 1 and client == self._order[0]:
            self._sealed = bytes_by_place(message, "sealed")
        elif leg == 2:
            self._add(message)
        elif leg == 3 and "total" in message:
            self._opened.append(self._checked(array_of(message, "total", 1)))

    def _add(self, message: Tensors) -> None:
        texts = _parted(bytes_of(message, "cipher/text"), array_of(message, "lengths/each", 1), self._plan.chunks)
        try:
            vectors = [tenseal.ckks_vector_from(self._context, text) for text in texts]
        except (ValueError, RuntimeError):
            raise ProtocolError("a ciphertext cannot be read.") from None
        self._sum = [a + b for a, b in zip(self._sum, vectors, strict=True)] if self._sum else vectors
        for name in self._plan.open:
            given = np.asarray(message[name]).astype(np.int64)
            self._clear[name] = self._clear[name] + given if name in self._clear else given

    def close(self, leg: int, survivors: Sequence[str]) -> Mapping[str, Tensors]:
        if len(survivors) < (1 if leg == 3 else 3):
            raise SecretRoundVoid(f"{len(survivors)} clients are left, too few: nothing was revealed.")
        if leg == 0:
            self._order = list(survivors)
            adverts = {f"advert/{at}": as_array(self._adverts[name]) for at, name in enumerate(survivors)}
            return dict.fromkeys(survivors, Tensors({"names": as_names(survivors), **adverts}))
        if leg == 1:
            if self._order[0] not in survivors:
                raise SecretRoundVoid(f"'{self._order[0]}', who makes the key, is gone: nothing was revealed.")
            place = {name: at for at, name in enumerate(self._order)}
            boxes = {name: self._sealed.get(place[name]) for name in survivors}
            return {name: Tensors({"sealed": as_array(box)}) if box else NOTHING for name, box in boxes.items()}
        if leg == 2:
            text, lengths = _joined([vector.serialize() for vector in self._sum])
            openers = dict.fromkeys(survivors[:_OPENERS], Tensors({"text": text, "lengths": lengths}))
            return dict.fromkeys(survivors, NOTHING) | openers
        return {}

    def _checked(self, total: np.ndarray) -> np.ndarray:
        if len(total) < self._plan.count or total.dtype != np.int64:
            raise ProtocolError(f"a total of {len(total)} numbers, where {self._plan.count} were encrypted.")
        return total[: self._plan.count]

    def total(self) -> Tensors:
        if not self._opened or any(not np.array_equal(each, self._opened[0]) for each in self._opened):
            raise SecretRoundVoid("the clients that open the total are gone, or do not agree: it is not used.")
        return Tensors({**self._plan.decode(self._opened[0]), **self._clear})


def _roster(told: Tensors, seat: Seat) -> tuple[tuple[str, ...], dict[str, bytes]]:
    """Who shares one key, and each one's own, signed."""
    names = names_of(told)
    if len(names) < 3 or seat.name not in names or len(set(names)) != len(names):
        raise SecretRoundVoid(f"the server names {len(names)} clients for one key: nothing was sent.")
    return names, {name: _verified(name, bytes_of(told, f"advert/{at}"), seat) for at, name in enumerate(names)}


def _verified(client: str, advert: bytes, seat: Seat) -> bytes:
    """The public key of an advert; IdentityError unless its client signed it."""
    seat.verify(client, _KEY + advert[:PUBLIC_BYTES], advert[PUBLIC_BYTES:])
    return advert[:PUBLIC_BYTES]


def _new_context(kind: Any = tenseal.ENCRYPTION_TYPE.SYMMETRIC) -> Any:
    context = tenseal.context(tenseal.SCHEME_TYPE.CKKS, _DEGREE, coeff_mod_bit_sizes=_MODULI, encryption_type=kind)
    context.global_scale = 2.0**_SCALE_BITS
    return context


def _public_context() -> Any:
    """The parameters, with which ciphertexts can be added; its own key is thrown away, and opens nobody's."""
    context = _new_context(tenseal.ENCRYPTION_TYPE.ASYMMETRIC)
    context.make_context_public()
    return context


def _joined(texts: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Ciphertexts one after another, and their lengths."""
    return as_array(b"".join(texts)), np.array([len(text) for text in texts], np.int64)


def _parted(text: bytes, lengths: np.ndarray, count: int) -> list[bytes]:
    """The opposite; ProtocolError unless there are so many of them."""
    if len(lengths) != count or int(lengths.sum()) != len(text) or (lengths < 1).any():
        raise ProtocolError("the ciphertexts' lengths do not fill the message.")
    ends = np.cumsum(lengths)
    return [text[int(end - length) : int(end)] for length, end in zip(lengths, ends, strict=True)]


def _label(leader: str, client: str) -> bytes:
    return json.dumps(["he sum", leader, client]).encode()
