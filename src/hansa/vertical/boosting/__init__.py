"""Boosted trees over different columns of the same people.

EncryptedBoosting(labels_at="bank").fit(mesh, table, labels)      this owner's part; the labels' owner sees gains
predict(mesh, part, table)                                        all owners together
hansa.vertical.boosting.shared                                    the same on shares: nobody sees gains; needs torch
"""

from hansa.vertical.boosting.encrypted import EncryptedBoosting, predict

__all__ = ["EncryptedBoosting", "predict"]
