"""An ensemble as one array, so that trees travel through pipelines as any tensor does.

    trees[t, node]   feature + 1 (0 at a leaf), threshold, missing to the left, value of the leaf      float64
    node i           its children are 2i + 1, where x < threshold, and 2i + 2

A tree of zeros is one leaf of value 0: a free place.
"""

import numpy as np
from numpy.typing import NDArray

from hansa.algorithms.trees.losses import Floats
from hansa.algorithms.trees.tree import Tree

FEATURE, THRESHOLD, MISSING_LEFT, LEAF = range(4)
_LARGEST = float(np.finfo(np.float64).max)  # parts what is present from what is missing, and is finite


def empty(trees: int, depth: int) -> Floats:
    """So many free places."""
    return np.zeros((trees, 2 ** (depth + 1) - 1, 4))


def encoded(tree: Tree, nodes: int) -> Floats:
    """A tree whose columns are named by their place, "0", "1", …"""
    out = np.zeros((nodes, 4))
    for node, split in tree.splits.items():
        assert split.threshold is not None
        out[node, :LEAF] = int(split.column) + 1, min(split.threshold, _LARGEST), split.missing_left
    for node, value in tree.leaves.items():
        out[node, LEAF] = value
    return out


def reached(tree: Floats, x: Floats, levels: int | None = None) -> NDArray[np.int64]:
    """The node that each row of x reaches, at most so many levels down."""
    depth = (len(tree) + 1).bit_length() - 2
    node = np.zeros(len(x), np.int64)
    for _ in range(depth if levels is None else levels):
        feature = np.rint(tree[node, FEATURE]).astype(np.int64) - 1
        inner = feature >= 0
        value = x[np.arange(len(x)), np.maximum(feature, 0)]
        left = np.where(np.isnan(value), tree[node, MISSING_LEFT] > 0.5, value < tree[node, THRESHOLD])
        node = np.where(inner, 2 * node + 2 - left, node)
    return node


def margins(trees: Floats, x: Floats) -> Floats:
    """The sum of the leaves that each row of x reaches, in the order of the trees."""
    total = np.zeros(len(x))
    for tree in trees:
        if tree.any():
            total += tree[reached(tree, x), LEAF]
    return total
