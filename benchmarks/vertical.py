"""Different columns of the same people: the figures of alignment and of each algorithm, over mutual TLS on loopback.

    python benchmarks/vertical.py [glm] …

Each line is a figure: name, value, unit, and what it is held against.

glm: logistic regression of 30,000 rows, 13 columns and the labels at one owner, 10 at the other; one epoch in batches
of 1,024. The seconds hold sharing, training and opening; AUC is that of scikit-learn's fit of the joined table.
"""

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from parties import play
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from hansa.core.runtime import Mesh
from hansa.mpc.session import Session
from hansa.vertical import AlignedTable, Glm


def figure(name: str, value: float, unit: str, against: str) -> None:
    print(f"{name}: {value:.4g} {unit}  ({against})", flush=True)


def credit(rows: int = 30_000, columns: int = 23, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Columns and labels of the shape of the UCI credit data."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, columns)) @ (np.eye(columns) + 0.1 * rng.normal(size=(columns, columns)))
    chance = 1 / (1 + np.exp(1 - x @ rng.normal(size=columns) * 0.3))
    return x, (rng.random(rows) < chance).astype(np.float64)


def fit_glm(mesh: Mesh, protocol: str, settings: dict[str, Any]) -> Any:
    torch.set_num_threads(1)
    x, y = credit()
    table, label = None, None
    if mesh.me == "bank":
        table, label = AlignedTable("bank", {**{f"a{at}": x[:, at] for at in range(13)}, "y": y}), "y"
    elif mesh.me == "shop":
        table = AlignedTable("shop", {f"b{at}": x[:, at] for at in range(13, 23)})
    session = Session(mesh, protocol)
    began = time.perf_counter()
    fitted = Glm(**settings).fit(session, table, label)
    seconds = time.perf_counter() - began
    return seconds, fitted.predict(session, table), sum(mesh.counters.sent_bytes.values()) / 1e6


def glm() -> None:
    x, y = credit()
    joined = LogisticRegression().fit(x, y).decision_function(x)
    pooled = roc_auc_score(y, joined)
    cases = (
        ("three-party, SGD", "aby3", {"epochs": 1}, "target 1.5, SPU 3"),
        ("three-party, Newton, 5 steps", "aby3", {"solver": "newton", "epochs": 5}, "SGD's target 1.5"),
        ("two-party, SGD", "two_party", {"epochs": 1}, "target 30, SPU 63"),
    )
    for name, protocol, settings, against in cases:
        names = ["bank", "helper", "shop"] if protocol == "aby3" else ["bank", "shop"]
        results = play(names, fit_glm, protocol, {"lr": 1.0, **settings})
        figure(f"logistic regression, {name}", max(result[0] for result in results), "s", against)
        figure(f"logistic regression, {name}, sent by a party", max(result[2] for result in results), "MB", "")
        loss = roc_auc_score(y, results[0][1]) - pooled
        figure(f"logistic regression, {name}, AUC less the plain fit's", loss, "", f"{pooled:.4f}; target within 0.002")


SECTIONS: dict[str, Callable[[], None]] = {"glm": glm}

if __name__ == "__main__":
    for section in sys.argv[1:] or SECTIONS:
        SECTIONS[section]()
