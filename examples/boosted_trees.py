"""A bank and a shop boost trees on what both know of the same people, and neither sees a column of the other's.

    pip install 'hansa[sklearn,vertical]'
    python examples/boosted_trees.py [--trees 4] [--rows 800]

The bank knows who paid back. Its gradients travel under its own Paillier key; the shop adds what it cannot read, and
keeps its splits to itself. Both run as threads of this process here; with `hansa.runtimes.mesh.TlsMesh` each is a
process of its own, and they speak over mutual TLS.
"""

import argparse
import os

import numpy as np
from sklearn.metrics import roc_auc_score

from hansa.algorithms.trees import Boosted, Boosting, fit
from hansa.runtimes.mesh import LocalMesh
from hansa.runtimes.mesh.local import together
from hansa.vertical import AlignedTable
from hansa.vertical.boosting import EncryptedBoosting, predict


def people(rows: int) -> dict[str, AlignedTable]:
    """What the two know of each of them, in one order; the bank knows who paid back."""
    rng = np.random.default_rng(7)
    income, age, debt, returns = rng.normal(size=(4, rows))
    pays_by = rng.choice(np.array(["card", "invoice", "cash"], object), rows)
    score = income - debt + (pays_by == "invoice") * (age - 1) - np.abs(returns) + 0.7
    paid_back = rng.random(rows) < 1 / (1 + np.exp(-2 * score))
    returns[rng.random(rows) < 0.2] = np.nan  # never bought anything
    bank = AlignedTable("bank", {"income": income, "age": age, "paid_back": paid_back})
    return {"bank": bank, "shop": AlignedTable("shop", {"debt": debt, "returns": returns, "pays_by": pays_by})}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trees", type=int, default=int(os.environ.get("HANSA_ROUNDS", "4")))
    parser.add_argument("--rows", type=int, default=800)
    options = parser.parse_args()
    train, test = {}, {}
    for owner, table in people(options.rows).items():
        train[owner], test[owner] = table.split(0.7)  # the same rows everywhere
    settings = {"trees": options.trees, "depth": 3, "bins": 16}

    def play(mesh: LocalMesh) -> tuple[Boosted, np.ndarray | None]:
        boosting = EncryptedBoosting(labels_at="bank", **settings)
        part = boosting.fit(mesh, train[mesh.me], labels="paid_back" if mesh.me == "bank" else None)
        return part, predict(mesh, part, test[mesh.me])  # the shop learns no prediction

    (bank, joint), (shop, _) = together(LocalMesh.of(["bank", "shop"]), play)
    own = {name: train["bank"][name] for name in ("income", "age")}
    alone = fit(own, train["bank"]["paid_back"], Boosting(**settings))
    pooled = fit({**own, **train["shop"].columns}, train["bank"]["paid_back"], Boosting(**settings))
    answers = {
        "the bank alone": alone.predict(test["bank"].columns),
        "both together": joint,
        "all in one table": pooled.predict({**test["bank"].columns, **test["shop"].columns}),
    }
    for name, answer in answers.items():
        print(f"{name:<17} AUC {roc_auc_score(test['bank']['paid_back'], answer):.4f}")
    asked = {who: sum(len(tree.splits) for round in part.trees for tree in round) for who, part in
             (("bank", bank), ("shop", shop))}  # fmt: skip
    print(f"splits: {asked['bank']} at the bank, {asked['shop']} at the shop; the same predictions as of one table: "
          f"{np.array_equal(answers['both together'], answers['all in one table'])}")  # fmt: skip


if __name__ == "__main__":
    main()
