"""The images that the reproductions train on: MNIST, or in a quick run the digits that scikit-learn carries."""

import numpy as np

import hansa


def images(quick: bool) -> tuple[hansa.Dataset, hansa.Dataset]:
    """The training and the test set: x float32 in 0..1 of shape (784), y the digit; MNIST needs HANSA_DATA."""
    if not quick:
        return hansa.data.mnist((784,))
    train, test = hansa.data.split(hansa.data.digits(), 0.2, seed=0)
    return _enlarged(train.take(range(800))), _enlarged(test)


def _enlarged(digits: hansa.Dataset) -> hansa.Dataset:
    """8 × 8 pixels as 28 × 28, each three times and two rows of margin: a quick run then has the paper's network."""
    blocks = np.kron(digits["x"].reshape(-1, 8, 8), np.ones((1, 3, 3), np.float32))
    return hansa.Dataset(x=np.pad(blocks, ((0, 0), (2, 2), (2, 2))).reshape(-1, 784), y=digits["y"])
