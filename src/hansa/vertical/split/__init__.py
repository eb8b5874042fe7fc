"""Split learning: one PyTorch network whose layers lie at several owners, and which nobody has as a whole.

SplitLearning(...)            the public part: who has which layers, batches, protection; what each party learns
SplitLearning.part(mesh, …)   this party's part of it: its modules, its data, its optimiser
Relay(...)                    one bottom half that passes from client to client
"""

from hansa.vertical.split.party import SplitParty
from hansa.vertical.split.plan import SplitLearning, pieces
from hansa.vertical.split.protection import RandomisedResponse, RowNoise
from hansa.vertical.split.relay import Relay

__all__ = ["RandomisedResponse", "Relay", "RowNoise", "SplitLearning", "SplitParty", "pieces"]
