"""A factorisation machine predicts clicks on shares: columns at one party, clicks at another.

    HANSA_DATA=… hansa mpc local examples/secret/factorisation_machine.py

The data is Criteo's sample of 200 rows, which is enough to see that both ways learn the same, and no more.

Source: Rendle 2010, Factorization Machines, https://doi.org/10.1109/ICDM.2010.127
"""

import torch
import torch.nn.functional as F
from learning import Pair, Training, arguments, beside, clicks
from sklearn.metrics import roc_auc_score
from torch import nn

import hansa.mpc


class FactorisationMachine(nn.Module):
    """A linear model, and the product of each two columns with a weight of low rank."""

    def __init__(self, columns: int, rank: int) -> None:
        super().__init__()
        self.linear = nn.Linear(columns, 1)
        self.factors = nn.Parameter(torch.randn(columns, rank) * 0.05)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Of shape (rows, 1): the sum over pairs is half of the square of the sum less the sum of squares."""
        pairs = (x @ self.factors) ** 2 - (x * x) @ (self.factors * self.factors)
        return self.linear(x) + pairs.sum(1, keepdim=True) * 0.5


def area(model: nn.Module, test: Pair) -> float:
    """Under the ROC curve."""
    with torch.no_grad():
        return float(roc_auc_score(test[1][:, 0], model(test[0])[:, 0]))


def main() -> None:
    asked = arguments(__doc__, epochs=15, batch=32, lr=0.3, rank=4)
    train, test = clicks(asked.quick)
    training = Training(F.binary_cross_entropy_with_logits, asked.epochs, asked.batch, asked.lr)
    net = lambda: FactorisationMachine(train[0].shape[1], asked.rank)  # noqa: E731
    with hansa.mpc.connect() as session:
        beside(session, net, training, train, test, area, "area under the ROC curve")


if __name__ == "__main__":
    main()
