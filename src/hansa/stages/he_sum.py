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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from hansa.core.errors import ConfigError, HansaError, MissingExtra, ProtocolError, SecretRoundVoid
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
from hansa.core.tensors import Tensors

try:
    import tenseal
except ModuleNotFoundError as error:
    raise MissingExtra("HeSum", "tenseal", "tenseal") from error

from hansa.crypto.agreement import PUBLIC_BYTES, KeyPair, seal, unseal
from hansa.privacy.threats import Adversary, Sees
from hansa.stages.secure_sum import _array, _bytes, _raw

_DEGREE, _MODULI, _SLOTS = 4096, [50, 50], 2048  # 100 bits: 128-bit security allows 109 at this degree
_SCALE_BITS = 20
_TOTAL_BITS = 27  # of the largest total: 2^(27 + 20) is below the first modulus, and the error below 1/8
_OPENERS = 2
_CHUNK_BYTES = 66_000  # of 2048 slots: 59 KB, and room for what compression does not save


@dataclass(frozen=True)
class HeSum(Reducer):
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
    sees: ClassVar[str] = "total"
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

    def bind(self, signal: Signal, setting: Setting) -> Reducer:
        """Refuses reals, totals beyond 27 bits, unknown names, and cohorts too small to hide in."""
        faults = []
        most = (1 << _TOTAL_BITS) // max(1, setting.most)
        for name in signal.averaged:
            part = signal.parts[name]
            if part.domain != "integer":
                faults.append(
                    f"HeSum adds integers, and '{name}' is real: put Clip(...) and Quantise(bits=16) before it."
                )
            elif part.linf > most:
                bits = int(math.log2(max(1, most))) + 1
                faults.append(
                    f"the sum of {setting.most} contributions to '{name}' overflows: use Quantise(bits={bits})."
                )
        known = set(signal.parts["value"].shapes) if "value" in signal.parts else set()
        unknown = sorted(set(self.encrypted or ()) - known) if known else []
        if unknown:
            faults.append(f"encrypted={unknown} are no tensors of the update: choose from {sorted(known)[:8]}.")
        if setting.cohort < 3:
            faults.append(f"HeSum over {setting.cohort:g} clients hides nobody: ask at least 3 a round.")
        if setting.sampling.max_staleness:
            faults.append("HeSum needs rounds that begin together: set max_staleness=0.")
        if faults:
            raise fault(*faults)
        return _Bound(self.encrypted, plan=_Plan.of(signal, self.encrypted, most))

    def settle(self, signal: Signal, setting: Setting) -> Sensitivity:
        """Integers are added exactly."""
        return {name: part.l2 for name, part in signal.parts.items()}

    def server(self, cohort: Sequence[str], seat: Seat) -> Server:
        """The bound reducer's."""
        raise ConfigError("HeSum must be bound to a signal before it adds: use it in a pipeline.")


@dataclass(frozen=True)
class _Plan:
    """What is encrypted and how: tensor -> its shape, its type in the total, and what one unit is worth."""

    hidden: Mapping[str, tuple[tuple[int, ...], str, float]]
    open: Mapping[str, tuple[tuple[int, ...], str]]
    largest: Mapping[str, int]

    @staticmethod
    def of(signal: Signal, encrypted: Sequence[str] | None, most: int) -> "_Plan":
        hidden, clear, largest = {}, {}, {}
        for part_name in sorted(signal.parts):
            part = signal.parts[part_name]
            for name, (shape, dtype) in part.shapes.items():
                whole = f"{part_name}/{name}"
                if encrypted is not None and part_name == "value" and name not in encrypted:
                    clear[whole] = (tuple(shape), dtype)
                elif part.domain == "integer":
                    hidden[whole] = (tuple(shape), "int64", 0.0)
                    largest[whole] = math.floor(part.linf)
                else:
                    bound = part.linf if math.isfinite(part.linf) else 2.0**20
                    hidden[whole] = (tuple(shape), dtype, bound / most)
                    largest[whole] = most
        return _Plan(hidden, clear, largest)

    @property
    def count(self) -> int:
        """Integers to encrypt."""
        return sum(math.prod(shape) for shape, _, _ in self.hidden.values())

    @property
    def chunks(self) -> int:
        """Ciphertexts."""
        return -(-self.count // _SLOTS)

    def encode(self, message: Tensors) -> np.ndarray:
        """All hidden tensors as one vector of integers; what is out of its bounds saturates."""
        runs = []
        for name, (_, _, step) in self.hidden.items():
            flat = np.asarray(message[name], np.float64).reshape(-1)
            flat = np.rint(flat / step) if step else flat
            runs.append(np.clip(flat, -self.largest[name], self.largest[name]))
        return np.concatenate(runs) if runs else np.zeros(0)

    def decode(self, vector: np.ndarray) -> dict[str, np.ndarray]:
        """The opposite, of a total."""
        out, at = {}, 0
        for name, (shape, dtype, step) in self.hidden.items():
            size = math.prod(shape)
            run = vector[at : at + size]
            out[name] = (run * step if step else run).astype(dtype).reshape(shape)
            at += size
        return out


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
        told = yield Tensors({"advert": _bytes(pair.public + seat.sign(b"he sum key\0" + pair.public))})
        names = tuple(json.loads(_raw(told, "names")))
        if len(names) < 3 or seat.name not in names or len(set(names)) != len(names):
            raise SecretRoundVoid(f"the server names {len(names)} clients for one key: nothing was sent.")
        keys = {}
        for at, name in enumerate(names):
            advert = _raw(told, f"advert/{at}")
            seat.verify(name, b"he sum key\0" + advert[:PUBLIC_BYTES], advert[PUBLIC_BYTES:])
            keys[name] = advert[:PUBLIC_BYTES]
        purpose = b"he sum\0" + seat.context
        leader = names[0]
        if seat.name == leader:
            context = _new_context()
            content = context.serialize(save_secret_key=True, save_galois_keys=False, save_relin_keys=False)
            sealed = {
                f"sealed/{at}": _bytes(
                    seal(pair.agree(keys[name], purpose), content, _label(leader, name), seat.entropy)
                )
                for at, name in enumerate(names)
                if name != leader
            }
            yield Tensors({"none": np.zeros(0, np.uint8), **sealed})
        else:
            told = yield Tensors({"none": np.zeros(0, np.uint8)})
            shared = pair.agree(keys[leader], purpose)
            content = unseal(shared, _raw(told, "sealed"), _label(leader, seat.name))
            context = tenseal.context_from(content)
        told = yield self._encrypted(message, context)
        if "text" in told:
            yield Tensors({"total": self._opened(told, context)})
        else:
            yield Tensors({"none": np.zeros(0, np.uint8)})

    def server(self, cohort: Sequence[str], seat: Seat) -> Server:
        """Adds ciphertexts as they come; its context has no secret key."""
        context = _public_context()
        total: list[Any] = []
        clear: dict[str, np.ndarray] = {}
        adverts: dict[str, bytes] = {}
        sealed: dict[str, np.ndarray] = {}
        opened: list[np.ndarray] = []
        order: list[str] = []
        answers: Mapping[str, Tensors] | str | None = None
        for leg in range(self.legs):
            while isinstance(event := (yield answers), Arrived):
                answers = None
                try:
                    if leg == 0:
                        adverts[event.client] = self._advert(event, seat)
                    elif leg == 1 and event.client == order[0]:
                        sealed = {order[int(at)]: event.message[f"sealed/{at}"] for at in event.message.part("sealed")}
                    elif leg == 2:
                        total = _added(total, _texts(event.message, self.plan.chunks), context)
                        for name in self.plan.open:
                            given = np.asarray(event.message[name]).astype(np.int64)
                            clear[name] = clear[name] + given if name in clear else given
                    elif leg == 3 and "total" in event.message:
                        opened.append(self._checked(_array(event.message, "total", 1)))
                except HansaError as error:
                    answers = str(error)
            assert isinstance(event, Closed)
            if len(event.survivors) < (1 if leg == self.legs - 1 else 3):
                raise SecretRoundVoid(f"{len(event.survivors)} clients are left, too few: nothing was revealed.")
            answers = self._next(leg, event.survivors, order, adverts, sealed, total)
        if not opened or any(not np.array_equal(each, opened[0]) for each in opened):
            raise SecretRoundVoid("the clients that open the total are gone, or do not agree: it is not used.")
        return Tensors({**self.plan.decode(opened[0]), **clear})

    def _next(
        self, leg: int, survivors: Sequence[str], order: list[str], adverts: Mapping[str, bytes],
        sealed: Mapping[str, np.ndarray], total: Sequence[Any],
    ) -> dict[str, Tensors]:  # fmt: skip
        nothing = Tensors({"none": np.zeros(0, np.uint8)})
        if leg == 0:
            order[:] = survivors
            listed = {f"advert/{at}": _bytes(adverts[name]) for at, name in enumerate(order)}
            return dict.fromkeys(order, Tensors({"names": _bytes(json.dumps(order).encode()), **listed}))
        if leg == 1:
            if order[0] not in survivors:
                raise SecretRoundVoid(f"'{order[0]}', who makes the key, is gone: nothing was revealed.")
            return {name: Tensors({"sealed": sealed[name]}) if name in sealed else nothing for name in survivors}
        if leg == 2:
            texts = [vector.serialize() for vector in total]
            lengths = np.array([len(text) for text in texts], np.int64)
            asked = Tensors({"text": _bytes(b"".join(texts)), "lengths": lengths})
            return {name: asked if at < _OPENERS else nothing for at, name in enumerate(survivors)}
        return {}

    def _advert(self, event: Arrived, seat: Seat) -> bytes:
        raw = _raw(event.message, "advert")
        seat.verify(event.client, b"he sum key\0" + raw[:PUBLIC_BYTES], raw[PUBLIC_BYTES:])
        return raw

    def _encrypted(self, message: Tensors, context: Any) -> Tensors:
        """One chunk of slots after another, so that memory holds one ciphertext more than what is sent."""
        vector, texts = self.plan.encode(message), []
        for at in range(0, len(vector), _SLOTS):
            texts.append(tenseal.ckks_vector(context, vector[at : at + _SLOTS]).serialize())
        lengths = np.array([len(text) for text in texts], np.int64)
        clear = {name: message[name] for name in self.plan.open}
        return Tensors({"cipher/text": _bytes(b"".join(texts)), "lengths/each": lengths, **clear})

    def _opened(self, told: Tensors, context: Any) -> np.ndarray:
        out, at, text = [], 0, _raw(told, "text")
        for length in _array(told, "lengths", 1):
            out.append(np.rint(tenseal.ckks_vector_from(context, text[at : at + int(length)]).decrypt()))
            at += int(length)
        total = np.concatenate(out) if out else np.zeros(0)
        return self._checked(total.astype(np.int64))

    def _checked(self, total: np.ndarray) -> np.ndarray:
        if len(total) < self.plan.count or total.dtype != np.int64:
            raise ProtocolError(f"a total of {len(total)} numbers, where {self.plan.count} were encrypted.")
        return total[: self.plan.count]


def _new_context(kind: Any = tenseal.ENCRYPTION_TYPE.SYMMETRIC) -> Any:
    context = tenseal.context(tenseal.SCHEME_TYPE.CKKS, _DEGREE, coeff_mod_bit_sizes=_MODULI, encryption_type=kind)
    context.global_scale = 2.0**_SCALE_BITS
    return context


def _public_context() -> Any:
    """The parameters, with which ciphertexts can be added; its own key is thrown away, and opens nobody's."""
    context = _new_context(tenseal.ENCRYPTION_TYPE.ASYMMETRIC)
    context.make_context_public()
    return context


def _texts(message: Tensors, chunks: int) -> list[bytes]:
    lengths, text = _array(message, "lengths/each", 1), _raw(message, "cipher/text")
    if len(lengths) != chunks or int(lengths.sum()) != len(text) or (lengths < 1).any():
        raise ProtocolError("the ciphertexts' lengths do not fill the message.")
    ends = np.cumsum(lengths)
    return [text[int(end - length) : int(end)] for length, end in zip(lengths, ends, strict=True)]


def _added(total: list[Any], texts: Sequence[bytes], context: Any) -> list[Any]:
    try:
        vectors = [tenseal.ckks_vector_from(context, text) for text in texts]
    except (ValueError, RuntimeError):
        raise ProtocolError("a ciphertext cannot be read.") from None
    return [a + b for a, b in zip(total, vectors, strict=True)] if total else vectors


def _label(leader: str, client: str) -> bytes:
    return json.dumps(["he sum", leader, client]).encode()
