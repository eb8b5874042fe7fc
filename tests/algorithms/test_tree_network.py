"""Clients' own trees gathered side by side, and a small network over what they say, trained by FedAvg."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hansa
from hansa.algorithms.trees import Boosting, fit
from hansa.algorithms.trees.horizontal import TreeModel
from hansa.algorithms.trees.network import ClientTrees, OwnTrees, TreeGathering, TreeNetwork, placed
from hansa.core.errors import ConfigError, CorruptFile, NotFound, TrainingFailed

SETTINGS = Boosting(trees=6, depth=3, bins=16)


def hospitals(clients: int = 4, rows: int = 120) -> tuple[Any, np.ndarray, np.ndarray]:
    r = np.random.default_rng(1)
    x = r.normal(size=((clients + 4) * rows, 4))
    y = (x[:, 0] * x[:, 1] + x[:, 2] + 0.5 * r.normal(size=len(x)) > 0) * 1.0
    x[r.random(x.shape) < 0.05] = np.nan
    cut = clients * rows
    parts = {f"h{at}": hansa.Dataset(x=x[at:cut:clients], y=y[at:cut:clients]) for at in range(clients)}
    return hansa.Clients.of(parts), x[cut:], y[cut:]


def gathering(places: int, rounds: int) -> hansa.Job:
    pipeline = hansa.Pipeline([hansa.UniformMean()], hansa.Sum())
    return hansa.Job(
        model=OwnTrees(SETTINGS, places), algorithm=TreeGathering(), cohort=4, rounds=rounds, pipeline=pipeline
    )


def auc(scores: np.ndarray, y: np.ndarray) -> float:
    return float((scores[y > 0.5][:, None] > scores[y < 0.5][None]).mean())


def test_every_client_s_own_trees_are_gathered_once_however_often_places_meet() -> None:
    clients, x, _ = hospitals()
    history = hansa.train(gathering(places=6, rounds=12), clients)  # in six places, four clients meet often
    found = history.model
    assert len(found) == 4 * SETTINGS.trees and found.clients == 4
    said = found.outputs(x).reshape(len(x), 4, SETTINGS.trees)
    for name in clients.ids:
        data = clients[name]
        work = hansa.LocalWork(lr=1.0, steps=SETTINGS.trees)
        own = TreeModel(SETTINGS).fit(TreeModel(SETTINGS).init(0), data, work, np.random.default_rng(0))
        alone = TreeModel(SETTINGS).finish(own.params).predict(x)
        apart = [np.abs(1 / (1 + np.exp(-said[:, at].sum(1))) - alone).max() for at in range(4)]
        assert sorted(apart)[0] < 1e-5 < sorted(apart)[1], name
    assert history.rounds[-1].train["accuracy"] > 0.7


def test_a_network_over_the_trees_learns_more_than_one_client_alone() -> None:
    torch = pytest.importorskip("torch")
    from hansa.adapters.torch_trees import TreeConvolution

    clients, x, y = hospitals()
    found = hansa.train(gathering(places=16, rounds=8), clients).model
    net = partial(TreeConvolution, clients=found.clients, trees=found.each, channels=8)
    inner = hansa.TorchModel(net, loss=torch.nn.functional.binary_cross_entropy_with_logits)
    work = hansa.LocalWork(lr=0.01, epochs=5, batch_size=32, optimiser="adam")
    pipeline = hansa.Pipeline([hansa.WeightedMean()], hansa.Sum())
    job = hansa.Job(
        model=TreeNetwork(found, inner), algorithm=hansa.FedAvg(work), cohort=4, rounds=6, pipeline=pipeline
    )
    trees, network = hansa.train(job, clients).model
    with torch.no_grad():
        together = auc(network(torch.from_numpy(trees.outputs(x))).numpy(), y)
    alone = []
    for name in clients.ids:
        data = clients[name]
        own = fit({str(at): data["x"][:, at] for at in range(4)}, data["y"], SETTINGS)
        alone.append(auc(own.predict({str(at): x[:, at] for at in range(4)}), y))
    assert together > max(alone) + 0.01, (together, alone)
    assert job.fingerprint() != hansa.Job(
        model=TreeNetwork(ClientTrees(found.trees[:2]), inner), algorithm=job.algorithm, cohort=4, rounds=6,
        pipeline=pipeline,
    ).fingerprint()  # fmt: skip


def test_trees_are_kept_in_a_file(tmp_path: Path) -> None:
    clients, x, _ = hospitals()
    history = hansa.train(gathering(places=16, rounds=6), clients)
    history.save(tmp_path / "trees.safetensors")
    assert np.array_equal(ClientTrees.load(tmp_path / "trees.safetensors").outputs(x), history.model.outputs(x))
    with pytest.raises(NotFound, match="gather them first"):
        ClientTrees.load(tmp_path / "none.safetensors")
    (tmp_path / "other.safetensors").write_bytes(b"x")
    with pytest.raises(CorruptFile):
        ClientTrees.load(tmp_path / "other.safetensors")


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="loss='softmax'"):
        OwnTrees(Boosting(loss="softmax"), 3)
    with pytest.raises(ConfigError, match="has shape"):
        ClientTrees(np.zeros((0, 3, 7, 4)))
    full = OwnTrees(SETTINGS, 1).init(0).updated({"used": np.ones(1)})
    with pytest.raises(TrainingFailed, match=r"all 1 places are taken"):
        placed(full, np.zeros((6, 15, 4)), np.random.default_rng(0))
