"""Links from party to party, for protocols in which nobody is the server: in one process, or over mutual TLS 1.3."""

from hansa.runtimes.mesh.local import LocalMesh
from hansa.runtimes.mesh.parties import Parties, Party
from hansa.runtimes.mesh.tls import TlsMesh

__all__ = ["LocalMesh", "Parties", "Party", "TlsMesh"]
