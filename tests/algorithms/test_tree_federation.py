"""Boosted trees over different people: what clients' histograms sum up to, bagging, and one client after another."""

from typing import Any

import numpy as np
import pytest

import hansa
from hansa.algorithms.trees import Boosting, fit
from hansa.algorithms.trees.horizontal import HistogramModel, TreeBagging, TreeHistograms, TreeModel
from hansa.core.errors import ConfigError, TrainingFailed

EDGES = tuple(np.arange(0.5, 9).tolist())


def hospitals(clients: int = 4, rows: int = 100, whole: bool = True) -> tuple[Any, np.ndarray, np.ndarray]:
    r = np.random.default_rng(1)
    x = r.integers(0, 10, (clients * rows, 3)).astype(float)
    y = ((x[:, 0] > 4) ^ (x[:, 1] > x[:, 2])) * 1.0
    y = np.where(r.random(len(y)) < 0.1, 1 - y, y)
    if not whole:
        x[r.random(x.shape) < 0.1] = np.nan
    parts = [hansa.Dataset(x=x[at::clients], y=y[at::clients]) for at in range(clients)]
    return hansa.Clients.of({f"h{at}": part for at, part in enumerate(parts)}), x, y


def histogram_job(boosting: Boosting, pipeline: hansa.Pipeline, base: float = 0.0) -> hansa.Job:
    model = HistogramModel(boosting, (EDGES,) * 3, base)
    rounds = boosting.trees * boosting.depth
    return hansa.Job(model=model, algorithm=TreeHistograms.of(model), pipeline=pipeline, cohort=4, rounds=rounds)


@pytest.mark.parametrize("loss", ["logistic", "squared"])
@pytest.mark.parametrize("whole", [True, False])
def test_summed_histograms_give_the_trees_of_the_pooled_data(loss: str, whole: bool) -> None:
    clients, x, y = hospitals(whole=whole)
    boosting = Boosting(trees=3, depth=3, loss=loss)
    pooled = fit({str(at): x[:, at] for at in range(3)}, y, boosting)
    pipeline = hansa.Pipeline([hansa.UniformMean()], hansa.Sum())
    history = hansa.train(histogram_job(boosting, pipeline, base=pooled.base[0]), clients)
    assert len(history.model.trees) == 3
    assert np.abs(history.model.predict(x) - pooled.predict({str(at): x[:, at] for at in range(3)})).max() < 1e-6


def test_a_secure_sum_of_histograms_learns_as_well() -> None:
    pytest.importorskip("cryptography", reason="the secure sum needs cryptography")
    clients, x, _ = hospitals()
    boosting = Boosting(trees=4, depth=2)
    plain = hansa.train(histogram_job(boosting, hansa.Pipeline([hansa.UniformMean()], hansa.Sum())), clients)
    stages = [hansa.Clip(60.0), hansa.UniformMean(), hansa.Quantise(bits=24)]
    hidden = hansa.train(histogram_job(boosting, hansa.Pipeline(stages, hansa.SecureSum())), clients)
    assert np.abs(hidden.model.predict(x) - plain.model.predict(x)).max() < 1e-3
    assert plain.rounds[-1].train["loss"] < plain.rounds[0].train["loss"]


def bagged(cohort: int, rounds: int, places: int) -> tuple[hansa.History, np.ndarray, np.ndarray]:
    clients, x, y = hospitals()
    job = hansa.Job(
        model=TreeModel(Boosting(trees=places, depth=3, bins=10)), algorithm=TreeBagging(), cohort=cohort,
        pipeline=hansa.Pipeline([hansa.UniformMean()], hansa.Sum()), rounds=rounds,
    )  # fmt: skip
    return hansa.train(job, clients), x, y


@pytest.mark.parametrize(("cohort", "rounds"), [(4, 5), (1, 12)])
def test_clients_trees_join_the_ensemble_and_beat_one_clients_own(cohort: int, rounds: int) -> None:
    history, x, y = bagged(cohort, rounds, 400)
    trees = cohort * rounds
    assert trees - 2 <= len(history.model.trees) <= trees
    right = ((history.model.predict(x) > 0.5) == y).mean()
    alone = fit({str(at): x[::4, at] for at in range(3)}, y[::4], Boosting(trees=rounds, depth=3, bins=10))
    assert right > ((alone.predict({str(at): x[:, at] for at in range(3)}) > 0.5) == y).mean() - 0.02 > 0.6


def test_trees_that_drew_one_place_are_left_out_whole() -> None:
    history, x, _ = bagged(4, 1, 2)  # two places for four trees: at least two of them met
    params = history.params
    for tree, used in zip(np.asarray(params["trees"]), np.asarray(params["used"]), strict=True):
        assert used in (0, 1) and tree.any() == bool(used)
    assert np.isfinite(history.model.predict(x)).all()
    with pytest.raises(TrainingFailed):
        bagged(1, 3, 2)


def test_an_algorithm_of_another_model_is_refused() -> None:
    with pytest.raises(ConfigError, match="ascending"):
        HistogramModel(Boosting(), ((1.0, 1.0),))
    with pytest.raises(ConfigError, match="loss='softmax'"):
        TreeModel(Boosting(loss="softmax"))
    clients, _, _ = hospitals()
    job = histogram_job(Boosting(trees=1, depth=1), hansa.Pipeline([hansa.UniformMean()], hansa.Sum()))
    other = TreeHistograms(boosting=Boosting(trees=1, depth=1), edges=(EDGES,))
    with pytest.raises((ConfigError, TrainingFailed), match=r"TreeHistograms\.of"):
        hansa.train(hansa.Job(model=job.model, algorithm=other, pipeline=job.pipeline, cohort=4), clients)
