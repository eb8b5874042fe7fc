"""A network of three layers, 784-128-128-10, on images that nobody may see.

    HANSA_DATA=… hansa mpc local examples/secret/mnist_mlp.py

Without HANSA_DATA it learns the 8 × 8 digits that scikit-learn carries.
"""

import torch.nn.functional as F
from learning import Training, accuracy, arguments, beside, images
from torch import nn

import hansa.mpc


def main() -> None:
    asked = arguments(__doc__, epochs=5, batch=128, lr=0.2, hidden=128, rows=60_000)
    (x, digit), test = images(asked.quick)
    train = x[: asked.rows], F.one_hot(digit[: asked.rows], 10).float()

    def net() -> nn.Module:
        hidden = asked.hidden
        layers = nn.Linear(x.shape[1], hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 10)
        return nn.Sequential(*layers)

    training = Training(F.cross_entropy, asked.epochs, asked.batch, asked.lr)
    with hansa.mpc.connect() as session:
        beside(session, net, training, train, test, accuracy, "accuracy of the digits")


if __name__ == "__main__":
    main()
