"""A recurrent network on shares: a GRU reads an image row by row.

    hansa mpc local examples/secret/gru.py

The images are the 8 × 8 digits that scikit-learn carries: eight steps of eight pixels.
"""

import torch
import torch.nn.functional as F
from learning import Training, accuracy, arguments, beside, images
from torch import nn

import hansa.mpc


class Reader(nn.Module):
    """The last state of a GRU, and a dense layer."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.rows, self.out = nn.GRU(8, hidden, batch_first=True), nn.Linear(hidden, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Of images of shape (batch, 8, 8)."""
        states, _ = self.rows(x)
        return self.out(states[:, -1])


def main() -> None:
    asked = arguments(__doc__, epochs=4, batch=32, lr=1.0, hidden=16)
    (x, digit), (test_x, test_y) = images(quick=True)
    kept = slice(0, 96 if asked.quick else len(x))
    train = x.reshape(-1, 8, 8)[kept], F.one_hot(digit[kept], 10).float()
    training = Training(F.cross_entropy, 1 if asked.quick else asked.epochs, asked.batch, asked.lr)
    test = test_x.reshape(-1, 8, 8), test_y
    with hansa.mpc.connect() as session:
        beside(session, lambda: Reader(asked.hidden), training, train, test, accuracy, "accuracy of the digits")


if __name__ == "__main__":
    main()
