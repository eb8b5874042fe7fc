"""Norms as metrics: what the record says is the mean over clients, also under a secure sum, and never behind noise."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

import hansa
from hansa.core.errors import ConfigError, JobError
from hansa.core.pipeline import Reducer, Stage

CLIENTS = hansa.data.partition(hansa.data.split(hansa.data.digits())[0], hansa.data.IID(), clients=6)


def trained(stages: list[Stage], reducer: Reducer) -> tuple[Mapping[str, float], Any]:
    job = hansa.Job(
        model=hansa.LogisticModel(64, 10), algorithm=hansa.FedAvg(hansa.LocalWork(lr=0.5, epochs=1, batch_size=20)),
        pipeline=hansa.Pipeline(stages, reducer), cohort=6, rounds=1,
    )  # fmt: skip
    history = hansa.train(job, CLIENTS)
    return history.rounds[0].train, history.params


def test_norms_are_averaged_over_clients_and_change_nothing() -> None:
    plain, before = trained([hansa.Clip(1e-3), hansa.UniformMean()], hansa.Sum())
    stages = [hansa.Measure("raw"), hansa.Clip(1e-3), hansa.Measure("clipped"), hansa.UniformMean()]
    said, after = trained(stages, hansa.Sum())
    assert {name: said[name] for name in plain} == plain
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert said["clipped norm"] == pytest.approx(1e-3, rel=1e-4) and said["raw norm"] > 0.1
    assert trained([hansa.Measure(most=0.01), hansa.UniformMean()], hansa.Sum())[0]["update norm"] == 0.01


def test_under_a_secure_sum_the_mean_norm_is_the_same() -> None:
    pytest.importorskip("cryptography")
    stages = [hansa.Measure(), hansa.Clip(1.0), hansa.UniformMean(), hansa.Quantise(16)]
    open_, hidden = (trained(stages, reducer)[0]["update norm"] for reducer in (hansa.Sum(), hansa.SecureSum()))
    assert hidden == pytest.approx(open_, abs=1e-5)


def test_noise_leaves_the_norm_out_and_refuses_one_behind_it() -> None:
    assert (
        "update norm"
        not in trained([hansa.Measure(), hansa.Clip(1), hansa.UniformMean(), hansa.Gaussian(1)], hansa.Sum())[0]
    )
    with pytest.raises(JobError, match="as behind noise"):
        trained([hansa.Clip(1.0), hansa.UniformMean(), hansa.Gaussian(1.0), hansa.Measure()], hansa.Sum())
    with pytest.raises(JobError, match="before what rounds"):
        trained([hansa.Clip(1.0), hansa.UniformMean(), hansa.Quantise(8), hansa.Measure()], hansa.Sum())
    with pytest.raises(JobError, match="stands twice"):
        trained([hansa.Measure(), hansa.Measure(), hansa.UniformMean()], hansa.Sum())
    for wrong in ({"name": ""}, {"name": "a/b"}, {"most": 0.0}):
        with pytest.raises(ConfigError):
            hansa.Measure(**wrong)
