"""A seat over the pipe from an executor to its worker is as good as the worker's own, and asks once for many claims."""

from pathlib import Path
from typing import Any

import pytest

from hansa.app.enrol import Authority
from hansa.core.errors import IdentityError, ProtocolError, SecretRoundVoid
from hansa.core.pipeline import Seat
from hansa.crypto.claims import Claim, verify_all
from hansa.crypto.identity import Identity
from hansa.crypto.seats import IdentitySeat, Journal
from hansa.runtimes.grpc.seat import DistantSeat, answered

CONTEXT = b"run/train/3.0"


@pytest.fixture
def seats(tmp_path: Path) -> dict[str, IdentitySeat]:
    authority = Authority.create(tmp_path / "authority", "test")
    made = {}
    for name in ("a", "b", "c"):
        authority.issue(name, "worker")
        identity = Identity.load(authority.folder / "members" / f"{name}.pem")
        made[name] = IdentitySeat(name, CONTEXT, Journal(tmp_path / f"{name}.once"), identity)
    return made


class Pipe:
    """Counts what is asked of a worker's seat."""

    def __init__(self, seat: Seat) -> None:
        self.seat, self.asked = seat, 0

    def __call__(self, header: dict[str, Any], raw: bytes) -> tuple[dict[str, Any], bytes]:
        self.asked += 1
        return answered(self.seat, header, raw)


def claims_of(seats: dict[str, IdentitySeat]) -> list[Claim]:
    messages = {"a": b"keys", "b": b"", "c": b"longer keys"}
    return [(name, message, seats[name].sign(message)) for name, message in messages.items()]


@pytest.mark.parametrize("far", [True, False])
def test_of_many_claims_the_first_that_does_not_hold_is_named(seats: dict[str, IdentitySeat], far: bool) -> None:
    pipe = Pipe(seats["a"])
    seat = DistantSeat("a", CONTEXT, pipe) if far else seats["a"]
    claims = claims_of(seats)
    verify_all(seat, claims)
    verify_all(seat, [])
    assert pipe.asked == 2 * far
    for at in range(3):
        name, message, signature = claims[at]
        for wrong in ((name, message + b"\0", signature), (name, message, claims[at - 1][2]), (name, b"", b"")):
            with pytest.raises(IdentityError) as fault:
                verify_all(seat, [*claims[:at], wrong, ("b", b"", b"a second fault")])
            assert "14 bytes" not in str(fault.value)  # which is what is wrong with the second
            with pytest.raises(IdentityError):
                seat.verify(*wrong)


def test_bytes_of_one_claim_cannot_pass_for_those_of_the_next(seats: dict[str, IdentitySeat]) -> None:
    seat = DistantSeat("a", CONTEXT, Pipe(seats["a"]))
    (a, keys, of_a), (b, none, of_b), _ = claims_of(seats)
    with pytest.raises(IdentityError):
        seat.verify_all([(a, keys, of_a + of_b[:1]), (b, none, of_b[1:])])


def test_a_seat_far_away_signs_and_says_once_as_the_worker_does(seats: dict[str, IdentitySeat]) -> None:
    seat = DistantSeat("a", CONTEXT, Pipe(seats["a"]))
    seats["b"].verify("a", b"keys", seat.sign(b"keys"))
    seat.once("survivors", b"1")
    with pytest.raises(SecretRoundVoid):
        seat.once("survivors", b"2")


@pytest.mark.parametrize(
    "header",
    [{"ask": "verify"}, {"ask": "verify", "claims": 3}, {"ask": "verify", "claims": [["a", 1]]}, {"ask": "dance"}, {}],
)
def test_a_question_that_is_none_of_ours_is_answered_with_an_error(
    seats: dict[str, IdentitySeat], header: dict[str, Any]
) -> None:
    seat = DistantSeat("a", CONTEXT, lambda _header, raw: answered(seats["a"], header, raw))
    with pytest.raises(ProtocolError):
        seat.sign(b"keys")
