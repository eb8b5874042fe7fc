"""Seats: signatures that hold in one conversation alone, and a record that holds after a restart."""

from collections.abc import Callable
from pathlib import Path

import pytest

from hansa.app.enrol import Authority
from hansa.core.errors import ConfigError, CorruptFile, IdentityError, SecretRoundVoid
from hansa.core.pipeline import Seat
from hansa.crypto.certificate import Revoked
from hansa.crypto.identity import Identity
from hansa.crypto.seats import IdentitySeat, Journal, NamelessSeat, SimulatedSeat

CONTEXT = b"run/train/3.0"
Sit = Callable[..., Seat]


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    made = Authority.create(tmp_path / "authority", "test")
    for name, role in (("a", "worker"), ("b", "worker"), ("s", "server"), ("alice", "submitter")):
        made.issue(name, role, hosts=["localhost"] if role == "server" else ())
    return made


@pytest.fixture(params=["simulated", "identity"])
def sit(request: pytest.FixtureRequest, tmp_path: Path) -> Sit:
    """Makes the seat of a name in a context."""
    if request.param == "simulated":
        return lambda name, context=CONTEXT: SimulatedSeat(name, context, b"\7" * 32)
    authority: Authority = request.getfixturevalue("authority")

    def seat(name: str, context: bytes = CONTEXT) -> Seat:
        identity = Identity.load(authority.folder / "members" / f"{name}.pem")
        return IdentitySeat(name, context, Journal(tmp_path / f"{name}.once"), identity)

    return seat


def test_a_signature_holds_for_its_signer_message_and_conversation_alone(sit: Sit) -> None:
    a, b = sit("a"), sit("b")
    signature = a.sign(b"keys")
    b.verify("a", b"keys", signature)
    sit("s").verify("a", b"keys", signature)
    for name, message, seat in (
        ("b", b"keys", b),
        ("a", b"other keys", b),
        ("a", b"keys", sit("b", b"run/train/3.1")),
        ("a", b"\0keys", sit("b", CONTEXT[:-1])),  # the context cannot run into the message
    ):
        with pytest.raises(IdentityError):
            seat.verify(name, message, signature)
    for forged in (b"", b"\0" * 64, signature[:-1], bytes(len(signature))):
        with pytest.raises(IdentityError):
            b.verify("a", b"keys", forged)


def test_what_was_said_once_is_not_said_otherwise_in_the_same_conversation(sit: Sit) -> None:
    a = sit("a")
    a.once("survivors", b"a b c")
    a.once("survivors", b"a b c")
    a.once("mask", b"a b")
    with pytest.raises(SecretRoundVoid, match="again, with other parties"):
        a.once("survivors", b"a b")
    sit("a", b"run/train/3.1").once("survivors", b"a b")


def test_entropy_is_new_each_time_and_no_seat_shows_a_secret(sit: Sit) -> None:
    a = sit("a")
    assert len(a.entropy(32)) == 32 and a.entropy(32) != a.entropy(32)
    assert repr(a) in (f"SimulatedSeat(name='a', context={CONTEXT!r})", f"IdentitySeat(name='a', context={CONTEXT!r})")
    assert hash(a) == hash(a)


def test_two_runs_of_a_simulation_have_nothing_to_say_to_each_other() -> None:
    one, other = SimulatedSeat("a", CONTEXT, b"\1" * 32), SimulatedSeat("b", CONTEXT, b"\2" * 32)
    with pytest.raises(IdentityError, match="no signature of 'a'"):
        other.verify("a", b"keys", one.sign(b"keys"))


def test_foreign_revoked_and_unfit_signers_are_refused(authority: Authority, tmp_path: Path) -> None:
    def seat(name: str, home: Authority = authority, revoked: Callable[[], Revoked] = Revoked) -> IdentitySeat:
        identity = Identity.load(home.folder / "members" / f"{name}.pem")
        return IdentitySeat(name, CONTEXT, Journal(tmp_path / "once"), identity, revoked)

    stranger = Authority.create(tmp_path / "elsewhere", "test")
    stranger.issue("a", "worker")
    signature = seat("a").sign(b"keys")
    with pytest.raises(IdentityError, match="unknown to the authority"):
        seat("b").verify("a", b"keys", seat("a", stranger).sign(b"keys"))
    with pytest.raises(IdentityError, match="enrolled as submitter, not as worker or server"):
        seat("b").verify("alice", b"keys", seat("alice").sign(b"keys"))
    with pytest.raises(IdentityError, match="bears the signature of 'a'"):
        seat("b").verify("b", b"keys", signature)
    lists = [Revoked()]
    reader = seat("b", revoked=lambda: lists[0])
    reader.verify("a", b"keys", signature)
    authority.revoke("a")
    lists[0] = Revoked.read((authority.folder / "revoked.pem").read_bytes(), reader.identity.authority_pem)
    with pytest.raises(IdentityError, match="revoked"):
        reader.verify("a", b"keys", signature)
    # A signature for a job, or any other purpose, is none for a conversation.
    identity = Identity.load(authority.folder / "members" / "b.pem")
    bound = len(CONTEXT).to_bytes(4, "big") + CONTEXT + b"keys"
    with pytest.raises(IdentityError, match="does not belong"):
        seat("b").verify("b", b"keys", identity.sign(bound).dump())


def test_the_journal_outlives_its_process_and_drops_only_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "once"
    for name in (b"0", b"1"):
        Journal(path).once(name, b"yes")
    whole = path.read_bytes()
    for torn in (1, 64, 65, 129):
        path.write_bytes(whole + whole[:torn])
        again = Journal(path)
        with pytest.raises(SecretRoundVoid):
            again.once(b"1", b"no")
        again.once(b"2", b"yes")
        with pytest.raises(SecretRoundVoid):
            Journal(path).once(b"2", b"no")
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_bytes(whole[:64] + b"x" + whole[65:])
    with pytest.raises(CorruptFile, match="cannot know what it has revealed"):
        Journal(path).once(b"1", b"yes")


def test_a_seat_that_knows_no_identities_says_so(tmp_path: Path) -> None:
    nameless = NamelessSeat("a", CONTEXT, Journal(tmp_path / "once"))
    nameless.once("x", b"1")
    with pytest.raises(SecretRoundVoid):
        nameless.once("x", b"2")
    for call in (lambda: nameless.sign(b""), lambda: nameless.verify("b", b"", b"")):
        with pytest.raises(ConfigError, match="knows no identities"):
            call()
    seat = Seat("a", CONTEXT)
    for call in (lambda: seat.sign(b""), lambda: seat.verify("b", b"", b""), lambda: seat.once("x", b"")):
        with pytest.raises(ConfigError, match="knows no identities"):
            call()
