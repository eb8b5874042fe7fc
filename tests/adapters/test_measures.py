"""Metrics of more than one number: by hand, and those of two parties add up to those of both."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch import nn

import hansa
from hansa.adapters.measures import Confusion, Domains, Sequences
from hansa.core.errors import ConfigError

PAD, OOV, END = 0, 1, 2
WORDS = Sequences(length=4, pad=PAD, oov=(OOV,), end=END)
# Three sentences; the scores say what is in SAID.
TRUE = np.array([[3, OOV, END, PAD], [3, 4, 3, 4], [OOV, END, PAD, PAD]])
SAID = np.array([[3, OOV, 4, PAD], [3, 3, 3, 3], [3, END, PAD, PAD]])


class Said(nn.Module):
    """Scores that are its inputs, times one."""

    def __init__(self):
        super().__init__()
        self.one = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return F.one_hot(x.long(), 5).float().movedim(-1, 1) * self.one


def first(outputs, targets):
    return F.cross_entropy(outputs, targets[0])


def averages(model, data):
    return {name: top / bottom for name, (top, bottom) in model.evaluate(model.init(0), data).items()}


def test_rates_of_sequences_are_those_counted_by_hand():
    model = hansa.TorchModel(Said, F.cross_entropy, measures=WORDS.measures)
    found = WORDS.read(averages(model, hansa.Dataset(x=SAID, y=TRUE)))
    assert found["tokens"] == pytest.approx(9 / 3)
    assert found["accuracy"] == pytest.approx(5 / 9)
    assert found["oov rate"] == pytest.approx(2 / 9)
    assert found["accuracy in vocabulary"] == pytest.approx(4 / 7)
    assert found["truncation rate"] == pytest.approx(1 / 3)


def test_without_oov_and_end_there_are_fewer_rates():
    plain = Sequences(length=4)
    model = hansa.TorchModel(Said, F.cross_entropy, measures=plain.measures)
    found = plain.read(averages(model, hansa.Dataset(x=SAID, y=TRUE)))
    assert "truncation rate" not in found and found["oov rate"] == 0
    assert found["accuracy"] == found["accuracy in vocabulary"] == pytest.approx(5 / 9)


def test_a_confusion_matrix_is_numpys():
    rng = np.random.default_rng(0)
    said, true = rng.integers(0, 5, (2, 300))
    matrix = Confusion(5)
    model = hansa.TorchModel(Said, F.cross_entropy, measures=matrix.measures)
    wanted = np.zeros((5, 5))
    np.add.at(wanted, (true, said), 1 / 300)
    assert matrix.read(averages(model, hansa.Dataset(x=said, y=true))) == pytest.approx(wanted)


def test_each_domain_has_an_accuracy_of_its_own():
    domains = Domains(("north", "south", "nobody's"))
    model = hansa.TorchModel(Said, first, measures=domains.measures, targets=("y", "where"))
    data = hansa.Dataset(x=np.array([0, 1, 2, 3]), y=np.array([0, 1, 0, 0]), where=np.array([0, 0, 0, 1]))
    found = domains.read(averages(model, data))
    assert found["north"] == pytest.approx(2 / 3) and found["south"] == 0 and np.isnan(found["nobody's"])


@given(st.integers(1, 8), st.integers(1, 8), st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_what_two_parties_measure_adds_up_to_what_both_together_measure(one, other, seed):
    rng = np.random.default_rng(seed)
    x, y = rng.integers(0, 5, (2, one + other, 4))
    model = hansa.TorchModel(Said, F.cross_entropy, measures=WORDS.measures)
    parts = [model.evaluate(model.init(0), hansa.Dataset(x=x[s], y=y[s])) for s in (np.s_[:one], np.s_[one:])]
    joint = model.evaluate(model.init(0), hansa.Dataset(x=x, y=y))
    for name, pair in joint.items():
        assert np.add(parts[0][name], parts[1][name]) == pytest.approx(pair, rel=1e-6)


def test_a_federation_measures_what_one_party_with_all_data_would():
    rng = np.random.default_rng(1)
    x, y = rng.integers(0, 5, (2, 30, 4))
    model = hansa.TorchModel(Said, F.cross_entropy, measures=WORDS.measures)
    parts = np.split(np.arange(30), [7, 19])
    clients = hansa.Clients.of({f"{i}": hansa.Dataset(x=x[rows], y=y[rows]) for i, rows in enumerate(parts)})
    job = hansa.Job(
        model=model,
        algorithm=hansa.FedAvg(hansa.LocalWork(lr=0.0, steps=1)),
        pipeline=hansa.Pipeline([hansa.WeightedMean()], hansa.Sum()),
        cohort=3,
        rounds=1,
        evaluation=hansa.Evaluation(workers=3),
    )
    found = WORDS.read(hansa.train(job, clients).rounds[-1].workers)
    assert found == pytest.approx(WORDS.read(averages(model, hansa.Dataset(x=x, y=y))))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Sequences(length=0), "length=0: a sequence has at least one place"),
        (lambda: Sequences(length=3, pad=1, oov=(1,)), "one token cannot be two of them"),
        (lambda: Confusion(1), "classes=1: at least two"),
        (lambda: Domains(("a", "a")), "give each domain a name of its own"),
    ],
)
def test_measures_that_cannot_be_are_refused(build, message):
    with pytest.raises(ConfigError, match=message):
        build()
