"""The rules by which data falls to clients: by size alone, by label, or by a column of the data.

Each is a frozen dataclass with the one method of `Partitioner`; each gives every row to exactly one client. Vertical
ones give every feature to exactly one owner.
"""

from hansa.data.partitioners.column import ByTime, Continuous, GroupedNaturalId, NaturalId
from hansa.data.partitioners.label import Dirichlet, Distribution, InnerDirichlet, Pathological, Shards
from hansa.data.partitioners.size import IID, QuantitySkew, Sizes
from hansa.data.partitioners.vertical import VerticalEven, VerticalSizes, vertical

__all__ = [
    "IID",
    "ByTime",
    "Continuous",
    "Dirichlet",
    "Distribution",
    "GroupedNaturalId",
    "InnerDirichlet",
    "NaturalId",
    "Pathological",
    "QuantitySkew",
    "Shards",
    "Sizes",
    "VerticalEven",
    "VerticalSizes",
    "vertical",
]
