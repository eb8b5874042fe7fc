"""Which words a client's texts had, from an update of a model that begins with an embedding or a bag of words.

A word that does not occur has no gradient: its row of the embedding (its column of a bag of words' weights) does not
move at all under plain descent. The rows that moved are the client's vocabulary, whatever was done with the words
afterwards. (Weight decay moves all rows, but those of absent words by nothing else.)

Source: McMahan et al. 2017, Communication-Efficient Learning of Deep Networks from Decentralized Data, section 1,
https://arxiv.org/abs/1602.05629
"""

from dataclasses import dataclass

import numpy as np


def words_in(change: np.ndarray) -> np.ndarray:
    """The words that occurred, ascending.

    Args:
      change: of an embedding, shape (words, width); or of a bag of words' weights, transposed.

    >>> words_in(np.array([[0.0, 0.0], [0.1, -0.2], [0.0, 0.3]])).tolist()
    [1, 2]
    """
    return np.flatnonzero((np.asarray(change) != 0).any(axis=1))


@dataclass(frozen=True)
class Leak:
    """How much of a vocabulary was read.

    Args:
      recall: share of the words that occurred which were found.
      false_alarms: share of the words that did not occur which were found all the same.
    """

    recall: float
    false_alarms: float

    @property
    def advantage(self) -> float:
        """Recall less false alarms: 1 reads everything, 0 is no better than guessing."""
        return self.recall - self.false_alarms


def leak(found: np.ndarray, occurred: np.ndarray, vocabulary: int) -> Leak:
    """How well `found` tells the words that occurred from those that did not."""
    said, true = np.zeros(vocabulary, bool), np.zeros(vocabulary, bool)
    said[found], true[occurred] = True, True
    return Leak(float(said[true].mean()) if true.any() else 0.0, float(said[~true].mean()) if (~true).any() else 0.0)
