"""Transfer on shares: a shop without labels learns to tell good payers, by the few people whom a bank knows too.

    pip install 'hansa[mpc,sklearn]'
    python examples/transfer_learning.py [--steps 40]

The bank has labels of 300 people, a fifth of them wrong; 40 of them are the shop's customers too. Both owners' columns
show the same three traits of a person. Features, labels and encoders are shared among three parties, of whom the third
only computes; here they are threads of this process.
"""

import argparse
import os
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression

from hansa.mpc import Session
from hansa.runtimes.mesh.local import LocalMesh, together
from hansa.vertical import AlignedTable, TransferLearning

ROUNDS = int(os.environ.get("HANSA_ROUNDS", "40"))
SHARED, COUNT = 40, 300


def table(owner: str, x: np.ndarray) -> AlignedTable:
    return AlignedTable(owner, {f"{owner}{at}": x[:, at] for at in range(x.shape[1])})


def people() -> tuple[dict[str, Any], dict[str, Any], AlignedTable, np.ndarray]:
    """What the bank gives, what the shop gives, the shop's other customers, and the truth about these."""
    random = np.random.default_rng(2)
    rows = 2 * COUNT - SHARED
    traits = random.normal(size=(rows, 3))
    truth = (traits @ random.normal(size=3) > 0).astype(float)
    told = np.where(random.random(rows) < 0.2, 1 - truth, truth)[:COUNT]
    bank = traits @ random.normal(size=(3, 12)) + 0.5 * random.normal(size=(rows, 12))
    shop = traits @ random.normal(size=(3, 20)) + random.normal(size=(rows, 20))
    others = table("shop", shop[COUNT:])
    given = {"shared": table("bank", bank[:SHARED]), "others": table("bank", bank[SHARED:COUNT]), "labels": told}
    return given, {"shared": table("shop", shop[:SHARED]), "others": others}, others, truth[COUNT:]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=ROUNDS)
    options = parser.parse_args()
    bank, shop, others, truth = people()
    plan = TransferLearning(source="bank", target="shop", steps=options.steps)

    def party(mesh: LocalMesh) -> Any:
        mine = {"bank": bank, "shop": shop}.get(mesh.me, {})
        with Session(mesh, "aby3") as session:
            model = plan.fit(session, **mine, announce=print if mesh.me == "bank" else _quiet)
            return model.predict(session, others if mesh.me == "shop" else None)

    found = together(LocalMesh.of(["bank", "helper", "shop"]), party)[2]
    alone = LogisticRegression(C=0.1).fit(shop["shared"].matrix(), bank["labels"][:SHARED])
    print(f"\nshop alone, given the {SHARED} labels   accuracy {alone.score(others.matrix(), truth):.3f}")
    print(f"by transfer, all on shares         accuracy {((found > 0.5) == truth).mean():.3f}")


def _quiet(_: str) -> None:
    """What the others are told has been printed."""


if __name__ == "__main__":
    main()
