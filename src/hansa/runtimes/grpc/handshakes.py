"""Peers whom TLS itself turns away: gRPC tells nobody but its own log, on the process's standard error.

So a server reads that log: standard error of C code goes through a pipe, handshakes that failed become sentences in our
log, the rest is handed on. For a process that is a server and nothing else; `serve` asks for it.
"""

import logging
import os
import re
import sys
import threading
import time

LOG = logging.getLogger("hansa.server")
_FAILED = re.compile(rb"Handshake failed with error \S+ ?(?:error:)?(.*)")
_NOISE = re.compile(rb"^(?:[IW]\d{4} \d\d:|WARNING: All log messages before absl)")
_MEANING = {
    "CERTIFICATE_VERIFY_FAILED": "its certificate is not one of this federation's authority, or has expired",
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "it showed no certificate",
    "NO_SHARED_CIPHER": "it does not speak TLS 1.3",
    "UNSUPPORTED_PROTOCOL": "it does not speak TLS 1.3",
    "WRONG_VERSION_NUMBER": "it does not speak TLS",
    "HTTP_REQUEST": "it does not speak TLS",
}


def sentence(failure: str) -> str:
    """What a failure of TLS means.

    >>> sentence("1000007d:SSL routines:OPENSSL_internal:CERTIFICATE_VERIFY_FAILED: self signed certificate")
    "its certificate is not one of this federation's authority, or has expired (CERTIFICATE_VERIFY_FAILED)"
    """
    for name, meaning in _MEANING.items():
        if name in failure:
            return f"{meaning} ({name})"
    return failure.strip()[:200]


def prepare() -> None:
    """Has gRPC log handshakes: it looks at its verbosity once, when it is imported, and grumbles if told much."""
    if "grpc" in sys.modules:
        return
    os.environ["GRPC_VERBOSITY"] = "INFO"  # whatever a parent process left there
    real = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        import hansa.runtimes.grpc.tls  # noqa: F401
    finally:
        os.dup2(real, 2)
        os.close(real)
        os.close(nowhere)


def listen() -> None:
    """Begins to read."""
    real = os.dup(2)
    source, sink = os.pipe()
    os.dup2(sink, 2)
    os.close(sink)
    sys.stderr = os.fdopen(os.dup(real), "w", buffering=1)  # Python's own goes straight on
    threading.Thread(target=_read, args=(source, real), name="handshakes", daemon=True).start()


def _read(source: int, real: int) -> None:
    second, count = 0.0, 0
    with open(source, "rb") as lines:
        for line in lines:
            failed = _FAILED.search(line)
            if failed is None:
                if not _NOISE.match(line):
                    os.write(real, line)
                continue
            if time.monotonic() - second > 1.0:
                second, count = time.monotonic(), 0
            count += 1
            if count <= 10:  # a flood of strangers does not become one of lines
                LOG.warning("refused a peer in the TLS handshake: %s", sentence(failed[1].decode(errors="replace")))
