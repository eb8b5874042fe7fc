"""Clients trained at once get what the plain loop gives each of them, or are trained one by one, with a reason."""

import logging
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

torch = pytest.importorskip("torch")
import torch.nn.functional as F  # noqa: E402
from tests.adapters.test_torch_replay import Deciding, apart, convolutions, images, lstm, mlp, normed  # noqa: E402
from torch import nn  # noqa: E402

from hansa.adapters import torch as adapter, torch_cohort  # noqa: E402
from hansa.adapters.torch import TorchModel  # noqa: E402
from hansa.adapters.torch_buckets import buckets, runs, table  # noqa: E402
from hansa.adapters.torch_cohort import WASTE  # noqa: E402
from hansa.core.data import Dataset  # noqa: E402
from hansa.core.model import LocalWork  # noqa: E402
from hansa.core.tensors import Tensors  # noqa: E402

RAGGED = (33, 35, 40, 37, 33, 12, 60, 31)


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.out = nn.Embedding(20, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.out(self.words(x).mean(1))


class Padded(Words):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(20, 4, padding_idx=3)


def pooled():
    return nn.Sequential(
        nn.Unflatten(1, (1, 3, 4)),
        nn.Conv2d(1, 4, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(8, 3),
    )


NETS = {"mlp": mlp, "pooled": pooled, "words": Words, "padded words": Padded}
WORK = {
    "sgd": {},
    "momentum": {"momentum": 0.9, "weight_decay": 0.01},
    "adam": {"optimiser": "adam", "lr": 0.01, "eps": 1e-3},  # a small eps shows the rounding of gradients of zero
    "proximal": {"proximal": 0.5},
}


def some_data(sizes=RAGGED, words=False):
    rng = np.random.default_rng(0)
    draw = (lambda n: rng.integers(0, 20, (n, 7))) if words else (lambda n: rng.normal(size=(n, 12)))
    return [Dataset(x=draw(n), y=rng.integers(0, 3, n)) for n in sizes]


def fits(model, data, work):
    work = work if isinstance(work, list) else [work] * len(data)
    rngs = [np.random.default_rng(seed) for seed in range(len(data))]
    return model.fit_cohort([model.init(0)] * len(data), data, work, rngs)


def same(model, data, work, tolerance=1e-9, skip=()):
    """Holds a cohort against the plain loop, client by client."""
    for one, other in zip(fits(model, data, work), fits(replace(model, loop="plain"), data, work), strict=True):
        names = [name for name in one.params if name not in skip]
        assert apart(one.params.only(names), other.params.only(names)) < tolerance
        assert one.steps == other.steps and list(one.params) == list(other.params)
        assert {name: np.asarray(a).dtype for name, a in one.params.items()} == {
            name: np.asarray(a).dtype for name, a in other.params.items()
        }
        assert one.metrics.keys() == other.metrics.keys()
        for name in one.metrics:
            assert one.metrics[name] == pytest.approx(other.metrics[name], rel=max(tolerance, 1e-9), nan_ok=True)


@pytest.fixture
def together(monkeypatch):
    """Fails if a client of a bucket of several is trained alone; gives how many were."""
    alone = []
    honest = TorchModel._fit_drawn

    def noted(self, *given):
        if self.loop == "cohort":
            alone.append(len(given[1]))
        return honest(self, *given)

    monkeypatch.setattr(TorchModel, "_fit_drawn", noted)
    return alone


@pytest.mark.parametrize(("work", "dtype"), [(WORK["sgd"], "float32"), *((work, "float64") for work in WORK.values())])
@pytest.mark.parametrize("net", NETS.values(), ids=NETS)
def test_a_ragged_cohort_equals_the_plain_loop(net, work, dtype, caplog, together):
    asked = LocalWork(
        **{"lr": 0.05, "batch_size": 10, **({"steps": 5} if dtype == "float32" else {"epochs": 2}), **work}
    )
    model = TorchModel(net, F.cross_entropy, dtype=dtype, loop="cohort")
    with caplog.at_level(logging.INFO, "hansa.plan"):
        same(model, some_data(words=net in (Words, Padded)), asked, 1e-9 if dtype == "float64" else 1e-5)
    assert not caplog.records
    assert set(together) <= {12, 60}, "only clients like no other were trained alone"


def test_corrections_and_masks_are_each_clients_own(together):
    model = TorchModel(mlp, F.cross_entropy, dtype="float64", loop="cohort")
    shapes, works = {name: shape for name, (shape, _) in model.shapes().items()}, []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        correction = Tensors({name: rng.normal(size=shape) for name, shape in shapes.items()})
        mask = Tensors({name: rng.integers(0, 2, shape).astype(float) for name, shape in shapes.items()})
        works.append(LocalWork(lr=0.1, epochs=1, batch_size=10, correction=correction, mask=mask))
    same(model, some_data((33, 33, 34, 33)), works)
    assert together == []


def test_what_is_right_for_the_first_client_alone_is_not_used(monkeypatch, caplog):
    monkeypatch.setattr("hansa.adapters.torch_trace._still_padding", lambda nodes, clients: None)
    model = TorchModel(Padded, F.cross_entropy, dtype="float64", loop="cohort")
    with caplog.at_level(logging.INFO, "hansa.plan"):
        same(model, some_data((20, 20, 20), words=True), LocalWork(lr=0.05, epochs=1, batch_size=10))
    assert "trained one by one: replayed, 'words.weight' differs" in caplog.text


def test_clients_of_different_work_are_stacked_apart():
    model = TorchModel(mlp, F.cross_entropy, dtype="float64", loop="cohort")
    works = [
        LocalWork(lr=lr, epochs=1, batch_size=10, momentum=m) for lr, m in ((0.1, 0), (0.01, 0), (0.1, 0.9), (0.1, 0))
    ]
    same(model, some_data((33, 33, 33, 33)), works)


def test_clients_whose_frozen_tensors_differ_are_not_stacked(together):
    model = TorchModel(mlp, F.cross_entropy, dtype="float64", loop="cohort", frozen=("0.*",))
    starts, asked = [model.init(0), model.init(1)], LocalWork(lr=0.1, epochs=1, batch_size=10)
    rngs = [np.random.default_rng(seed) for seed in range(2)]
    found = model.fit_cohort(starts, some_data((33, 33)), [asked] * 2, rngs)
    assert together == [33, 33]
    assert all((one.params["0.weight"] == start["0.weight"]).all() for one, start in zip(found, starts, strict=True))


def test_batch_norm_keeps_to_clients_of_equal_batches(caplog, together):
    model = TorchModel(normed, F.cross_entropy, dtype="float64", loop="cohort")
    with caplog.at_level(logging.INFO, "hansa.plan"):
        same(
            model,
            some_data((33, 33, 34, 33, 31, 31)),
            LocalWork(lr=0.05, epochs=2, batch_size=10),
            skip=["1.num_batches_tracked"],
        )
    assert [record.getMessage()[:50] for record in caplog.records] == [
        "only clients of equal batches are trained together"
    ]
    assert sorted(together) == [31, 31, 34], "31: the plain loop leaves out a last batch of one"


ALONE = {
    "random": (convolutions, "the step draws random numbers, which are each client's own"),
    "lstm": (lstm, "Batching rule not implemented for aten::lstm"),
    "values": (Deciding, "the step cannot be traced"),
}


@pytest.mark.parametrize(("net", "reason"), ALONE.values(), ids=ALONE)
def test_what_cannot_be_stacked_is_trained_one_by_one_and_says_why_once(net, reason, caplog):
    model = TorchModel(net, F.cross_entropy, loop="cohort")
    data, asked = some_data((20, 20, 21), net is lstm), LocalWork(lr=0.05, epochs=1, batch_size=10)
    with caplog.at_level(logging.INFO, "hansa.plan"):
        found = fits(model, data, asked)
        fits(model, data, asked)
    said = [record.getMessage() for record in caplog.records if "one by one" in record.getMessage()]
    assert len(said) == 1 and reason in said[0]
    for seed, (one, own) in enumerate(zip(found, data, strict=True)):
        assert one.params == model.fit(model.init(0), own, asked, np.random.default_rng(seed)).params


def test_targets_that_do_not_count_are_not_padded():
    data = some_data((33, 34, 33, 34))
    for own in data:
        own["y"][::5] = -100
    for loss in (F.cross_entropy, partial(F.cross_entropy, weight=torch.tensor([1.0, 5.0, 2.0], dtype=torch.float64))):
        same(TorchModel(mlp, loss, dtype="float64", loop="cohort"), data, LocalWork(lr=0.1, epochs=1, batch_size=10))
    ignoring = partial(F.cross_entropy, ignore_index=0)
    same(
        TorchModel(mlp, ignoring, dtype="float64", loop="cohort"),
        some_data(),
        LocalWork(lr=0.1, epochs=1, batch_size=10),
    )


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk, self.one, self.two = nn.Linear(12, 8), nn.Linear(8, 3), nn.Linear(8, 2)

    def forward(self, x, scale):
        h = torch.relu(self.trunk(x * scale))
        return torch.cat([self.one(h), self.two(h)], 1)


def both(outputs, targets):
    return F.cross_entropy(outputs[:, :3], targets[0]) + F.mse_loss(outputs[:, 3:], targets[1])


def widest(outputs, targets):
    return outputs.abs().amax(1).clamp(max=9.0)


def test_several_columns_roles_and_measures_go_through(together):
    rng = np.random.default_rng(1)
    data = [
        Dataset(
            x=rng.normal(size=(n, 12)), s=rng.normal(size=(n, 1)), y=rng.integers(0, 3, n), z=rng.normal(size=(n, 2))
        )
        for n in (33, 35, 34, 33)
    ]
    model = TorchModel(
        TwoHeads, both, inputs=("x", "s"), targets=("y", "z"), measures={"widest": (widest, 9.0)}, dtype="float64",
        frozen=("trunk.bias",), private=("two.*",), loop="cohort",
    )  # fmt: skip
    same(model, data, LocalWork(lr=0.05, epochs=2, batch_size=10, proximal=0.3))
    assert together == []


def test_little_memory_makes_small_chunks_and_too_little_is_said(monkeypatch, caplog):
    data, asked = some_data((33,) * 6), LocalWork(lr=0.05, epochs=1, batch_size=10)
    whole = fits(TorchModel(mlp, F.cross_entropy, dtype="float64", loop="cohort"), data, asked)
    small, tiny = (TorchModel(mlp, F.cross_entropy, dtype="float64", loop="cohort") for _ in range(2))
    monkeypatch.setattr(adapter, "memory_bytes", lambda device: 30_000)
    for one, other in zip(fits(small, data, asked), whole, strict=True):
        assert apart(one.params, other.params) < 1e-12
    clients = {key[2] for key in small._kept_on("cpu").cohort._loops}
    assert clients and max(clients) < 6
    monkeypatch.setattr(adapter, "memory_bytes", lambda device: 1000)
    with caplog.at_level(logging.INFO, "hansa.plan"):
        same(tiny, data, asked)
    assert "clients are trained one by one: 0 MB have no room for two clients at once" in caplog.text


def test_images_of_a_bucket_are_scaled_from_few_traces(monkeypatch):
    traced = []
    from hansa.adapters import torch_cohort

    honest = torch_cohort.trace
    monkeypatch.setattr(
        torch_cohort, "trace", lambda *given: (traced.append(tuple(given[4][0].shape[:2])), honest(*given))[1]
    )
    model = TorchModel(images, F.cross_entropy, dtype="float64", loop="cohort")
    for count in (4, 7, 9):
        same(model, some_data((35, 36, 37) * count), LocalWork(lr=0.05, epochs=1, batch_size=10))
    assert sorted(set(traced)) == [(3, 7), (3, 10), (5, 7), (5, 10)] and len(traced) == 4


SIZES = st.lists(st.lists(st.integers(1, 10), min_size=1, max_size=6), min_size=1, max_size=12)


@settings(deadline=None)
@given(SIZES, st.sampled_from([0.0, WASTE]))
def test_buckets_hold_everybody_once_and_waste_little(sizes, waste):
    found = buckets(sizes, waste)
    assert sorted(i for bucket in found for i in bucket) == list(range(len(sizes)))
    for bucket in found:
        rows = table([sizes[i] for i in bucket])
        assert rows.max(0).sum() * len(bucket) <= (1 + waste) * rows.sum()
        assert waste or len({tuple(sizes[i]) for i in bucket}) == 1


@settings(deadline=None)
@given(SIZES, st.integers(1, 40))
def test_runs_are_whole_and_no_client_ends_within_one(sizes, most):
    rows = table(sizes)
    pieces = list(runs(rows, most))
    assert [i for run in pieces for i in range(run.first, run.last)] == list(range(rows.shape[1]))
    for run in pieces:
        part = rows[:, run.first : run.last]
        assert (part.max(0) == run.width).all()
        assert run.padded == (part < run.width).any() == (part < run.width).any(0).all()
        assert all(run.last <= len(own) or len(own) <= run.first for own in sizes)
        assert run.last - run.first == 1 or (run.last - run.first) * run.width <= most


class LowRank(nn.Module):
    """A matrix that is a product of two: the gradient of each is a product with the other."""

    def __init__(self):
        super().__init__()
        self.down, self.up = nn.Parameter(torch.randn(12, 2) / 3), nn.Parameter(torch.randn(2, 3) / 3)

    def forward(self, x):
        return x @ (self.down @ self.up)


@pytest.mark.parametrize("loop", ["replay", "cohort"])
def test_weights_that_are_multiplied_with_each_other_are_changed_at_once(loop, caplog):
    model = TorchModel(LowRank, F.cross_entropy, dtype="float64", loop=loop)
    with caplog.at_level(logging.INFO, "hansa.plan"):
        same(model, some_data((20, 20, 20)), LocalWork(lr=0.5, epochs=1, batch_size=10))
    assert not caplog.records


def test_a_dense_layers_step_of_many_clients_never_makes_the_gradient(monkeypatch):
    steps, honest = [], torch_cohort.trace

    def traced(*given):
        steps.append(honest(*given))
        return steps[-1]

    monkeypatch.setattr(torch_cohort, "trace", traced)
    fits(
        TorchModel(mlp, F.cross_entropy, loop="cohort"), some_data((20, 20)), LocalWork(lr=0.1, epochs=1, batch_size=10)
    )
    for step in steps:
        targets = [node.target for node in step.graph.nodes]
        assert targets.count(torch.ops.aten.baddbmm_.default) == 2, "one for each layer"
