"""The rules by which data falls to clients: by size alone, by label, or by a column of the data.

Each is a frozen dataclass with the one method of `Partitioner`; each gives every row to exactly one client.
"""

from hansa.data.partitioners.column import ByTime, GroupedNaturalId, NaturalId
from hansa.data.partitioners.label import Dirichlet, InnerDirichlet, Pathological, Shards
from hansa.data.partitioners.size import IID, QuantitySkew, Sizes

__all__ = [
    "IID",
    "ByTime",
    "Dirichlet",
    "GroupedNaturalId",
    "InnerDirichlet",
    "NaturalId",
    "Pathological",
    "QuantitySkew",
    "Shards",
    "Sizes",
]
