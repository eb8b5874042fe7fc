"""Clients handed to their model together: the run is that of clients trained one at a time, up to float rounding."""

import functools
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch.nn.functional as F
from torch import nn

import hansa
from hansa.adapters.numpy import MLPModel
from hansa.core.data import Clients, Dataset
from hansa.core.errors import ConfigError, DataError, TrainingFailed
from hansa.core.model import LocalWork


@dataclass(frozen=True)
class Stacking(MLPModel):
    """Says that it trains many at once, and notes how many it was given."""

    given: list = field(default_factory=list, compare=False)
    stacks = True

    def fit_cohort(self, params, data, work, rngs):
        self.given.append(len(data))
        return super().fit_cohort(params, data, work, rngs)


def clients(count=7, empty=()):
    rng = np.random.default_rng(0)
    sizes = [0 if i in empty else 9 + i for i in range(count)]
    return Clients.of(
        {f"c{i}": Dataset(x=rng.normal(size=(n, 4)), y=rng.integers(0, 3, n)) for i, n in enumerate(sizes)}
    )


def job(model, algorithm, **more):
    pipeline = hansa.Pipeline([hansa.UniformMean()], hansa.Sum())
    return hansa.Job(model=model, algorithm=algorithm, pipeline=pipeline, cohort=6, rounds=3, **more)


WORK = LocalWork(lr=0.1, epochs=2, batch_size=4)


@pytest.mark.parametrize("algorithm", [hansa.FedAvg(WORK), hansa.Scaffold(WORK)])
def test_a_run_is_the_same_bits_whether_or_not_clients_are_handed_over_together(algorithm):
    model = Stacking([4, 5, 3])
    together = hansa.train(job(model, algorithm), clients(), runtime=hansa.Local(cohort=4))
    assert model.given == [4, 2] * 3
    alone = hansa.train(job(Stacking([4, 5, 3]), algorithm), clients(), runtime=hansa.Local(cohort=1))
    assert together.model == alone.model
    assert [one.train for one in together.rounds] == [one.train for one in alone.rounds]


def test_a_model_that_does_not_stack_is_trained_one_client_at_a_time():
    plain = MLPModel([4, 5, 3])
    found = [hansa.train(job(plain, hansa.FedAvg(WORK)), clients(), runtime=hansa.Local(n)).model for n in (1, 100)]
    assert found[0] == found[1]


def test_a_client_that_fails_fails_alone_and_is_named():
    model = Stacking([4, 5, 3])
    with pytest.raises(TrainingFailed, match="'c2' has no examples") as caught:
        hansa.train(job(model, hansa.FedAvg(WORK)), clients(6, empty=[2]))
    assert isinstance(caught.value.__cause__, DataError) and model.given == [5]


@dataclass(frozen=True)
class Broken(Stacking):
    def fit_cohort(self, params, data, work, rngs):
        raise RuntimeError("no memory")


def test_where_all_together_fails_each_is_trained_alone():
    found = [hansa.train(job(kind([4, 5, 3]), hansa.FedAvg(WORK)), clients()).model for kind in (Broken, Stacking)]
    assert found[0] == found[1]


def test_no_clients_at_a_time_is_refused():
    with pytest.raises(ConfigError, match="cohort=0: at least one client"):
        hansa.Local(cohort=0)


def normed():
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


@pytest.mark.parametrize(
    ("net", "change", "message"),
    [
        (functools.partial(nn.Linear, 4, 3), {"y": np.full(11, 3)}, "c2: column 'y' has the label 3"),
        (functools.partial(nn.Linear, 4, 3), {"y": np.full(11, -1)}, "c2: column 'y' has the label -1"),
        (normed, {"x": np.ones((1, 4)), "y": np.zeros(1, int)}, "c2: batch norm cannot train on single examples"),
        (normed, {"x": np.ones((0, 4)), "y": np.zeros(0, int)}, "c2: 'c2' has no examples"),
    ],
)
@pytest.mark.parametrize("loop", ["plain", "replay", "cohort"])
def test_one_clients_bad_data_names_it_in_every_loop(net, change, message, loop):
    given = {client: clients().open(client) for client in clients().ids[:6]}
    given["c2"] = Dataset(**{"x": given["c2"]["x"], "y": given["c2"]["y"]} | change)
    with pytest.raises(TrainingFailed, match=message):
        hansa.train(job(hansa.TorchModel(net, F.cross_entropy, loop=loop), hansa.FedAvg(WORK)), Clients.of(given))


# -- in a pool of workers


def torch_job():
    net = functools.partial(nn.Linear, 4, 3)
    return job(hansa.TorchModel(net, F.cross_entropy, loop="cohort"), hansa.Scaffold(WORK))


def test_processes_train_their_stacks_to_the_bits_of_the_local_runtime():
    local, alone = (hansa.train(torch_job(), clients(), runtime=hansa.Local(cohort=n)).checkpoint.state for n in (2, 1))
    found = hansa.train(torch_job(), clients(), runtime=hansa.Processes(2, cohort=2)).checkpoint.state
    assert found == local, "SCAFFOLD's memory is kept as well"
    assert all(np.allclose(alone[name], array, rtol=1e-5, atol=1e-6) for name, array in found.items())
