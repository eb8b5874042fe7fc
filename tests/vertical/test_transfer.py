"""Secure federated transfer learning: the same on shares as in the clear, and better than the target alone."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from hansa.core.errors import ConfigError, DataError
from hansa.mpc import Session
from hansa.runtimes.mesh.local import LocalMesh, together
from hansa.vertical import AlignedTable
from hansa.vertical.transfer import TransferLearning

SHARED = 40
plan = TransferLearning(source="bank", target="shop", steps=40)


def people(seed: int, shared: int = SHARED, count: int = 300) -> dict[str, Any]:
    """Owners that see the same three traits of a person through other columns; a fifth of the labels is wrong."""
    random = np.random.default_rng(seed)
    rows = 2 * count - shared
    traits = random.normal(size=(rows, 3))
    truth = (traits @ random.normal(size=3) > 0).astype(float)
    source = traits @ random.normal(size=(3, 12)) + 0.5 * random.normal(size=(rows, 12))
    target = traits @ random.normal(size=(3, 20)) + random.normal(size=(rows, 20))
    told = np.where(random.random(rows) < 0.2, 1 - truth, truth)

    def table(owner: str, x: np.ndarray) -> AlignedTable:
        return AlignedTable(owner, {f"c{at}": x[:, at] for at in range(x.shape[1])})

    return {
        "bank": {
            "shared": table("bank", source[:shared]),
            "others": table("bank", source[shared:count]),
            "labels": told[:count],
        },
        "shop": {"shared": table("shop", target[:shared]), "others": table("shop", target[count:])},
        "truth": truth[count:],
    }


def learnt(data: dict[str, Any], plan: TransferLearning = plan, to: str = "shop") -> list[Any]:
    def party(mesh: LocalMesh) -> Any:
        with Session(mesh, "aby3") as session:
            made = plan.fit(session, **data.get(mesh.me, {}), announce=lambda _: None)
            return made.predict(session, data["shop"]["others"] if mesh.me == "shop" else None, to=to)

    return together(LocalMesh.of(["bank", "helper", "shop"]), party)


def in_the_clear(data: dict[str, Any], plan: TransferLearning = plan) -> np.ndarray:
    from hansa.vertical.transfer import _given

    x_source, _ = _given(plan, "bank", **data["bank"])
    x_target, scale = _given(plan, "shop", labels=None, **data["shop"])
    assert x_source is not None and x_target is not None
    encoders = [plan.encoder(x_source.shape[1], 0), plan.encoder(x_target.shape[1], 1)]
    phi = plan.train(x_source, x_target, torch.from_numpy(2 * data["bank"]["labels"] - 1).float(), encoders)
    with torch.no_grad():
        return torch.sigmoid(encoders[1](scale.applied(data["shop"]["others"])) @ phi).double().numpy()


def test_shares_learn_what_is_learnt_in_the_clear_and_only_the_receiver_learns_predictions() -> None:
    data, short = people(0, count=120), replace(plan, steps=12, lr=0.2)
    bank, helper, shop = learnt(data, short)
    assert bank is None and helper is None
    clear = in_the_clear(data, short)
    assert clear.std() > 0.1
    assert np.abs(shop - clear).max() < 0.02
    assert ((shop > 0.5) == (clear > 0.5)).mean() > 0.98


def test_the_target_is_better_with_the_source_than_alone_and_with_more_shared_people() -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    together_, alone, more = [], [], []
    for seed in range(8):
        data = people(seed)
        together_.append(((in_the_clear(data) > 0.5) == data["truth"]).mean())
        own = data["shop"]["shared"].matrix()
        classifiers = [linear.LogisticRegression(C=c) for c in (0.01, 0.1, 1.0)]
        scores = [
            each.fit(own, data["bank"]["labels"][:SHARED]).score(data["shop"]["others"].matrix(), data["truth"])
            for each in classifiers
        ]
        alone.append(max(scores))  # even with the penalty that suits the answers best
        many = people(seed, shared=120)
        more.append(((in_the_clear(many) > 0.5) == many["truth"]).mean())
    assert np.mean(together_) > np.mean(alone) + 0.05
    assert np.mean(more) > np.mean(together_)


def test_gradients_are_those_of_the_logistic_loss_to_second_order() -> None:
    score = torch.linspace(-0.5, 0.5, 11, dtype=torch.float64)
    for y in (-1.0, 1.0):
        exact = torch.nn.functional.softplus(-y * score) - np.log(2)
        assert float((exact - (score**2 / 8 - y * score / 2)).abs().max()) < 4e-4


def test_what_does_not_fit_is_refused() -> None:
    data = people(1)
    with pytest.raises(DataError, match="labels are 300 times 0 or 1"):
        learnt({**data, "bank": {**data["bank"], "labels": data["bank"]["labels"] + 1}})
    with pytest.raises(ConfigError, match="labels: they are those of 'bank'"):
        learnt({**data, "shop": {**data["shop"], "labels": np.zeros(3)}})
    moved = AlignedTable("shop", data["shop"]["shared"].columns, bytes([1]) * 32)
    with pytest.raises(ConfigError, match="another alignment"):
        learnt({**data, "shop": {**data["shop"], "shared": moved}})
    with pytest.raises(ConfigError, match="source and target are both 'bank'"):
        TransferLearning(source="bank", target="bank")
