"""The registry of tasks: each has the network of its paper, and can be trained."""

from dataclasses import replace

import numpy as np
import pytest

import hansa
from hansa.adapters import reference_networks as networks
from hansa.core.errors import ConfigError
from hansa.core.job import canonical
from hansa.runtimes.forms import rebuild, worker_form

LSTM = {"next_character": 2 * 4 * 256, "next_word": 4 * 670}  # PyTorch's second bias of each LSTM
PUBLISHED = {
    "character_cnn": 1_206_590,
    "character_dense": 784 * 200 + 200 + 200 * 200 + 200 + 200 * 62 + 62,
    "character_logistic": 784 * 62 + 62,
    "autoencoder": 2_837_314,
    "resnet18": 11_220_132,
    "next_character": 820_522,
    "next_word": 4_050_748,
    "tags": 5_000_500,
}


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_networks_have_as_many_parameters_as_were_published(name):
    shapes = getattr(networks, name)().shapes()
    assert sum(int(np.prod(shape)) for shape, _ in shapes.values()) - LSTM.get(name, 0) == PUBLISHED[name]


def test_networks_in_the_registry_are_those_of_the_table():
    assert {hansa.tasks.recipe(name).network for name in hansa.tasks.names()} == {
        *PUBLISHED,
        "resnet18",
        "mobilenet_v2",
    }


@pytest.mark.parametrize("name", hansa.tasks.names())
def test_every_task_takes_a_step_on_its_clients_and_is_measured(name):
    cut = {"emnist-cnn": 20, "stackoverflow-words": 3000, "stackoverflow-tags": 3000}.get(name, 10)
    work = hansa.LocalWork(lr=0.01, steps=1, batch_size=2)
    model = replace(hansa.tasks.recipe(name).model, loop="plain")  # tracing pays where there are many steps
    changes = {
        "model": model,
        "cohort": 2,
        "rounds": 1,
        "algorithm": hansa.FedAvg(work),
        "evaluation": hansa.Evaluation(),
    }
    task = hansa.tasks.load(name, clients=cut, **changes)
    assert len(task.clients) == len(task.test) == cut
    history = hansa.train(task.job, hansa.data.Mapped(task.clients, few))
    assert np.isfinite(history.rounds[0].train["loss"])
    assert task.job.model.evaluate(history.checkpoint.state.part("model"), few(task.test.open(task.test.ids[0])))


def few(data):
    return data.take(np.arange(2))


def test_a_task_goes_to_other_processes_and_its_settings_can_be_changed():
    task = hansa.tasks.load("emnist-logistic", clients=8, seed=3)
    assert canonical(rebuild(worker_form(task.job)).model) == canonical(task.job.model)
    assert rebuild(canonical(task.clients)) == task.clients
    assert (task.job.cohort, task.job.rounds, task.job.evaluation.every, task.job.seed) == (10, 1500, 50, 3)
    assert hansa.tasks.job("emnist-logistic", rounds=7).rounds == 7


def test_a_task_learns_its_stand_in():
    task = hansa.tasks.load("emnist-logistic", clients=30, rounds=8)
    found = [record.central for record in hansa.train(task.job, task.clients).rounds if record.central]
    assert found[-1]["accuracy"] > 0.5


def test_an_unknown_task_lists_those_there_are():
    with pytest.raises(ConfigError, match="there is no task 'mnist': there are .*'emnist-cnn'"):
        hansa.tasks.load("mnist")
