"""Populations: one data set cut into many clients, measures and pictures of how they differ, loaders and generators.

    clients = partition(digits(), Dirichlet(alpha=0.3), clients=100)
    print(heterogeneity.summary(clients))
    plot_labels(clients, path="labels.png")

Importing this room needs NumPy alone; scikit-learn, pyarrow, fsspec and matplotlib are imported by the calls that
use them.
"""

from hansa.core.data import Clients, Dataset
from hansa.data import heterogeneity
from hansa.data.files import from_csv, from_npz, from_parquet, load
from hansa.data.generate import blobs, synthetic
from hansa.data.labels import labels
from hansa.data.partitioners import (
    IID,
    ByTime,
    Dirichlet,
    GroupedNaturalId,
    InnerDirichlet,
    NaturalId,
    Pathological,
    QuantitySkew,
    Shards,
    Sizes,
)
from hansa.data.plot import plot_labels
from hansa.data.population import Partition, Partitioner, partition
from hansa.data.sets.bundled import breast_cancer, diabetes, digits, iris, split, standardise, wine
from hansa.data.sets.mnist import mnist
from hansa.data.sets.shakespeare import shakespeare, tinyshakespeare

__all__ = [
    # Populations.
    "Clients",
    "Dataset",
    "Partition",
    "Partitioner",
    "partition",
    # How rows fall to clients.
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
    # How clients differ.
    "heterogeneity",
    "labels",
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
    "wine",
]
