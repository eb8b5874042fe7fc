"""The labels behind an update of a classifier, from its last layer alone.

With softmax and cross-entropy the gradient of the last bias is the mean of p − onehot(y): below 0 only at labels.

    one example   the one negative entry                                               (iDLG)
    a batch       negative entries first; then, of those left, the lowest, one by one   (LLG)

Sources: Zhao, Mopuri and Bilen 2020, iDLG, https://arxiv.org/abs/2001.02610; Wainakh et al. 2022, User-Level Label
Leakage from Gradients in Federated Learning, https://arxiv.org/abs/2105.09369
"""

import numpy as np

from hansa.core.errors import ConfigError
from hansa.core.tensors import Tensors
from hansa.testing.attacks.linear import in_order


def labels_of(gradient: np.ndarray, examples: int = 1) -> np.ndarray:
    """The labels of a batch, ascending.

    Args:
      gradient: of the last layer's bias, shape (classes,); or of its weights, shape (classes, inputs), whose rows are
        added up (inputs behind ReLU or sigmoid are positive).
      examples: in the batch.

    Returns:
      Shape (examples,): exact for one example, and for batches of an untrained model's even guesses; else a guess.
    """
    left = np.asarray(gradient, np.float64)
    left = (left.sum(axis=1) if left.ndim == 2 else left).copy()
    found = []
    # What one example of a class takes from its entry: about (1 + 1/C) / examples of all that is below 0.
    impact = left[left < 0].sum() * (1 + 1 / len(left)) / examples
    for label in np.flatnonzero(left < 0)[:examples]:
        found.append(int(label))
        left[label] -= impact
    while len(found) < examples:
        lowest = int(np.argmin(left))
        found.append(lowest)
        left[lowest] -= impact
    return np.sort(np.array(found))


def last_bias(difference: Tensors, classes: int) -> str:
    """The name of the classifier's last bias: the last one of so many numbers.

    Raises:
      ConfigError: there is none.
    """
    biases = [name for name in in_order(difference) if name.endswith("bias")]
    fitting = [name for name in biases if difference.shapes[name][0] == (classes,)]
    if not fitting:
        raise ConfigError(f"no tensor of this model is a bias of {classes} classes: its labels cannot be read from it.")
    return fitting[-1]
