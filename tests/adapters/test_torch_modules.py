"""What modules do beside computing: the traced steps give what the plain loop gives all the same, or leave it to it."""

import logging
import random
from functools import partial

import numpy as np
import pytest

torch = pytest.importorskip("torch")
import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

from hansa.adapters.torch import TorchModel  # noqa: E402
from hansa.core.data import Dataset  # noqa: E402
from hansa.core.errors import ConfigError, DataError  # noqa: E402
from hansa.core.model import LocalWork  # noqa: E402

ROUND = LocalWork(lr=0.05, epochs=2, batch_size=6)


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.out, self.last, self.calls = nn.Linear(12, 3), None, 0
        self.register_buffer("mean", torch.zeros(12))


class Replacing(Layer):
    """Gives a buffer a new tensor, where others change the one there is."""

    def forward(self, x):
        used = x * (1 + self.mean)
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.mean(0)
        return self.out(used)


class Counting(Layer):
    def forward(self, x):
        self.calls += 1
        return self.out(x) * (1 + 1e-4 * self.calls)


class Carrying(Layer):
    def forward(self, x):
        self.last = x.mean(0) if self.last is None else 0.5 * (self.last + x.mean(0))
        return self.out(x + self.last)


class Listing(Layer):
    def forward(self, x):
        return self.out(x) * max(x.flatten().tolist())


class Reading(torch.autograd.Function):
    @staticmethod
    def forward(_, x):
        return torch.from_numpy(np.tanh(x.numpy()))

    @staticmethod
    def backward(_, grad):
        return grad


class Numeric(Layer):
    def forward(self, x):
        return Reading.apply(self.out(x))


class Gambling(Layer):
    def forward(self, x):
        return self.out(x) * (random.choice((1, 2)) if self.training else 1)


class Sparse(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.out = nn.Embedding(20, 4, sparse=True), nn.Linear(4, 3)

    def forward(self, x):
        return self.out(self.words(x).mean(1))


class Noting(Layer):
    """What it keeps decides nothing."""

    def forward(self, x):
        self.calls, self.last = self.calls + 1, self.out(x)
        return self.last


class Attending(nn.Module):
    """Its mask is infinite."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
        self.read, self.out = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False), nn.Linear(4, 3)

    def forward(self, x):
        words = x.view(len(x), 3, 4)
        return self.out(self.read(words, src_key_padding_mask=words[..., 0] > 1).mean(1))


ALONE = {
    Counting: "kept as an attribute",
    Carrying: "kept as an attribute",
    Listing: "differs from the plain loop",
    Numeric: "differs from the plain loop",
    Gambling: "random numbers of Python or NumPy",
    Sparse: "replayed, it fails",
}


def clients(words=False):
    rng = np.random.default_rng(0)
    draw = (lambda n: rng.integers(0, 20, (n, 7))) if words else (lambda n: rng.normal(size=(n, 12)))
    return [Dataset(x=draw(n), y=rng.integers(0, 3, n)) for n in (15, 18, 21)]


def fits(net, loop):
    model, data = TorchModel(net, F.cross_entropy, dtype="float64", loop=loop), clients(net is Sparse)
    rngs = [np.random.default_rng(seed) for seed in range(len(data))]
    return model.fit_cohort([model.init(0)] * len(data), data, [ROUND] * len(data), rngs)


def assert_same(net, loop):
    for one, other in zip(fits(net, loop), fits(net, "plain"), strict=True):
        for name, weight in other.params.items():
            np.testing.assert_allclose(one.params[name], weight, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("loop", ["replay", "cohort"])
@pytest.mark.parametrize("net", [Replacing, Noting, Attending])
def test_modules_that_can_be_replayed_are(net, loop, caplog):
    with caplog.at_level(logging.INFO, "hansa.plan"):
        assert_same(net, loop)
    assert not any("plain loop" in record.message.split(":")[0] for record in caplog.records)


@pytest.mark.parametrize("loop", ["replay", "cohort"])
@pytest.mark.parametrize("net", ALONE)
def test_modules_that_cannot_run_in_the_plain_loop_and_it_says_why(net, loop, caplog):
    with caplog.at_level(logging.INFO, "hansa.plan"):
        assert_same(net, loop)
    assert ALONE[net] in "".join(record.message for record in caplog.records if "plain loop for" in record.message)


@pytest.mark.parametrize("net", [Counting, Carrying, Gambling])
def test_a_visit_finds_nothing_that_another_left(net):
    model, data = TorchModel(net, F.cross_entropy, loop="plain"), clients()
    fit = partial(model.fit, model.init(0), data[0], ROUND)
    first = fit(np.random.default_rng(1))
    before = random.getstate()
    model.fit(model.init(0), data[1], ROUND, np.random.default_rng(2))
    again = fit(np.random.default_rng(1))
    assert random.getstate() == before
    assert all(np.array_equal(first.params[name], again.params[name]) for name in first.params)


def test_a_wrong_step_is_found_at_a_small_learning_rate(monkeypatch, caplog):
    from hansa.adapters import torch_replay

    honest = torch_replay.loop_of

    def half(*given):
        loop = honest(*given)
        return lambda kept, columns, rate, stores: loop(kept, columns, rate / 2, stores)

    monkeypatch.setattr(torch_replay, "loop_of", half)
    model = TorchModel(Noting, F.cross_entropy, loop="replay")
    with caplog.at_level(logging.INFO, "hansa.plan"):
        model.fit(model.init(0), clients()[0], ROUND.with_(lr=1e-5), np.random.default_rng(0))
    assert "differs from the plain loop" in caplog.text


def tabular(**columns):
    rng = np.random.default_rng(0)
    return Dataset(**{"x": rng.normal(size=(8, 12)), "y": rng.integers(0, 3, 8)} | columns)


BATCHES = {
    "dtype": ({"x": np.zeros((8, 12), np.uint8)}, r"x: uint8 \[12\], y: int64 \[\]"),
    "shape": ({"x": np.zeros((8, 7))}, r"x: float32 \[7\].*cannot be multiplied"),
    "labels": ({"y": np.zeros(8)}, r"y: float32 \[\].*expected target dtype"),
}


@pytest.mark.parametrize("loop", ["plain", "replay"])
@pytest.mark.parametrize(("columns", "said"), BATCHES.values(), ids=BATCHES)
def test_a_batch_that_the_module_does_not_take_is_described(columns, said, loop):
    model = TorchModel(Noting, F.cross_entropy, loop=loop)
    with pytest.raises(DataError, match=said):
        model.fit(model.init(0), tabular(**columns), ROUND, np.random.default_rng(0))


@pytest.mark.parametrize("loop", ["plain", "replay"])
@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (partial(F.cross_entropy, reduction="none"), r"shape \(6,\): give its mean"),
        (lambda outputs, targets: 1.0, "a float: give its mean"),
        (lambda outputs, targets: outputs.detach().sum(), "does not depend on any trained parameter"),
    ],
    ids=["each", "float", "detached"],
)
def test_a_loss_that_cannot_be_minimised_is_named(loss, said, loop):
    model = TorchModel(Noting, loss, loop=loop)
    with pytest.raises(ConfigError, match=said):
        model.fit(model.init(0), tabular(), ROUND, np.random.default_rng(0))


def lazy():
    return nn.LazyLinear(3)


class Complex(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2, dtype=torch.complex64))


@pytest.mark.parametrize(
    ("net", "said"), [(lazy, "'weight' has no shape before"), (Complex, "'weight' is complex64: keep")]
)
def test_tensors_that_cannot_be_averaged_are_refused_with_a_remedy(net, said):
    with pytest.raises(ConfigError, match=said):
        TorchModel(net, F.cross_entropy, dtype="float64").init(0)
