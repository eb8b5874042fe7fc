"""FedNova by hand: steps of different number, momentum and pull do not weigh on the mean."""

import numpy as np
import pytest

from hansa.algorithms import FedAvg, FedNova
from hansa.algorithms.fednova import length
from hansa.core.data import Clients, Dataset
from hansa.core.errors import ConfigError
from hansa.core.job import Job
from hansa.core.model import LocalWork
from hansa.core.pipeline import Pipeline
from hansa.core.tensors import Tensors
from hansa.runtimes.local import train
from hansa.stages.mean import WeightedMean
from hansa.stages.sum import Sum
from hansa.testing.models import Line, points


def run(algorithm: FedAvg | FedNova, clients: dict[str, Dataset], model: Line | None = None) -> Tensors:
    pipeline = Pipeline([WeightedMean()], Sum())
    job = Job(model=model or Line(), algorithm=algorithm, pipeline=pipeline, cohort=len(clients), rounds=1)
    return train(job, Clients.of(clients)).params


def test_with_equal_steps_fednova_is_fedavg() -> None:
    clients = {"a": points(1, 6), "b": points(2, 6)}
    work = LocalWork(lr=0.1, epochs=2, batch_size=3)
    one, other = run(FedNova(work), clients), run(FedAvg(work), clients)
    for name in other:
        np.testing.assert_allclose(one[name], other[name], rtol=1e-12)


def test_fednova_by_hand() -> None:
    # y = w x with w = 0 at the start, b frozen at 0, lr 0.1, batches of one, in order.
    # a: one example (x=1, y=1): w = 0.1, a = 1, d = 0.1.
    # b: three examples (x=1, y=-1): w: -0.1, -0.19, -0.271; a = 3, d = -0.271 / 3.
    # p = 1/4 and 3/4; Σ p a = 2.5; Σ p d = 0.025 - 0.06775 = -0.04275; w = -0.106875.
    # FedAvg: 0.025 - 0.20325 = -0.17825.
    clients = {"a": Dataset(x=[1.0], y=[1.0]), "b": Dataset(x=[1.0] * 3, y=[-1.0] * 3)}
    work, model = LocalWork(lr=0.1, epochs=1, batch_size=1), Line(given=(("b", "frozen"),))
    assert float(run(FedNova(work), clients, model)["w"][0]) == pytest.approx(-0.106875)
    assert float(run(FedAvg(work), clients, model)["w"][0]) == pytest.approx(-0.17825)


@pytest.mark.parametrize(
    ("work", "steps", "a"),
    [
        (LocalWork(lr=0.1, steps=1), 4, 4.0),
        # Momentum 0.5, two steps: the first gradient enters with 1 + 0.5, the second with 1.
        (LocalWork(lr=0.1, steps=1, momentum=0.5), 2, 2.5),
        # Pull 2 at lr 0.1: the first gradient has shrunk by 1 - 0.2 when the second comes.
        (LocalWork(lr=0.1, steps=1, proximal=2.0), 2, 1.8),
    ],
    ids=["plain", "momentum", "proximal"],
)
def test_the_length_of_steps_is_the_sum_of_the_gradients_weights(work: LocalWork, steps: int, a: float) -> None:
    assert length(work, steps) == pytest.approx(a)


def test_what_fednova_has_no_formula_for_is_refused() -> None:
    with pytest.raises(ConfigError, match="optimiser='adam': FedNova knows the step lengths of 'sgd' alone"):
        FedNova(LocalWork(lr=0.1, steps=1, optimiser="adam"))
    with pytest.raises(ConfigError, match=r"momentum=0.9 and proximal=1.0: FedNova takes one"):
        FedNova(LocalWork(lr=0.1, steps=1, momentum=0.9, proximal=1.0))
