"""Split learning: a bank and a shop train one network on columns that stay with them, and the bank's labels.

    pip install 'hansa[torch,sklearn]'
    python examples/split_learning.py [--epochs 10]

Here both owners are threads of this process; with `TlsMesh` in place of `LocalMesh` each is a process of its own, and
they speak over mutual TLS. The same rows are then learnt from by a network that has all columns, and by the bank alone.
"""

import argparse
import copy
import os
from functools import partial
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

from hansa.runtimes.mesh.local import LocalMesh, together
from hansa.vertical import AlignedTable, RandomisedResponse, SplitLearning

ROUNDS = int(os.environ.get("HANSA_ROUNDS", "10"))


def tables(rows: int = 3000) -> tuple[AlignedTable, AlignedTable, torch.Tensor]:
    """Ten columns of the bank, eight of the shop, and who did not pay back, which both say something of."""
    random = np.random.default_rng(0)
    means = random.normal(size=(rows, 3))
    bank = means @ random.normal(size=(3, 10)) + 2 * random.normal(size=(rows, 10))
    shop = means @ random.normal(size=(3, 8)) + random.normal(size=(rows, 8))
    late = np.tanh(means[:, 0]) * means[:, 1] + means[:, 2] + 0.7 * random.normal(size=rows) > 0.5

    def table(owner: str, x: np.ndarray) -> AlignedTable:
        return AlignedTable(owner, {f"{owner}{at}": x[:, at] / x[:, at].std() for at in range(x.shape[1])})

    return table("bank", bank), table("shop", shop), torch.from_numpy(late.astype(np.int64))


def bottom(columns: int) -> nn.Module:
    return nn.Sequential(nn.Linear(columns, 16), nn.ReLU())


def top(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, 16), nn.ReLU(), nn.Linear(16, 2))


class Whole(nn.Module):
    """The same network in one place."""

    def __init__(self, bottoms: list[nn.Module], head: nn.Module) -> None:
        super().__init__()
        self.bottoms, self.head = nn.ModuleList(bottoms), head

    def forward(self, *parts: torch.Tensor) -> torch.Tensor:
        joined = [each(x) for each, x in zip(self.bottoms, parts, strict=True)]
        outputs: torch.Tensor = self.head(torch.cat(joined, 1) if len(joined) > 1 else joined[0])
        return outputs


def trained(whole: Whole, plan: SplitLearning, parts: list[torch.Tensor], y: torch.Tensor) -> Whole:
    """What anybody would write, on the plan's public batches."""
    optimiser = torch.optim.Adam(whole.parameters(), lr=1e-2)
    for epoch in range(plan.epochs):
        for batch in plan.batches(len(y), epoch):
            index = torch.from_numpy(batch)
            nn.functional.cross_entropy(whole(*(x[index] for x in parts)), y[index]).backward()
            optimiser.step()
            optimiser.zero_grad()
    return whole


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--epochs", type=int, default=ROUNDS)
    options = parser.parse_args()
    bank, shop, y = tables()
    train, test = ([each.split(0.7)[at] for each in (bank, shop)] for at in (0, 1))
    order = np.random.default_rng(0).permutation(len(y))
    y_train, y_test = y[np.sort(order[: len(train[0])])], y[np.sort(order[len(train[0]) :])]

    plan = SplitLearning(bottoms=("bank", "shop"), top="bank", batch_size=128, epochs=options.epochs, seed=1)
    torch.manual_seed(0)
    halves = {"bank": (bottom(10), top(32)), "shop": (bottom(8), None)}
    start = copy.deepcopy(halves)

    def owner(plan: SplitLearning, halves: Any, announce: Any, mesh: LocalMesh) -> Any:
        """Both owners' program; each uses its own table, and the bank its labels."""
        mine, labels = (train[0], y_train) if mesh.me == "bank" else (train[1], None)
        given: dict[str, Any] = {"bottom": halves[mesh.me][0], "announce": announce if mesh.me == "bank" else _quiet}
        if mesh.me == "bank":
            given |= {"top": halves["bank"][1], "loss": nn.functional.cross_entropy}
        part = plan.part(mesh, optimiser=partial(torch.optim.Adam, lr=1e-2), **given)
        part.fit(mine, labels)
        return part.predict(test[0] if mesh.me == "bank" else test[1])

    def auc(outputs: torch.Tensor) -> float:
        return float(roc_auc_score(y_test, (outputs[:, 1] - outputs[:, 0]).detach()))

    cut = together(LocalMesh.of(["bank", "shop"]), partial(owner, plan, halves, print))[0]
    columns = [[torch.from_numpy(each.matrix().astype(np.float32)) for each in part] for part in (train, test)]
    pooled = trained(
        Whole([start["bank"][0], start["shop"][0]], copy.deepcopy(start["bank"][1])), plan, columns[0], y_train
    )
    alone = trained(Whole([bottom(10)], top(16)), plan, columns[0][:1], y_train)
    private = SplitLearning(**{**vars(plan), "labels": RandomisedResponse(epsilon=2.0, classes=2)})
    torch.manual_seed(0)
    again = {"bank": (bottom(10), top(32)), "shop": (bottom(8), None)}
    noisy = together(LocalMesh.of(["bank", "shop"]), partial(owner, private, again, _quiet))[0]

    same = all(torch.equal(a, b) for a, b in zip(pooled.head.parameters(), halves["bank"][1].parameters(), strict=True))
    print(f"\nbank alone                          AUC {auc(alone(columns[1][0])):.3f}")
    print(f"bank and shop, cut                  AUC {auc(cut):.3f}")
    print(f"all columns in one place            AUC {auc(pooled(*columns[1])):.3f}   the same bits: {same}")
    print(f"cut, labels randomised with ε = 2   AUC {auc(noisy):.3f}")


def _quiet(_: str) -> None:
    """What the other party is told has been printed."""


if __name__ == "__main__":
    main()
