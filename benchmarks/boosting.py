"""Boosted trees over different columns of the same people, over mutual TLS on loopback; a process for each owner.

    python benchmarks/boosting.py [encrypted] [shares]

A tree of depth 5 over 30,000 rows, 13 columns and the labels at one owner, 10 at the other, in 32 bins, beside the
same learner on the joined table. The CPU's seconds, a thread that makes blinders among them, are what one core needs:
a busy machine stretches the other seconds.

On shares, with a third party that computes: the same rows and columns, depth 3, in 8 bins.
"""

import sys
import time
from typing import Any

import numpy as np
import torch
from credit import credit
from figures import figure
from parties import play
from sklearn.metrics import roc_auc_score

from hansa.algorithms.trees import Boosting, fit
from hansa.core.runtime import Mesh
from hansa.mpc import Session
from hansa.vertical import AlignedTable
from hansa.vertical.boosting import EncryptedBoosting, predict
from hansa.vertical.boosting.shared import SharedBoosting, predict_shared


def data() -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Columns by name, of which two matter together, and labels."""
    x, y = credit(together=1.0)
    return {f"c{at}": column for at, column in enumerate(x.T)}, y


def learn(mesh: Mesh, trees: int) -> Any:
    """Seconds and CPU seconds at the end of each tree, the prediction of the training rows, and megabytes sent."""
    columns, labels = data()
    table = AlignedTable("all", columns).only([f"c{at}" for at in (range(13) if mesh.me == "bank" else range(13, 23))])
    ends = [(time.perf_counter(), time.process_time())]
    part = EncryptedBoosting(labels_at="bank", trees=trees).fit(
        mesh, table, labels if mesh.me == "bank" else None,
        observe=lambda _: ends.append((time.perf_counter(), time.process_time())),
    )  # fmt: skip
    sent = sum(mesh.counters.sent_bytes.values()) / 1e6
    return np.diff(ends, axis=0), predict(mesh, part, table), sent


def learn_on_shares(mesh: Mesh, trees: int) -> Any:
    """The same of a session of three."""
    torch.set_num_threads(1)
    columns, labels = data()
    held = {"bank": [f"c{at}" for at in range(13)], "shop": [f"c{at}" for at in range(13, 23)]}
    table = AlignedTable("all", columns).only(held[mesh.me]) if mesh.me in held else None
    session = Session(mesh)
    ends = [(time.perf_counter(), time.process_time())]
    part = SharedBoosting(labels_at="bank", trees=trees, depth=3, bins=8).fit(
        session, table, labels if mesh.me == "bank" else None,
        observe=lambda _: ends.append((time.perf_counter(), time.process_time())),
    )  # fmt: skip
    sent = sum(mesh.counters.sent_bytes.values()) / 1e6
    return np.diff(ends, axis=0), predict_shared(session, part, table), sent


def shares(trees: int = 3) -> None:
    columns, labels = data()
    began = time.perf_counter()
    pooled = fit(columns, labels, Boosting(trees=trees, depth=3, bins=8)).predict(columns)
    joined = (time.perf_counter() - began) / trees
    results = play(["bank", "helper", "shop"], learn_on_shares, trees)
    each = float(np.median(results[0][0][1:, 0]))
    figure("on shares, a tree of depth 3", each, "s", f"× {each / joined:.0f} of the joined table's {joined:.2g}")
    figure("on shares, CPU of a tree", float(np.median(results[0][0][1:, 1])), "s", "one of three parties")
    figure("on shares, sent a tree", results[0][2] / trees, "MB", "a party, sharing of the columns included")
    area = roc_auc_score(labels, pooled)
    figure(
        "on shares, AUC less that of the joined table", roc_auc_score(labels, results[0][1]) - area, "", f"{area:.4f}"
    )


def encrypted(trees: int = 4) -> None:
    columns, labels = data()
    began = time.perf_counter()
    pooled = fit(columns, labels, Boosting(trees=trees)).predict(columns)
    joined = (time.perf_counter() - began) / trees
    results = play(["bank", "shop"], learn, trees)
    figure("the first tree, key and tables included", results[0][0][0, 0], "s", "once")
    each = float(np.median(results[0][0][1:, 0]))
    figure("a tree", each, "s", f"× {each / joined:.0f} of the joined table's {joined:.2g}; target 12; naive 640")
    for owner, (steps, _, sent) in zip(("labels' owner", "other owner"), results, strict=True):
        figure(f"{owner}, CPU of a tree", float(np.median(steps[1:, 1])), "s", "target 12 on one core")
        figure(f"{owner}, sent a tree", sent / trees, "MB", "naive 41 both")
    area = roc_auc_score(labels, pooled)
    figure("AUC less that of the joined table", roc_auc_score(labels, results[0][1]) - area, "", f"{area:.4f}; ± 0.001")


SECTIONS = {"encrypted": encrypted, "shares": shares}

if __name__ == "__main__":
    for section in sys.argv[1:] or SECTIONS:
        SECTIONS[section]()
