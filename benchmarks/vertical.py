"""Different columns of the same people: the figures of alignment and of each algorithm, over mutual TLS on loopback.

    python benchmarks/vertical.py [psi] [glm] [boosting] [shares] [split]

Each line is a figure: name, value, unit, and what it is held against.

psi: private set intersection of 2¹⁶ keys each; `benchmarks/psi.py` takes other sizes.

glm: logistic regression of 30,000 rows, 13 columns and the labels at one owner, 10 at the other; one epoch in batches
of 1,024. The seconds hold sharing, training and opening; a session's start holds PyTorch's import of its distributed
tensors, which its first operation on any class of tensors waits for, once in a process. AUC is that of scikit-learn's
fit of the joined table.

boosting, shares: boosted trees by encrypted gradients, and on shares; see `benchmarks/boosting.py`.

split: rows a second of a network cut in two, a process and a thread each, over those of the uncut network on one thread
beside it in the same run; medians of epochs that take turns.
"""

import itertools
import sys
import time
from collections.abc import Callable
from typing import Any

import boosting
import psi
import torch
from credit import credit
from figures import figure
from parties import play
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from torch import nn

from hansa.core.runtime import Mesh
from hansa.mpc.session import Session
from hansa.vertical import AlignedTable, Glm
from hansa.vertical.split import SplitLearning, pieces


def fit_glm(mesh: Mesh, protocol: str, settings: dict[str, Any]) -> Any:
    torch.set_num_threads(1)
    x, y = credit()
    table, label = None, None
    if mesh.me == "bank":
        table, label = AlignedTable("bank", {**{f"a{at}": x[:, at] for at in range(13)}, "y": y}), "y"
    elif mesh.me == "shop":
        table = AlignedTable("shop", {f"b{at}": x[:, at] for at in range(13, 23)})
    began = time.perf_counter()
    session = Session(mesh, protocol)
    opening, began = time.perf_counter() - began, time.perf_counter()
    fitted = Glm(**settings).fit(session, table, label)
    seconds = time.perf_counter() - began
    return seconds, fitted.predict(session, table), sum(mesh.counters.sent_bytes.values()) / 1e6, opening


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
        figure(f"logistic regression, {name}, a session's start", max(result[3] for result in results), "s", "")
        figure(f"logistic regression, {name}, sent by a party", max(result[2] for result in results), "MB", "")
        loss = roc_auc_score(y, results[0][1]) - pooled
        figure(f"logistic regression, {name}, AUC less the plain fit's", loss, "", f"{pooled:.4f}; target within 0.002")


NETWORKS: dict[str, tuple[tuple[int, ...], int, int, int]] = {
    "784-512-512-10, batch 256": ((784, 512, 512, 10), 2, 256, 4096),
    "23-64-64-2, batch 256": ((23, 64, 64, 2), 2, 256, 10_240),
}  # sizes, where it is cut, rows a batch, rows


def network(sizes: tuple[int, ...]) -> nn.Sequential:
    torch.manual_seed(0)
    made = [layer for a, b in itertools.pairwise(sizes) for layer in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*made[:-1])


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=1e-3)


def learn_split(mesh: Mesh, name: str, micro_batches: int, epochs: int) -> Any:
    """Seconds of each epoch: cut, and at the label owner those of the whole network, which takes turns with it."""
    torch.set_num_threads(1)
    sizes, cut, batch, rows = NETWORKS[name]
    x, y = torch.randn(rows, sizes[0]), torch.randint(sizes[-1], (rows,))
    bottom, top = pieces(network(sizes), cut)
    plan = SplitLearning(bottoms=("shop",), top="bank", batch_size=batch, micro_batches=micro_batches)
    quiet: dict[str, Any] = {"optimiser": adam, "announce": lambda _: None}
    if mesh.me == "shop":
        part = plan.part(mesh, bottom=bottom, **quiet)
        return [part.fit(x)[0].seconds for _ in range(epochs)]
    part, whole = plan.part(mesh, top=top, loss=nn.functional.cross_entropy, **quiet), network(sizes)
    optimiser, found = adam(whole.parameters()), []
    for _ in range(epochs):
        apart = part.fit(y=y)[0].seconds
        began = time.perf_counter()
        for rows_of in plan.batches(rows, 0):
            index = torch.from_numpy(rows_of)
            nn.functional.cross_entropy(whole(x[index]), y[index]).backward()
            optimiser.step()
            optimiser.zero_grad()
        found.append((apart, time.perf_counter() - began))
    return found


def split() -> None:
    for name, (_, _, _, rows) in NETWORKS.items():
        for micro_batches in (1, 4):
            found = play(["bank", "shop"], learn_split, name, micro_batches, 7)[0][1:]  # the first one warms up
            ratios = sorted(whole / apart for apart, whole in found)
            speed = rows / sorted(apart for apart, _ in found)[len(found) // 2]
            against = f"uncut × {ratios[len(ratios) // 2]:.2f}, {ratios[0]:.2f} to {ratios[-1]:.2f}; target 0.70"
            figure(f"split learning, {name}, {micro_batches} under way", speed, "rows/s", against)


SECTIONS: dict[str, Callable[[], None]] = {
    "psi": psi.two_owners, "glm": glm, "boosting": boosting.encrypted, "shares": boosting.shares, "split": split,
}  # fmt: skip

if __name__ == "__main__":
    for section in sys.argv[1:] or SECTIONS:
        SECTIONS[section]()
