"""LeNet on shares: convolutions, pooling and dense layers, forward and backward.

    HANSA_DATA=… hansa mpc local examples/secret/lenet.py

Without HANSA_DATA it learns the digits that scikit-learn carries, each pixel three times in both directions.

Source: LeCun, Bottou, Bengio, Haffner 1998, Gradient-Based Learning Applied to Document Recognition,
https://doi.org/10.1109/5.726791 (with relu, and average pooling without weights).
"""

import torch
import torch.nn.functional as F
from learning import Training, accuracy, arguments, beside, images
from torch import nn

import hansa.mpc


def net() -> nn.Module:
    """61,706 parameters, of images of 28 × 28."""
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 5, padding=2), nn.AvgPool2d(2), nn.ReLU()),  # pooled first: a quarter of the comparisons
        *(nn.Conv2d(6, 16, 5), nn.AvgPool2d(2), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)),
    )


def square(x: torch.Tensor) -> torch.Tensor:
    """Pixels in rows and columns, 28 × 28."""
    if x.shape[1] == 64:
        x = F.pad(x.reshape(-1, 8, 8).repeat_interleave(3, 1).repeat_interleave(3, 2), (2, 2, 2, 2))
    return x.reshape(-1, 1, 28, 28)


def main() -> None:
    asked = arguments(__doc__, epochs=1, batch=64, lr=0.1, momentum=0.5, rows=12_800)
    (x, digit), (test_x, test_y) = images(asked.quick)
    rows = min(asked.rows, 128) if asked.quick else asked.rows
    train = square(x[:rows]), F.one_hot(digit[:rows], 10).float()
    training = Training(F.cross_entropy, asked.epochs, asked.batch, asked.lr, asked.momentum)
    with hansa.mpc.connect() as session:
        beside(session, net, training, train, (square(test_x), test_y), accuracy, "accuracy of the digits")


if __name__ == "__main__":
    main()
