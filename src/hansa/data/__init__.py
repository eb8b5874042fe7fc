"""Populations: one data set cut into many clients, measures and pictures of how they differ, loaders and generators.

    clients = partition(digits(), Dirichlet(alpha=0.3), clients=100)
    print(heterogeneity.summary(clients))
    plot_labels(clients, path="labels.png")

Importing this room needs NumPy alone; scikit-learn, pyarrow, fsspec and matplotlib are imported by the calls that
use them.
"""

from hansa.core.data import Clients, Dataset
from hansa.data import heterogeneity
from hansa.data.database import Database
from hansa.data.files import from_csv, from_npz, from_parquet, load
from hansa.data.folder import Folder
from hansa.data.generate import blobs, synthetic
from hansa.data.labels import labels
from hansa.data.mapped import Population
from hansa.data.pack import pack
from hansa.data.partitioners import (
    IID,
    ByTime,
    Continuous,
    Dirichlet,
    Distribution,
    GroupedNaturalId,
    InnerDirichlet,
    NaturalId,
    Pathological,
    QuantitySkew,
    Shards,
    Sizes,
    VerticalEven,
    VerticalSizes,
    vertical,
)
from hansa.data.plot import plot_comparison, plot_labels
from hansa.data.population import Partition, Partitioner, partition
from hansa.data.select import AtLeast, Between, ByHash, Drawn, Mapped, Only
from hansa.data.sets.bundled import breast_cancer, diabetes, digits, iris, split, standardise, wine
from hansa.data.sets.mnist import mnist
from hansa.data.sets.shakespeare import shakespeare, tinyshakespeare
from hansa.data.splits import divide, merge, regroup
from hansa.data.twins import twin

__all__ = [
    # Populations.
    "Clients",
    "Dataset",
    "Partition",
    "Partitioner",
    "partition",
    # Populations on disk.
    "Database",
    "Folder",
    "Population",
    "pack",
    # Some clients, or some of their examples.
    "AtLeast",
    "Between",
    "ByHash",
    "Drawn",
    "Mapped",
    "Only",
    "divide",
    "merge",
    "regroup",
    # How rows fall to clients.
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
    # How columns fall to owners.
    "VerticalEven",
    "VerticalSizes",
    "vertical",
    # How clients differ.
    "heterogeneity",
    "labels",
    "plot_comparison",
    "plot_labels",
    # Where data comes from.
    "blobs",
    "breast_cancer",
    "diabetes",
    "digits",
    "from_csv",
    "from_npz",
    "from_parquet",
    "iris",
    "load",
    "mnist",
    "shakespeare",
    "split",
    "standardise",
    "synthetic",
    "tinyshakespeare",
    "twin",
    "wine",
]
