"""Gradient-boosted trees over histograms, whoever has the columns or the rows.

fit(columns, labels, settings)      where one party has everything
grow(sources, gradients, …)         one tree over columns of many owners: hansa.vertical.boosting has the encrypted ones
"""

from hansa.algorithms.trees.boost import fit
from hansa.algorithms.trees.settings import Boosting
from hansa.algorithms.trees.tree import Boosted, Split, Tree, joined
from hansa.algorithms.trees.xgboost_json import to_xgboost

__all__ = ["Boosted", "Boosting", "Split", "Tree", "fit", "joined", "to_xgboost"]
