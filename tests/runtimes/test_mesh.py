"""Links between parties: the same messages in one process and over mutual TLS, and one clear error when one is lost."""

import multiprocessing
import os
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hansa.app.enrol import Authority
from hansa.core.errors import ConfigError, HansaError, NotFound, ProtocolError, Refused, Unreachable
from hansa.core.runtime import Mesh
from hansa.runtimes.mesh import LocalMesh, Parties, Party, TlsMesh
from hansa.runtimes.mesh.local import together

NAMES = ("bank", "clinic", "shop")


@pytest.fixture(scope="module")
def identities(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("identities")
    authority = Authority.create(folder / "authority", "test")
    for name in NAMES:
        authority.issue(name, "party", hosts=["127.0.0.1"]).rename(folder / f"{name}.pem")
    authority.issue("stranger", "worker").rename(folder / "stranger.pem")
    foreign = Authority.create(folder / "other", "other")
    foreign.issue("shop", "party", hosts=["127.0.0.1"]).rename(folder / "foreign.pem")
    return folder


@pytest.fixture
def parties() -> Parties:
    return Parties.here(NAMES)


def over_tls(folder: Path, parties: Parties, play: Callable[[Mesh], Any], **options: Any) -> list[Any]:
    """Every party in a thread; what it returned, or its error."""
    results: list[Any] = [None] * len(NAMES)

    def run(at: int) -> None:
        try:
            with TlsMesh(folder / f"{NAMES[at]}.pem", parties, wait_s=10, **options) as mesh:
                results[at] = play(mesh)
        except HansaError as error:
            results[at] = error

    threads = [threading.Thread(target=run, args=(at,), daemon=True) for at in range(len(NAMES))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(40)
    return results


def round_robin(mesh: Mesh) -> list[bytes]:
    """Everybody sends to everybody, small and larger than any socket's buffer, before anybody receives."""
    large = np.full(3_000_000, ord(mesh.me[0]), np.uint8)
    for peer in mesh.peers:
        mesh.send(peer, "hello", [mesh.me.encode(), b"", large.data])
        mesh.send(peer, "after", [b"!"])
    got = []
    for peer in mesh.peers:
        name, empty, big = mesh.recv(peer, "hello")
        assert not len(empty)
        assert bytes(mesh.recv(peer, "after")[0]) == b"!"
        assert len(big) == 3_000_000
        assert set(np.unique(np.frombuffer(big, np.uint8))) == {peer.encode()[0]}
        got.append(bytes(name))
    return got


def test_the_same_messages_in_one_process_and_over_tls(identities: Path, parties: Parties) -> None:
    local = LocalMesh.of(NAMES)
    assert together(local, round_robin) == [[p.encode() for p in mesh.peers] for mesh in local]
    counted: dict[str, Any] = {}

    def play(mesh: Mesh) -> list[bytes]:
        got = round_robin(mesh)
        counted[mesh.me] = mesh.counters
        return got

    assert over_tls(identities, parties, play) == [[p.encode() for p in mesh.peers] for mesh in local]
    for mesh in local:
        assert counted[mesh.me] == mesh.counters


@pytest.mark.slow
def test_a_party_that_computes_for_long_with_full_buffers_is_not_lost(identities: Path, parties: Parties) -> None:
    large = bytes(40 << 20)

    def play(mesh: Mesh) -> int:
        if mesh.me == "bank":
            mesh.send("shop", "large", [large])
            return len(mesh.recv("shop", "done")[0])
        if mesh.me == "shop":
            time.sleep(8)
            got = mesh.recv("bank", "large")
            mesh.send("bank", "done", [b"!"])
            return len(got[0])
        return 0

    assert sorted(over_tls(identities, parties, play)) == [0, 1, len(large)]


def test_a_party_of_this_process_that_ended_is_not_waited_for() -> None:
    def play(mesh: LocalMesh) -> None:
        if mesh.me == "a":
            mesh.send("b", "first", [b"1"])
            return
        assert [bytes(each) for each in mesh.recv("a", "first")] == [b"1"]
        mesh.recv("a", "second")

    with pytest.raises(ProtocolError, match="party 'a' ended where 'second' was expected: the programs differ"):
        together(LocalMesh.of(["a", "b"]), play)


def test_another_tag_is_a_difference_of_programs(identities: Path, parties: Parties) -> None:
    def play(mesh: Mesh) -> None:
        mesh.send(mesh.peers[0], f"from {mesh.me}", [b"x"])
        mesh.recv({"bank": "clinic", "clinic": "bank", "shop": "bank"}[mesh.me], "sum")

    with pytest.raises(HansaError, match="programs differ|is gone"):
        together(LocalMesh.of(NAMES), play)
    errors = over_tls(identities, parties, play)
    assert any(isinstance(error, ProtocolError) and "programs differ" in str(error) for error in errors), errors
    assert all(isinstance(error, HansaError) for error in errors), errors


@pytest.mark.parametrize(("other", "fault"), [("session", "another program"), ("parties", "another file of parties")])
def test_other_programs_and_other_parties_are_refused(
    identities: Path, parties: Parties, other: str, fault: str
) -> None:
    moved = Parties((*parties.members[:2], Party("shop", parties["shop"].address, ("input",))))

    def run(name: str, out: list[Any]) -> None:
        different = name == "shop"
        given = moved if different and other == "parties" else parties
        session = bytes([different and other == "session"]) * 32
        try:
            with TlsMesh(identities / f"{name}.pem", given, session, wait_s=5) as mesh:
                out.append(mesh.me)
        except HansaError as error:
            out.append(error)

    results: list[Any] = []
    threads = [threading.Thread(target=run, args=(name, results), daemon=True) for name in NAMES]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(results) == 3 and all(isinstance(each, Refused | Unreachable) for each in results), results
    assert any(fault in str(each) for each in results), results


def test_a_certificate_of_another_party_role_or_federation_is_refused(identities: Path, parties: Parties) -> None:
    def sit(results: list[Any]) -> None:
        try:
            TlsMesh(identities / "bank.pem", parties.only(("bank", "shop")), wait_s=3).close()
        except HansaError as error:
            results.append(error)

    for file, fault in (("clinic.pem", "not among the parties"), ("stranger.pem", "not among the parties")):
        with pytest.raises(ConfigError, match=fault):
            TlsMesh(identities / file, parties.only(("bank", "shop")), wait_s=1)
    results: list[Any] = []
    thread = threading.Thread(target=sit, args=(results,), daemon=True)
    thread.start()
    with pytest.raises(Unreachable, match="bank"):
        TlsMesh(identities / "foreign.pem", parties.only(("bank", "shop")), wait_s=2)
    thread.join(20)
    assert isinstance(results[0], HansaError)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_who_shows_no_certificate_or_speaks_tls_1_2_does_not_get_in(
    identities: Path, parties: Parties, version: ssl.TLSVersion
) -> None:
    ended: list[HansaError] = []

    def bank() -> None:
        try:
            TlsMesh(identities / "bank.pem", parties, wait_s=3).close()
        except HansaError as error:
            ended.append(error)

    waiting = threading.Thread(target=bank, daemon=True)
    waiting.start()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode, context.maximum_version = False, ssl.CERT_NONE, version
    if version == ssl.TLSVersion.TLSv1_2:
        context.load_cert_chain(identities / "shop.pem")  # a good one: only the version is wrong
    while True:
        try:
            raw = socket.create_connection(parties["bank"].endpoint, 1)
            break
        except ConnectionRefusedError:
            time.sleep(0.02)
    with raw, pytest.raises(OSError), context.wrap_socket(raw) as link:  # noqa: PT012
        link.sendall(b"x")
        if not link.recv(1):
            raise ConnectionResetError
    waiting.join(20)
    assert "do not answer" in str(ended[0]) or "does not answer" in str(ended[0])


def _party(folder: str, parties: Parties, at: int, pipe: Any) -> None:
    try:
        with TlsMesh(Path(folder) / f"{NAMES[at]}.pem", parties, wait_s=20, stall_s=30) as mesh:
            pipe.send("ready")
            if at == 2:
                time.sleep(60)
            # bank waits for clinic, which waits for shop, which is killed
            mesh.recv(NAMES[at + 1], "value")
    except HansaError as error:
        pipe.send(str(error))


def test_the_party_that_was_killed_is_named_by_all_others_within_five_seconds(
    identities: Path, parties: Parties
) -> None:
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe() for _ in NAMES]
    children = [
        context.Process(target=_party, args=(str(identities), parties, at, pipes[at][1]), daemon=True)
        for at in range(3)
    ]
    for child in children:
        child.start()
    try:
        for pipe, _ in pipes:
            assert pipe.poll(60) and pipe.recv() == "ready"
        assert children[2].pid is not None
        os.kill(children[2].pid, signal.SIGKILL)
        killed = time.monotonic()
        for pipe, _ in pipes[:2]:
            assert pipe.poll(20)
            assert "party 'shop' was lost" in pipe.recv()
        assert time.monotonic() - killed < 15  # five, and the slowness of a busy machine
    finally:
        for child in children:
            child.kill()


def test_a_stalled_party_is_named_after_the_deadline(identities: Path, parties: Parties) -> None:
    def play(mesh: Mesh) -> None:
        if mesh.me == "shop":
            time.sleep(2)
        else:
            mesh.recv("shop", "value", deadline_s=0.3)

    errors = over_tls(identities, parties, play)
    assert any("party 'shop' sent nothing for 0.3 s ('value')" in str(error) for error in errors), errors
    with pytest.raises(Unreachable, match="party 'shop' sent nothing"):
        together(LocalMesh.of(NAMES), play)


def test_a_file_of_parties_is_read_and_its_faults_are_named(tmp_path: Path) -> None:
    file = tmp_path / "parties.toml"
    file.write_text(
        '[[party]]\nname = "bank"\naddress = "h:1"\nroles = ["input"]\n[[party]]\nname="shop"\naddress="h:2"\n'
    )
    parties = Parties.read(file)
    assert parties.names == ("bank", "shop")
    assert parties.with_role("computing") == ("shop",)
    assert parties["bank"].endpoint == ("h", 1)
    assert Parties.read(file).digest() == parties.digest() != parties.only(("bank",)).digest()
    for text, fault in (
        ("x = ", "cannot be read as TOML"),
        ("", "names no party"),
        ('[[party]]\nname="a"', "lacks its address"),
        ('[[party]]\nname="a"\naddress="h"', "write HOST:PORT"),
        ('[[party]]\nname="a"\naddress="h:1"\nroles=["king"]', "do not exist"),
        ('[[party]]\nname="a"\naddress="h:1"\n[[party]]\nname="a"\naddress="h:2"', "occur twice"),
        ('[[party]]\nname="a"\naddress="h:1"\n[[party]]\nname="b"\naddress="h:1"', "the addresses .* occur twice"),
        ('[[party]]\nname="a b"\naddress="h:1"', "cannot be used"),
        ('[[party]]\nname="a"\naddress="h:0"', "write HOST:PORT"),
        ('[[party]]\nname="a"\naddress="h:²"', "write HOST:PORT"),
        ('[[party]]\nname="a"\naddress="h:1"\n[setings]\nx=1', "unknown tables .'setings'."),
    ):
        file.write_text(text)
        with pytest.raises(ConfigError, match=fault):
            Parties.read(file)
    with pytest.raises(NotFound, match="does not exist"):
        Parties.read(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        Parties.read(tmp_path)


def test_who_waited_in_vain_can_wait_again_at_once(identities: Path, parties: Parties) -> None:
    for _ in range(3):
        with pytest.raises(Unreachable, match="does not answer"):
            TlsMesh(identities / "bank.pem", parties, wait_s=0.1)
    assert all(isinstance(each, list) for each in over_tls(identities, parties, round_robin))
