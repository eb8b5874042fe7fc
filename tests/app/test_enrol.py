"""What the authority promises: who is in, until when, and that whoever is put out stays out."""

import json
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given, strategies as st

from hansa.app.enrol import Authority, accept, request, request_fingerprint
from hansa.core.errors import IdentityError
from hansa.crypto.identity import ROLES, Identity, Revoked, check_peer, verify

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
DAY = timedelta(days=1)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.create(tmp_path / "authority", "league", now=NOW)


def revoked(authority: Authority) -> Revoked:
    return Revoked.read((authority.folder / "revoked.pem").read_bytes(), authority.pem)


# ---------------------------------------------------------------- the authority itself


def test_a_founded_authority_can_be_opened_again(authority: Authority) -> None:
    again = Authority.load(authority.folder)
    assert (again.federation, again.pem, again.members()) == ("league", authority.pem, [])
    assert revoked(again) == Revoked(number=1)


def test_the_authority_is_private_p256_and_can_have_no_authorities_below_it(authority: Authority) -> None:
    assert authority.folder.stat().st_mode & 0o777 == 0o700
    assert (authority.folder / "authority.key.pem").stat().st_mode & 0o777 == 0o600
    assert isinstance(authority.key.curve, ec.SECP256R1)
    extensions = authority.certificate.extensions
    assert extensions.get_extension_for_class(x509.BasicConstraints).value == x509.BasicConstraints(True, 0)
    usage = extensions.get_extension_for_class(x509.KeyUsage).value
    assert (usage.key_cert_sign, usage.crl_sign, usage.digital_signature) == (True, True, False)


def test_no_authority_is_founded_over_another(authority: Authority) -> None:
    with pytest.raises(IdentityError, match="already holds an authority: go on with it, or choose an empty folder"):
        Authority.create(authority.folder, "other")


@pytest.mark.parametrize("name", ["", "x" * 65, "a\nb"])
def test_a_federation_has_a_name_that_can_be_shown(tmp_path: Path, name: str) -> None:
    with pytest.raises(IdentityError, match="take 1 to 64 printable characters"):
        Authority.create(tmp_path, name)


def test_a_passphrase_protects_the_key(tmp_path: Path) -> None:
    Authority.create(tmp_path, "league", passphrase=b"salt herring")
    assert b"ENCRYPTED" in (tmp_path / "authority.key.pem").read_bytes()
    assert Authority.load(tmp_path, passphrase=b"salt herring").federation == "league"
    for wrong in (None, b"cod"):
        with pytest.raises(IdentityError, match="cannot be opened with this passphrase"):
            Authority.load(tmp_path, passphrase=wrong)


def test_an_authority_key_open_to_others_is_refused(authority: Authority) -> None:
    (authority.folder / "authority.key.pem").chmod(0o644)
    with pytest.raises(IdentityError, match="others can use it"):
        Authority.load(authority.folder)


def test_a_damaged_or_missing_authority_is_named(authority: Authority, tmp_path: Path) -> None:
    with pytest.raises(IdentityError, match=r"authority\.key\.pem cannot be read"):
        Authority.load(tmp_path / "nowhere")
    other = Authority.create(tmp_path / "other", "league")
    (authority.folder / "authority.pem").write_bytes(other.pem)
    with pytest.raises(IdentityError, match="do not belong together: restore both"):
        Authority.load(authority.folder)
    (authority.folder / "authority.pem").unlink()
    with pytest.raises(IdentityError, match=r"authority\.pem cannot be read \(No such file"):
        Authority.load(authority.folder)
    (other.folder / "register.json").write_text("{")
    with pytest.raises(IdentityError, match=r"register\.json cannot be read: restore it from a backup"):
        other.members()


# ---------------------------------------------------------------- issuing


@pytest.mark.parametrize("role", ROLES)
def test_every_role_can_be_enrolled_and_has_the_uses_of_its_role_alone(authority: Authority, role: str) -> None:
    hosts = ["localhost"] if role in ("server", "party") else []
    path = authority.issue("m", role, hosts=hosts, now=NOW)
    identity = Identity.load(path, now=NOW)
    usages = set(identity.tls_certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    server, client = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH
    assert usages == {"server": {server}, "party": {server, client}}.get(role, {client})
    assert path.stat().st_mode & 0o777 == 0o600
    assert verify(identity.sign(b"x"), b"x", authority.pem, role=role, now=NOW) == "m"


def test_a_server_has_the_names_and_addresses_that_peers_dial(authority: Authority) -> None:
    hosts = ["fl.example.org", "10.0.0.7", "::1"]
    identity = Identity.load(authority.issue("hub", "server", hosts=hosts, now=NOW), now=NOW)
    names = identity.tls_certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["fl.example.org"]
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["10.0.0.7", "::1"]


@pytest.mark.parametrize(
    ("role", "hosts", "message"),
    [
        ("server", [], "role='server' listens and has no hosts"),
        ("worker", ["localhost"], "role='worker' never listens"),
        ("server", ["0.0.0.0"], r"host='0\.0\.0\.0' is an address to bind, not to dial"),
        ("server", ["host:8080"], "host='host:8080' is neither a DNS name nor an IP address: write it without port"),
        ("server", ["300.1.1.1"], r"host='300\.1\.1\.1' is neither"),
        ("server", ["lübeck.example"], "is neither"),
        ("king", [], "role='king' does not exist: choose one of server, worker, submitter, party"),
    ],
)
def test_a_wrong_role_or_host_is_refused_and_leaves_no_trace(
    authority: Authority, role: str, hosts: list[str], message: str
) -> None:
    with pytest.raises(IdentityError, match=message):
        authority.issue("m", role, hosts=hosts, now=NOW)
    assert authority.members() == []
    assert list((authority.folder / "members").iterdir()) == []


@pytest.mark.parametrize("name", ["", "../x", "a/b", "a b", ".a", "a.", "x" * 64, "é", "a\n", "a\0b"])
def test_a_name_is_a_safe_file_name(authority: Authority, name: str) -> None:
    with pytest.raises(IdentityError, match="cannot be used: take 1 to 63"):
        authority.issue(name, "worker", now=NOW)


@pytest.mark.parametrize("days", [0, -1, 36501])
def test_a_validity_is_of_days(authority: Authority, days: int) -> None:
    with pytest.raises(IdentityError, match=f"days={days} is no validity"):
        authority.issue("m", "worker", days=days, now=NOW)


def test_no_member_outlives_its_authority(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path, "league", days=10, now=NOW)
    identity = Identity.load(authority.issue("a", "worker", days=365, now=NOW), now=NOW)
    assert identity.expires == NOW + 10 * DAY
    with pytest.raises(IdentityError, match="'authority of league' expired on"):
        authority.issue("b", "worker", now=NOW + 11 * DAY)


def test_a_name_belongs_to_one_member_at_a_time(authority: Authority) -> None:
    authority.issue("Alice", "submitter", now=NOW)
    for name in ("Alice", "alice"):
        with pytest.raises(IdentityError, match=f"name='{name}' is taken by a submitter until 2027-11-21"):
            authority.issue(name, "worker", now=NOW)
    authority.issue("alice", "worker", now=NOW + 366 * DAY)
    assert [m.status(NOW + 366 * DAY) for m in authority.members()] == ["expired", "valid"]


def test_the_register_says_who_has_what_until_when_and_holds_no_key(authority: Authority) -> None:
    identity = Identity.load(authority.issue("hub", "server", hosts=["localhost"], now=NOW), now=NOW)
    text = (authority.folder / "register.json").read_text()
    line = json.loads(text)["members"][0]
    assert (line["name"], line["role"], line["hosts"]) == ("hub", "server", ["localhost"])
    assert line["until"] == "2027-11-21T12:00:00+00:00"
    assert line["fingerprint"] == identity.fingerprint
    assert "PRIVATE" not in text


def test_serials_are_random_and_differ(authority: Authority) -> None:
    for number in range(5):
        authority.issue(f"w{number}", "worker", now=NOW)
    serials = {int(serial, 16) for member in authority.members() for serial in member.serials}
    assert len(serials) == 10
    assert max(serials) > 1 << 140


def test_two_issuing_at_once_lose_nobody(authority: Authority) -> None:
    threads = [
        threading.Thread(target=authority.issue, args=(f"w{n}", "worker"), kwargs={"now": NOW}) for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {member.name for member in authority.members()} == {f"w{n}" for n in range(8)}


# ---------------------------------------------------------------- a member's own keys


def test_private_keys_never_leave_the_member(authority: Authority, tmp_path: Path) -> None:
    own, sent = request("hospital-a", "worker", tmp_path)
    assert own.stat().st_mode & 0o777 == 0o600
    assert b"PRIVATE" not in sent.read_bytes()
    back = authority.sign(sent.read_bytes(), name="hospital-a", role="worker", now=NOW)
    assert b"PRIVATE" not in back.read_bytes()
    identity = accept(own, back.read_bytes())
    assert Identity.load(own, now=NOW).dump() == identity.dump()
    assert identity.fingerprint == request_fingerprint(sent.read_bytes())
    assert own.stat().st_mode & 0o777 == 0o600


def test_a_request_gives_no_other_name_or_role_than_agreed(authority: Authority, tmp_path: Path) -> None:
    _, sent = request("mallory", "server", tmp_path)
    for name, role in (("mallory", "worker"), ("alice", "server")):
        with pytest.raises(IdentityError, match=f"request is for 'mallory' as server, not for '{name}' as {role}"):
            authority.sign(sent.read_bytes(), name=name, role=role, now=NOW)


def test_a_request_for_anothers_key_is_refused(authority: Authority, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    alice = request("m", "worker", tmp_path / "a")[1].read_bytes()
    mallory = request("m", "worker", tmp_path / "b")[1].read_bytes()
    lines = mallory.splitlines(keepends=True)
    lines[2] = alice.splitlines(keepends=True)[2]
    with pytest.raises(IdentityError, match="request cannot be read or was changed"):
        authority.sign(b"".join(lines), name="m", role="worker", now=NOW)


@given(st.binary(max_size=300), st.integers(0, 900))
def test_a_mutilated_request_is_refused(tmp_path_factory: pytest.TempPathFactory, junk: bytes, at: int) -> None:
    folder = tmp_path_factory.mktemp("request")
    pem = request("m", "worker", folder)[1].read_bytes()
    changed = pem[:at] + junk + pem[at + len(junk) :]
    try:
        read = request_fingerprint(changed)
    except IdentityError:
        return
    assert read == request_fingerprint(pem)  # what was changed is what a PEM reader skips


def test_a_request_overwrites_no_keys(tmp_path: Path) -> None:
    request("m", "worker", tmp_path)
    with pytest.raises(IdentityError, match="exists already and may hold keys in use"):
        request("m", "worker", tmp_path)


def test_certificates_for_other_keys_are_not_accepted(authority: Authority, tmp_path: Path) -> None:
    own, _ = request("m", "worker", tmp_path)
    before = own.read_bytes()
    (tmp_path / "other").mkdir()
    _, sent = request("m", "worker", tmp_path / "other")
    back = authority.sign(sent.read_bytes(), name="m", role="worker", now=NOW)
    with pytest.raises(IdentityError, match="certificate for its TLS key"):
        accept(own, back.read_bytes())
    assert own.read_bytes() == before


# ---------------------------------------------------------------- renewing


def test_renewing_keeps_the_keys_and_moves_the_end(authority: Authority, tmp_path: Path) -> None:
    path = authority.issue("hub", "server", hosts=["localhost"], now=NOW)
    before = Identity.load(path, now=NOW)
    after = Identity.load(authority.renew("hub", now=NOW + 300 * DAY), now=NOW + 300 * DAY)
    assert after.fingerprint == before.fingerprint
    assert after.tls_key_pem == before.tls_key_pem
    assert after.expires == NOW + 665 * DAY
    assert after.peer.serial != before.peer.serial
    assert authority.members()[-1].hosts == ("localhost",)


def test_an_expired_identity_is_renewed_in_its_own_file(authority: Authority, tmp_path: Path) -> None:
    path = authority.issue("a", "worker", now=NOW).rename(tmp_path / "handed-over.pem")
    later = NOW + 400 * DAY
    with pytest.raises(IdentityError, match="hansa enrol renew"):
        Identity.load(path, now=later)
    assert authority.renew(path, now=later) == path
    assert Identity.load(path, now=later).name == "a"


def test_a_member_with_its_own_keys_is_renewed_by_name(authority: Authority, tmp_path: Path) -> None:
    own, sent = request("a", "worker", tmp_path)
    accept(own, authority.sign(sent.read_bytes(), name="a", role="worker", now=NOW).read_bytes())
    back = authority.renew("a", now=NOW + 300 * DAY)
    assert back.name == "a.certificates.pem"
    assert accept(own, back.read_bytes()).expires == NOW + 665 * DAY


def test_renewed_certificates_of_another_federation_are_not_accepted(authority: Authority, tmp_path: Path) -> None:
    own, sent = request("a", "worker", tmp_path)
    accept(own, authority.sign(sent.read_bytes(), name="a", role="worker", now=NOW).read_bytes())
    stranger = Authority.create(tmp_path / "stranger", "league", now=NOW)
    back = stranger.sign(sent.read_bytes(), name="a", role="worker", now=NOW)
    with pytest.raises(IdentityError, match="are of another authority: check who sent them"):
        accept(own, back.read_bytes())


def test_who_cannot_be_renewed_is_told_why(authority: Authority, tmp_path: Path) -> None:
    with pytest.raises(IdentityError, match="member 'nobody' is not in the register of 'league'"):
        authority.renew("nobody", now=NOW)
    with pytest.raises(IdentityError, match="does not exist: give an identity file"):
        authority.renew(tmp_path / "none.pem", now=NOW)
    path = authority.issue("a", "worker", now=NOW)
    authority.revoke("a", now=NOW)
    with pytest.raises(IdentityError, match="member 'a' was revoked on 2026-11-21"):
        authority.renew(path, now=NOW)
    stranger = Authority.create(tmp_path / "stranger", "league", now=NOW)
    with pytest.raises(IdentityError, match="belongs to another federation"):
        stranger.renew(path, now=NOW)


def test_old_keys_are_not_renewed_once_the_name_has_new_ones(authority: Authority, tmp_path: Path) -> None:
    old = authority.issue("a", "worker", now=NOW).rename(tmp_path / "old.pem")
    authority.revoke("a", now=NOW)
    authority.issue("a", "worker", now=NOW)
    with pytest.raises(IdentityError, match="holds older keys than the register of 'a'"):
        authority.renew(old, now=NOW)


# ---------------------------------------------------------------- revoking


def test_a_revoked_member_is_refused_with_all_its_certificates(authority: Authority) -> None:
    path = authority.issue("alice", "submitter", now=NOW)
    first = Identity.load(path, now=NOW)
    second = Identity.load(authority.renew("alice", now=NOW), now=NOW)
    stays = Identity.load(authority.issue("bob", "submitter", now=NOW), now=NOW)
    authority.revoke("alice", now=NOW)
    listed = revoked(authority)
    for identity in (first, second):
        assert "'alice' is revoked" in str(check_peer(identity.peer, "submitter", listed, now=NOW))
        with pytest.raises(IdentityError, match="'alice' is revoked"):
            verify(identity.sign(b"x"), b"x", authority.pem, revoked=listed, now=NOW)
    assert check_peer(stays.peer, "submitter", listed, now=NOW) is None
    assert [m.status(NOW) for m in authority.members()] == ["revoked", "revoked", "valid"]


def test_either_serial_revokes_both_certificates_of_a_pair(authority: Authority) -> None:
    identity = Identity.load(authority.issue("alice", "submitter", now=NOW), now=NOW)
    authority.revoke(identity.signing_certificate.serial_number, now=NOW)
    assert identity.peer.serial in revoked(authority)
    assert identity.signing_certificate.serial_number in revoked(authority)


def test_a_revoked_name_can_be_given_again_and_the_old_keys_stay_out(authority: Authority) -> None:
    old = Identity.load(authority.issue("a", "worker", now=NOW), now=NOW)
    authority.revoke("a", now=NOW)
    new = Identity.load(authority.issue("a", "worker", now=NOW), now=NOW)
    listed = revoked(authority)
    assert old.peer.serial in listed
    assert new.peer.serial not in listed


def test_every_list_has_a_greater_number(authority: Authority) -> None:
    authority.issue("a", "worker", now=NOW)
    before = revoked(authority).number
    authority.revoke("a", now=NOW)
    assert revoked(authority).number > before


def test_revoking_again_mends_a_list_that_a_crash_left_behind(authority: Authority) -> None:
    identity = Identity.load(authority.issue("a", "worker", now=NOW), now=NOW)
    stale = (authority.folder / "revoked.pem").read_bytes()
    authority.revoke("a", now=NOW)
    (authority.folder / "revoked.pem").write_bytes(stale)  # as if it had crashed after the register
    authority.revoke("a", now=NOW + DAY)
    assert identity.peer.serial in revoked(authority)
    assert authority.members()[0].revoked == "2026-11-21T12:00:00+00:00"


def test_only_members_can_be_revoked(authority: Authority) -> None:
    with pytest.raises(IdentityError, match="member 'nobody' is not in the register"):
        authority.revoke("nobody")
    with pytest.raises(IdentityError, match="serial ff is not in the register"):
        authority.revoke(255)
