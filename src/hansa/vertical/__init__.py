"""Different columns of the same people: private alignment, and learning on what nobody joins."""

from hansa.vertical.glm import FittedGlm, Glm
from hansa.vertical.table import AlignedTable

__all__ = ["AlignedTable", "FittedGlm", "Glm"]
