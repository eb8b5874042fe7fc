"""What an identity promises: two certified keys, private, dated, and a signature that cannot be moved."""

import contextlib
import os
import pickle
import ssl
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import given, settings, strategies as st

from hansa.app.enrol import Authority
from hansa.core.errors import IdentityError, StorageFull
from hansa.crypto.identity import Identity, Revoked, Signature, check_peer, peer_of, verify

NOW = datetime.now(UTC).replace(microsecond=0)  # OpenSSL's handshakes below have no other clock
LATER = NOW + timedelta(days=400)


class Federation:
    """An authority with a server, a worker and a submitter, made once: tests only read."""

    def __init__(self, folder: Path, name: str = "league") -> None:
        self.authority = Authority.create(folder, name, now=NOW)
        self.path = {
            "server": self.authority.issue("hub", "server", hosts=["localhost", "127.0.0.1"], now=NOW),
            "worker": self.authority.issue("hospital-a", "worker", now=NOW),
            "submitter": self.authority.issue("alice", "submitter", now=NOW),
        }
        self.server, self.worker, self.submitter = (Identity.load(path, now=NOW) for path in self.path.values())


@pytest.fixture(scope="module")
def league(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    return Federation(tmp_path_factory.mktemp("league"))


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    return Federation(tmp_path_factory.mktemp("foreign"))  # the same names, another key


# ---------------------------------------------------------------- the file


def test_an_identity_knows_its_name_role_and_end(league: Federation) -> None:
    assert (league.worker.name, league.worker.role) == ("hospital-a", "worker")
    assert league.worker.peer.federation == "league"
    assert league.worker.expires == NOW + timedelta(days=365)


def test_an_identity_read_from_its_own_dump_is_the_same(league: Federation) -> None:
    assert Identity.parse(league.worker.dump()).dump() == league.worker.dump()


def test_an_identity_file_is_written_private(league: Federation, tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        path = league.worker.save(tmp_path / "a.pem")
    finally:
        os.umask(old)
    assert path.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["a.pem"]


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o660, 0o602])
def test_an_identity_file_open_to_others_is_refused(league: Federation, tmp_path: Path, mode: int) -> None:
    path = league.worker.save(tmp_path / "a.pem")
    path.chmod(mode)
    with pytest.raises(IdentityError, match=rf"mode 0{mode:o}, expected 0600\): chmod 600"):
        Identity.load(path, now=NOW)


def test_a_missing_identity_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(IdentityError, match=r"nobody\.pem cannot be read \(No such file.*hansa enrol"):
        Identity.load(tmp_path / "nobody.pem")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    league: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = league.worker.save(tmp_path / "a.pem")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageFull, match="No space left on device"):
        league.submitter.save(path)
    assert path.read_bytes() == league.worker.dump()
    assert [p.name for p in tmp_path.iterdir()] == ["a.pem"]


def test_no_secret_is_printed_or_pickled(league: Federation) -> None:
    secret = league.worker.tls_key_pem.decode().splitlines()[1]
    for text in (repr(league.worker), str(league.worker), f"{vars(league.worker)}"):
        assert "PRIVATE" not in text
        assert secret[:20] not in text
    with pytest.raises(TypeError):
        pickle.dumps(league.worker)


def test_no_error_repeats_what_a_damaged_file_holds(league: Federation) -> None:
    pem = league.worker.dump()
    secret = pem.splitlines()[1]
    damaged = pem.replace(secret, secret[:-8] + b"AAAAAAAA", 1)
    with pytest.raises(IdentityError) as caught:
        Identity.parse(damaged, source="a.pem")
    assert secret[:16].decode() not in str(caught.value)
    assert caught.value.__cause__ is None


def test_an_identity_without_one_of_its_parts_says_which(league: Federation) -> None:
    blocks = [b"-----BEGIN" + block for block in league.worker.dump().split(b"-----BEGIN")[1:]]
    assert len(blocks) == 5
    parts = [
        "P-256 TLS key",
        "Ed25519 signing key",
        "for its TLS key",
        "for its signing key",
        "authority's certificate",
    ]
    for missing, part in enumerate(parts):
        with pytest.raises(IdentityError, match=f"a.pem holds 0 of what it needs one of, the .*{part}"):
            Identity.parse(b"".join(blocks[:missing] + blocks[missing + 1 :]), source="a.pem")


def test_an_identity_of_keys_and_certificates_of_two_federations_is_refused(
    league: Federation, foreign: Federation
) -> None:
    mixed = league.worker.dump().replace(league.worker.authority_pem, foreign.worker.authority_pem)
    with pytest.raises(IdentityError, match="the authority of 'league' did not issue"):
        Identity.parse(mixed)


@given(st.binary(max_size=300), st.integers(0, 3000))
def test_a_mutilated_identity_ends_in_an_identity_error_or_is_whole(league: Federation, junk: bytes, at: int) -> None:
    pem = league.worker.dump()
    try:
        identity = Identity.parse(pem[:at] + junk + pem[at + len(junk) :])
    except IdentityError:
        return
    assert identity.name == "hospital-a"


# ---------------------------------------------------------------- dates


def test_an_expired_identity_names_the_remedy(league: Federation) -> None:
    end = NOW + timedelta(days=365)
    with pytest.raises(
        IdentityError, match=rf"'hospital-a' expired on {end:%Y-%m-%d %H:%M} UTC: run `hansa enrol renew`"
    ):
        Identity.load(league.path["worker"], now=LATER)


def test_an_identity_of_the_future_blames_the_clock(league: Federation) -> None:
    start = NOW - timedelta(minutes=10)
    with pytest.raises(IdentityError, match=rf"not valid before {start:%Y-%m-%d %H:%M} UTC: set this machine's clock"):
        league.worker.check_valid(NOW - timedelta(days=1))


# ---------------------------------------------------------------- signatures


def test_a_signature_names_its_signer(league: Federation) -> None:
    signature = Signature.load(league.submitter.sign(b"run this").dump())
    pem = league.authority.pem
    assert verify(signature, b"run this", pem, role="submitter", now=NOW) == "alice"
    assert signature.claimed_signer.name == "alice"


def test_a_signature_replayed_over_other_content_is_refused(league: Federation) -> None:
    signature = league.submitter.sign(b"run this")
    with pytest.raises(IdentityError, match=r"'alice' does not belong to this content.*copied from something else"):
        verify(signature, b"run that", league.authority.pem, now=NOW)


def test_a_signature_for_one_purpose_holds_for_no_other(league: Federation) -> None:
    signature = league.submitter.sign(b"x", purpose="login")
    assert verify(signature, b"x", league.authority.pem, purpose="login", now=NOW) == "alice"
    with pytest.raises(IdentityError, match="does not belong"):
        verify(signature, b"x", league.authority.pem, purpose="job", now=NOW)
    with pytest.raises(ValueError, match="zero byte"):
        league.submitter.sign(b"x", purpose="log\0in")


def test_a_signer_of_another_authority_is_unknown(league: Federation, foreign: Federation) -> None:
    with pytest.raises(IdentityError, match="unknown to the authority of 'league'"):
        verify(foreign.submitter.sign(b"x"), b"x", league.authority.pem, now=NOW)


def test_a_signer_of_the_wrong_role_is_refused(league: Federation) -> None:
    with pytest.raises(IdentityError, match="'hospital-a' is enrolled as worker, not as submitter"):
        verify(league.worker.sign(b"x"), b"x", league.authority.pem, role="submitter", now=NOW)


def test_a_signature_of_an_expired_signer_is_refused(league: Federation) -> None:
    with pytest.raises(IdentityError, match=r"'alice' expired on .*hansa enrol renew"):
        verify(league.submitter.sign(b"x"), b"x", league.authority.pem, now=LATER)


def test_a_tls_certificate_cannot_vouch_for_a_signature(league: Federation) -> None:
    forged = Signature(
        league.submitter.sign(b"x").value, ssl.PEM_cert_to_DER_cert(league.submitter.tls_certificate_pem.decode())
    )
    with pytest.raises(IdentityError, match="is for connections, not for signatures"):
        verify(forged, b"x", league.authority.pem, now=NOW)


def test_a_members_certificate_is_no_authority(league: Federation) -> None:
    with pytest.raises(IdentityError, match="given as the authority's is not one"):
        verify(league.worker.sign(b"x"), b"x", league.worker.tls_certificate_pem, now=NOW)


@given(st.binary(max_size=200) | st.from_regex(rb'\{"certificate": ".{0,40}", "value": ".{0,90}"\}', fullmatch=True))
def test_garbage_is_no_signature(junk: bytes) -> None:
    with pytest.raises(IdentityError, match="cannot be read: have it signed again"):
        Signature.load(junk)


@settings(max_examples=300)
@given(st.binary(min_size=1, max_size=3), st.integers(0, 400))
def test_a_certificate_with_any_byte_changed_vouches_for_nothing(league: Federation, junk: bytes, at: int) -> None:
    signature = league.submitter.sign(b"x")
    der = signature.certificate[:at] + junk + signature.certificate[at + len(junk) :]
    if der == signature.certificate:
        return
    with pytest.raises(IdentityError):
        verify(Signature.load(Signature(signature.value, der).dump()), b"x", league.authority.pem, now=NOW)


def test_a_signature_with_an_extra_or_oversized_field_is_refused(league: Federation) -> None:
    dumped = league.submitter.sign(b"x").dump()
    for changed in (dumped + b" ", dumped.replace(b"{", b'{"x": "",', 1), dumped + b" " * 20_000):
        with pytest.raises(IdentityError, match="cannot be read"):
            Signature.load(changed)


# ---------------------------------------------------------------- peers


def test_a_peer_is_who_its_certificate_says(league: Federation) -> None:
    peer = peer_of(league.worker.tls_certificate_pem)
    assert (peer.name, peer.role, peer.fingerprint) == ("hospital-a", "worker", league.worker.fingerprint)
    assert check_peer(peer, "worker", now=NOW) is None
    assert check_peer(peer, ("server", "worker"), now=NOW) is None
    assert check_peer(peer, now=NOW) is None


def test_a_peer_of_the_wrong_role_expired_or_revoked_gets_a_reason(league: Federation) -> None:
    peer = peer_of(league.worker.tls_certificate_pem)
    assert "enrolled as worker, not as server" in str(check_peer(peer, "server", now=NOW))
    assert "expired on" in str(check_peer(peer, "worker", now=LATER))
    assert "revoked (serial" in str(check_peer(peer, "worker", {peer.serial}, now=NOW))


def test_a_signing_or_authority_certificate_is_no_peer(league: Federation) -> None:
    signing = ssl.DER_cert_to_PEM_cert(league.worker.sign(b"").certificate).encode()
    for pem in (signing, league.authority.pem):
        with pytest.raises(IdentityError, match="not for connections"):
            peer_of(pem)
    with pytest.raises(IdentityError, match="cannot be read"):
        peer_of(b"garbage")


def test_a_revocation_list_of_another_authority_is_refused(league: Federation, foreign: Federation) -> None:
    crl = (foreign.authority.folder / "revoked.pem").read_bytes()
    with pytest.raises(IdentityError, match="not signed by the authority of 'league'"):
        Revoked.read(crl, league.authority.pem)
    with pytest.raises(IdentityError, match=r"cannot be read: copy revoked.pem"):
        Revoked.read(crl[:-60], foreign.authority.pem)


# ---------------------------------------------------------------- a real handshake


def context(side: int, path: Path, authority: Path) -> ssl.SSLContext:
    made = ssl.SSLContext(side)
    made.minimum_version = ssl.TLSVersion.TLSv1_3
    made.load_cert_chain(path)  # the identity file itself: its TLS pair comes first
    made.load_verify_locations(authority)
    made.verify_mode = ssl.CERT_REQUIRED
    return made


def shake(server: ssl.SSLContext, client: ssl.SSLContext, host: str = "localhost") -> tuple[bytes | None, bytes | None]:
    """One handshake in memory; what each side sees of the other, DER."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    listening = server.wrap_bio(to_server, to_client, server_side=True)
    dialling = client.wrap_bio(to_client, to_server, server_hostname=host)
    for _ in range(4):
        for end in (dialling, listening):
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
    assert dialling.version() == listening.version() == "TLSv1.3"
    return listening.getpeercert(binary_form=True), dialling.getpeercert(binary_form=True)


@pytest.fixture
def contexts(league: Federation, monkeypatch: pytest.MonkeyPatch) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    root = league.authority.folder / "authority.pem"
    return (
        context(ssl.PROTOCOL_TLS_SERVER, league.path["server"], root),
        context(ssl.PROTOCOL_TLS_CLIENT, league.path["worker"], root),
    )


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_two_members_shake_hands_over_tls_1_3(
    contexts: tuple[ssl.SSLContext, ssl.SSLContext], league: Federation, host: str
) -> None:
    seen_by_server, seen_by_client = shake(*contexts, host)
    assert seen_by_server is not None
    assert seen_by_client is not None
    assert peer_of(ssl.DER_cert_to_PEM_cert(seen_by_server).encode()) == league.worker.peer
    assert peer_of(ssl.DER_cert_to_PEM_cert(seen_by_client).encode()) == league.server.peer


def test_a_server_is_not_believed_under_a_host_it_was_not_issued_for(
    contexts: tuple[ssl.SSLContext, ssl.SSLContext],
) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        shake(*contexts, "elsewhere.example")


def test_a_member_of_another_authority_is_refused_on_both_sides(
    contexts: tuple[ssl.SSLContext, ssl.SSLContext], league: Federation, foreign: Federation
) -> None:
    root = league.authority.folder / "authority.pem"
    server, client = contexts
    with pytest.raises(ssl.SSLCertVerificationError):
        shake(server, context(ssl.PROTOCOL_TLS_CLIENT, foreign.path["worker"], root))
    with pytest.raises(ssl.SSLCertVerificationError):
        shake(context(ssl.PROTOCOL_TLS_SERVER, foreign.path["server"], root), client)


def test_a_worker_cannot_pose_as_the_server_nor_a_server_dial_in(
    contexts: tuple[ssl.SSLContext, ssl.SSLContext], league: Federation
) -> None:
    root = league.authority.folder / "authority.pem"
    server, client = contexts
    client.check_hostname = False
    with pytest.raises(ssl.SSLCertVerificationError, match=r"unsuitable|unsupported certificate purpose"):
        shake(context(ssl.PROTOCOL_TLS_SERVER, league.path["worker"], root), client)
    with pytest.raises(ssl.SSLCertVerificationError, match=r"unsuitable|unsupported certificate purpose"):
        shake(server, context(ssl.PROTOCOL_TLS_CLIENT, league.path["server"], root))


def test_openssl_refuses_a_revoked_member_by_our_list(league: Federation, tmp_path: Path) -> None:
    folder = tmp_path / "small"
    small = Federation(folder, "small")
    root = folder / "authority.pem"
    server = context(ssl.PROTOCOL_TLS_SERVER, small.path["server"], root)
    server.load_verify_locations(small.authority.revoke("hospital-a", now=NOW))
    server.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
    with pytest.raises(ssl.SSLCertVerificationError, match="certificate revoked"):
        shake(server, context(ssl.PROTOCOL_TLS_CLIENT, small.path["worker"], root))


# ---------------------------------------------------------------- gRPC, whose TLS library is another


@contextlib.contextmanager
def grpc_server(server: Identity) -> Iterator[int]:
    """Answers every call with the PEM of the caller's certificate."""

    def echo(request: bytes, call: Any) -> bytes:
        return bytes(call.auth_context()["x509_pem_cert"][0])

    class Handler(grpc.GenericRpcHandler):  # type: ignore[misc]
        def service(self, details: Any) -> Any:
            return grpc.unary_unary_rpc_method_handler(echo)

    made = grpc.server(ThreadPoolExecutor(1), handlers=[Handler()])
    credentials = grpc.ssl_server_credentials(
        [(server.tls_key_pem, server.tls_certificate_pem)], server.authority_pem, require_client_auth=True
    )
    port = made.add_secure_port("127.0.0.1:0", credentials)
    made.start()
    try:
        yield port
    finally:
        made.stop(None).wait()


def dial(port: int, client: Identity, host: str = "127.0.0.1") -> bytes:
    credentials = grpc.ssl_channel_credentials(client.authority_pem, client.tls_key_pem, client.tls_certificate_pem)
    with grpc.secure_channel(f"{host}:{port}", credentials) as channel:
        return bytes(channel.unary_unary("/a/b")(b"", timeout=5))


def test_grpc_takes_our_credentials_and_shows_the_peer(league: Federation) -> None:
    with grpc_server(league.server) as port:
        assert peer_of(dial(port, league.worker)) == league.worker.peer


def test_grpc_refuses_foreigners_and_workers_that_pose_as_servers(league: Federation, foreign: Federation) -> None:
    with grpc_server(league.server) as port, pytest.raises(grpc.RpcError):
        dial(port, foreign.worker)
    mixed = replace(foreign.worker, authority=league.worker.authority)  # believes our server, is not believed by it
    with grpc_server(league.server) as port, pytest.raises(grpc.RpcError):
        dial(port, mixed)
    with grpc_server(league.worker) as port, pytest.raises(grpc.RpcError):
        dial(port, league.worker)
