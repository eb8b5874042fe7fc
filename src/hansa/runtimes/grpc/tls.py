"""Credentials, channel options and who a peer is. Import gRPC from here, for its environment is set first.

TLS 1.3 alone: gRPC for Python would also accept 1.2, and has no switch for it. It is told to use one suite of TLS 1.2
that needs an RSA certificate, while ours are ECDSA: so no handshake of 1.2 can succeed.
"""

import ipaddress
import os
import socket
import ssl
from collections.abc import Collection
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

os.environ["GRPC_SSL_CIPHER_SUITES"] = "ECDHE-RSA-AES256-GCM-SHA384"
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")  # we start processes, and never fork with gRPC inside
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

import grpc
import grpc.aio

from hansa.core.errors import ConfigError, IdentityError
from hansa.crypto.certificate import Peer, Revoked, check_peer, peer_of
from hansa.crypto.identity import Identity
from hansa.runtimes.grpc.wire import CHUNK, HEADER, MESSAGE

__all__ = [
    "Gate",
    "channel_options",
    "client_credentials",
    "diagnose",
    "grpc",
    "is_loopback",
    "server_credentials",
    "server_options",
]

_COMMON = [
    ("grpc.http2.bdp_probe", 0),  # this alone halves the server's memory
    ("grpc.http2.lookahead_bytes", 512 << 10),
    ("grpc.http2.max_frame_size", CHUNK),
    ("grpc.http2.write_buffer_size", 64 << 10),
    ("grpc.max_send_message_length", MESSAGE + (64 << 10)),
    ("grpc.max_receive_message_length", MESSAGE),
    ("grpc.max_metadata_size", HEADER),
    ("grpc.absolute_max_metadata_size", HEADER),
    ("grpc.keepalive_timeout_ms", 15_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.enable_retries", 0),
]


def server_options() -> list[tuple[str, int]]:
    """Options of the server's side."""
    return [
        *_COMMON,
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.max_concurrent_streams", 32),
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        ("grpc.http2.max_ping_strikes", 4),
        ("grpc.so_reuseport", 0),  # a second server on the port must fail, not share it
    ]


def channel_options() -> list[tuple[str, int]]:
    """Options of a side that dials: after an absence of the server it is tried about once a second."""
    return [
        *_COMMON,
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 2_000),
        ("grpc.max_reconnect_backoff_ms", 1_000),
        ("grpc.use_local_subchannel_pool", 1),
    ]


def server_credentials(identity: Identity) -> Any:
    """Mutual TLS: only peers of the same authority get through the handshake."""
    pair = (identity.tls_key_pem, identity.tls_certificate_pem)
    return grpc.ssl_server_credentials([pair], identity.authority_pem, require_client_auth=True)


def client_credentials(identity: Identity) -> Any:
    """Mutual TLS from the side that dials."""
    return grpc.ssl_channel_credentials(identity.authority_pem, identity.tls_key_pem, identity.tls_certificate_pem)


def is_loopback(address: str) -> bool:
    """Whether HOST:PORT can only be reached from this machine."""
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_loopback(address: str) -> None:
    """ConfigError unless an insecure side stays on this machine."""
    if not is_loopback(address):
        raise ConfigError(
            f"--insecure with {address}: without identities only this machine is safe, use 127.0.0.1:PORT, or enrol."
        )


@lru_cache(maxsize=4096)
def _peer(pem: bytes) -> Peer:
    return peer_of(pem)


class Gate:
    """Who a call is from, by its certificate, and whether it may come in. Asked at every call.

    Args:
      identity: the server's own; None if insecure, where a call is from whom it says.
      revoked: path of the authority's revocation list; read again whenever it changes.
    """

    def __init__(self, identity: Identity | None, revoked: Path | None = None) -> None:
        self._identity, self._path = identity, revoked
        self._stamp: tuple[int, int] | None = None
        self._revoked = Revoked()

    def revoked(self) -> Revoked:
        """The list as it is now."""
        if self._path is None or self._identity is None:
            return self._revoked
        try:
            info = self._path.stat()
        except OSError as error:
            raise IdentityError(
                f"revocation list {self._path} cannot be read ({error.strerror}): copy it there again"
            ) from None
        stamp = (info.st_mtime_ns, info.st_size)
        if stamp != self._stamp:
            self._revoked = Revoked.read(self._path.read_bytes(), self._identity.authority_pem)
            self._stamp = stamp
        return self._revoked

    def enter(self, context: Any, roles: Collection[str]) -> Peer:
        """The peer of a call.

        Raises:
          IdentityError: it may not come in; says why.
        """
        if self._identity is None:
            given = dict(context.invocation_metadata() or ())
            name, role = str(given.get("hansa-name", "")), str(given.get("hansa-role", ""))
            if not name or role not in roles:
                raise IdentityError(
                    f"'{name}' says to be a {role or 'nobody'}, and here {' or '.join(roles)} is needed."
                )
            return Peer(name, role, "insecure", 0, "", datetime.min, datetime.max)
        pems = context.auth_context().get("x509_pem_cert")
        if not pems:
            raise IdentityError("a call without a certificate: use an identity made by `hansa enrol`")
        peer = _peer(bytes(pems[0]))
        fault = self.fault(peer, roles)
        if fault:
            raise IdentityError(fault)
        return peer

    def fault(self, peer: Peer, roles: Collection[str]) -> str | None:
        """Why a peer may not stay; asked again and again of those that are connected for long."""
        if self._identity is None:
            return None
        return check_peer(peer, roles, self.revoked())


def welcome_content(nonce: bytes, worker: str) -> bytes:
    """What a server signs to greet a worker: any member may have a certificate for its host name, no other signs so."""
    return nonce + b"\0" + worker.encode()


def diagnose(address: str, identity: Identity | None) -> str:
    """Why no connection comes about, in a sentence: tries one with Python's own TLS, which names its reasons."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]") or "127.0.0.1"
    try:
        with socket.create_connection((host, int(port)), timeout=5) as plain:
            if identity is None:
                return "it answers, but not as a server of Hansa without identities"
            context = _probe_context(identity)
            with context.wrap_socket(plain, server_hostname=host) as tls:
                tls.settimeout(2)
                # In TLS 1.3 the server judges our certificate after the handshake; one that takes us speaks first.
                if tls.recv(1):
                    return "it answers now"
                return "it does not take our certificate: use an identity that its own federation's authority enrolled"
    except ssl.SSLCertVerificationError as error:
        return (
            f"its certificate is not to be trusted ({error.verify_message}): is it this federation's server, and "
            f"enrolled for the host {host}?"
        )
    except ssl.SSLError as error:
        known = {
            "TLSV1_ALERT_UNKNOWN_CA": "it does not know the authority of our identity: use one of its own federation"
        }
        return known.get(
            error.reason or "",
            f"TLS failed ({error.reason}): does it speak TLS 1.3, and is our identity of its federation?",
        )
    except TimeoutError:
        return "it does not answer in time"
    except (OSError, ValueError) as error:
        return f"nobody answers ({getattr(error, 'strerror', None) or error})"


def _probe_context(identity: Identity) -> ssl.SSLContext:
    import tempfile

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["h2"])  # without it gRPC ends the connection, whoever we are
    context.load_verify_locations(cadata=identity.authority_pem.decode())
    with tempfile.NamedTemporaryFile() as file:  # mode 0600; the library takes keys from files alone
        file.write(identity.tls_key_pem + identity.tls_certificate_pem)
        file.flush()
        context.load_cert_chain(file.name)
    return context
