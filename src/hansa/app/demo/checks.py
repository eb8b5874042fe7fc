"""What the demo says about security, tried on the running federation: each check is an attempt, and its outcome.

with an identity, TLS 1.3           must be let in; the version and the cipher are what was agreed
with an identity, TLS 1.2           must be refused
without an identity                 must be refused
with an identity from elsewhere     must be refused
"""

import contextlib
import socket
import ssl
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hansa.app.enrol import Authority
from hansa.core.data import Dataset
from hansa.crypto.identity import Identity

WINDOW = 8  # bytes: a run of raw data as long as this must not turn up where data may not be
_PATIENCE_S = 5.0


@dataclass(frozen=True)
class Check:
    """One thing tried: what it was, whether it went as it must, and what was seen."""

    what: str
    passed: bool
    seen: str


def connections(address: str, identity: Path) -> list[Check]:
    """Knocks at the server's door in four ways.

    Args:
      address: HOST:PORT of the running server.
      identity: the file of a member that may connect.
    """
    with tempfile.TemporaryDirectory() as folder:
        elsewhere = Authority.create(Path(folder) / "authority", "another league").issue("hospital-a", "worker")
        return [
            _let_in("a member is let in", address, identity),
            _refused("TLS 1.2 is refused, to a member too", address, identity, identity, ssl.TLSVersion.TLSv1_2),
            _refused("who has no certificate is refused", address, identity, None),
            _refused("who was enrolled by another authority is refused", address, identity, elsewhere),
        ]


def _let_in(what: str, address: str, identity: Path) -> Check:
    try:
        with _dialled(address, identity, identity, ssl.TLSVersion.TLSv1_3) as link:
            link.settimeout(_PATIENCE_S)
            answered = bool(link.recv(1))  # an HTTP/2 server speaks first, once it has believed the certificate
            cipher = (link.cipher() or ("no cipher",))[0]
            return Check(what, answered and link.version() == "TLSv1.3", f"{link.version()}, {cipher}")
    except OSError as error:
        return Check(what, False, _said(error))


def _refused(
    what: str, address: str, trusted: Path, shown: Path | None, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3
) -> Check:
    try:
        with _dialled(address, trusted, shown, version) as link:
            link.settimeout(_PATIENCE_S)
            # In TLS 1.3 a client's handshake ends before the server has judged its certificate.
            return Check(what, not link.recv(1), "connection closed")
    except OSError as error:
        return Check(what, isinstance(error, ssl.SSLError | ConnectionResetError), _said(error))


@contextlib.contextmanager
def _dialled(address: str, trusted: Path, shown: Path | None, version: ssl.TLSVersion):  # type: ignore[no-untyped-def]
    host, _, port = address.rpartition(":")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=Identity.load(trusted).authority_pem.decode())
    context.minimum_version = context.maximum_version = version
    context.set_alpn_protocols(["h2"])
    if shown is not None:
        context.load_cert_chain(shown)
    with (
        socket.create_connection((host, int(port)), timeout=_PATIENCE_S) as plain,
        context.wrap_socket(plain, server_hostname=host) as link,
    ):
        link.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")
        yield link


def _said(error: OSError) -> str:
    return str(getattr(error, "reason", "") or error.strerror or error).lower().replace("_", " ")


def rows_in(parts: Iterable[Dataset], files: Iterable[Path]) -> Check:
    """Whether any patient's numbers, as float32 or float64, lie in any of these files.

    Args:
      parts: data in the features' own units, and as it was trained on.
      files: what the server keeps.
    """
    known = set[bytes]()
    for part in parts:
        for dtype in (np.float32, np.float64):
            rows = np.ascontiguousarray(part["x"], dtype=dtype)
            raw, width = rows.tobytes(), rows.itemsize
            known |= {raw[at : at + WINDOW] for at in range(0, len(raw) - WINDOW + 1, width)}
    known = {window for window in known if len(set(window)) > 3}  # zeros and ones are in every file
    searched = 0
    for path in files:
        content = path.read_bytes()
        searched += len(content)
        for at in range(len(content) - WINDOW + 1):
            if content[at : at + WINDOW] in known:
                return Check("no patient's numbers are in the server's state", False, f"{path.name} at byte {at}")
    return Check(
        "no patient's numbers are in the server's state", True, f"{searched:,} bytes searched for {len(known):,} pieces"
    )
