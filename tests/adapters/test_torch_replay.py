"""Replayed steps do what the plain loop does, for every declared feature, and what cannot be traced is left to it."""

import json
import logging
import subprocess
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

torch = pytest.importorskip("torch")
import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402
from torch.fx.experimental.proxy_tensor import make_fx  # noqa: E402

from hansa.adapters import torch_native, torch_plans, torch_replay  # noqa: E402
from hansa.adapters.torch import LOOPS, TorchModel  # noqa: E402
from hansa.adapters.torch_trace import Step  # noqa: E402
from hansa.core.data import Dataset  # noqa: E402
from hansa.core.errors import DataError  # noqa: E402
from hansa.core.model import LocalWork  # noqa: E402
from hansa.core.tensors import Tensors  # noqa: E402


def mlp():
    return nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))


def convolutions():
    return nn.Sequential(
        nn.Unflatten(1, (1, 3, 4)), nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
        nn.Dropout(0.3), nn.Flatten(), nn.Linear(8, 3),
    )  # fmt: skip


def images():
    return nn.Sequential(
        nn.Unflatten(1, (1, 3, 4)), nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3)
    )


def normed():
    return nn.Sequential(nn.Linear(12, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))


def attention():
    return nn.Sequential(
        nn.Unflatten(1, (3, 4)), nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), nn.Flatten(), nn.Linear(12, 3)
    )


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.words, self.cell, self.out = nn.Embedding(20, 4), kind(4, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, x):
        return self.out(self.cell(self.words(x))[0][:, -1])


def lstm():
    return Recurrent(nn.LSTM)


def gru():
    return Recurrent(nn.GRU)


class Deciding(nn.Module):
    """Its way through depends on values, which no graph can hold."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(12, 3)

    def forward(self, x):
        y = self.layer(x)
        return y * 2 if float(y.sum().detach()) > 0 else y


NETS = {"mlp": mlp, "convolutions": convolutions, "attention": attention, "lstm": lstm, "gru": gru}
WORK = {
    "sgd": {},
    "momentum": {"momentum": 0.9, "weight_decay": 0.01},
    "adam": {"optimiser": "adam", "lr": 0.01, "eps": 1e-3},  # a small eps shows the rounding of gradients of zero
    "proximal": {"proximal": 0.5},
}


def some_data(words=False, examples=33):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 20, (examples, 7)) if words else rng.normal(size=(examples, 12))
    return Dataset(x=x, y=rng.integers(0, 3, examples))


def fit(model, work, words=False, examples=33):
    return model.fit(model.init(0), some_data(words, examples), work, np.random.default_rng(5))


def apart(a, b):
    return max(float(np.abs(np.asarray(a[n], float) - b[n]).max() / (np.abs(b[n]).max() + 1e-30)) for n in b)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("work", WORK.values(), ids=WORK)
@pytest.mark.parametrize("net", NETS.values(), ids=NETS)
def test_a_replayed_round_equals_the_plain_loop(net, work, dtype, caplog):
    words = net in (lstm, gru)
    asked = LocalWork(
        **{"lr": 0.05, "batch_size": 10, **({"steps": 5} if dtype == "float32" else {"epochs": 2}), **work}
    )
    plain = TorchModel(net, F.cross_entropy, dtype=dtype, loop="plain")
    with caplog.at_level(logging.INFO, "hansa.plan"):
        replayed = fit(replace(plain, loop="replay"), asked, words)
    assert not caplog.records, "it was replayed"
    reference = fit(plain, asked, words)
    assert apart(replayed.params, reference.params) < (1e-9 if dtype == "float64" else 1e-5)
    assert replayed.steps == reference.steps
    assert replayed.metrics["accuracy"] == pytest.approx(reference.metrics["accuracy"])
    assert replayed.metrics["loss"] == pytest.approx(reference.metrics["loss"], rel=1e-4)


@pytest.mark.parametrize("net", [convolutions, images])
def test_channels_last_is_a_layout_and_nothing_else(net):
    plain = TorchModel(
        net, F.cross_entropy, dtype="float64", loop="plain, channels last" if net is convolutions else "plain"
    )
    laid = replace(plain, loop="replay, channels last")
    asked = LocalWork(lr=0.05, epochs=1, batch_size=10)
    assert apart(fit(laid, asked).params, fit(plain, asked).params) < 1e-9
    assert all(np.asarray(array).flags.c_contiguous for array in fit(laid, asked).params.values())


def test_correction_and_mask_are_replayed_with_each_visits_own_values():
    plain = TorchModel(mlp, F.cross_entropy, dtype="float64", loop="plain")
    model = replace(plain, loop="replay")
    for seed in (1, 2):
        rng = np.random.default_rng(seed)
        shapes = {name: shape for name, (shape, _) in plain.shapes().items()}
        correction = Tensors({name: rng.normal(size=shape) for name, shape in shapes.items()})
        mask = Tensors({name: rng.integers(0, 2, shape).astype(float) for name, shape in shapes.items()})
        asked = LocalWork(lr=0.1, epochs=1, batch_size=10, correction=correction, mask=mask)
        assert apart(fit(model, asked).params, fit(plain, asked).params) < 1e-12


def test_a_step_that_cannot_be_traced_runs_in_the_plain_loop_and_says_why_once(caplog):
    model = TorchModel(Deciding, F.cross_entropy)
    asked = LocalWork(lr=0.1, epochs=1, batch_size=11)
    with caplog.at_level(logging.INFO, "hansa.plan"):
        first, second = fit(model, asked), fit(model, asked)
    assert first.params == second.params == fit(replace(model, loop="plain"), asked).params
    assert [record.getMessage()[:24] for record in caplog.records] == ["plain loop for this step"]


class Bent(Step):
    """A step whose loop does something else."""

    def loop(self):
        honest = super().loop()

        def bent(kept, columns, rate, stores):
            honest(kept, columns, rate, stores)
            kept[0].add_(0.1)

        return bent


def test_a_replay_that_differs_from_the_plain_loop_is_not_used(monkeypatch, caplog):
    honest = torch_replay.trace
    monkeypatch.setattr(torch_replay, "trace", lambda *given: Bent(**vars(honest(*given))))
    plain = TorchModel(mlp, F.cross_entropy, loop="plain")
    asked = LocalWork(lr=0.1, epochs=1, batch_size=11)
    with caplog.at_level(logging.INFO, "hansa.plan"):
        assert fit(replace(plain, loop="replay"), asked).params == fit(plain, asked).params
    assert "replayed, '0.weight' differs from the plain loop" in caplog.text


@pytest.mark.parametrize("net", NETS.values(), ids=NETS)
def test_results_with_memory_of_their_own_are_the_same_bits(net, monkeypatch):
    model = TorchModel(net, F.cross_entropy, loop="replay")
    asked = LocalWork(lr=0.05, steps=5, batch_size=10)
    own = fit(model, asked, net in (lstm, gru))
    monkeypatch.setattr(torch_native, "SMALL", -1)
    made = fit(replace(model), asked, net in (lstm, gru))  # a model of its own, which writes its loop anew
    assert own.params == made.params and own.metrics == made.metrics


def test_a_loop_stores_what_each_step_gives_whatever_reads_or_changes_it():
    def step(kept, x):
        product = torch.mm(x, kept)
        turned = product.t() + 1.0
        noise = torch.zeros(2, 2)
        noise.add_(turned).relu_()
        low, at = torch.max(product, 1)
        kept.add_(turned, alpha=0.1)
        return [product, turned.t(), noise, low, at, product]

    torch.manual_seed(0)
    kept, column = torch.randn(2, 2), torch.randn(4, 2, 2)
    graph = make_fx(step)(kept.clone(), column[0]).graph
    first, batch = (node for node in graph.nodes if node.op == "placeholder")
    with graph.inserting_after(batch):
        rate = graph.placeholder("rate")
    given = list(graph.output_node().args[0])
    loop = torch_native.native_loop(graph, [first], [batch], rate, given)
    stores = [torch.empty((4, *one.meta["val"].shape), dtype=one.meta["val"].dtype) for one in given]
    native = kept.clone()
    loop([native], [column], 0.0, stores)
    for at in range(4):
        for store, wanted in zip(stores, step(kept, column[at]), strict=True):
            assert torch.equal(store[at], wanted)
    assert torch.equal(native, kept)


@pytest.mark.parametrize("net", [mlp, convolutions, lstm, attention])
def test_the_third_batch_size_of_a_class_is_scaled_from_two_that_were_traced(net, monkeypatch):
    traced = []
    honest = torch_replay.trace
    monkeypatch.setattr(torch_replay, "trace", lambda *given: (traced.append(len(given[5])), honest(*given))[1])
    plain = TorchModel(net, F.cross_entropy, dtype="float64", loop="plain")
    model = replace(plain, loop="replay")
    for examples in (33, 37, 35, 36):  # last batches of 3, 7, 5 and 6
        asked = LocalWork(lr=0.05, epochs=1, batch_size=10)
        one, other = (fit(each, asked, net is lstm, examples) for each in (model, plain))
        assert apart(one.params, other.params) < 1e-9
    assert traced == [10, 3, 7], "10 is of the class for which long layers are turned"


class Wide(nn.Module):
    """A layer that is told how many examples there are, in words that no rule of proportion has."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(12, 3)

    def forward(self, x):
        return self.layer(x) * (len(x) ** 2 + 1)


def test_a_step_that_is_not_proportional_to_the_batch_is_traced_for_each_size(monkeypatch):
    traced = []
    honest = torch_replay.trace
    monkeypatch.setattr(torch_replay, "trace", lambda *given: (traced.append(len(given[5])), honest(*given))[1])
    plain = TorchModel(Wide, F.cross_entropy, dtype="float64", loop="plain")
    model = replace(plain, loop="replay")
    for examples in (33, 37, 35):
        asked = LocalWork(lr=0.001, epochs=1, batch_size=10)
        one, other = (fit(each, asked, examples=examples) for each in (model, plain))
        assert apart(one.params, other.params) < 1e-9
    assert traced == [10, 3, 7, 5]


class Moody(nn.Module):
    """A layer that goes another way for batches of one size, which no graph of another size shows."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(12, 3)

    def forward(self, x):
        return self.layer(x) * (2 if len(x) == 5 else 1)


def test_a_scaled_step_is_held_against_the_plain_loop_too(caplog):
    plain = TorchModel(Moody, F.cross_entropy, loop="plain")
    model = replace(plain, loop="replay")
    with caplog.at_level(logging.INFO, "hansa.plan"):
        for examples in (33, 37, 36, 35):
            asked = LocalWork(lr=0.1, epochs=1, batch_size=10)
            one, other = (fit(each, asked, examples=examples) for each in (model, plain))
            assert apart(one.params, other.params) < 1e-5
            assert ("differs from the plain loop" in caplog.text) == (examples == 35)


def test_another_learning_rate_is_another_argument_and_no_other_trace(monkeypatch):
    traced = []
    honest = torch_replay.trace
    monkeypatch.setattr(torch_replay, "trace", lambda *given: (traced.append(1), honest(*given))[1])
    plain = TorchModel(mlp, F.cross_entropy, dtype="float64", loop="plain")
    model = replace(plain, loop="replay")
    for lr in (0.1, 0.01, 0.5):
        for momentum in (0.0, 0.5):
            asked = LocalWork(lr=lr, epochs=1, batch_size=11, momentum=momentum)
            assert apart(fit(model, asked).params, fit(plain, asked).params) < 1e-9
    assert len(traced) == 2


def test_rows_are_gathered_in_pieces_without_changing_the_result(monkeypatch):
    model = TorchModel(mlp, F.cross_entropy)
    asked = LocalWork(lr=0.1, epochs=3, batch_size=4, optimiser="adam")
    whole = fit(model, asked)
    monkeypatch.setattr(torch_replay, "CHUNK_BYTES", 1)
    assert fit(model, asked).params == whole.params


def test_batch_norm_leaves_out_a_last_batch_of_one_when_replayed():
    plain = TorchModel(normed, F.cross_entropy, loop="plain")
    asked = LocalWork(lr=0.05, epochs=2, batch_size=8)  # 33 examples: the fifth batch is one
    one, other = fit(replace(plain, loop="replay"), asked), fit(plain, asked)
    assert one.steps == other.steps == 8
    floats = [name for name in one.params if name != "1.num_batches_tracked"]  # it counts what was left out, too
    assert apart(one.params.only(floats), other.params.only(floats)) < 1e-4


def test_a_measured_loop_is_chosen_once_printed_and_kept_on_resume(caplog, monkeypatch, tmp_path):
    monkeypatch.setenv("HANSA_CACHE", str(tmp_path / "cache"))
    model = TorchModel(images, F.cross_entropy, loop="measure")
    with caplog.at_level(logging.INFO, "hansa.plan"):
        fixed = model.planned(some_data, LocalWork(lr=0.1, epochs=1, batch_size=10))
    assert fixed.loop in LOOPS and f"runs in the loop '{fixed.loop}'" in caplog.text
    assert all(f"{loop} " in caplog.text for loop in LOOPS), "all of them were tried"
    caplog.clear()
    work = LocalWork(lr=0.3, epochs=1, batch_size=10)
    assert model.planned(some_data, work).loop == fixed.loop, "another learning rate is no other work"
    assert [record.getMessage() for record in caplog.records] == [
        f"local training runs in the loop '{fixed.loop}', the fastest when it was measured before"
    ]
    again = model.planned(some_data, LocalWork(lr=0.1, steps=1), "torch; plain, channels last; cpu; threads=1")
    assert again.loop == "plain, channels last"
    assert replace(model, loop="auto").planned(some_data, LocalWork(lr=0.1, steps=1)).loop == "auto"


def test_kept_plans_that_are_broken_or_of_something_else_are_ignored(monkeypatch, tmp_path):
    monkeypatch.setenv("HANSA_CACHE", str(tmp_path))
    key, file = torch_plans.key_of("net", 1), tmp_path / "plans.json"
    torch_plans.keep(key, "plain")
    assert torch_plans.known(key, LOOPS) == "plain" and list(tmp_path.iterdir()) == [file]
    assert torch_plans.known(torch_plans.key_of("net", 2), LOOPS) is None
    torch_plans.keep(key, "a loop of another release")
    assert torch_plans.known(key, LOOPS) is None
    for text in ("", "{", "[]", json.dumps({key: 3})):
        file.write_text(text)
        assert torch_plans.known(key, LOOPS) is None
        torch_plans.keep(key, "replay")
        assert torch_plans.known(key, LOOPS) == "replay"
    monkeypatch.setattr(torch, "__version__", "0")
    assert torch_plans.known(torch_plans.key_of("net", 1), LOOPS) is None
    monkeypatch.setenv("HANSA_CACHE", str(file / "no folder"))
    torch_plans.keep(key, "replay")  # cannot be written: measured again next time
    assert torch_plans.known(key, LOOPS) is None


def test_an_unknown_loop_is_named_with_the_choices():
    from hansa.core.errors import ConfigError

    with pytest.raises(ConfigError, match="loop='fast': choose 'auto', 'measure' or one of"):
        TorchModel(mlp, F.cross_entropy, loop="fast")


@pytest.mark.parametrize("net", [mlp, convolutions, lstm, attention])
def test_bfloat16_multiplies_coarsely_and_keeps_its_parameters_in_float32(net, caplog):
    plain = TorchModel(net, F.cross_entropy, loop="plain", precision="bf16")
    asked = LocalWork(lr=0.05, steps=5, batch_size=10)
    with caplog.at_level(logging.INFO, "hansa.plan"):
        replayed, looped = (fit(replace(plain, loop=loop), asked, net is lstm) for loop in ("replay", "plain"))
    assert not caplog.records, "it was replayed"
    exact = fit(replace(plain, precision=None), asked, net is lstm)
    assert {np.asarray(a).dtype for name, a in replayed.params.items() if "batches" not in name} == {np.dtype("f4")}
    assert apart(replayed.params, looped.params) < 0.05
    assert 1e-6 < apart(replayed.params, exact.params) < 0.05


def test_a_precision_that_is_not_there_is_named_with_the_choice():
    from hansa.core.errors import ConfigError

    with pytest.raises(ConfigError, match="precision='fp8': choose 'bf16', or None"):
        TorchModel(mlp, F.cross_entropy, precision="fp8")


def fit_labels(model, labels, asked):
    x = np.random.default_rng(0).normal(size=(len(labels), 12))
    return model.fit(model.init(0), Dataset(x=x, y=np.array(labels)), asked, np.random.default_rng(5))


@pytest.mark.parametrize("ignored", [-100, 1])
def test_rows_of_the_ignored_class_count_for_nothing_in_a_replayed_loss(ignored, caplog):
    plain = TorchModel(mlp, partial(F.cross_entropy, ignore_index=ignored), dtype="float64", loop="plain")
    labels = [0, ignored, 2, 1, 2, 0, ignored, ignored, 2, 0, 1, ignored]
    asked = LocalWork(lr=0.1, epochs=3, batch_size=4)
    with caplog.at_level(logging.INFO, "hansa.plan"):
        one = fit_labels(replace(plain, loop="replay"), labels, asked)
    other = fit_labels(plain, labels, asked)
    assert not caplog.records, "it was replayed"
    assert apart(one.params, other.params) < 1e-9
    assert one.metrics["loss"] == pytest.approx(other.metrics["loss"])


def test_a_batch_of_the_ignored_class_alone_teaches_nothing_and_has_no_loss():
    model = TorchModel(mlp, F.cross_entropy, loop="replay")
    fitted = fit_labels(model, [-100] * 8, LocalWork(lr=0.1, epochs=1, batch_size=4))
    assert fitted.params == model.init(0) and np.isnan(fitted.metrics["loss"][0])


@pytest.mark.parametrize("label", [3, -1])
def test_a_label_that_is_no_class_is_named_in_a_loop_that_was_traced_without_it(label):
    model = TorchModel(mlp, F.cross_entropy, loop="replay")
    asked = LocalWork(lr=0.1, epochs=1, batch_size=4)
    fit_labels(model, [0, 1, 2, 0] * 3, asked)
    with pytest.raises(DataError, match=f"column 'y' has the label {label}"):
        fit_labels(model, [0, 1, 2, 0] * 2 + [0, 1, label, 0], asked)


@pytest.mark.parametrize(
    "loss",
    [
        partial(F.cross_entropy, label_smoothing=0.1),
        partial(F.cross_entropy, weight=torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)),
        partial(F.cross_entropy, reduction="sum"),
        lambda outputs, targets: 2 * F.cross_entropy(outputs, targets),
        lambda outputs, targets: F.cross_entropy(outputs, targets) + F.cross_entropy(outputs / 2, targets),
        lambda outputs, targets: F.nll_loss(outputs.softmax(1).log(), targets),
    ],
    ids=["smoothed", "weighted", "summed", "doubled", "two", "of-probabilities"],
)
def test_losses_beside_the_mean_of_classes_are_replayed_too(loss, caplog):
    plain = TorchModel(mlp, loss, dtype="float64", loop="plain")
    asked = LocalWork(lr=0.02, epochs=2, batch_size=10)
    with caplog.at_level(logging.INFO, "hansa.plan"):
        one, other = fit(replace(plain, loop="replay"), asked), fit(plain, asked)
    assert not caplog.records, "it was replayed"
    assert apart(one.params, other.params) < 1e-9
    assert one.metrics["loss"] == pytest.approx(other.metrics["loss"])


class Holding(nn.Module):
    """A module with tensors of its own that no state_dict names: `use` says what becomes of them."""

    def __init__(self, use):
        super().__init__()
        self.layer, self.held, self.use = nn.Linear(12, 3, dtype=torch.float64), torch.ones(3).double(), use

    def forward(self, x):
        return self.use(self, self.layer(x))


def read(self, y):
    return y * torch.tensor([1.0, 2.0, 3.0]) + self.held


def counted(self, y):
    self.held += 1
    return y * self.held


def carried(self, y):
    before, self.held = self.held, y.detach().mean(0)
    return y + before


def masked(self, y):
    return y * y[y > 0].mean()


@pytest.mark.parametrize(
    ("use", "reason"),
    [
        (read, ""),
        (counted, "changes a tensor that is neither parameter nor buffer"),
        (carried, "differs from the plain loop"),
        (masked, "depends on the values of tensors"),
    ],
)
def test_tensors_beside_parameters_and_buffers_are_constants_or_the_plain_loop_runs(use, reason, caplog):
    plain = TorchModel(partial(Holding, use), F.cross_entropy, dtype="float64", loop="plain")
    asked = LocalWork(lr=0.02, epochs=2, batch_size=10)
    with caplog.at_level(logging.INFO, "hansa.plan"):
        fitted = fit(replace(plain, loop="replay"), asked)
    assert bool(caplog.records) == bool(reason) and reason in caplog.text
    if use in (read, masked):
        assert apart(fitted.params, fit(plain, asked).params) < 1e-9


def test_tracing_a_step_does_not_import_the_compiler():
    code = (
        "import sys, numpy as np, torch.nn.functional as F, hansa\n"
        "from torch import nn\n"
        "model = hansa.TorchModel(lambda: nn.Linear(4, 2), F.cross_entropy, loop='replay')\n"
        "data = hansa.Dataset(x=np.ones((8, 4), 'f4'), y=np.zeros(8, int))\n"
        "model.fit(model.init(0), data, hansa.LocalWork(lr=0.1, epochs=1, batch_size=4), np.random.default_rng(0))\n"
        "print([name for name in ('torch._dynamo', 'torch._inductor') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]", done.stderr
