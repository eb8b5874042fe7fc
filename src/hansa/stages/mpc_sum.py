"""A sum by computing parties that do not collude: each client splits its contribution, and nobody holds enough of it.

    client     y = x + PRG(k₁) + … + PRG(kₘ) mod 2ᵐ  ──► server        kⱼ, sealed  ──► helper j (through the server)
    helper j   Σ PRG(kⱼ) over the clients whose y came ──► server
    server     Σ y − Σⱼ (what helper j says) = Σ x

These are additive shares among the server and its helpers, of which all but the server's are as short as a key: clients
send one vector, as for a plain sum, and helpers receive a few bytes a client. Clients need not know each other, and may
drop out at any time at no cost; helpers must stay.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np

from hansa.core.errors import ConfigError, MissingExtra, ProtocolError, SecretRoundVoid
from hansa.core.pipeline import Part, Reducer, Seat, Setting, Signal, Worker, fault
from hansa.core.tensors import Tensors

try:
    from hansa.crypto.agreement import PUBLIC_BYTES, SEAL_BYTES, KeyPair, seal, unseal
except ModuleNotFoundError as error:
    raise MissingExtra("MpcSum", "cryptography", "cryptography") from error

from hansa.crypto.masking import KEY_BYTES, add_mask
from hansa.privacy.threats import Adversary, Sees
from hansa.stages.hidden_sum import (
    NOTHING,
    Aggregator,
    HiddenSum,
    array_of,
    as_array,
    as_names,
    bytes_of,
    fewest_clients,
    names_of,
)
from hansa.stages.residues import Layout

_SIGNATURE = 4096  # with its certificate, at most
_SEALED = PUBLIC_BYTES + SEAL_BYTES + KEY_BYTES


@dataclass(frozen=True)
class MpcSum(HiddenSum):
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

    def faults(self, signal: Signal, setting: Setting) -> Iterator[str]:
        """What no hidden sum can add, and clients that are asked beyond the cohort."""
        yield from super().faults(signal, setting)
        if setting.sampling.over_select:
            yield "MpcSum needs rounds that begin together: set over_select=0."

    def bind(self, signal: Signal, setting: Setting) -> Reducer:
        """With the smallest moduli that hold the sum."""
        if faults := list(self.faults(signal, setting)):
            raise fault(*faults)
        return _Bound(self.helpers, layout=Layout.of(signal, setting.most), named=fewest_clients(setting))


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
        told = yield NOTHING
        runs, sealed = self.layout.encode(message), []
        for name in self.helpers:
            advert = bytes_of(told, f"helper/{name}")
            public, signature = advert[:PUBLIC_BYTES], advert[PUBLIC_BYTES:]
            seat.verify(name, b"mpc sum key\0" + public, signature)
            mine, key = KeyPair.new(seat.entropy), seat.entropy(KEY_BYTES)
            shared = mine.agree(public, b"mpc sum\0" + seat.context)
            sealed.append(as_array(mine.public + seal(shared, key, _label(seat.name, name), seat.entropy)))
            add_mask(runs, key)
        boxes = np.concatenate(sealed)
        signed = as_array(seat.sign(b"mpc sum boxes\0" + boxes.tobytes()))
        packed = self.layout.fields.pack(runs)
        yield Tensors({"masked/vector": packed, "keys/sealed": boxes, "keys/signature": signed})
        yield NOTHING

    def helper(self, seat: Seat) -> Worker:
        """Advertises a key, and adds up the masks of those that the server counted, once for this attempt."""
        pair = KeyPair.new(seat.entropy)
        yield Tensors({"advert": as_array(pair.public + seat.sign(b"mpc sum key\0" + pair.public))})
        told = yield NOTHING
        names, sealed = names_of(told), array_of(told, "sealed", 2)
        if (
            len(names) < self.named
            or len(set(names)) != len(names)
            or sealed.shape != (len(names), len(self.helpers) * _SEALED)
        ):
            raise SecretRoundVoid(f"the server asks for a sum over {len(set(names))} clients: nothing was revealed.")
        seat.once("clients of an mpc sum", json.dumps(sorted(names)).encode())
        total, mine = self.layout.fields.zeros(), list(self.helpers).index(seat.name)
        for at, (name, boxes) in enumerate(zip(names, sealed, strict=True)):
            seat.verify(name, b"mpc sum boxes\0" + boxes.tobytes(), bytes_of(told, f"signature/{at}"))
            raw = boxes[mine * _SEALED : (mine + 1) * _SEALED].tobytes()
            shared = pair.agree(raw[:PUBLIC_BYTES], b"mpc sum\0" + seat.context)
            add_mask(total, unseal(shared, raw[PUBLIC_BYTES:], _label(name, seat.name)))
        yield Tensors({"sum": self.layout.fields.pack(total)})

    def aggregator(self, cohort: Sequence[str], seat: Seat) -> Aggregator:
        """Knows no keys."""
        return _Masked(self)


class _Masked(Aggregator):
    """Adds masked vectors as they come; takes the helpers' sums of masks away."""

    def __init__(self, bound: _Bound) -> None:
        self._bound, self._fields = bound, bound.layout.fields
        self._sum = self._fields.zeros()
        self._adverts: dict[str, bytes] = {}
        self._keys: dict[str, Tensors] = {}  # of those whose vector was added, sealed for the helpers

    def take(self, leg: int, client: str, message: Tensors) -> None:
        helps = client in self._bound.helpers
        if leg == 0 and helps:
            self._adverts[client] = bytes_of(message, "advert")
        elif leg == 1 and not helps:
            self._fields.add_packed(self._sum, array_of(message, "masked/vector", 1))
            self._keys[client] = message.part("keys")
        elif leg == 2 and helps:
            for summed, masks in zip(self._sum, self._fields.unpack(array_of(message, "sum", 1)), strict=True):
                summed -= masks

    def close(self, leg: int, survivors: Sequence[str]) -> Mapping[str, Tensors]:
        if gone := [name for name in self._bound.helpers if name not in survivors]:
            raise SecretRoundVoid(f"the helpers {gone} are gone: nothing of this round was revealed.")
        if leg == 0:
            adverts = {f"helper/{name}": as_array(advert) for name, advert in self._adverts.items()}
            return dict.fromkeys(survivors, Tensors(adverts))
        if leg == 1:
            asked = self._asked([name for name in survivors if name in self._keys])
            return {**dict.fromkeys(survivors, NOTHING), **dict.fromkeys(self._bound.helpers, asked)}
        return {}

    def _asked(self, counted: Sequence[str]) -> Tensors:
        """Whose masks the helpers are asked to add."""
        if set(counted) != set(self._keys):
            raise ProtocolError("a vector was added whose sender is not among the survivors.")
        if len(counted) < self._bound.named:
            raise SecretRoundVoid(f"{len(counted)} clients are left, too few: nothing of this round was revealed.")
        signatures = {f"signature/{at}": self._keys[name]["signature"] for at, name in enumerate(counted)}
        rows = np.stack([array_of(self._keys[name], "sealed", 1) for name in counted])
        return Tensors({"names": as_names(counted), "sealed": rows, **signatures})

    def total(self) -> Tensors:
        return self._bound.layout.decode(self._sum)


def _label(client: str, helper: str) -> bytes:
    return json.dumps(["mpc sum", client, helper]).encode()
