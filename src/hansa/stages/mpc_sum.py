"""A sum by computing parties that do not collude: each client splits its contribution, and nobody holds enough of it.

    client     y = x + PRG(k₁) + … + PRG(kₘ) mod 2ᵐ  ──► server        kⱼ, sealed  ──► helper j (through the server)
    helper j   Σ PRG(kⱼ) over the clients whose y came ──► server
    server     Σ y − Σⱼ (what helper j says) = Σ x

These are additive shares among the server and its helpers, of which all but the server's are as short as a key: clients
send one vector, as for a plain sum, and helpers receive a few bytes a client. Clients need not know each other, and may
drop out at any time at no cost; helpers must stay.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

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
    from hansa.crypto.agreement import PUBLIC_BYTES, SEAL_BYTES, KeyPair, seal, unseal
except ModuleNotFoundError as error:
    raise MissingExtra("MpcSum", "cryptography", "cryptography") from error

from hansa.crypto.masking import KEY_BYTES, add_mask
from hansa.privacy.threats import Adversary, Sees
from hansa.stages.secure_sum import Layout, _array, _bytes, _raw, fewest_clients

_SIGNATURE = 4096  # with its certificate, at most
_SEALED = PUBLIC_BYTES + SEAL_BYTES + KEY_BYTES


@dataclass(frozen=True)
class MpcSum(Reducer):
    """The total of a cohort, computed by the server together with helpers that it does not command.

    Args:
      helpers: names of the computing parties beside the server, enrolled as workers and started with no data. One is
        enough to hide contributions from the server; with two, it takes both and the server to open one.

    Guarantees:
      The server sees uniform noise of each client and the total of those that it counted, while at least one helper
      does not work with it. Helpers see who takes part, and nothing of any contribution. A helper gives one sum for
      one attempt, over at least three clients that signed their keys. A helper that lies spoils the total unnoticed.

    Source: Dahl et al. 2018 (Pond's additive sharing, here with shares from keys), https://arxiv.org/abs/1810.08130
    """

    helpers: Sequence[str] = ("helper",)

    legs: ClassVar[int] = 3
    counted: ClassVar[int] = 1
    sees: ClassVar[str] = "total"
    threats: ClassVar[tuple[Sees, ...]] = (
        Sees(Adversary.SERVER, "the total; who took part", "at least one helper does not work with it"),
        Sees(
            Adversary.LIAR,
            "one total for each attempt, over clients of its choice, as many as a round has at least",
            "at least one helper follows the protocol, and two of those clients do not work with the server",
        ),
        Sees(
            Adversary.HELPER,
            "who takes part; nothing of a contribution, nor of the total",
            "the server does not work with it, or another helper does not",
        ),
        Sees(Adversary.WORKER, "the models of its rounds", "the server does not work with it"),
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "helpers", tuple(self.helpers))
        if not self.helpers or len(set(self.helpers)) != len(self.helpers):
            raise ConfigError(f"helpers={self.helpers}: name at least one party, each once.")

    def bind(self, signal: Signal, setting: Setting) -> Reducer:
        """Refuses what is not made of integers, staleness, and cohorts too small to hide in."""
        faults = [
            f"MpcSum adds integers, and '{name}' is real: put Clip(...) and Quantise(bits=16) before it."
            for name in signal.averaged
            if signal.parts[name].domain != "integer"
        ]
        if setting.cohort < 3:
            faults.append(f"MpcSum over {setting.cohort:g} clients hides nobody: ask at least 3 a round.")
        if setting.sampling.max_staleness or setting.sampling.over_select:
            faults.append("MpcSum needs rounds that begin together: set max_staleness=0 and over_select=0.")
        if faults:
            raise fault(*faults)
        return _Bound(self.helpers, layout=Layout.of(signal, setting.most), named=fewest_clients(setting))

    def settle(self, signal: Signal, setting: Setting) -> Sensitivity:
        """Integers are added exactly."""
        return {name: part.l2 for name, part in signal.parts.items()}

    def server(self, cohort: Sequence[str], seat: Seat) -> Server:
        """The bound reducer's."""
        raise ConfigError("MpcSum must be bound to a signal before it adds: use it in a pipeline.")


@dataclass(frozen=True)
class _Bound(MpcSum):
    layout: Layout = field(kw_only=True, repr=False)
    named: int = field(default=3, kw_only=True)

    def wire(self, signal: Signal, setting: Setting) -> Signal:
        """One vector of bytes, and a sealed key for each helper."""
        size = self.layout.fields.size_bytes
        masked = Part(shapes={"vector": ((size,), "uint8")}, domain="bytes", bits=8.0)
        boxes = {"sealed": ((len(self.helpers) * _SEALED,), "uint8"), "signature": ((_SIGNATURE,), "uint8")}
        keys = Part(shapes=boxes, domain="bytes", bits=8.0)
        return replace(signal, parts={"masked": masked, "keys": keys})

    def worker(self, message: Tensors, seat: Seat) -> Worker:
        """Waits for the helpers' keys, and sends the masked contribution."""
        told = yield Tensors({"here": np.zeros(0, np.uint8)})
        runs, sealed = self.layout.encode(message), []
        for name in self.helpers:
            advert = _raw(told, f"helper/{name}")
            public, signature = advert[:PUBLIC_BYTES], advert[PUBLIC_BYTES:]
            seat.verify(name, b"mpc sum key\0" + public, signature)
            mine, key = KeyPair.new(seat.entropy), seat.entropy(KEY_BYTES)
            shared = mine.agree(public, b"mpc sum\0" + seat.context)
            sealed.append(_bytes(mine.public + seal(shared, key, _label(seat.name, name), seat.entropy)))
            add_mask(runs, key)
        boxes = np.concatenate(sealed)
        signed = _bytes(seat.sign(b"mpc sum boxes\0" + boxes.tobytes()))
        packed = self.layout.fields.pack(runs)
        yield Tensors({"masked/vector": packed, "keys/sealed": boxes, "keys/signature": signed})
        yield Tensors({"here": np.zeros(0, np.uint8)})

    def helper(self, seat: Seat) -> Worker:
        """Advertises a key, and adds up the masks of those that the server counted, once for this attempt."""
        pair = KeyPair.new(seat.entropy)
        yield Tensors({"advert": _bytes(pair.public + seat.sign(b"mpc sum key\0" + pair.public))})
        told = yield Tensors({"here": np.zeros(0, np.uint8)})
        names, sealed = tuple(json.loads(_raw(told, "names"))), _array(told, "sealed", 2)
        if (
            len(names) < self.named
            or len(set(names)) != len(names)
            or sealed.shape != (len(names), len(self.helpers) * _SEALED)
        ):
            raise SecretRoundVoid(f"the server asks for a sum over {len(set(names))} clients: nothing was revealed.")
        seat.once("clients of an mpc sum", json.dumps(sorted(names)).encode())
        total, mine = self.layout.fields.zeros(), list(self.helpers).index(seat.name)
        for at, (name, boxes) in enumerate(zip(names, sealed, strict=True)):
            seat.verify(name, b"mpc sum boxes\0" + boxes.tobytes(), _raw(told, f"signature/{at}"))
            raw = boxes[mine * _SEALED : (mine + 1) * _SEALED].tobytes()
            shared = pair.agree(raw[:PUBLIC_BYTES], b"mpc sum\0" + seat.context)
            add_mask(total, unseal(shared, raw[PUBLIC_BYTES:], _label(name, seat.name)))
        yield Tensors({"sum": self.layout.fields.pack(total)})

    def server(self, cohort: Sequence[str], seat: Seat) -> Server:
        """Adds masked vectors as they come; takes the helpers' sums of masks away."""
        fields, total = self.layout.fields, self.layout.fields.zeros()
        adverts: dict[str, bytes] = {}
        boxes: dict[str, Tensors] = {}
        answers: Mapping[str, Tensors] | str | None = None
        masks: dict[str, list[np.ndarray]] = {}
        for leg in range(self.legs):
            while isinstance(event := (yield answers), Arrived):
                answers = None
                try:
                    if leg == 0 and event.client in self.helpers:
                        adverts[event.client] = _raw(event.message, "advert")
                    elif leg == 1 and event.client not in self.helpers:
                        for summed, run in zip(
                            total, fields.unpack(_array(event.message, "masked/vector", 1)), strict=True
                        ):
                            summed += run
                        boxes[event.client] = event.message.part("keys")
                    elif leg == 2 and event.client in self.helpers:
                        masks[event.client] = fields.unpack(_array(event.message, "sum", 1))
                except HansaError as error:
                    answers = str(error)
            assert isinstance(event, Closed)
            gone = [name for name in self.helpers if name not in event.survivors]
            if gone:
                raise SecretRoundVoid(f"the helpers {gone} are gone: nothing of this round was revealed.")
            if leg == 0:
                told = Tensors({f"helper/{name}": _bytes(advert) for name, advert in adverts.items()})
                answers = dict.fromkeys(event.survivors, told)
            elif leg == 1:
                counted = [name for name in event.survivors if name in boxes]
                if set(counted) != set(boxes):
                    raise ProtocolError("a vector was added whose sender is not among the survivors.")
                if len(counted) < self.named:
                    raise SecretRoundVoid(
                        f"{len(counted)} clients are left, too few: nothing of this round was revealed."
                    )
                answers = dict.fromkeys(event.survivors, Tensors({"done": np.zeros(0, np.uint8)}))
                signatures = {f"signature/{at}": boxes[name]["signature"] for at, name in enumerate(counted)}
                rows = np.stack([_array(boxes[name], "sealed", 1) for name in counted])
                asked = Tensors({"names": _bytes(json.dumps(counted).encode()), "sealed": rows, **signatures})
                answers.update(dict.fromkeys(self.helpers, asked))
        for runs in masks.values():
            for summed, run in zip(total, runs, strict=True):
                summed -= run
        bits = fields.bits
        return self.layout.decode(
            [run & run.dtype.type((1 << each) - 1) for run, each in zip(total, bits, strict=True)]
        )


def _label(client: str, helper: str) -> bytes:
    return json.dumps(["mpc sum", client, helper]).encode()
