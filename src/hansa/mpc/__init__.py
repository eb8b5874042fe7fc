"""Secret-shared learning: an ordinary PyTorch script is the program that several parties compute without seeing it.

connect(parties, identity=...)      a session with the parties of a file, over mutual TLS
local(program)                      all parties here, as threads: for tests and for writing programs
save_shares, reveal_shares          shares as files: data and models without a session
"""

from hansa.core.errors import SecretError
from hansa.mpc.files import load_shares, reveal_shares, save_shares
from hansa.mpc.secret import SecretTensor
from hansa.mpc.session import Session, connect, local

__all__ = ["SecretError", "SecretTensor", "Session", "connect", "load_shares", "local", "reveal_shares", "save_shares"]
