"""Boosted trees in XGBoost's JSON, which its `Booster.load_model` reads.

XGBoost compares numbers as float32: thresholds are rounded up to one, so that every float32 is sent the same way as
here. Columns of text have no place in it, for XGBoost's categories are codes whose meaning its file does not keep.

Source: https://xgboost.readthedocs.io/en/stable/tutorials/saving_model.html and the schema there
"""

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from hansa.algorithms.trees.tree import Boosted, Tree
from hansa.core.errors import DataError

_OBJECTIVES = {"logistic": "binary:logistic", "squared": "reg:squarederror", "softmax": "multi:softprob"}
_LARGEST = float(np.finfo(np.float32).max)


def to_xgboost(boosted: Boosted, columns: Sequence[str]) -> str:
    """The text of a model file.

    Args:
      boosted: a whole ensemble: of `fit`, or of `joined`.
      columns: the columns in the order of XGBoost's matrix; those that no tree asks too.

    Raises:
      DataError: one party's part, a column of text, or one that is not among `columns`.
    """
    if boosted.owners or not boosted.base:
        raise DataError(f"this is the part of '{boosted.party}': join the parts of all owners first.")
    place = {name: at for at, name in enumerate(columns)}
    for split in (split for round in boosted.trees for tree in round for split in tree.splits.values()):
        if split.threshold is None:
            raise DataError(f"column '{split.column}' is text, which XGBoost's file has no place for.")
        if split.column not in place:
            raise DataError(f"column '{split.column}' is asked by the trees and not among {list(columns)}.")
    outputs = len(boosted.base)
    trees = [_tree(tree, place) for round in boosted.trees for tree in round]
    for at, tree in enumerate(trees):
        tree["id"] = at
    base = 1 / (1 + math.exp(-boosted.base[0])) if boosted.loss == "logistic" else boosted.base[0]
    objective: dict[str, Any] = {"name": _OBJECTIVES[boosted.loss]}
    if boosted.loss == "softmax":
        objective["softmax_multiclass_param"] = {"num_class": str(outputs)}
    else:
        objective["reg_loss_param"] = {"scale_pos_weight": "1"}
    model = {
        "gbtree_model_param": {"num_parallel_tree": "1", "num_trees": str(len(trees))},
        "iteration_indptr": list(range(0, len(trees) + 1, outputs)),
        "tree_info": [at % outputs for at in range(len(trees))],
        "trees": trees,
    }
    learner = {
        "attributes": {},
        "feature_names": list(columns),
        "feature_types": ["float"] * len(columns),
        "gradient_booster": {"model": model, "name": "gbtree"},
        "learner_model_param": {
            "base_score": repr(float(base)),
            "boost_from_average": "0",
            "num_class": str(outputs if boosted.loss == "softmax" else 0),
            "num_feature": str(len(columns)),
            "num_target": "1",
        },
        "objective": objective,
    }
    return json.dumps({"learner": learner, "version": [2, 0, 0]}, allow_nan=False)


def _tree(tree: Tree, place: dict[str, int]) -> dict[str, Any]:
    """One tree, its nodes numbered without gaps."""
    nodes = sorted({*tree.splits, *tree.leaves})
    number = {node: at for at, node in enumerate(nodes)}
    splits = [tree.splits.get(node) for node in nodes]
    values = [tree.leaves.get(node, 0.0) for node in nodes]
    return {
        "base_weights": values,
        "categories": [],
        "categories_nodes": [],
        "categories_segments": [],
        "categories_sizes": [],
        "default_left": [int(split is not None and split.missing_left) for split in splits],
        "left_children": [number[2 * node + 1] if node in tree.splits else -1 for node in nodes],
        "right_children": [number[2 * node + 2] if node in tree.splits else -1 for node in nodes],
        "parents": [number[(node - 1) // 2] if node else 2**31 - 1 for node in nodes],
        "split_conditions": [
            value if split is None else _upwards(split.threshold or 0.0)
            for split, value in zip(splits, values, strict=True)
        ],
        "split_indices": [0 if split is None else place[split.column] for split in splits],
        "split_type": [0] * len(nodes),
        "loss_changes": [0.0] * len(nodes),
        "sum_hessian": [0.0] * len(nodes),
        "tree_param": {
            "num_deleted": "0",
            "num_feature": str(len(place)),
            "num_nodes": str(len(nodes)),
            "size_leaf_vector": "1",
        },
    }


def _upwards(threshold: float) -> float:
    """The smallest float32 that is no less."""
    rounded = np.float32(min(threshold, _LARGEST))
    return float(rounded if rounded >= threshold or threshold > _LARGEST else np.nextafter(rounded, np.float32(np.inf)))
