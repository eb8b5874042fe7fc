"""MNIST from `HANSA_DATA/mnist/`: 60,000 handwritten digits to train on and 10,000 to test, in their original order.

The files are the four of the original distribution, gzipped; what they unpack to is checked by MD5, so that a figure
reached here is a figure on MNIST.

Source: LeCun, Bottou, Bengio, Haffner 1998, Gradient-based learning applied to document recognition,
http://yann.lecun.com/exdb/mnist
"""

import gzip
import hashlib
import math
import zlib

import numpy as np

from hansa.core.data import Dataset
from hansa.core.errors import DataError
from hansa.data.sets.folder import data_file

MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}


def mnist(shape: tuple[int, ...] = (28, 28)) -> tuple[Dataset, Dataset]:
    """The training and the test set.

    Args:
      shape: of one image; its product is 784: (784,) for a dense network, (1, 28, 28) for a convolutional one.

    Returns:
      Two Datasets: x float32 in 0..1 of shape (images, *shape), y int64, the digit.

    Raises:
      DataError: HANSA_DATA is not set, a file is missing, or its content is not that of MNIST.
    """
    if math.prod(shape) != 784:
        raise DataError(
            f"shape={shape} has {math.prod(shape)} pixels, but an image has 784: use (784,) or (1, 28, 28)."
        )
    return _part("train", shape), _part("t10k", shape)


def _part(part: str, shape: tuple[int, ...]) -> Dataset:
    images = _content(f"{part}-images-idx3-ubyte", header=16).reshape(-1, *shape)
    labels = _content(f"{part}-labels-idx1-ubyte", header=8)
    return Dataset(x=images / np.float32(255), y=labels.astype(np.int64))


def _content(name: str, header: int) -> np.ndarray:
    """The bytes after the header, which the checksum lets us skip unread."""
    path = data_file(f"mnist/{name}.gz")
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error):
        raise DataError(f"'{path}' is not a whole gzip file: fetch it anew.") from None
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != MD5[name]:
        raise DataError(f"'{path}' unpacks to MD5 {found}, not MNIST's {MD5[name]}: fetch it anew.")
    return np.frombuffer(content, dtype=np.uint8, offset=header)
