"""Boosted trees over different columns of the same people.

EncryptedBoosting(labels_at="bank").fit(mesh, table, labels)     this owner's part of the trees
predict(mesh, part, table)                                       all owners together
"""

from hansa.vertical.boosting.encrypted import EncryptedBoosting, predict

__all__ = ["EncryptedBoosting", "predict"]
