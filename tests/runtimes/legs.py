"""A reducer of five legs in the shape of a secure sum, whose sum is not secret: it shows what runtimes carry.

    0 hello, signed    1 everybody's hellos were right    2 the contribution    3 who is alive, signed    4 all agree

The file is also copied beside job files, and so imports only Hansa.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hansa.core.errors import IdentityError, SecretRoundVoid
from hansa.core.pipeline import Arrived, Closed, Reducer, Seat, Server, Worker
from hansa.core.tensors import Tensors


def signed(seat: Seat, content: bytes) -> Tensors:
    return Tensors({"signature": np.frombuffer(seat.sign(content), np.uint8)})


def packed(form: object) -> Tensors:
    return Tensors({"json": np.frombuffer(json.dumps(form, sort_keys=True).encode(), np.uint8)})


def unpacked(message: Tensors) -> dict[str, str]:
    return dict(json.loads(message["json"].tobytes()))


@dataclass(frozen=True)
class Signed(Reducer):
    """A plain sum among parties that prove who they are and agree on who is alive."""

    threshold: int = 1
    helpers: Sequence[str] = ()
    legs: ClassVar[int] = 5
    counted: ClassVar[int] = 2

    def worker(self, message: Tensors, seat: Seat) -> Worker:
        yield from self._party(message, seat)

    def helper(self, seat: Seat) -> Worker:
        yield from self._party(Tensors({"ack": np.ones(1)}), seat)

    def _party(self, message: Tensors, seat: Seat) -> Worker:
        told = yield signed(seat, b"hello")
        for name, signature in unpacked(told).items():
            seat.verify(name, b"hello", bytes.fromhex(signature))
        yield Tensors({"ack": np.ones(1)})
        told = yield message
        alive = told["json"].tobytes()
        seat.once("alive", alive)
        told = yield signed(seat, alive)
        for name, signature in unpacked(told).items():
            seat.verify(name, alive, bytes.fromhex(signature))
        yield Tensors({"ack": np.ones(1)})

    def server(self, cohort: Sequence[str], seat: Seat) -> Server:
        total: dict[str, np.ndarray] = {}
        alive: dict[str, str] = {}
        answers: Mapping[str, Tensors] | str | None = None
        for leg in range(self.legs):
            said: dict[str, str] = {}
            while isinstance(event := (yield answers), Arrived):
                answers = None
                if leg == self.counted and event.client in cohort:
                    for name, array in event.message.items():
                        total[name] = total[name] + array if name in total else array.copy()
                elif leg in (0, 3):
                    signature = event.message["signature"].tobytes()
                    content = b"hello" if leg == 0 else json.dumps(alive, sort_keys=True).encode()
                    try:
                        seat.verify(event.client, content, signature)
                        said[event.client] = signature.hex()
                    except IdentityError as error:
                        answers = str(error)
            assert isinstance(event, Closed)
            if len(event.survivors) < self.threshold:
                raise SecretRoundVoid(
                    f"{len(event.survivors)} parties are left in leg {leg + 1}, fewer than the {self.threshold} that "
                    "the secret needs: nothing of this round was revealed."
                )
            alive = dict.fromkeys(event.survivors, "alive") if leg == self.counted else alive
            answers = dict.fromkeys(event.survivors, packed(said if leg in (0, 3) else alive))
        return Tensors(total)
