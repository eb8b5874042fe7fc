"""The tasks that papers on federated learning compare themselves on: a network, clients, and the usual settings.

    task = hansa.tasks.load("emnist-cnn")
    history = hansa.train(task.job, task.clients)                           on a stand-in: see `hansa.data.twin`
    history = hansa.train(hansa.tasks.job("emnist-cnn"), my_clients)        on the data itself, for who has it

Networks, clients a round, batch sizes and rounds are the papers'; learning rates, and all settings of the landmarks,
are ours and not tuned. A figure reached on a stand-in is not a figure on the data set whose name it has.

Source: Reddi et al.: Adaptive Federated Optimization, 2021, table 8, https://arxiv.org/abs/2003.00295; TFF's
`simulation.baselines`; FedJAX, Ro, Suresh, Wu 2021, https://arxiv.org/abs/2108.02117
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from types import MappingProxyType
from typing import Any

from hansa.algorithms.fedavg import FedAvg
from hansa.core.data import Clients, Dataset
from hansa.core.errors import ConfigError
from hansa.core.job import Evaluation, Job
from hansa.core.model import LocalWork, Model
from hansa.core.pipeline import Pipeline
from hansa.data import merge, twin
from hansa.stages.mean import WeightedMean
from hansa.stages.sum import Sum

NETWORKS = "hansa.adapters.reference_networks"
TEST_CLIENTS = 20  # whose test examples the server measures


@dataclass(frozen=True)
class Recipe:
    """What a task is made of.

    Args:
      about: one line.
      network: its name in `reference_networks`.
      clients: the stand-in.
      work, cohort, rounds: the usual settings.
    """

    about: str
    network: str
    clients: str
    work: LocalWork
    cohort: int
    rounds: int

    @property
    def model(self) -> Model:
        """The network with its loss."""
        make: Callable[[], Model] = getattr(import_module(NETWORKS), self.network)
        return make()


@dataclass(frozen=True)
class Task:
    """A task that can be trained: `job, clients = load(name)`, or by these names.

    Args:
      job: to train.
      clients: to train it on.
      test: other examples of the same clients.
    """

    job: Job
    clients: Clients
    test: Clients


def _work(lr: float, batch_size: int) -> LocalWork:
    return LocalWork(lr=lr, epochs=1, batch_size=batch_size)


RECIPES: Mapping[str, Recipe] = MappingProxyType({
    "emnist-cnn": Recipe("62 characters", "character_cnn", "emnist", _work(0.1, 20), 10, 1500),
    "emnist-dense": Recipe("62 characters", "character_dense", "emnist", _work(0.1, 20), 10, 1500),
    "emnist-logistic": Recipe("62 characters", "character_logistic", "emnist", _work(0.1, 20), 10, 1500),
    "emnist-autoencoder": Recipe("characters in 30 numbers", "autoencoder", "emnist", _work(3.0, 20), 10, 3000),
    "cifar100-resnet": Recipe("100 kinds of pictures", "resnet18", "cifar100", _work(0.1, 20), 10, 4000),
    "shakespeare": Recipe("the next character", "next_character", "shakespeare", _work(1.0, 4), 10, 1200),
    "stackoverflow-words": Recipe("the next word", "next_word", "stackoverflow", _work(0.3, 16), 50, 1500),
    "stackoverflow-tags": Recipe("500 tags of questions", "tags", "stackoverflow_tags", _work(100.0, 100), 10, 1500),
    "landmarks": Recipe("2,028 landmarks", "mobilenet_v2", "gldv2", _work(0.1, 16), 10, 5000),
})  # fmt: skip


def names() -> list[str]:
    """The tasks there are."""
    return sorted(RECIPES)


def recipe(name: str) -> Recipe:
    """What a task is made of; ConfigError for an unknown name."""
    if name not in RECIPES:
        raise ConfigError(f"there is no task '{name}': there are {names()}.")
    return RECIPES[name]


def job(name: str, **changes: Any) -> Job:
    """The job of a task, for clients of your own.

    Args:
      name: one of `names()`.
      changes: fields of the job, as `rounds=100` or `algorithm=hansa.FedAdam(...)`.

    Raises:
      ConfigError: an unknown name.
      MissingExtra: PyTorch is not installed.
    """
    made = recipe(name)
    fields = {
        "model": made.model,
        "algorithm": FedAvg(made.work),
        "pipeline": Pipeline([WeightedMean()], Sum()),
        "cohort": made.cohort,
        "rounds": made.rounds,
        **changes,
    }
    return Job(**fields)


def load(name: str, clients: int | None = None, seed: int = 0, **changes: Any) -> Task:
    """A task on its stand-in, evaluated every 50 rounds on other examples of some of its clients.

    Args:
      name: one of `names()`.
      clients: fewer or more than there are.
      seed: of the clients, and of training.
      changes: as those of `job`.

    Raises:
      ConfigError: an unknown name.
      MissingExtra: PyTorch is not installed.
    """
    stand_in = recipe(name).clients
    measured = Evaluation(data=partial(held_out, stand_in, clients, seed), every=50)
    made = job(name, **{"evaluation": measured, "seed": seed, **changes})
    return Task(made, twin(stand_in, clients, seed), twin(stand_in, clients, seed, draw=1))


def held_out(stand_in: str, clients: int | None, seed: int) -> Dataset:
    """What the server measures: test examples of the first clients."""
    test = twin(stand_in, clients, seed, draw=1)
    return merge(*(test.open(client) for client in test.ids[:TEST_CLIENTS]))
