"""Logistic regression on images: two digits, or 0–4 against 5–9.

HANSA_DATA=… hansa mpc local examples/secret/mnist_logistic.py --low 0 --high 1
HANSA_DATA=… hansa mpc local examples/secret/mnist_logistic.py --halves
"""

import sys

import torch.nn.functional as F
from learning import Pair, Training, accuracy, arguments, beside, images
from torch import nn

import hansa.mpc


def main() -> None:
    halves = "--halves" in sys.argv and not sys.argv.remove("--halves")  # the other options are numbers
    asked = arguments(__doc__, epochs=1, batch=128, lr=0.1, low=0, high=1)

    def labelled(pair: Pair) -> Pair:
        """Images of the two classes, and 1 for the second one."""
        x, digit = pair
        if halves:
            return x, (digit > 4).float()[:, None]
        kept = (digit == asked.low) | (digit == asked.high)
        return x[kept], (digit[kept] == asked.high).float()[:, None]

    train, test = (labelled(pair) for pair in images(asked.quick))
    training = Training(F.binary_cross_entropy_with_logits, asked.epochs, asked.batch, asked.lr)
    called = "accuracy, 0–4 against 5–9" if halves else f"accuracy, {asked.low} against {asked.high}"
    with hansa.mpc.connect() as session:
        beside(session, lambda: nn.Linear(train[0].shape[1], 1), training, train, test, accuracy, called)


if __name__ == "__main__":
    main()
