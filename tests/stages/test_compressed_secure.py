"""Compression that adds up gives the same model under a secure sum as under a plain one, bit for bit."""

import numpy as np
import pytest

from hansa.adapters.numpy import LogisticModel
from hansa.algorithms.fedavg import FedAvg
from hansa.core.data import Clients, Dataset
from hansa.core.job import Job
from hansa.core.model import LocalWork
from hansa.core.pipeline import Pipeline, Reducer, Stage
from hansa.core.tensors import Tensors
from hansa.runtimes.local import train
from hansa.stages.adaptive_clip import AdaptiveClip
from hansa.stages.clip import Clip
from hansa.stages.lowrank import LowRank
from hansa.stages.mask import RandomMask
from hansa.stages.mean import UniformMean
from hansa.stages.powersgd import PowerSGD
from hansa.stages.quantise import Quantise
from hansa.stages.rotate import Rotate
from hansa.stages.secure_sum import SecureSum
from hansa.stages.sign import MajorityVote
from hansa.stages.sum import Sum
from hansa.stages.ternary import Ternary

ADD_UP: list[list[Stage]] = [
    [AdaptiveClip(0.5), UniformMean(), Rotate(clip=2.0), RandomMask(0.25), Quantise(2)],
    [Clip(0.5), UniformMean(), LowRank(3), Rotate(clip=3.0), Quantise(8)],
    [Clip(0.5), UniformMean(), Rotate(clip=3.0, transform="fourier"), Quantise(8)],
    [Clip(0.5), UniformMean(), PowerSGD(1, error_feedback=False), Quantise(12)],
    [Clip(0.5), UniformMean(), Ternary(shared=True)],
    [UniformMean(), MajorityVote(0.01)],
]


def rows(seed: int) -> Dataset:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((30, 16)).astype("float32")
    return Dataset(x=x, y=(x[:, :4].argmax(axis=1)).astype("int64"))


def learnt(stages: list[Stage], reducer: Reducer) -> Tensors:
    job = Job(
        model=LogisticModel(16, 4), algorithm=FedAvg(LocalWork(lr=0.1, epochs=1, batch_size=8)),
        pipeline=Pipeline(stages, reducer), cohort=4, rounds=3, seed=1,
    )  # fmt: skip
    return train(job, Clients.of({f"c{seed}": rows(seed) for seed in range(5)})).params


@pytest.mark.parametrize("stages", ADD_UP, ids=repr)
def test_secure_sum_of_compressed_updates_is_the_plain_one(stages: list[Stage]) -> None:
    secure = learnt(stages, SecureSum())
    assert secure == learnt(stages, Sum())
    assert secure != LogisticModel(16, 4).init(1)
