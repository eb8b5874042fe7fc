"""Different columns of the same people: private alignment, and learning on what nobody joins."""

from hansa.vertical.table import AlignedTable

__all__ = ["AlignedTable"]
